//! Mistakes in manifests: for every file in `tests/manifests`, all that the user is told, beside the file.

use std::{fs, path::PathBuf};

use mla_run::{
    cli::diagnostic,
    manifest::Options,
    plan::{self, Rejected},
    stage::table::STAGES,
};

/// The manifests with mistakes, by name.
fn manifests() -> Vec<(String, PathBuf)> {
    let folder = fs::read_dir("tests/manifests").unwrap().map(|entry| entry.unwrap().path());
    let tomls = folder.filter(|path| path.extension().is_some_and(|ext| ext == "toml"));
    let mut all: Vec<_> =
        tomls.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)).collect();
    all.sort();
    all
}

/// What the first line asks for: `# options: --profile=quick --set=rank=1`.
fn options(text: &str) -> Options {
    let first = text.lines().next().unwrap_or_default();
    let words = first.strip_prefix("# options: ").unwrap_or_default().split(" --");
    let mut options = Options::default();
    for word in words.map(|word| word.trim_start_matches("--")) {
        match word.split_once('=') {
            Some(("profile", name)) => options.profile = Some(name.to_owned()),
            Some(("set", set)) => options.set.push(set.to_owned()),
            _ => assert_eq!(word, "", "an option that this test does not know"),
        }
    }
    options
}

fn rejected(path: &PathBuf) -> Rejected {
    let options = options(&fs::read_to_string(path).unwrap());
    plan::open(path, &options, STAGES).err().unwrap_or_else(|| panic!("{} has no mistake", path.display()))
}

#[test]
fn every_mistake_is_told_with_its_place_and_a_hint() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../manifests");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (name, path) in manifests() {
            insta::assert_snapshot!(name, diagnostic::render(&rejected(&path), false));
        }
    });
}

#[test]
fn every_place_lies_on_the_text_that_it_names() {
    assert!(manifests().len() >= 15);
    for (name, path) in manifests() {
        for found in diagnostic::list(&rejected(&path)) {
            let file = found.file.unwrap_or_default();
            if file.starts_with("--") || found.line.is_none() {
                continue; // an option, or a file that cannot be read
            }
            let text = fs::read_to_string(&file).unwrap();
            let line = text.lines().nth(found.line.unwrap() - 1).unwrap();
            let rest: String = line.chars().skip(found.column.unwrap() - 1).collect();
            let under = found.text.unwrap();
            let first = under.lines().next().unwrap_or_default();
            assert!(rest.starts_with(first), "{name}: `{under}` is not at {:?} of {file}", found.line);
        }
    }
}
