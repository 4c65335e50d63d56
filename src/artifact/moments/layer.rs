//! The sums of one layer: their meaning, their file, their addition. Knows no other layer.

mod file;

/// One layer's sums over tokens. `D` is the hidden size, `n` the query heads, `g` the key/value heads, `d` the head width, `P = d / 2` the
/// rotary pairs, `E` the experts; `a` are attention weights with the sink in the denominator, `s` a key's token and `t` a query's. What a
/// layer does not have or nobody asked for is empty. What goes by position or distance in powers of two is in the entry that
/// [`bucket`](super::bucket) gives, of [`BUCKETS`](super::BUCKETS).
///
/// `G_h(t,s) = a_h(t,s)² ‖W_O,h (v_s − o_h,t)‖²` is the squared change of the block's output for a unit change of one logit.
///
/// What is called Fisher is made of gradients of `ln p(y)` of one next token `y` per position, drawn from the model's own prediction: the
/// expected square of such a gradient along a change is twice the divergence that the change makes (S. Amari, Natural Gradient Works
/// Efficiently in Learning, 1998), whatever lies between. `F_h(t,s)` is the square of the gradient for a logit, `∂v_s` that for the values.
/// It may rest on fewer tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerMoments {
    /// `full`, `sliding` or `latent`.
    pub attention: String,
    /// A digest of the attention tensors that made them.
    pub weights: String,
    /// Tokens in the sums.
    pub tokens: usize,
    /// The learned sink logits `[n]`; no sum.
    pub sink_logits: Vec<f64>,
    /// Tokens by their position in the sequence, in powers of two `[BUCKETS]`.
    pub positions: Vec<f64>,
    /// Attention that went to the sink, by the query's position in powers of two [n, BUCKETS].
    pub sink: Vec<f64>,
    /// Attention that went to the first token of the sequence, by the query's position in powers of two [n, BUCKETS].
    pub first_token: Vec<f64>,
    /// Attention by distance `t − s` [n, distances].
    pub distance: Vec<f64>,
    /// Squared norms of queries `[n]`, with YaRN's factor.
    pub query_energy: Vec<f64>,
    /// Squared norms of keys `[g]`, with YaRN's factor.
    pub key_energy: Vec<f64>,
    /// Key norms and their number at position 0, at positions 1 to 3, at the others [g + 1, 6]; the last row is of all heads taken as one
    /// vector, as a `k_proj` gives them.
    pub first_keys: Vec<f64>,
    /// The same of values [g + 1, 6].
    pub first_values: Vec<f64>,
    /// Squares of the query components of each pair, over all heads `[P]`.
    pub query_pairs: Vec<f64>,
    /// Squares of the key components of each pair, over all key/value heads `[P]`.
    pub key_pairs: Vec<f64>,
    /// Tokens that chose each expert `[E]`.
    pub chosen: Vec<f64>,
    /// Tokens that chose both of two experts [E, E]; the diagonal is `chosen`.
    pub together: Vec<f64>,
    /// The router's softmax over all experts `[E]`.
    pub probability: Vec<f64>,
    /// Weights of the chosen experts, a softmax over them, largest first `[experts of a token]`.
    pub gates: Vec<f64>,
    /// Entropy of the router's softmax in nats `[1]`.
    pub router_entropy: Vec<f64>,
    /// Gap between the last chosen logit and the first one left out, and its square `[2]`.
    pub router_gap: Vec<f64>,
    /// Tokens by that gap `[GAPS + 1]`: entry `i` is below [`GAPS`](super::GAPS)`[i]` and not below the one before; the last is the rest.
    pub gaps: Vec<f64>,
    /// `Σ_s x̃ x̃ᵀ` [D + 1, D + 1] of the normalised input with a 1 appended.
    pub plain: Vec<f64>,
    /// `Σ_s w_s x̃ x̃ᵀ` with `w_s = Σ_h,t a_h(t,s)²`.
    pub attended: Vec<f64>,
    /// `Σ_s [k; v] [k; v]ᵀ` [2 g d, 2 g d] of keys before rotation and values, without YaRN's factor. Not of latent attention.
    pub keys_values: Vec<f64>,
    /// `Σ_t,s a_h a_h'` [n, n].
    pub overlap: Vec<f64>,
    /// `Σ_t,s G_h q_t q_tᵀ` [n, d, d] of queries before rotation, without YaRN's factor.
    pub query: Vec<f64>,
    /// `Σ_t,s G_h` by distance `t − s` [n, distances].
    pub gauss: Vec<f64>,
    /// `Σ_t,s F_h q_t q_tᵀ` [n, d, d] of queries before rotation, without YaRN's factor.
    pub fisher_query: Vec<f64>,
    /// `Σ_t,s F_h` by distance `t − s` [n, distances].
    pub fisher_gauss: Vec<f64>,
    /// `Σ_s ∂v_s ∂v_sᵀ` [g d, g d].
    pub fisher_values: Vec<f64>,
    /// Squares of the gradients of each sequence for `k_proj` and, below it, `v_proj`, by element [2 g d, D]. Not where a norm follows them.
    pub fisher_projections: Vec<f64>,
}

impl LayerMoments {
    /// Every sum with its name in the file.
    pub(crate) fn sums(&mut self) -> [(&'static str, &mut Vec<f64>); 28] {
        [
            ("positions", &mut self.positions),
            ("sink", &mut self.sink),
            ("first_token", &mut self.first_token),
            ("distance", &mut self.distance),
            ("query_energy", &mut self.query_energy),
            ("key_energy", &mut self.key_energy),
            ("first_keys", &mut self.first_keys),
            ("first_values", &mut self.first_values),
            ("query_pairs", &mut self.query_pairs),
            ("key_pairs", &mut self.key_pairs),
            ("chosen", &mut self.chosen),
            ("together", &mut self.together),
            ("probability", &mut self.probability),
            ("gates", &mut self.gates),
            ("router_entropy", &mut self.router_entropy),
            ("router_gap", &mut self.router_gap),
            ("gaps", &mut self.gaps),
            ("plain", &mut self.plain),
            ("attended", &mut self.attended),
            ("keys_values", &mut self.keys_values),
            ("overlap", &mut self.overlap),
            ("query", &mut self.query),
            ("gauss", &mut self.gauss),
            ("fisher_query", &mut self.fisher_query),
            ("fisher_gauss", &mut self.fisher_gauss),
            ("fisher_values", &mut self.fisher_values),
            ("fisher_projections", &mut self.fisher_projections),
            ("sink_logits", &mut self.sink_logits),
        ]
    }

    /// Adds the sums of other tokens. What goes by distance may reach further in one of the two.
    ///
    /// # Errors
    /// Returns what differs if the two are not of one layer of one model.
    pub fn add(&mut self, mut other: Self) -> Result<(), &'static str> {
        if self.weights != other.weights || self.attention != other.attention {
            return Err("the attention tensors");
        }
        if self.sink_logits != other.sink_logits {
            return Err("the sinks");
        }
        let heads = self.sink_logits.len();
        widen(&mut self.distance, &mut other.distance, heads);
        widen(&mut self.gauss, &mut other.gauss, heads);
        widen(&mut self.fisher_gauss, &mut other.fisher_gauss, heads);
        self.tokens += other.tokens;
        let constants = std::mem::take(&mut self.sink_logits);
        other.sink_logits = Vec::new();
        for ((name, sum), (_, more)) in self.sums().into_iter().zip(other.sums()) {
            if sum.len() != more.len() {
                return Err(name);
            }
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += *more);
        }
        self.sink_logits = constants;
        Ok(())
    }

    /// Puts what the Fisher says of queries and distances in the place of what the output's squares say; the values stay where they are.
    #[must_use]
    pub fn by_fisher(self) -> Self {
        let (query, gauss) = (self.fisher_query, self.fisher_gauss);
        Self { query, gauss, fisher_query: Vec::new(), fisher_gauss: Vec::new(), ..self }
    }

    /// Mean cosine and sine [n, P] of the angle `θ (t − s)` for the given radians per token, weighted by `G`.
    pub fn turns(&self, inv_freq: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let width = self.gauss.len() / self.overlap.len().isqrt().max(1);
        let turn = |turn: fn(f64) -> f64| {
            let of = |gauss: &[f64], f: f64| {
                let total: f64 = gauss.iter().sum();
                let sum: f64 = gauss.iter().enumerate().map(|(i, g)| g * turn(f * i as f64)).sum();
                // A head that never sees an error: no distance counts, as if it looked at itself.
                if total > 0.0 { sum / total } else { turn(0.0) }
            };
            let heads = self.gauss.chunks_exact(width.max(1));
            heads.flat_map(|gauss| inv_freq.iter().map(move |&f| of(gauss, f))).collect()
        };
        (turn(f64::cos), turn(f64::sin))
    }
}

/// Gives both the longer rows of the two, with zeros behind the shorter ones, or in place of none.
fn widen(a: &mut Vec<f64>, b: &mut Vec<f64>, heads: usize) {
    let width = |x: &[f64]| x.len() / heads.max(1);
    let wide = width(a).max(width(b));
    for x in [a, b] {
        let old = width(x);
        if old == 0 {
            *x = vec![0.0; wide * heads];
        } else if old < wide {
            let row = |row: &[f64]| row.iter().copied().chain(std::iter::repeat_n(0.0, wide - old)).collect();
            *x = x.chunks_exact(old).flat_map(|x| -> Vec<f64> { row(x) }).collect();
        }
    }
}

#[cfg(test)]
mod tests;
