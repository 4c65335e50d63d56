//! One batch's way back through one layer. Knows no other layer and no file.

use candle_core::{Tensor, Var};

use crate::{
    kernel::host,
    model::{
        Batch, Config, Layer, ModelError, Probe,
        probe::{AttentionSeen, NoProbe},
    },
    stage::analyze::{attention::Activations, observe::unrotated},
};

/// What is found on the way.
pub(super) struct Back {
    /// What attention computed.
    pub(super) seen: [Tensor; 5],
    /// The gradient of what the attention block gives [t, hidden].
    output: Tensor,
    /// The gradient of what entered the layer [t, hidden]; zeros where that is not `wanted`.
    pub(super) entered: Tensor,
}

impl Back {
    /// Runs the layer on `x`, and goes back from `above`, the gradient of what leaves it.
    pub(super) fn through(
        layer: &Layer,
        (x, above): (&Tensor, &Tensor),
        batch: &Batch,
        wanted: bool,
    ) -> Result<Self, ModelError> {
        let gradient = |cost: Tensor, of: &Var| -> Result<Tensor, ModelError> {
            let found = cost.sum_all()?.backward()?.remove(of.as_tensor());
            Ok(found.ok_or_else(|| candle_core::Error::msg("a layer gives what entered it no gradient"))?)
        };
        let (entered, mut probe) = (Var::from_tensor(x)?, Keep(None));
        let attended = layer.attend(if wanted { entered.as_tensor() } else { x }, batch, &mut probe)?;
        let between = Var::from_tensor(x)?;
        let out = layer.finish(between.as_tensor(), &attended.detach(), &mut NoProbe)?;
        let output = gradient((out * above)?, &between)?;
        let entered = if wanted {
            (&output + gradient((&attended * &output)?, &entered)?)?
        } else {
            output.zeros_like()?
        };
        let seen = probe.0.ok_or_else(|| candle_core::Error::msg("an attention block shows nothing"))?;
        Ok(Self { seen, output, entered })
    }

    /// The gradient of the outputs of the heads [t, heads · d].
    pub(super) fn heads(&self, layer: &Layer) -> Result<Tensor, ModelError> {
        let [q, ..] = &self.seen;
        let (rows, heads, d) = q.dims3()?;
        let zeros = Var::zeros((rows, heads * d), q.dtype(), q.device())?;
        let cost = (layer.project(zeros.as_tensor())? * &self.output)?.sum_all()?;
        let found = cost.backward()?.remove(zeros.as_tensor());
        Ok(found.ok_or_else(|| candle_core::Error::msg("an output projection gives heads no gradient"))?)
    }
}

/// Keeps rotated queries and keys, values, outputs with their log-sum-exp, and the block's input.
struct Keep(Option<[Tensor; 5]>);

impl Probe for Keep {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
        self.0 = Some([seen.q, seen.k, seen.v, seen.packed, seen.input].map(Tensor::detach));
        Ok(())
    }
}

/// The same as numbers.
pub(super) struct Activated {
    q: Vec<f32>,
    q_plain: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    packed: Vec<f32>,
    /// The block's normalised input [t, hidden].
    pub(super) input: Vec<f32>,
}

impl Activated {
    pub(super) fn of(
        config: &Config,
        batch: &Batch,
        [q, k, v, packed, input]: &[Tensor; 5],
    ) -> candle_core::Result<Self> {
        let plain = unrotated(config, &batch.positions, q)?;
        let numbers = |x: &Tensor| Ok::<_, candle_core::Error>(host(x)?.to_vec());
        Ok(Self {
            q: numbers(q)?,
            q_plain: numbers(&plain)?,
            k: numbers(k)?,
            v: numbers(v)?,
            packed: numbers(packed)?,
            input: numbers(input)?,
        })
    }

    pub(super) fn activations<'a>(&'a self, batch: &'a Batch) -> Activations<'a> {
        let Self { q, q_plain, k, v, packed, .. } = self;
        Activations { q, q_plain, k, v, packed, offsets: &batch.offsets }
    }
}
