//! The stage on a tiny model, against the forward pass of the whole model.

use super::*;
use crate::{
    artifact::{checkpoint::files_in, encoder::tests::LETTERS},
    model::{Model, Probe, testing::draft},
    stage::testing::{Bench, texts},
};

fn checkpoint(dir: &std::path::Path) -> Checkpoint {
    let mut draft = draft(&["sliding_attention", "full_attention", "full_attention"]);
    draft.side_files.insert("tokenizer.json".to_owned(), LETTERS.into());
    draft.save(dir).unwrap();
    Checkpoint::load(&files_in(dir).unwrap()).unwrap()
}

const TEXTS: [&str; 5] = ["abcabc abd", "e", "", "deedeedeeddeedee", "abcabc abc"];

fn stage() -> Activations {
    Activations {
        texts: Input::new("corpus"),
        model: Input::new("model"),
        layer: None,
        max_tokens: 12,
        dim: 1024,
        centre: false,
    }
}

fn run(stage: &Activations) -> Result<Embeddings, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new().input("texts", &texts(&TEXTS)).input("model", &checkpoint(dir.path()));
    bench.run(stage)?;
    Ok(bench.load(OUTPUT))
}

struct Streams(Vec<Tensor>);

impl Probe for Streams {
    fn layer(&mut self, _: usize, hidden: &Tensor) -> candle_core::Result<()> {
        self.0.push(hidden.clone());
        Ok(())
    }
}

/// The mean of the rows of unit length, from the model as a whole and one document at a time.
fn expected(text: &str, layer: usize, most: usize) -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::frozen(&checkpoint(dir.path())).unwrap();
    let mut ids: Vec<u32> = text.chars().map(|c| "abcde ".find(c).unwrap() as u32).collect();
    ids.extend(model_end(dir.path()));
    ids.truncate(most);
    let mut streams = Streams(Vec::new());
    model.hidden(&Batch::new([&ids[..]]), &mut streams).unwrap();
    let rows: Vec<Vec<f32>> = streams.0[layer - 1].to_vec2().unwrap();
    let mut mean = vec![0f64; rows[0].len()];
    for row in rows.iter().skip(usize::from(rows.len() > 1)) {
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x) / norm);
    }
    let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    mean.iter().map(|x| x / norm).collect()
}

/// The model's end token, which stands behind every text.
fn model_end(dir: &std::path::Path) -> Option<u32> {
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["eos_token_id"].as_u64().map(|id| id as u32)
}

#[test]
fn vectors_are_the_mean_of_what_the_model_makes_of_each_token() {
    for (layer, most) in [(None, 12), (Some(1), 12), (Some(3), 7)] {
        let found = run(&Activations { layer, max_tokens: most, ..stage() }).unwrap();
        assert_eq!(found.ids.len(), TEXTS.len());
        for (i, text) in TEXTS.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            let want = expected(text, layer.unwrap_or(2), most);
            let row = &found.vectors[i * found.about.dim..][..found.about.dim];
            for (got, want) in row.iter().zip(&want) {
                let apart = f64::from(*got) / f64::from(grid::SCALE) - want;
                assert!(apart.abs() < 1.5 / f64::from(grid::SCALE), "{text:?} {layer:?}: {got} {want}");
            }
        }
    }
}

fn cosine(embeddings: &Embeddings, a: usize, b: usize) -> f64 {
    let row = |i: usize| &embeddings.vectors[i * embeddings.about.dim..][..embeddings.about.dim];
    let dot: i64 = row(a).iter().zip(row(b)).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum();
    dot as f64 / f64::from(grid::SCALE).powi(2)
}

#[test]
fn a_projection_keeps_angles_and_documents_alike_are_near() {
    let (whole, few) = (run(&stage()).unwrap(), run(&Activations { dim: 8, ..stage() }).unwrap());
    assert_eq!(few.about.dim, 8);
    assert!(cosine(&whole, 0, 4) > cosine(&whole, 0, 3), "they share most of their letters");
    assert!((cosine(&few, 3, 3) - 1.0).abs() < 1e-2);
    let wide = Signs { seed: 3, dim: 1024 };
    let vectors = [crate::kernel::testing::noise(1, 2000, 1.0), crate::kernel::testing::noise(2, 2000, 1.0)];
    let mut mixed: Vec<f64> = vectors[0].iter().map(|&x| f64::from(x)).collect();
    mixed.iter_mut().zip(&vectors[1]).for_each(|(x, y)| *x += f64::from(*y));
    let first: Vec<f64> = vectors[0].iter().map(|&x| f64::from(x)).collect();
    let angle = |a: &[f64], b: &[f64]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let apart = angle(&first, &mixed) - angle(&wide.project(&first), &wide.project(&mixed));
    assert!(apart.abs() < 0.1, "{apart}");
    assert_ne!(wide.project(&first), Signs { seed: 4, dim: 1024 }.project(&first));
}

#[test]
fn parameters_that_do_not_fit_are_refused() {
    for (wrong, param) in [
        (Activations { dim: 7, ..stage() }, "dim"),
        (Activations { dim: 1025, ..stage() }, "dim"),
        (Activations { max_tokens: 1, ..stage() }, "max-tokens"),
        (Activations { layer: Some(0), ..stage() }, "layer"),
    ] {
        assert_eq!(wrong.check().unwrap_err().param, param);
    }
    assert!(stage().check().is_ok());
    let error = run(&Activations { layer: Some(4), ..stage() }).unwrap_err().to_string();
    assert!(error.contains("`layer` is 4, but the model has 3 layers"), "{error}");
}
