//! What every artifact promises, as checks: it comes back as it was, and what is wrong with a file is told with its name.

use std::{fmt::Debug, fs};

use tempfile::TempDir;

use super::{Artifact, Files, checkpoint::files_in};

/// An artifact's files in a folder of their own.
pub(crate) fn saved(value: &impl Artifact) -> (TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    value.save(dir.path()).unwrap();
    let files = files_in(dir.path()).unwrap();
    (dir, files)
}

/// Saves and loads.
pub(crate) fn comes_back<T: Artifact + PartialEq + Debug>(value: &T) {
    let (_dir, files) = saved(value);
    assert_eq!(&T::load(&files).unwrap(), value);
}

/// Each of `needed` is missed, whether it is not listed or not on disk; the artifact is well without any other file.
pub(crate) fn each_file_is_needed<T: Artifact>(value: &T, needed: &[&str]) {
    let (_dir, files) = saved(value);
    let only: Files = needed.iter().map(|name| ((*name).to_owned(), files[*name].clone())).collect();
    assert!(T::load(&only).is_ok(), "{}: another file is needed too", T::KIND);
    for name in needed {
        let mut rest = only.clone();
        let path = rest.remove(*name).unwrap();
        let error = T::load(&rest).err().expect(name).to_string();
        assert_eq!(error, format!("artifact `{}` lacks its file `{name}`", T::KIND));
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let error = T::load(&only).err().expect(name).to_string();
        assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
        fs::write(&path, bytes).unwrap();
    }
}

/// The error after `change` was done to the bytes of a file.
pub(crate) fn damaged<T: Artifact>(value: &T, name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    let (_dir, files) = saved(value);
    fs::write(&files[name], change(fs::read(&files[name]).unwrap())).unwrap();
    T::load(&files).err().expect("a damaged file must not load").to_string()
}

/// The same for a text file in which `from` becomes `to`, once.
pub(crate) fn edited<T: Artifact>(value: &T, name: &str, from: &str, to: &str) -> String {
    damaged(value, name, |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(from), "{name} has no {from}");
        text.replacen(from, to, 1).into_bytes()
    })
}
