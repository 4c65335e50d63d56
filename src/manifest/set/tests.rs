//! `--set` of every form of path and value.

use super::*;

const MANIFEST: &str = "
    [vars]
    rank = 1
    [stage.svd]
    rank = 2
    deep.a = 1
    sources = [{ files = 'x', licence = 'MIT' }, { files = 'y' }]
    [stage.wide]
    matrix.rank = [1, 2]
";

fn set(text: &str) -> Result<serde_json::Value, (String, String, String)> {
    let mut root = DeTable::parse(MANIFEST).unwrap().into_inner();
    let source = Source { name: "--set".into(), text: text.into(), start: 1000 };
    apply(&mut root, &source).map_err(|fault| {
        let place = fault.place.unwrap();
        let under = &text[place.start - 1000..place.end - 1000];
        (fault.error.to_string(), under.to_owned(), fault.hint.unwrap())
    })?;
    let table = toml::de::Deserializer::from(Spanned::new(0..0, root));
    Ok(serde::Deserialize::deserialize(table).unwrap())
}

#[test]
fn values_are_typed_as_toml_and_bare_words_are_strings() {
    let rank = |value: &str| set(&format!("rank={value}")).unwrap()["vars"]["rank"].clone();
    assert_eq!(rank("96"), 96);
    assert_eq!(rank(" 0.5"), 0.5);
    assert_eq!(rank("true"), true);
    assert_eq!(rank("[1, 2]"), serde_json::json!([1, 2]));
    assert_eq!(rank("'96'"), "96");
    assert_eq!(rank("docs/**/*.md"), "docs/**/*.md");
    assert_eq!(rank("a=b"), "a=b");
    assert_eq!(rank(""), "");
}

#[test]
fn parameters_are_reached_through_tables_and_arrays() {
    let svd = |text: &str| set(text).unwrap()["stage"]["svd"].clone();
    assert_eq!(svd("svd.rank=9")["rank"], 9);
    assert_eq!(svd("svd.deep.b=2")["deep"], serde_json::json!({"a": 1, "b": 2}));
    assert_eq!(svd("svd.new.part=2")["new"]["part"], 2);
    let sources = svd("svd.sources.0.files=z")["sources"].clone();
    assert_eq!(sources, serde_json::json!([{"files": "z", "licence": "MIT"}, {"files": "y"}]));
}

#[test]
fn a_fixed_parameter_ends_the_axis() {
    let wide = set("wide.rank=7").unwrap()["stage"]["wide"].clone();
    assert_eq!(wide, serde_json::json!({"rank": 7}));
}

#[test]
fn mistakes_point_at_the_part_at_fault() {
    let error = |text: &str| set(text).unwrap_err();
    let own = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    let form = "`--set` needs the form NAME=VALUE or STAGE.PARAMETER=VALUE";
    assert_eq!(error("rank"), own(form, "rank", "write `rank=96` or `svd.rank=96`"));
    assert_eq!(error("svd.=1").0, form);
    assert_eq!(error("rnk=1"), own("unknown variable `rnk`", "rnk", "did you mean `rank`?"));
    let hint = "known variables: `rank`; a parameter is `STAGE.PARAMETER`";
    assert_eq!(error("other=1"), own("unknown variable `other`", "other", hint));
    let hint = "`svd` is a stage: name its parameter, as in `svd.PARAMETER=VALUE`";
    assert_eq!(error("svd=1"), own("unknown variable `svd`", "svd", hint));
    assert_eq!(error("sdv.rank=1"), own("unknown stage `sdv`", "sdv", "did you mean `svd`?"));
    let text = "`svd.rank` is a plain value and has no parts to set";
    assert_eq!(error("svd.rank.x=1"), own(text, "x", "set `svd.rank` itself"));
    let text = "`svd.sources` is an array and has no parts to set";
    assert_eq!(error("svd.sources.2.x=1"), own(text, "2", "it has 2 items, numbered from 0"));
    assert!(error("rank=[1,").0.starts_with("the value is not valid TOML: "));
}

#[test]
fn a_value_starts_after_the_first_equals_sign_and_loses_outer_blanks() {
    let rank = |text: &str| set(text).unwrap()["vars"]["rank"].clone();
    for (text, expected) in [
        ("rank==", serde_json::json!("=")),
        (" rank = 7 ", serde_json::json!(7)),
        ("rank= two words ", serde_json::json!("two words")),
        ("rank=é", serde_json::json!("é")),
        ("rank=0x1f", serde_json::json!(31)),
        ("rank=1_000", serde_json::json!(1000)),
        ("rank=-0.5e1", serde_json::json!(-5.0)),
        ("rank=False", serde_json::json!("False")),
        ("rank=007", serde_json::json!("007")),
        ("rank=1.2.3", serde_json::json!("1.2.3")),
        ("rank=a,b", serde_json::json!("a,b")),
        ("rank=\"a\\tb\"", serde_json::json!("a\tb")),
        ("rank={ a = [1, 'x'] }", serde_json::json!({ "a": [1, "x"] })),
    ] {
        assert_eq!(rank(text), expected, "{text}");
    }
}

#[test]
fn blanks_around_the_parts_of_a_path_do_not_count() {
    let svd = set(" svd . deep . a = 5").unwrap()["stage"]["svd"]["deep"].clone();
    assert_eq!(svd, serde_json::json!({ "a": 5 }));
}

#[test]
fn a_table_is_laid_over_a_table_and_an_array_replaces_an_array() {
    let svd = |text: &str| set(text).unwrap()["stage"]["svd"].clone();
    assert_eq!(svd("svd.deep={ b = 2 }")["deep"], serde_json::json!({ "a": 1, "b": 2 }));
    assert_eq!(svd("svd.deep=[1]")["deep"], serde_json::json!([1]));
    assert_eq!(svd("svd.sources=['x']")["sources"], serde_json::json!(["x"]));
    assert_eq!(svd("svd.sources.1=7")["sources"][1], 7);
    let first = serde_json::json!({ "files": "x", "licence": "MIT" });
    assert_eq!(
        svd("svd.sources.1.new=true")["sources"],
        serde_json::json!([first, { "files": "y", "new": true }])
    );
    assert_eq!(
        set("rank={ a = 1 }").unwrap()["vars"]["rank"],
        serde_json::json!({ "a": 1 }),
        "a variable is replaced"
    );
}

#[test]
fn a_set_kind_replaces_the_stage_and_an_axis_ends_the_parameter() {
    assert_eq!(set("svd.kind=exec").unwrap()["stage"]["svd"], serde_json::json!({ "kind": "exec" }));
    let kept = set("svd.kind=svd").unwrap()["stage"]["svd"]["rank"].clone();
    assert_eq!(kept, 2, "the kind that it had by its name");
    let varied = set("svd.matrix.rank=[5]").unwrap()["stage"]["svd"].clone();
    assert_eq!((varied.get("rank"), &varied["matrix"]), (None, &serde_json::json!({ "rank": [5] })));
    let taken = set("svd.unset=['rank', 'sources']").unwrap()["stage"]["svd"].clone();
    assert_eq!(taken, serde_json::json!({ "deep": { "a": 1 } }));
}

#[test]
fn more_mistakes_point_at_the_part_at_fault() {
    let hint_of_array = "it has 2 items, numbered from 0";
    let form = "`--set` needs the form NAME=VALUE or STAGE.PARAMETER=VALUE";
    let array = "`svd.sources` is an array and has no parts to set";
    let plain = "`svd.deep.a` is a plain value and has no parts to set";
    for (text, error, under, hint) in [
        ("", form, "", "write `rank=96` or `svd.rank=96`"),
        ("=1", form, "=1", "write `rank=96` or `svd.rank=96`"),
        ("svd..rank=1", form, "svd..rank=1", "write `rank=96` or `svd.rank=96`"),
        ("svd. .x=1", form, "svd. .x=1", "write `rank=96` or `svd.rank=96`"),
        ("svd.sources.-1=1", array, "-1", hint_of_array),
        ("svd.sources.x.y=1", array, "x", hint_of_array),
        ("svd.deep. a .b.c=1", plain, "b", "set `svd.deep.a` itself"),
        ("é.x=1", "unknown stage `é`", "é", "known stages: `svd`, `wide`"),
    ] {
        let expected = (error.to_owned(), under.to_owned(), hint.to_owned());
        assert_eq!(set(text), Err(expected), "{text}");
    }
    for text in ["rank='a", "rank={ a = }", "rank=[1 2]", "svd.rank=[1,"] {
        let (error, _, hint) = set(text).unwrap_err();
        assert!(error.starts_with("the value is not valid TOML: "), "{text}: {error}");
        assert_eq!(hint, "a bare word is a string and needs no quotes", "{text}");
    }
}

#[test]
fn a_set_value_and_its_key_have_their_own_places_and_the_header_keeps_its_own() {
    let text = "[stage.svd]\nrank = 2";
    let mut root = DeTable::parse(text).unwrap().into_inner();
    let source = Source { name: "--set".into(), text: "svd.deep.a = 96".into(), start: 100 };
    apply(&mut root, &source).unwrap();
    let stages = root["stage"].get_ref().as_table().unwrap();
    let svd = &stages["svd"];
    assert_eq!(&text[svd.span()], "[stage.svd]");
    let deep = svd.get_ref().get("deep").unwrap();
    let (key, value) = deep.get_ref().as_table().unwrap().get_key_value("a").unwrap();
    let own = |span: Span| &source.text[span.start - 100..span.end - 100];
    assert_eq!((own(key.span()), own(value.span())), ("a", "96"));
}

#[test]
fn a_manifest_without_variables_or_stages_has_nothing_to_set() {
    let error = |text: &str| {
        let source = Source { name: "--set".into(), text: text.into(), start: 0 };
        let fault = apply(&mut DeTable::new(), &source).unwrap_err();
        format!("{}; {}", fault.error, fault.hint.unwrap())
    };
    assert_eq!(
        error("a=1"),
        "unknown variable `a`; there are no variables; a parameter is `STAGE.PARAMETER`"
    );
    assert_eq!(error("a.b=1"), "unknown stage `a`; there are no stages");
}

#[test]
fn a_path_is_as_deep_as_toml_may_be() {
    let path = |parts: usize| format!("svd.{}a=1", "new.".repeat(parts - 2));
    assert!(set(&path(80)).is_ok());
    for parts in [81, 30_000] {
        let (error, under, hint) = set(&path(parts)).unwrap_err();
        assert_eq!((error.as_str(), hint.as_str()), ("`--set` goes too deep", "a path has 80 parts at most"));
        assert_eq!(under, path(parts));
    }
}
