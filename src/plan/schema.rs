//! The JSON Schema of the whole manifest, for editors. Made from the types that decode it.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{limits::Keys, manual::resolve};
use crate::stage::{shards::MOST, table::Entry};

/// The JSON Schema (draft 2020-12) of a manifest whose stages are those of `table`.
///
/// No parameter is required: the file that `extends` names, a profile or a matrix may give it. `check` knows.
pub fn schema(table: &[Entry]) -> Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let parts: Vec<(&'static str, Value)> =
        table.iter().map(|row| (row.kind, (row.schema)(&mut generator).to_value())).collect();
    let mut defs = generator.take_definitions(true);
    let kinds: Vec<(&str, Value)> = table
        .iter()
        .zip(&parts)
        .map(|(row, (_, schema))| (row.kind, stage(row, resolve(schema, &defs))))
        .collect();
    let mut named = Map::new();
    for (kind, schema) in kinds {
        let name = format!("stage of kind {kind}");
        named.insert(kind.to_owned(), json!({ "$ref": format!("#/$defs/{}", name.replace(' ', "%20")) }));
        defs.insert(name, schema);
    }
    let unused: Vec<String> = parts.iter().filter_map(|(_, schema)| own_definition(schema)).collect();
    let stages = stages(&named);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mla-run manifest",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "pipeline": pipeline(),
            "vars": vars(),
            "cache": cache(),
            "executor": executor(),
            "profile": {
                "description": "Named sets of values, laid over the rest with `--profile NAME`.",
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "vars": vars(), "cache": cache(), "executor": executor(), "stage": stages
                    }
                }
            },
            "stage": stages
        },
        "$defs": without(defs, &unused)
    })
}

fn pipeline() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "description": "The pipeline's name; the file's name by default." },
            "extends": {
                "type": "string",
                "description": "A manifest, relative to this one, whose values hold where this one gives none."
            },
            "seed": or_variable(json!({
                "type": "integer", "minimum": 0, "default": 0,
                "description": "The seed of every stage that gives none."
            }))
        }
    })
}

fn executor() -> Value {
    json!({
        "description": "Where stages run instead of here.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "slurm": {
                "description": "A Slurm cluster whose nodes see the cache and the user's files under the same paths.",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "partition": { "type": "string", "description": "The queue of stages that name none." },
                    "args": or_variable(json!({
                        "type": "array", "items": { "type": "string" },
                        "description": "More options of `sbatch`, such as `--account=lab`."
                    })),
                    "at-once": or_variable(json!({
                        "type": "integer", "minimum": 1,
                        "description": "How many tasks of one array run at once."
                    })),
                    "poll": {
                        "type": "string", "default": "30s",
                        "description": "The shortest time between two questions about jobs."
                    },
                    "device": { "type": "string", "description": "The device on the nodes, as `--device` takes it." },
                    "fingerprint": {
                        "type": "string",
                        "description": "The kind of device on the nodes; `mla-run worker --fingerprint` on one prints it."
                    }
                }
            }
        }
    })
}

fn cache() -> Value {
    json!({
        "description": "The cache that is shared with other machines.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "remote": {
                "type": "string",
                "description": "Its address: s3://BUCKET/PREFIX, gs://…, az://…, https://… or file:///FOLDER."
            },
            "trust": or_variable(json!({
                "type": "array", "items": { "type": "string" },
                "description": "The public keys of those whose records are taken."
            })),
            "sign-with": {
                "type": "string",
                "description": "The file with the key that signs what is pushed, relative to this manifest."
            },
            "unsigned": or_variable(json!({
                "type": "boolean", "default": false,
                "description": "Push records as they are when no key signs them; take any record when no key is trusted."
            })),
            "read-only": or_variable(json!({
                "type": "boolean", "default": false, "description": "Nothing is pushed."
            }))
        }
    })
}

fn vars() -> Value {
    json!({
        "description": "Variables: `${name}` in any string below. `--set NAME=VALUE` changes one.",
        "type": "object"
    })
}

/// All stages: by `kind` where it is given, else by name.
fn stages(named: &Map<String, Value>) -> Value {
    let by_kind: Vec<Value> = named
        .iter()
        .map(|(kind, schema)| {
            json!({
                "if": { "required": ["kind"], "properties": { "kind": { "const": kind } } },
                "then": schema
            })
        })
        .collect();
    let kinds: Vec<&String> = named.keys().collect();
    let by_name: Map<String, Value> = named
        .iter()
        .map(|(kind, schema)| (kind.clone(), json!({ "if": { "required": ["kind"] }, "else": schema })))
        .collect();
    json!({
        "description": "The stages, by name.",
        "type": "object",
        "propertyNames": { "pattern": "^[A-Za-z0-9_-]+$" },
        "properties": by_name,
        "additionalProperties": { "type": "object" },
        "patternProperties": {
            "": { "type": "object", "properties": { "kind": { "enum": kinds } }, "allOf": by_kind }
        }
    })
}

/// One kind's table: its parameters and the keys that every stage has.
fn stage(row: &Entry, own: &Value) -> Value {
    let mut properties = common(row);
    let parameters = own.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let axes: Map<String, Value> = parameters
        .keys()
        .map(|name| (name.clone(), json!({ "type": ["array", "string"], "minItems": 1 })))
        .collect();
    if let Some(matrix) = properties.get_mut("matrix").and_then(Value::as_object_mut) {
        let mut axes = axes;
        axes.insert("seed".to_owned(), json!({ "type": ["array", "string"], "minItems": 1 }));
        matrix.insert("properties".to_owned(), Value::Object(axes));
    }
    properties.extend(parameters.into_iter().map(|(name, schema)| (name, or_variable(schema))));
    json!({
        "type": "object",
        "description": own.get("description").cloned().unwrap_or_default(),
        "additionalProperties": false,
        "properties": properties
    })
}

/// The keys that a stage has beside its parameters.
pub(super) fn common(row: &Entry) -> Map<String, Value> {
    let kind = row.kind;
    let keys = json!({
        "kind": { "const": kind, "description": "What the stage does; its name by default." },
        "seed": or_variable(json!({
            "type": "integer", "minimum": 0, "description": "The stage's seed; the pipeline's by default."
        })),
        "salt": {
            "type": ["string", "integer"],
            "description": "Change it to disown earlier results although nothing that is declared changed."
        },
        "unset": {
            "type": "array", "items": { "type": "string" },
            "description": "Parameters of the extended manifest's stage that this one takes away."
        },
        "matrix": {
            "type": "object", "additionalProperties": false,
            "description": "Parameters with a list of values each: one stage for every combination."
        }
    });
    let mut keys = keys.as_object().cloned().unwrap_or_default();
    keys.extend(row.sharded.then(|| ("shards".to_owned(), shards())));
    let inline = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let limits = SchemaGenerator::new(inline).into_root_schema_for::<Keys>().to_value();
    keys.extend(limits["properties"].as_object().cloned().unwrap_or_default());
    keys
}

fn shards() -> Value {
    or_variable(json!({
        "type": "integer", "minimum": 1, "maximum": MOST,
        "description": "Runs the stage in so many shards, each cached by itself and, on a cluster, a task of its own."
    }))
}

/// A value, or the variable that holds it.
fn or_variable(schema: Value) -> Value {
    let is_string = schema.get("type").is_some_and(|ty| ty == "string");
    if is_string {
        return schema;
    }
    let mut outer = Map::new();
    let mut inner = schema;
    if let Some(inner) = inner.as_object_mut() {
        for key in ["description", "default"] {
            outer.extend(inner.remove(key).map(|value| (key.to_owned(), value)));
        }
    }
    let variable = json!({ "type": "string", "pattern": "^\\$\\{[^}]+\\}$", "description": "a variable" });
    outer.insert("anyOf".to_owned(), json!([inner, variable]));
    Value::Object(outer)
}

/// The name of the definition that a stage's own schema is, which the table with common keys replaces.
fn own_definition(schema: &Value) -> Option<String> {
    let reference = schema.get("$ref")?.as_str()?;
    Some(reference.strip_prefix("#/$defs/")?.replace("%20", " "))
}

fn without(mut defs: Map<String, Value>, names: &[String]) -> Value {
    for name in names {
        defs.remove(name);
    }
    Value::Object(defs)
}
