//! A tree: the files of one artifact as a sorted listing of names, blob digests and sizes. Knows nothing of the disk.

use serde::{Deserialize, Serialize};

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
        self.files.iter().map(|f| f.size).sum()
    }
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
    fn golden_digest() {
        let tree = Tree::new(vec![file("b/x.json", b"{}"), file("a", b"")]);
        assert_eq!(tree.bytes(), 2);
        let golden = "e738195e7e6563f2a983f148066c85b20a095b8317b49d1dc80beab1ab85d88b";
        assert_eq!(tree.digest.to_string(), golden);
    }
}
