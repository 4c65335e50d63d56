//! `Cargo.lock` and the crates in it. Knows no source files.

use std::collections::{BTreeMap, BTreeSet};

/// Crates that carry values, errors or messages and compute nothing that is written: their versions do not matter.
const PLUMBING: &[&str] = &["serde", "schemars", "thiserror", "tracing"];

/// The locked crates by name; of several versions of a name, all.
pub(crate) struct Lock(BTreeMap<String, Vec<Package>>);

struct Package {
    version: String,
    checksum: String,
    dependencies: Vec<String>,
}

impl Lock {
    /// Reads the text of `Cargo.lock`.
    pub(crate) fn parse(text: &str) -> Self {
        let value = |line: &str, key: &str| {
            line.strip_prefix(key).map(|rest| rest.trim_matches([' ', '=', '"']).to_owned())
        };
        let mut crates: BTreeMap<String, Vec<Package>> = BTreeMap::new();
        for package in text.split("[[package]]").skip(1) {
            let one = |key: &str| package.lines().find_map(|line| value(line, key)).unwrap_or_default();
            let dependency =
                |line: &str| Some(line.strip_prefix(" \"")?.split(['"', ' ']).next()?.to_owned());
            crates.entry(one("name")).or_default().push(Package {
                version: one("version"),
                checksum: one("checksum"),
                dependencies: package.lines().filter_map(dependency).collect(),
            });
        }
        Self(crates)
    }

    /// The locked name of a crate that code calls `name`, unless it is plumbing.
    pub(crate) fn known(&self, name: &str) -> Option<String> {
        let locked = [name.to_owned(), name.replace('_', "-")];
        locked.into_iter().find(|name| self.0.contains_key(name) && !PLUMBING.contains(&&**name))
    }

    /// `name version` of each crate of these names.
    pub(crate) fn of(&self, names: &[&str]) -> Vec<String> {
        let packages = |&name: &&str| self.0.get(name).into_iter().flatten();
        let version = |name| packages(name).map(move |package| format!("{name}-{}", package.version));
        names.iter().flat_map(version).collect()
    }

    /// The versions of these crates, and one digest of all that they need.
    pub(crate) fn versions(&self, names: &BTreeSet<String>) -> BTreeMap<String, String> {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = names.iter().map(String::as_str).collect();
        while let Some(name) = open.pop() {
            if !PLUMBING.contains(&name) && seen.insert(name) {
                open.extend(
                    self.0.get(name).into_iter().flatten().flat_map(|p| &p.dependencies).map(|d| &**d),
                );
            }
        }
        let mut all = blake3::Hasher::new();
        for name in seen {
            for package in self.0.get(name).into_iter().flatten() {
                all.update(format!("{name} {} {}\n", package.version, package.checksum).as_bytes());
            }
        }
        let version = |name: &String| {
            let versions: Vec<&str> = self.0[name].iter().map(|p| &*p.version).collect();
            (format!("crate {name}"), versions.join(", "))
        };
        let mut found: BTreeMap<String, String> = names.iter().map(version).collect();
        if !names.is_empty() {
            found.insert("crates below these".into(), all.finalize().to_hex()[..16].to_owned());
        }
        found
    }
}
