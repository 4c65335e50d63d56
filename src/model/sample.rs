//! Text that a model writes: tokens are drawn one after the other, for several sequences at once. Knows no tokenizer.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use super::{Batch, KvCache, Model, ModelError};
use crate::{kernel::host, math::random::unit};

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token, the first of several.
    pub temperature: f64,
    /// Only the most probable tokens that have this much of the probability together can be drawn; 1 for all of them
    /// (nucleus sampling, arXiv 1904.09751).
    pub top_p: f64,
    /// Each sequence draws from a stream of its own, whatever other sequences there are.
    pub seed: u64,
}

/// When a sequence ends.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end it; they are part of it.
    pub ends: &'a [u32],
}

/// Continues each of `prompts`, none of them empty, and returns what was added. The first sequence draws from stream number `first`, the
/// next from the one behind it. `told` hears each token with its sequence; `false` stops everything.
pub fn sample(
    model: &Model,
    prompts: &[&[u32]],
    limits: Limits<'_>,
    (sampling, first): (Sampling, u64),
    told: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut written = vec![Vec::new(); prompts.len()];
    let mut live: Vec<(usize, Sampler)> =
        (0..prompts.len()).map(|i| (i, Sampler::new(sampling, first + i as u64))).collect();
    let mut cache = KvCache::new(&model.config, prompts.len());
    let mut batch = Batch::new(prompts.iter().copied());
    let vocab = model.config.vocab_size;
    while !live.is_empty() && limits.max_new_tokens > 0 {
        let logits = model.decode(&batch, &mut cache)?;
        let logits = host(&logits)?;
        let mut goes_on = Vec::with_capacity(live.len());
        for ((i, sampler), logits) in live.iter_mut().zip(logits.chunks_exact(vocab)) {
            let token = sampler.next(logits);
            written[*i].push(token);
            if !told(*i, token) {
                return Ok(written);
            }
            goes_on.push(written[*i].len() < limits.max_new_tokens && !limits.ends.contains(&token));
        }
        cache.retain(&goes_on);
        let mut kept = goes_on.iter();
        live.retain(|_| *kept.next().expect("one for each"));
        let next = |(at, (i, _)): (usize, &(usize, Sampler))| {
            (*written[*i].last().expect("one was drawn"), cache.seen(at))
        };
        batch = Batch::of_next(live.iter().enumerate().map(next));
    }
    Ok(written)
}

/// Draws the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler of the stream with this number.
    pub fn new(sampling: Sampling, stream: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(stream);
        Self { sampling, random }
    }

    /// The next token, from its logits `[vocab]`.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, .. } = self.sampling;
        let best = logits.iter().enumerate().fold(0, |best, (i, &z)| if z > logits[best] { i } else { best });
        if temperature <= 0.0 {
            return best as u32;
        }
        let top = f64::from(logits[best]);
        let mut weights: Vec<(usize, f64)> =
            logits.iter().map(|&z| ((f64::from(z) - top) / temperature).exp()).enumerate().collect();
        let mut sum: f64 = weights.iter().map(|(_, w)| w).sum();
        if top_p < 1.0 {
            weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let (mut held, mut n) = (0.0, 0);
            while n < weights.len() && held < top_p * sum {
                held += weights[n].1;
                n += 1;
            }
            weights.truncate(n.max(1));
            sum = weights.iter().map(|(_, w)| w).sum();
        }
        let mut left = unit(&mut self.random) * sum;
        for &(token, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return token as u32;
            }
        }
        // What rounding leaves belongs to the last token that can be drawn.
        weights.iter().rev().find(|(_, weight)| *weight > 0.0).map_or(best, |(token, _)| *token) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::{FULL, LATENT, SLIDING, VOCAB, checkpoint, draft};

    const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 5 };
    const FREE: Sampling = Sampling { temperature: 1.0, ..GREEDY };

    fn model() -> Model {
        Model::frozen(&checkpoint(&draft(&[SLIDING, LATENT, FULL])).1).unwrap()
    }

    fn limits(max_new_tokens: usize, ends: &[u32]) -> Limits<'_> {
        Limits { max_new_tokens, ends }
    }

    fn run(model: &Model, prompts: &[&[u32]], ends: &[u32], from: (Sampling, u64)) -> Vec<Vec<u32>> {
        sample(model, prompts, limits(12, ends), from, &mut |_, _| true).unwrap()
    }

    /// How often each token is drawn from these probabilities.
    fn shares(probabilities: &[f32], sampling: Sampling) -> Vec<f64> {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() + 3.0).collect();
        let mut sampler = Sampler::new(sampling, 0);
        let mut seen = vec![0.0; logits.len()];
        (0..20_000).for_each(|_| seen[sampler.next(&logits) as usize] += 1.0 / 20_000.0);
        seen
    }

    fn near(got: &[f64], want: &[f64]) {
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 0.015), "{got:?} {want:?}");
    }

    #[test]
    fn tokens_come_as_often_as_their_probabilities_say() {
        let p = [0.1, 0.4, 0.0, 0.5];
        near(&shares(&p, FREE), &[0.1, 0.4, 0.0, 0.5]);
        // At half the temperature probabilities are squared.
        near(
            &shares(&p, Sampling { temperature: 0.5, ..FREE }),
            &[0.01 / 0.42, 0.16 / 0.42, 0.0, 0.25 / 0.42],
        );
        near(&shares(&p, Sampling { top_p: 0.6, ..FREE }), &[0.0, 0.4 / 0.9, 0.0, 0.5 / 0.9]);
        near(&shares(&p, Sampling { top_p: 0.3, ..FREE }), &[0.0, 0.0, 0.0, 1.0]);
        near(&shares(&p, GREEDY), &[0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(Sampler::new(GREEDY, 0).next(&[1.0, 3.0, 3.0, -1.0]), 1);
    }

    #[test]
    fn greedy_text_is_what_the_whole_model_finds_most_probable() {
        let (model, mut text) = (model(), vec![3, 1, 4, 1, 5, 9]);
        let written = run(&model, &[&text], &[], (GREEDY, 0)).remove(0);
        for token in written {
            let logits = model.logits(&Batch::new([&text[..]]), &mut crate::model::probe::NoProbe).unwrap();
            let last = logits.get(text.len() - 1).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(token, Sampler::new(GREEDY, 0).next(&last));
            text.push(token);
        }
        assert_eq!(text.len(), 18);
    }

    #[test]
    fn a_sequence_does_not_depend_on_the_others() {
        let model = model();
        let prompts: [&[u32]; 3] = [&[1, 2, 3, 4, 5, 6, 7], &[9], &[30, 0, 30]];
        let together = run(&model, &prompts, &[2, 11], (FREE, 4));
        for (i, prompt) in prompts.iter().enumerate() {
            assert_eq!(run(&model, &[prompt], &[2, 11], (FREE, 4 + i as u64)), together[i..=i]);
        }
        assert_ne!(run(&model, &prompts, &[2, 11], (FREE, 99)), together);
    }

    #[test]
    fn a_sequence_ends_with_its_end_or_at_the_limit() {
        let model = model();
        let ends: Vec<u32> = (0..VOCAB as u32).filter(|id| id % 5 == 0).collect();
        let prompts: Vec<&[u32]> = vec![&[7, 8]; 40];
        let written = run(&model, &prompts, &ends, (FREE, 0));
        for text in &written {
            let (last, before) = text.split_last().unwrap();
            assert!(before.iter().all(|id| !ends.contains(id)));
            assert!(text.len() == 12 || ends.contains(last));
        }
        let lengths: std::collections::BTreeSet<usize> = written.iter().map(Vec::len).collect();
        assert!(lengths.len() > 3, "{lengths:?}");
        let none = sample(&model, &prompts, limits(0, &[]), (FREE, 0), &mut |_, _| true).unwrap();
        assert!(none.iter().all(Vec::is_empty));
    }

    #[test]
    fn whoever_listens_can_stop_it() {
        let mut heard = Vec::new();
        let told = &mut |i, token| {
            heard.push((i, token));
            heard.len() < 3
        };
        let written = sample(&model(), &[&[1], &[2]], limits(9, &[]), (FREE, 0), told).unwrap();
        assert_eq!(written.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(heard, [(0, written[0][0]), (1, written[1][0]), (0, written[0][1])]);
    }
}
