//! A grouped-query layer's attention weights in f64, biases (zero where there are none) as a last column. Knows names, no use of them.

use faer::Mat;

use crate::{
    artifact::checkpoint::Checkpoint,
    model::{Config, ModelError, Params},
};

/// The projections of one layer; `D` is the hidden size.
pub(crate) struct Projections {
    /// Queries [heads · d, D + 1].
    pub(crate) q: Mat<f64>,
    /// Keys [kv heads · d, D + 1].
    pub(crate) k: Mat<f64>,
    /// Values [kv heads · d, D + 1].
    pub(crate) v: Mat<f64>,
    /// Output without its bias [D, heads · d].
    pub(crate) o: Mat<f64>,
    /// Whether queries, keys and values have biases.
    pub(crate) qkv_bias: bool,
    /// A digest of all attention tensors of the layer.
    pub(crate) fingerprint: String,
}

impl Projections {
    /// Reads the projections of `layer`.
    pub(crate) fn read(checkpoint: &Checkpoint, config: &Config, layer: usize) -> Result<Self, ModelError> {
        let params = Params::new(checkpoint, &|_| false);
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let values = |name: &str, shape: &[usize]| {
            let param = params.get(&format!("model.layers.{layer}.self_attn.{name}"), shape);
            param.tensor.flatten_all()?.to_vec1::<f32>()
        };
        let with_bias = |name: &str, heads: usize| {
            let rows = heads * d;
            let weight = values(&format!("{name}.weight"), &[rows, hidden])?;
            let bias = if config.parts.qkv_bias {
                values(&format!("{name}.bias"), &[rows])?
            } else {
                vec![0.0; rows]
            };
            let at = |i: usize, j: usize| if j < hidden { weight[i * hidden + j] } else { bias[i] };
            Ok::<_, ModelError>(Mat::from_fn(rows, hidden + 1, |i, j| f64::from(at(i, j))))
        };
        let q = with_bias("q_proj", config.num_attention_heads)?;
        let k = with_bias("k_proj", config.num_key_value_heads)?;
        let v = with_bias("v_proj", config.num_key_value_heads)?;
        let width = config.num_attention_heads * d;
        let o = values("o_proj.weight", &[hidden, width])?;
        params.finish()?;
        let o = Mat::from_fn(hidden, width, |i, j| f64::from(o[i * width + j]));
        let qkv_bias = config.parts.qkv_bias;
        Ok(Self { q, k, v, o, qkv_bias, fingerprint: fingerprint(checkpoint, layer) })
    }

    /// `W_O,hᵀ W_O,h'` [d, d] of two query heads.
    pub(crate) fn output_metric(&self, h: usize, other: usize, d: usize) -> Mat<f64> {
        let block = |h: usize| self.o.as_ref().subcols(h * d, d);
        crate::math::linalg::product(block(h).transpose(), block(other))
    }
}

/// Names, types and shapes are part of it: statistics of one model must not convert another of equal sizes.
fn fingerprint(checkpoint: &Checkpoint, layer: usize) -> String {
    let prefix = format!("model.layers.{layer}.self_attn.");
    let mut hasher = blake3::Hasher::new_derive_key("mla-run attention tensors of a layer");
    for name in checkpoint.names().filter(|name| name.starts_with(&prefix)) {
        let raw = checkpoint.raw(name).expect("listed by the checkpoint itself");
        let heading = format!("{name} {:?} {:?} {}\n", raw.dtype, raw.shape, raw.bytes.len());
        hasher.update(heading.as_bytes()).update_rayon(raw.bytes);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::testing::{close, flat},
        model::{
            Batch, Layer, Probe, Shell,
            probe::AttentionSeen,
            testing::{FULL, LATENT, SLIDING, checkpoint, draft},
        },
    };

    /// Compares the values that the layer computes with the projection of its input.
    struct Values(Projections);

    impl Probe for Values {
        fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
            let (input, hidden) = (flat(seen.input), seen.input.dim(1)?);
            let v = &self.0.v;
            let row = |x: &[f32], i: usize| {
                (0..hidden).map(|j| v[(i, j)] * f64::from(x[j])).sum::<f64>() + v[(i, hidden)]
            };
            let want: Vec<f64> =
                input.chunks(hidden).flat_map(|x| (0..v.nrows()).map(move |i| row(x, i))).collect();
            close(&flat(seen.v), &want, 1e-6);
            Ok(())
        }
    }

    #[test]
    fn values_are_the_projection_of_the_input_with_a_one_behind_it() {
        let (_dir, checkpoint) = checkpoint(&draft(&[SLIDING, FULL]));
        let config = Config::parse(&checkpoint.config).unwrap();
        let batch = Batch::new([&[3, 1, 4, 1, 5][..]]);
        let x = Shell::load(&checkpoint, &config).unwrap().embed(&batch.ids).unwrap();
        for layer in 0..2 {
            let mut probe = Values(Projections::read(&checkpoint, &config, layer).unwrap());
            Layer::load(&checkpoint, &config, layer).unwrap().attend(&x, &batch, &mut probe).unwrap();
        }
    }

    #[test]
    fn the_metric_of_two_heads_is_the_product_of_their_output_columns() {
        let (_dir, checkpoint) = checkpoint(&draft(&[FULL]));
        let config = Config::parse(&checkpoint.config).unwrap();
        let (d, projections) = (config.head_dim, Projections::read(&checkpoint, &config, 0).unwrap());
        for (h, other) in [(0, 0), (1, 3), (3, 1)] {
            let metric = projections.output_metric(h, other, d);
            for (i, j) in [(0, 0), (2, 7), (7, 2)] {
                let o = &projections.o;
                let want: f64 = (0..o.nrows()).map(|row| o[(row, h * d + i)] * o[(row, other * d + j)]).sum();
                assert!((metric[(i, j)] - want).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_latent_layer_has_no_such_projections_and_all_are_named() {
        let (_dir, checkpoint) = checkpoint(&draft(&[LATENT]));
        let config = Config::parse(&checkpoint.config).unwrap();
        let error = Projections::read(&checkpoint, &config, 0).err().unwrap().to_string();
        for name in ["k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"] {
            assert!(error.contains(&format!("`model.layers.0.self_attn.{name}` is missing")), "{error}");
        }
    }
}
