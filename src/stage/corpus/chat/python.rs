//! Values as Python prints them, because templates are written for it. Knows no template.

use std::io::{self, Write};

use minijinja::{Value, value::ValueKind};
use serde::Serialize;
use serde_json::ser::Formatter;

/// `json.dumps(value, ensure_ascii=False)`, which is `tojson` in chat templates: keys in their order, a space behind `,` and `:`.
pub(super) fn json(value: &Value) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Python);
    value.serialize(&mut serializer).expect("a value that was JSON is JSON");
    String::from_utf8(out).expect("JSON is UTF-8")
}

/// `str(value)`; `None` for lists and objects, whose form nobody means.
pub(super) fn text(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::String => value.as_str().map(str::to_owned),
        ValueKind::Bool => Some(if value.is_true() { "True" } else { "False" }.to_owned()),
        ValueKind::None => Some("None".to_owned()),
        ValueKind::Number => Some(json(value)),
        _ => None,
    }
}

struct Python;

impl Python {
    fn separate<W: Write + ?Sized>(out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
}

impl Formatter for Python {
    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        Self::separate(out, first)
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        Self::separate(out, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    /// Both print the fewest digits that read back; Python's exponent has a sign and at least two digits.
    fn write_f64<W: Write + ?Sized>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        let text = format!("{value:?}");
        let Some((digits, exponent)) = text.split_once('e') else { return out.write_all(text.as_bytes()) };
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        write!(out, "{digits}e{sign}{exponent:0>2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn json_is_spaced_and_keeps_its_order() {
        let check = |input: &str, expected: &str| assert_eq!(json(&value(input)), expected);
        check(
            r#"{"b":1,"a":[1,"x",{}],"c":{"z":null,"y":[]}}"#,
            r#"{"b": 1, "a": [1, "x", {}], "c": {"z": null, "y": []}}"#,
        );
        check(r#""\u00e9\u4e2d\"\\\n\u0001\u007f\u2028/""#, "\"é中\\\"\\\\\\n\\u0001\u{7f}\u{2028}/\"");
        check("[true,false,null]", "[true, false, null]");
        check("[18446744073709551615,-9223372036854775808]", "[18446744073709551615, -9223372036854775808]");
    }

    /// The right side is what Python 3.11 prints.
    #[test]
    fn numbers_are_those_of_python() {
        for (number, expected) in [
            ("1.0", "1.0"),
            ("-0.0", "-0.0"),
            ("0.1", "0.1"),
            ("1e22", "1e+22"),
            ("1e16", "1e+16"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("9999999999999998.0", "9999999999999998.0"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1.5e-7", "1.5e-07"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ] {
            assert_eq!(json(&value(number)), expected);
        }
    }

    #[test]
    fn simple_values_are_texts_and_others_are_not() {
        for (input, expected) in [
            ("\"a\"", "a"),
            ("true", "True"),
            ("false", "False"),
            ("null", "None"),
            ("3", "3"),
            ("1e16", "1e+16"),
        ] {
            assert_eq!(text(&value(input)).as_deref(), Some(expected));
        }
        assert_eq!((text(&value("[]")), text(&value("{}"))), (None, None));
    }
}
