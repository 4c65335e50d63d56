//! `checkout`: copies a stage's outputs out of the cache, whole or not at all.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{args::StageArgs, error::CliError, exit::Exit, output, paint::bytes, stage::Found};
use crate::store::{Store, Tree};

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
    #[command(flatten)]
    stage: StageArgs,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let (found, rest) = Found::open(&self.words, &self.stage)?;
        let [dir] = &rest[..] else {
            return Err(CliError::usage("`checkout` needs a stage and a folder"));
        };
        let record = found.record()?;
        let dir = PathBuf::from(dir);
        let trees: Vec<(&str, &Tree)> =
            record.outputs.iter().map(|(port, tree)| (port.as_str(), tree)).collect();
        let files = copy_out(&found.store, &trees, &dir, self.replace)?;
        let size: u64 = trees.iter().map(|(_, tree)| tree.bytes()).sum();
        let plural = if files == 1 { "file" } else { "files" };
        output::text(&format!("{}: {files} {plural}, {}\n", dir.display(), bytes(size)))?;
        Ok(Exit::OK)
    }
}

fn copy_out(store: &Store, trees: &[(&str, &Tree)], dir: &Path, replace: bool) -> Result<usize, CliError> {
    let occupied = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !replace {
        let message = format!("`{}` is there and not empty", dir.display());
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
        for (name, from) in store.files(tree)? {
            let to = below.join(name);
            copy_file(&from, &to).map_err(failed(&to))?;
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
    fs::copy(from, to)?;
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
}
