//! How deep and how large a manifest may become. A few lines of variables can stand for more than any machine holds.

use std::cell::Cell;

use toml::de::DeValue;

use super::{
    Span, Value,
    error::{Fault, Mistake},
};

/// As deep as TOML may be written: tables and arrays in each other, variables that need each other, parts of a `--set`.
pub(super) const DEEPEST: usize = 80;

/// How many bytes variables may put into a manifest.
const LARGEST: usize = 64 << 20;

/// What is left of that; none after it did not suffice.
#[derive(Debug, Clone)]
pub(super) struct Budget(Cell<Option<usize>>);

impl Budget {
    /// All of it.
    pub(super) fn new() -> Self {
        Self(Cell::new(Some(LARGEST)))
    }

    /// Whether there is room for one more copy of a value. The first time that there is none is a fault.
    pub(super) fn take(
        &self,
        value: &DeValue<'_>,
        place: impl FnOnce() -> Span,
        faults: &mut Vec<Fault>,
    ) -> bool {
        let before = self.0.get();
        let left = before.and_then(|before| before.checked_sub(size(value)));
        self.0.set(left);
        if left.is_none() && before.is_some() {
            let fault = Fault::at(place(), Mistake::VariablesTooLarge);
            faults.push(fault.hint("all that stands for variables may take 64 MiB"));
        }
        left.is_some()
    }
}

/// The memory that a value takes, about.
fn size(value: &DeValue<'_>) -> usize {
    let below = match value {
        DeValue::String(text) => text.len(),
        DeValue::Array(items) => items.iter().map(|item| size(item.get_ref())).sum(),
        DeValue::Table(table) => {
            table.iter().map(|(key, value)| key.get_ref().len() + size(value.get_ref())).sum()
        }
        _ => 0,
    };
    size_of::<Value<'_>>() + below
}

/// The fault of a variable that goes beyond [`DEEPEST`].
pub(super) fn too_deep(name: &str, place: Span) -> Fault {
    let hint = "variables in variables, and tables in tables, go 80 levels deep at most";
    Fault::at(place, Mistake::VariableTooDeep(name.to_owned())).hint(hint)
}

/// How many tables and arrays are in each other.
pub(super) fn depth(value: &DeValue<'_>) -> usize {
    match value {
        DeValue::Array(items) => 1 + items.iter().map(|item| depth(item.get_ref())).max().unwrap_or(0),
        DeValue::Table(table) => 1 + table.values().map(|value| depth(value.get_ref())).max().unwrap_or(0),
        _ => 0,
    }
}
