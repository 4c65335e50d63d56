//! Variables: `${name}` in any string. A string that is exactly one `${name}` takes the variable's type; `$${` is a plain
//! `${`. Knows no stage and no environment.

use std::{borrow::Cow, collections::BTreeMap};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Span, Value,
    error::{Fault, Mistake},
    limit::{self, Budget},
    near,
    source::Sources,
};

/// The variables of a manifest, each with its final value.
#[derive(Debug, Clone)]
pub struct Vars<'s> {
    sources: &'s Sources,
    raw: BTreeMap<String, (Span, Value<'s>)>,
    done: BTreeMap<String, Option<Value<'s>>>,
    budget: Budget,
}

impl<'s> Vars<'s> {
    /// Gives every variable its final value; variables may use each other.
    pub(super) fn new(sources: &'s Sources, table: DeTable<'s>, faults: &mut Vec<Fault>) -> Self {
        let raw = table.into_iter().map(|(key, value)| (key.get_ref().to_string(), (key.span(), value)));
        let mut vars = Self { sources, raw: raw.collect(), done: BTreeMap::new(), budget: Budget::new() };
        let names: Vec<String> = vars.raw.keys().cloned().collect();
        for name in names {
            vars.settle(&name, &mut Vec::new(), faults);
        }
        vars
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.raw.len()
    }

    /// The places of the values that a piece of text draws from variables.
    pub fn origins(&self, text: &str) -> Vec<(String, Span)> {
        let names = pieces(text).filter_map(|piece| match piece {
            Piece::Variable { name, .. } => Some(name.to_owned()),
            _ => None,
        });
        names.filter_map(|name| self.raw.get(&name).map(|(_, value)| (name, value.span()))).collect()
    }

    /// Puts the variables into every string of a value. `None` after a fault, which has then been reported.
    pub(super) fn expand(&self, value: Value<'s>, faults: &mut Vec<Fault>) -> Option<Value<'s>> {
        let span = value.span();
        let inner = match value.into_inner() {
            DeValue::String(text) if text.contains("${") => self.string(&text, &span, faults),
            DeValue::Array(mut items) => {
                let mut whole = true;
                for item in items.iter_mut() {
                    let taken = std::mem::replace(item, Spanned::new(0..0, DeValue::Boolean(false)));
                    match self.expand(taken, faults) {
                        Some(value) => *item = value,
                        None => whole = false,
                    }
                }
                whole.then_some(DeValue::Array(items))
            }
            DeValue::Table(table) => {
                let mut out = DeTable::new();
                let mut whole = true;
                for (key, value) in table {
                    match self.expand(value, faults) {
                        Some(value) => drop(out.insert(key, value)),
                        None => whole = false,
                    }
                }
                whole.then_some(DeValue::Table(out))
            }
            plain => Some(plain),
        };
        inner.map(|value| Spanned::new(span, value))
    }

    /// Settles one variable. `stack` holds those being settled, for cycles.
    fn settle(&mut self, name: &str, stack: &mut Vec<String>, faults: &mut Vec<Fault>) {
        if self.done.contains_key(name) {
            return;
        }
        let Some((place, value)) = self.raw.get(name).cloned() else { return };
        if let Some(start) = stack.iter().position(|other| other == name) {
            let mut ring: Vec<&str> = stack[start..].iter().map(String::as_str).collect();
            ring.push(name);
            let mistake = Mistake::VariableCycle(ring.join(" → "));
            faults.push(Fault::at(place, mistake).hint("give one of them a plain value"));
            for member in &stack[start..] {
                self.done.insert(member.clone(), None);
            }
            return;
        }
        if stack.len() == limit::DEEPEST {
            faults.push(limit::too_deep(name, place));
            self.done.insert(name.to_owned(), None);
            return;
        }
        stack.push(name.to_owned());
        for needed in names(&value) {
            self.settle(&needed, stack, faults);
        }
        stack.pop();
        if !self.done.contains_key(name) {
            let mut value = self.expand(value, faults);
            if value.take_if(|value| limit::depth(value.get_ref()) > limit::DEEPEST).is_some() {
                faults.push(limit::too_deep(name, place));
            }
            self.done.insert(name.to_owned(), value);
        }
    }

    fn string(&self, text: &str, span: &Span, faults: &mut Vec<Fault>) -> Option<DeValue<'s>> {
        let mut out = String::new();
        let mut whole = true;
        for (at, piece) in pieces(text).enumerate() {
            let name = match piece {
                Piece::Plain(plain) => {
                    out.push_str(plain);
                    continue;
                }
                Piece::Open => {
                    let fault = Fault::at(span.clone(), Mistake::Unclosed);
                    faults.push(fault.hint("close it with `}`, or write `$${` for a plain `${`"));
                    return None;
                }
                Piece::Variable { name, .. } => name,
            };
            let place = || self.place(text, span, at);
            match self.done.get(name) {
                None => faults.push(self.unknown(name, place())),
                Some(None) => {} // its own fault has been reported
                Some(Some(value)) if !self.budget.take(value.get_ref(), place, faults) => return None,
                Some(Some(value)) if text.len() == name.len() + 3 => return Some(value.get_ref().clone()),
                Some(Some(value)) => match plain(value.get_ref()) {
                    Some(plain) => {
                        out.push_str(&plain);
                        continue;
                    }
                    None => faults.push(not_text(name, value, place())),
                },
            }
            whole = false;
        }
        whole.then_some(DeValue::String(Cow::Owned(out)))
    }

    fn unknown(&self, name: &str, place: Span) -> Fault {
        let hint = near::suggest(name, "variables", self.raw.keys().map(String::as_str));
        let more = if hint.starts_with("did") { "" } else { "; write `$${` for a plain `${`" };
        Fault::at(place, Mistake::UnknownVariable(name.to_owned())).hint(hint + more)
    }

    /// Where the `at`-th piece of a string stands in the file: escapes and quotes shift it, so it is looked for in the
    /// text as written.
    fn place(&self, text: &str, span: &Span, at: usize) -> Span {
        let nth = pieces(text).take(at).filter(|piece| matches!(piece, Piece::Variable { .. })).count();
        let written = pieces(self.sources.text(span)).filter_map(|piece| match piece {
            Piece::Variable { range, .. } => Some(range),
            _ => None,
        });
        written
            .skip(nth)
            .map(|range| span.start + range.start..span.start + range.end)
            .next()
            .unwrap_or(span.clone())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece<'t> {
    Plain(&'t str),
    Variable {
        name: &'t str,
        range: Span,
    },
    /// `${` without its end.
    Open,
}

/// Splits a string into plain text and variables.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &text[at..];
        if rest.is_empty() {
            return None;
        }
        if rest.starts_with("$${") {
            at += 3;
            return Some(Piece::Plain(&rest[1..3]));
        }
        if let Some(inner) = rest.strip_prefix("${") {
            let Some(end) = inner.find('}') else {
                at = text.len();
                return Some(Piece::Open);
            };
            let start = at;
            at += end + 3;
            return Some(Piece::Variable { name: &inner[..end], range: start..at });
        }
        let first = rest.chars().next().map_or(0, char::len_utf8); // perhaps a `$` that begins nothing
        let len = rest[first..].find('$').map_or(rest.len(), |i| i + first);
        at += len;
        Some(Piece::Plain(&rest[..len]))
    })
}

/// The variables that a value needs.
fn names(value: &Value<'_>) -> Vec<String> {
    match value.get_ref() {
        DeValue::String(text) => {
            let variables = pieces(text).filter_map(|piece| match piece {
                Piece::Variable { name, .. } => Some(name.to_owned()),
                _ => None,
            });
            variables.collect()
        }
        DeValue::Array(items) => items.iter().flat_map(names).collect(),
        DeValue::Table(table) => table.values().flat_map(names).collect(),
        _ => Vec::new(),
    }
}

/// A value as part of a longer string.
fn plain(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(x) => x.to_string(),
        DeValue::Float(x) => x.to_string(),
        DeValue::Boolean(x) => x.to_string(),
        DeValue::Datetime(x) => x.to_string(),
        DeValue::Array(_) | DeValue::Table(_) => return None,
    })
}

fn not_text(name: &str, value: &Value<'_>, place: Span) -> Fault {
    let found = value.get_ref().type_str();
    let article = if found == "array" { "an" } else { "a" };
    let hint = format!("let the string be `${{{name}}}` alone, and it becomes the {found}");
    Fault::at(place, Mistake::NotText { name: name.to_owned(), article, found })
        .hint(hint)
        .see(value.span(), "its value")
}

#[cfg(test)]
mod tests;
