//! The figures of one layer: what each means and in what unit. Knows no way to measure them.

use serde::{Deserialize, Serialize};

/// One layer.
///
/// Lists by position or distance go in powers of two: entry 0 is 0, entry `i > 0` is `2^(i−1) <= x < 2^i`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its index.
    pub layer: usize,
    /// `full`, `sliding` or `latent`.
    pub attention: String,
    /// Tokens by position.
    pub positions: Vec<f64>,
    /// Query heads.
    pub heads: Vec<Head>,
    /// Key/value heads.
    pub kv_heads: Vec<KvHead>,
    /// Lengths and distances of all heads together.
    pub geometry: Geometry,
    /// Rotary pairs; empty for latent attention.
    pub pairs: Vec<Pair>,
    /// Experts, where there are any.
    pub routing: Option<Routing>,
    /// Spectra of keys and values; not of latent attention.
    pub spectra: Option<Spectra>,
}

/// One query head.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The learned sink logit, where there is one.
    pub sink_logit: Option<f64>,
    /// Mean share of a query's attention that goes to the learned sink; 0 without one.
    pub sink_mass: f64,
    /// The same by the query's position.
    pub sink_by_position: Vec<f64>,
    /// Mean share that goes to the sequence's first token.
    pub first_token_mass: f64,
    /// The same by the query's position.
    pub first_token_by_position: Vec<f64>,
    /// Share by distance. Sums to 1 − sink mass.
    pub distance: Vec<f64>,
    /// Share at least as far back as [`Protocol::far`](super::Protocol::far).
    pub far: f64,
    /// Mean distance in tokens, weighted by attention to tokens.
    pub mean_distance: f64,
    /// Distance within which 90 % of the attention to tokens lies.
    pub reach: usize,
    /// Root mean square of the query's norm, without YaRN's factor.
    pub query_norm: f64,
}

/// One key/value head.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvHead {
    /// Root mean square of the key's norm, without YaRN's factor.
    pub key_norm: f64,
    /// Mean key norm at position 0 over the mean at all others.
    pub first_key_ratio: f64,
    /// Mean key norm at positions 0 to 3 over the mean at all others.
    pub first_four_keys_ratio: f64,
    /// Mean value norm at position 0 over the mean at all others.
    pub first_value_ratio: f64,
}

/// Lengths and distances of all heads of a layer. A norm is that of all heads as one vector, which is what `q_proj`, `k_proj` and
/// `v_proj` give; rotation does not change it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Root mean square of the queries' norm, without YaRN's factor.
    pub query_norm: f64,
    /// Root mean square of the keys' norm, without YaRN's factor.
    pub key_norm: f64,
    /// The one over the other.
    pub query_key_ratio: f64,
    /// Mean key norm at position 0 over the mean at all others: the K-norm ratio of the first token.
    pub first_key_ratio: f64,
    /// The K-norm ratio as the GPT-OSS toolkits measure it: mean key norm at positions 0 to 3 over the mean at all others.
    pub first_four_keys_ratio: f64,
    /// Mean value norm at position 0 over the mean at all others.
    pub first_value_ratio: f64,
    /// Mean distance in tokens, weighted by all heads' attention to tokens.
    pub mean_distance: f64,
    /// Distance within which 90 % of all heads' attention to tokens lies.
    pub reach: usize,
    /// Rotary pairs that do not turn; see [`Pair::turns`].
    pub still_pairs: usize,
    /// [`Pair::sharing`], averaged with the pairs' key energies as weights.
    pub sharing: Option<f64>,
    /// Mean of [`Pair::correlation`].
    pub correlation: Option<f64>,
}

/// One rotary pair.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Radians per token.
    pub frequency: f64,
    /// Mean square of the pair's query components, summed over heads.
    pub query_energy: f64,
    /// Mean square of the pair's key components, summed over key/value heads.
    pub key_energy: f64,
    /// Radians turned over the layer's mean distance.
    pub turn_mean: f64,
    /// Radians turned over the layer's reach.
    pub turn_reach: f64,
    /// Radians turned over the longest distance that may occur: `max-length`, or the window of a sliding layer.
    pub turn_longest: f64,
    /// Whether it turns by at least 1 radian over the layer's reach.
    pub turns: bool,
    /// `|E e^{iθΔ}|` over each head's attention by distance `Δ`, mean over heads: 1 for a rotation that might as well be left out, 0 for one
    /// that points everywhere.
    pub coherence: f64,
    /// Share of the key energy that one complex component shared by all key/value heads holds; 1 / heads is none.
    pub sharing: Option<f64>,
    /// Mean over pairs of key/value heads of `|E k_g k̄_g'| / √(E|k_g|² E|k_g'|²)`, the components as complex numbers; none for one head.
    pub correlation: Option<f64>,
}

/// Experts of one layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// Share of all choices that fell on each expert; sums to 1.
    pub load: Vec<f64>,
    /// Mean of the router's softmax over all experts, by expert; sums to 1.
    pub probability: Vec<f64>,
    /// Mean weights of a token's experts, largest first; sum to 1.
    pub gates: Vec<f64>,
    /// Mean entropy of the router's softmax in nats.
    pub entropy: f64,
    /// The same as a share of `ln E`, the largest there can be of `E` experts.
    pub entropy_share: f64,
    /// `E Σ_e load_e · probability_e`, the load-balance loss of Switch Transformers (arXiv 2101.03961, eq. 4); 1 for even loads.
    pub balance: f64,
    /// `exp` of the entropy of the loads: how many experts carry the tokens.
    pub effective_experts: f64,
    /// Experts that no token chose.
    pub dead: Vec<usize>,
    /// Mean gap between the last chosen logit and the first one left out.
    pub top_k_gap: f64,
    /// Its standard deviation over tokens.
    pub top_k_gap_deviation: f64,
    /// Share of tokens whose gap is below 0.01, 0.03, 0.1, 0.3, 1, 3, and the rest: each without those before it.
    pub gaps: Vec<f64>,
    /// Pairs of experts that are chosen together more often than others, largest lift first; of those that chance alone would bring
    /// together at least ten times.
    pub together: Vec<Together>,
    /// The lift of a pair when every choice of `k` of `E` experts is as likely: `(k − 1) E / (k (E − 1))`.
    pub lift_by_chance: f64,
    /// Share of tokens that chose both of two experts [E, E]; the diagonal is those that chose one. Left out above 32 experts.
    pub matrix: Option<Vec<Vec<f64>>>,
}

/// Two experts that tokens choose together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Together {
    /// The two, the lower index first.
    pub experts: [usize; 2],
    /// Share of tokens that chose both.
    pub share: f64,
    /// `count(a, b) · N / (count(a) · count(b))` for `N` tokens: 1 if each is chosen whatever the other.
    pub lift: f64,
}

/// Spectra of keys before rotation and of values, all heads together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spectra {
    /// Of the keys.
    pub keys: Spectrum,
    /// Of the values.
    pub values: Spectrum,
    /// Of keys and values as one vector.
    pub joint: Spectrum,
}

/// One spectrum.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spectrum {
    /// Singular values per token (root mean square), largest first.
    pub singular_values: Vec<f64>,
    /// `exp` of the entropy of the squared spectrum.
    pub effective_rank: f64,
    /// The fewest singular values that hold 90 % of the energy.
    pub rank_90: usize,
    /// The fewest that hold 95 %.
    pub rank_95: usize,
    /// The fewest that hold 99 %.
    pub rank_99: usize,
}
