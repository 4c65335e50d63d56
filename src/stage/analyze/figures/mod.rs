//! The figures of a layer from its sums: shares, norms, energies, spectra. Knows no model file and no way to observe.

mod heads;
mod pairs;
mod routing;
mod spectra;

use faer::MatRef;

use crate::{
    artifact::{
        analysis::{Layer, Protocol},
        moments::{About, LayerMoments},
    },
    math::linalg::LinalgError,
};

/// From this distance on attention counts as far where no window says so.
const FAR: usize = 128;

/// What was measured on what.
pub(super) fn protocol(about: &About) -> Protocol {
    let window = about.model.sliding_window;
    Protocol {
        sequences: about.sequences,
        tokens: about.tokens,
        max_length: about.max_length,
        far: if window > 0 { window } else { FAR },
    }
}

/// What the sums of layer `index` say.
pub(super) fn layer(about: &About, index: usize, sums: &LayerMoments) -> Result<Layer, LinalgError> {
    let figures = Of { about, sums, tokens: sums.tokens.max(1) as f64 };
    let (geometry, pairs) = figures.geometry()?;
    Ok(Layer {
        layer: index,
        attention: sums.attention.clone(),
        positions: filled(&sums.positions).to_vec(),
        heads: (0..figures.heads()).map(|h| figures.head(h)).collect(),
        kv_heads: (0..sums.key_energy.len()).map(|g| figures.kv_head(g)).collect(),
        geometry,
        pairs,
        routing: (!sums.chosen.is_empty()).then(|| figures.routing()),
        spectra: figures.keys_values().map(|both| figures.spectra(both)).transpose()?,
    })
}

/// The sums of one layer, and how many tokens are in them.
struct Of<'a> {
    about: &'a About,
    sums: &'a LayerMoments,
    tokens: f64,
}

impl Of<'_> {
    /// Query heads.
    fn heads(&self) -> usize {
        self.sums.sink_logits.len()
    }

    /// The second moment of keys and values [2 g d, 2 g d].
    fn keys_values(&self) -> Option<MatRef<'_, f64>> {
        let sums = &self.sums.keys_values;
        let width = sums.len().isqrt();
        (width > 0).then(|| MatRef::from_row_major_slice(sums, width, width))
    }
}

/// Without the zeros at the end.
fn filled(sums: &[f64]) -> &[f64] {
    &sums[..sums.iter().rposition(|&x| x > 0.0).map_or(0, |last| last + 1)]
}

#[cfg(test)]
mod tests;
