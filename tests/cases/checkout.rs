//! `checkout`: copies that are whole, writable and free of the cache.

use std::fs;

use crate::harness::{pipelines::DIAMOND, space::Space};

fn ran_once() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space.run("").ok();
    space
}

#[test]
fn files_are_copied_and_writable() {
    let space = ran_once();
    let told = space.does("checkout upper some/where").ok().stdout;
    assert_eq!(told, "some/where: 1 file, 10 B\n");
    assert_eq!(space.read("some/where/text"), "HELLO\nONE\n");
    fs::write(space.path("some/where/text"), "mine").unwrap();
    space.run("").ok().hits(4);
    space.does("cache verify").ok();
}

#[test]
fn a_folder_with_files_is_replaced_only_on_demand_and_then_as_a_whole() {
    let space = ran_once();
    space.file("out/mine", "precious");
    let refused = space.does("checkout upper out").exits(2);
    assert!(refused.stderr.contains("`out` is there and not empty"), "{}", refused.stderr);
    assert_eq!(space.read("out/mine"), "precious");
    space.does("checkout upper out --replace").ok();
    assert_eq!(space.tree("out").keys().collect::<Vec<_>>(), ["text"]);
    let left: Vec<_> = fs::read_dir(space.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".mla-run")), "{left:?}");
}

#[test]
fn what_is_not_made_is_not_copied() {
    let space = ran_once();
    space.file("in/a.txt", "other\n");
    space.does("checkout upper out p.toml").exits(1);
    assert!(!space.path("out").exists());
    space.does("checkout upper").exits(2);
}

#[test]
fn linked_files_are_those_of_the_cache_and_it_knows_them_still() {
    use std::os::unix::fs::MetadataExt;

    let space = Space::new(
        "[stage.a]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"mkdir {out}/d; echo one > {out}/d/n\"]\noutputs = [\"d/n\"]\n",
    );
    let digests = space.run("").ok().digests();
    space.does("checkout a linked p.toml --hardlink").ok();
    let meta = std::fs::metadata(space.path("linked/d/n")).unwrap();
    assert_eq!((meta.nlink(), meta.mode() & 0o777), (2, 0o444));
    assert_eq!(space.run("").ok().hits(1).digests(), digests);
    // Somebody forces a change through the link: the cache sees it, and makes the stage again.
    std::fs::set_permissions(space.path("linked/d/n"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    space.file("linked/d/n", "two\n");
    assert_eq!(space.run("").ok().ran(["a"]).digests(), digests);
}
