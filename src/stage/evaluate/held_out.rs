//! The text to measure on: which documents, and where their tokens and answers stand among all predictions. Knows no model.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    artifact::{
        checkpoint::Checkpoint,
        texts::{Mark, group},
    },
    engine::action::{Cx, Failure},
};

use super::{
    Evaluate, EvaluateError,
    documents::{Document, Encoder},
    summary::{Answer, Place},
};

/// Documents that nothing was fitted to.
#[derive(Debug, Default)]
pub(super) struct HeldOut {
    /// The documents in the order of their ids.
    pub(super) documents: Vec<Document>,
    /// Number of documents of each source.
    sources: BTreeMap<String, usize>,
    /// Documents left out because calibration or healing saw them.
    left_out: usize,
}

/// A candidate document.
struct Row {
    id: String,
    source: String,
    text: String,
    special_tokens: bool,
    marks: Vec<Mark>,
}

impl HeldOut {
    /// Takes documents in the order of their ids, without those of `exclude`, until there are `max-tokens` tokens.
    pub(super) fn load(stage: &Evaluate, cx: &Cx<'_>, original: &Checkpoint) -> Result<Self, Failure> {
        let failed = |e| Failure::stage(EvaluateError::Encode(e));
        let path = original.file("tokenizer.json").map_err(Failure::stage)?;
        let encoder = Encoder::new(path, stage.bos.as_deref(), stage.max_length).map_err(failed)?;
        let (rows, left_out) = rows(stage, cx)?;
        let (mut held_out, mut tokens) = (Self { left_out, ..Self::default() }, 0);
        for row in rows {
            if tokens >= stage.max_tokens {
                break;
            }
            cx.check_stop()?;
            if let Some(document) =
                encoder.encode(&row.text, row.special_tokens, &row.marks).map_err(failed)?
            {
                tokens += document.ids.len();
                held_out.documents.push(document);
                *held_out.sources.entry(group(&row.source).to_owned()).or_default() += 1;
            }
        }
        if held_out.documents.is_empty() {
            return Err(Failure::stage(EvaluateError::NoText { left_out }));
        }
        Ok(held_out)
    }

    /// The text in words: `held-out text (12 synthetic/maths, 9 synthetic/prose)`. Names of stages stay out, since renaming one must
    /// not change the table.
    pub(super) fn description(&self) -> String {
        let sources: Vec<String> = self.sources.iter().map(|(source, n)| format!("{n} {source}")).collect();
        let without = match self.left_out {
            0 => String::new(),
            n => format!(", {n} left out because calibration saw them"),
        };
        format!("held-out text ({}{without})", sources.join(", "))
    }

    /// Where every predicted token stands, and the answers in terms of predicted tokens. A document of n tokens has n − 1 predicted
    /// ones: its token i + 1 is predicted at its position i.
    pub(super) fn places(&self) -> (Vec<Place>, Vec<Answer>) {
        let (mut places, mut answers) = (Vec::new(), Vec::new());
        for (document, Document { ids, answers: marked, .. }) in self.documents.iter().enumerate() {
            answers.extend(marked.iter().map(|mark| Answer {
                first: places.len() + mark.tokens.start - 1,
                tokens: mark.tokens.len(),
                distance: mark.distance,
                choices: mark.choices,
            }));
            places.extend((0..ids.len() - 1).map(|position| Place { document, position }));
        }
        (places, answers)
    }

    /// Marks that no token boundary fits.
    pub(super) fn skipped(&self) -> usize {
        self.documents.iter().map(|document| document.skipped).sum()
    }
}

/// All candidates sorted by id, and how many were left out.
fn rows(stage: &Evaluate, cx: &Cx<'_>) -> Result<(Vec<Row>, usize), Failure> {
    let mut rows: Vec<Row> = Vec::new();
    if let Some(texts) = &stage.texts {
        let row = |t: crate::artifact::texts::Text| Row {
            id: t.id,
            source: t.source,
            text: t.text,
            special_tokens: t.special_tokens,
            marks: t.marks,
        };
        rows.extend(texts.load(cx, "texts")?.0.into_iter().map(row));
    }
    if let Some(split) = &stage.split {
        let row = |c: crate::artifact::splits::Chosen| Row {
            id: c.id,
            source: c.source,
            text: c.text,
            special_tokens: c.special_tokens,
            marks: c.marks,
        };
        rows.extend(split.load(cx, "split")?.0.into_iter().map(row));
    }
    let mut seen = BTreeSet::new();
    for (i, split) in stage.exclude.iter().enumerate() {
        seen.extend(split.load(cx, &format!("exclude.{i}"))?.0.into_iter().map(|row| row.id));
    }
    rows.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let before = rows.len();
    rows.retain(|row| !seen.contains(&row.id));
    let left_out = before - rows.len();
    Ok((rows, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::evaluate::documents::Marked;

    #[test]
    fn places_and_answers_line_up_with_predictions() {
        let marked = |tokens, distance| Marked { tokens, distance, choices: 4 };
        let document = |n: u32, answers| Document { ids: (0..n).collect(), answers, skipped: 1 };
        let held_out = HeldOut {
            documents: vec![document(3, vec![marked(1..2, 1)]), document(4, vec![marked(2..4, 2)])],
            ..HeldOut::default()
        };
        let (places, answers) = held_out.places();
        let at: Vec<_> = places.iter().map(|place| (place.document, place.position)).collect();
        assert_eq!(at, [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]);
        // Token 2 of the second document is predicted at its position 1: the fourth prediction of all.
        assert_eq!(answers.iter().map(|a| (a.first, a.tokens)).collect::<Vec<_>>(), [(0, 1), (3, 2)]);
        assert_eq!(held_out.skipped(), 2);
    }

    #[test]
    fn the_description_counts_sources() {
        let sources = BTreeMap::from([("a".to_owned(), 2), ("synthetic/prose".to_owned(), 7)]);
        let mut held_out = HeldOut { sources, ..HeldOut::default() };
        assert_eq!(held_out.description(), "held-out text (2 a, 7 synthetic/prose)");
        held_out.left_out = 3;
        assert!(held_out.description().ends_with(", 3 left out because calibration saw them)"));
    }
}
