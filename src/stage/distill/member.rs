//! A process that computes sums of a step for the one that trains (`team`). Knows no optimiser and writes no checkpoint.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, Write},
    path::Path,
};

use serde_json::Value;

use super::{
    Distill,
    share::Step,
    state::Place,
    team::{self, Answer, Setup},
    trainer::Run,
};
use crate::engine::action::{Cx, Failure, Files, NoCheckpoints, Quiet, Stop};

/// Does what `tasks` ask for, until there is no more; `setup` is the file that the trainer wrote.
///
/// # Errors
/// What keeps a member from beginning, and a trainer that is gone. What a task comes to is said in `answers`.
pub fn work(setup: &Path, mut tasks: impl BufRead, mut answers: impl Write) -> Result<(), Failure> {
    let read: Setup =
        serde_json::from_slice(&fs::read(setup).map_err(Failure::stage)?).map_err(Failure::stage)?;
    let folder = setup.parent().expect("a file lies in a folder");
    let (stop, settings) = (Stop::default(), settings(read.settings, &read.inputs)?);
    let cx = Cx {
        inputs: read.inputs,
        reads: BTreeMap::new(),
        out: folder.to_owned(),
        scratch: folder.to_owned(),
        log: folder.join("log"),
        seed: read.seed,
        device: read.device,
        memory: None,
        progress: &Quiet,
        checkpoints: &NoCheckpoints,
        stop: &stop,
    };
    let opened = settings.student.load(&cx, "student").and_then(|student| settings.open(&cx, &student));
    let (mut run, documents, _) = match opened {
        Ok(opened) => opened,
        Err(error) => return said(&mut answers, &Answer::Failed(error.to_string())),
    };
    while let Some(place) = team::hear::<Place>(&mut tasks).map_err(Failure::stage)? {
        let done = sums(&mut run, place, read.of, (folder, &documents));
        let answer = done.map_or_else(|error| Answer::Failed(error.to_string()), Answer::Done);
        said(&mut answers, &answer)?;
    }
    Ok(())
}

fn said(answers: &mut impl Write, answer: &Answer) -> Result<(), Failure> {
    team::tell(answers, answer).map_err(Failure::stage)
}

/// Parameters as they were written for keys, which leave out where inputs come from.
fn settings(mut written: Value, inputs: &BTreeMap<String, Files>) -> Result<Distill, Failure> {
    let named = || Value::from("input");
    if let Some(table) = written.as_object_mut() {
        for port in ["student", "teacher", "predictions", "texts", "samples"] {
            if inputs.contains_key(port) {
                table.insert(port.to_owned(), named());
            }
        }
        let splits = inputs.keys().filter(|port| port.starts_with("splits.")).count();
        table.insert("splits".to_owned(), (0..splits).map(|_| named()).collect());
    }
    serde_json::from_value(written).map_err(Failure::stage)
}

/// The sums of this process, of the step at `place`.
fn sums(
    run: &mut Run<'_>,
    place: Place,
    of: (usize, usize),
    (folder, documents): (&Path, &[Vec<u32>]),
) -> Result<Vec<team::Done>, Failure> {
    let phases = run.settings.phases();
    let unknown = || Failure::stage(io::Error::other("there is no such phase"));
    let (objective, phase) = phases.get(place.phase).ok_or_else(unknown)?;
    team::take_weights(folder, &run.student.vars)?;
    run.set_rounding(place.step, phase);
    let mut feed = run.feed((objective, phase), documents, place)?;
    let step = Step::new(&feed.next(phase.length(place.step)), run.settings.micro_batch_tokens);
    team::sums(&step, of, folder, |number| Ok(step.sum(number, run.models(), objective)?))
}
