//! Promises that all artifacts keep: what was saved comes back, and a file that is missing or damaged is named with the place.

use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any},
    prop_assert_eq, proptest,
};
use safetensors::{Dtype, tensor::TensorView};

use super::{
    analysis::{self, Analysis},
    bundle::Bundle,
    checkpoint::{Checkpoint, Draft, Owned, files_in},
    clusters::{self, Clusters, Member},
    conversion::Conversion,
    drops::Drops,
    embeddings::{self, Embeddings},
    files::FileSet,
    gains::Gains,
    moments::{LayerMoments, Moments},
    scores::tests::example,
    splits::{Chosen, Split},
    testing::{comes_back, damaged, each_file_is_needed, edited, saved},
    texts::{Mark, Text, Texts},
    *,
};

fn text(id: &str, text: &str) -> Text {
    let mark = Mark { start: 1, end: 2, stated: 0, choices: 3 };
    Text {
        id: id.into(),
        source: "sources.0/a".into(),
        licence: "MIT".into(),
        text: text.into(),
        special_tokens: true,
        marks: vec![mark],
    }
}

fn chosen(id: &str) -> Chosen {
    let Text { id, text, source, licence, special_tokens, marks } = text(id, "abc");
    let (bucket, reason) = ("swa".to_owned(), "near".to_owned());
    Chosen {
        id,
        text,
        source,
        licence,
        n_tokens: 7,
        bucket,
        cluster: 2,
        reason,
        rank: 0,
        score: 16_000_000,
        margin: -1,
        split: "calib_swa_golden".into(),
        density: None,
        recalls: 2,
        recall_typical: 200,
        recall_longest: 300,
        special_tokens,
        context_gain: Some(-4),
        context_gain_error: None,
        marks,
    }
}

fn vectors() -> Embeddings {
    let about = embeddings::About { model: "lexical".into(), dim: 2, scale: 4000, centred: false };
    Embeddings {
        about,
        ids: vec!["a".into(), "b".into()],
        vectors: vec![1, -2, i16::MAX, i16::MIN],
        windows: vec![1, 2],
    }
}

fn clustering() -> Clusters {
    let about = clusters::About { k: 1, dim: 2, scale: 4000, ..clusters::About::default() };
    let member = Member { id: "a".into(), cluster: 0, score: -5, margin: None, density: None };
    Clusters { about, members: vec![member], centroids: vec![3, -4] }
}

/// Moments with one layer, and the folder that it lies in.
fn sums(query: Vec<f64>) -> (tempfile::TempDir, Moments) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sums");
    LayerMoments { weights: "digest".to_owned(), query, ..LayerMoments::default() }.save(&path).unwrap();
    let moments = Moments { layers: [(3, path)].into(), held_out: vec![vec![1, 2]], ..Moments::default() };
    (dir, moments)
}

fn looked_at() -> Analysis {
    let figures = analysis::Figures::default();
    let pictures = [("heads.svg".to_owned(), "<svg/>".to_owned())].into();
    Analysis { figures, summary: "# é\n".into(), pictures }
}

#[test]
fn every_file_is_needed_and_missed_by_name() {
    each_file_is_needed(&looked_at(), &["analysis.json", "summary.md", "heads.svg"]);
    each_file_is_needed(&clustering(), &["clusters.json", "members.jsonl", "centroids.safetensors"]);
    each_file_is_needed(&Conversion::default(), &["conversion.json"]);
    each_file_is_needed(&Drops::default(), &["counts.json", "drops.jsonl"]);
    each_file_is_needed(&Gains::default(), &["about.json", "gains.jsonl"]);
    each_file_is_needed(&vectors(), &["embeddings.json", "ids.txt", "vectors.safetensors"]);
    let (_dir, moments) = sums(vec![4.0; 4]);
    each_file_is_needed(&moments, &["about.json", "layer-003.safetensors"]);
    each_file_is_needed(&example(), &["scores.json"]);
    each_file_is_needed(&Split(vec![chosen("a")]), &["split.jsonl"]);
    each_file_is_needed(&Texts(vec![text("a", "b")]), &["texts.jsonl"]);
}

#[test]
fn artifacts_without_rows_come_back() {
    comes_back(&Texts::default());
    comes_back(&Split::default());
    comes_back(&Drops::default());
    comes_back(&Clusters::default());
    comes_back(&Embeddings::default());
    comes_back(&Moments::default());
    comes_back(&Conversion::default());
    comes_back(&Analysis::default());
    comes_back(&FileSet::default());
    comes_back(&Gains::default());
}

#[test]
fn a_fault_in_json_is_told_with_file_line_and_reason() {
    let (_dir, moments) = sums(vec![]);
    let check = |error: String, start: &str, reason: &str| {
        assert!(error.starts_with(&format!("artifact {start}: ")) && error.contains(reason), "{error}");
    };
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let garble = |_: Vec<u8>| b"{\"a\": \xff\xfe}".to_vec();
    check(
        edited(&looked_at(), "analysis.json", "\"layers\"", "\"floors\""),
        "`analysis`, file `analysis.json`, line 11",
        "unknown field `floors`",
    );
    check(damaged(&looked_at(), "analysis.json", cut), "`analysis`, file `analysis.json`, line 5", "EOF");
    check(
        damaged(&Conversion::default(), "conversion.json", |_| vec![]),
        "`conversion`, file `conversion.json`, line 1",
        "EOF",
    );
    check(
        edited(&Conversion::default(), "conversion.json", "\"tokens\": 0", "\"tokens\": -1"),
        "`conversion`, file `conversion.json`, line 9",
        "invalid value: integer `-1`",
    );
    check(
        edited(&clustering(), "clusters.json", "\"k\": 1", "\"k\": null"),
        "`clusters`, file `clusters.json`, line 2",
        "invalid type: null",
    );
    check(damaged(&clustering(), "clusters.json", garble), "`clusters`, file `clusters.json`, line 1", "");
    check(
        edited(&vectors(), "embeddings.json", "\"dim\": 2", "\"dim\": 2, \"dim\": 2"),
        "`embeddings`, file `embeddings.json`, line 3",
        "duplicate field `dim`",
    );
    check(
        edited(&moments, "about.json", "\"layers\"", "\"floors\""),
        "`moments`, file `about.json`, line 1",
        "unknown field `floors`",
    );
    check(
        damaged(&Drops::default(), "counts.json", |_| b"[]".to_vec()),
        "`drops`, file `counts.json`, line 1",
        "expected a map",
    );
    check(
        edited(&example(), "scores.json", "\"healed\"", "3"),
        "`scores`, file `scores.json`, line 81",
        "expected a string",
    );
}

#[test]
fn a_fault_in_json_lines_is_told_with_its_line() {
    let rows = Texts(vec![text("a", "b"), text("c", "d")]);
    let check = |error: String, start: &str, reason: &str| {
        assert!(error.starts_with(start) && error.contains(reason), "{error}");
    };
    let (one, two) =
        ("artifact `texts`, file `texts.jsonl`, line 1: ", "artifact `texts`, file `texts.jsonl`, line 2: ");
    check(edited(&rows, "texts.jsonl", "\"source\"", "\"from\""), one, "unknown field `from`");
    check(edited(&rows, "texts.jsonl", "\"choices\":3", "\"choices\":-3"), one, "invalid value");
    check(edited(&rows, "texts.jsonl", "\"id\":\"c\",", ""), two, "missing field `id`");
    check(edited(&rows, "texts.jsonl", "\n", "\n\n"), two, "EOF");
    check(damaged(&rows, "texts.jsonl", |bytes| bytes[..bytes.len() - 9].to_vec()), two, "EOF");
    // Bytes that are no text fail in the file system's words, with the path.
    let error = damaged(&rows, "texts.jsonl", |bytes| [&bytes[..], b"\xff\n"].concat());
    assert!(error.contains("texts.jsonl: ") && error.contains("UTF-8"), "{error}");
    let split = Split(vec![chosen("a")]);
    check(
        edited(&split, "split.jsonl", "\"rank\":0", "\"rank\":1e9"),
        "artifact `split`, file `split.jsonl`, line 1: ",
        "",
    );
    let error = edited(&clustering(), "members.jsonl", "\"cluster\":0", "\"cluster\":1");
    assert_eq!(error, "artifact `clusters`, file `members.jsonl`, line 1: cluster 1 of 1");
}

#[test]
fn a_last_line_may_lack_its_end_and_carriage_returns_do_not_matter() {
    let rows = Texts(vec![text("a", "b"), text("c", "d")]);
    let (_dir, files) = saved(&rows);
    let path = &files["texts.jsonl"];
    let lines = std::fs::read_to_string(path).unwrap();
    for other in [lines.trim_end().to_owned(), lines.replace('\n', "\r\n")] {
        std::fs::write(path, other).unwrap();
        assert_eq!(Texts::load(&files).unwrap(), rows);
    }
}

/// A safetensors file of one tensor.
fn tensors(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    safetensors::serialize([(name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap())], None).unwrap()
}

#[test]
fn a_grid_of_another_kind_or_shape_is_told() {
    let check = |bytes: Vec<u8>, reason: &str| {
        let error = damaged(&vectors(), "vectors.safetensors", |_| bytes);
        let place = "artifact `embeddings`, file `vectors.safetensors`, tensor `vectors`: ";
        assert!(error.starts_with(place) && error.contains(reason), "{error}");
    };
    let good = tensors("vectors", Dtype::I16, &[2, 2], &[0; 8]);
    check(good[..good.len() - 1].to_vec(), "");
    check(vec![], "");
    check(tensors("vektors", Dtype::I16, &[2, 2], &[0; 8]), "vectors");
    check(tensors("vectors", Dtype::U16, &[2, 2], &[0; 8]), "expected I16 [2, 2], found U16 [2, 2]");
    check(tensors("vectors", Dtype::I16, &[4], &[0; 8]), "expected I16 [2, 2], found I16 [4]");
    check(tensors("vectors", Dtype::I16, &[2, 3], &[0; 12]), "expected I16 [2, 2], found I16 [2, 3]");
    let error = damaged(&clustering(), "centroids.safetensors", |_| good);
    assert!(error.ends_with("tensor `vectors`: expected I16 [1, 2], found I16 [2, 2]"), "{error}");
    let twice = edited(&vectors(), "ids.txt", "b", "a");
    assert_eq!(twice, "artifact `embeddings`, file `ids.txt`, line 2: ids are not ascending");
}

#[test]
fn a_bundle_names_what_it_lacks_and_keeps_its_folders() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["config.json", "README.md", bundle::INDEX, "plugins/vllm/model.py"];
    let files: Files = names
        .into_iter()
        .map(|name| {
            let path = dir.path().join(name.replace('/', "-"));
            std::fs::write(&path, name).unwrap();
            (name.to_owned(), path)
        })
        .collect();
    for name in &names[..3] {
        let mut rest = files.clone();
        rest.remove(*name);
        let error = Bundle::load(&rest).unwrap_err().to_string();
        assert_eq!(error, format!("artifact `bundle` lacks its file `{name}`"));
    }
    let out = tempfile::tempdir().unwrap();
    Bundle::load(&files).unwrap().save(out.path()).unwrap();
    for name in names {
        assert_eq!(std::fs::read_to_string(out.path().join(name)).unwrap(), name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_text_comes_back_from_texts_and_splits(words in vec(any::<String>(), 1..5), number in any::<i64>()) {
        let texts = Texts(words.iter().map(|word| text(word, &format!("{word}\n\u{0}\"\\{word}"))).collect());
        comes_back(&texts);
        let rows = words.iter().map(|word| Chosen { score: number, margin: !number, ..chosen(word) });
        comes_back(&Split(rows.collect()));
    }

    #[test]
    fn every_bit_of_a_sum_comes_back(values in vec(any::<f64>(), 0..20)) {
        let (_kept, moments) = sums(values.clone());
        let (_dir, files) = saved(&moments);
        let loaded = Moments::load(&files).unwrap();
        let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&loaded.layer(3).unwrap().query), bits(&values));
    }

    #[test]
    fn every_vector_comes_back(vectors in vec(any::<i16>(), 0..30), dim in 1usize..5) {
        let n = vectors.len() / dim;
        let about = embeddings::About { dim, ..embeddings::About::default() };
        let ids = (0..n).map(|i| format!("{i:04}")).collect();
        comes_back(&Embeddings { about, ids, vectors: vectors[..n * dim].to_vec(), windows: vec![] });
    }

    #[test]
    fn a_checkpoint_cut_anywhere_is_refused_and_named(at in 0.0f64..1.0) {
        let tensors = [("a".to_owned(), Owned::f32(&[3], &[1.0, 2.0, 3.0]))].into();
        let dir = tempfile::tempdir().unwrap();
        Draft { tensors, ..Draft::default() }.save(dir.path()).unwrap();
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..(bytes.len() as f64 * at) as usize]).unwrap();
        let error = Checkpoint::load(&files_in(dir.path()).unwrap()).err().unwrap().to_string();
        prop_assert_eq!(error.contains("model.safetensors"), true, "{}", error);
    }
}
