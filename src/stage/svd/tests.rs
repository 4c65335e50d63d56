//! Tests of the svd stage on the golden models: what must be equal is equal, and each known trap makes a visible difference.

use super::*;
use crate::{
    artifact::{
        checkpoint::{Draft, Owned, Raw, files_in},
        texts::{Text, Texts},
    },
    model::{Batch, Model, probe::NoProbe, testing::floats},
    stage::{
        analyze::{
            Analyze,
            tests::{golden, texts},
        },
        testing::Bench,
    },
};

fn stage(toml: &str) -> Svd {
    toml::from_str(&format!("model = 'model'\nmoments = 'analyze'\n{toml}")).unwrap()
}

/// A model and the moments of 300 random words.
struct Calibrated {
    _dir: tempfile::TempDir,
    checkpoint: Checkpoint,
    moments: Moments,
    /// The folders that the moments lie in.
    _bench: Bench,
}

/// The golden model after `change`.
fn calibrated(name: &str, change: impl Fn(&mut Draft)) -> Calibrated {
    let (_source, checkpoint) = golden(name);
    let mut draft = Draft::copy_of(&checkpoint).unwrap();
    change(&mut draft);
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    let bench = Bench::new().input("model", &checkpoint).input("texts", &texts(&[120, 50, 130, 50]));
    let analyze = "model = 'model'\ntexts = 'corpus'\nheld-out-tokens = 100\nlayers = [1, 2, 3]";
    let analyze = if name == "gptoss-dense" { analyze } else { &analyze.replace(", 3", "") };
    bench.run::<Analyze>(&toml::from_str(analyze).unwrap()).unwrap();
    Calibrated { _dir: dir, checkpoint, moments: bench.load("moments"), _bench: bench }
}

impl Calibrated {
    fn bench(&self) -> Bench {
        Bench::new().input("model", &self.checkpoint).input("moments", &self.moments)
    }

    fn convert(&self, toml: &str) -> (Bench, Checkpoint, Conversion) {
        let bench = self.bench();
        bench.run(&stage(toml)).unwrap();
        let (checkpoint, report) = (bench.load("checkpoint"), bench.load("report"));
        (bench, checkpoint, report)
    }
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let model = Model::frozen(checkpoint).unwrap();
    let ids: Vec<u32> = (0..150).map(|i| i * i % model.config.vocab_size as u32).collect();
    let logits = model.logits(&Batch::new([&ids[..100], &ids[100..]]), &mut NoProbe).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference over the largest logit.
fn difference(a: &Checkpoint, b: &Checkpoint) -> f32 {
    let (a, b) = (logits(a), logits(b));
    let largest = |x: &mut dyn Iterator<Item = f32>| x.fold(0f32, |m, x| m.max(x.abs()));
    largest(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / largest(&mut a.iter().copied())
}

/// A model in which only the first pair turns, so that all others may go un-rotated without loss; YaRN's factor stays.
fn still(draft: &mut Draft) {
    draft.config["rope_parameters"]["rope_theta"] = 1e300.into();
}

#[test]
fn all_pairs_rotated_at_full_rank_equals_the_original() {
    for (name, kv_heads, rank) in [("gptoss-dense", 2, 32), ("gptoss-mxfp4", 4, 33)] {
        let model = calibrated(name, |_| ());
        let layouts = [
            "layout = 'b'\nrope-pairs = 8".to_owned(),
            "layout = 'a'".to_owned(),
            format!("layout = 'd'\nrope-pairs = {}", kv_heads * 8),
        ];
        for layout in layouts {
            let (_bench, converted, report) = model.convert(&format!("{layout}\nkv-lora-rank = {rank}"));
            assert!(report.parity.relative_difference <= 1e-5 && report.parity.tokens > 40);
            let difference = difference(&model.checkpoint, &converted);
            assert!(difference < 1e-4, "{name} {layout}: {difference}");
            assert!(report.layers.iter().all(|layer| layer.latent_error < 1e-9 && layer.rope_error == 0.0));
        }
    }
}

#[test]
fn pairs_that_do_not_turn_can_go_un_rotated_without_loss() {
    let model = calibrated("gptoss-dense", still);
    let (_bench, converted, report) = model.convert("layout = 'b'\nrope-pairs = 1\nkv-lora-rank = 33");
    assert_eq!(report.layers[0].rope_pairs, [0]);
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
    assert!(report.layers.iter().all(|layer| layer.rope_error < 1e-9));
    // Of what heads share, both components of that pair.
    let (_bench, converted, report) = model.convert("layout = 'd'\nrope-pairs = 2\nkv-lora-rank = 33");
    assert_eq!((&report.layers[0].rope_pairs[..], report.layers[0].kv_elements_after), (&[0, 0][..], 37));
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
    assert!(report.layers.iter().all(|layer| layer.rope_error < 1e-9));
    let (_bench, converted, _) = model.convert("layout = 'd'\nrope-pairs = 1\nkv-lora-rank = 33");
    assert!(difference(&model.checkpoint, &converted) > 1e-3, "both matter");
}

/// Makes the keys of the second head those of the first, each pair turned by an angle of its own and made longer.
fn copied_heads(draft: &mut Draft, angle: &dyn Fn(usize) -> f32) {
    for (layer, part) in [(1, "weight"), (1, "bias"), (3, "weight"), (3, "bias")] {
        let name = format!("model.layers.{layer}.self_attn.k_proj.{part}");
        let (mut values, shape) = (floats(draft, &name), draft.tensors[&name].shape.clone());
        let width = values.len() / 32;
        for at in 0..8 * width {
            let (sin, cos) = angle(at / width).sin_cos();
            let (a, b) = (values[at], values[at + 8 * width]);
            values[16 * width + at] = 2.0 * (cos * a - sin * b);
            values[24 * width + at] = 2.0 * (sin * a + cos * b);
        }
        draft.tensors.insert(name, Owned::f32(&shape, &values));
    }
}

/// A real component across heads would lose much of both, a complex one holds them.
#[test]
fn heads_whose_keys_are_turned_copies_share_one_rotated_key_without_loss() {
    let model = calibrated("gptoss-dense", |draft| copied_heads(draft, &|pair| 0.4 + pair as f32));
    let toml = "layout = 'd'\nkv-lora-rank = 32\nrope-pairs = ";
    let (_bench, converted, report) = model.convert(&format!("{toml}8"));
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
    assert_eq!(report.layers[0].rope_pairs, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(report.layers.iter().all(|layer| layer.rope_error < 1e-9));
    let (_bench, converted, _) = model.convert(&format!("{toml}7"));
    assert!(difference(&model.checkpoint, &converted) > 1e-4);
}

#[test]
fn a_budget_of_shared_components_is_kept() {
    let model = calibrated("gptoss-dense", |_| ());
    let (_bench, converted, report) = model.convert("layout = 'd'\nkv-budget = 38\nmeasure = 3");
    let config = Config::parse(&converted.config).unwrap();
    assert!(report.candidates.len() > 8 && report.candidates.iter().all(|c| c.kv_elements <= 38));
    let chosen = report.candidates.iter().find(|c| c.chosen).unwrap();
    let about = &model.moments.about;
    let (tokens, temperature) = (about.fisher_tokens, about.fisher_temperature);
    let weighed = format!("errors weighed by gradients of {tokens} tokens at temperature {temperature}");
    assert!(tokens > 0 && report.calibration.ends_with(&weighed));
    for layer in &report.layers {
        assert_eq!(config.kv_elements(layer.layer), layer.kv_elements_after);
    }
    // Last come three in which each layer has what is best for it; by prediction the second of them is best of all.
    let (same, own) = report.candidates.split_at(report.candidates.len() - 3);
    assert!(same.iter().all(|c| c.pairs_by_layer.is_empty() && c.predicted >= own[1].predicted));
    assert!(own[1].predicted <= own[0].predicted && own[1].predicted <= own[2].predicted);
    let pairs: Vec<usize> = report.layers.iter().map(|layer| layer.rope_pairs.len()).collect();
    let same = vec![chosen.rope_pairs; pairs.len()];
    assert_eq!(&pairs, if chosen.pairs_by_layer.is_empty() { &same } else { &chosen.pairs_by_layer });
    // Of so few tokens gradients are mostly noise.
    let kl = |layout: &str| {
        let toml =
            format!("layout = '{layout}'\nkv-budget = 38\nmeasure = 3\nmetric = 'output'\ncontext = 100000");
        let (_bench, _, report) = model.convert(&toml);
        report.candidates.iter().filter_map(|c| c.kl).fold(f64::INFINITY, f64::min)
    };
    let (shared, pairs) = (kl("d"), kl("b"));
    assert!(shared < pairs, "{shared} against {pairs}");
}

#[test]
fn a_search_finds_quality_by_size() {
    let model = calibrated("gptoss-dense", |_| ());
    let toml = "kv-budget = 24\nmeasure = 3\n";
    let (bench, _, report) = model.convert(&format!("{toml}search = {{ kv-budget = [40, 12, 24] }}"));
    let sizes: Vec<usize> = report.curve.iter().map(|c| c.kv_elements).collect();
    assert_eq!(sizes, [12, 24, 40]);
    let kls: Vec<f64> = report.curve.iter().map(|c| c.kl.unwrap()).collect();
    assert!(kls[0] > kls[1] && kls[1] > kls[2], "{kls:?}");
    assert_eq!(Some(&report.curve[1]), report.candidates.iter().find(|c| c.chosen));
    // What is written is what would be written without it.
    let (alone, _, _) = model.convert(toml);
    let written = |bench: &Bench| bench.bytes()["checkpoint/model.safetensors"].clone();
    assert!(written(&bench) == written(&alone));
}

/// Changes the values of a tensor with rows of the given width.
type Edit<'a> = &'a dyn Fn(&mut [f32], usize);

#[test]
fn each_trap_makes_a_visible_difference() {
    let model = calibrated("gptoss-dense", still);
    let (_bench, converted, _) = model.convert("layout = 'b'\nrope-pairs = 1\nkv-lora-rank = 33");
    let base = "model.layers.1.self_attn.";
    let edit = |name: &str, f: Edit<'_>| {
        let mut draft = Draft::copy_of(&converted).unwrap();
        let name = format!("{base}{name}");
        let shape = draft.tensors[&name].shape.clone();
        let mut values = converted.raw(&name).and_then(Raw::to_f32).unwrap();
        f(&mut values, shape[shape.len() - 1]);
        draft.tensors.insert(name, Owned::f32(&shape, &values));
        let dir = tempfile::tempdir().unwrap();
        draft.save(dir.path()).unwrap();
        difference(&converted, &Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap())
    };
    let zero = |x: &mut [f32], _: usize| x.fill(0.0);
    let swap_rows = |order: Vec<usize>| {
        move |x: &mut [f32], width: usize| {
            let old = x.to_vec();
            for (to, &from) in order.iter().enumerate() {
                x[to * width..][..width].copy_from_slice(&old[from * width..][..width]);
            }
        }
    };
    // 14 un-rotated key rows and 16 value rows per head: all keys first, then all values, is another layout.
    let keys_first = [0..14, 30..44, 14..30, 44..60].into_iter().flatten().collect();
    // Queries of a head as they were: pair 0 is dims 0 and 8, and stands last now.
    let pair_split = (0..128).map(|i| i / 16 * 16 + (i % 16 + 15) % 16).collect();
    let factor = |x: &mut [f32], width: usize| {
        (0..8).for_each(|h| x[h * 16 * width..][..14 * width].iter_mut().for_each(|x| *x /= 1.2));
    };
    let traps: [(&str, &str, Edit<'_>); 6] = [
        ("bias of the latent", "kv_a_proj.bias", &zero),
        ("bias of rotated keys", "k_rope_proj.bias", &zero),
        ("bias of queries", "q_proj.bias", &zero),
        ("per-head layout of kv_b", "kv_b_proj.weight", &swap_rows(keys_first)),
        ("pairing", "q_proj.weight", &swap_rows(pair_split)),
        ("YaRN's factor on un-rotated queries", "q_proj.weight", &factor),
    ];
    for (what, name, trap) in traps {
        let difference = edit(name, trap);
        assert!(difference > 1e-3, "{what}: {difference}");
    }
}

#[test]
fn error_and_divergence_fall_with_rank() {
    let model = calibrated("gptoss-mxfp4", |_| ());
    let mut last = (f64::INFINITY, f32::INFINITY);
    for rank in [2, 12, 24, 33] {
        let toml =
            format!("layout = 'b'\nrope-pairs = 8\nkv-lora-rank = {rank}\nmetric = 'output'\nrefit = false");
        let (_bench, converted, report) = model.convert(&toml);
        let now = (report.layers[0].latent_error, difference(&model.checkpoint, &converted));
        assert!(now.0 < last.0 && now.1 < last.1, "rank {rank}: {now:?} after {last:?}");
        last = now;
    }
}

#[test]
fn a_model_with_strong_correlations_loses_next_to_nothing() {
    // Values of rank 3, and a bias: four latent channels carry them.
    let model = calibrated("gptoss-dense", |draft| {
        for layer in [1, 3] {
            let name = format!("model.layers.{layer}.self_attn.v_proj.weight");
            let factor = |i: usize, k: usize| ((i * (k + 2)) as f32).cos();
            let basis = |k: usize, j: usize| ((j * (k + 3)) as f32 * 0.7).sin() * 0.3;
            let value = |i: usize, j: usize| -> f32 { (0..3).map(|k| factor(i, k) * basis(k, j)).sum() };
            let values: Vec<f32> = (0..32 * 32).map(|n| value(n / 32, n % 32)).collect();
            draft.tensors.insert(name, Owned::f32(&[32, 32], &values));
        }
    });
    let (_bench, converted, report) = model.convert("layout = 'a'\nkv-lora-rank = 4");
    assert!(report.layers.iter().all(|layer| layer.latent_error < 1e-9), "{:?}", report.layers);
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
    let (_bench, _, report) = model.convert("layout = 'a'\nkv-lora-rank = 3");
    assert!(report.layers[0].latent_error > 1e-9, "the bias takes a channel of its own");
}

#[test]
fn a_budget_is_kept_its_table_recorded_and_the_best_split_taken() {
    let model = calibrated("gptoss-dense", |_| ());
    let (bench, converted, report) =
        model.convert("layout = 'b'\nkv-budget = 38\ncontext = 256\nmeasure = 3\nown-splits = false");
    assert!(report.candidates.len() > 3);
    assert!(report.candidates.iter().all(|c| c.kv_elements <= 38));
    let measured: Vec<f64> = report.candidates.iter().filter_map(|c| c.kl).collect();
    assert_eq!(measured.len(), 3);
    let chosen: Vec<_> = report.candidates.iter().filter(|c| c.chosen).collect();
    assert_eq!(chosen.len(), 1);
    assert!(measured.iter().all(|&kl| kl >= chosen[0].kl.unwrap()));
    let config = Config::parse(&converted.config).unwrap();
    for layer in &report.layers {
        assert_eq!(config.kv_elements(layer.layer), layer.kv_elements_after);
        assert_eq!(
            (layer.kv_lora_rank, layer.rope_pairs.len()),
            (chosen[0].kv_lora_rank, chosen[0].rope_pairs)
        );
    }
    let cache = &report.cache;
    assert_eq!((cache.growing_elements_before, cache.sliding_bytes_before), (128, 2 * 8 * 64 * 2));
    assert_eq!(cache.bytes_before, (128 * 256 + 2 * 8 * 64) * 2);
    assert_eq!(
        bench.bytes(),
        model
            .convert("layout = 'b'\nkv-budget = 38\ncontext = 256\nmeasure = 3\nown-splits = false")
            .0
            .bytes()
    );
}

/// Defect 8 of the original: its conversion was an SVD of the weights alone, and read no calibration data.
#[test]
fn the_conversion_depends_on_the_calibration_and_is_best_where_it_was_calibrated() {
    let one = calibrated("gptoss-dense", |_| ());
    let low = Texts(texts(&[200, 150]).0.into_iter().map(|text| words(text, 3)).collect());
    let bench = Bench::new().input("model", &one.checkpoint).input("texts", &low);
    let analyze = "model = 'model'\ntexts = 'corpus'\nheld-out-tokens = 100\nlayers = [1, 2, 3]";
    bench.run::<Analyze>(&toml::from_str(analyze).unwrap()).unwrap();
    let moments = bench.load("moments");
    let other = Calibrated { moments, _bench: bench, ..calibrated("gptoss-dense", |_| ()) };
    let toml = "layout = 'b'\nrope-pairs = 8\nkv-lora-rank = 12";
    let (wide, narrow) = (one.convert(toml).1, other.convert(toml).1);
    let name = "model.layers.1.self_attn.kv_b_proj.weight";
    assert_ne!(wide.raw(name).unwrap().bytes, narrow.raw(name).unwrap().bytes);
    // On three words, the conversion that saw only these is nearer to the original.
    let ids: Vec<u32> = (0..100).map(|i| i * i % 3).collect();
    let logits = |checkpoint: &Checkpoint| -> Vec<f32> {
        let model = Model::frozen(checkpoint).unwrap();
        model.logits(&Batch::new([&ids[..]]), &mut NoProbe).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let original = logits(&one.checkpoint);
    let error = |checkpoint: &Checkpoint| -> f32 {
        logits(checkpoint).iter().zip(&original).map(|(a, b)| (a - b).powi(2)).sum()
    };
    assert!(error(&narrow) < 0.7 * error(&wide), "{} and {}", error(&narrow), error(&wide));
}

/// The same number of words, but only so many different ones.
fn words(mut text: Text, different: u32) -> Text {
    let word = |word: &str| format!("w{}", word[1..].parse::<u32>().unwrap() % different);
    text.text = text.text.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text
}

#[test]
fn everything_else_is_copied_bit_for_bit_and_dense_projections_are_gone() {
    let model = calibrated("gptoss-mxfp4", |_| ());
    let (_bench, converted, _) =
        model.convert("layout = 'b'\nrope-pairs = 4\nkv-lora-rank = 20\ndtype = 'bf16'\nrefit = false");
    let new = ["q_proj", "k_rope_proj", "kv_a_proj", "kv_b_proj"].map(|n| format!("layers.1.self_attn.{n}."));
    let is_new = |name: &str| new.iter().any(|new| name.contains(new.as_str()));
    for name in model.checkpoint.names().filter(|name| !is_new(name)) {
        if name.contains("layers.1.self_attn.k_proj") || name.contains("layers.1.self_attn.v_proj") {
            assert!(converted.raw(name).is_none(), "{name}");
            continue;
        }
        let (a, b) = (model.checkpoint.raw(name).unwrap(), converted.raw(name).unwrap());
        assert_eq!((a.dtype, a.shape, a.bytes), (b.dtype, b.shape, b.bytes), "{name}");
    }
    let added = converted.names().filter(|name| is_new(name));
    assert!(added.map(|name| converted.raw(name).unwrap().dtype).all(|d| d == safetensors::Dtype::BF16));
    assert_eq!(converted.side_files().map(|(name, _)| name).collect::<Vec<_>>(), ["tokenizer.json"]);
    assert!(Model::frozen(&converted).is_ok());
}

mod heads;
mod interrupted;
mod methods;
mod norms;
mod recalibrate;
mod refit;
mod windows;
mod wrong;
