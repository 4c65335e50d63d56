//! Analysis: what a model's attention, keys, values and experts look like on calibration text. Knows no way to measure it.

mod figures;

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

pub use self::figures::{Geometry, Head, KvHead, Layer, Pair, Routing, Spectra, Spectrum, Together};
use super::{Artifact, ArtifactError, Files, file, read_json};

/// The figures, a page about them in words, and pictures.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Analysis {
    /// All figures.
    pub figures: Figures,
    /// `summary.md`.
    pub summary: String,
    /// SVGs by file name; which there are depends on the model.
    pub pictures: BTreeMap<String, String>,
}

/// All figures of an analysis.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// What was measured on.
    pub protocol: Protocol,
    /// The analysed layers, ascending.
    pub layers: Vec<Layer>,
}

/// What was measured on what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Sequences.
    pub sequences: usize,
    /// Tokens in them.
    pub tokens: usize,
    /// Sequences were cut after this many tokens.
    pub max_length: usize,
    /// Attention counts as far from this distance on: the model's sliding window, or 128 where it has none.
    pub far: usize,
}

/// What `analysis.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    protocol: Protocol,
    pictures: Vec<String>,
    layers: Vec<Layer>,
}

const FILE: &str = "analysis.json";
const SUMMARY: &str = "summary.md";

impl Artifact for Analysis {
    const KIND: &'static str = "analysis";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let Figures { protocol, layers } = self.figures.clone();
        let written = Written { protocol, pictures: self.pictures.keys().cloned().collect(), layers };
        let figures = serde_json::to_string_pretty(&written).expect("plain data serialises") + "\n";
        let pictures = self.pictures.iter().map(|(name, picture)| (name.as_str(), picture));
        for (name, text) in pictures.chain([(FILE, &figures), (SUMMARY, &self.summary)]) {
            let path = dir.join(name);
            fs::write(&path, text).map_err(ArtifactError::io(&path))?;
        }
        Ok(())
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let read = |name: &str| {
            let path = file(Self::KIND, files, name)?;
            fs::read_to_string(path).map_err(ArtifactError::io(path))
        };
        let Written { protocol, pictures, layers } = read_json(Self::KIND, files, FILE)?;
        let pictures = pictures.into_iter().map(|name| Ok((name.clone(), read(&name)?)));
        let pictures = pictures.collect::<Result<_, ArtifactError>>()?;
        Ok(Self { figures: Figures { protocol, layers }, summary: read(SUMMARY)?, pictures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::checkpoint::files_in;

    #[test]
    fn round_trip_and_place_of_a_fault() {
        let routing = Routing { matrix: Some(vec![vec![0.5]]), ..Routing::default() };
        let joint = Spectrum { singular_values: vec![3.0, 1.0], ..Spectrum::default() };
        let layer = Layer {
            layer: 1,
            attention: "full".into(),
            heads: vec![Head { sink_logit: Some(-1.5), distance: vec![0.5, 0.4], ..Head::default() }],
            pairs: vec![Pair { sharing: Some(0.5), ..Pair::default() }],
            routing: Some(routing),
            spectra: Some(Spectra { joint, ..Spectra::default() }),
            ..Layer::default()
        };
        let analysis = Analysis {
            figures: Figures { protocol: Protocol::default(), layers: vec![layer, Layer::default()] },
            summary: "# A model\n".into(),
            pictures: [("b.svg".into(), "<svg/>".into()), ("a.svg".into(), String::new())].into(),
        };
        let dir = tempfile::tempdir().unwrap();
        analysis.save(dir.path()).unwrap();
        assert_eq!(Analysis::load(&files_in(dir.path()).unwrap()).unwrap(), analysis);
        fs::write(dir.path().join(FILE), "{\n\"protocol\": 3}").unwrap();
        let error = Analysis::load(&files_in(dir.path()).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("artifact `analysis`, file `analysis.json`, line 2"), "{error}");
    }
}
