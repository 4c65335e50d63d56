//! Variables in values of every type, and what is wrong with them.

use super::*;
use crate::manifest::source::Options;
use proptest::prelude::*;
use std::path::Path;

/// The value of `x` in `text`, as JSON, or the faults and their places.
fn value_of_x(text: &str) -> Result<serde_json::Value, Vec<(String, String)>> {
    let options = Options::default();
    let (sources, _) = Sources::read_with(Path::new("m.toml"), &options, &|_| Ok(text.to_owned()));
    let table = DeTable::parse(&sources.files()[0].text).unwrap().into_inner();
    let mut faults = Vec::new();
    let mut vars = Vars::new(&sources, table, &mut faults);
    if !faults.is_empty() {
        let shown = |f: &Fault| (f.error.to_string(), sources.text(f.place.as_ref().unwrap()).to_owned());
        return Err(faults.iter().map(shown).collect());
    }
    let value = vars.done.remove("x").unwrap().unwrap();
    Ok(serde::Deserialize::deserialize(toml::de::ValueDeserializer::from(value)).unwrap())
}

#[test]
fn a_lone_variable_keeps_its_type_and_others_become_text() {
    let vars = "n = 96\nf = 0.5\nb = true\nl = [1, 2]\n";
    let x = |x: &str| value_of_x(&format!("{vars}x = {x}")).unwrap();
    assert_eq!(x("'${n}'"), 96);
    assert_eq!(x("['${l}', { a = '${b}' }]"), serde_json::json!([[1, 2], {"a": true}]));
    assert_eq!(x("'r${n}-${f}/${b}é'"), "r96-0.5/trueé");
    assert_eq!(x("'$${n} $ $$ é$5'"), "${n} $ $$ é$5");
}

#[test]
fn variables_may_use_each_other_in_any_order() {
    assert_eq!(value_of_x("x = '${y}/c'\ny = '${z}/b'\nz = 'a'").unwrap(), "a/b/c");
}

#[test]
fn faults_stand_at_the_variable_even_after_escapes() {
    let faults = value_of_x(
        r#"x = "\t$${no} ${n} \u00e9 ${rnk}"
n = 1
rank = 2"#,
    );
    assert_eq!(faults, Err(vec![("unknown variable `rnk`".into(), "${rnk}".into())]));
    let faults = value_of_x("x = 'a${l}'\nl = [1]").unwrap_err();
    let text = "variable `l` is an array and cannot stand inside a longer string";
    assert_eq!(faults, [(text.to_owned(), "${l}".to_owned())]);
    let faults = value_of_x("x = 'a${l'").unwrap_err();
    assert_eq!(faults, [("`${` without a closing `}`".to_owned(), "'a${l'".to_owned())]);
}

#[test]
fn a_cycle_is_reported_once_and_names_its_members() {
    let faults = value_of_x("a = '${b}'\nb = '${c}'\nc = '${b}'\nx = '${a}'").unwrap_err();
    assert_eq!(faults, [("variables need each other: b → c → b".to_owned(), "b".to_owned())]);
    let faults = value_of_x("x = 'x${x}'").unwrap_err();
    assert_eq!(faults[0].0, "variables need each other: x → x");
}

proptest! {
    #[test]
    fn any_text_can_be_escaped(text in "[a${}é\\\\ ]{0,20}") {
        let escaped = text.replace("${", "$${");
        let quoted = serde_json::to_string(&escaped).unwrap();
        prop_assert_eq!(value_of_x(&format!("x = {quoted}")).unwrap(), text);
    }

    #[test]
    fn pieces_cover_the_text(text in "[a${}é]{0,20}") {
        let mut rebuilt = String::new();
        for piece in pieces(&text) {
            match piece {
                Piece::Plain("${") => rebuilt.push_str("$${"),
                Piece::Plain(plain) => rebuilt.push_str(plain),
                Piece::Variable { name, range } => {
                    prop_assert_eq!(&text[range], format!("${{{name}}}"));
                    rebuilt += &["${", name, "}"].concat();
                }
                Piece::Open => rebuilt.push_str(&text[rebuilt.len()..]),
            }
        }
        prop_assert_eq!(rebuilt, text);
    }
}

#[test]
fn every_type_survives_alone_and_is_text_inside_a_string() {
    for (value, alone, inside) in [
        ("0x10", serde_json::json!(16), "<0x10>"),
        ("-7", serde_json::json!(-7), "<-7>"),
        ("1.50", serde_json::json!(1.5), "<1.50>"),
        ("false", serde_json::json!(false), "<false>"),
        ("''", serde_json::json!(""), "<>"),
        ("'a\"b'", serde_json::json!("a\"b"), "<a\"b>"),
    ] {
        assert_eq!(value_of_x(&format!("v = {value}\nx = '${{v}}'")).unwrap(), alone, "{value}");
        assert_eq!(value_of_x(&format!("v = {value}\nx = '<${{v}}>'")).unwrap(), inside, "{value}");
    }
}

#[test]
fn variables_stand_anywhere_in_arrays_and_tables_but_not_in_keys() {
    let vars = "v = 1\nw = ['a', 'b']\n";
    let x = |x: &str| value_of_x(&format!("{vars}x = {x}")).unwrap();
    assert_eq!(x("[['${v}'], '${w}', 'z']"), serde_json::json!([[1], ["a", "b"], "z"]));
    assert_eq!(x("{ a = { b = '${v}' }, c = 2 }"), serde_json::json!({ "a": { "b": 1 }, "c": 2 }));
    assert_eq!(x("{ '${v}' = 3 }"), serde_json::json!({ "${v}": 3 }));
    assert_eq!(x("'${v}${v}'"), "11");
    assert_eq!(x("' ${v}'"), " 1", "a blank makes it a longer string");
    assert_eq!(x("'$${v}'"), "${v}");
    assert_eq!(x("'$$${v}'"), "$${v}");
}

#[test]
fn a_variable_may_have_any_name_that_holds_no_brace() {
    assert_eq!(value_of_x("'a b.é-1' = 4\nx = '${a b.é-1}'").unwrap(), 4);
    let faults = value_of_x("v = 1\nx = '${ v }'").unwrap_err();
    assert_eq!(faults, [("unknown variable ` v `".to_owned(), "${ v }".to_owned())]);
    let faults = value_of_x("v = 1\nx = '${}'").unwrap_err();
    assert_eq!(faults, [("unknown variable ``".to_owned(), "${}".to_owned())]);
}

#[test]
fn all_faults_of_one_value_are_told() {
    let faults = value_of_x("l = []\nx = ['${no}', 'a${l}', { y = '${na}' }, '${']").unwrap_err();
    let under: Vec<&str> = faults.iter().map(|(_, under)| under.as_str()).collect();
    assert_eq!(under, ["${no}", "${l}", "${na}", "'${'"]);
}

#[test]
fn two_rings_are_two_faults() {
    let faults = value_of_x("a = '${b}'\nb = '${a}'\nc = ['${d}']\nd = { e = '${c}' }\nx = 1").unwrap_err();
    let text: Vec<&str> = faults.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(text, ["variables need each other: a → b → a", "variables need each other: c → d → c"]);
}

#[test]
fn the_origins_of_a_text_are_the_values_it_draws_from() {
    let options = Options::default();
    let text = "a = 1\nb = 'two'\nx = 3";
    let (sources, _) = Sources::read_with(Path::new("m.toml"), &options, &|_| Ok(text.to_owned()));
    let table = DeTable::parse(&sources.files()[0].text).unwrap().into_inner();
    let vars = Vars::new(&sources, table, &mut Vec::new());
    let origins = vars.origins("${b} $${x} ${no} ${a}");
    let found: Vec<_> = origins.iter().map(|(name, place)| (name.as_str(), sources.text(place))).collect();
    assert_eq!(found, [("b", "'two'"), ("a", "1")]);
}

proptest! {
    #[test]
    fn a_chain_of_variables_is_resolved_in_any_order(
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let row = |i: &usize| match i {
            0 => "v0 = 'end'\n".to_owned(),
            i => format!("v{i} = '${{v{}}}{i}'\n", i - 1),
        };
        let text: String = order.iter().map(row).collect();
        prop_assert_eq!(value_of_x(&format!("x = '${{v7}}'\n{text}")).unwrap(), "end1234567");
    }
}

#[test]
fn variables_that_stand_for_more_than_memory_holds_are_refused() {
    let too_large = Err(vec!["the variables make the manifest too large".to_owned()]);
    for form in ["'${N}${N}'", "['${N}', '${N}']", "{ a = '${N}', b = '${N}' }"] {
        let row = |i: usize| format!("v{i} = {}\n", form.replace('N', &format!("v{}", i + 1)));
        let text: String = (0..28).map(row).collect();
        let found = value_of_x(&format!("{text}v28 = 'x'\nx = '${{v0}}'"));
        assert_eq!(
            found.map(drop).map_err(|faults| faults.into_iter().map(|(error, _)| error).collect()),
            too_large
        );
    }
    let wide = format!("a = '{}'\nx = [{}]", "a".repeat(1 << 20), "'${a}', ".repeat(60));
    assert!(value_of_x(&wide).is_ok(), "60 MiB");
}

#[test]
fn variables_that_go_too_deep_are_refused() {
    let row = |form: &str, length: usize| {
        let rows =
            (1..length).map(|i| format!("v{i:06} = {}\n", form.replace('N', &format!("v{:06}", i + 1))));
        format!("x = '${{v000001}}'\n{}v{length:06} = 'end'", rows.collect::<String>())
    };
    assert_eq!(value_of_x(&row("'${N}'", 70)).unwrap(), "end");
    let long = value_of_x(&row("'${N}'", 20_000)).unwrap_err();
    assert_eq!(long[0], ("variable `v000081` goes too deep".to_owned(), "v000081".to_owned()));
    let nested = value_of_x(&row("[[['${N}']]]", 40)).unwrap_err();
    assert_eq!(nested, [("variable `v000013` goes too deep".to_owned(), "v000013".to_owned())]);
}
