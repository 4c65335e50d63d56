//! Comparing tensors with what transformers computed.

use candle_core::Tensor;

pub(crate) fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

pub(crate) fn assert_close(what: &str, got: &[Vec<f32>], want: &[Vec<f32>], tolerance: f32) {
    let difference = largest_difference(got, want);
    assert!(difference <= tolerance, "{what}: largest difference {difference}, allowed {tolerance}");
}

pub(crate) fn largest_difference(got: &[Vec<f32>], want: &[Vec<f32>]) -> f32 {
    assert_eq!(got.len(), want.len());
    let differences = got.iter().zip(want).flat_map(|(got, want)| {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).map(|(a, b)| (a - b).abs())
    });
    differences.fold(0.0, |most: f32, x| if x.is_nan() { f32::INFINITY } else { most.max(x) })
}
