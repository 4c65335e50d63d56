//! The stage on a tiny model.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::{
    artifact::checkpoint::Draft,
    engine::action::{Quiet, Stop},
    model::testing::{checkpoint, draft},
    stage::testing::{Bench, Kept, Says},
};

/// A name for each of the model's 31 tokens, so that every one is text but the last, which is special.
fn tokenizer() -> Vec<u8> {
    let names = ('a'..='z').chain("0123".chars());
    let vocab: serde_json::Map<_, _> = names.enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    let end = json!({"id": 30, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "merges": [], "vocab": vocab});
    let whole = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": [end],
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"}, "model": model});
    serde_json::to_vec(&whole).unwrap()
}

fn model(with: &[(&str, Value)]) -> Draft {
    let mut draft = draft(&["sliding_attention", "full_attention"]);
    draft.side_files.insert("tokenizer.json".to_owned(), tokenizer());
    for (name, value) in with {
        draft.config[*name] = value.clone();
    }
    draft
}

fn stage(toml: &str) -> Sample {
    toml::from_str(&format!("model = 'model'\n{toml}")).unwrap()
}

fn bench(draft: &Draft) -> Bench {
    Bench::new().input("model", &checkpoint(draft).1)
}

fn run(draft: &Draft, toml: &str) -> Vec<Text> {
    let bench = bench(draft).seed(3);
    bench.run(&stage(toml)).unwrap();
    bench.load::<Texts>(OUTPUT).0
}

#[test]
fn documents_are_what_the_model_says_from_its_begin_token_on() {
    let draft = model(&[("bos_token_id", json!(7)), ("eos_token_id", json!([30, 4]))]);
    let texts = run(&draft, "documents = 40\nmax-tokens = 9");
    assert!(texts.len() > 30 && texts.is_sorted_by(|a, b| a.id < b.id));
    for text in &texts {
        assert_eq!(text.id, blake3::hash(text.text.as_bytes()).to_hex().as_str());
        assert!(text.text.len() <= 9 && !text.text.contains("<|end|>"), "{text:?}");
        // The second end token has a name that is text.
        assert!(!text.text.contains('e') || text.text.find('e') == Some(text.text.len() - 1), "{text:?}");
    }
    let lengths: BTreeSet<usize> = texts.iter().map(|text| text.text.len()).collect();
    assert!(lengths.len() > 3 && lengths.contains(&9), "{lengths:?}");
    let written: BTreeSet<&str> = texts.iter().map(|text| &*text.text).collect();
    let model = Model::frozen(&checkpoint(&draft).1).unwrap();
    let limits = Limits { max_new_tokens: 9, ends: &[30, 4] };
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 3 };
    let first = sample(&model, &[&[7]], limits, (sampling, 0), &mut |_, _| true).unwrap().remove(0);
    let names: Vec<char> = ('a'..='z').chain("0123".chars()).collect();
    let first: String = first.iter().filter_map(|&id| names.get(id as usize)).collect();
    assert!(written.contains(&*first), "{first}");
}

#[test]
fn neither_batches_nor_an_interruption_change_a_text() {
    let draft = model(&[("eos_token_id", json!(30))]);
    let whole = run(&draft, "documents = 11\nmax-tokens = 6");
    assert_eq!(run(&draft, "documents = 11\nmax-tokens = 6\nbatch = 4"), whole);
    let stage = stage("documents = 11\nmax-tokens = 6\nbatch = 4");
    let (bench, dir) = (bench(&draft).seed(3), tempfile::tempdir().unwrap());
    let first = Kept::new(dir.path(), 2);
    assert!(matches!(bench.run_with(&stage, &Quiet, &first, &first.stop), Err(Failure::Stopped)));
    let second = Kept::new(dir.path(), 9);
    bench.run_with(&stage, &Quiet, &second, &Stop::default()).unwrap();
    assert_eq!((first.count(), second.count()), (2, 1), "eight documents were there already");
    assert_eq!(bench.load::<Texts>(OUTPUT).0, whole);
}

#[test]
fn the_least_probable_tokens_can_be_left_out() {
    let draft = model(&[("eos_token_id", json!(30))]);
    let letters = |toml: &str| {
        let texts = run(&draft, &format!("documents = 60\nmax-tokens = 4\n{toml}"));
        texts.iter().flat_map(|text| text.text.chars()).collect::<BTreeSet<char>>().len()
    };
    assert!(letters("top-p = 0.3") < letters(""));
    assert!(letters("temperature = 0.2") < letters(""));
}

#[test]
fn what_has_no_text_is_told() {
    let fault = |draft: &Draft, toml: &str| bench(draft).run(&stage(toml)).unwrap_err().to_string();
    assert!(fault(&model(&[]), "").contains("neither `bos_token_id` nor `eos_token_id`"));
    let mute = model(&[("eos_token_id", json!((0..31).collect::<Vec<_>>())), ("bos_token_id", json!(1))]);
    let says = Says::default();
    let bench = bench(&mute);
    bench
        .run_with(&stage("documents = 50"), &says, &crate::engine::action::NoCheckpoints, &Stop::default())
        .unwrap();
    let texts = bench.load::<Texts>(OUTPUT).0;
    assert!(texts.iter().all(|text| text.text.len() == 1));
    let said = says.0.lock().unwrap().concat();
    assert!(
        said.contains(&format!("{} of 50 documents were empty or like another", 50 - texts.len())),
        "{said}"
    );
    let mut lost = model(&[("eos_token_id", json!(30))]);
    lost.side_files.clear();
    assert!(fault(&lost, "").contains("tokenizer.json"));
}

#[test]
fn parameters_without_meaning_are_refused() {
    for (toml, at) in [
        ("documents = 0", "documents"),
        ("max-tokens = 0", "max-tokens"),
        ("batch = 0", "batch"),
        ("temperature = 0.0", "temperature"),
        ("top-p = 0.0", "top-p"),
        ("top-p = 1.5", "top-p"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, at);
    }
    assert!(stage("").check().is_ok());
}
