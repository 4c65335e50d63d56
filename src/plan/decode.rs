//! From a stage's table to the stage: finds the kind, decodes, checks. All faults of a table are found in one go.

use std::borrow::Cow;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{PlanError, limits, manual, recipe};
use crate::{
    engine::limits::Limits,
    manifest::{COMMON, Entry, Fault, Manifest, Span, entry, near},
    stage::{self, InputPort, Invalid, shards::MOST, table::Planned},
};

/// No stage has more variants.
pub(super) const MOST_VARIANTS: usize = 10_000;

/// A stage of the manifest with its decoded variants.
pub(super) struct Stage<'m, 's> {
    pub(super) entry: &'m Entry<'s>,
    pub(super) row: Option<&'static stage::table::Entry>,
    pub(super) limits: Limits,
    /// One for each combination of the stage's own matrix; fewer after faults.
    pub(super) variants: Vec<Variant>,
    /// Whether a fault was reported, so that nothing can be built on it.
    pub(super) broken: bool,
}

/// A decoded stage with one combination of its matrix.
pub(super) struct Variant {
    /// The table as text, if another host may need it.
    pub(super) recipe: Option<String>,
    /// For each axis of the matrix, the number of its value.
    pub(super) own: Vec<usize>,
    pub(super) planned: Box<dyn Planned>,
    pub(super) seed: u64,
    /// The inputs, each with the place of the text that names it.
    pub(super) inputs: Vec<(InputPort, Span)>,
    /// Where parameters stand, for faults found later.
    pub(super) places: Places,
}

/// Finds the row of every stage's kind.
pub(super) fn rows(
    manifest: &Manifest<'_>,
    table: &'static [stage::table::Entry],
    faults: &mut Vec<Fault<PlanError>>,
) -> Vec<Option<&'static stage::table::Entry>> {
    let mut find = |entry: &Entry<'_>| {
        let row = table.iter().find(|row| row.kind == entry.kind);
        if row.is_none() && !entry.broken.iter().any(|key| key == "kind") {
            let hint = match near::nearest(&entry.kind, table.iter().map(|row| row.kind)) {
                Some(kind) => format!("did you mean `{kind}`?"),
                None if entry.kind_place == entry.place => {
                    "the kind defaults to the stage's name: give one with `kind = …`; `mla-run stages` lists them"
                        .to_owned()
                }
                None => "`mla-run stages` lists the kinds".to_owned(),
            };
            let error = PlanError::UnknownKind(entry.kind.clone());
            faults.push(Fault::at(entry.kind_place.clone(), error).hint(hint));
        }
        row
    };
    manifest.stages.iter().map(&mut find).collect()
}

/// Decodes every variant of a stage.
pub(super) fn stage<'m, 's>(
    manifest: &Manifest<'s>,
    entry: &'m Entry<'s>,
    (row, table): (Option<&'static stage::table::Entry>, &[stage::table::Entry]),
    faults: &mut Vec<Fault<PlanError>>,
) -> Stage<'m, 's> {
    let before = faults.len();
    let limits = limits::decode(&entry.limits, &entry.header, faults);
    faults.extend(row.and_then(|row| unfit(entry, row, table)));
    let broken = row.is_none() || faults.len() > before;
    let mut stage = Stage { entry, row, limits, variants: Vec::new(), broken };
    let Some(row) = row else { return stage };
    let variants = entry.matrix.iter().map(|axis| axis.values.len());
    if variants.fold(1, usize::saturating_mul) > MOST_VARIANTS {
        faults.push(too_many(entry));
        stage.broken = true;
        return stage;
    }
    for own in combinations(entry) {
        let mut table = entry.table.clone();
        let mut seed = entry.seed.as_ref().map_or(manifest.seed, |seed| *seed.get_ref());
        for (axis, value) in entry.matrix.iter().zip(&own) {
            let value = &axis.values[*value].1;
            if axis.key.get_ref() == "seed" {
                let mut mistakes = Vec::new();
                seed = entry::seed("`seed`", value, &mut mistakes).unwrap_or_default();
                stage.broken |= !mistakes.is_empty();
                faults.extend(mistakes.into_iter().map(Fault::from));
            } else {
                table.insert(axis.key.clone(), value.clone());
            }
        }
        let places = Places::of(&table, entry);
        let recipe = manifest.slurm.as_ref().and_then(|_| recipe::write(&table, &entry.header));
        let (planned, found) = decode(manifest, entry, row, table);
        let whole = found.is_empty() && entry.broken.is_empty();
        let invalid = planned
            .as_ref()
            .filter(|_| whole)
            .and_then(|planned| planned.check(entry.shards.is_some()).err());
        stage.broken |= !whole || invalid.is_some();
        faults.extend(found);
        faults.extend(invalid.map(|invalid| places.invalid(invalid)));
        if let Some(planned) = planned {
            let inputs = planned.inputs().into_iter().map(|input| {
                let place = places.find(&input.port);
                (input, place)
            });
            stage.variants.push(Variant { own, recipe, inputs: inputs.collect(), planned, seed, places });
        }
    }
    stage
}

/// What is wrong with a stage's number of shards.
fn unfit(
    entry: &Entry<'_>,
    row: &stage::table::Entry,
    table: &[stage::table::Entry],
) -> Option<Fault<PlanError>> {
    let shards = entry.shards.as_ref()?;
    let fault = |error| Some(Fault::at(shards.span(), error));
    if !row.sharded {
        let kinds: Vec<&str> = table.iter().filter(|row| row.sharded).map(|row| row.kind).collect();
        return fault(PlanError::NoShards(row.kind))
            .map(|fault| fault.hint(format!("these kinds can: {}", near::list(&kinds))));
    }
    let of = *shards.get_ref();
    if (1..=MOST).contains(&of) { None } else { fault(PlanError::Shards(of)) }
}

/// Decodes a table. After a fault the key at fault is left out and the rest decoded again, so that all are found; the stage
/// that then comes out still tells its inputs.
fn decode<'s>(
    manifest: &Manifest<'s>,
    entry: &Entry<'s>,
    row: &stage::table::Entry,
    mut table: DeTable<'s>,
) -> (Option<Box<dyn Planned>>, Vec<Fault<PlanError>>) {
    let mut faults = Vec::new();
    let mut left_out = entry.broken.clone();
    loop {
        let input = toml::de::Deserializer::from(Spanned::new(entry.header.clone(), table.clone()));
        let error = match (row.decode)(input) {
            Ok(planned) => return (Some(planned), faults),
            Err(error) => error,
        };
        if error.message().starts_with("missing field") {
            let present = |name: &str| table.contains_key(name) || left_out.iter().any(|key| key == name);
            let missing = manual::parameters(row).into_iter().filter(|p| p.required && !present(&p.name));
            let before = faults.len();
            faults.extend(missing.map(|parameter| lacks(entry, &parameter)));
            // A field missing deeper in a value, or one that the schema does not call required.
            let within = key_at(&table, error.span().as_ref());
            if faults.len() == before && (within.is_some() || left_out.is_empty()) {
                faults.push(translate(manifest, row, &error, (&table, &entry.header)));
            }
            let Some(key) = within else { return (None, faults) };
            table.remove(key.as_str());
            left_out.push(key);
            continue;
        }
        faults.push(translate(manifest, row, &error, (&table, &entry.header)));
        let Some(key) = key_at(&table, error.span().as_ref()) else { return (None, faults) };
        table.remove(key.as_str());
        left_out.push(key);
    }
}

/// The key of the table whose text or value holds a place.
fn key_at(table: &DeTable<'_>, place: Option<&Span>) -> Option<String> {
    let place = place?;
    let holds = |span: Span| span.start <= place.start && place.end <= span.end;
    let found = table.iter().find(|(key, value)| holds(key.span()) || holds(reach(value)));
    found.map(|(key, _)| key.get_ref().to_string())
}

/// The text that a value covers; a table in `[a.b]` form covers more than its header.
fn reach(value: &Spanned<DeValue<'_>>) -> Span {
    let own = value.span();
    let join = |a: Span, b: Span| a.start.min(b.start)..a.end.max(b.end);
    match value.get_ref() {
        DeValue::Table(table) => {
            table.iter().fold(own, |span, (key, value)| join(join(span, key.span()), reach(value)))
        }
        DeValue::Array(items) => items.iter().map(reach).fold(own, join),
        _ => own,
    }
}

fn lacks(entry: &Entry<'_>, parameter: &manual::Parameter) -> Fault<PlanError> {
    let hint = match parameter.summary() {
        "" => format!("add `{} = …` ({})", parameter.name, parameter.ty),
        summary => format!("add `{} = …` ({}): {summary}", parameter.name, parameter.ty),
    };
    let error = PlanError::MissingParameter { stage: entry.name.clone(), parameter: parameter.name.clone() };
    Fault::at(entry.header.clone(), error).hint(hint)
}

/// Puts a decoder's message into the words of the manifest.
fn translate(
    manifest: &Manifest<'_>,
    row: &stage::table::Entry,
    error: &toml::de::Error,
    (table, header): (&DeTable<'_>, &Span),
) -> Fault<PlanError> {
    let place = error.span().unwrap_or_else(|| header.clone());
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let mut fault = match quoted.split_first() {
        Some((word, known)) if message.starts_with("unknown field") => {
            let common = COMMON.iter().copied().filter(|_| key_of_stage(row, known));
            let hint = near::suggest(word, "parameters", known.iter().copied().chain(common));
            let error = PlanError::UnknownParameter { parameter: (*word).to_owned(), kind: row.kind };
            Fault::at(place, error).hint(hint)
        }
        Some((word, known)) if message.starts_with("unknown variant") => {
            let hint = near::suggest(word, "values", known.iter().copied());
            Fault::at(place, PlanError::UnknownWord((*word).to_owned())).hint(hint)
        }
        _ => {
            let key = key_at(table, Some(&place));
            let mut fault = Fault::at(place, PlanError::Value(in_words(message).into_owned()));
            fault.hint = key.and_then(|key| value_hint(row, &key, message));
            fault
        }
    };
    let written = fault.place.as_ref().map(|place| manifest.sources.text(place)).unwrap_or_default();
    for (name, origin) in manifest.vars.origins(written) {
        fault = fault.see(origin, format!("`{name}` is set here"));
    }
    fault
}

/// What to write in place of a value of the wrong type.
fn value_hint(row: &stage::table::Entry, key: &str, message: &str) -> Option<String> {
    let quoted =
        message.strip_prefix("invalid type: string \"").and_then(|rest| rest.split_once("\", expected "));
    if let Some((text, _)) =
        quoted.filter(|(text, _)| text.parse::<f64>().is_ok() || matches!(*text, "true" | "false"))
    {
        return Some(format!("write it without quotes: `{text}`"));
    }
    let parameter = manual::parameters(row).into_iter().find(|parameter| parameter.name == key)?;
    Some(format!("`{key}` ({}): {}", parameter.ty, parameter.summary()))
}

/// Whether the known names are those of the stage itself and not of a table inside it.
fn key_of_stage(row: &stage::table::Entry, known: &[&str]) -> bool {
    manual::parameters(row).iter().all(|parameter| known.contains(&parameter.name.as_str()))
}

/// Names of machine types become plain words: `invalid type: string "x", expected u32`.
pub(super) fn in_words(message: &str) -> Cow<'_, str> {
    let Some((found, expected)) = message.split_once(", expected ") else { return message.into() };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a nonzero u8" | "a nonzero u16" | "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => {
            "a whole number of at least 1"
        }
        other => other,
    };
    let found =
        found.strip_prefix("invalid type: ").or(found.strip_prefix("invalid value: ")).unwrap_or(found);
    format!("expected {expected}, found {found}").into()
}

/// What is said of a stage with more than [`MOST_VARIANTS`].
pub(super) fn too_many(entry: &Entry<'_>) -> Fault<PlanError> {
    let fault = Fault::at(entry.place.clone(), PlanError::TooManyVariants(entry.name.clone()));
    fault.hint("every axis multiplies them, and so do the axes of its inputs: leave some out")
}

/// Every combination of the axes' values; a stage without a matrix has the one empty combination.
fn combinations(entry: &Entry<'_>) -> Vec<Vec<usize>> {
    entry.matrix.iter().fold(vec![Vec::new()], |rows, axis| {
        let extend = |row: Vec<usize>| {
            (0..axis.values.len()).map(move |value| row.iter().copied().chain([value]).collect::<Vec<_>>())
        };
        rows.into_iter().flat_map(extend).collect()
    })
}

/// Where the parameters of a stage stand.
pub(super) struct Places {
    header: Span,
    values: Vec<(String, Span)>,
}

impl Places {
    fn of(table: &DeTable<'_>, entry: &Entry<'_>) -> Self {
        let mut values = Vec::new();
        for (key, value) in table {
            collect(key.get_ref().to_string(), value, &mut values);
        }
        Self { header: entry.header.clone(), values }
    }

    /// The place of a dotted parameter: of its value, else of the nearest value around it, else of the stage's header.
    pub(super) fn find(&self, parameter: &str) -> Span {
        let mut path = parameter;
        loop {
            if let Some((_, place)) = self.values.iter().find(|(name, _)| name == path) {
                return place.clone();
            }
            match path.rsplit_once('.') {
                Some((outer, _)) => path = outer,
                None => return self.header.clone(),
            }
        }
    }

    /// A fault that a stage found in its own parameters.
    pub(super) fn invalid(&self, invalid: Invalid) -> Fault<PlanError> {
        let place = self.find(&invalid.param);
        let named = invalid.message.contains(&format!("`{}`", invalid.param));
        let error = if named {
            PlanError::Value(invalid.message)
        } else {
            PlanError::Invalid { parameter: invalid.param, message: invalid.message }
        };
        let mut fault = Fault::at(place, error);
        fault.hint = invalid.hint;
        fault
    }
}

fn collect(path: String, value: &Spanned<DeValue<'_>>, into: &mut Vec<(String, Span)>) {
    match value.get_ref() {
        DeValue::Table(table) => {
            for (key, value) in table {
                collect(format!("{path}.{}", key.get_ref()), value, into);
            }
        }
        DeValue::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                collect(format!("{path}.{i}"), value, into);
            }
        }
        _ => {}
    }
    into.push((path, value.span()));
}
