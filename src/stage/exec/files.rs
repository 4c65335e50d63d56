//! The user's files that a command declares, and where they lie in its working directory. Knows no command.

use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use walkdir::WalkDir;

/// The files that `pattern` names, with their paths in the working directory: as written, without leading `..` and `/`.
/// The error says what is wrong with the pattern.
pub(super) fn expand(base: &Path, pattern: &str) -> Result<Vec<(String, PathBuf)>, String> {
    let Some(meta) = pattern.find(['*', '?', '[', '{']) else {
        let path = base.join(pattern);
        let found = path.is_file().then(|| Ok((inside(Path::new(pattern))?, path)));
        return found.into_iter().collect();
    };
    let folder = Path::new(pattern[..meta].rsplit_once('/').map_or("", |(folder, _)| folder));
    let folder = if pattern.starts_with('/') { Path::new("/").join(folder) } else { folder.to_owned() };
    let below = pattern[..meta].rfind('/').map_or(pattern, |at| &pattern[at + 1..]);
    let matcher = matcher(below)?;
    let depth = if below.contains("**") { usize::MAX } else { below.matches('/').count() + 1 };
    let root = base.join(&folder);
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in WalkDir::new(&root).max_depth(depth).sort_by_file_name() {
        let entry = entry.map_err(|e| format!("cannot list a folder: {e}"))?;
        let tail = entry.path().strip_prefix(&root).expect("a walk stays below its root");
        if entry.file_type().is_file() && matcher.is_match(tail) {
            found.push((inside(&folder.join(tail))?, entry.into_path()));
        }
    }
    Ok(found)
}

/// A glob in which `*` stays inside one folder and `**` crosses them.
pub(super) fn matcher(pattern: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|e| format!("`{pattern}` is not a glob: {}", e.kind()))
}

fn inside(path: &Path) -> Result<String, String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => {
                parts.push(
                    part.to_str().ok_or_else(|| format!("the name of `{}` is not UTF-8", path.display()))?,
                );
            }
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_working_directory() {
        let dir = tempfile::tempdir().unwrap();
        for file in
            ["p/run.py", "p/data/a.csv", "p/data/b.csv", "p/data/deep/c.csv", "p/data/d.txt", "lib/x.py"]
        {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        let base = dir.path().join("p");
        let check = |pattern: &str, expected: &[&str]| {
            let found = expand(&base, pattern).unwrap();
            assert!(found.iter().all(|(_, path)| path.is_file()), "{found:?}");
            assert_eq!(
                found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
                expected,
                "{pattern}"
            );
        };
        check("run.py", &["run.py"]);
        check("./data/../run.py", &["run.py"]);
        check("../lib/x.py", &["lib/x.py"]);
        check("../lib/*.py", &["lib/x.py"]);
        check("data/*.csv", &["data/a.csv", "data/b.csv"]);
        check("data/**/*.csv", &["data/a.csv", "data/b.csv", "data/deep/c.csv"]);
        check("*/{a,d}.*", &["data/a.csv", "data/d.txt"]);
        check("data", &[]);
        check("missing.py", &[]);
        check("no/such/folder/*", &[]);
        let absolute = dir.path().join("lib/*.py").display().to_string();
        check(&absolute, &[&format!("{}/lib/x.py", dir.path().display())[1..]]);
    }

    #[test]
    fn a_broken_glob_is_told() {
        let error = expand(Path::new("/"), "data/[").unwrap_err();
        assert!(error.starts_with("`[` is not a glob: "), "{error}");
    }
}
