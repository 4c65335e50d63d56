//! Keys: everything that can change a stage's bytes, and nothing else. Knows no store layout and no manifest.
//!
//! | enters | as |
//! |---|---|
//! | the key format | [`FORMAT`] |
//! | the stage's kind | text |
//! | its code | source file or crate → digest or version |
//! | its parameters | a tree of values; inputs and paths are `null` in it |
//! | its inputs | port → tree digest, taken from the producer's record |
//! | the user's files | logical name → blob digest |
//! | files of a hub | logical name → object id in git; absent unless there are any |
//! | seed and salt | integer; text, absent unless set |
//! | numerics class | its name, and for `per-device` the device's fingerprint |
//!
//! Never: names of stages, order of the manifest, paths, times, threads, jobs, attempts, run ids, host, user, device index.
//! The key that is hashed is the key that is stored and shown, and [`diff`](crate::engine::reason::diff) compares two of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::value::Value;
use crate::store::Digest;

/// The version of the key's own shape. A changed golden vector needs a new one.
pub const FORMAT: u32 = 2;

const CONTEXT: &str = "mla-run 2026-11 action key v2";

/// Everything that can change a stage's bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The version of the key's own shape.
    pub format: u32,
    /// The stage kind.
    pub kind: String,
    /// The code that can change the bytes: source file or crate → digest or version.
    pub code: BTreeMap<String, String>,
    /// The parameters.
    pub params: serde_json::Value,
    /// Input port → tree digest.
    pub inputs: BTreeMap<String, Digest>,
    /// Logical name of a user's file → blob digest.
    pub reads: BTreeMap<String, Digest>,
    /// Logical name of a file of a hub → its object id in git.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub remote: BTreeMap<String, String>,
    /// The stage's seed.
    pub seed: u64,
    /// Set by the user to disown earlier results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// The numerics class: `bitwise` or `per-device`.
    pub numerics: String,
    /// What identifies the kind of device; only for `per-device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

impl Key {
    /// The digest that names the key's record.
    pub fn digest(&self) -> Digest {
        Digest::derive(CONTEXT, &self.value().encode())
    }

    pub(crate) fn value(&self) -> Value {
        let digests = |map: &BTreeMap<String, Digest>| {
            Value::Map(map.iter().map(|(k, d)| (k.clone(), Value::Bytes(d.as_bytes().to_vec()))).collect())
        };
        let texts = |map: &BTreeMap<String, String>| {
            Value::Map(map.iter().map(|(k, v)| (k.clone(), Value::Text(v.clone()))).collect())
        };
        let Value::Map(mut map) = Value::map([
            ("format", Value::Int(self.format.into())),
            ("kind", Value::Text(self.kind.clone())),
            ("code", texts(&self.code)),
            ("params", Value::from(&self.params)),
            ("inputs", digests(&self.inputs)),
            ("reads", digests(&self.reads)),
            ("seed", Value::Int(self.seed.into())),
            ("numerics", Value::Text(self.numerics.clone())),
        ]) else {
            unreachable!("`Value::map` makes a map")
        };
        if !self.remote.is_empty() {
            map.insert("remote".to_owned(), texts(&self.remote));
        }
        for (name, text) in [("salt", &self.salt), ("fingerprint", &self.fingerprint)] {
            if let Some(text) = text {
                map.insert(name.to_owned(), Value::Text(text.clone()));
            }
        }
        Value::Map(map)
    }

    /// The key as it is stored.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a key is plain data with string keys")
    }

    /// A stored key; `None` when an older version wrote it.
    pub fn from_json(json: &serde_json::Value) -> Option<Self> {
        Self::deserialize(json).ok()
    }

    /// The key after a trip through its stored text, which may round the last bit of a float.
    pub(crate) fn as_stored(&self) -> Self {
        serde_json::to_string(self)
            .and_then(|text| serde_json::from_str(&text))
            .unwrap_or_else(|_| self.clone())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    pub(crate) fn sample() -> Key {
        Key {
            format: FORMAT,
            kind: "svd".into(),
            code: [("src/a.rs", "f00d"), ("crate faer", "0.24.4")].map(|(n, v)| (n.into(), v.into())).into(),
            params: json!({ "rank": 96, "energy": 0.99, "layers": [0, 2], "moments": null }),
            inputs: [("model", "m"), ("moments", "n")]
                .map(|(p, d)| (p.into(), Digest::of(d.as_bytes())))
                .into(),
            reads: [("weights/a".into(), Digest::of(b"a"))].into(),
            remote: BTreeMap::new(),
            seed: 7,
            salt: None,
            numerics: "per-device".into(),
            fingerprint: Some("cpu avx512".into()),
        }
    }

    #[test]
    fn golden_vectors() {
        let bare = Key {
            params: json!({}),
            inputs: BTreeMap::new(),
            reads: BTreeMap::new(),
            numerics: "bitwise".into(),
            fingerprint: None,
            ..sample()
        };
        let salted = Key { salt: Some(String::new()), ..sample() };
        let found = [sample(), bare, salted].map(|k| k.digest().to_string());
        assert_eq!(
            found,
            [
                "783ec23180992b1369d251eefb55da9b4f90db9c865cde061b855d8614e36f84",
                "95c23b551446e8214d31aeea3e7f543302f2fffd5917136644113e94b84b3adc",
                "daf04860690d8ad2c328057ed982f7e7c30105556c0034dee6abe76ccd32d370",
            ]
        );
    }

    #[test]
    fn every_ingredient_moves_the_digest() {
        let change: [fn(&mut Key); 17] = [
            |k| k.format += 1,
            |k| k.kind = "svd2".into(),
            |k| drop(k.code.insert("src/a.rs".into(), "f00e".into())),
            |k| drop(k.code.remove("src/a.rs")),
            |k| k.params["rank"] = json!(97),
            |k| k.params["rank"] = json!(96.0),
            |k| k.params["new"] = json!(null),
            |k| k.params["layers"] = json!([2, 0]),
            |k| k.seed += 1,
            |k| k.salt = Some(String::new()),
            |k| k.numerics = "bitwise".into(),
            |k| k.fingerprint = None,
            |k| k.reads = [("weights/b".into(), Digest::of(b"a"))].into(),
            |k| {
                let (a, b) = (k.inputs["model"], k.inputs["moments"]);
                k.inputs = [("model".into(), b), ("moments".into(), a)].into();
            },
            |k| std::mem::swap(&mut k.inputs, &mut k.reads),
            |k| k.remote = [("weights/a".into(), "f00d".into())].into(),
            |k| k.remote = [("weights/a".into(), "f00e".into())].into(),
        ];
        let mut digests = vec![sample().digest()];
        for change in change {
            let mut key = sample();
            change(&mut key);
            digests.push(key.digest());
        }
        let count = digests.len();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }

    /// Keys that are often equal or nearly so.
    fn keys() -> impl Strategy<Value = Key> {
        let json = prop_oneof![
            Just(json!(null)),
            Just(json!(0)),
            Just(json!(0.0)),
            Just(json!("")),
            Just(json!("0")),
            Just(json!(false)),
        ];
        let json = json.prop_recursive(2, 6, 2, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(serde_json::Value::from),
                prop::collection::btree_map("[ab]", inner, 0..3)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        });
        let params = prop::collection::btree_map("[ab]", json, 0..3);
        let digests = || {
            let digest = (0..2_u8).prop_map(|i| Digest::of(&[i]));
            prop::collection::btree_map("[ab]", digest, 0..2)
        };
        let text = || prop::option::of("[ab]?");
        let code = || prop::collection::btree_map("[ab]", "[ab]", 0..2);
        (params, digests(), digests(), 0..2_u64, text(), text(), code(), code()).prop_map(
            |(params, inputs, reads, seed, salt, fingerprint, code, remote)| Key {
                params: serde_json::Value::Object(params.into_iter().collect()),
                inputs,
                reads,
                seed,
                salt,
                fingerprint,
                code,
                remote,
                ..sample()
            },
        )
    }

    proptest! {
        #[test]
        fn two_keys_are_equal_where_their_digests_are_and_where_nothing_differs(a in keys(), b in keys()) {
            let equal = a == b;
            prop_assert_eq!(a.digest() == b.digest(), equal);
            prop_assert_eq!(crate::engine::reason::diff(&a, &b).is_empty(), equal);
            prop_assert_eq!(a.value().encode() == b.value().encode(), equal);
        }

        #[test]
        fn any_key_is_stored_as_it_was_hashed(key in keys()) {
            let text = serde_json::to_string(&key.to_json()).unwrap();
            let back = Key::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
            prop_assert_eq!(back.digest(), key.digest());
            prop_assert_eq!(key.as_stored(), key);
        }
    }

    #[test]
    fn a_key_with_more_or_fewer_fields_is_of_another_version() {
        let whole = sample().to_json();
        for field in ["format", "kind", "code", "params", "inputs", "reads", "seed", "numerics"] {
            let mut less = whole.clone();
            less.as_object_mut().unwrap().remove(field);
            assert_eq!(Key::from_json(&less), None, "without {field}");
        }
        let mut more = whole.clone();
        more["host"] = json!("here");
        assert_eq!(Key::from_json(&more), None);
        let bare = Key { salt: None, fingerprint: None, ..sample() };
        let unset = ["salt", "fingerprint", "remote"].map(|field| bare.to_json().get(field).cloned());
        assert_eq!(unset, [None, None, None], "what is not set is not stored");
        assert_eq!(Key::from_json(&bare.to_json()), Some(bare));
    }

    #[test]
    fn the_stored_key_is_the_hashed_key() {
        let text = serde_json::to_string(&sample().to_json()).unwrap();
        let back = Key::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(back, sample());
        assert_eq!(back.digest(), sample().digest());
        assert_eq!(Key::from_json(&json!({ "format": 0 })), None);
    }
}
