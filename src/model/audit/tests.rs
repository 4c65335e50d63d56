//! Audits of tiny models: every fault at once without a value read, tensors that nobody reads, and values that no model may have.

use super::*;
use crate::{
    artifact::checkpoint::{Draft, Owned},
    model::{
        Model, ModelError,
        params::nf4::{Form, WeightDtype, write},
        testing::{FULL, LATENT, SLIDING, VOCAB, checkpoint, draft},
    },
};

const MIXED: [&str; 3] = [SLIDING, LATENT, FULL];

fn audited(draft: &Draft) -> (tempfile::TempDir, Checkpoint, Audit) {
    let (dir, checkpoint) = checkpoint(draft);
    let audit = Audit::of(&checkpoint, &Config::parse(&checkpoint.config).unwrap());
    (dir, checkpoint, audit)
}

/// What is wrong with the values.
fn values(draft: &Draft) -> Vec<String> {
    let (_dir, checkpoint, audit) = audited(draft);
    assert_eq!(audit.problems, [""; 0]);
    audit.read(&checkpoint).flat_map(|(name, _)| audit.check_values(&checkpoint, name)).collect()
}

#[test]
fn a_sound_model_has_no_problem_and_all_of_it_is_read() {
    let (_dir, checkpoint, audit) = audited(&draft(&MIXED));
    assert_eq!((&*audit.problems, &*audit.unread), (&[][..], &[][..]));
    let read: Vec<&str> = audit.read(&checkpoint).map(|(name, _)| name).collect();
    assert_eq!(read, checkpoint.names().collect::<Vec<_>>());
    assert_eq!(values(&draft(&MIXED)), [""; 0]);
}

#[test]
fn the_faults_of_all_layers_are_those_that_loading_meets() {
    let mut spoilt = draft(&MIXED);
    let name = |layer: usize, part: &str| format!("model.layers.{layer}.{part}");
    spoilt.tensors.remove(&name(0, "self_attn.k_proj.bias"));
    spoilt.tensors.remove(&name(1, "self_attn.kv_b_proj.weight"));
    spoilt.tensors.insert(name(2, "self_attn.sinks"), Owned::f32(&[5], &[0.0; 5]));
    spoilt.tensors.insert(name(2, "mlp.router.bias"), Owned::u8(&[4], vec![0; 4]));
    spoilt.tensors.insert(name(2, "mlp.experts.down_proj"), Owned::f32(&[4, 16, 8], &[0.0; 512]));
    spoilt.tensors.insert("lm_head.weight".into(), Owned::f32(&[1, 16], &[0.0; 16]));
    let (_dir, checkpoint, audit) = audited(&spoilt);
    let Err(ModelError::Tensors(lines)) = Model::frozen(&checkpoint) else { panic!("it loaded") };
    assert_eq!(audit.problems, lines);
    assert_eq!(lines.len(), 6);
}

#[test]
fn tensors_that_no_part_reads_are_listed() {
    let mut spoilt = draft(&[FULL]);
    for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.input_layernorm.weight", "a"]
    {
        spoilt.tensors.insert(name.into(), Owned::f32(&[1], &[f32::NAN]));
    }
    let (_dir, _, audit) = audited(&spoilt);
    assert_eq!(
        audit.unread,
        ["a", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.input_layernorm.weight"]
    );
    assert_eq!(values(&spoilt), [""; 0], "nobody reads them");
    // A head that is the embedding needs none of its own.
    let mut tied = draft(&[FULL]);
    tied.config["tie_word_embeddings"] = true.into();
    assert_eq!(audited(&tied).2.unread, ["lm_head.weight"]);
}

#[test]
fn a_value_that_is_not_finite_is_named_with_its_place_in_every_type() {
    let shape = [4, 16];
    let with = |make: fn(&[usize], &[f32]) -> Owned, bad: f32| {
        let mut spoilt = draft(&[FULL]);
        let mut weights = [0.5f32; 64];
        weights[37] = bad;
        spoilt.tensors.insert("model.layers.0.mlp.router.weight".into(), make(&shape, &weights));
        values(&spoilt)
    };
    for make in [Owned::f32 as fn(&[usize], &[f32]) -> Owned, Owned::bf16, Owned::f16] {
        for (bad, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            assert_eq!(with(make, bad), [format!("`model.layers.0.mlp.router.weight` is {text} at [2, 5]")]);
        }
        // The largest and the smallest that each type has.
        for good in [65_504.0, -65_504.0, 6e-8, 0.0] {
            assert_eq!(with(make, good), [""; 0]);
        }
    }
    assert_eq!(with(Owned::f32, f32::MAX), [""; 0]);
}

#[test]
fn a_value_far_into_a_large_tensor_is_found_and_the_first_of_several_told() {
    let mut bytes = vec![0u8; 2 * (3 * CHUNK + 5)];
    let mut nan = |at: usize| bytes[2 * at..2 * at + 2].copy_from_slice(&[0xff, 0x7f]);
    nan(3 * CHUNK + 4);
    nan(2 * CHUNK + 1);
    let raw = Raw { dtype: Dtype::BF16, shape: &[3 * CHUNK + 5], bytes: &bytes };
    assert_eq!(not_finite(raw).unwrap().0, [2 * CHUNK + 1]);
}

#[test]
fn of_mxfp4_the_scale_255_is_refused_and_0_is_a_number() {
    let packed = |scale: u8| {
        let mut spoilt = draft(&[FULL]);
        spoilt.config["intermediate_size"] = 32.into();
        let base = "model.layers.0.mlp.experts";
        for (part, tensor) in [
            // Experts [4, 64, 16] stay dense: their width is no whole block.
            ("gate_up_proj", Owned::f32(&[4, 16, 64], &[0.1; 4096])),
            ("gate_up_proj_bias", Owned::f32(&[4, 64], &[0.0; 256])),
            ("down_proj_blocks", Owned::u8(&[4, 16, 1, 16], vec![0x5a; 1024])),
        ] {
            spoilt.tensors.insert(format!("{base}.{part}"), tensor);
        }
        spoilt.tensors.remove(&format!("{base}.down_proj"));
        let mut scales = vec![120; 64];
        scales[50] = scale;
        spoilt.tensors.insert(format!("{base}.down_proj_scales"), Owned::u8(&[4, 16, 1], scales));
        values(&spoilt)
    };
    assert_eq!(packed(0), [""; 0]);
    assert_eq!(packed(254), [""; 0]);
    assert_eq!(
        packed(255),
        [
            "`model.layers.0.mlp.experts.down_proj_scales`: the scale at [3, 2, 0] is 255, which MXFP4 reserves for NaN"
        ]
    );
}

#[test]
fn of_nf4_every_part_is_read_and_its_scales_are_checked() {
    let name = "model.embed_tokens.weight";
    for double in [false, true] {
        let mut packed = draft(&[FULL]);
        let form = Form { dtype: WeightDtype::Float32, double };
        let parts = write(name, &vec![0.25; VOCAB * 16], [VOCAB, 16], form).unwrap();
        let names: Vec<String> = parts.keys().cloned().collect();
        packed.tensors.extend(parts);
        assert_eq!(audited(&packed).2.unread, [""; 0], "{names:?}");
        assert_eq!(values(&packed), [""; 0]);
        let scales = format!("{name}.{}", if double { "nested_absmax" } else { "absmax" });
        let n = packed.tensors[&scales].shape[0];
        packed.tensors.insert(scales, Owned::f32(&[n], &vec![f32::NAN; n]));
        let found = values(&packed);
        assert!(found.len() == 1 && found[0].contains(name) && found[0].contains("absmax"), "{found:?}");
        // A part that is missing is a problem, not a tensor that nobody reads.
        packed.tensors.remove(&format!("{name}.quant_map"));
        let (_dir, _, audit) = audited(&packed);
        assert_eq!(audit.problems, [format!("`{name}.quant_map` is missing")]);
    }
}
