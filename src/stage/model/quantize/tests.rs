//! Models rounded to NF4: what is rounded, what stays, and that the model that is read is the one of the rounded weights.

use super::*;
use crate::{
    artifact::{
        Artifact,
        checkpoint::{Draft, files_in},
    },
    kernel::testing::flat,
    model::{Batch, Model, Params, Shell, block::table::Table, probe::NoProbe},
    stage::{Stage, model::ModelSource, testing::Bench},
};

const DENSE: &str = "llama";
const EXPERTS: &str = "gptoss-mxfp4";

fn plain(name: &str) -> Checkpoint {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let mut files = files_in(&dir).unwrap();
    files.retain(|file, _| ["config.json", "model.safetensors"].contains(&file.as_str()));
    Checkpoint::load(&files).unwrap()
}

fn quantized(from: &Checkpoint) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    from.save(dir.path()).unwrap();
    let stage: ModelSource = toml::from_str(&format!("path = {:?}\nquantize = 'nf4'", dir.path())).unwrap();
    let bench = Bench::new().reads(stage.reads(&|_| "".into()).unwrap());
    bench.run(&stage).unwrap();
    bench
}

fn logits(checkpoint: &Checkpoint) -> Vec<u32> {
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 60).collect();
    let model = Model::frozen(checkpoint).unwrap();
    flat(&model.logits(&Batch::new([&ids[..]]), &mut NoProbe).unwrap()).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_logits_are_those_of_the_rounded_weights() {
    for name in [DENSE, EXPERTS] {
        let (from, bench) = (plain(name), quantized(&plain(name)));
        let to: Checkpoint = bench.load("checkpoint");
        let mut expanded = Draft::copy_of(&from).unwrap();
        let params = Params::new(&to, &|_| false);
        let mut count = 0;
        for name in from.names().filter(|name| to.raw(&format!("{name}.quant_map")).is_some()) {
            let shape = from.raw(name).unwrap().shape;
            let values = flat(&params.get(name, shape).tensor);
            assert_ne!(values, from.raw(name).unwrap().to_f32().unwrap(), "{name}");
            expanded.tensors.insert(name.to_owned(), Owned::f32(shape, &values));
            count += 1;
        }
        assert_eq!(count, if name == DENSE { 2 + 3 * 7 } else { 2 + 3 * 4 }, "{name}");
        let dir = tempfile::tempdir().unwrap();
        expanded.save(dir.path()).unwrap();
        let expanded = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
        assert_eq!(logits(&to), logits(&expanded), "{name}");
        assert_ne!(logits(&to), logits(&from), "{name}");
    }
}

#[test]
fn rows_of_the_embedding_are_expanded_one_by_one() {
    let to: Checkpoint = quantized(&plain(EXPERTS)).load("checkpoint");
    let config = Config::parse(&to.config).unwrap();
    let ids = [95, 0, 17, 17, 1];
    let shell = Shell::load(&to, &config).unwrap();
    let whole = Params::new(&to, &|_| false).get("model.embed_tokens.weight", &[96, 32]).tensor;
    let rows: Vec<f32> = ids.iter().flat_map(|&id| flat(&whole.get(id as usize).unwrap())).collect();
    assert_eq!(flat(&shell.embed(&ids).unwrap()), rows);
    assert!(matches!(shell.lm_head, Table::Nf4(_)), "it stays packed");
    let error = shell.embed(&[96]).unwrap_err().to_string();
    assert!(error.contains("token id 96 is outside the vocabulary of 96"), "{error}");
}

#[test]
fn a_shard_a_layer_with_names_of_bitsandbytes_and_experts_as_they_were() {
    let (from, bench) = (plain(EXPERTS), quantized(&plain(EXPERTS)));
    let to: Checkpoint = bench.load("checkpoint");
    let files: Vec<String> = bench.files("checkpoint").into_keys().collect();
    let mut want: Vec<String> = (1..=5).map(|i| format!("model-{i:05}-of-00005.safetensors")).collect();
    want.insert(0, "config.json".into());
    want.push("model.safetensors.index.json".into());
    assert_eq!(files, want);
    for part in ["", ".absmax", ".nested_absmax", ".nested_quant_map", ".quant_map"] {
        assert!(to.raw(&format!("model.layers.2.self_attn.o_proj.weight{part}")).is_some(), "{part}");
    }
    let kept = [
        "mlp.router.weight",
        "mlp.experts.down_proj_blocks",
        "input_layernorm.weight",
        "self_attn.q_proj.bias",
    ];
    for name in kept.map(|part| format!("model.layers.2.{part}")) {
        assert_eq!(to.raw(&name).unwrap().bytes, from.raw(&name).unwrap().bytes, "{name}");
    }
    let config = &to.config["quantization_config"];
    assert_eq!(
        (&config["quant_method"], &config["bnb_4bit_quant_type"]),
        (&"bitsandbytes".into(), &"nf4".into())
    );
    assert_eq!(to.config["experts_quantization_config"], from.config["quantization_config"]);
}

#[test]
fn what_is_rounded_already_stays_as_it_is() {
    let once = quantized(&plain(DENSE));
    let twice = quantized(&once.load("checkpoint"));
    assert_eq!(once.bytes(), twice.bytes());
}
