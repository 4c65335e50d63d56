//! Laying one table over another: the upper one's values win, table by table. Knows the shape of a manifest, no stage.

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::Value;

/// Lays a manifest (or a profile) over the one it extends.
pub(super) fn manifest<'s>(base: DeTable<'s>, over: DeTable<'s>) -> DeTable<'s> {
    zip(base, over, &|key, base, over| match key {
        "stage" => tables(base, over, |base, over| zip(base, over, &stage)),
        "profile" => {
            tables(base, over, |base, over| zip(base, over, &|_, base, over| tables(base, over, manifest)))
        }
        _ => value(base, over),
    })
}

/// Lays one stage over another of the same name. Another kind replaces it whole; a fixed parameter ends an axis of the
/// matrix below, and an axis ends a fixed parameter below. `unset = ["path"]` takes parameters of the lower one away.
pub(super) fn stage<'s>(name: &str, base: Value<'s>, over: Value<'s>) -> Value<'s> {
    tables(base, over, |mut base, mut over| {
        if over.contains_key("kind") && kind(name, &base) != kind(name, &over) {
            return over;
        }
        for key in unset(&base, &mut over) {
            base.remove(key.as_str());
        }
        for axis in axes(&over) {
            base.remove(axis.as_str());
        }
        let pinned: Vec<String> =
            axes(&base).into_iter().filter(|axis| over.contains_key(axis.as_str())).collect();
        if let Some(DeValue::Table(matrix)) = base.get_mut("matrix").map(Spanned::get_mut) {
            for axis in &pinned {
                matrix.remove(axis.as_str());
            }
            if matrix.is_empty() {
                base.remove("matrix");
            }
        }
        zip(base, over, &|_, base, over| value(base, over))
    })
}

/// Lays one value over another: tables are joined, anything else is replaced.
pub(super) fn value<'s>(base: Value<'s>, over: Value<'s>) -> Value<'s> {
    tables(base, over, |base, over| zip(base, over, &|_, base, over| value(base, over)))
}

/// Joins two tables with `join`; if either is none, the upper value stands.
fn tables<'s>(
    base: Value<'s>,
    over: Value<'s>,
    join: impl FnOnce(DeTable<'s>, DeTable<'s>) -> DeTable<'s>,
) -> Value<'s> {
    let span = over.span();
    match (base.into_inner(), over.into_inner()) {
        (DeValue::Table(base), DeValue::Table(over)) => Spanned::new(span, DeValue::Table(join(base, over))),
        (_, over) => Spanned::new(span, over),
    }
}

/// Keys of the lower table in their order, then the new ones; `join` where both have a key.
fn zip<'s>(
    base: DeTable<'s>,
    mut over: DeTable<'s>,
    join: &dyn Fn(&str, Value<'s>, Value<'s>) -> Value<'s>,
) -> DeTable<'s> {
    let mut out = DeTable::new();
    for (key, below) in base {
        match over.remove_entry::<str>(key.get_ref()) {
            Some((key, above)) => {
                let joined = join(key.get_ref(), below, above);
                out.insert(key, joined);
            }
            None => {
                out.insert(key, below);
            }
        }
    }
    let rest: Vec<(Spanned<DeString<'s>>, Value<'s>)> = over.into_iter().collect();
    out.extend(rest);
    out
}

fn kind<'t>(name: &'t str, table: &'t DeTable<'_>) -> Option<&'t str> {
    table.get("kind").map_or(Some(name), |kind| kind.get_ref().as_str())
}

/// Takes `unset` out of `over` if it lists parameters of `base`; anything else stays and is reported as an unknown parameter.
fn unset(base: &DeTable<'_>, over: &mut DeTable<'_>) -> Vec<String> {
    let name =
        |key: &Value<'_>| key.get_ref().as_str().filter(|key| base.contains_key(*key)).map(str::to_owned);
    let keys = |list: &Value<'_>| list.get_ref().as_array()?.iter().map(name).collect::<Option<Vec<_>>>();
    let Some(keys) = over.get("unset").and_then(keys) else { return Vec::new() };
    over.remove("unset");
    keys
}

fn axes(table: &DeTable<'_>) -> Vec<String> {
    let matrix = table.get("matrix").and_then(|matrix| matrix.get_ref().as_table());
    matrix.into_iter().flat_map(|m| m.keys().map(|key| key.get_ref().to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(text: &str) -> DeTable<'_> {
        DeTable::parse(text).unwrap().into_inner()
    }

    fn merged(base: &str, over: &str) -> serde_json::Value {
        json(manifest(table(base), table(over)))
    }

    fn json(table: DeTable<'_>) -> serde_json::Value {
        let table = toml::de::Deserializer::from(Spanned::new(0..0, table));
        serde::Deserialize::deserialize(table).unwrap()
    }

    #[test]
    fn the_upper_value_wins_and_the_rest_stays() {
        let base = "[vars]\na = 1\nb = 2\n[stage.x]\np = [1, 2]\nq.r = 1\nq.s = 2";
        let over = "[vars]\nb = 3\nc = 4\n[stage.x]\np = [9]\nq.s = 5\n[stage.y]";
        let expected = "[vars]\na = 1\nb = 3\nc = 4\n[stage.x]\np = [9]\nq.r = 1\nq.s = 5\n[stage.y]";
        assert_eq!(merged(base, over), json(table(expected)));
    }

    #[test]
    fn places_come_from_the_file_that_wrote_the_value() {
        let over = "[vars]\n\n\na = 3";
        let out = manifest(table("[vars]\na = 1"), table(over));
        let vars = out["vars"].get_ref().as_table().unwrap();
        let (key, value) = vars.get_key_value("a").unwrap();
        assert_eq!((&over[key.span()], &over[value.span()]), ("a", "3"));
    }

    #[test]
    fn another_kind_replaces_the_stage() {
        let base = "[stage.train]\nkind = 'svd'\nrank = 3";
        assert_eq!(merged(base, "[stage.train]\nkind = 'exec'"), json(table("[stage.train]\nkind = 'exec'")));
        // The kind defaults to the name, so this is the same kind, said aloud.
        let said = merged("[stage.svd]\nrank = 3", "[stage.svd]\nkind = 'svd'");
        assert_eq!(said["stage"]["svd"]["rank"], 3);
    }

    #[test]
    fn a_fixed_value_ends_an_axis_and_an_axis_ends_a_fixed_value() {
        let base = "[stage.svd]\nmatrix = { rank = [1, 2], seed = [3] }";
        let pinned = merged(base, "[stage.svd]\nrank = 7");
        assert_eq!(pinned["stage"]["svd"], serde_json::json!({"rank": 7, "matrix": {"seed": [3]}}));
        let pinned = merged("[stage.svd]\nmatrix.rank = [1]", "[stage.svd]\nrank = 7");
        assert_eq!(pinned["stage"]["svd"], serde_json::json!({"rank": 7}));
        let varied = merged("[stage.svd]\nrank = 7", "[stage.svd]\nmatrix.rank = [1]");
        assert_eq!(varied["stage"]["svd"], serde_json::json!({"matrix": {"rank": [1]}}));
    }

    #[test]
    fn a_parameter_can_be_taken_away() {
        let base = "[stage.model]\npath = 'tiny'\nrevision = 'a'";
        let over = merged(base, "[stage.model]\nunset = ['path']\nhub = 'openai/gpt-oss-20b'");
        assert_eq!(over["stage"]["model"], serde_json::json!({"revision": "a", "hub": "openai/gpt-oss-20b"}));
        // What is not there to be taken away is left for the decoder to refuse, with its place.
        for wrong in ["['paht']", "'path'", "['path', 3]"] {
            let over = merged(base, &format!("[stage.model]\nunset = {wrong}"));
            assert!(over["stage"]["model"].get("unset").is_some(), "{wrong}");
        }
    }

    #[test]
    fn profiles_are_merged_like_manifests() {
        let base = "[profile.q.vars]\na = 1\n[profile.q.stage.svd]\nrank = 1";
        let over = "[profile.q.stage.svd]\nmatrix.rank = [2]";
        let out = merged(base, over);
        assert_eq!(
            out["profile"]["q"],
            serde_json::json!({"vars": {"a": 1}, "stage": {"svd": {"matrix": {"rank": [2]}}}})
        );
    }

    /// Random tables of integers, two levels deep. A key is always of one type: with a number between two tables the
    /// order of merging matters, and it should.
    fn tables_of_numbers() -> impl Strategy<Value = String> {
        let numbers = |keys| proptest::collection::btree_map(keys, 0..9i64, 0..4);
        let inner = numbers("[a-c]").prop_map(|map| {
            let rows: Vec<String> = map.iter().map(|(k, v)| format!("{k} = {v}")).collect();
            format!("{{ {} }}", rows.join(", "))
        });
        (numbers("[a-d]"), proptest::collection::btree_map("[e-h]", inner, 0..4)).prop_map(|(plain, deep)| {
            let plain = plain.iter().map(|(k, v)| format!("{k} = {v}\n"));
            plain.chain(deep.iter().map(|(k, v)| format!("{k} = {v}\n"))).collect()
        })
    }

    #[test]
    fn only_axes_that_the_upper_layer_fixes_end() {
        let svd = |over: &str| {
            let base = "[stage.svd]\nx = 1\nmatrix = { rank = [1, 2], layout = ['a'] }";
            merged(base, &format!("[stage.svd]\n{over}"))["stage"]["svd"].clone()
        };
        let matrix = serde_json::json!({ "rank": [1, 2], "layout": ["a"] });
        assert_eq!(svd("y = 2"), serde_json::json!({ "x": 1, "y": 2, "matrix": matrix }));
        let both = svd("rank = 1\nlayout = 'b'");
        assert_eq!(both, serde_json::json!({ "x": 1, "rank": 1, "layout": "b" }));
        let mixed = svd("layout = 'b'\nmatrix.x = [8, 9]");
        assert_eq!(mixed, serde_json::json!({ "layout": "b", "matrix": { "rank": [1, 2], "x": [8, 9] } }));
        // A matrix of a wrong form is left for the one who reads it.
        assert_eq!(svd("rank = 1\nmatrix = 3")["matrix"], 3);
    }

    #[test]
    fn an_unset_that_takes_nothing_away_stays_to_be_refused() {
        let over = merged("[stage.a]\nx = 1", "[stage.a]\nunset = ['x', 'y']");
        assert_eq!(over["stage"]["a"], serde_json::json!({ "x": 1, "unset": ["x", "y"] }), "all or nothing");
        let alone = merged("", "[stage.a]\nunset = []\nx = 1");
        assert_eq!(alone["stage"]["a"]["unset"], serde_json::json!([]));
    }

    proptest! {
        #[test]
        fn laying_a_table_over_itself_or_over_nothing_changes_nothing(text in tables_of_numbers()) {
            let want = json(table(&text));
            prop_assert_eq!(&merged(&text, &text), &want);
            prop_assert_eq!(&merged("", &text), &want);
            prop_assert_eq!(&merged(&text, ""), &want);
        }

        #[test]
        fn merging_is_associative(a in tables_of_numbers(), b in tables_of_numbers(), c in tables_of_numbers()) {
            let left = manifest(manifest(table(&a), table(&b)), table(&c));
            let right = manifest(table(&a), manifest(table(&b), table(&c)));
            prop_assert_eq!(json(left), json(right));
        }
    }
}
