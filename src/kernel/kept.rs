//! A student's logits against what was kept of its teacher's next-token distributions, a row at a time, with the gradient. Knows no head and
//! no file.
//!
//! Kept are the most probable tokens `K` with their probabilities `p`, and the mass `P = 1 − Σ p` of all others as one bucket; or draws from
//! the distribution, with the share `w` of them that fell on each token. With the student's `q` and its mass `Q` outside `K`:
//!
//! ```text
//! bucket   Σ_K p ln p/q + P ln P/Q     gradient of logit j:  q_j − p_j in K,  q_j − P q_j / Q outside
//! draws    −Σ w ln q − H(teacher)                            q_j − w_j
//! ```
//!
//! The bucket's cost is the divergence but for what lies inside the bucket; the draws' cost and gradient have the divergence and its gradient
//! as their means (Sparse Logit Sampling, arXiv 2503.16870 §3). Renormalising what is kept would teach too much confidence.

use super::divergence::Real;

/// What was kept of some tokens' distributions.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    form: Form,
    /// Row `i` has the entries `offsets[i]..offsets[i + 1]`.
    offsets: Vec<usize>,
    ids: Vec<u32>,
    weights: Vec<f32>,
    entropies: Vec<f32>,
}

/// What the entries of a row are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The most probable tokens; the others are one bucket.
    Bucket,
    /// Draws.
    Draws,
}

/// What was kept of one distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row<'a> {
    /// Tokens, each once.
    pub ids: &'a [u32],
    /// Probability of each, or its share of the draws.
    pub weights: &'a [f32],
    /// Entropy of the whole distribution, in nats.
    pub entropy: f32,
}

impl Kept {
    /// No row yet.
    pub fn new(form: Form) -> Self {
        Self { form, offsets: vec![0], ids: Vec::new(), weights: Vec::new(), entropies: Vec::new() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.entropies.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entropies.is_empty()
    }

    /// What the entries are.
    pub fn form(&self) -> Form {
        self.form
    }

    /// One row.
    pub fn row(&self, i: usize) -> Row<'_> {
        let entries = self.offsets[i]..self.offsets[i + 1];
        Row { ids: &self.ids[entries.clone()], weights: &self.weights[entries], entropy: self.entropies[i] }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row<'_>) {
        self.ids.extend(row.ids);
        self.weights.extend(row.weights);
        self.entropies.push(row.entropy);
        self.offsets.push(self.ids.len());
    }

    /// Adds a row for each of `lengths`, which says how many of the entries belong to it.
    ///
    /// # Panics
    /// If there are fewer entries, or there is not an entropy for each row.
    pub fn extend(&mut self, lengths: &[u32], (ids, weights): (&[u32], &[f32]), entropies: &[f32]) {
        let mut from = 0;
        for (&n, &entropy) in lengths.iter().zip(&entropies[..lengths.len()]) {
            let entries = from..from + n as usize;
            from = entries.end;
            self.push(Row { ids: &ids[entries.clone()], weights: &weights[entries], entropy });
        }
    }

    /// The greatest token id, if there is any.
    pub fn greatest(&self) -> Option<u32> {
        self.ids.iter().copied().max()
    }

    /// The cost of row `i`; `z` holds the student's logits and becomes the gradient.
    ///
    /// # Panics
    /// If a token of the row is no index of `z`.
    pub(crate) fn cost<R: Real>(&self, i: usize, z: &mut [R]) -> f64 {
        let row = self.row(i);
        let all = R::log_sum_exp(z);
        let (mut cost, mut mass) = (0.0, 0.0);
        for (&id, &p) in row.ids.iter().zip(row.weights).filter(|(_, p)| **p > 0.0) {
            let (p, log_q) = (f64::from(p), (z[id as usize] - all).wide());
            cost += p * if self.form == Form::Bucket { p.ln() - log_q } else { -log_q };
            mass += p;
        }
        // What is kept is taken out of the row; the rest of it is what lies outside.
        let inside: Vec<R> = row.ids.iter().map(|&id| (z[id as usize] - all).exp()).collect();
        for &id in row.ids {
            z[id as usize] = R::of(f64::NEG_INFINITY);
        }
        // A factor on `q` outside what is kept.
        let mut outside = R::of(1.0);
        if self.form == Form::Bucket {
            let rest = (1.0 - mass).max(0.0);
            let log_rest = if row.ids.len() < z.len() { (R::log_sum_exp(z) - all).wide() } else { 0.0 };
            if rest > 0.0 {
                cost += rest * (rest.ln() - log_rest);
                outside = R::of(1.0 - (rest.ln() - log_rest).exp());
            }
        } else {
            cost -= f64::from(row.entropy);
        }
        R::exp_all(z, all);
        for z in z.iter_mut() {
            *z = *z * outside;
        }
        for ((&id, &p), q) in row.ids.iter().zip(row.weights).zip(inside) {
            z[id as usize] = q - R::of(f64::from(p));
        }
        cost
    }
}

#[cfg(test)]
mod tests;
