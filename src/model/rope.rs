//! Rotary frequencies and their scaling to longer contexts, from either spelling in a `config.json`. Knows no tensor.

use serde::Deserialize;

use super::config::ConfigError;

/// Rotary embedding (RoFormer, arXiv 2104.09864) over the whole width of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are changed for contexts longer than the original one.
    pub scaling: Scaling,
    /// Tokens of the context in pre-training, before any scaling.
    pub original_context: f64,
    /// Factor on cosines and sines, of queries and keys alike.
    pub concentration: f64,
}

/// A change of the frequencies for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// None.
    Plain,
    /// All are divided (arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071 §3.2): slow ones are divided, fast ones stay, a ramp over the pairs between.
    Yarn {
        /// The divisor.
        factor: f64,
        /// Turns within the original context above which a frequency stays as it is.
        beta_fast: f64,
        /// Turns below which it is divided.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded to whole pairs.
        truncate: bool,
    },
    /// Llama 3.1: slow ones are divided, fast ones stay, a ramp over the turns between.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Turns within the original context below which a frequency is divided.
        low_freq_factor: f64,
        /// Turns above which it stays as it is.
        high_freq_factor: f64,
    },
}

impl Rope {
    /// Radians per token of each of the `head_dim / 2` pairs.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f64> {
        let base = |i: usize| self.theta.powf(-2.0 * i as f64 / head_dim as f64);
        let share = |i: usize| match self.scaling {
            Scaling::Plain => 1.0,
            Scaling::Linear { factor } => 1.0 / factor,
            Scaling::Yarn { factor, beta_fast, beta_slow, truncate } => {
                let (low, high) = self.ramp(head_dim as f64, beta_fast, beta_slow, truncate);
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                1.0 - ramp + ramp / factor
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor } => {
                let turns = self.original_context * base(i) / std::f64::consts::TAU;
                let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let ramp = ramp.clamp(0.0, 1.0);
                ramp + (1.0 - ramp) / factor
            }
        };
        (0..head_dim / 2).map(|i| base(i) * share(i)).collect()
    }

    /// The pairs between which YaRN blends.
    fn ramp(&self, dim: f64, beta_fast: f64, beta_slow: f64, truncate: bool) -> (f64, f64) {
        let corner = |turns: f64| {
            dim * (self.original_context / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (corner(beta_fast), corner(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if (high - low).abs() < f64::EPSILON {
            high += 0.001; // as in the published code: avoids a division by zero
        }
        (low, high)
    }
}

/// The parameters as `config.json` has them: `rope_parameters`, or `rope_scaling` beside `rope_theta`.
#[derive(Deserialize)]
pub(super) struct Written {
    rope_theta: Option<f64>,
    rope_scaling: Option<Parameters>,
    rope_parameters: Option<Parameters>,
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: Option<f64>,
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(alias = "type", default = "default")]
    rope_type: String,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    truncate: Option<bool>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

fn default() -> String {
    "default".to_owned()
}

impl Written {
    /// The embedding; `theta` is the base where none is named, for architectures that have such a default.
    pub(super) fn rope(&self, theta: Option<f64>) -> Result<Rope, ConfigError> {
        let parameters = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = parameters.and_then(|p| p.rope_theta).or(self.rope_theta).or(theta);
        let theta = theta.ok_or_else(|| fault("rope_theta is missing"))?;
        let partial = parameters.and_then(|p| p.partial_rotary_factor).or(self.partial_rotary_factor);
        if partial.is_some_and(|part| (part - 1.0).abs() > f64::EPSILON) {
            return Err(fault("partial_rotary_factor: heads that are rotated in part are not supported"));
        }
        let Some(parameters) = parameters else { return Ok(self.plain(theta)) };
        parameters.rope(self.plain(theta))
    }

    fn plain(&self, theta: f64) -> Rope {
        let original_context = self.max_position_embeddings.unwrap_or(4096.0);
        Rope { theta, scaling: Scaling::Plain, original_context, concentration: 1.0 }
    }
}

impl Parameters {
    fn rope(&self, plain: Rope) -> Result<Rope, ConfigError> {
        let kind = &*self.rope_type;
        let needed = |name: &str, value: Option<f64>| {
            value.ok_or_else(|| fault(&format!("rope: {kind} needs {name}")))
        };
        let factor = || needed("factor", self.factor);
        let original = self.original_max_position_embeddings;
        match kind {
            "default" => Ok(plain),
            "linear" => Ok(Rope { scaling: Scaling::Linear { factor: factor()? }, ..plain }),
            "yarn" => {
                let original_context = needed("original_max_position_embeddings", original)?;
                let factor = self.factor.unwrap_or(plain.original_context / original_context);
                let scaling = Scaling::Yarn {
                    factor,
                    beta_fast: self.beta_fast.unwrap_or(32.0),
                    beta_slow: self.beta_slow.unwrap_or(1.0),
                    truncate: self.truncate.unwrap_or(true),
                };
                Ok(Rope { scaling, original_context, concentration: self.concentration(factor), ..plain })
            }
            "llama3" => {
                let scaling = Scaling::Llama3 {
                    factor: factor()?,
                    low_freq_factor: needed("low_freq_factor", self.low_freq_factor)?,
                    high_freq_factor: needed("high_freq_factor", self.high_freq_factor)?,
                };
                Ok(Rope { scaling, original_context: original.unwrap_or(plain.original_context), ..plain })
            }
            _ => Err(fault(&format!(
                "rope_type `{kind}` is not supported; supported: default, linear, yarn, llama3"
            ))),
        }
    }

    /// YaRN's factor on cosines and sines, `0.1 · ln(factor) + 1` unless the file has its own.
    fn concentration(&self, factor: f64) -> f64 {
        let of = |mscale: f64| if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(own), _, _) => own,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => of(one) / of(all),
            _ => of(1.0),
        }
    }
}

fn fault(text: &str) -> ConfigError {
    ConfigError::Value(text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rope(config: Value) -> Result<Rope, ConfigError> {
        serde_json::from_value::<Written>(config).unwrap().rope(None)
    }

    fn llama3(original: &Value) -> Value {
        json!({"rope_theta": 500_000, "max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3",
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}})
    }

    #[test]
    fn llama3_divides_what_turns_less_than_once_and_keeps_what_turns_four_times() {
        let rope = rope(llama3(&json!(8192))).unwrap();
        let (f, base) = (rope.inv_freq(128), |i: usize| 500_000f64.powf(-(i as f64) / 64.0));
        let turns = |i: usize| 8192.0 * base(i) / std::f64::consts::TAU;
        assert_eq!((rope.concentration.to_bits(), f.len()), (1f64.to_bits(), 64));
        let mut seen = [0; 3];
        for (i, f) in f.iter().enumerate() {
            let (which, want) = match turns(i) {
                t if t >= 4.0 => (0, 1.0),
                t if t <= 1.0 => (1, 0.125),
                t => (2, (1.0 - (t - 1.0) / 3.0) / 8.0 + (t - 1.0) / 3.0),
            };
            seen[which] += 1;
            assert!((f / base(i) - want).abs() < 1e-12, "{i}");
        }
        assert_eq!(seen, [29, 29, 6]);
    }

    #[test]
    fn a_missing_original_context_is_the_whole_one_for_llama3_and_an_error_for_yarn() {
        assert_eq!(rope(llama3(&Value::Null)).unwrap().original_context.to_bits(), 131_072f64.to_bits());
        let error = rope(json!({"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}));
        assert!(error.unwrap_err().to_string().contains("yarn needs original_max_position_embeddings"));
    }

    #[test]
    fn linear_divides_all() {
        let scaled =
            rope(json!({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
        let plain = rope(json!({"rope_theta": 1e4})).unwrap();
        for (a, b) in scaled.inv_freq(16).iter().zip(plain.inv_freq(16)) {
            assert!((4.0 * a - b).abs() < 1e-15);
        }
    }

    #[test]
    fn yarn_takes_its_factor_from_the_contexts_and_its_concentration_from_two_scales() {
        let yarn = |more: Value| {
            let mut parameters =
                json!({"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 64});
            parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rope(json!({"max_position_embeddings": 256, "rope_parameters": parameters})).unwrap()
        };
        assert_eq!(yarn(json!({})), yarn(json!({"factor": 4.0})));
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        let of = |m: f64| 0.1 * m * 4f64.ln() + 1.0;
        close(yarn(json!({})).concentration, of(1.0));
        close(yarn(json!({"mscale": 0.7, "mscale_all_dim": 2.0})).concentration, of(0.7) / of(2.0));
        close(yarn(json!({"mscale": 0.7})).concentration, of(1.0));
        close(
            yarn(json!({"attention_factor": 1.5, "mscale": 0.7, "mscale_all_dim": 2.0})).concentration,
            1.5,
        );
        close(yarn(json!({"factor": 1.0})).concentration, 1.0);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (config, text) in [
            (json!({}), "rope_theta is missing"),
            (
                json!({"rope_theta": 1e4, "rope_scaling": {"rope_type": "longrope"}}),
                "rope_type `longrope` is not supported",
            ),
            (json!({"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear"}}), "linear needs factor"),
            (
                json!({"rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
                "llama3 needs low_freq_factor",
            ),
            (json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
            (
                json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
                "partial_rotary_factor",
            ),
        ] {
            assert!(rope(config.clone()).unwrap_err().to_string().contains(text), "{config}");
        }
        assert!(rope(json!({"rope_theta": 1e4, "partial_rotary_factor": 1.0})).is_ok());
    }
}
