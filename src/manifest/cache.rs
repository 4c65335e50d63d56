//! `[cache]`: the cache that is shared with other machines. Knows no stage and no service; nothing of it enters a key.

use std::path::PathBuf;

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    Manifest, Value, Vars, entry,
    error::{Fault, Mistake},
};

/// The keys of `[cache]`.
pub(super) const KEYS: [&str; 5] = ["remote", "trust", "sign-with", "unsigned", "read-only"];

/// What a manifest says about the shared cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cache {
    /// Its address: `s3://bucket/prefix`.
    pub remote: Option<String>,
    /// The public keys of those whose records are taken, as hex digits.
    pub trust: Vec<String>,
    /// The file with the key that signs what is pushed; seen from the manifest that says it.
    pub sign_with: Option<PathBuf>,
    /// Takes and pushes records without signatures.
    pub unsigned: bool,
    /// Nothing is pushed.
    pub read_only: bool,
}

/// `[cache]` as written: a path is relative to the file that says it, which is known once the variables are.
#[derive(Debug, Default)]
pub(super) struct Section<'s> {
    cache: Cache,
    sign_with: Option<(String, Value<'s>)>,
}

impl<'s> Section<'s> {
    pub(super) fn new(table: DeTable<'s>, vars: &Vars<'s>, faults: &mut Vec<Fault>) -> Self {
        let mut section = Self::default();
        for (key, value) in table {
            if let Some(value) = vars.expand(value, faults) {
                section.take(&key, value, faults);
            }
        }
        section
    }

    fn take(&mut self, key: &Spanned<DeString<'s>>, value: Value<'s>, faults: &mut Vec<Fault>) {
        let what = format!("`{}`", key.get_ref());
        match key.get_ref().as_ref() {
            "remote" => self.cache.remote = entry::string(&what, &value, faults),
            "trust" => self.cache.trust = keys(&what, value, faults),
            "sign-with" => self.sign_with = entry::string(&what, &value, faults).map(|path| (path, value)),
            "unsigned" => self.cache.unsigned = entry::boolean(&what, &value, faults).unwrap_or_default(),
            "read-only" => self.cache.read_only = entry::boolean(&what, &value, faults).unwrap_or_default(),
            _ => {} // an unknown key has been told
        }
    }

    /// The section with its path seen from the manifest that says it.
    pub(super) fn settle(self, manifest: &Manifest<'_>) -> Cache {
        let sign_with = self.sign_with.map(|(path, value)| manifest.folder(&value.span()).join(path));
        Cache { sign_with, ..self.cache }
    }
}

/// The public keys in an array.
fn keys(what: &str, value: Value<'_>, faults: &mut Vec<Fault>) -> Vec<String> {
    let place = value.span();
    let items = match value.into_inner() {
        DeValue::Array(items) => items,
        other => {
            entry::wrong::<()>(what, "an array of strings", &other, place, faults);
            return Vec::new();
        }
    };
    let mut keys = Vec::new();
    for item in items {
        let Some(text) = entry::string(&format!("a key in {what}"), &item, faults) else { continue };
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            keys.push(text);
        } else {
            let fault = Fault::at(item.span(), Mistake::PublicKey(text));
            faults.push(fault.hint("`mla-run cache key show FILE` prints it: 64 lower-case hex digits"));
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::manifest::{Options, Sources};

    /// The section of `p/m.toml`, which may extend `lib/base.toml`, and all faults.
    fn section(text: &str, base: &str) -> (Cache, Vec<Fault>) {
        let open = |path: &Path| Ok(if path.ends_with("m.toml") { text } else { base }.to_owned());
        let (sources, faults) = Sources::read_with(Path::new("p/m.toml"), &Options::default(), &open);
        assert!(faults.is_empty(), "{faults:?}");
        let (manifest, faults) = Manifest::parse(&sources);
        (manifest.unwrap().cache, faults)
    }

    #[test]
    fn a_section_is_read_with_its_variables() {
        let hex = "0123456789abcdef".repeat(4);
        let text = format!(
            "[vars]\nbucket = 'b'\n[cache]\nremote = 's3://${{bucket}}/p'\ntrust = ['{hex}']\nsign-with = 'k'\n\
             unsigned = true\nread-only = true\n[stage.a]"
        );
        let (cache, faults) = section(&text, "");
        assert!(faults.is_empty(), "{faults:?}");
        let expected = Cache {
            remote: Some("s3://b/p".into()),
            trust: vec![hex],
            sign_with: Some("p/k".into()),
            unsigned: true,
            read_only: true,
        };
        assert_eq!(cache, expected);
        assert_eq!(section("[stage.a]", "").0, Cache::default());
    }

    #[test]
    fn a_key_file_lies_beside_the_manifest_that_says_it() {
        let text = "[pipeline]\nextends = '../lib/base.toml'\n[cache]\nremote = 'file:///over'\n[stage.a]";
        let (cache, faults) = section(text, "[cache]\nremote = 'file:///base'\nsign-with = 'keys/ci'");
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!(cache.remote.as_deref(), Some("file:///over"));
        assert_eq!(cache.sign_with, Some("lib/keys/ci".into()));
    }
}
