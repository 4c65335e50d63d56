//! The rules of the source, as tests: who may import whom, how long a file may be, where `unsafe` may stand. Knows no
//! behaviour of the program.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

/// Which folders of `src` a folder may import, with a sub-module where only that one is meant. `*` is everything.
const IMPORTS: &[(&str, &[&str])] = &[
    ("cli", &["*"]),
    ("fuzzing", &["*"]),
    ("plan", &["manifest", "stage", "engine"]),
    ("stage", &["artifact", "model", "math", "kernel", "device", "engine::action"]),
    ("model", &["artifact", "math", "kernel", "device"]),
    ("math", &["kernel", "device"]),
    ("kernel", &["device", "math"]),
    ("engine", &["store"]),
    ("hub", &["engine"]),
    ("manifest", &[]),
    ("store", &[]),
    ("artifact", &[]),
    ("device", &[]),
];

/// Files outside `src/kernel` that may hold `unsafe`: each has one memory map.
const MEMORY_MAPS: &[&str] = &["src/artifact/checkpoint.rs"];

const LONGEST_FILE: usize = 400;
/// Lines of test code for each line of the product's code, without comments and blank lines.
const TEST_SHARE: f64 = 0.7;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn rust_files(folder: &str) -> Vec<(String, String)> {
    let walk = WalkDir::new(root().join(folder)).sort_by_file_name();
    let paths = walk.into_iter().map(|entry| entry.unwrap().into_path());
    let name = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    paths
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .map(|path| (name(&path), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// A source file without its test module, and whether it is all tests.
pub(crate) fn product(name: &str, text: &str) -> String {
    if name.ends_with("/tests.rs")
        || name.ends_with("/testing.rs")
        || name.ends_with("/fake.rs")
        || name.contains("/tests/")
    {
        return String::new();
    }
    let heads = ["mod tests", "pub(crate) mod tests"].map(|head| format!("#[cfg(test)]\n{head}"));
    let cut = heads.iter().filter_map(|head| text.find(head)).min().unwrap_or(text.len());
    text[..cut].to_owned()
}

/// The code without comments and without the text of string literals. Good enough for words that matter here.
fn code(text: &str) -> String {
    let line = |line: &str| {
        let line = line.split("//").next().unwrap_or_default();
        line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path in `tree`, the text after `crate::`, with its first two names: `engine::action`, `store`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim_start();
    if let Some(group) = tree.strip_prefix('{') {
        let (mut depth, mut start, mut found) = (0, 0, Vec::new());
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                '}' | ',' if depth == 0 => {
                    found.extend(paths(&group[start..i]));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
        return found;
    }
    let end = tree.find(|c| !is_word(c)).unwrap_or(tree.len());
    let (name, rest) = tree.split_at(end);
    if name.is_empty() {
        return Vec::new();
    }
    let below = rest.strip_prefix("::").map(paths).unwrap_or_default();
    let joined = |tail: Vec<String>| std::iter::once(name.to_owned()).chain(tail).take(2).collect();
    if below.is_empty() { vec![vec![name.to_owned()]] } else { below.into_iter().map(joined).collect() }
}

fn imports(code: &str) -> BTreeSet<Vec<String>> {
    let after = code.match_indices("crate::").filter(|(i, _)| !code[..*i].ends_with(is_word));
    after.flat_map(|(i, word)| paths(&code[i + word.len()..])).collect()
}

fn forbidden(folder: &str, import: &[String]) -> bool {
    let allowed = IMPORTS.iter().find(|(name, _)| *name == folder).map_or(&[][..], |(_, allowed)| *allowed);
    import[0] != folder && !allowed.iter().any(|a| *a == "*" || *a == import[0] || *a == import.join("::"))
}

#[test]
fn imports_follow_the_table() {
    let known: BTreeSet<&str> = IMPORTS.iter().map(|(name, _)| *name).collect();
    let mut faults = Vec::new();
    for (name, text) in rust_files("src") {
        let folder = name.trim_start_matches("src/").split('/').next().unwrap().trim_end_matches(".rs");
        if ["build", "lib", "main"].contains(&folder) {
            continue;
        }
        assert!(known.contains(folder), "`src/{folder}` is not in the import table");
        let found = imports(&code(&product(&name, &text)));
        let modules = found.into_iter().filter(|import| known.contains(import[0].as_str()));
        faults.extend(
            modules
                .filter(|import| forbidden(folder, import))
                .map(|import| format!("{name} imports {}", import.join("::"))),
        );
    }
    assert!(faults.is_empty(), "against the import table of tests/tidy.rs:\n{}", faults.join("\n"));
}

#[test]
fn the_import_check_sees_a_planted_violation() {
    let planted = "use crate::{\n    artifact::{Artifact, Files},\n    engine::{action::Cx, executor},\n};\nfn f() { crate::cli::main(); }";
    let found = imports(&code(planted));
    let bad: Vec<String> = found.iter().filter(|i| forbidden("stage", i)).map(|i| i.join("::")).collect();
    assert_eq!(bad, ["cli::main", "engine::executor"]);
    assert!(imports(&code("// crate::cli\nlet x = \"crate::cli\";")).is_empty());
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut faults = Vec::new();
    for (name, text) in ["src", "tests", "kernels"].into_iter().flat_map(rust_files) {
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            faults.push(format!("{name} has {lines} lines, more than {LONGEST_FILE}"));
        }
        if !text.starts_with("//!") && !text.starts_with("#![doc") {
            faults.push(format!("{name} does not open with what it is (`//!`)"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The engine and the store are a library of their own: they run any actions, whoever writes them down and shows them.
#[test]
fn the_engine_and_the_store_know_no_tensors_no_manifest_and_no_terminal() {
    const FOREIGN: [&str; 7] =
        ["candle_core", "candle_nn", "toml", "clap", "indicatif", "tokenizers", "schemars"];
    let mut faults = Vec::new();
    for (name, text) in ["src/engine", "src/store"].into_iter().flat_map(rust_files) {
        let code = code(&text);
        let uses = |word: &&str| {
            code.match_indices(&format!("{word}::")).any(|(at, _)| !code[..at].ends_with(is_word))
        };
        faults.extend(FOREIGN.iter().filter(|word| uses(word)).map(|word| format!("{name} uses {word}")));
    }
    assert!(faults.is_empty(), "{faults:?}");
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let word = |code: &str| {
        let mut at = code.match_indices("unsafe");
        at.any(|(i, w)| !code[..i].ends_with(is_word) && !code[i + w.len()..].starts_with(is_word))
    };
    let faults: Vec<String> = rust_files("src")
        .into_iter()
        .filter(|(name, _)| !name.starts_with("src/kernel/") && !MEMORY_MAPS.contains(&name.as_str()))
        .filter(|(_, text)| word(&code(text)))
        .map(|(name, _)| name)
        .collect();
    assert!(faults.is_empty(), "`unsafe` belongs in src/kernel: {faults:?}");
}

#[test]
fn every_stage_is_in_the_table() {
    let table: Vec<&str> = mla_run::stage::table::STAGES.iter().map(|entry| entry.kind).collect();
    let kinds: BTreeSet<&str> = table.iter().copied().collect();
    assert_eq!(kinds.len(), table.len(), "a kind stands twice in {table:?}");
    let mut missing = Vec::new();
    for (name, text) in rust_files("src/stage") {
        let text = product(&name, &text);
        for (at, _) in text.match_indices("impl Stage for ") {
            let kind =
                text[at..].split("const KIND: &'static str = \"").nth(1).unwrap().split('"').next().unwrap();
            if !kinds.contains(kind) {
                missing.push(format!("{kind} in {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "stages without a row in STAGES: {missing:?}");
}

#[test]
fn no_test_file_is_forgotten() {
    for folder in ["tests/cases", "tests/harness"] {
        let list = fs::read_to_string(root().join(folder).join("mod.rs")).unwrap();
        for (name, _) in rust_files(folder) {
            let module = Path::new(&name).file_stem().unwrap().to_str().unwrap();
            let listed =
                list.lines().any(|line| line.trim_start_matches("pub(crate) ") == format!("mod {module};"));
            assert!(module == "mod" || listed, "{name} is not in {folder}/mod.rs");
        }
    }
}

#[test]
fn tests_keep_up_with_the_product() {
    let counts = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    let lines = |text: &str| text.lines().filter(counts).count();
    let (mut all, mut plain) = (0, 0);
    for (name, text) in rust_files("src") {
        all += lines(&text);
        plain += lines(&product(&name, &text));
    }
    let tests = all - plain + rust_files("tests").iter().map(|(_, text)| lines(text)).sum::<usize>();
    let share = tests as f64 / plain as f64;
    println!("{plain} lines of product, {tests} lines of tests: {share:.2}");
    assert!(
        share >= TEST_SHARE,
        "{tests} test lines for {plain} lines of product: {share:.2} < {TEST_SHARE}"
    );
}

#[test]
fn no_path_of_one_machine() {
    // Put together here, so that this file does not find itself.
    let bad = ["work", "root", "home"].map(|folder| format!("/{folder}/"));
    let skipped = [".git", "target", "cache", "out"];
    let walk = WalkDir::new(root()).sort_by_file_name().into_iter();
    let kept = walk.filter_entry(|entry| {
        let name = entry.file_name().to_str().unwrap_or_default();
        entry.depth() != 1 || !(skipped.contains(&name) || name.starts_with("target"))
    });
    let mut faults = Vec::new();
    for entry in kept.map(Result::unwrap).filter(|entry| entry.file_type().is_file()) {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let at = |line: &str| bad.iter().any(|bad| line.contains(bad.as_str()));
        let lines = text.lines().enumerate().filter(|(_, line)| at(line));
        faults.extend(lines.map(|(i, line)| format!("{}:{}: {line:.80}", entry.path().display(), i + 1)));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
