//! One stage of a manifest: its common keys taken out, the rest untouched. Knows no stage.

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    Span, Value, Vars,
    error::{Fault, Mistake},
};

/// The keys that every stage has; a stage's own parameters need other names.
pub const COMMON: [&str; 9] =
    ["kind", "seed", "salt", "matrix", "shards", "timeout", "retry", "memory", "resources"];

/// One `[stage.NAME]`.
#[derive(Debug)]
pub struct Entry<'s> {
    /// The stage's name.
    pub name: String,
    /// Where the name is written.
    pub place: Span,
    /// The table's header.
    pub header: Span,
    /// The kind; the stage's name where none is given.
    pub kind: String,
    /// Where the kind is written.
    pub kind_place: Span,
    /// The stage's own seed.
    pub seed: Option<Spanned<u64>>,
    /// A text that sets this stage's key apart from others that are otherwise equal.
    pub salt: Option<String>,
    /// The axes over which the stage is multiplied.
    pub matrix: Vec<Axis<'s>>,
    /// How many shards the stage is run in.
    pub shards: Option<Spanned<usize>>,
    /// `timeout`, `retry`, `memory` and `resources`, as written.
    pub limits: DeTable<'s>,
    /// The stage's own parameters.
    pub table: DeTable<'s>,
    /// Parameters left out of `table` because of a fault that has been reported.
    pub broken: Vec<String>,
}

/// One axis of a matrix: a parameter and the values it takes.
#[derive(Debug, Clone)]
pub struct Axis<'s> {
    /// The parameter, as written.
    pub key: Spanned<DeString<'s>>,
    /// The values, each with the form it has in names: `svd[rank=64]`.
    pub values: Vec<(String, Value<'s>)>,
}

impl<'s> Entry<'s> {
    /// Reads one stage's table. `None` if it is none.
    pub(super) fn new(
        key: &Spanned<DeString<'s>>,
        value: Value<'s>,
        vars: &Vars<'s>,
        faults: &mut Vec<Fault>,
    ) -> Option<Self> {
        let name = key.get_ref().to_string();
        let header = value.span();
        if !is_name(&name) {
            let fault = Fault::at(key.span(), Mistake::StageName(name.clone()));
            faults.push(fault.hint("use letters, digits, `-` and `_`"));
        }
        let table = table(&format!("[stage.{name}]"), value, faults)?;
        let mut entry = Self {
            kind: name.clone(),
            name,
            place: key.span(),
            header,
            kind_place: key.span(),
            seed: None,
            salt: None,
            matrix: Vec::new(),
            shards: None,
            limits: DeTable::new(),
            table: DeTable::new(),
            broken: Vec::new(),
        };
        for (key, value) in table {
            match vars.expand(value, faults) {
                Some(value) => entry.take(key, value, faults),
                None => entry.broken.push(key.into_inner().into_owned()),
            }
        }
        entry.check_axes(faults);
        Some(entry)
    }

    fn take(&mut self, key: Spanned<DeString<'s>>, value: Value<'s>, faults: &mut Vec<Fault>) {
        let what = format!("`{}`", key.get_ref());
        match key.get_ref().as_ref() {
            "kind" => {
                if let Some(kind) = string(&what, &value, faults) {
                    self.kind = kind;
                    self.kind_place = value.span();
                } else {
                    self.broken.push("kind".to_owned());
                }
            }
            "seed" => self.seed = seed(&what, &value, faults).map(|seed| Spanned::new(value.span(), seed)),
            "salt" => {
                self.salt = match value.get_ref() {
                    DeValue::Integer(number) => Some(number.to_string()),
                    _ => string(&what, &value, faults),
                };
            }
            "matrix" => {
                let axes = table(&what, value, faults).unwrap_or_default();
                self.matrix = axes.into_iter().map(|(key, values)| Axis::new(key, values, faults)).collect();
            }
            "shards" => {
                self.shards = shards(&what, &value, faults).map(|of| Spanned::new(value.span(), of));
                if self.shards.is_none() {
                    self.broken.push("shards".to_owned());
                }
            }
            "timeout" | "retry" | "memory" | "resources" => drop(self.limits.insert(key, value)),
            _ => drop(self.table.insert(key, value)),
        }
    }

    fn check_axes(&mut self, faults: &mut Vec<Fault>) {
        for axis in &self.matrix {
            let name = axis.key.get_ref().to_string();
            if let Some((key, _)) = self.table.remove_entry(name.as_str()) {
                let fault = Fault::at(key.span(), Mistake::AxisAndParameter(name.clone()));
                faults.push(fault.hint("keep one of the two").see(axis.key.span(), "the axis"));
                self.broken.push(name.clone());
            }
            if let Some(seed) = self.seed.take_if(|_| name == "seed") {
                let fault = Fault::at(seed.span(), Mistake::AxisAndParameter(name.clone()));
                faults.push(fault.hint("keep one of the two").see(axis.key.span(), "the axis"));
            }
            if COMMON.contains(&name.as_str()) && name != "seed" {
                let fault = Fault::at(axis.key.span(), Mistake::AxisName(name));
                faults.push(fault.hint("an axis varies a parameter of the stage, or `seed`"));
            }
        }
        let is_parameter = |name: &str| name == "seed" || !COMMON.contains(&name);
        self.matrix.retain(|axis| !axis.values.is_empty() && is_parameter(axis.key.get_ref()));
    }
}

impl<'s> Axis<'s> {
    fn new(key: Spanned<DeString<'s>>, values: Value<'s>, faults: &mut Vec<Fault>) -> Self {
        let name = key.get_ref().to_string();
        let mut axis = Self { key, values: Vec::new() };
        let place = values.span();
        let DeValue::Array(items) = values.into_inner() else {
            let what = format!("axis `{name}` of the matrix");
            let fault = Fault::at(
                place,
                Mistake::WrongType { what, expected: "an array of values", found: "one value" },
            );
            faults.push(fault.hint("write `[64, 96]`"));
            return axis;
        };
        if items.is_empty() {
            let fault = Fault::at(place, Mistake::EmptyAxis(name));
            faults.push(fault.hint("give it a value, or remove the axis"));
            return axis;
        }
        for value in items {
            match label(value.get_ref()) {
                None => {
                    let found = value.get_ref().type_str();
                    let mistake = Mistake::AxisValue { axis: name.clone(), found };
                    let hint = "a string may hold anything but `[`, `]`, `,` and line breaks";
                    faults.push(Fault::at(value.span(), mistake).hint(hint));
                }
                Some(label) if axis.values.iter().any(|(other, _)| *other == label) => {
                    let mistake = Mistake::AxisTwice { axis: name.clone(), value: label };
                    faults.push(Fault::at(value.span(), mistake).hint("remove one of the two"));
                }
                Some(label) => axis.values.push((label, value)),
            }
        }
        axis
    }
}

/// A value as it stands in a stage's name.
fn label(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => {
            let plain = |c: char| !c.is_control() && !"[],".contains(c);
            text.chars().all(plain).then(|| text.to_string())
        }
        DeValue::Integer(x) => Some(x.to_string()),
        DeValue::Float(x) => Some(x.to_string()),
        DeValue::Boolean(x) => Some(x.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// The table in a value.
pub(super) fn table<'s>(what: &str, value: Value<'s>, faults: &mut Vec<Fault>) -> Option<DeTable<'s>> {
    let place = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(table),
        other => wrong(what, "a table", &other, place, faults),
    }
}

/// The string in a value.
pub(super) fn string(what: &str, value: &Value<'_>, faults: &mut Vec<Fault>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        other => wrong(what, "a string", other, value.span(), faults),
    }
}

/// The strings in an array.
pub(super) fn strings(what: &str, value: Value<'_>, faults: &mut Vec<Fault>) -> Vec<String> {
    let place = value.span();
    match value.into_inner() {
        DeValue::Array(items) => {
            let one = format!("a value in {what}");
            items.iter().filter_map(|item| string(&one, item, faults)).collect()
        }
        other => wrong(what, "an array of strings", &other, place, faults).unwrap_or_default(),
    }
}

/// The boolean in a value.
pub(super) fn boolean(what: &str, value: &Value<'_>, faults: &mut Vec<Fault>) -> Option<bool> {
    match value.get_ref() {
        DeValue::Boolean(yes) => Some(*yes),
        other => wrong(what, "`true` or `false`", other, value.span(), faults),
    }
}

/// The seed in a value.
pub(crate) fn seed(what: &str, value: &Value<'_>, faults: &mut Vec<Fault>) -> Option<u64> {
    let number = match value.get_ref() {
        DeValue::Integer(x) => u64::from_str_radix(x.as_str(), x.radix()).ok(),
        _ => None,
    };
    number.or_else(|| wrong(what, "a whole number from 0 to 2^64 - 1", value.get_ref(), value.span(), faults))
}

/// The number of shards in a value; whether there may be so many, the planner knows.
fn shards(what: &str, value: &Value<'_>, faults: &mut Vec<Fault>) -> Option<usize> {
    let number = match value.get_ref() {
        DeValue::Integer(x) => usize::from_str_radix(x.as_str(), x.radix()).ok(),
        _ => None,
    };
    number.or_else(|| wrong(what, "a whole number of at least 1", value.get_ref(), value.span(), faults))
}

pub(super) fn wrong<T>(
    what: &str,
    expected: &'static str,
    found: &DeValue<'_>,
    place: Span,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let found = match found {
        DeValue::Integer(x) if x.as_str().starts_with('-') => "a negative number",
        DeValue::Integer(_) => "an integer",
        DeValue::Array(_) => "an array",
        DeValue::String(_) => "a string",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Table(_) => "a table",
    };
    let hint = match expected {
        "a table" => "write it as a section, or as `{ key = value }`",
        "a string" => "put it in quotes",
        "an array of strings" => "write `[\"…\"]`",
        "`true` or `false`" => "write it without quotes",
        "a whole number of at least 1" => "the stage is run in so many shards",
        _ => "any such number will do; equal seeds give equal results",
    };
    faults.push(Fault::at(place, Mistake::WrongType { what: what.to_owned(), expected, found }).hint(hint));
    None
}
