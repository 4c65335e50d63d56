//! The reference of a stage's parameters, made from its JSON Schema and so from its doc comments.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

use super::schema::common;
use crate::stage::table::Entry;

/// The reference of one kind of stage.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Manual {
    /// The kind.
    pub kind: &'static str,
    /// What it does.
    pub doc: String,
    /// Its parameters: those that must be given, then the others by name.
    pub parameters: Vec<Parameter>,
    /// The keys that it has like other stages, with what they do.
    pub keys: Vec<(String, String)>,
    /// Its outputs: name and kind of artifact.
    pub outputs: Vec<(&'static str, &'static str)>,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its type in plain words.
    #[serde(rename = "type")]
    pub ty: String,
    /// Whether it must be given.
    pub required: bool,
    /// What it is when it is not given, as TOML.
    pub default: Option<String>,
    /// What it does.
    pub doc: String,
}

impl Parameter {
    /// The first sentence of its documentation.
    pub fn summary(&self) -> &str {
        let first = self.doc.lines().next().unwrap_or_default();
        first.split_once(". ").map_or(first, |(sentence, _)| sentence).trim_end_matches('.')
    }
}

/// The reference of a kind.
pub fn manual(row: &Entry) -> Manual {
    let (object, _) = schema_of(row);
    Manual {
        kind: row.kind,
        doc: text(&object, "description"),
        parameters: parameters(row),
        keys: common(row)
            .into_iter()
            .map(|(name, schema)| {
                (name, schema.as_object().map(|schema| text(schema, "description")).unwrap_or_default())
            })
            .collect(),
        outputs: row.outputs.iter().map(|output| (output.name, output.kind)).collect(),
    }
}

/// The parameters of a kind.
pub fn parameters(row: &Entry) -> Vec<Parameter> {
    let (object, defs) = schema_of(row);
    let required = object.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(Value::Object(properties)) = object.get("properties") else { return Vec::new() };
    let parameter = |(name, schema): (&String, &Value)| Parameter {
        name: name.clone(),
        ty: type_of(schema, &defs),
        required: required.iter().any(|key| key == name),
        default: schema.get("default").filter(|value| !value.is_null()).map(as_toml),
        doc: schema.as_object().map(|schema| text(schema, "description")).unwrap_or_default(),
    };
    let mut parameters: Vec<Parameter> = properties.iter().map(parameter).collect();
    parameters.sort_by_key(|parameter| !parameter.required);
    parameters
}

/// The schema of a kind's parameters as one object, and the definitions that it refers to.
fn schema_of(row: &Entry) -> (Map<String, Value>, Map<String, Value>) {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let schema = (row.schema)(&mut generator);
    let defs = generator.take_definitions(true);
    let object = resolve(schema.as_value(), &defs).as_object().cloned().unwrap_or_default();
    (object, defs)
}

/// Follows a `$ref` to its definition.
pub(super) fn resolve<'v>(schema: &'v Value, defs: &'v Map<String, Value>) -> &'v Value {
    let reference = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
    let name = reference.map(|name| name.replace("%20", " ").replace("~1", "/").replace("~0", "~"));
    name.and_then(|name| defs.get(&name)).unwrap_or(schema)
}

/// A type in plain words: `whole number`, `list of strings`, `"A" or "B"`.
fn type_of(schema: &Value, defs: &Map<String, Value>) -> String {
    let schema = resolve(schema, defs);
    for choice in ["oneOf", "anyOf"] {
        if let Some(Value::Array(choices)) = schema.get(choice) {
            let mut types: Vec<String> = choices.iter().map(|choice| type_of(choice, defs)).collect();
            types.retain(|ty| ty != "nothing");
            types.dedup();
            return types.join(" or ");
        }
    }
    if let Some(value) = schema.get("const") {
        return value.to_string();
    }
    if let Some(Value::Array(values)) = schema.get("enum") {
        let words: Vec<String> = values.iter().filter(|v| !v.is_null()).map(Value::to_string).collect();
        return words.join(" or ");
    }
    match schema.get("type") {
        Some(Value::String(ty)) => word(ty, schema, defs),
        Some(Value::Array(types)) => {
            let words = types.iter().filter_map(Value::as_str).filter(|ty| *ty != "null");
            words.map(|ty| word(ty, schema, defs)).collect::<Vec<_>>().join(" or ")
        }
        _ => match schema.get("allOf") {
            Some(Value::Array(all)) if all.len() == 1 => type_of(&all[0], defs),
            _ => "any value".to_owned(),
        },
    }
}

fn word(ty: &str, schema: &Value, defs: &Map<String, Value>) -> String {
    match ty {
        "integer" => match schema.get("minimum").and_then(Value::as_u64) {
            Some(0) | None => "whole number".to_owned(),
            Some(least) => format!("whole number from {least}"),
        },
        "array" => match schema.get("items") {
            Some(items) => format!("list of {}", type_of(items, defs)),
            None => "list".to_owned(),
        },
        "object" => match schema.get("properties") {
            Some(Value::Object(keys)) => {
                let keys: Vec<&str> = keys.keys().map(String::as_str).collect();
                format!("table {{ {} }}", keys.join(", "))
            }
            _ => "table".to_owned(),
        },
        "null" => "nothing".to_owned(),
        other => other.to_owned(),
    }
}

/// A default as it would be written in the manifest.
fn as_toml(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let rows: Vec<String> =
                map.iter().map(|(key, value)| format!("{key} = {}", as_toml(value))).collect();
            if rows.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", rows.join(", ")) }
        }
        Value::Array(items) => format!("[{}]", items.iter().map(as_toml).collect::<Vec<_>>().join(", ")),
        plain => plain.to_string(),
    }
}

fn text(schema: &Map<String, Value>, key: &str) -> String {
    schema.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_are_said_in_plain_words() {
        let defs = json!({
            "A thing": { "type": "object", "properties": { "p": {}, "q": {} } },
            "a/b": { "type": "string" },
        });
        for (schema, expected) in [
            (json!({ "type": "integer" }), "whole number"),
            (json!({ "type": "integer", "minimum": 0 }), "whole number"),
            (json!({ "type": "integer", "minimum": 8 }), "whole number from 8"),
            (json!({ "type": ["integer", "null"], "minimum": 1 }), "whole number from 1"),
            (json!({ "type": ["string", "boolean", "null"] }), "string or boolean"),
            (json!({ "type": "array" }), "list"),
            (
                json!({ "type": "array", "items": { "type": "array", "items": { "type": "number" } } }),
                "list of list of number",
            ),
            (json!({ "type": "object" }), "table"),
            (json!({ "$ref": "#/$defs/A%20thing" }), "table { p, q }"),
            (json!({ "$ref": "#/$defs/a~1b" }), "string"),
            (json!({ "type": "array", "items": { "$ref": "#/$defs/A%20thing" } }), "list of table { p, q }"),
            (json!({ "anyOf": [{ "$ref": "#/$defs/a~1b" }, { "type": "null" }] }), "string"),
            (json!({ "oneOf": [{ "const": "x" }, { "const": 2 }] }), "\"x\" or 2"),
            (
                json!({ "anyOf": [{ "type": "string" }, { "type": "string" }, { "type": "integer" }] }),
                "string or whole number",
            ),
            (json!({ "enum": ["a", null, "b"] }), "\"a\" or \"b\""),
            (json!({ "allOf": [{ "type": "boolean" }] }), "boolean"),
            (json!({}), "any value"),
            (json!(true), "any value"),
        ] {
            assert_eq!(type_of(&schema, defs.as_object().unwrap()), expected, "{schema}");
        }
    }

    #[test]
    fn defaults_are_written_as_toml() {
        for (value, expected) in [
            (json!("a\"b"), "\"a\\\"b\""),
            (json!(0.5), "0.5"),
            (json!([]), "[]"),
            (json!([1, ["x"]]), "[1, [\"x\"]]"),
            (json!({}), "{}"),
            (json!({ "a": 1, "b": { "c": true } }), "{ a = 1, b = { c = true } }"),
        ] {
            let text = as_toml(&value);
            assert_eq!(text, expected);
            let read: toml::Table = toml::from_str(&format!("x = {text}")).unwrap();
            assert_eq!(serde_json::to_value(&read["x"]).unwrap(), value, "it reads back as it was");
        }
    }

    #[test]
    fn a_summary_is_the_first_sentence_of_the_first_line() {
        let summary = |doc: &str| {
            let parameter = Parameter {
                name: String::new(),
                ty: String::new(),
                required: false,
                default: None,
                doc: doc.to_owned(),
            };
            parameter.summary().to_owned()
        };
        for (doc, expected) in [
            ("", ""),
            ("One.", "One"),
            ("At 0.5 and below. More.", "At 0.5 and below"),
            ("First line\nsecond line. More.", "First line"),
            ("No end", "No end"),
        ] {
            assert_eq!(summary(doc), expected);
        }
    }
}
