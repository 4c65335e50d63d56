//! Which files a repository has at a commit, and which of them are wanted. A list is kept beside the snapshot, because a commit never
//! changes. Offline and without a list, what lies in the snapshot counts, and then just these files enter the key.

use std::{
    fs, io,
    io::Write,
    path::{Component, Path, PathBuf},
};

use futures_util::TryStreamExt;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use hf_hub::repository::RepoTreeEntry;

use super::{HubError, HuggingFace, check::pointer_oid, error::Result};
use crate::engine::hub::{Repo, RepoFile};

impl HuggingFace {
    /// The wanted files of a repository at a commit, by path.
    pub(super) fn list(&self, repo: &Repo, commit: &str) -> Result<Vec<RepoFile>> {
        let globs = globs(&repo.files)?;
        let wide = Breadth::of(&repo.files);
        let kept = self.folder(repo.kind, &repo.id).join("mla-run").join(commit).join(wide.file_name());
        let all = match read(&kept)? {
            Some(all) => all,
            None if self.settings.offline => self.in_snapshot(repo, commit)?,
            None => {
                let all = self.ask(repo, commit, &wide)?;
                replace(&kept, &serde_json::to_vec(&all).expect("plain data"))?;
                all
            }
        };
        if let Some(bad) = all.iter().find(|file| !stays_inside(&file.path)) {
            return Err(HubError::Path { id: repo.id.clone(), path: bad.path.clone() });
        }
        let examples = examples(&all);
        let mut files: Vec<RepoFile> = all.into_iter().filter(|file| globs.is_match(&file.path)).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        if files.is_empty() {
            let globs = repo.files.iter().map(|glob| format!("`{glob}`")).collect::<Vec<_>>().join(" or ");
            let (kind, id, commit) = (repo.kind, repo.id.clone(), commit.to_owned());
            return Err(HubError::NoMatch { kind, id, globs, commit, examples });
        }
        Ok(files)
    }

    fn ask(&self, repo: &Repo, commit: &str, wide: &Breadth) -> Result<Vec<RepoFile>> {
        let link = self.link()?;
        let repository = link.repository(repo.kind, &repo.id);
        let folder = (!wide.folder.is_empty()).then(|| wide.folder.clone());
        let entries = self.patiently(&link, (repo.kind, &repo.id), async {
            let tree = repository.list_tree().revision(commit).maybe_path_in_repo(folder);
            tree.recursive(wide.recursive).send()?.try_collect::<Vec<_>>().await
        });
        let file = |entry| match entry {
            RepoTreeEntry::File { oid, size, path, lfs, .. } => {
                Some(RepoFile { path, bytes: size, oid, lfs: lfs.is_some() })
            }
            RepoTreeEntry::Directory { .. } => None,
        };
        Ok(entries?.into_iter().filter_map(file).collect())
    }

    /// What other tools left here. A snapshot is links to blobs that have the SHA-256 or the object id for a name.
    fn in_snapshot(&self, repo: &Repo, commit: &str) -> Result<Vec<RepoFile>> {
        let root = self.snapshot(repo.kind, &repo.id, commit);
        let offline =
            |what: String| HubError::Offline { id: repo.id.clone(), what, cache: self.cache.clone() };
        let mut files = Vec::new();
        for entry in walkdir::WalkDir::new(&root) {
            let entry = entry.map_err(|_| offline(format!("commit {commit}")))?;
            if entry.file_type().is_dir() {
                continue;
            }
            let path = entry.path();
            let io = |source| HubError::Io { path: path.to_owned(), source };
            let bytes = fs::metadata(path).map_err(io)?.len();
            let blob = fs::read_link(path).ok().and_then(|blob| Some(blob.file_name()?.to_str()?.to_owned()));
            let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
            let (oid, lfs) = match blob {
                Some(blob) if blob.len() == 64 => (pointer_oid(&blob, bytes), true),
                Some(blob) if blob.len() == 40 => (blob, false),
                _ => return Err(offline(format!("the object id of `{name}`"))),
            };
            files.push(RepoFile { path: name, bytes, oid, lfs });
        }
        Ok(files)
    }
}

/// How much of a repository must be listed for some globs.
struct Breadth {
    folder: String,
    recursive: bool,
}

impl Breadth {
    fn of(globs: &[String]) -> Self {
        let plain = |part: &&str| !part.contains(['*', '?', '[', '{', '\\']);
        let folders = globs.iter().map(|glob| {
            let folder = glob.rsplit_once('/').map_or("", |(folder, _)| folder);
            folder.split('/').take_while(plain).collect::<Vec<_>>()
        });
        let common = |a: Vec<_>, b: Vec<_>| {
            a.into_iter().zip(b).take_while(|(a, b)| a == b).map(|(a, _)| a).collect::<Vec<_>>()
        };
        let folder = folders.reduce(common).unwrap_or_default().join("/");
        let below = |glob: &String| glob[folder.len()..].trim_start_matches('/').contains('/');
        // A `{` may hold what any `/` would.
        let recursive = globs.iter().any(|glob| below(glob) || glob.contains("**") || glob.contains('{'));
        Self { folder, recursive }
    }

    fn file_name(&self) -> String {
        let text = format!("{} {}", self.folder, self.recursive);
        format!("{}.json", &blake3::hash(text.as_bytes()).to_hex()[..16])
    }
}

fn globs(globs: &[String]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for text in globs {
        let bad = |source| HubError::Glob { glob: text.clone(), source };
        set.add(GlobBuilder::new(text).literal_separator(true).build().map_err(bad)?);
    }
    set.build().map_err(|source| HubError::Glob { glob: globs.join(", "), source })
}

/// Whether a path is one of a file below a folder.
fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

fn examples(all: &[RepoFile]) -> String {
    let some: Vec<&str> = all.iter().take(3).map(|file| &*file.path).collect();
    match all.len() {
        0 => "; there is none at that place".to_owned(),
        n => format!("; there are {n} files, such as {}", some.join(", ")),
    }
}

fn read(path: &Path) -> Result<Option<Vec<RepoFile>>> {
    match fs::read(path) {
        // What another version wrote is asked for again.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HubError::Io { path: path.to_owned(), source }),
    }
}

/// Writes a file whole or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = || -> io::Result<()> {
        let folder = path.parent().map(PathBuf::from).unwrap_or_default();
        fs::create_dir_all(&folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&folder)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    written().map_err(|source| HubError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breadth(globs: &[&str]) -> (String, bool) {
        let wide = Breadth::of(&globs.iter().map(|&glob| glob.to_owned()).collect::<Vec<_>>());
        (wide.folder, wide.recursive)
    }

    #[test]
    fn no_more_is_listed_than_the_globs_need() {
        for (globs, folder, recursive) in [
            (&["*.safetensors", "config.json"][..], "", false),
            (&["data/train-*.parquet"], "data", false),
            (&["a/b/*.json", "a/c/*.json"], "a", true),
            (&["a/b/*.json", "a/b/c/*.json"], "a/b", true),
            (&["a/**/*.json"], "a", true),
            (&["**"], "", true),
            (&["{a/x,b}.json"], "", true),
            (&["a*/x.json"], "", true),
            (&["ab/x.json", "a/x.json"], "", true),
        ] {
            assert_eq!(breadth(globs), (folder.to_owned(), recursive), "{globs:?}");
        }
    }

    #[test]
    fn a_star_stays_in_its_folder() {
        let set = globs(&["*.json".to_owned(), "data/**/*.txt".to_owned()]).unwrap();
        let takes = ["a.json", "data/a.txt", "data/b/c.txt"].map(|path| set.is_match(path));
        let leaves = ["original/a.json", "a.txt", "data/a.json"].map(|path| set.is_match(path));
        assert_eq!((takes, leaves), ([true; 3], [false; 3]));
        let error = globs(&["a[".to_owned()]).unwrap_err();
        assert!(error.to_string().starts_with("`a[` is not a glob: "), "{error}");
    }

    #[test]
    fn paths_that_lead_out_are_seen() {
        for path in ["../x", "/x", "a/../../x", "", "a\\..\\x"] {
            assert!(!stays_inside(path), "{path}");
        }
        assert!(stays_inside("a/b..c/.d"));
    }
}
