//! The manual and the JSON Schema, both made from the types that decode a manifest.

use super::*;

#[test]
fn the_manual_is_made_from_the_doc_comments() {
    let manual = manual::manual(&TABLE[0]);
    assert_eq!(manual.doc, "Makes texts.");
    let rows: Vec<_> =
        manual.parameters.iter().map(|p| (p.name.as_str(), p.ty.as_str(), p.required)).collect();
    let expected = [
        ("words", "whole number", true),
        ("file", "string", false),
        ("layout", "\"plain\" or \"wide\"", false),
    ];
    assert_eq!(rows, expected);
    assert_eq!(manual.parameters[2].default.as_deref(), Some("\"plain\""));
    assert_eq!(manual.parameters[0].summary(), "How many");
    assert_eq!(manual.outputs, [("texts", "texts")]);
}

#[test]
fn no_stage_names_a_parameter_like_a_common_key() {
    for row in stage::table::STAGES {
        for parameter in manual::parameters(row) {
            let clash = crate::manifest::COMMON.contains(&parameter.name.as_str());
            let clash = clash || parameter.name == super::super::recipe::PART;
            assert!(!clash, "parameter `{}` of `{}` is a common key of all stages", parameter.name, row.kind);
            assert!(
                !parameter.doc.is_empty(),
                "parameter `{}` of `{}` has no documentation",
                parameter.name,
                row.kind
            );
        }
    }
}

#[test]
fn the_schema_knows_every_kind_and_only_its_keys() {
    let schema = schema::schema(TABLE);
    let make = &schema["$defs"]["stage of kind make"];
    let keys: Vec<&String> = make["properties"].as_object().unwrap().keys().collect();
    let common = ["matrix", "memory", "resources", "retry", "salt", "seed", "timeout", "unset", "words"];
    assert_eq!(keys, [&["file", "kind", "layout"], &common[..]].concat());
    assert_eq!(make["additionalProperties"], false);
    let words = &make["properties"]["words"];
    assert_eq!(words["description"], "How many. At least one.");
    assert_eq!(words["anyOf"][0]["type"], "integer");
    assert_eq!(make["properties"]["matrix"]["additionalProperties"], false);
    let axes: Vec<&String> = make["properties"]["matrix"]["properties"].as_object().unwrap().keys().collect();
    assert_eq!(axes, ["file", "layout", "seed", "words"]);
    assert!(make.get("required").is_none(), "another layer may give what this one lacks");
    let variable = &words["anyOf"][1]["pattern"];
    assert_eq!(variable, "^\\$\\{[^}]+\\}$", "a number may come from a variable");
    let input = &schema["$defs"]["Input of texts"];
    assert_eq!(input["type"], "string");
    let (stage, profile) = (&schema["properties"]["stage"], &schema["properties"]["profile"]);
    assert_eq!(
        &profile["additionalProperties"]["properties"]["stage"], stage,
        "a profile has the same stages"
    );
    assert_eq!(
        stage["patternProperties"][""]["properties"]["kind"]["enum"],
        serde_json::json!(["make", "take"])
    );
    // Every reference leads somewhere.
    let text = schema.to_string();
    for reference in text.split("\"#/$defs/").skip(1) {
        let name = reference.split('"').next().unwrap().replace("%20", " ");
        assert!(schema["$defs"].get(&name).is_some(), "{name}");
    }
}
