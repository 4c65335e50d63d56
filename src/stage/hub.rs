//! Repositories of the hub as parameters. Knows no network and no stage.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Invalid;
use crate::engine::action::{Repo, RepoKind};

/// A repository's name or revision. Parameters of this type are `skip_serializing`: the object ids of the files that are read there are
/// in keys instead.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Address(pub String);

/// The revision that counts when none is named.
const MAIN: &str = "main";

/// The files of a repository, under their own names behind `prefix` among what the stage reads.
pub(crate) fn repo(
    prefix: &str,
    (kind, id, revision): (RepoKind, &str, Option<&Address>),
    files: &[&str],
) -> Repo {
    Repo {
        prefix: prefix.to_owned(),
        kind,
        id: id.to_owned(),
        revision: revision.map_or(MAIN, |revision| &revision.0).to_owned(),
        files: files.iter().map(|&glob| glob.to_owned()).collect(),
    }
}

/// The same of a data set; `None` where none is named.
pub(crate) fn dataset(
    prefix: &str,
    at: (Option<&Address>, Option<&Address>),
    files: &[&str],
) -> Option<Repo> {
    let (id, revision) = at;
    Some(repo(prefix, (RepoKind::Dataset, &id?.0, revision), files))
}

/// Checks the parameters `hub` and `revision`, of which either may be missing. `at` is where they stand in the manifest: `sources.0.`.
pub(crate) fn check_dataset(
    id: Option<&Address>,
    revision: Option<&Address>,
    at: &str,
) -> Result<(), Invalid> {
    match (id, revision) {
        (Some(id), revision) => check(("hub", &id.0), revision, at),
        (None, Some(_)) => Err(Invalid::new(format!("{at}revision"), "`revision` goes with `hub`")),
        (None, None) => Ok(()),
    }
}

/// Checks `owner/name` and a revision.
pub(crate) fn check(id: (&str, &str), revision: Option<&Address>, at: &str) -> Result<(), Invalid> {
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with('.')
            && !part.contains("..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let (param, text) = id;
    if !text.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name)) {
        let what = format!("`{text}` is not a name of the form owner/name");
        return Err(Invalid::new(format!("{at}{param}"), what)
            .hint("as the hub shows it at the top of the repository's page: `openai/gpt-oss-20b`"));
    }
    let Some(Address(revision)) = revision else { return Ok(()) };
    // It becomes the name of a file below `refs`.
    if !revision.split('/').all(plain) {
        let what = format!("`{revision}` is not a branch, a tag or a commit");
        return Err(Invalid::new(format!("{at}revision"), what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(id: &str, revision: Option<&str>) -> Option<String> {
        let revision = revision.map(|text| Address(text.to_owned()));
        check(("hub", id), revision.as_ref(), "sources.0.").err().map(|error| error.param)
    }

    #[test]
    fn names_and_revisions_become_paths_and_are_checked_for_that() {
        for (id, revision) in [
            ("openai/gpt-oss-20b", None),
            ("a.b/c_d", Some("main")),
            ("a/b", Some("refs/convert/parquet")),
            ("a/b", Some("v1.0-rc_2")),
        ] {
            assert_eq!(fault(id, revision), None, "{id} {revision:?}");
        }
        for id in ["", "gpt", "a/b/c", "/b", "a/", "../b", "a/..", "a b/c", "a/b\n"] {
            assert_eq!(fault(id, None).as_deref(), Some("sources.0.hub"), "{id}");
        }
        for revision in ["", "../x", "a/../b", "/a", "a/", "a b"] {
            assert_eq!(fault("a/b", Some(revision)).as_deref(), Some("sources.0.revision"), "{revision}");
        }
    }

    #[test]
    fn a_dataset_needs_a_name_for_its_revision() {
        let [id, revision] = ["a/b", "v1"].map(|text| Address(text.to_owned()));
        let check = |id, revision| check_dataset(id, revision, "x.").err().map(|error| error.param);
        assert_eq!(
            (check(None, None), check(Some(&id), None), check(Some(&id), Some(&revision))),
            (None, None, None)
        );
        assert_eq!(check(None, Some(&revision)).as_deref(), Some("x.revision"));
        assert_eq!(check(Some(&revision), None).as_deref(), Some("x.hub"));
        assert_eq!(dataset("", (None, Some(&revision)), &[]), None);
        let found = dataset("x/", (Some(&id), Some(&revision)), &["*"]).unwrap();
        assert_eq!(
            (found.kind, &*found.id, &*found.revision, &*found.prefix),
            (RepoKind::Dataset, "a/b", "v1", "x/")
        );
    }

    #[test]
    fn main_is_the_usual_revision() {
        let repo = repo("", (RepoKind::Model, "a/b", None), &["*.json"]);
        assert_eq!((&*repo.revision, &repo.files[..]), ("main", &["*.json".to_owned()][..]));
    }
}
