//! Which files a glob names: sorted, links not followed. Knows no format.

use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use walkdir::WalkDir;

use crate::{
    engine::action::Files,
    stage::{Invalid, Read},
};

/// The files that `pattern` (relative to `base`) names. Their logical names are `prefix/` and the path below the pattern's
/// fixed part, so they do not depend on where the folder lies.
pub(super) fn matching(base: &Path, pattern: &str, param: &str, prefix: &str) -> Result<Vec<Read>, Invalid> {
    let (folder, rest) = fixed_part(pattern);
    let matcher = glob(rest, param)?;
    let mut root = base.join(folder);
    if root.as_os_str().is_empty() {
        root = ".".into(); // the manifest was named without a folder
    }
    if !root.is_dir() {
        return Err(Invalid::new(param, format!("there is no folder `{}`", root.display()))
            .hint("globs are relative to the manifest"));
    }
    let mut reads = Vec::new();
    // Without `**` a pattern names files at one depth only, so that large folders beside them are not walked.
    let depth = if rest.contains("**") { usize::MAX } else { rest.split('/').count() };
    for entry in WalkDir::new(&root).follow_links(false).max_depth(depth) {
        let entry = entry.map_err(|e| Invalid::new(param, format!("cannot list the folder: {e}")))?;
        let below = entry.path().strip_prefix(&root).expect("a walk stays below its root");
        if entry.file_type().is_file() && matcher.is_match(below) {
            let name = logical(below).ok_or_else(|| {
                Invalid::new(param, format!("the file name `{}` is not UTF-8", entry.path().display()))
                    .hint("rename the file, or narrow the glob")
            })?;
            reads.push(Read { name: format!("{prefix}/{name}"), path: entry.into_path() });
        }
    }
    if reads.is_empty() {
        return Err(Invalid::new(param, format!("no file matches `{pattern}`"))
            .hint(format!("looked below `{}`; symbolic links are not followed", root.display())));
    }
    reads.sort();
    Ok(reads)
}

/// Those of a stage's files whose names begin so, in the order of their names.
pub(super) fn below<'a>(
    reads: &'a Files,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a PathBuf)> {
    reads.range(prefix.to_owned()..).take_while(move |read| read.0.starts_with(prefix))
}

fn glob(pattern: &str, param: &str) -> Result<GlobMatcher, Invalid> {
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|e| Invalid::new(param, format!("`{pattern}` is not a glob: {}", e.kind())))
}

/// Splits `docs/api/**/*.md` into `docs/api` and `**/*.md`. The last component is always on the right.
fn fixed_part(pattern: &str) -> (PathBuf, &str) {
    let meta = pattern.find(['*', '?', '[', '{']).unwrap_or(pattern.len());
    match pattern[..meta].rfind('/') {
        Some(0) => ("/".into(), &pattern[1..]),
        Some(at) => (pattern[..at].into(), &pattern[at + 1..]),
        None => (PathBuf::new(), pattern),
    }
}

/// The path with `/` between its parts on every system.
fn logical(path: &Path) -> Option<String> {
    let parts: Option<Vec<_>> = path.iter().map(|part| part.to_str()).collect();
    parts.map(|parts| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(base: &Path, pattern: &str) -> Vec<String> {
        let reads = matching(base, pattern, "sources.0.files", "sources.0").unwrap();
        reads.into_iter().map(|read| read.name).collect()
    }

    fn space(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        dir
    }

    #[test]
    fn names_are_relative_to_the_fixed_part_and_sorted() {
        let dir = space(&["docs/b.md", "docs/a/z.md", "docs/a/z.txt", "top.md"]);
        assert_eq!(names(dir.path(), "docs/**/*.md"), ["sources.0/a/z.md", "sources.0/b.md"]);
        assert_eq!(names(dir.path(), "docs/*.md"), ["sources.0/b.md"]);
        assert_eq!(names(dir.path(), "*.md"), ["sources.0/top.md"]);
        assert_eq!(names(dir.path(), "*/*.md"), ["sources.0/docs/b.md"]);
        assert_eq!(names(dir.path(), "docs/a/z.txt"), ["sources.0/z.txt"]);
        let absolute = format!("{}/docs/{{a,c}}/*", dir.path().display());
        assert_eq!(names(dir.path(), &absolute), ["sources.0/a/z.md", "sources.0/a/z.txt"]);
    }

    #[test]
    fn a_manifest_named_without_a_folder_looks_around_itself() {
        // Tests run in the folder of Cargo.toml.
        assert_eq!(names(Path::new(""), "Cargo.toml"), ["sources.0/Cargo.toml"]);
        assert_eq!(names(Path::new(""), "src/main.rs"), ["sources.0/main.rs"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let dir = space(&["docs/a.md"]);
        std::os::unix::fs::symlink(dir.path().join("docs/a.md"), dir.path().join("docs/link.md")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("docs"), dir.path().join("docs/loop")).unwrap();
        assert_eq!(names(dir.path(), "docs/**/*.md"), ["sources.0/a.md"]);
    }

    #[test]
    fn mistakes_name_the_parameter_and_what_was_looked_for() {
        let dir = space(&["docs/a.md"]);
        for (pattern, message) in [
            ("docs/*.rst", "no file matches `docs/*.rst`"),
            ("missing/*.md", "there is no folder `"),
            ("docs/[", "`[` is not a glob: "),
        ] {
            let error = matching(dir.path(), pattern, "sources.0.files", "sources.0").unwrap_err();
            assert_eq!(error.param, "sources.0.files");
            assert!(error.message.starts_with(message), "{error}");
        }
    }

    #[test]
    fn stars_stay_within_a_folder_and_folders_are_no_files() {
        let dir = space(&["a.md", "b/c.md", "b/d/e.md", "b/d/f.MD", ".hidden.md", "odd.md/inside.txt"]);
        for (pattern, expected) in [
            ("*.md", &["s/.hidden.md", "s/a.md"][..]),
            ("?.md", &["s/a.md"]),
            ("**/*.md", &["s/.hidden.md", "s/a.md", "s/b/c.md", "s/b/d/e.md"]),
            ("b/**/*.md", &["s/c.md", "s/d/e.md"]),
            ("b/**", &["s/c.md", "s/d/e.md", "s/d/f.MD"]),
            ("*/*/*", &["s/b/d/e.md", "s/b/d/f.MD"]),
            ("{a,b/c}.md", &["s/a.md", "s/b/c.md"]),
            ("b/d/[ef].*", &["s/e.md", "s/f.MD"]),
            ("odd.md/*", &["s/inside.txt"]),
        ] {
            let found: Vec<_> =
                matching(dir.path(), pattern, "p", "s").unwrap().into_iter().map(|r| r.name).collect();
            assert_eq!(found, expected, "{pattern}");
        }
    }
}
