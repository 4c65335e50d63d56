//! `checkout`: copies a stage's outputs out of the cache, whole or not at all.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{args::StageArgs, error::CliError, exit::Exit, output, paint::bytes, stage::Found};
use crate::store::{Store, Tree, clone_or_copy};

/// Copy the outputs of a stage into a folder
///
/// The files of a stage with one output lie directly in the folder; several outputs get a folder each. The copy is complete
/// before it takes the folder's name.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The stage, the folder, and the manifest unless the last one run is meant
    #[arg(value_names = ["STAGE", "DIR", "PIPELINE.toml"], num_args = 2..=3, required = true)]
    words: Vec<String>,
    /// Replace the folder if it is there and not empty
    #[arg(long)]
    replace: bool,
    /// Link the files instead of copying them: no space is taken, and they are read-only, because they are those of the cache
    #[arg(long)]
    hardlink: bool,
    #[command(flatten)]
    stage: StageArgs,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let (found, rest) = Found::open(&self.words, 1, &self.stage)?;
        let [dir] = &rest[..] else {
            return Err(CliError::usage("`checkout` needs a stage and a folder"));
        };
        let record = found.record()?;
        let dir = PathBuf::from(dir);
        let trees: Vec<(&str, &Tree)> =
            record.outputs.iter().map(|(port, tree)| (port.as_str(), tree)).collect();
        let files = copy_out(&found.store, &trees, &dir, (self.replace, self.hardlink))?;
        let size: u64 = trees.iter().map(|(_, tree)| tree.bytes()).sum();
        let plural = if files == 1 { "file" } else { "files" };
        output::text(&format!("{}: {files} {plural}, {}\n", dir.display(), bytes(size)))?;
        Ok(Exit::OK)
    }
}

fn copy_out(
    store: &Store,
    trees: &[(&str, &Tree)],
    dir: &Path,
    (replace, hardlink): (bool, bool),
) -> Result<usize, CliError> {
    let is_file = fs::metadata(dir).is_ok_and(|meta| !meta.is_dir());
    let occupied = is_file || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !replace {
        let what = if is_file { "is a file" } else { "is there and not empty" };
        let message = format!("`{}` {what}", dir.display());
        return Err(CliError::usage(message).hint("choose another folder, or replace it with --replace"));
    }
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| CliError::failed(format!("cannot write `{path}`: {error}"))
    };
    fs::create_dir_all(parent).map_err(failed(parent))?;
    // Beside the goal, so that taking its name is one step on one file system. Removed again if anything fails.
    let staged = tempfile::Builder::new().prefix(".mla-run-").tempdir_in(parent).map_err(failed(parent))?;
    let whole = staged.path().join("whole");
    let mut count = 0;
    for (port, tree) in trees {
        let below = if trees.len() == 1 { whole.clone() } else { whole.join(port) };
        for file in &tree.files {
            let to = below.join(&file.name);
            if hardlink {
                fs::create_dir_all(to.parent().unwrap_or(&below)).map_err(failed(&to))?;
                store.link_blob(file, &to)?;
            } else {
                copy_file(&store.blob_path(&file.blob), &to).map_err(failed(&to))?;
            }
            count += 1;
        }
    }
    swap(&whole, dir).map_err(failed(dir))?;
    Ok(count)
}

/// Copies a file of the cache, writable, with its bytes on disk.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    clone_or_copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o644))?;
    fs::File::open(to)?.sync_all()
}

/// Gives `whole` the name `dir`. What had the name goes where `whole` was.
fn swap(whole: &Path, dir: &Path) -> io::Result<()> {
    if fs::symlink_metadata(dir).is_err() {
        return fs::rename(whole, dir);
    }
    match renameat_with(CWD, whole, CWD, dir, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // A file system without the exchange: for a moment there is no folder of that name, but never half of one.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::rename(dir, whole.with_extension("old"))?;
            fs::rename(whole, dir)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Digest, Lookup, Made, Record};

    #[test]
    fn a_swap_leaves_the_new_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, goal) = (dir.path().join("whole"), dir.path().join("goal"));
        for (i, names) in [["old", "both"], ["new", "both"]].iter().enumerate() {
            let home = if i == 0 { &goal } else { &whole };
            fs::create_dir(home).unwrap();
            for name in names {
                fs::write(home.join(name), i.to_string()).unwrap();
            }
        }
        swap(&whole, &goal).unwrap();
        assert!(!goal.join("old").exists());
        assert_eq!(fs::read(goal.join("both")).unwrap(), b"1");
        swap(&goal, &dir.path().join("fresh")).unwrap();
        assert_eq!(fs::read(dir.path().join("fresh/new")).unwrap(), b"1");
    }

    /// A cache with two artifacts: one file, and two of which one lies in a folder.
    fn two_trees(dir: &Path) -> (Store, Record) {
        let store = Store::open(&dir.join("cache")).unwrap();
        let Lookup::Miss(slot) = store.lookup(&Digest::of(b"key")).unwrap() else { panic!("it is new") };
        let work = slot.workdir(&["one", "two"]).unwrap();
        fs::create_dir(work.out.join("two/sub")).unwrap();
        for (name, text) in [("one/a", "1"), ("two/a", "22"), ("two/sub/b", "333")] {
            fs::write(work.out.join(name), text).unwrap();
        }
        let ports = vec!["one".to_owned(), "two".to_owned()];
        let key = serde_json::json!({});
        let made = Made { kind: "x".into(), key, ports, seconds: 0.0, peak_memory: None, why: Vec::new() };
        let record = slot.record(made, &work).unwrap();
        (store, record)
    }

    fn read(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn several_outputs_get_a_folder_each_and_one_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        let (store, record) = two_trees(dir.path());
        let trees: Vec<(&str, &Tree)> =
            record.outputs.iter().map(|(port, tree)| (port.as_str(), tree)).collect();
        let all = dir.path().join("all");
        assert_eq!(copy_out(&store, &trees, &all, (false, false)).unwrap(), 3);
        assert_eq!([read(&all, "one/a"), read(&all, "two/a"), read(&all, "two/sub/b")], ["1", "22", "333"]);
        let two = dir.path().join("deep/er/two");
        assert_eq!(copy_out(&store, &trees[1..], &two, (false, false)).unwrap(), 2);
        assert_eq!(read(&two, "sub/b"), "333");
    }

    #[test]
    fn what_is_in_the_way_stays_unless_it_is_to_be_replaced() {
        type Make = fn(&Path);
        let makes: [(&str, Make, bool); 5] = [
            ("an empty folder", |path| fs::create_dir(path).unwrap(), true),
            ("a link to nothing", |path| std::os::unix::fs::symlink("gone", path).unwrap(), true),
            ("a file", |path| fs::write(path, "mine").unwrap(), false),
            ("an empty file", |path| fs::write(path, "").unwrap(), false),
            (
                "a folder with files",
                |path| {
                    fs::create_dir(path).unwrap();
                    fs::write(path.join("mine"), "mine").unwrap();
                },
                false,
            ),
        ];
        for (what, make, free) in makes {
            let dir = tempfile::tempdir().unwrap();
            let (store, record) = two_trees(dir.path());
            let trees = [("one", &record.outputs["one"])];
            let goal = dir.path().join("goal");
            make(&goal);
            let before = fs::read(&goal).ok();
            let copied = copy_out(&store, &trees, &goal, (false, false));
            assert_eq!(copied.is_ok(), free, "{what}");
            if !free {
                assert_eq!(fs::read(&goal).ok(), before, "{what}");
                assert!(before.is_some() || goal.join("mine").exists(), "{what}");
            }
            copy_out(&store, &trees, &goal, (true, false)).unwrap();
            assert_eq!(read(&goal, "a"), "1", "{what}");
            assert!(!goal.join("mine").exists(), "{what}");
        }
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, record) = two_trees(dir.path());
        let file = &record.outputs["two"].files[1];
        fs::remove_file(store.blob_path(&file.blob)).unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        let error = copy_out(&store, &[("two", &record.outputs["two"])], &home.join("goal"), (false, false))
            .unwrap_err();
        assert!(error.to_string().contains("sub/b"), "{error}");
        assert_eq!(fs::read_dir(&home).unwrap().count(), 0);
        fs::write(home.join("file"), "").unwrap();
        assert!(
            copy_out(&store, &[("one", &record.outputs["one"])], &home.join("file/goal"), (true, false))
                .is_err()
        );
    }
}
