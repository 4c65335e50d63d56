//! A cache that two projects share: what one pushes the other need not run, and only what is signed by a trusted key counts.

use std::{fs, path::Path};

use crate::harness::{pipelines::DIAMOND, space::Space};

/// A project with the diamond, a remote folder and a section `[cache]` with more lines.
fn project(remote: &Path, lines: &str) -> Space {
    let space = Space::new(&format!("[cache]\nremote = \"file://{}\"\n{lines}\n{DIAMOND}", remote.display()));
    space.file("in/a.txt", "hello\n");
    space
}

/// A key in a file of a folder, and its public half.
fn key(space: &Space, name: &str) -> String {
    space.does(&format!("cache key new {name}")).ok().stdout.trim().to_owned()
}

#[test]
fn what_one_pushed_the_other_need_not_run() {
    let remote = tempfile::tempdir().unwrap();
    let here = project(remote.path(), "sign-with = \"ci.key\"");
    let public = key(&here, "ci.key");
    assert_eq!(here.does("cache key show ci.key").ok().stdout.trim(), public);
    let digests = here.run("--no-remote").ok().digests();
    let told = here.does("cache push p.toml --format json").ok();
    assert_eq!(told.json()["records"], 4, "{}", told.stdout);
    assert!(told.stderr.contains("upper: pushed, "), "{}", told.stderr);
    let again = here.does("cache push p.toml").ok();
    assert!(again.stdout.contains("4 records and"), "{}", again.stdout);
    assert!(again.stderr.contains("upper: was there"), "{}", again.stderr);

    let there = project(remote.path(), &format!("trust = [\"{public}\"]"));
    let told = there.does("cache pull p.toml --format json").ok().json();
    assert_eq!(told["pulled"], serde_json::json!(["source", "upper", "copy", "count"]), "{told}");
    assert_eq!(there.run("--no-remote").ok().hits(4).digests(), digests);
    there.does("cache verify").ok();
    let told = there.does("cache pull p.toml").ok();
    assert!(told.stdout.starts_with("pulled: 0 records (0 B); 4 were here"), "{}", told.stdout);

    // Who has no key only reads.
    let refused = there.does("cache push p.toml").exits(2);
    assert!(refused.stderr.contains("mla-run cache key new FILE"), "{}", refused.stderr);
}

#[test]
fn all_goes_without_a_manifest() {
    let remote = tempfile::tempdir().unwrap();
    let here = project(remote.path(), "");
    here.run("--no-remote").ok();
    let url = format!("file://{}", remote.path().display());
    here.does(&format!("cache push --all --remote {url} --unsigned")).ok();
    let there = project(remote.path(), "");
    there.does(&format!("cache pull --all --remote {url} --unsigned --cache cache")).ok();
    there.run("--no-remote").ok().hits(4);
    let bare = there.does("cache pull").exits(2);
    assert!(bare.stderr.contains("PIPELINE.toml"), "{}", bare.stderr);
}

#[test]
fn only_trusted_records_are_taken() {
    let remote = tempfile::tempdir().unwrap();
    let here = project(remote.path(), "sign-with = \"ci.key\"");
    let public = key(&here, "ci.key");
    here.run("--no-remote").ok();
    here.does("cache push p.toml").ok();

    let there = project(remote.path(), "");
    let nobody = there.does("cache pull p.toml").exits(2);
    assert!(nobody.stderr.contains("write `trust = [\"…\"]` under [cache]"), "{}", nobody.stderr);
    let other = key(&there, "other.key");
    let refused = there.does(&format!("cache pull p.toml --format json --trust {other}")).exits(5);
    let why = refused.json()["refused"]["source"].as_str().unwrap().to_owned();
    assert!(why.contains(&format!("signed by {public}, which is not under `trust`")), "{why}");
    there.does(&format!("cache pull p.toml --trust {other} --trust {public}")).ok();
    there.run("--no-remote").ok().hits(4);
}

#[test]
fn a_poisoned_remote_poisons_nobody() {
    let remote = tempfile::tempdir().unwrap();
    let here = project(remote.path(), "unsigned = true");
    here.run("--no-remote").ok();
    here.does("cache push p.toml").ok();
    for entry in walkdir::WalkDir::new(remote.path().join("blob")).into_iter().map(Result::unwrap) {
        if entry.file_type().is_file() {
            let mut bytes = fs::read(entry.path()).unwrap();
            bytes[0] ^= 1;
            fs::remove_file(entry.path()).unwrap();
            fs::write(entry.path(), bytes).unwrap();
        }
    }
    let there = project(remote.path(), "unsigned = true");
    let told = there.does("cache pull p.toml").exits(5);
    assert!(told.stderr.contains("its bytes have another digest"), "{}", told.stderr);
    assert_eq!(there.run("--no-remote").ok().with_status("ran").len(), 4);
    there.does("cache verify").ok();
}

#[test]
fn nothing_of_the_section_enters_a_key() {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space.run("--no-remote").ok();
    space.edit("[vars]", "[cache]\nremote = \"s3://bucket/p\"\nunsigned = true\nread-only = true\n[vars]");
    space.run("--no-remote").ok().hits(4);
}

#[test]
fn keys_and_addresses_that_do_not_fit() {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    let check = |words: &str, said: &str| {
        let ran = space.does(words).exits(2);
        assert!(ran.stderr.contains(said), "{words}: {}", ran.stderr);
    };
    key(&space, "k");
    check("cache key new k", "is there already");
    check("cache key show p.toml", "does not hold a secret key");
    check("cache push p.toml", "give one with --remote URL");
    check("cache push p.toml --remote ftp://x/y --unsigned", "its scheme is unknown");
    check("cache push p.toml --remote file:///x --sign-with gone", "cannot read the key file gone");
    check("cache pull p.toml --remote file:///x --trust 00", "64 lower-case hex digits");
}

#[test]
fn a_run_takes_from_the_shared_cache_and_puts_there_what_it_made() {
    let space = Space::new(
        "[cache]\nremote = \"file://${dir}\"\nunsigned = true\n[vars]\ndir = \"none\"\n\
         [stage.a]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"date +%N > {out}/n\"]\noutputs = [\"n\"]\n",
    );
    let set = format!("--set dir=\"{}\"", space.path("shared").display());
    let first = space.run(&set).ok().ran(["a"]);
    let second = space.run(&format!("{set} --cache other")).ok().hits(1);
    assert_eq!(second.digests(), first.digests());
    assert_eq!(second.why("a"), "taken from the shared cache");
    space.run(&format!("{set} --cache third --no-remote")).ok().ran(["a"]);
    let unsigned = space.read("p.toml").replace("unsigned = true\n", "");
    space.file("p.toml", &unsigned);
    let refused = space.run(&format!("{set} --cache fourth")).exits(2);
    assert!(refused.stderr.contains("trust"), "{}", refused.stderr);
}
