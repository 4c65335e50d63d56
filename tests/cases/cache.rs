//! A damaged cache: found, moved away, made again, never served.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use crate::harness::{pipelines::DIAMOND, space::Space};

fn ran_once() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space.run("").ok();
    space
}

/// The objects of `blob` or `act`, sorted.
fn objects(space: &Space, kind: &str) -> Vec<PathBuf> {
    let names = space.tree(&format!("cache/{kind}"));
    names.keys().map(|name| space.path(&format!("cache/{kind}/{name}"))).collect()
}

fn writable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn every_kind_of_damage_is_found_and_repaired() {
    type Spoil = fn(&Path);
    let damage: [(&str, Spoil); 6] = [
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("emptied", |path| fs::write(path, "").unwrap()),
        ("cut", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("one byte changed", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[0] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("replaced by a link", |path| {
            fs::remove_file(path).unwrap();
            symlink("/etc/hostname", path).unwrap();
        }),
        ("replaced by a folder", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    let space = ran_once();
    let digests = space.run("").ok().digests();
    for kind in ["blob", "act"] {
        for object in objects(&space, kind) {
            for (what, spoil) in damage {
                writable(&object);
                spoil(&object);
                let ran = space.run("").ok();
                assert_eq!(ran.digests(), digests, "{kind} {what}");
                assert!(!ran.with_status("ran").is_empty(), "{kind} {what} went unseen");
                space.run("").ok().hits(4);
            }
        }
    }
    space.does("cache verify").ok();
}

#[test]
fn verify_finds_what_a_run_would_not_look_at() {
    let space = ran_once();
    assert!(space.does("cache verify").ok().stdout.starts_with("sound: "));
    let blob = objects(&space, "blob").remove(0);
    writable(&blob);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[0] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let told = space.does("cache verify --format json").exits(5);
    assert_eq!(told.json()["damaged"].as_array().unwrap().len(), 1, "{}", told.stdout);
    let again = space.does("cache verify").exits(5);
    assert!(again.stdout.contains("damaged; the next run makes again what is missing"), "{}", again.stdout);
    space.run("").ok();
    space.does("cache verify").ok();
}

#[test]
fn ls_lists_what_was_made() {
    let space = ran_once();
    let listed = space.does("cache ls --format json").ok().json();
    let kinds: Vec<&str> =
        listed.as_array().unwrap().iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["exec"; 4]);
    assert!(space.does("cache ls").ok().stdout.contains("4 records"));
}

#[test]
fn two_runs_at_once_agree() {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    let start =
        || space.command(&["run", "p.toml", "--format", "json"]).stdout(std::process::Stdio::piped()).spawn();
    let runs: Vec<_> = (0..4).map(|_| start().unwrap()).collect();
    for run in runs {
        assert!(run.wait_with_output().unwrap().status.success());
    }
    space.run("").ok().hits(4);
    space.does("cache verify").ok();
}
