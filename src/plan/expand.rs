//! Multiplies stages along the axes of their own matrices and of those upstream, and makes the nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{
    Node, PlanError,
    connect::{Link, Links},
    decode::{MOST_VARIANTS, Stage, Variant, too_many},
    variant::Shared,
};
use crate::manifest::{Fault, Span, near};

/// An axis: the number of the stage that has it, and its number there.
type AxisId = (usize, usize);

/// A choice of values, by axis.
type Choice = BTreeMap<AxisId, usize>;

/// A variant of a stage with the nodes that it reads.
#[derive(Debug, Clone)]
struct Row {
    choice: Choice,
    producers: Vec<usize>,
}

/// What was made of a stage: a choice and a node for each of its rows.
type Made = Vec<(Choice, usize)>;

/// Makes the nodes of all sound stages in order. Stages that need an unsound one are left out.
pub(super) fn nodes(
    mut stages: Vec<Stage<'_, '_>>,
    links: &Links,
    order: &[usize],
    folder: &dyn Fn(&Span) -> PathBuf,
    faults: &mut Vec<Fault<PlanError>>,
) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut made: BTreeMap<usize, Made> = BTreeMap::new();
    for &number in order {
        if stages[number].broken {
            continue;
        }
        let variants = std::mem::take(&mut stages[number].variants);
        let joiner = Joiner { number, stages: &stages, made: &made };
        let mut room = MOST_VARIANTS;
        let mut joined = |(variant, links): (&Variant, &Vec<Link>)| {
            let rows = joiner.rows(variant, links)?;
            let each = stages[number].entry.shards.as_ref().map_or(1, |of| of.get_ref() + 2);
            room =
                room.checked_sub(rows.len().saturating_mul(each)).ok_or_else(|| Some(joiner.too_many()))?;
            Ok::<_, Option<Box<Fault<PlanError>>>>(rows)
        };
        let rows: Result<Vec<Vec<Row>>, _> = variants.iter().zip(&links[number]).map(&mut joined).collect();
        let rows = match rows {
            Ok(rows) => rows,
            Err(fault) => {
                faults.extend(fault.map(|fault| *fault));
                continue;
            }
        };
        let labels = Labels::new(&stages, rows.iter().flatten().map(|row| &row.choice));
        let mut done = Made::new();
        for ((variant, rows), links) in variants.into_iter().zip(rows).zip(&links[number]) {
            let shared = Shared::new(&stages[number], variant, folder);
            for row in rows {
                let name = labels.name(&stages[number].entry.name, &row.choice);
                let node = shared.nodes(&name, (&row.producers, links), &mut nodes);
                done.push((row.choice, node));
            }
        }
        made.insert(number, done);
    }
    nodes
}

/// Joins the inputs of one stage: rows that agree on every axis they share.
struct Joiner<'j, 'm, 's> {
    number: usize,
    stages: &'j [Stage<'m, 's>],
    made: &'j BTreeMap<usize, Made>,
}

impl Joiner<'_, '_, '_> {
    /// The rows of a variant. `Err(None)` if a producer is unsound, which has been reported.
    fn rows(&self, variant: &Variant, links: &[Link]) -> Result<Vec<Row>, Option<Box<Fault<PlanError>>>> {
        let own = variant.own.iter().enumerate().map(|(axis, value)| ((self.number, axis), *value));
        let mut rows = vec![Row { choice: own.collect(), producers: Vec::new() }];
        for link in links {
            let producers = self.selected(link)?;
            let agree = |row: &Row, (choice, node): &(Choice, usize)| {
                let clash =
                    choice.iter().any(|(axis, value)| row.choice.get(axis).is_some_and(|own| own != value));
                (!clash).then(|| {
                    let mut joined = row.clone();
                    joined.choice.extend(choice);
                    joined.producers.push(*node);
                    joined
                })
            };
            let all = rows.iter().flat_map(|row| producers.iter().filter_map(|made| agree(row, made)));
            rows = all.take(MOST_VARIANTS + 1).collect();
            if rows.len() > MOST_VARIANTS {
                return Err(Some(self.too_many()));
            }
        }
        if rows.is_empty() {
            let entry = self.stages[self.number].entry;
            let fault = Fault::at(entry.place.clone(), PlanError::NoCombination(entry.name.clone()));
            return Err(Some(Box::new(fault.hint("name the variants it should read, as in `svd[rank=64]`"))));
        }
        Ok(rows)
    }

    fn too_many(&self) -> Box<Fault<PlanError>> {
        Box::new(too_many(self.stages[self.number].entry))
    }

    /// The nodes that a link may read. Axes selected by name no longer multiply the reader.
    fn selected(&self, link: &Link) -> Result<Made, Option<Box<Fault<PlanError>>>> {
        let made = self.made.get(&link.stage).ok_or(None)?;
        let mut rows = made.clone();
        for (axis, value) in &link.select {
            // A name that several axes share means none of them: each is called by its stage too.
            let alike = rows.iter().flat_map(|(choice, _)| choice.keys());
            let alike: BTreeSet<&AxisId> =
                alike.filter(|id| axis_name(self.stages, **id).1 == axis).collect();
            let plain = alike.len() == 1;
            let is_meant = |id: &AxisId| {
                let (stage, name) = axis_name(self.stages, *id);
                (plain && axis == name) || axis.split_once('.') == Some((stage, name))
            };
            rows.retain(|(choice, _)| {
                choice.iter().any(|(id, chosen)| is_meant(id) && label(self.stages, *id, *chosen) == value)
            });
            for (choice, _) in &mut rows {
                choice.retain(|id, _| !is_meant(id));
            }
        }
        if rows.is_empty() {
            let stage = &self.stages[link.stage].entry.name;
            let labels = Labels::new(self.stages, made.iter().map(|(choice, _)| choice));
            let names: Vec<String> = made.iter().map(|(choice, _)| labels.name(stage, choice)).collect();
            let hint = match names.as_slice() {
                [one] if one == stage => format!("`{stage}` has no matrix: write `{stage}`"),
                many => {
                    format!("there are {}", near::list(&many.iter().map(String::as_str).collect::<Vec<_>>()))
                }
            };
            let selector: Vec<String> =
                link.select.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
            let error =
                PlanError::NoVariant { stage: stage.clone(), selector: format!("[{}]", selector.join(",")) };
            return Err(Some(Box::new(Fault::at(link.place.clone(), error).hint(hint))));
        }
        Ok(rows)
    }
}

/// How the axes of a stage's variants are called: by parameter, and by stage too where two share a parameter's name.
struct Labels<'j, 'm, 's> {
    stages: &'j [Stage<'m, 's>],
    shared: BTreeSet<String>,
}

impl<'j, 'm, 's> Labels<'j, 'm, 's> {
    fn new<'c>(stages: &'j [Stage<'m, 's>], choices: impl Iterator<Item = &'c Choice>) -> Self {
        let axes: BTreeSet<AxisId> = choices.flat_map(|choice| choice.keys().copied()).collect();
        let mut seen = BTreeSet::new();
        let names = axes.into_iter().map(|id| axis_name(stages, id).1);
        let shared = names.filter(|name| !seen.insert(*name)).map(str::to_owned).collect();
        Self { stages, shared }
    }

    fn name(&self, stage: &str, choice: &Choice) -> String {
        if choice.is_empty() {
            return stage.to_owned();
        }
        let parts = choice.iter().map(|(id, value)| {
            let (owner, axis) = axis_name(self.stages, *id);
            let value = label(self.stages, *id, *value);
            if self.shared.contains(axis) {
                format!("{owner}.{axis}={value}")
            } else {
                format!("{axis}={value}")
            }
        });
        format!("{stage}[{}]", parts.collect::<Vec<_>>().join(","))
    }
}

fn axis_name<'j>(stages: &'j [Stage<'_, '_>], (stage, axis): AxisId) -> (&'j str, &'j str) {
    let entry = stages[stage].entry;
    (&entry.name, entry.matrix[axis].key.get_ref())
}

fn label<'j>(stages: &'j [Stage<'_, '_>], (stage, axis): AxisId, value: usize) -> &'j str {
    &stages[stage].entry.matrix[axis].values[value].0
}
