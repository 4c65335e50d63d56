//! What every model promises, on tiny random ones: who sees whom, what trains, and that all faults are told at once.

use super::{
    config::Storage,
    probe::{AttentionSeen, NoProbe},
    storage::Stored,
    testing::{FULL, LATENT, SLIDING, VOCAB, WINDOW, checkpoint, draft, lossless, lossless_shared, scale},
    *,
};
use crate::{
    artifact::checkpoint::{Checkpoint, Owned},
    kernel::testing::{bits, check_gradients, close, flat},
};

const MIXED: [&str; 3] = [SLIDING, LATENT, FULL];

fn model(layers: &[&str]) -> Model {
    Model::frozen(&checkpoint(&draft(layers)).1).unwrap()
}

fn logits(model: &Model, documents: &[&[u32]]) -> Vec<f32> {
    flat(&model.logits(&Batch::new(documents.iter().copied()), &mut NoProbe).unwrap())
}

fn same(a: &[f32], b: &[f32]) {
    close(a, &b.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), 2e-5);
}

fn differ(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3)
}

#[test]
fn a_batch_is_its_documents_one_by_one_in_any_order() {
    let model = model(&MIXED);
    let documents: [&[u32]; 4] = [&[1, 2, 3, 4, 5, 6, 7], &[9], &[30, 0, 30, 0], &[5, 5]];
    let alone: Vec<Vec<f32>> = documents.iter().map(|d| logits(&model, &[d])).collect();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let packed = logits(&model, &order.map(|i| documents[i]));
        same(&packed, &order.map(|i| alone[i].clone()).concat());
    }
    // A document without a token changes nothing.
    same(&logits(&model, &[documents[0], &[], documents[1]]), &[&alone[0][..], &alone[1]].concat());
}

#[test]
fn embedding_and_head_in_bf16_give_the_bits_of_their_floats() {
    let mut draft = draft(&[FULL]);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let raw = draft.tensors.get_mut(name).unwrap();
        let values: Vec<f32> =
            raw.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        *raw = Owned::bf16(&raw.shape, &values);
    }
    let (_dir, packed) = checkpoint(&draft);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let raw = packed.raw(name).unwrap();
        draft.tensors.insert(name.to_owned(), Owned::f32(raw.shape, &raw.to_f32().unwrap()));
    }
    let (_dir, floats) = checkpoint(&draft);
    let of = |checkpoint: &Checkpoint| {
        let model = Model::frozen(checkpoint).unwrap();
        checkpoint.release("model.");
        bits(&model.logits(&Batch::new([&[3, 0, 30, 3][..]]), &mut NoProbe).unwrap())
    };
    assert_eq!(of(&packed), of(&floats), "also after the pages went away");
    for checkpoint in [&packed, &floats] {
        let config = Config::parse(&checkpoint.config).unwrap();
        let error = Shell::load(checkpoint, &config).unwrap().embed(&[1, 31]).unwrap_err().to_string();
        assert!(error.contains("token id 31"), "{error}");
    }
}

#[test]
fn a_later_token_changes_no_earlier_logit_and_an_earlier_one_changes_later_ones() {
    let model = model(&MIXED);
    let text: Vec<u32> = (0..12).map(|i| (i * 7 + 3) % VOCAB as u32).collect();
    let before = logits(&model, &[&text]);
    for at in [1, 5, 11] {
        let mut other = text.clone();
        other[at] = (other[at] + 11) % VOCAB as u32;
        let after = logits(&model, &[&other]);
        let (head, tail) = before.split_at(at * VOCAB);
        same(head, &after[..at * VOCAB]);
        for (row, (a, b)) in tail.chunks(VOCAB).zip(after[at * VOCAB..].chunks(VOCAB)).enumerate() {
            assert!(differ(a, b), "token {at} must be seen at {}", at + row);
        }
    }
}

#[test]
fn sliding_layers_reach_back_a_window_each_and_no_further() {
    let text: Vec<u32> = (0..16).map(|i| (i * 5 + 1) % VOCAB as u32).collect();
    let mut other = text.clone();
    other[0] += 9;
    for layers in [1, 2, 3] {
        let model = model(&vec![SLIDING; layers]);
        let (a, b) = (logits(&model, &[&text]), logits(&model, &[&other]));
        // A token sees itself and `WINDOW − 1` before it, through every layer again.
        let reach = layers * (WINDOW - 1);
        for (row, (a, b)) in a.chunks(VOCAB).zip(b.chunks(VOCAB)).enumerate() {
            if row > reach {
                same(a, b);
            }
        }
        assert!(differ(&a[reach * VOCAB..][..VOCAB], &b[reach * VOCAB..][..VOCAB]), "{layers} layers");
    }
}

#[test]
fn positions_count_from_the_start_of_a_document() {
    // Were they absolute in the batch, the second copy would turn further and its keys would not match the first's.
    let model = model(&[FULL, LATENT]);
    let both = logits(&model, &[&[3, 1, 4, 1, 5], &[3, 1, 4, 1, 5]]);
    same(&both[..5 * VOCAB], &both[5 * VOCAB..]);
    // Within a document position matters: equal tokens give other logits further back.
    assert!(differ(&both[VOCAB..2 * VOCAB], &both[3 * VOCAB..4 * VOCAB]));
}

#[test]
fn latent_attention_equals_grouped_attention_where_nothing_is_lost() {
    let original = draft(&[SLIDING, FULL, FULL]);
    let documents: [&[u32]; 2] = [&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[30, 2]];
    let want = logits(&Model::frozen(&checkpoint(&original).1).unwrap(), &documents);
    let one = lossless(&original, 1);
    let both = lossless(&one, 2);
    for draft in [&one, &both, &lossless_shared(&original, 1), &lossless_shared(&one, 2)] {
        same(&logits(&Model::frozen(&checkpoint(draft).1).unwrap(), &documents), &want);
    }
}

/// The latent as the one key and value of all heads: the same sums in another order.
#[test]
fn absorbed_latent_attention_equals_expanded() {
    let original = draft(&[SLIDING, FULL, FULL]);
    let documents: [&[u32]; 2] = [&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[30, 2]];
    let one = lossless(&original, 1);
    for draft in [&draft(&MIXED), &one, &lossless_shared(&original, 1), &lossless_shared(&one, 2)] {
        let (_dir, checkpoint) = checkpoint(draft);
        let config = Config::parse(&checkpoint.config).unwrap();
        let batch = Batch::new(documents);
        let run = |storage| {
            let config = Config { storage, ..config.clone() };
            let shell = Shell::load(&checkpoint, &config).unwrap();
            let mut x = shell.embed(&batch.ids).unwrap();
            for index in 0..config.layers.len() {
                let layer = Layer::load(&checkpoint, &config, index).unwrap();
                x = layer.forward(&x, &batch, &mut NoProbe).unwrap();
            }
            flat(&shell.lm_head.forward(&shell.normed(&x).unwrap()).unwrap())
        };
        let absorbed = Storage { absorbed: true, ..Storage::default() };
        same(&run(absorbed), &run(Storage::default()));
        let rounded = run(Storage { activations: Stored::Bf16, ..absorbed });
        assert!(differ(&rounded, &run(absorbed)) && rounded.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn layer_by_layer_is_the_whole_model() {
    let (_dir, checkpoint) = checkpoint(&draft(&MIXED));
    let config = Config::parse(&checkpoint.config).unwrap();
    let batch = Batch::new([&[4, 8, 15, 16, 23][..], &[1][..]]);
    let shell = Shell::load(&checkpoint, &config).unwrap();
    let mut x = shell.embed(&batch.ids).unwrap();
    for i in 0..3 {
        let layer = Layer::load(&checkpoint, &config, i).unwrap();
        let attended = layer.attend(&x, &batch, &mut NoProbe).unwrap();
        x = layer.finish(&x, &attended, &mut NoProbe).unwrap();
    }
    let logits = shell.lm_head.forward(&shell.normed(&x).unwrap()).unwrap();
    let whole = Model::frozen(&checkpoint).unwrap().logits(&batch, &mut NoProbe).unwrap();
    assert_eq!(flat(&logits), flat(&whole));
}

/// Writes down what it is shown, in order.
#[derive(Default)]
struct Diary(Vec<String>);

impl Probe for Diary {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
        let all = [seen.input, seen.q, seen.k, seen.v, seen.packed, seen.heads, seen.output];
        let dims = all.map(|x| format!("{:?}", x.dims()));
        self.0.push(format!("attention {} {}", seen.layer, dims.join(" ")));
        Ok(())
    }
    fn router(&mut self, layer: usize, logits: &candle_core::Tensor) -> candle_core::Result<()> {
        self.0.push(format!("router {layer} {:?}", logits.dims()));
        Ok(())
    }
    fn layer(&mut self, layer: usize, hidden: &candle_core::Tensor) -> candle_core::Result<()> {
        self.0.push(format!("layer {layer} {:?}", hidden.dims()));
        Ok(())
    }
}

#[test]
fn a_probe_is_shown_every_block_once_in_order() {
    let mut diary = Diary::default();
    model(&[LATENT, FULL]).logits(&Batch::new([&[1, 2, 3][..]]), &mut diary).unwrap();
    let attention = "[3, 16] [3, 4, 8] [3, 2, 8] [3, 2, 8] [3, 4, 9] [3, 4, 8] [3, 16]";
    let want = |layer| {
        [
            format!("attention {layer} {attention}"),
            format!("router {layer} [3, 4]"),
            format!("layer {layer} [3, 16]"),
        ]
    };
    assert_eq!(diary.0, [want(0), want(1)].concat());
}

#[test]
fn gradients_of_everything_that_trains_in_attention() {
    let (_dir, checkpoint) = checkpoint(&draft(&MIXED));
    let trained = |name: &str| name.contains(".self_attn.");
    let model = Model::load(&checkpoint, &trained).unwrap();
    let names: Vec<&String> = model.vars.keys().collect();
    assert!(names.iter().all(|name| trained(name)), "{names:?}");
    for map in ["q_proj", "k_proj", "v_proj", "o_proj", "k_rope_proj", "kv_a_proj", "kv_b_proj", "sinks"] {
        assert!(names.iter().any(|name| name.contains(map)), "{map}");
    }
    // One layer at a time, so that no router stands between a weight and the output: a changed choice is no slope.
    let batch = Batch::new([&[4, 8, 15, 16, 23, 2][..], &[1, 7][..]]);
    let x = model.shell.embed(&batch.ids).unwrap();
    for (i, layer) in model.layers.iter().enumerate() {
        let prefix = format!("model.layers.{i}.");
        let vars: Vec<_> =
            model.vars.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, var)| var).collect();
        check_gradients(&vars, 5e-3, || Ok(layer.attend(&x, &batch, &mut NoProbe).unwrap()));
    }
}

#[test]
fn what_is_frozen_gets_no_gradient() {
    let (_dir, checkpoint) = checkpoint(&draft(&MIXED));
    let model =
        Model::load(&checkpoint, &|name| name == "model.layers.1.self_attn.kv_a_proj.weight").unwrap();
    assert_eq!(model.vars.len(), 1);
    let hidden = model.hidden(&Batch::new([&[4, 8, 15][..]]), &mut NoProbe).unwrap();
    let grads = hidden.sum_all().unwrap().backward().unwrap();
    let grad = grads.get(model.vars.values().next().unwrap().as_tensor()).expect("the one that trains");
    assert!(flat(grad).iter().any(|g| g.abs() > 1e-6));
    assert!(grads.get(&model.shell.lm_head.floats().unwrap()).is_none());
    assert!(model.layers.iter().all(|layer| match &layer.mlp {
        Mlp::Experts(moe) => match &moe.gate_up {
            ExpertWeights::Dense(weights) => grads.get(&weights.tensor).is_none(),
            ExpertWeights::Packed(_) => false,
        },
        Mlp::Dense(_) => false,
    }));
}

#[test]
fn all_faults_of_a_checkpoint_are_told_at_once() {
    let mut spoilt = draft(&MIXED);
    let name = |layer: usize, part: &str| format!("model.layers.{layer}.{part}");
    spoilt.tensors.remove(&name(0, "self_attn.k_proj.bias"));
    spoilt.tensors.remove(&name(1, "self_attn.kv_b_proj.weight"));
    spoilt.tensors.insert(name(2, "self_attn.sinks"), Owned::f32(&[5], &[0.0; 5]));
    spoilt.tensors.insert(name(2, "mlp.router.bias"), Owned::u8(&[4], vec![0; 4]));
    spoilt.tensors.insert("lm_head.weight".into(), Owned::f32(&[1, 16], &[0.0; 16]));
    spoilt.tensors.insert("rotary.inv_freq".into(), Owned::f32(&[1], &[0.0])); // nobody asks for it
    let Err(ModelError::Tensors(lines)) = Model::frozen(&checkpoint(&spoilt).1) else { panic!("it loaded") };
    assert_eq!(
        lines,
        [
            "`lm_head.weight` has shape [1, 16], expected [31, 16]",
            "`model.layers.0.self_attn.k_proj.bias` is missing",
            "`model.layers.1.self_attn.kv_b_proj.weight` is missing",
            "`model.layers.2.self_attn.sinks` has shape [5], expected [4]",
            "`model.layers.2.mlp.router.bias` has element type U8, expected F32, BF16 or F16",
        ]
    );
}

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let batch = Batch::new([&[1, VOCAB as u32, 2][..]]);
    let error = model(&[FULL]).logits(&batch, &mut NoProbe).unwrap_err().to_string();
    assert!(error.starts_with("token id 31 is outside the vocabulary of 31"), "{error}");
}

/// The identity of a dense expert tensor of a layer.
fn expert(model: &Model, layer: usize) -> candle_core::TensorId {
    match &model.layers[layer].mlp {
        Mlp::Experts(moe) => match &moe.gate_up {
            ExpertWeights::Dense(param) => param.tensor.id(),
            ExpertWeights::Packed(_) => panic!("the draft has dense experts"),
        },
        Mlp::Dense(_) => panic!("the draft has experts"),
    }
}

#[test]
fn what_is_frozen_and_the_same_lies_in_memory_once() {
    let (taught, mut learnt) = (draft(&[FULL, FULL, FULL]), draft(&[FULL, FULL, FULL]));
    scale(&mut learnt, "model.layers.1.mlp.router.weight", 1.5);
    scale(&mut learnt, "model.layers.2.self_attn.q_proj.weight", 1.5);
    let ((_a, taught), (_b, learnt)) = (checkpoint(&taught), checkpoint(&learnt));
    let teacher = Model::frozen(&taught).unwrap();
    let same = |prefix: &str| learnt.is_same_below(prefix, &taught);
    let mut student = Model::frozen(&learnt).unwrap();
    let before = logits(&student, &[&[1, 2, 3, 4, 5]]);
    let shared = student.share(&teacher, same);
    assert_eq!(shared, ["model.layers.0.mlp.", "model.layers.2.mlp.", "model.embed_tokens.", "lm_head."]);
    let is_shared = |layer| expert(&student, layer) == expert(&teacher, layer);
    assert_eq!([0, 1, 2].map(is_shared), [true, false, true], "one layer's router is another");
    let exact = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(exact(&logits(&student, &[&[1, 2, 3, 4, 5]])), exact(&before));

    // What trains is never shared.
    let trains = |name: &str| name == "model.layers.0.mlp.router.weight" || name == "lm_head.weight";
    let mut student = Model::load(&learnt, &trains).unwrap();
    assert_eq!(student.share(&teacher, same), ["model.layers.2.mlp.", "model.embed_tokens."]);
    assert!(!learnt.is_same_below("model.layers.1.mlp.", &taught));
    assert!(learnt.is_same_below("model.layers.1.self_attn.", &taught));
}
