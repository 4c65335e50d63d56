//! Why a stage runs: the difference between two keys, or between a key and what the cache holds, as typed reasons.

use std::{collections::BTreeMap, fmt};

use serde_json::Value as Json;

use super::key::Key;

/// One reason why a stage runs. Each prints as one sentence.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// No record of this stage exists.
    NeverRun,
    /// The user asked for it.
    Forced,
    /// The cache had the result and lost it.
    Lost(String),
    /// The record that the last run left is gone.
    RecordGone,
    /// A producer must run first; its bytes may turn out the same.
    WaitsOn(String),
    /// What another host said.
    Told(String),
    /// Keys are made in another way now.
    Format,
    /// The stage is of another kind.
    Kind(String, String),
    /// A source file or crate that the stage's code reaches, with its old and new version.
    Code(String, Option<String>, Option<String>),
    /// A parameter, by dotted name, with its old and new value.
    Param(String, Option<Json>, Option<Json>),
    /// An input port.
    Input(String, Change),
    /// A file of the user.
    Read(String, Change),
    /// A file of a hub.
    Remote(String, Change),
    /// The seed.
    Seed(u64, u64),
    /// The salt.
    Salt,
    /// The numerics class.
    Numerics(String, String),
    /// The kind of device.
    Fingerprint(Option<String>, Option<String>),
}

/// How a named digest changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It is no longer there.
    Removed,
    /// It has other bytes.
    Content,
}

/// Why the new key is not the old one; empty when they are equal.
pub fn diff(old: &Key, new: &Key) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if old.format != new.format {
        reasons.push(Reason::Format);
    }
    if old.kind != new.kind {
        reasons.push(Reason::Kind(old.kind.clone(), new.kind.clone()));
        return reasons; // the rest of two different kinds cannot be compared
    }
    code(&old.code, &new.code, &mut reasons);
    params("", Some(&old.params), Some(&new.params), &mut reasons);
    digests(&old.inputs, &new.inputs, Reason::Input, &mut reasons);
    digests(&old.reads, &new.reads, Reason::Read, &mut reasons);
    digests(&old.remote, &new.remote, Reason::Remote, &mut reasons);
    if old.seed != new.seed {
        reasons.push(Reason::Seed(old.seed, new.seed));
    }
    if old.salt != new.salt {
        reasons.push(Reason::Salt);
    }
    if old.numerics != new.numerics {
        reasons.push(Reason::Numerics(old.numerics.clone(), new.numerics.clone()));
    }
    if old.fingerprint != new.fingerprint {
        reasons.push(Reason::Fingerprint(old.fingerprint.clone(), new.fingerprint.clone()));
    }
    reasons
}

fn code(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>, reasons: &mut Vec<Reason>) {
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (old, new) = (old.get(name), new.get(name));
        if old != new {
            reasons.push(Reason::Code(name.clone(), old.cloned(), new.cloned()));
        }
    }
}

fn params(name: &str, old: Option<&Json>, new: Option<&Json>, reasons: &mut Vec<Reason>) {
    let join = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match (old, new) {
        (Some(Json::Object(a)), Some(Json::Object(b))) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for part in names {
                params(&join(part), a.get(part), b.get(part), reasons);
            }
        }
        (Some(Json::Array(a)), Some(Json::Array(b))) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                params(&join(&i.to_string()), Some(a), Some(b), reasons);
            }
        }
        _ if old == new => {}
        _ => reasons.push(Reason::Param(name.to_owned(), old.cloned(), new.cloned())),
    }
}

fn digests<D: PartialEq>(
    old: &BTreeMap<String, D>,
    new: &BTreeMap<String, D>,
    reason: fn(String, Change) -> Reason,
    reasons: &mut Vec<Reason>,
) {
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let change = match (old.get(name), new.get(name)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(_), Some(_)) => Change::Content,
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
        };
        reasons.push(reason(name.clone(), change));
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
        match self {
            Self::NeverRun => write!(f, "never run"),
            Self::Forced => write!(f, "forced"),
            Self::Lost(what) => write!(f, "{what}"),
            Self::RecordGone => write!(f, "its record is gone from the cache"),
            Self::WaitsOn(stage) => write!(f, "waits on `{stage}`"),
            Self::Told(why) => write!(f, "{why}"),
            Self::Format => write!(f, "keys are made in a newer way"),
            Self::Kind(old, new) => write!(f, "the stage's kind changed: {old} -> {new}"),
            Self::Code(name, Some(old), Some(new)) if name.starts_with("crate ") => {
                write!(f, "the code uses another {name}: {old} -> {new}")
            }
            Self::Code(name, Some(_), Some(_)) => write!(f, "the code changed: {name}"),
            Self::Code(name, None, _) => write!(f, "the code uses {name} now"),
            Self::Code(name, ..) => write!(f, "the code does not use {name} any more"),
            Self::Param(name, Some(old), Some(new)) => {
                write!(f, "parameter `{name}` changed: {} -> {}", brief(old), brief(new))
            }
            Self::Param(name, None, Some(new)) => write!(f, "parameter `{name}` is new: {}", brief(new)),
            Self::Param(name, ..) => write!(f, "parameter `{name}` is gone"),
            Self::Input(port, change) => write!(f, "input `{port}` {change}"),
            Self::Read(name, change) => write!(f, "file `{name}` {change}"),
            Self::Remote(name, change) => write!(f, "file `{name}` of the hub {change}"),
            Self::Seed(old, new) => write!(f, "the seed changed: {old} -> {new}"),
            Self::Salt => write!(f, "the salt changed"),
            Self::Numerics(old, new) => write!(f, "the numerics class changed: {old} -> {new}"),
            Self::Fingerprint(old, new) => {
                write!(f, "the device changed: {} -> {}", or_none(old), or_none(new))
            }
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "is new",
            Self::Removed => "is gone",
            Self::Content => "has other content",
        })
    }
}

fn brief(value: &Json) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    format!("{}…", text.chars().take(LONGEST).collect::<String>())
}

/// All reasons as one line; the first few when there are many.
pub fn sentence(reasons: &[Reason]) -> String {
    const SHOWN: usize = 3;
    let mut parts: Vec<String> = reasons.iter().take(SHOWN).map(Reason::to_string).collect();
    if reasons.len() > SHOWN {
        parts.push(format!("and {} more", reasons.len() - SHOWN));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{engine::key::tests::sample, store::Digest};

    fn lines(change: impl FnOnce(&mut Key)) -> Vec<String> {
        let mut new = sample();
        change(&mut new);
        diff(&sample(), &new).iter().map(Reason::to_string).collect()
    }

    #[test]
    fn equal_keys_have_no_difference() {
        assert_eq!(diff(&sample(), &sample()), []);
    }

    #[test]
    fn each_difference_is_one_sentence() {
        assert_eq!(lines(|k| k.params["rank"] = json!(64)), ["parameter `rank` changed: 96 -> 64"]);
        assert_eq!(lines(|k| k.params["layers"] = json!([0, 3])), ["parameter `layers.1` changed: 2 -> 3"]);
        assert_eq!(lines(|k| k.params["layers"] = json!([0])), ["parameter `layers` changed: [0,2] -> [0]"]);
        assert_eq!(lines(|k| k.params["a"] = json!({ "b": 1 })), ["parameter `a` is new: {\"b\":1}"]);
        assert_eq!(
            lines(|k| k.params = json!({ "rank": 96, "layers": [0, 2], "moments": null })),
            ["parameter `energy` is gone"]
        );
        let code = |name: &str, value: &str| lines(|k| drop(k.code.insert(name.into(), value.into())));
        assert_eq!(code("src/a.rs", "other"), ["the code changed: src/a.rs"]);
        assert_eq!(code("crate faer", "0.25.0"), ["the code uses another crate faer: 0.24.4 -> 0.25.0"]);
        assert_eq!(code("src/new.rs", "1"), ["the code uses src/new.rs now"]);
        assert_eq!(lines(|k| drop(k.code.remove("src/a.rs"))), ["the code does not use src/a.rs any more"]);
        assert_eq!(lines(|k| k.seed = 8), ["the seed changed: 7 -> 8"]);
        assert_eq!(lines(|k| k.salt = Some("x".into())), ["the salt changed"]);
        assert_eq!(
            lines(|k| k.fingerprint = Some("H100".into())),
            ["the device changed: cpu avx512 -> H100"]
        );
        assert_eq!(
            lines(|k| {
                k.inputs.insert("model".into(), Digest::of(b"other"));
                k.inputs.remove("moments");
                k.reads.insert("weights/b".into(), Digest::of(b"b"));
            }),
            ["input `model` has other content", "input `moments` is gone", "file `weights/b` is new"]
        );
        assert_eq!(
            lines(|k| {
                k.kind = "fold".into();
                k.seed = 1;
            }),
            ["the stage's kind changed: svd -> fold"]
        );
    }

    #[test]
    fn every_moved_digest_has_a_reason() {
        let change: [fn(&mut Key); 5] = [
            |k| k.format += 1,
            |k| k.params["rank"] = json!(96.0),
            |k| k.params["rank"] = json!(null),
            |k| k.salt = Some(String::new()),
            |k| k.numerics = "bitwise".into(),
        ];
        for change in change {
            let mut key = sample();
            change(&mut key);
            assert_ne!(key.digest(), sample().digest());
            assert_eq!(diff(&sample(), &key).len(), 1, "{key:?}");
        }
    }

    #[test]
    fn many_reasons_are_cut_short() {
        let reads = |n: usize| (0..n).map(|i| Reason::Read(i.to_string(), Change::Added)).collect::<Vec<_>>();
        assert_eq!(sentence(&reads(1)), "file `0` is new");
        assert_eq!(sentence(&reads(5)), "file `0` is new; file `1` is new; file `2` is new; and 2 more");
    }

    #[test]
    fn long_values_are_cut_in_print_only() {
        let long = Reason::Param("p".into(), Some(json!("é".repeat(100))), Some(json!(1)));
        assert!(long.to_string().len() < 200, "{long}");
    }
}
