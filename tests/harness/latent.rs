//! Turns a layer of a golden model into latent attention without loss where all pairs stay rotated: the identity is the latent's basis.

use std::ops::Range;

use serde_json::json;

use super::golden::Golden;

/// The maps of one converted layer, rows of `f32`.
type Rows = Vec<Vec<f32>>;

impl Golden {
    /// Converts the full-attention layer `layer`. Rotary pairs in `pairs` stay rotated; the others become content.
    pub(crate) fn make_latent(&mut self, layer: usize, pairs: &[usize]) {
        let number = |key: &str| self.config[key].as_u64().unwrap() as usize;
        let (d, heads, groups) =
            (number("head_dim"), number("num_attention_heads"), number("num_key_value_heads"));
        let layers = number("num_hidden_layers");
        let m = (0.1 * self.rope()["factor"].as_f64().unwrap().ln() + 1.0) as f32;
        let halves = |pairs: Vec<usize>| -> Vec<usize> {
            pairs.iter().copied().chain(pairs.iter().map(|j| j + d / 2)).collect()
        };
        let nope = halves((0..d / 2).filter(|j| !pairs.contains(j)).collect());
        let rope = halves(pairs.to_vec());

        let name = |map: &str| format!("model.layers.{layer}.self_attn.{map}");
        // The bias is a last column, so that it moves with its row.
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|map| self.rows_with_bias(&name(map)));
        let pick = |rows: &Rows, head: usize, channels: &[usize], by: f32| -> Rows {
            channels.iter().map(|c| rows[head * d + c].iter().map(|x| x * by).collect()).collect()
        };
        let per_head =
            |n: usize, of: &dyn Fn(usize) -> Vec<Rows>| -> Rows { (0..n).flat_map(of).flatten().collect() };
        let all: Vec<usize> = (0..d).collect();
        let q = per_head(heads, &|h| vec![pick(&q, h, &nope, m), pick(&q, h, &rope, 1.0)]);
        let k_rope = per_head(groups, &|g| vec![pick(&k, g, &rope, 1.0)]);
        let content = per_head(groups, &|g| vec![pick(&k, g, &nope, m), pick(&v, g, &all, 1.0)]);
        let rank = content.len();

        for map in ["k_proj", "v_proj"] {
            self.remove(&name(map));
        }
        self.put(&name("q_proj"), &q);
        if !rope.is_empty() {
            self.put(&name("k_rope_proj"), &k_rope);
        }
        self.put(&name("kv_a_proj"), &content);
        let identity: Vec<f32> =
            (0..rank * rank).map(|i| f32::from(u8::from(i / rank == i % rank))).collect();
        self.put_f32(&format!("{}.weight", name("kv_b_proj")), &[rank, rank], &identity);

        self.config["model_type"] = json!("gpt_oss_mla");
        self.config["layer_types"][layer] = json!("latent_attention");
        if self.config.get("mla").is_none() {
            self.config["mla"] = json!(vec![(); layers]);
        }
        self.config["mla"][layer] = json!({"kv_lora_rank": rank, "rope_pairs": pairs});
    }

    fn rows_with_bias(&self, map: &str) -> Rows {
        let (weight, bias) = (self.bf16s(&format!("{map}.weight")), self.bf16s(&format!("{map}.bias")));
        let columns = weight.len() / bias.len();
        weight.chunks_exact(columns).zip(bias).map(|(row, b)| [row, &[b]].concat()).collect()
    }

    fn put(&mut self, map: &str, rows: &Rows) {
        let columns = rows[0].len() - 1;
        let flat =
            |range: Range<usize>| rows.iter().flat_map(|row| row[range.clone()].to_vec()).collect::<Vec<_>>();
        self.put_f32(&format!("{map}.weight"), &[rows.len(), columns], &flat(0..columns));
        self.put_f32(&format!("{map}.bias"), &[rows.len()], &flat(columns..columns + 1));
    }
}
