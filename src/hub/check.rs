//! Whether a file is the one that git has: its object id. Knows no network.
//!
//! Git names a file by the SHA-1 of `blob <length>\0` and its bytes. Of a large file it holds a pointer, three lines of text with
//! the SHA-256 and the size of the file (the Git LFS specification), so that the object id of the pointer identifies the file.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// The object id that git would have for the file; `lfs` says whether it would hold a pointer. `seen` is told of bytes as they are
/// read, and may end the reading.
pub(super) fn oid(path: &Path, lfs: bool, mut seen: impl FnMut(u64) -> io::Result<()>) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut blob = Sha1::new();
    blob.update(format!("blob {length}\0"));
    let mut content = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        if lfs {
            content.update(&buffer[..n]);
        } else {
            blob.update(&buffer[..n]);
        }
        seen(n as u64)?;
    }
    Ok(if lfs { pointer_oid(&hex(&content.finalize()), length) } else { hex(&blob.finalize()) })
}

/// The object id of the pointer to a file of this SHA-256 and size.
pub(super) fn pointer_oid(sha256: &str, bytes: u64) -> String {
    let text = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {bytes}\n");
    let mut blob = Sha1::new();
    blob.update(format!("blob {}\0", text.len()));
    blob.update(text);
    hex(&blob.finalize())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8], lfs: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        let mut read = 0;
        let oid = oid(&path, lfs, |n| {
            read += n;
            Ok(())
        });
        assert_eq!(read, bytes.len() as u64);
        oid.unwrap()
    }

    /// As `git hash-object` prints them.
    #[test]
    fn object_ids_are_those_of_git() {
        assert_eq!(of(b"", false), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(of(b"hello\n", false), "ce013625030ba8dba906f756967f9e9ca394464a");
        let large = vec![b'x'; (3 << 20) + 7];
        assert_eq!(of(&large, false), "8680b5742e760d49e089590615e49209cbd8ebeb");
    }

    /// As `git hash-object` prints of the text that `git lfs pointer` prints.
    #[test]
    fn a_large_file_has_the_id_of_its_pointer() {
        assert_eq!(of(b"hello\n", true), "fa61e1ef71c9908c0926776a4aa3504b3a27f159");
    }

    #[test]
    fn reading_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), [0; 9]).unwrap();
        let error = oid(&dir.path().join("file"), true, |_| Err(io::ErrorKind::Interrupted.into()));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
