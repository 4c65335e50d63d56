//! What values become when they are stored in fewer bits, and are computed with in f32 again: a KV cache in FP8 or INT4, activations in
//! BF16. Knows no layer.

use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stored {
    /// As it was computed, in f32.
    #[default]
    Exact,
    /// Rounded to BF16.
    Bf16,
    /// Rounded to FP8 with four bits of exponent and three of mantissa, without a scale, as vLLM's `fp8` cache; at most ±448.
    Fp8,
    /// Four bits: groups of 32 neighbours of one head share a scale and a least value in F16 (per token, as KIVI's values,
    /// arXiv 2402.02750).
    Int4,
}

/// Neighbours that share a scale in INT4.
pub const GROUP: usize = 32;
/// The largest finite value of FP8 (E4M3).
const FP8_MAX: f64 = 448.0;

impl Stored {
    /// Every value of `x` as it is after it was stored.
    pub fn round(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Exact => Ok(x.clone()),
            Self::Bf16 => x.to_dtype(DType::BF16)?.to_dtype(DType::F32),
            Self::Fp8 => x.clamp(-FP8_MAX, FP8_MAX)?.to_dtype(DType::F8E4M3)?.to_dtype(DType::F32),
            Self::Int4 => int4(x),
        }
    }

    /// Bits of a stored value, with its share of scales; a value that is not rounded is served in BF16.
    pub fn bits(self) -> usize {
        match self {
            Self::Exact | Self::Bf16 => 16,
            Self::Fp8 => 8,
            Self::Int4 => 4 + 2 * 16 / GROUP,
        }
    }

    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int4 => "int4",
        }
    }
}

/// Sixteen levels between the least and the greatest value of each group along the last dimension.
fn int4(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(x.rank() - 1)?;
    let mut values = x.flatten_all()?.to_vec1::<f32>()?;
    for row in values.chunks_mut(width.max(1)) {
        for group in row.chunks_mut(GROUP) {
            let half = |x: f32| half::f16::from_f32(x).to_f32();
            let least = half(group.iter().copied().fold(f32::INFINITY, f32::min));
            let most = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = half((most - least) / 15.0);
            for value in group {
                let level =
                    if scale > 0.0 { ((*value - least) / scale).round().clamp(0.0, 15.0) } else { 0.0 };
                *value = least + level * scale;
            }
        }
    }
    Tensor::from_vec(values, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;
    use candle_core::Device;

    fn rounded(stored: Stored, values: &[f32], width: usize) -> Vec<f32> {
        let x = Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu).unwrap();
        stored.round(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn values_that_a_type_has_stay_and_others_go_to_the_nearest() {
        assert_eq!(rounded(Stored::Exact, &[0.1, 3e20], 2), [0.1, 3e20]);
        assert_eq!(
            rounded(Stored::Bf16, &[1.0, 1.003, -2.0, 1.0 + 1.0 / 128.0], 4),
            [1.0, 1.0, -2.0, 1.007_812_5]
        );
        // Three bits of mantissa: eighths between 1 and 2, 32 between 256 and 512.
        let fp8 = rounded(Stored::Fp8, &[1.1, -1.3, 300.0, 1000.0, -1000.0, 0.0], 6);
        assert_eq!(fp8, [1.125, -1.25, 288.0, 448.0, -448.0, 0.0]);
        let levels: Vec<f32> = (0..16).map(|i| i as f32 * 0.5 - 2.0).collect();
        assert_eq!(rounded(Stored::Int4, &levels, 16), levels, "a group's sixteen levels are kept");
        assert_eq!(rounded(Stored::Int4, &[0.5; 8], 8), [0.5; 8]);
    }

    #[test]
    fn a_group_ends_with_its_row_and_errs_by_half_a_level() {
        let values = noise(3, 3 * 40, 2.0);
        let stored = rounded(Stored::Int4, &values, 40);
        for (row, stored) in values.chunks(40).zip(stored.chunks(40)) {
            for (group, stored) in row.chunks(GROUP).zip(stored.chunks(GROUP)) {
                let (least, most) =
                    group.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
                let half_level = (most - least) / 30.0;
                let worst = group.iter().zip(stored).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= half_level * 1.1 && worst > 0.0, "{worst} {half_level}");
            }
        }
        assert_eq!(
            [Stored::Exact, Stored::Bf16, Stored::Fp8, Stored::Int4].map(Stored::bits),
            [16, 16, 8, 5]
        );
    }
}
