//! What the build script takes for a stage's code: on a small crate made for it, and on this one.

#[path = "../src/build/code.rs"]
mod closure;
#[path = "../src/build/lock.rs"]
mod lock;

use std::{fs, path::Path};

use closure::{Code, Sources};
use lock::Lock;

const LOCK: &str = r#"
[[package]]
name = "half"
version = "2.7.1"
checksum = "aa"
dependencies = [
 "crunchy",
]

[[package]]
name = "crunchy"
version = "0.2.4"
checksum = "bb"

[[package]]
name = "candle-core"
version = "0.11.1"
checksum = "cc"

[[package]]
name = "serde"
version = "1.0.0"
checksum = "dd"
"#;

/// Files that tell all ways of naming a module apart.
const FILES: &[(&str, &str)] = &[
    ("stage/mod.rs", "pub mod a;\npub mod b;\npub trait Stage {}\n"),
    (
        "stage/a/mod.rs",
        "mod part;\nuse super::Stage;\nuse crate::math::{grid::{Grid, steps}, hash};\nuse half::bf16;\nuse serde::Serialize;\n\
      /// What it is.\npub fn a() -> u32 { part::one() + grid_of(include_str!(\"a.txt\")) }\n\
      #[cfg(test)]\nmod tests { use crate::model::decoder; }\n",
    ),
    ("stage/a/part.rs", "pub fn one() -> u32 { crate::device::count() }"),
    ("stage/b.rs", "use candle_core::Tensor;"),
    ("math/mod.rs", "pub mod grid;\npub mod hash;\npub mod unused;"),
    ("math/grid.rs", "pub struct Grid;\npub fn steps() {}"),
    ("math/hash.rs", "pub fn mix() {}"),
    ("math/unused.rs", ""),
    ("model/mod.rs", "pub mod decoder;"),
    ("model/decoder.rs", ""),
    ("device.rs", "pub fn count() -> u32 { 1 }"),
    ("stage/a/a.txt", "text"),
];

/// The code of stage `a` after some files were written anew.
fn code_after(edits: &[(&str, &str)]) -> Code {
    code_with(edits, LOCK)
}

fn code_with(edits: &[(&str, &str)], lock: &str) -> Code {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in FILES.iter().chain(edits) {
        let path = root.path().join("src").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Sources::read(root.path()).closure(&["stage", "a"], &Lock::parse(lock))
}

fn edit(name: &'static str, from: &str, to: &str) -> (&'static str, String) {
    let text = FILES.iter().find(|(file, _)| *file == name).unwrap().1;
    assert!(text.contains(from), "{from}");
    (name, text.replace(from, to))
}

#[test]
fn a_stage_reaches_what_it_names_its_private_modules_and_its_crates() {
    let code = code_after(&[]);
    let names: Vec<&str> = code.keys().map(String::as_str).collect();
    let expected = [
        "a.txt of mod.rs",
        "crate half",
        "crates below these",
        "src/device.rs",
        "src/math/grid.rs",
        "src/math/hash.rs",
        "src/math/mod.rs",
        "src/stage/a/mod.rs",
        "src/stage/a/part.rs",
        "src/stage/mod.rs",
    ];
    assert_eq!(names, expected);
    assert_eq!(code["crate half"], "2.7.1");
}

#[test]
fn comments_layout_documentation_tests_and_other_stages_change_nothing() {
    let edits = [
        edit("stage/a/mod.rs", "/// What it is.", "/// Another text.\n// A remark.\n\n\n"),
        edit("stage/a/mod.rs", "use crate::model::decoder;", "fn more() {}"),
        edit("stage/mod.rs", "pub mod b;", "pub mod b;\npub mod c;"),
        edit("stage/b.rs", "Tensor", "Device"),
        edit("math/mod.rs", "pub mod unused;", "pub mod unused;\npub mod other;"),
        edit("math/grid.rs", "pub fn steps() {}", "/* none */ pub  fn steps( ) { }"),
    ];
    for (name, text) in edits {
        assert_eq!(code_after(&[(name, &text)]), code_after(&[]), "{name}: {text}");
    }
}

#[test]
fn any_other_change_is_seen_in_the_file_that_has_it() {
    let edits = [
        (edit("stage/a/mod.rs", "part::one() +", "part::one() -"), "src/stage/a/mod.rs"),
        (edit("stage/a/part.rs", "count()", "count() + 1"), "src/stage/a/part.rs"),
        (edit("device.rs", "1 }", "2 }"), "src/device.rs"),
        (edit("stage/a/a.txt", "text", "other"), "a.txt of mod.rs"),
        (edit("stage/mod.rs", "trait Stage {}", "trait Stage { fn run(); }"), "src/stage/mod.rs"),
    ];
    for ((name, text), at) in edits {
        let (before, after) = (code_after(&[]), code_after(&[(name, &text)]));
        let changed: Vec<&String> = before.keys().filter(|key| before[*key] != after[*key]).collect();
        assert_eq!(changed, [at]);
    }
}

#[test]
fn a_locked_crate_counts_when_it_is_reached_even_through_another() {
    let with = |from: &str, to: &str| code_with(&[], &LOCK.replacen(from, to, 1));
    assert_ne!(with("2.7.1", "2.7.2")["crate half"], "2.7.1");
    assert_ne!(with("0.2.4", "0.2.5")["crates below these"], code_after(&[])["crates below these"]);
    assert_ne!(with("bb", "be")["crates below these"], code_after(&[])["crates below these"]);
    assert_eq!(with("0.11.1", "0.11.2"), code_after(&[]), "only stage b uses it");
    assert_eq!(with("1.0.0", "1.0.1"), code_after(&[]), "serde carries values");
}

/// A file that only holds an `impl` of a type from elsewhere could be missed: nothing needs to name it.
#[test]
fn every_impl_stands_with_its_type_or_its_trait() {
    let mut faults = Vec::new();
    for folder in ["artifact", "device.rs", "kernel", "math", "model", "stage"] {
        for (name, text) in super::tidy::rust_files(&format!("src/{folder}")) {
            let text = super::tidy::product(&name, &text);
            // Conversions of errors write no bytes.
            let writes = |line: &&str| line.starts_with("impl") && !line.ends_with(" for Failure {");
            let impls = text.lines().filter(writes);
            // A private module belongs to the file that declares it.
            let homes = || std::iter::successors(Some(name.clone()), |name| parent(name));
            let at_home = |words: &[&str]| homes().any(|home| defines(&home, words));
            let astray = impls.filter(|line| !at_home(&names(line)));
            faults.extend(astray.map(|line| format!("{name}: {line}")));
        }
    }
    assert!(faults.is_empty(), "move these to where their type or trait is:\n{}", faults.join("\n"));
}

/// The trait and the type of the line that opens an `impl`.
fn names(line: &str) -> Vec<&str> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut depth, mut start) = (0, 4);
    for (at, c) in line.char_indices().skip(4) {
        depth += i32::from(c == '<') - i32::from(c == '>' && !line[..at].ends_with('-'));
        if depth == 0 {
            start = at + 1;
            break;
        }
    }
    line[start..]
        .split(" for ")
        .map(|path| {
            let path = path.split(['<', '{']).next().unwrap_or_default().trim();
            path.rsplit("::").next().unwrap_or_default().trim_matches(|c| !word(c))
        })
        .collect()
}

/// The file that declares this one as a private module.
fn parent(name: &str) -> Option<String> {
    let path = Path::new(name);
    let stem = path.file_stem()?.to_str()?;
    let (stem, folder) = if stem == "mod" {
        (path.parent()?.file_name()?.to_str()?, path.parent()?.parent()?)
    } else {
        (stem, path.parent()?)
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let candidates = [folder.join("mod.rs"), folder.with_extension("rs")];
    let text = |path: &Path| fs::read_to_string(root.join(path)).ok();
    let declares = |path: &&std::path::PathBuf| {
        text(path).is_some_and(|text| text.lines().any(|line| line == format!("mod {stem};")))
    };
    candidates.iter().find(declares).map(|path| path.to_str().unwrap().to_owned())
}

fn defines(file: &str, names: &[&str]) -> bool {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let after = |keyword: &str, name: &str| {
        let head = format!("{keyword} {name}");
        text.match_indices(&head).any(|(at, _)| !text[at + head.len()..].starts_with(word))
    };
    names.iter().any(|name| ["struct", "enum", "trait"].iter().any(|keyword| after(keyword, name)))
}

#[test]
fn this_crates_closures_hold_no_stage_but_the_one_they_are_of() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = Lock::parse(&fs::read_to_string(root.join("Cargo.lock")).unwrap());
    assert_eq!(lock.of(&["candle-core"]).len(), 1);
    let sources = Sources::read(root);
    // A kind and its module have one name, as far as Rust has such names.
    let stages: Vec<String> =
        mla_run::stage::table::STAGES.iter().map(|row| row.kind.replace('-', "_")).collect();
    let is_stage = |name: &str| stages.iter().any(|stage| stage == name);
    let mut found = 0;
    for stage in sources.stages().filter(|stage| is_stage(stage)) {
        found += 1;
        let others = |name: &&String| {
            let folder = name.strip_prefix("src/stage/").and_then(|rest| rest.split(['/', '.']).next());
            folder.is_some_and(|other| other != stage && is_stage(other))
        };
        let code = sources.closure(&["stage", stage], &lock);
        let foreign: Vec<&String> = code.keys().filter(others).collect();
        assert!(foreign.is_empty(), "{stage} reaches {foreign:?}");
    }
    assert!(found > 8 && is_stage("context_gain"), "{found} of {stages:?}");
}
