//! Tests of the sums of a layer: addition, turns, files that are damaged.

use super::*;

fn layer(distances: usize) -> LayerMoments {
    LayerMoments {
        attention: "full".into(),
        weights: "digest".into(),
        tokens: 3,
        sink_logits: vec![0.5, -1.0],
        sink: vec![1.0, 2.0],
        distance: (0..2 * distances).map(|i| i as f64).collect(),
        gauss: (0..2 * distances).map(|i| 1.0 + i as f64).collect(),
        overlap: vec![1.0; 4],
        plain: vec![1.0, 2.0, 3.0, 4.0],
        ..LayerMoments::default()
    }
}

#[test]
fn a_sum_of_two_is_wide_enough_for_both() {
    let mut sum = layer(2);
    sum.add(layer(3)).unwrap();
    assert_eq!((sum.tokens, &sum.sink, &sum.sink_logits), (6, &vec![2.0, 4.0], &vec![0.5, -1.0]));
    assert_eq!(sum.distance, [0.0, 2.0, 2.0, 5.0, 7.0, 5.0]);
    let mut other = layer(3);
    other.add(layer(2)).unwrap();
    assert_eq!(sum, other);
}

#[test]
fn what_is_not_of_one_layer_is_not_added() {
    let check = |change: &dyn Fn(&mut LayerMoments), what: &str| {
        let mut other = layer(2);
        change(&mut other);
        assert_eq!(layer(2).add(other), Err(what));
    };
    check(&|l| l.weights = "other".into(), "the attention tensors");
    check(&|l| l.sink_logits[0] = 0.25, "the sinks");
    check(&|l| l.plain.truncate(1), "plain");
    check(&|l| l.sink = vec![0.0; 3], "sink");
}

#[test]
fn turns_are_means_by_hand() {
    let layer = LayerMoments { gauss: vec![1.0, 3.0, 0.0, 0.0], ..layer(2) };
    let (cos, sin) = layer.turns(&[0.5, 0.0]);
    let want = [(1.0 + 3.0 * 0.5f64.cos()) / 4.0, 1.0, 1.0, 1.0];
    assert!(cos.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-15), "{cos:?}");
    assert!((sin[0] - 0.75 * 0.5f64.sin()).abs() < 1e-15);
    assert_eq!(sin[1..], [0.0, 0.0, 0.0]);
}

#[test]
fn a_file_of_another_type_or_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    layer(1).save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let told = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        LayerMoments::load(&path, "layer-000.safetensors").unwrap_err().to_string()
    };
    let error = told(&bytes[..bytes.len() - 8]);
    assert!(error.starts_with("artifact `moments`, file `layer-000.safetensors`, header: "), "{error}");
    let from = bytes.windows(5).position(|w| w == b"\"F64\"").unwrap();
    let mut other = bytes.clone();
    other[from..from + 5].copy_from_slice(b"\"I64\"");
    let error = told(&other);
    assert!(error.ends_with("I64, not F64"), "{error}");
}

#[test]
fn a_missing_sum_and_a_missing_word_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    layer(1).save(&path).unwrap();
    assert_eq!(LayerMoments::load(&path, "layer").unwrap(), layer(1));
    let bytes = std::fs::read(&path).unwrap();
    for (from, to, what) in
        [("\"plain\"", "\"plaim\"", "`plain`"), ("\"about\"", "\"abaut\"", "`about` is missing")]
    {
        let text = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut changed = bytes.clone();
        changed[text..text + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, changed).unwrap();
        let error = LayerMoments::load(&path, "layer-000.safetensors").unwrap_err().to_string();
        assert!(error.contains("layer-000.safetensors") && error.contains(what), "{error}");
    }
}
