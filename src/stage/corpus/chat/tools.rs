//! Functions as the developer message shows them: types in the manner of TypeScript. Knows no message.
//!
//! The layout is the published template's with all its oddities, such as the line break before the type of a nested property and the
//! comma behind a default: the model is served with it.

use minijinja::Value;

use super::{
    Fault,
    parts::{elements, field, fields},
    python,
};

/// What the template cannot render: it stops with an error there.
const REFUSED: Fault = Fault::Unfit("tool-schema");

/// Arrays of objects whose type is longer are arrays of `any`.
const LONGEST: usize = 50;

/// The namespace of the functions.
pub(super) fn namespace(name: &str, tools: &[Value]) -> Result<String, Fault> {
    let mut parts = vec![format!("## {name}\n\nnamespace {name} {{\n\n")];
    for tool in tools {
        let tool = field(tool, "function").filter(Value::is_true).unwrap_or_else(|| tool.clone());
        let parameters = field(&tool, "parameters").unwrap_or_default();
        parts.push(format!("// {}\ntype {} = ", string(&tool, "description")?, string(&tool, "name")?));
        let Some(properties) = properties(&parameters)? else {
            parts.push("() => any;\n\n".to_owned());
            continue;
        };
        parts.push("(_: {\n".to_owned());
        for (name, spec) in properties {
            parts.push(parameter(&name, &spec, required(&parameters, &name)?)?);
        }
        parts.push("}) => any;\n\n".to_owned());
    }
    parts.push(format!("}} // namespace {name}"));
    Ok(parts.concat())
}

fn parameter(name: &str, spec: &Value, required: bool) -> Result<String, Fault> {
    let is = |name| field(spec, name).is_some_and(|value| value.is_true());
    let description =
        if is("description") { format!("// {}\n", string(spec, "description")?) } else { String::new() };
    let default = match field(spec, "default") {
        None => String::new(),
        Some(_) if is("enum") => format!(", // default: {}", string(spec, "default")?),
        Some(_) if is("oneOf") => format!("// default: {}", string(spec, "default")?),
        Some(default) => format!(", // default: {}", python::json(&default)),
    };
    let sign = if required { ":" } else { "?:" };
    Ok(format!("{description}{name}{sign} {}{default},\n", kind(spec)?))
}

/// The type of a schema.
fn kind(spec: &Value) -> Result<String, Fault> {
    let null =
        if field(spec, "nullable").is_some_and(|nullable| nullable.is_true()) { " | null" } else { "" };
    let given = field(spec, "type").unwrap_or_default();
    if given.as_str() == Some("array") {
        return Ok(array(spec)? + null);
    }
    if let Some(kinds) = elements(&given).filter(|kinds| !kinds.is_empty()) {
        return joined(&kinds, " | ");
    }
    if let Some(variants) = field(spec, "oneOf").filter(Value::is_true) {
        return union(&elements(&variants).ok_or(REFUSED)?);
    }
    match given.as_str() {
        Some("string") => match field(spec, "enum").filter(Value::is_true) {
            Some(names) => Ok(format!("\"{}\"", joined(&elements(&names).ok_or(REFUSED)?, "\" | \"")?)),
            None => Ok(format!("string{null}")),
        },
        Some("number" | "integer") => Ok("number".to_owned()),
        Some("boolean") => Ok("boolean".to_owned()),
        Some("object") => object(spec),
        _ => Ok("any".to_owned()),
    }
}

fn array(spec: &Value) -> Result<String, Fault> {
    let Some(items) = field(spec, "items").filter(Value::is_true) else { return Ok("any[]".to_owned()) };
    // A simple type has no other form here: not its names, and not `null`.
    let inner = match field(&items, "type").unwrap_or_default().as_str() {
        Some("string") => "string".to_owned(),
        Some("number" | "integer") => "number".to_owned(),
        Some("boolean") => "boolean".to_owned(),
        _ => kind(&items)?,
    };
    let any = inner == "object | object" || inner.chars().count() > LONGEST;
    Ok(if any { "any[]".to_owned() } else { inner + "[]" })
}

fn union(variants: &[Value]) -> Result<String, Fault> {
    let one = |variant: &Value| {
        let description = match field(variant, "description").filter(Value::is_true) {
            Some(_) => format!("// {}", string(variant, "description")?),
            None => String::new(),
        };
        let default = field(variant, "default");
        let default = default.map(|default| format!("{:20}// default: {}", "", python::json(&default)));
        Ok(kind(variant)? + &description + &default.unwrap_or_default())
    };
    Ok(variants.iter().map(one).collect::<Result<Vec<_>, Fault>>()?.join(" | \n"))
}

fn object(spec: &Value) -> Result<String, Fault> {
    let Some(properties) = properties(spec)? else { return Ok("object".to_owned()) };
    let mut parts = Vec::new();
    for (name, property) in properties {
        let sign = if required(spec, &name)? { ":" } else { "?:" };
        parts.push(format!("{name}{sign} \n{:16}{}", "", kind(&property)?));
    }
    Ok(format!("{{\n{}}}", parts.join(", ")))
}

/// The properties in their order; `None` where there are none.
fn properties(spec: &Value) -> Result<Option<Vec<(String, Value)>>, Fault> {
    let Some(properties) = field(spec, "properties").filter(Value::is_true) else { return Ok(None) };
    let pairs = fields(&properties).ok_or(REFUSED)?;
    Ok(Some(pairs.map(|(name, value)| (name.to_string(), value)).collect()))
}

fn required(spec: &Value, name: &str) -> Result<bool, Fault> {
    let Some(names) = field(spec, "required").filter(Value::is_true) else { return Ok(false) };
    Ok(elements(&names).ok_or(REFUSED)?.iter().any(|other| other.as_str() == Some(name)))
}

fn string(spec: &Value, name: &str) -> Result<String, Fault> {
    field(spec, name).and_then(|value| value.as_str().map(str::to_owned)).ok_or(REFUSED)
}

fn joined(values: &[Value], between: &str) -> Result<String, Fault> {
    let parts: Option<Vec<String>> = values.iter().map(python::text).collect();
    Ok(parts.ok_or(REFUSED)?.join(between))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    fn namespaced(tool: &str) -> Result<String, Fault> {
        namespace("f", &[value(tool)])
    }

    #[test]
    fn a_function_may_stand_without_its_frame() {
        let bare = r#"{"name": "n", "description": "d"}"#;
        let expected = "## f\n\nnamespace f {\n\n// d\ntype n = () => any;\n\n} // namespace f";
        assert_eq!(namespaced(bare).as_deref(), Ok(expected));
        assert_eq!(
            namespaced(&format!(r#"{{"type": "function", "function": {bare}}}"#)).as_deref(),
            Ok(expected)
        );
    }

    #[test]
    fn what_the_template_stops_at_is_refused() {
        let of = |spec: &str| {
            format!(r#"{{"name": "n", "description": "d", "parameters": {{"properties": {{"p": {spec}}}}}}}"#)
        };
        for tool in [
            r#"{"name": "n"}"#.to_owned(),
            r#"{"description": "d"}"#.to_owned(),
            r#"{"name": "n", "description": null}"#.to_owned(),
            "3".to_owned(),
            of(r#"{"type": "string", "enum": ["a"], "default": 1}"#),
            of(r#"{"oneOf": [{}], "default": null}"#),
            of(r#"{"description": 3}"#),
            of(r#"{"type": "object", "properties": [1]}"#),
            of(r#"{"type": ["string", ["null"]]}"#),
        ] {
            assert_eq!(namespaced(&tool), Err(REFUSED), "{tool}");
        }
        assert!(namespaced(&of(r#"{"type": "string", "enum": ["a"], "default": "a"}"#)).is_ok());
    }

    #[test]
    fn a_long_inner_type_is_any() {
        let of = |n: usize| {
            kind(&value(&format!(r#"{{"type": "array", "items": {{"type": ["{}"]}}}}"#, "é".repeat(n))))
        };
        assert_eq!(of(50).unwrap(), "é".repeat(50) + "[]");
        assert_eq!(of(51).unwrap(), "any[]");
    }

    #[test]
    fn a_schema_that_is_no_object_is_any() {
        for spec in ["true", "null", "[]", "\"string\""] {
            assert_eq!(kind(&value(spec)).unwrap(), "any", "{spec}");
        }
    }
}
