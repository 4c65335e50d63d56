//! `--set`: one value laid over a variable (`rank=96`) or over a stage's parameter (`svd.rank=96`). Knows no stage.

use std::borrow::Cow;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Span, Value,
    error::{Fault, Mistake},
    limit, merge, near, shift,
    source::Source,
};

/// Lays one `--set` over the manifest.
pub(super) fn apply<'s>(root: &mut DeTable<'s>, set: &'s Source) -> Result<(), Box<Fault>> {
    let whole = set.start..set.start + set.text.len();
    let Some((path, _)) = set.text.split_once('=') else {
        return Err(Box::new(Fault::at(whole, Mistake::SetForm).hint("write `rank=96` or `svd.rank=96`")));
    };
    let value = value(set, path.len() + 1)?;
    let parts = parts(path, set.start);
    if parts.iter().any(|(part, _)| part.is_empty()) {
        return Err(Box::new(Fault::at(whole, Mistake::SetForm).hint("write `rank=96` or `svd.rank=96`")));
    }
    if parts.len() > limit::DEEPEST {
        return Err(Box::new(Fault::at(whole, Mistake::SetTooDeep).hint("a path has 80 parts at most")));
    }
    match parts.as_slice() {
        [(name, place)] => variable(root, name, place, value),
        parts => parameter(root, parts, value),
    }
}

fn variable<'s>(
    root: &mut DeTable<'s>,
    name: &str,
    place: &Span,
    value: Value<'s>,
) -> Result<(), Box<Fault>> {
    let known: Vec<String> = keys(root, "vars");
    if let Some(slot) = section(root, "vars").and_then(|vars| vars.get_mut(name)) {
        *slot = value;
        return Ok(());
    }
    let hint = if keys(root, "stage").iter().any(|stage| stage == name) {
        format!("`{name}` is a stage: name its parameter, as in `{name}.PARAMETER=VALUE`")
    } else {
        let hint = near::suggest(name, "variables", known.iter().map(String::as_str));
        if hint.starts_with("did") { hint } else { hint + "; a parameter is `STAGE.PARAMETER`" }
    };
    Err(Box::new(Fault::at(place.clone(), Mistake::UnknownVariable(name.to_owned())).hint(hint)))
}

fn parameter<'s>(
    root: &mut DeTable<'s>,
    parts: &[(&'s str, Span)],
    value: Value<'s>,
) -> Result<(), Box<Fault>> {
    let known = keys(root, "stage");
    let (name, place) = &parts[0];
    let Some(slot) = section(root, "stage").and_then(|stages| stages.get_mut(*name)) else {
        let hint = near::suggest(name, "stages", known.iter().map(String::as_str));
        return Err(Box::new(Fault::at(place.clone(), Mistake::SetStage((*name).to_owned())).hint(hint)));
    };
    let over = overlay(Some(slot), &parts[1..], value, name)?;
    // The stage's own header keeps its place: it is where a missing parameter belongs.
    let header = slot.span();
    let base = std::mem::replace(slot, Spanned::new(0..0, DeValue::Boolean(false)));
    *slot = Spanned::new(header, merge::stage(name, base, over).into_inner());
    Ok(())
}

/// The value to lay over `current` so that the part at `parts` becomes `value`.
fn overlay<'s>(
    current: Option<&Value<'s>>,
    parts: &[(&'s str, Span)],
    value: Value<'s>,
    path: &str,
) -> Result<Value<'s>, Box<Fault>> {
    let Some(((part, place), rest)) = parts.split_first() else { return Ok(value) };
    let deeper = format!("{path}.{part}");
    match current.map(Spanned::get_ref) {
        None | Some(DeValue::Table(_)) => {
            let below = current.and_then(|table| table.get_ref().get(part));
            let inner = overlay(below, rest, value, &deeper)?;
            let mut table = DeTable::new();
            table.insert(Spanned::new(place.clone(), Cow::Borrowed(*part)), inner);
            Ok(Spanned::new(place.clone(), DeValue::Table(table)))
        }
        Some(DeValue::Array(items)) => {
            let slot = part.parse::<usize>().ok().filter(|i| *i < items.len());
            let Some(slot) = slot else {
                let hint = format!("it has {} items, numbered from 0", items.len());
                let mistake = Mistake::SetThrough(path.to_owned(), "an array");
                return Err(Box::new(Fault::at(place.clone(), mistake).hint(hint)));
            };
            let inner = overlay(items.get(slot), rest, value, &deeper)?;
            let mut items = items.clone();
            if let Some(item) = items.get_mut(slot) {
                let below = std::mem::replace(item, Spanned::new(0..0, DeValue::Boolean(false)));
                *item = merge::value(below, inner);
            }
            Ok(Spanned::new(place.clone(), DeValue::Array(items)))
        }
        Some(_) => {
            let mistake = Mistake::SetThrough(path.to_owned(), "a plain value");
            Err(Box::new(Fault::at(place.clone(), mistake).hint(format!("set `{path}` itself"))))
        }
    }
}

/// The value after `=`: TOML, or a bare word as a string.
fn value(set: &Source, at: usize) -> Result<Value<'_>, Box<Fault>> {
    let tail = &set.text[at..];
    let raw = tail.trim();
    let start = set.start + at + (tail.len() - tail.trim_start().len());
    match DeValue::parse(raw) {
        Ok(value) if !raw.is_empty() => Ok(shift::value(value, start)),
        Err(error) if raw.starts_with(['[', '{', '"', '\'']) => {
            let place = error.span().map_or(start..start + raw.len(), |s| s.start + start..s.end + start);
            let mistake = Mistake::SetValue(error.message().to_owned());
            Err(Box::new(Fault::at(place, mistake).hint("a bare word is a string and needs no quotes")))
        }
        _ => Ok(Spanned::new(start..start + raw.len(), DeValue::String(Cow::Borrowed(raw)))),
    }
}

/// The dotted parts of a path and their places.
fn parts(path: &str, start: usize) -> Vec<(&str, Span)> {
    let mut at = start;
    let part = |part| {
        let word = str::trim(part);
        let from = at + (part.len() - part.trim_start().len());
        at += part.len() + 1;
        (word, from..from + word.len())
    };
    path.split('.').map(part).collect()
}

fn section<'t, 's>(root: &'t mut DeTable<'s>, name: &str) -> Option<&'t mut DeTable<'s>> {
    match root.get_mut(name).map(Spanned::get_mut) {
        Some(DeValue::Table(table)) => Some(table),
        _ => None,
    }
}

fn keys(root: &DeTable<'_>, section: &str) -> Vec<String> {
    let table = root.get(section).and_then(|value| value.get_ref().as_table());
    table.into_iter().flat_map(|table| table.keys().map(|key| key.get_ref().to_string())).collect()
}

#[cfg(test)]
mod tests;
