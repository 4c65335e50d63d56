//! Decoders as layers over shared blocks, whatever their architecture and with latent attention or without. Names the tensors; the
//! maths is in `block`, and which parts there are is in the configuration.

mod decode;

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use crate::artifact::checkpoint::Checkpoint;

use super::{
    batch::Batch,
    block::{
        RmsNorm,
        attention::{Common, GroupedQuery},
        gated::GatedMlp,
        latent::LatentAttention,
        moe::Moe,
        table::Table,
    },
    config::{Config, Experts, LayerKind, Storage},
    maps::Maps,
    params::{ModelError, Param, Params},
    probe::Probe,
    storage::Stored,
};

/// A whole model in memory.
pub struct Model {
    /// Its configuration.
    pub config: Config,
    /// Embedding, final norm, head.
    pub shell: Shell,
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// Trainable variables by tensor name.
    pub vars: BTreeMap<String, Var>,
}

/// What surrounds the layers.
pub struct Shell {
    embed_tokens: Table,
    norm: RmsNorm,
    /// Output head [vocab, hidden].
    pub lm_head: Table,
}

/// One decoder layer.
pub struct Layer {
    index: usize,
    input_layernorm: RmsNorm,
    attention: Attention,
    post_attention_layernorm: RmsNorm,
    /// What follows attention.
    pub mlp: Mlp,
    /// How what passes between the parts is stored.
    activations: Stored,
}

/// The second half of a layer.
#[derive(Clone)]
pub enum Mlp {
    /// One for all tokens.
    Dense(GatedMlp),
    /// Router and experts.
    Experts(Moe),
}

impl Mlp {
    /// Whether two differ in nothing but tensors.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dense(_), Self::Dense(_)) => true,
            (Self::Experts(a), Self::Experts(b)) => {
                let figures = |moe: &Moe| (moe.per_token, moe.alpha.to_bits(), moe.limit.to_bits());
                figures(a) == figures(b)
            }
            _ => false,
        }
    }
}

enum Attention {
    Grouped(GroupedQuery),
    Latent(LatentAttention),
}

impl Model {
    /// Loads everything; tensors whose name satisfies `trainable` become variables.
    pub fn load(checkpoint: &Checkpoint, trainable: &dyn Fn(&str) -> bool) -> Result<Self, ModelError> {
        Self::read(checkpoint, Storage::default(), trainable)
    }

    fn read(
        checkpoint: &Checkpoint,
        storage: Storage,
        trainable: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ModelError> {
        let config = Config { storage, ..Config::parse(&checkpoint.config)? };
        let params = Params::new(checkpoint, trainable);
        let shell = Shell::read(&params, &config);
        let layers = (0..config.layers.len()).map(|i| Layer::read(&params, &config, i)).collect();
        Ok(Self { vars: params.finish()?, config, shell, layers })
    }

    /// Lets the embedding, the head and the MLPs of layers lie in memory once: those that are frozen here and the same in `other` are taken
    /// from there. `same` says whether all tensors whose names begin so are the same in both files. Returns the beginnings that are shared.
    pub fn share(&mut self, other: &Self, same: impl Fn(&str) -> bool) -> Vec<String> {
        let vars = &self.vars;
        let frozen = |prefix: &str| !vars.keys().any(|name| name.starts_with(prefix)) && same(prefix);
        let mut shared = Vec::new();
        for (index, (own, taken)) in self.layers.iter_mut().zip(&other.layers).enumerate() {
            let prefix = format!("model.layers.{index}.mlp.");
            if own.mlp.is_like(&taken.mlp) && frozen(&prefix) {
                own.mlp = taken.mlp.clone();
                shared.push(prefix);
            }
        }
        let tied = self.config.tie_word_embeddings;
        if tied != other.config.tie_word_embeddings {
            return shared;
        }
        for (prefix, own, taken) in [
            ("model.embed_tokens.", &mut self.shell.embed_tokens, &other.shell.embed_tokens),
            ("lm_head.", &mut self.shell.lm_head, &other.shell.lm_head),
        ] {
            let named = if tied { "model.embed_tokens." } else { prefix };
            if frozen(named) {
                *own = taken.clone();
                shared.push(prefix.to_owned());
            }
        }
        shared
    }

    /// Loads everything frozen.
    pub fn frozen(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        Self::load(checkpoint, &|_| false)
    }

    /// Loads everything frozen, with cache and activations stored as `storage` says.
    pub fn stored(checkpoint: &Checkpoint, storage: Storage) -> Result<Self, ModelError> {
        Self::read(checkpoint, storage, &|_| false)
    }

    /// The residual stream after the final norm [t, hidden].
    pub fn hidden(&self, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        let mut x = self.shell.embed(&batch.ids)?;
        for layer in &self.layers {
            x = layer.forward(&x, batch, probe)?;
        }
        self.shell.normed(&x)
    }

    /// Logits [t, vocab].
    pub fn logits(&self, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        Ok(self.shell.lm_head.forward(&self.hidden(batch, probe)?)?)
    }

    /// Whether anything of layer `index` trains.
    pub fn trains(&self, index: usize) -> bool {
        self.trains_any(&format!("model.layers.{index}."))
    }

    /// Whether the embedding trains.
    pub fn trains_embedding(&self) -> bool {
        self.trains_any("model.embed_tokens.")
    }

    fn trains_any(&self, prefix: &str) -> bool {
        self.vars.keys().any(|name| name.starts_with(prefix))
    }
}

impl Shell {
    /// Loads embedding, final norm and head, frozen; of what is stored in BF16 nothing of the vocabulary's size is made.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self, ModelError> {
        let params = Params::new(checkpoint, &|_| false);
        let shell = Self::read(&params, config);
        params.finish()?;
        Ok(shell)
    }

    /// Reads embedding, final norm and head; problems are noted in `params`.
    pub fn read(params: &Params<'_>, config: &Config) -> Self {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embed_tokens = params.table("model.embed_tokens.weight", [vocab, hidden]);
        let head = if config.tie_word_embeddings {
            embed_tokens.clone()
        } else {
            params.table("lm_head.weight", [vocab, hidden])
        };
        Self {
            embed_tokens,
            norm: RmsNorm { weight: params.get("model.norm.weight", &[hidden]), eps: config.rms_norm_eps },
            lm_head: head,
        }
    }

    /// Gives the memory back that the file's pages of embedding, final norm and head take.
    pub fn release(checkpoint: &Checkpoint) {
        for prefix in ["model.embed_tokens.", "model.norm.", "lm_head."] {
            checkpoint.release(prefix);
        }
    }

    /// Embedding rows [t, hidden].
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        let vocab_size = self.embed_tokens.vocab()?;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(ModelError::TokenId { id, vocab_size });
        }
        Ok(self.embed_tokens.rows(ids)?)
    }

    /// The final norm.
    pub fn normed(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.norm.forward(x)?)
    }
}

impl Layer {
    /// Loads layer `index`, frozen.
    pub fn load(checkpoint: &Checkpoint, config: &Config, index: usize) -> Result<Self, ModelError> {
        let params = Params::new(checkpoint, &|_| false);
        let layer = Self::read(&params, config, index);
        params.finish()?;
        Ok(layer)
    }

    /// Gives the memory back that the file's pages of layer `index` take, once it is done.
    pub fn release(checkpoint: &Checkpoint, index: usize) {
        checkpoint.release(&format!("model.layers.{index}."));
    }

    /// Reads layer `index`; problems are noted in `params`.
    pub fn read(params: &Params<'_>, config: &Config, index: usize) -> Self {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let hidden = config.hidden_size;
        let norm =
            |part: &str| RmsNorm { weight: params.get(&name(part), &[hidden]), eps: config.rms_norm_eps };
        Self {
            index,
            input_layernorm: norm("input_layernorm.weight"),
            attention: Attention::read(params, config, index),
            post_attention_layernorm: norm("post_attention_layernorm.weight"),
            activations: config.storage.activations,
            mlp: Mlp::read(params, config, index),
        }
    }

    /// The sink logit of each query head; −∞ where the architecture has none.
    pub fn sinks(&self) -> Result<Vec<f32>, ModelError> {
        Ok(self.common().sinks.tensor.to_vec1()?)
    }

    fn common(&self) -> &Common {
        match &self.attention {
            Attention::Grouped(attention) => &attention.common,
            Attention::Latent(attention) => &attention.common,
        }
    }

    /// The residual stream `x` [t, hidden] through the whole layer.
    pub fn forward(&self, x: &Tensor, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        let attended = self.attend(x, batch, probe)?;
        self.finish(x, &attended, probe)
    }

    /// The attention block's contribution [t, hidden] for the residual stream `x`, before it is added.
    pub fn attend(&self, x: &Tensor, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        let x = self.activations.round(&self.input_layernorm.forward(x)?)?;
        let attended = match &self.attention {
            Attention::Grouped(attention) => attention.forward(&x, batch, probe)?,
            Attention::Latent(attention) => attention.forward(&x, batch, probe)?,
        };
        Ok(self.activations.round(&attended)?)
    }

    /// What [`Self::attend`] gives for these outputs of its heads [t, heads · dv].
    pub fn project(&self, heads: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.activations.round(&self.common().output(heads)?)?)
    }

    /// The rest of the layer: adds `attended` to `x`, then the MLP.
    pub fn finish(&self, x: &Tensor, attended: &Tensor, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        let x = self.activations.round(&(x + attended)?)?;
        let normed = self.activations.round(&self.post_attention_layernorm.forward(&x)?)?;
        let y = match &self.mlp {
            Mlp::Dense(mlp) => mlp.forward(&normed)?,
            Mlp::Experts(moe) => moe.forward(&normed, probe)?,
        };
        let x = self.activations.round(&(&x + y)?)?;
        probe.layer(self.index, &x)?;
        Ok(x)
    }
}

impl Attention {
    fn read(params: &Params<'_>, config: &Config, index: usize) -> Self {
        let maps = Maps { params, prefix: format!("model.layers.{index}.self_attn") };
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let (heads, kv_heads, parts) = (config.num_attention_heads, config.num_key_value_heads, config.parts);
        let mut inv_freq = config.rope.inv_freq(d);
        let kind = &config.layers[index];
        if let LayerKind::Latent(latent) = kind {
            inv_freq = latent.rope_pairs.iter().map(|&pair| inv_freq[pair]).collect();
        }
        let common = Common {
            layer: index,
            heads,
            kv_heads,
            scale: (d as f32).powf(-0.5),
            window: kind.slides().then_some(config.sliding_window),
            inv_freq,
            concentration: config.rope.concentration,
            sinks: if parts.sinks {
                params.get(&format!("{}.sinks", maps.prefix), &[heads])
            } else {
                Param::constant(f32::NEG_INFINITY, heads)
            },
            o_proj: maps.linear("o_proj", [hidden, heads * d], parts.o_bias),
            storage: config.storage,
        };
        // A conversion may put a bias where there was none.
        let bias = parts.qkv_bias || matches!(kind, LayerKind::Latent(_));
        let qk_norm = || parts.qk_norm.then(|| ["q_norm", "k_norm"].map(|name| maps.norm(name, d, config)));
        let q_proj = |width: usize| maps.linear("q_proj", [heads * width, hidden], bias);
        match kind {
            LayerKind::Sliding | LayerKind::Full => Self::Grouped(GroupedQuery {
                common,
                q_proj: q_proj(d),
                k_proj: maps.linear("k_proj", [kv_heads * d, hidden], bias),
                v_proj: maps.linear("v_proj", [kv_heads * d, hidden], bias),
                qk_norm: qk_norm(),
            }),
            LayerKind::Latent(latent) => {
                let (nope, rope, rank) =
                    (latent.qk_nope_head_dim(d), latent.qk_rope_head_dim(), latent.kv_lora_rank);
                let rope_rows = latent.rope_elements(kv_heads);
                Self::Latent(LatentAttention {
                    common,
                    q_proj: q_proj(nope + rope),
                    k_rope_proj: (rope > 0).then(|| maps.linear("k_rope_proj", [rope_rows, hidden], true)),
                    kv_a_proj: maps.linear("kv_a_proj", [rank, hidden], true),
                    kv_b_proj: maps.linear("kv_b_proj", [kv_heads * (nope + d), rank], false),
                    qk_norm: qk_norm(),
                    rope_heads: latent.rope_heads(kv_heads),
                    nope,
                    dv: d,
                })
            }
        }
    }
}

impl Mlp {
    fn read(params: &Params<'_>, config: &Config, index: usize) -> Self {
        let maps = Maps { params, prefix: format!("model.layers.{index}.mlp") };
        let (hidden, inner, bias) = (config.hidden_size, config.intermediate_size, config.parts.mlp_bias);
        match config.experts {
            None => Self::Dense(GatedMlp {
                gate_proj: maps.linear("gate_proj", [inner, hidden], bias),
                up_proj: maps.linear("up_proj", [inner, hidden], bias),
                down_proj: maps.linear("down_proj", [hidden, inner], bias),
            }),
            Some(experts) => Self::Experts(read_moe(&maps, [hidden, inner], experts, index)),
        }
    }
}

fn read_moe(maps: &Maps<'_>, [hidden, inner]: [usize; 2], config: Experts, index: usize) -> Moe {
    let (params, experts) = (maps.params, config.num_local_experts);
    let name = |part: &str| format!("{}.experts.{part}", maps.prefix);
    Moe {
        layer: index,
        router: maps.linear("router", [experts, hidden], true),
        gate_up: params.experts(&name("gate_up_proj"), [experts, 2 * inner, hidden]),
        gate_up_bias: params.get(&name("gate_up_proj_bias"), &[experts, 2 * inner]),
        down: params.experts(&name("down_proj"), [experts, hidden, inner]),
        down_bias: params.get(&name("down_proj_bias"), &[experts, hidden]),
        per_token: config.num_experts_per_tok,
        alpha: config.swiglu_alpha,
        limit: config.swiglu_limit,
        round_experts: false,
    }
}
