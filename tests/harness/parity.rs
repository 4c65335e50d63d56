//! Comparing tensors with what transformers computed.

use candle_core::{Result, Tensor};
use mla_run::model::probe::Probe;

use super::golden::Expected;

/// The residual stream after each layer, at some positions of the prompt.
#[derive(Default)]
pub(crate) struct Hidden {
    pub(crate) at: Vec<usize>,
    layers: Vec<Vec<Vec<f32>>>,
}

impl Hidden {
    pub(crate) fn new(expected: &Expected) -> Self {
        Self { at: expected.positions.clone(), layers: Vec::new() }
    }

    pub(crate) fn pick<T: Clone>(&self, rows: &[T]) -> Vec<T> {
        self.at.iter().map(|&position| rows[position].clone()).collect()
    }

    /// Every layer is as near as its size lets float32 be.
    pub(crate) fn assert_close(&self, case: &str, expected: &Expected) {
        assert_eq!(self.layers.len(), expected.hidden.len());
        for (layer, (got, want)) in self.layers.iter().zip(&expected.hidden).enumerate() {
            let largest = want.iter().flatten().fold(10.0, |most: f32, x| most.max(x.abs()));
            assert_close(&format!("{case}: layer {layer}"), got, want, largest * 1e-5);
        }
    }
}

impl Probe for Hidden {
    fn layer(&mut self, _: usize, hidden: &Tensor) -> Result<()> {
        self.layers.push(self.pick(&rows(hidden)));
        Ok(())
    }
}

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
