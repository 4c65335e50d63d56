//! A tree: the files of one artifact as a sorted listing of names, blob digests and sizes. Knows nothing of the disk.
//!
//! A listing that was read is not believed before [`Tree::check`] has looked at it: its names become paths.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use super::digest::Digest;

/// The context that separates tree digests from all others. Never changes without a new cache format.
const CONTEXT: &str = "mla-run 2026-11 tree v1";

/// The files of one artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The digest of the listing; it enters the keys of the stages that read the artifact.
    pub digest: Digest,
    /// The files, sorted by name.
    pub files: Vec<TreeFile>,
}

/// One file of a tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TreeFile {
    /// The name inside the artifact, with `/` between folders.
    pub name: String,
    /// The digest of its bytes.
    pub blob: Digest,
    /// Size in bytes.
    pub size: u64,
}

impl Tree {
    /// A tree of files, in any order.
    pub fn new(mut files: Vec<TreeFile>) -> Self {
        files.sort();
        let mut frame = Vec::with_capacity(8 + files.len() * 72);
        frame.extend_from_slice(&(files.len() as u64).to_be_bytes());
        for file in &files {
            frame.extend_from_slice(&(file.name.len() as u64).to_be_bytes());
            frame.extend_from_slice(file.name.as_bytes());
            frame.extend_from_slice(file.blob.as_bytes());
            frame.extend_from_slice(&file.size.to_be_bytes());
        }
        Self { digest: Digest::derive(CONTEXT, &frame), files }
    }

    /// The sizes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.size))
    }

    /// Refuses a listing that could write outside its folder, whose names would meet on some file system, or whose digest is
    /// another one's.
    pub fn check(&self) -> Result<(), TreeFlaw> {
        for file in &self.files {
            check_name(&file.name)?;
        }
        let mut folded: Vec<(Cow<'_, str>, &str)> =
            self.files.iter().map(|file| (folded(&file.name), file.name.as_str())).collect();
        // Letter by letter with `/` below all others, so that what a folder holds follows the folder's name at once.
        let rank = |b: u8| if b == b'/' { 0 } else { b };
        folded.sort_by(|(a, _), (b, _)| a.bytes().map(rank).cmp(b.bytes().map(rank)));
        for pair in folded.windows(2) {
            check_neighbours(&pair[0], &pair[1])?;
        }
        if Self::new(self.files.clone()) == *self { Ok(()) } else { Err(TreeFlaw::Digest) }
    }
}

/// What is wrong with a listing of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeFlaw {
    /// An empty name, or a name with an empty part, such as an absolute one.
    #[error("file name {0:?} is absolute or has an empty part")]
    EmptyPart(String),
    /// `.` or `..`.
    #[error("file name {0:?} has a part `.` or `..`")]
    Dots(String),
    /// A character that ends a name for the operating system.
    #[error("file name {0:?} holds a NUL")]
    Nul(String),
    /// One name for two files.
    #[error("file name {0:?} is there twice")]
    Twice(String),
    /// A file that other files lie in.
    #[error("{0:?} is both a file and the folder of {1:?}")]
    FileAndFolder(String, String),
    /// Names that are one on a file system that does not tell letters of different case, or accents of different form, apart.
    #[error("file names {0:?} and {1:?} differ only in case")]
    Case(String, String),
    /// The listing is not the one that the digest was made of.
    #[error("the digest of the listing does not fit its files")]
    Digest,
}

fn check_name(name: &str) -> Result<(), TreeFlaw> {
    let owned = || name.to_owned();
    if name.contains('\0') {
        return Err(TreeFlaw::Nul(owned()));
    }
    for part in name.split('/') {
        match part {
            "" => return Err(TreeFlaw::EmptyPart(owned())),
            "." | ".." => return Err(TreeFlaw::Dots(owned())),
            _ => {}
        }
    }
    Ok(())
}

/// Two names that follow each other in folded order.
fn check_neighbours(a: &(Cow<'_, str>, &str), b: &(Cow<'_, str>, &str)) -> Result<(), TreeFlaw> {
    let (one, two) = (a.1.to_owned(), b.1.to_owned());
    if one == two {
        return Err(TreeFlaw::Twice(one));
    }
    let inside = b.0.strip_prefix(a.0.as_ref());
    if inside.is_some_and(|rest| rest.starts_with('/')) {
        return Err(TreeFlaw::FileAndFolder(one, two));
    }
    let parts = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
    let (fold_a, fold_b) = (parts(&a.0), parts(&b.0));
    let common = fold_a.iter().zip(&fold_b).take_while(|(x, y)| x == y).count();
    let same = a.1.split('/').zip(b.1.split('/')).take(common).all(|(x, y)| x == y);
    if same { Ok(()) } else { Err(TreeFlaw::Case(one, two)) }
}

/// A name as a file system sees it that tells neither case nor forms of accents apart.
fn folded(name: &str) -> Cow<'_, str> {
    if !name.is_ascii() {
        return Cow::Owned(name.to_lowercase().nfc().collect());
    }
    let upper = name.bytes().any(|b| b.is_ascii_uppercase());
    if upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> TreeFile {
        TreeFile { name: name.into(), blob: Digest::of(bytes), size: bytes.len() as u64 }
    }

    #[test]
    fn order_does_not_matter_but_names_and_bytes_do() {
        let tree = |files: &[(&str, &str)]| {
            Tree::new(files.iter().map(|(n, b)| file(n, b.as_bytes())).collect()).digest
        };
        let base = tree(&[("a", "1"), ("b", "2")]);
        assert_eq!(base, tree(&[("b", "2"), ("a", "1")]));
        for other in [&[("a", "2"), ("b", "1")][..], &[("a", "1"), ("c", "2")], &[("a", "1")], &[]] {
            assert_ne!(base, tree(other), "{other:?}");
        }
    }

    #[test]
    fn names_that_lead_astray_are_refused() {
        let check = |names: &[&str]| Tree::new(names.iter().map(|n| file(n, n.as_bytes())).collect()).check();
        let text = |s: &str| s.to_owned();
        for name in ["", "/", "/etc/passwd", "a//b", "a/", "//a"] {
            assert_eq!(check(&[name]), Err(TreeFlaw::EmptyPart(text(name))));
        }
        for name in [".", "..", "../a", "a/..", "a/../../b", "a/./b"] {
            assert_eq!(check(&[name]), Err(TreeFlaw::Dots(text(name))));
        }
        assert_eq!(check(&["a\0b"]), Err(TreeFlaw::Nul(text("a\0b"))));
        assert_eq!(check(&["a", "b", "a"]), Err(TreeFlaw::Twice(text("a"))));
        for (a, b) in [("a", "a/b"), ("a/b", "a/b/c/d"), ("A", "a/b")] {
            assert_eq!(check(&[b, "a-b", "a.b", a]), Err(TreeFlaw::FileAndFolder(text(a), text(b))));
        }
        for (a, b) in [("a", "A"), ("x/Ä", "x/ä"), ("é", "e\u{301}"), ("A/x", "a/y"), ("q/A/x", "q/a/y")] {
            let found = check(&[a, b, "m"]);
            assert!(matches!(found, Err(TreeFlaw::Case(..))), "{a} {b}: {found:?}");
        }
        for names in [
            &["a", "b"][..],
            &[],
            &["...", "..a", "a..", "a\\b", ".hidden"],
            &["a/b", "a/c", "a-b", "ab"],
            &["A/x", "A/X y", "b"],
        ] {
            assert_eq!(check(names), Ok(()), "{names:?}");
        }
    }

    #[test]
    fn a_listing_under_another_digest_is_refused() {
        let tree = Tree::new(vec![file("a", b"1"), file("b", b"2")]);
        assert_eq!(tree.check(), Ok(()));
        let digest = Digest::of(b"other");
        assert_eq!(Tree { digest, ..tree.clone() }.check(), Err(TreeFlaw::Digest));
        let files = tree.files.iter().rev().cloned().collect();
        assert_eq!(Tree { files, ..tree }.check(), Err(TreeFlaw::Digest), "the order is part of it");
        let huge = TreeFile { size: u64::MAX, ..file("a", b"") };
        assert_eq!(Tree::new(vec![huge.clone(), TreeFile { name: "b".into(), ..huge }]).bytes(), u64::MAX);
    }

    #[test]
    fn golden_digest() {
        let tree = Tree::new(vec![file("b/x.json", b"{}"), file("a", b"")]);
        assert_eq!(tree.bytes(), 2);
        let golden = "e738195e7e6563f2a983f148066c85b20a095b8317b49d1dc80beab1ab85d88b";
        assert_eq!(tree.digest.to_string(), golden);
    }
}
