//! The code of each stage, as the build script found it: source files and locked crates with their digests and versions.

use std::collections::BTreeMap;

/// Names of files and crates, each with what identifies its version.
pub type Code = &'static [(&'static str, &'static str)];

const TABLE: &[(&str, Code)] = include!(concat!(env!("OUT_DIR"), "/code.rs"));

/// The same in the form that keys have.
pub fn map(code: Code) -> BTreeMap<String, String> {
    code.iter().map(|&(name, version)| (name.to_owned(), version.to_owned())).collect()
}

/// The code that the stage in module `stage::<module>` reaches.
///
/// # Panics
/// When there is no such module; as a constant, that is a compile error.
pub const fn of(module: &str) -> Code {
    let mut row = 0;
    while row < TABLE.len() {
        if equal(TABLE[row].0.as_bytes(), module.as_bytes()) {
            return TABLE[row].1;
        }
        row += 1;
    }
    panic!("no stage module of this name")
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(module: &str) -> Vec<&'static str> {
        of(module).iter().map(|&(name, _)| name).collect()
    }

    #[test]
    fn a_stage_has_its_own_files_and_those_that_it_uses_and_no_other_stage() {
        let svd = names("svd");
        for name in ["src/stage/svd/mod.rs", "src/math/linalg.rs", "src/model/decoder.rs", "crate faer"] {
            assert!(svd.contains(&name), "{name} is not in {svd:?}");
        }
        let foreign =
            ["src/stage/table.rs", "src/stage/cluster/mod.rs", "src/stage/distill.rs", "crate clap"];
        assert_eq!(foreign.map(|name| svd.contains(&name)), [false; 4], "{svd:?}");
        assert!(
            !names("cluster").iter().any(|name| name.starts_with("src/model/")),
            "{:?}",
            names("cluster")
        );
    }

    #[test]
    fn included_files_and_the_version_of_the_package_are_code_where_they_are_written() {
        let export = names("export");
        for name in ["templates/model_card.md.jinja of card.rs", "crate mla-run"] {
            assert!(export.contains(&name), "{name} is not in {export:?}");
        }
        assert!(!names("svd").contains(&"crate mla-run"));
    }
}
