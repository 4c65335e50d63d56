//! Needles on the golden models' words: lengths, depths, and what cannot be made.

use super::*;
use crate::stage::{analyze::tests::golden, analyze::tests::texts, testing::Bench};

fn stage(toml: &str) -> MakeNeedles {
    toml::from_str(&format!("texts = 'held-out'\nmodel = 'model'\n{toml}")).unwrap()
}

fn made(toml: &str) -> Result<Vec<Text>, String> {
    let (_source, checkpoint) = golden("gptoss-dense");
    let bench = Bench::new().input("model", &checkpoint).input("texts", &texts(&[400, 300, 500]));
    bench.run(&stage(toml)).map_err(|e| e.to_string())?;
    Ok(bench.load::<Texts>("texts").0)
}

#[test]
fn texts_have_the_lengths_and_depths_that_were_asked_for() {
    let (_source, checkpoint) = golden("gptoss-dense");
    let encoder = Encoder::from_file(checkpoint.file("tokenizer.json").unwrap()).unwrap();
    let texts = made("lengths = [80, 600]\ndepths = [0.0, 1.0]\nsamples = 3\ndistractors = 1").unwrap();
    assert_eq!(texts.len(), 12);
    assert!(texts.windows(2).all(|pair| pair[0].id < pair[1].id));
    for (source, length) in
        [("needle-80/0", 80), ("needle-80/1", 80), ("needle-600/0", 600), ("needle-600/1", 600)]
    {
        let group: Vec<&Text> = texts.iter().filter(|text| text.source == source).collect();
        assert_eq!(group.len(), 3, "{source}");
        for text in group {
            assert!(encoder.count(&text.text).unwrap() <= length);
            let [mark] = text.marks[..] else { panic!("one answer") };
            assert_eq!(mark.choices, 90_000);
            assert_eq!(text.text[mark.stated..][..5], text.text[mark.start..mark.end]);
        }
    }
}

#[test]
fn what_cannot_be_made_is_said() {
    let error = made("lengths = [4000]").unwrap_err();
    assert!(error.contains("tokens, fewer than a text of 4000"), "{error}");
    let error = made("lengths = [10]").unwrap_err();
    assert!(error.contains("the sentences alone have"), "{error}");
    for (toml, param) in [
        ("lengths = []", "lengths"),
        ("depths = []", "depths"),
        ("depths = [1.5]", "depths"),
        ("samples = 0", "samples"),
        ("distractors = 64", "distractors"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, param, "{toml}");
    }
}
