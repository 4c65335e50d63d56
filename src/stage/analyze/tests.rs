//! Tests of the analyze stage on the golden models.

use std::path::Path;

use faer::MatRef;

mod direct;
mod samples;

use super::{observe::unrotated, *};
use crate::{
    artifact::{
        analysis::{Protocol, Spectrum},
        checkpoint::{Draft, files_in},
        moments::LayerMoments,
    },
    engine::action::{Quiet, Stop},
    kernel::host,
    math::linalg::congruence,
    model::{Batch, Model, Probe, probe::AttentionSeen},
    stage::{
        streamed::budget::TooLittle,
        testing::{self, Bench, Kept, Says},
        weights::Projections,
    },
};

/// A golden model with a tokenizer that knows the words `w0` to `w95`.
pub(crate) fn golden(name: &str) -> (tempfile::TempDir, Checkpoint) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let mut files = files_in(&folder).unwrap();
    files.retain(|name, _| ["config.json", "model.safetensors"].contains(&name.as_str()));
    let mut draft = Draft::copy_of(&Checkpoint::load(&files).unwrap()).unwrap();
    let vocab: serde_json::Map<_, _> = (0..96).map(|i| (format!("w{i}"), i.into())).collect();
    let tokenizer = serde_json::json!({"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}});
    draft.side_files.insert("tokenizer.json".into(), tokenizer.to_string().into_bytes());
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, checkpoint)
}

/// Texts of the given numbers of words.
pub(crate) fn texts(lengths: &[usize]) -> Texts {
    let mut state = 12_345_u32;
    let mut word = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("w{}", (state >> 16) % 96)
    };
    let text = |&n: &usize| (0..n).map(&mut word).collect::<Vec<_>>().join(" ");
    testing::texts(&lengths.iter().map(text).collect::<Vec<String>>())
}

fn stage(toml: &str) -> Analyze {
    toml::from_str(&format!("model = 'model'\ntexts = 'corpus'\n{toml}")).unwrap()
}

fn bench(name: &str, lengths: &[usize]) -> (tempfile::TempDir, Bench) {
    let (dir, checkpoint) = golden(name);
    (dir, Bench::new().input("model", &checkpoint).input("texts", &texts(lengths)))
}

#[test]
fn every_share_is_accounted_for() {
    let (_dir, bench) = bench("gptoss-dense", &[60, 9, 70, 40]);
    bench.run(&stage("max-tokens = 150\nmax-length = 64\nheld-out-tokens = 10")).unwrap();
    let analysis: Analysis = bench.load("analysis");
    let moments: Moments = bench.load("moments");
    let protocol = Protocol { sequences: 3, tokens: 150, max_length: 64, far: 8 };
    assert_eq!(analysis.figures.protocol, protocol);
    assert_eq!(moments.held_out.iter().map(Vec::len).collect::<Vec<_>>(), [9]);
    assert_eq!(moments.layers.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    let plain = |layer| moments.layer(layer).unwrap().plain.len();
    assert_eq!([0, 1, 2, 3].map(plain), [0, 33 * 33, 0, 33 * 33], "only full layers have what svd needs");
    for layer in &analysis.figures.layers {
        for head in &layer.heads {
            let total = head.sink_mass + head.distance.iter().sum::<f64>();
            assert!((total - 1.0).abs() < 1e-5, "layer {}: {total}", layer.layer);
            assert!(head.sink_mass > 1e-4 && head.first_token_mass > 1e-4);
        }
        let routing = layer.routing.as_ref().unwrap();
        for shares in [&routing.load, &routing.probability, &routing.gates, &routing.gaps] {
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        let keys: f64 = layer.pairs.iter().map(|pair| pair.key_energy).sum();
        let norms: f64 = layer.kv_heads.iter().map(|head| head.key_norm.powi(2)).sum();
        assert!((keys / norms - 1.0).abs() < 1e-9);
    }
    let fisher = |layer| {
        let sums = moments.layer(layer).unwrap();
        [&sums.fisher_query, &sums.fisher_values, &sums.fisher_gauss, &sums.fisher_projections].map(Vec::len)
    };
    assert_eq!(moments.about.fisher_tokens, 150, "all of them are fewer than the default");
    assert_eq!([0, 2].map(fisher), [[0; 4]; 2]);
    let sizes = [8 * 16 * 16, 32 * 32, 8 * 64, 2 * 32 * 32];
    assert_eq!([1, 3].map(fisher), [sizes; 2]);
    let sliding = &analysis.figures.layers[0];
    assert!(sliding.heads[0].distance.len() <= 4 && sliding.heads[0].far < 1e-12, "the window is 8");
    for layer in &analysis.figures.layers {
        let spectra = layer.spectra.as_ref().unwrap();
        let size = |spectrum: &Spectrum| spectrum.singular_values.len();
        assert_eq!([&spectra.keys, &spectra.values, &spectra.joint].map(size), [32, 32, 64]);
        assert!(spectra.joint.effective_rank <= 33.0, "33 inputs, the bias included");
    }
    assert!(analysis.summary.contains("| 1 | full |"));
    let pictures: Vec<&str> = analysis.pictures.keys().map(String::as_str).collect();
    let maps = ["attention", "experts", "far", "first-token", "frequencies", "sharing", "sinks", "turns"];
    assert_eq!(pictures, maps.map(|name| format!("{name}.svg")));
    assert!(analysis.pictures.values().all(|svg| svg.starts_with("<svg")));
}

#[test]
fn key_energy_from_the_moments_equals_the_observed_one() {
    let (_dir, bench) = bench("gptoss-mxfp4", &[80, 80]);
    bench.run(&stage("held-out-tokens = 0")).unwrap();
    let (analysis, moments): (Analysis, Moments) = (bench.load("analysis"), bench.load("moments"));
    let (_dir, checkpoint) = golden("gptoss-mxfp4");
    let config = Config::parse(&checkpoint.config).unwrap();
    let projections = Projections::read(&checkpoint, &config, 1).unwrap();
    let dim = config.hidden_size + 1;
    let sums = moments.layer(1).unwrap();
    let moment = MatRef::from_row_major_slice(&sums.plain, dim, dim);
    let keys = congruence(projections.k.as_ref(), moment);
    let trace: f64 = (0..keys.nrows()).map(|i| keys[(i, i)]).sum();
    let seen: f64 = analysis.figures.layers[1].pairs.iter().map(|pair| pair.key_energy).sum();
    assert!((trace / 160.0 / seen - 1.0).abs() < 1e-5, "biases and YaRN's factor are right: {trace} {seen}");
    let shares = analysis.figures.layers[1].pairs.iter().map(|pair| pair.sharing.unwrap());
    assert!(shares.into_iter().all(|share| (0.25 - 1e-9..=1.0 + 1e-9).contains(&share)));
}

/// Compares queries turned back with the projection of the input.
struct Check<'a>(&'a Config, &'a [u32], Vec<Option<Projections>>);

impl Probe for Check<'_> {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
        let Some(projections) = &self.2[seen.layer] else { return Ok(()) };
        let plain = unrotated(self.0, self.1, seen.q)?;
        let (plain, input) = (host(&plain)?, host(seen.input)?);
        let (width, hidden) = (projections.q.nrows(), self.0.hidden_size);
        for (got, x) in plain.chunks_exact(width).zip(input.chunks_exact(hidden)) {
            for (i, got) in got.iter().enumerate() {
                let dot = (0..hidden).map(|j| projections.q[(i, j)] * f64::from(x[j])).sum::<f64>();
                let want = dot + projections.q[(i, hidden)];
                assert!((f64::from(*got) - want).abs() < 1e-4 * (1.0 + want.abs()), "{got} {want}");
            }
        }
        Ok(())
    }
}

#[test]
fn queries_turn_back_exactly() {
    let (_dir, checkpoint) = golden("gptoss-dense");
    let model = Model::frozen(&checkpoint).unwrap();
    let ids: Vec<u32> = (0..90).map(|i| i * 31 % 96).collect();
    let batch = Batch::new([&ids[..50], &ids[50..]]);
    let read = |i| Projections::read(&checkpoint, &model.config, i).ok();
    let projections = (0..model.layers.len()).map(read).collect();
    model.hidden(&batch, &mut Check(&model.config, &batch.positions, projections)).unwrap();
}

#[test]
fn threads_do_not_change_a_byte_and_layers_can_be_chosen() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (_dir, bench) = bench("gptoss-dense", &[150, 60]);
        pool.install(|| bench.run(&stage("layers = [1, 2]"))).unwrap();
        bench
    };
    let one = run(1);
    assert_eq!(one.bytes(), run(2).bytes());
    assert_eq!(one.bytes(), run(5).bytes());
    let analysis: Analysis = one.load("analysis");
    assert_eq!(analysis.figures.layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [1, 2]);
}

/// The sums of all layers.
fn sums(bench: &Bench) -> Vec<LayerMoments> {
    let moments: Moments = bench.load("moments");
    moments.layers.keys().map(|&layer| moments.layer(layer).unwrap()).collect()
}

#[test]
fn the_sums_of_shards_are_those_of_the_whole() {
    let lengths = [150, 60, 9, 70, 30];
    let (_dir, whole) = bench("gptoss-mxfp4", &lengths);
    let stage = stage("held-out-tokens = 60");
    whole.run(&stage).unwrap();
    let (_dir, divided) = bench("gptoss-mxfp4", &lengths);
    let merged = divided.run_shards(&stage, 3).unwrap();
    let (a, b): (Moments, Moments) = (whole.load("moments"), merged.load("moments"));
    assert_eq!((&a.about, &a.held_out), (&b.about, &b.held_out));
    assert!(a.held_out.iter().map(Vec::len).sum::<usize>() > 0);
    for (one, other) in sums(&whole).iter_mut().zip(&mut sums(&merged)) {
        assert_eq!(one.tokens, other.tokens);
        let largest = |sum: &[f64]| sum.iter().fold(0f64, |most, x| most.max(x.abs()));
        for ((name, sum), (_, merged)) in one.sums().into_iter().zip(other.sums()) {
            assert_eq!(sum.len(), merged.len(), "{name}");
            let scale = largest(sum);
            // Products within a block of rows are f32; blocks are those of single sequences either way.
            let far = sum.iter().zip(&*merged).find(|(a, b)| (*a - *b).abs() > 1e-12 * scale);
            assert_eq!(far, None, "{name}, largest {scale}");
        }
    }
    let load =
        |bench: &Bench| bench.load::<Analysis>("analysis").figures.layers[1].routing.clone().unwrap().load;
    assert_eq!(load(&whole), load(&merged));
    let (_dir, few) = bench("gptoss-mxfp4", &[5, 6]);
    let error = few.run_shards(&stage, 3).err().unwrap().to_string();
    assert!(error.contains("3 shards share 1 sequences, and shard 1 has none"), "{error}");
}

#[test]
fn an_interrupted_pass_goes_on_behind_the_last_layer_and_ends_with_the_same_bytes() {
    let (_dir, whole) = bench("gptoss-dense", &[150, 60]);
    whole.run(&stage("")).unwrap();
    for last in [1, 3, 4, 5] {
        let (_dir, bench) = bench("gptoss-dense", &[150, 60]);
        let dir = tempfile::tempdir().unwrap();
        let kept = |last| Kept::new(dir.path(), last);
        let first = kept(last);
        let stopped = bench.run_with(&stage(""), &Quiet, &first, &first.stop);
        assert!(matches!(stopped, Err(Failure::Stopped)), "{stopped:?}");
        let (second, says) = (kept(9), Says::default());
        bench.run_with(&stage(""), &says, &second, &second.stop).unwrap();
        // Three of the four layers on the way there, two of three on the way back.
        let goes_on = if last > 3 {
            format!("going back from layer {}", 7 - last)
        } else {
            format!("going on with layer {last}")
        };
        assert_eq!(says.0.into_inner().unwrap()[0], goes_on);
        assert_eq!(second.count(), 5 - last, "what was done is not done again");
        assert_eq!(bench.bytes(), whole.bytes());
    }
}

#[test]
fn a_budget_moves_hidden_states_into_a_file_or_is_refused_and_changes_no_byte() {
    let (_dir, whole) = bench("gptoss-dense", &[150, 60]);
    whole.run(&stage("")).unwrap();
    // What is needed without the hidden states is told, so that much is given.
    let (_dir, small) = bench("gptoss-dense", &[150, 60]);
    let Err(Failure::Stage(error)) = small.memory(1000).run(&stage("")) else { panic!("it cannot fit") };
    assert!(error.to_string().starts_with("`memory` is 1.0 kB, but this pass needs about 42"), "{error}");
    let least = error.downcast_ref::<TooLittle>().unwrap().needs.least();
    for (memory, said) in [(u64::MAX, 0), (least, 1)] {
        let (_dir, bench) = bench("gptoss-dense", &[150, 60]);
        let (bench, says, none) =
            (bench.memory(memory), Says::default(), crate::engine::action::NoCheckpoints);
        bench.run_with(&stage(""), &says, &none, &Stop::default()).unwrap();
        let told = says.0.into_inner().unwrap();
        assert_eq!(told.iter().filter(|line| line.contains("hidden states go into a file")).count(), said);
        assert_eq!(bench.bytes(), whole.bytes());
    }
}

#[test]
fn mistakes_are_named() {
    for (toml, param) in [
        ("split = 'a'", "texts"),
        ("max-tokens = 0", "max-tokens"),
        ("max-length = 1", "max-length"),
        ("layers = []", "layers"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, param, "{toml}");
    }
    let (_dir, bench) = bench("gptoss-dense", &[]);
    let error = bench.run(&stage("")).unwrap_err().to_string();
    assert!(error.contains("the 0 documents hold no token"), "{error}");
    let (_dir, bench) = self::bench("gptoss-dense", &[5]);
    let error = bench.run(&stage("layers = [9]")).unwrap_err().to_string();
    assert!(error.contains("layer 9, but the model has 4 layers"), "{error}");
}
