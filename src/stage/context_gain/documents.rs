//! What a model is asked about each document: which tokens are scored, and the sequences that it reads for them. Knows no weights.

use rayon::prelude::*;

use super::ContextGainError;
use crate::{
    artifact::{encoder::Encoder, texts::Text},
    engine::action::{Cx, Failure},
    math::hash::hash,
    model::Batch,
};

/// Tokens of one task, about, unless one sequence is longer.
const TASK: usize = 8192;

/// How documents are scored.
pub(super) struct Plan {
    pub(super) window: usize,
    pub(super) samples: usize,
    pub(super) max_tokens: usize,
    pub(super) min_tokens: usize,
    /// What stands before every sequence.
    pub(super) bos: Option<u32>,
    pub(super) seed: u64,
}

/// A document and what is scored in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) id: String,
    /// Its tokens, cut.
    pub(super) ids: Vec<u32>,
    /// Its length before the cut.
    pub(super) tokens: usize,
    /// The tokens that are scored, ascending; each has more than a window before it.
    pub(super) places: Vec<usize>,
}

/// Sequences of one document that go through a layer at once. A document's first task is the whole of it, then come its windows. What
/// they are does not depend on other documents, so that sums in f32 do not either.
pub(super) struct Task {
    /// The document's index.
    pub(super) document: usize,
    pub(super) batch: Batch,
    /// What the losses are wanted of, by ascending row.
    pub(super) asks: Vec<Ask>,
}

/// A row of a batch and the token that follows in the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) row: usize,
    pub(super) target: u32,
}

impl Task {
    /// Tokens of its sequences.
    pub(super) fn tokens(&self) -> usize {
        self.batch.len()
    }
}

impl Plan {
    /// All texts as tokens with the places that are scored, in their order.
    pub(super) fn documents(
        &self,
        cx: &Cx<'_>,
        encoder: &Encoder,
        texts: &[Text],
    ) -> Result<Vec<Document>, Failure> {
        cx.progress.phase("tokenising", Some(texts.len() as u64), "docs");
        let document = |text: &Text| {
            cx.check_stop()?;
            let mut ids = encoder.ids_of(&text.text, text.special_tokens).map_err(ContextGainError::from)?;
            let tokens = ids.len();
            ids.truncate(self.max_tokens);
            let enough = tokens >= self.min_tokens;
            let places = if enough { self.places(&text.id, ids.len()) } else { Vec::new() };
            cx.progress.advance(1);
            Ok(Document { id: text.id.clone(), ids, tokens, places })
        };
        texts.par_iter().map(document).collect()
    }

    /// Which of `n` tokens are scored: those with more than a window before them are divided into `samples` equal parts, and one is
    /// drawn from each by a hash of the document's id. Drawn rather than evenly spaced, since text may have a period of its own.
    pub(super) fn places(&self, id: &str, n: usize) -> Vec<usize> {
        let first = self.window + 1;
        let count = n.saturating_sub(first);
        if count <= self.samples {
            return (first..first + count).collect();
        }
        let place = |part: usize| {
            let [from, to] = [part, part + 1].map(|part| first + part * count / self.samples);
            let draw = hash(self.seed, [id.as_bytes(), &(part as u64).to_le_bytes()]);
            from + (draw % (to - from) as u64) as usize
        };
        (0..self.samples).map(place).collect()
    }

    /// Tokens that the model reads for a document.
    pub(super) fn tokens(&self, document: &Document) -> usize {
        let before = usize::from(self.bos.is_some());
        let windows = document.places.len() * (before + self.window);
        document.places.last().map_or(0, |last| before + last + windows)
    }

    /// The tasks of the document with this index, none where nothing is scored.
    pub(super) fn tasks<'a>(
        &'a self,
        index: usize,
        document: &'a Document,
    ) -> impl Iterator<Item = Task> + use<'a> {
        let Document { ids, places, .. } = document;
        let before = usize::from(self.bos.is_some());
        let whole = places.last().map(|&last| Task {
            document: index,
            batch: self.batch([&ids[..last]]),
            asks: places.iter().map(|&at| Ask { row: before + at - 1, target: ids[at] }).collect(),
        });
        let length = before + self.window;
        let windows = places.chunks((TASK / length).max(1)).map(move |places| Task {
            document: index,
            batch: self.batch(places.iter().map(|&at| &ids[at - self.window..at])),
            asks: places
                .iter()
                .enumerate()
                .map(|(i, &at)| Ask { row: (i + 1) * length - 1, target: ids[at] })
                .collect(),
        });
        whole.into_iter().chain(windows)
    }

    fn batch<'a>(&self, sequences: impl IntoIterator<Item = &'a [u32]>) -> Batch {
        let with_bos = |ids: &[u32]| self.bos.into_iter().chain(ids.iter().copied()).collect();
        let sequences: Vec<Vec<u32>> = sequences.into_iter().map(with_bos).collect();
        Batch::new(sequences.iter().map(Vec::as_slice))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn plan(window: usize, samples: usize) -> Plan {
        Plan { window, samples, max_tokens: 99, min_tokens: 0, bos: None, seed: 7 }
    }

    fn document(plan: &Plan, n: u32) -> Document {
        let ids: Vec<u32> = (100..100 + n).collect();
        Document { id: "d".into(), places: plan.places("d", ids.len()), tokens: ids.len(), ids }
    }

    #[test]
    fn only_tokens_with_more_than_a_window_before_them_are_scored() {
        let places = |n| plan(4, 3).places("d", n);
        for n in 0..=5 {
            assert!(places(n).is_empty(), "of {n} tokens none has five before it");
        }
        assert_eq!((places(6), places(8)), (vec![5], vec![5, 6, 7]));
        assert_eq!(places(9).len(), 3, "one of each part of four");
    }

    #[test]
    fn the_draw_depends_on_document_and_seed() {
        let places = |id, seed| Plan { seed, ..plan(4, 8) }.places(id, 1000);
        assert_eq!(places("a", 7), places("a", 7));
        assert_ne!(places("a", 7), places("b", 7));
        assert_ne!(places("a", 7), places("a", 8));
    }

    #[test]
    fn the_whole_and_each_window_end_before_the_token_that_is_scored() {
        let all = |bos| {
            let plan = Plan { bos, ..plan(4, 3) };
            let document = document(&plan, 8);
            let tasks: Vec<Task> = plan.tasks(2, &document).collect();
            assert!(tasks.iter().all(|task| task.document == 2));
            assert_eq!(tasks.iter().map(Task::tokens).sum::<usize>(), plan.tokens(&document));
            tasks
        };
        let tasks = all(None);
        let ask = |row, target| Ask { row, target };
        assert_eq!(tasks.len(), 2);
        assert_eq!(tasks[0].batch.ids, [100, 101, 102, 103, 104, 105, 106]);
        assert_eq!(tasks[0].asks, [ask(4, 105), ask(5, 106), ask(6, 107)]);
        assert_eq!(tasks[1].batch.offsets.as_ref(), [0, 4, 8, 12]);
        assert_eq!(tasks[1].batch.ids[4..8], [102, 103, 104, 105]);
        assert_eq!(tasks[1].asks, [ask(3, 105), ask(7, 106), ask(11, 107)]);

        let tasks = all(Some(9));
        assert_eq!(tasks[0].batch.ids[..3], [9, 100, 101]);
        assert_eq!(tasks[0].asks[0], ask(5, 105));
        assert_eq!(tasks[1].batch.ids[5..10], [9, 102, 103, 104, 105], "it stands before each window too");
        assert_eq!(tasks[1].asks, [ask(4, 105), ask(9, 106), ask(14, 107)]);
    }

    #[test]
    fn a_document_in_which_nothing_is_scored_has_no_task() {
        let plan = plan(4, 3);
        let short = document(&plan, 5);
        assert_eq!((plan.tasks(0, &short).count(), plan.tokens(&short)), (0, 0));
    }

    #[test]
    fn many_windows_are_several_tasks() {
        let plan = Plan { max_tokens: 10_000, ..plan(1000, 20) };
        let document = document(&plan, 5000);
        let sizes: Vec<usize> = plan.tasks(0, &document).map(|task| task.asks.len()).collect();
        assert_eq!(sizes, [20, 8, 8, 4]);
    }

    proptest! {
        #[test]
        fn places_are_spread_over_all_that_lies_beyond(
            window in 1usize..40,
            samples in 1usize..40,
            n in 0usize..400,
            seed: u64,
        ) {
            let places = Plan { seed, ..plan(window, samples) }.places("id", n);
            let beyond = n.saturating_sub(window + 1);
            prop_assert_eq!(places.len(), beyond.min(samples));
            prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(places.iter().all(|&at| at > window && at < n));
            // No part is left out: between two neighbours lie less than two parts.
            let part = beyond.div_ceil(samples.max(1));
            prop_assert!(places.windows(2).all(|pair| pair[1] - pair[0] <= 2 * part));
        }
    }
}
