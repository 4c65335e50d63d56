//! The parts of a value that was JSON. Knows no meaning of theirs.

use minijinja::{
    Value,
    value::{DynObject, ValueKind},
};

/// A field that is there, if only as `null`.
pub(super) fn field(object: &Value, name: &str) -> Option<Value> {
    if object.kind() != ValueKind::Map {
        return None;
    }
    object.get_attr(name).ok().filter(|value| !value.is_undefined())
}

/// The elements of a list.
pub(super) fn elements(list: &Value) -> Option<Vec<Value>> {
    (list.kind() == ValueKind::Seq).then(|| list.try_iter().into_iter().flatten().collect())
}

/// The fields of an object in their order, each with its name.
pub(super) fn fields(object: &Value) -> Option<impl Iterator<Item = (Value, Value)> + '_> {
    object.as_object().filter(|_| object.kind() == ValueKind::Map).and_then(DynObject::try_iter_pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn each_kind_of_value_has_its_own_parts() {
        let object = value(r#"{"b": null, "a": [1, "x"]}"#);
        assert!(field(&object, "b").unwrap().is_none());
        assert_eq!(elements(&field(&object, "a").unwrap()).unwrap(), [Value::from(1), Value::from("x")]);
        let names: Vec<String> = fields(&object).unwrap().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["b", "a"], "in their order");
        assert!(elements(&object).is_none() && field(&object, "c").is_none());
        for other in ["null", "3", "\"a\"", "[\"a\"]", "true"] {
            assert!(field(&value(other), "a").is_none() && fields(&value(other)).is_none(), "{other}");
        }
        assert!(elements(&value("\"ab\"")).is_none(), "a string is no list");
    }
}
