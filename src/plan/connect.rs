//! Joins inputs to the outputs that they name.

use std::collections::{BTreeMap, BTreeSet};

use super::{PlanError, decode::Stage, order, target::Target};
use crate::{
    engine::action::OutputPort,
    manifest::{Fault, Span, near},
    stage::{ANY, InputPort},
};

/// An input that has found its producer.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// The input's port.
    pub(super) port: String,
    /// The producer's number among the stages.
    pub(super) stage: usize,
    /// The producer's output.
    pub(super) output: &'static str,
    /// Variants asked for by name.
    pub(super) select: Vec<(String, String)>,
    /// Where the input is written.
    pub(super) place: Span,
}

/// The links of every variant of every stage.
pub(super) type Links = Vec<Vec<Vec<Link>>>;

/// Joins the inputs of all stages; returns the links and the edges `(reader, producer)`.
pub(super) fn connect(
    stages: &mut [Stage<'_, '_>],
    faults: &mut Vec<Fault<PlanError>>,
) -> (Links, BTreeSet<(usize, usize)>) {
    let names: BTreeMap<&str, usize> =
        stages.iter().enumerate().map(|(i, stage)| (stage.entry.name.as_str(), i)).collect();
    let mut links: Links = Vec::with_capacity(stages.len());
    let mut edges = BTreeSet::new();
    for reader in 0..stages.len() {
        let mut found = Vec::new();
        let mut whole = true;
        for variant in &stages[reader].variants {
            let mut row = Vec::new();
            for (input, place) in &variant.inputs {
                match link(&names, stages, reader, (input, place)) {
                    Ok(link) => {
                        edges.insert((reader, link.stage));
                        row.push(link);
                    }
                    Err(fault) => {
                        whole = false;
                        faults.push(*fault);
                    }
                }
            }
            found.push(row);
        }
        stages[reader].broken |= !whole;
        links.push(found);
    }
    for walk in order::cycles(stages.len(), &edges) {
        faults.push(cycle(&walk, stages, &links));
    }
    (links, edges)
}

fn link(
    names: &BTreeMap<&str, usize>,
    stages: &[Stage<'_, '_>],
    reader: usize,
    (input, place): (&InputPort, &Span),
) -> Result<Link, Box<Fault<PlanError>>> {
    let fail = |error: PlanError, hint: String| Box::new(Fault::at(place.clone(), error).hint(hint));
    let Some(target) = Target::parse(&input.from) else {
        let hint = "write `STAGE`, `STAGE.OUTPUT` or `STAGE[AXIS=VALUE]`".to_owned();
        return Err(fail(PlanError::Target(input.from.clone()), hint));
    };
    let Some(stage) = names.get(target.stage).copied() else {
        let hint = near::suggest(target.stage, "stages", names.keys().copied());
        return Err(fail(PlanError::UnknownStage(target.stage.to_owned()), hint));
    };
    if stage == reader {
        let hint = offer(stages, input, Some(reader));
        return Err(fail(PlanError::SelfEdge(target.stage.to_owned()), hint));
    }
    let outputs = stages[stage].row.map_or(&[] as &[OutputPort], |row| row.outputs);
    let output = if stages[stage].row.is_none() {
        "" // its unknown kind has been reported; the edge still counts for cycles
    } else {
        choose(outputs, input, &target).map_err(|error| {
            let hint = match &error {
                PlanError::UnknownPort { port, .. } => {
                    near::suggest(port, "outputs", outputs.iter().map(|output| output.name))
                }
                PlanError::Ambiguous { .. } => {
                    let fitting = outputs.iter().filter(|output| input.takes(output.kind));
                    let choices: Vec<String> =
                        fitting.map(|output| format!("`{}.{}`", input.from, output.name)).collect();
                    format!("write {}", choices.join(" or "))
                }
                _ => offer(stages, input, Some(reader)),
            };
            fail(error, hint)
        })?
    };
    let select = target.select.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned()));
    Ok(Link { port: input.port.to_string(), stage, output, select: select.collect(), place: place.clone() })
}

fn choose(
    outputs: &'static [OutputPort],
    input: &InputPort,
    target: &Target<'_>,
) -> Result<&'static str, PlanError> {
    let wrong = |from: String, found: String| PlanError::WrongKind {
        input: input.port.to_string(),
        wanted: input.kind,
        from,
        found,
    };
    if let Some(port) = target.port {
        let Some(output) = outputs.iter().find(|output| output.name == port) else {
            return Err(PlanError::UnknownPort { stage: target.stage.to_owned(), port: port.to_owned() });
        };
        let from = format!("output `{}` of stage `{}`", port, target.stage);
        return if input.takes(output.kind) {
            Ok(output.name)
        } else {
            Err(wrong(from, format!("`{}`", output.kind)))
        };
    }
    let mut fitting = outputs.iter().filter(|output| input.takes(output.kind));
    match (fitting.next(), fitting.next()) {
        (Some(output), None) => Ok(output.name),
        (Some(_), Some(_)) => {
            Err(PlanError::Ambiguous { stage: target.stage.to_owned(), input: input.port.to_string() })
        }
        (None, _) => {
            let kinds: Vec<&str> = outputs.iter().map(|output| output.kind).collect();
            Err(wrong(format!("stage `{}`", target.stage), near::list(&kinds)))
        }
    }
}

/// The stages of the manifest that write what an input takes.
fn offer(stages: &[Stage<'_, '_>], input: &InputPort, not: Option<usize>) -> String {
    let makers = stages.iter().enumerate().filter(|(i, stage)| {
        Some(*i) != not
            && stage.row.is_some_and(|row| row.outputs.iter().any(|output| input.takes(output.kind)))
    });
    let names: Vec<&str> = makers.map(|(_, stage)| stage.entry.name.as_str()).collect();
    match names.as_slice() {
        [] if input.kind == ANY => "there is no other stage to read from".to_owned(),
        [] => format!("no stage of this manifest writes `{}`", input.kind),
        many if input.kind == ANY => format!("it may read {}", near::list(many)),
        [one] => format!("`{one}` writes `{}`", input.kind),
        many => format!("stages that write `{}`: {}", input.kind, near::list(many)),
    }
}

fn cycle(walk: &[usize], stages: &[Stage<'_, '_>], links: &Links) -> Fault<PlanError> {
    let name = |stage: usize| stages[stage].entry.name.as_str();
    let names: Vec<&str> = walk.iter().map(|stage| name(*stage)).collect();
    let places = walk.windows(2).map(|pair| {
        let link = links[pair[0]].iter().flatten().find(|link| link.stage == pair[1]);
        let place = link.map_or_else(|| stages[pair[0]].entry.place.clone(), |link| link.place.clone());
        (place, format!("`{}` reads `{}`", name(pair[0]), name(pair[1])))
    });
    let mut places: Vec<_> = places.collect();
    let (place, label) = places.remove(0);
    let mut fault = Fault::at(place, PlanError::Cycle(names.join(" → "))).label(label);
    fault.related = places;
    fault.hint("let one of these inputs name another stage")
}
