//! Tests of the way back against the graph of the whole model, and of what is drawn at the top.

use std::collections::BTreeMap;

use super::*;
use crate::{
    kernel::{cross_entropy::cross_entropy, testing::flat},
    model::Model,
    stage::analyze::tests::golden,
};

fn batch() -> Batch {
    let ids: Vec<u32> = (0..45).map(|i| i * 37 % 64).collect();
    Batch::new([&ids[..30], &ids[30..44], &ids[44..]])
}

/// The sums over the tokens of the gradients of values, and the squares of those of projections, of each layer.
type Found = BTreeMap<usize, (Vec<f64>, Vec<f64>)>;

fn found(model: &Model, batch: &Batch, draw: Draw) -> (Vec<u32>, Found) {
    let mut streams = vec![model.shell.embed(&batch.ids).unwrap()];
    for layer in &model.layers {
        streams.push(layer.forward(&streams[streams.len() - 1], batch, &mut NoProbe).unwrap());
    }
    let (labels, mut above) = labels::gradient(&model.shell, &streams.pop().unwrap(), batch, draw).unwrap();
    let mut found = BTreeMap::new();
    for (index, layer) in model.layers.iter().enumerate().rev() {
        let back = Back::through(layer, (&streams[index], &above), batch, index > 0).unwrap();
        let shape = shape(&model.config, index, layer.sinks().unwrap());
        let mut sums = Fisher::new(&shape);
        let seen = Activated::of(&model.config, batch, &back.seen).unwrap();
        let gradients = sums.add(&shape, &seen.activations(batch), &flat(&back.heads(layer).unwrap()));
        let mut projections = Projections::new(&model.config);
        projections.add(&model.config, batch, &seen.input, &gradients).unwrap();
        // The last row is the sum of the gradients.
        let sum = &sums.values.sum[sums.values.dim * (sums.values.dim - 1)..][..sums.values.dim - 1];
        found.insert(index, (sum.to_vec(), projections.squares));
        above = back.entered;
    }
    (labels, found)
}

/// The bias of the values goes into all of them, so its gradient is the sum of theirs.
#[test]
fn gradients_of_values_are_those_of_the_whole_graph() {
    for (name, temperature) in [("gptoss-mxfp4", 2.0), ("qwen2", 1.0)] {
        let (_dir, checkpoint) = golden(name);
        let batch = batch();
        let draw = Draw { temperature, seed: 3 };
        let (labels, found) = found(&Model::frozen(&checkpoint).unwrap(), &batch, draw);
        let model = Model::load(&checkpoint, &|name| name.ends_with("v_proj.bias")).unwrap();
        let logits = model.logits(&batch, &mut NoProbe).unwrap();
        let cooled = (logits / temperature).unwrap();
        let cost = cross_entropy(&cooled, &labels.into(), &vec![1.0; batch.len()].into(), 1.0).unwrap();
        let grads = (cost.sum_all().unwrap() * temperature).unwrap().backward().unwrap();
        for (index, (found, _)) in found {
            let var = &model.vars[&format!("model.layers.{index}.self_attn.v_proj.bias")];
            let want = flat(grads.get(var.as_tensor()).unwrap());
            let largest = want.iter().fold(0f32, |a, x| a.max(x.abs()));
            for (got, want) in found.iter().zip(&want) {
                let far = (got - f64::from(*want)).abs() / f64::from(largest);
                assert!(far < 1e-4, "{name}, layer {index}: {got} {want}");
            }
        }
    }
}

/// Each sequence has a gradient of its own, whatever it is packed with.
#[test]
fn squares_of_projections_are_those_of_the_whole_graph_of_each_sequence() {
    for name in ["gptoss-mxfp4", "qwen2"] {
        let (_dir, checkpoint) = golden(name);
        let (batch, draw) = (batch(), Draw { temperature: 1.5, seed: 3 });
        let (labels, found) = found(&Model::frozen(&checkpoint).unwrap(), &batch, draw);
        let trains = |name: &str| name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight");
        let model = Model::load(&checkpoint, &trains).unwrap();
        let mut wanted: BTreeMap<usize, Vec<f64>> =
            found.iter().map(|(index, (_, squares))| (*index, vec![0.0; squares.len()])).collect();
        for pair in batch.offsets.windows(2) {
            let alone = Batch::new([&batch.ids[pair[0]..pair[1]]]);
            let cooled = (model.logits(&alone, &mut NoProbe).unwrap() / draw.temperature).unwrap();
            let labels = labels[pair[0]..pair[1]].to_vec();
            let cost = cross_entropy(&cooled, &labels.into(), &vec![1.0; alone.len()].into(), 1.0).unwrap();
            let grads = (cost.sum_all().unwrap() * draw.temperature).unwrap().backward().unwrap();
            for (index, wanted) in &mut wanted {
                let of = |part| &model.vars[&format!("model.layers.{index}.self_attn.{part}_proj.weight")];
                let both = ["k", "v"].map(|part| flat(grads.get(of(part).as_tensor()).unwrap())).concat();
                wanted.iter_mut().zip(both).for_each(|(sum, x)| *sum += f64::from(x).powi(2));
            }
        }
        for (index, wanted) in wanted {
            let squares = &found[&index].1;
            let largest = wanted.iter().fold(0f64, |a, x| a.max(*x));
            assert!(largest > 0.0);
            for (got, want) in squares.iter().zip(&wanted) {
                assert!((got - want).abs() < 1e-3 * largest, "{name}, layer {index}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_sequence_draws_the_same_beside_others_and_as_often_as_the_model_says() {
    let (_dir, checkpoint) = golden("gptoss-mxfp4");
    let shell = Shell::load(&checkpoint, &Config::parse(&checkpoint.config).unwrap()).unwrap();
    let temperature = 1.5;
    let draw = |batch: &Batch, seed| {
        let x = shell.embed(&batch.ids).unwrap();
        labels::gradient(&shell, &x, batch, Draw { temperature, seed }).unwrap()
    };
    let whole = batch();
    let (together, gradient) = draw(&whole, 5);
    let alone = Batch::new([&whole.ids[30..44]]);
    let (labels, own) = draw(&alone, 5);
    assert_eq!(together[30..44], labels);
    assert_eq!(flat(&gradient.narrow(0, 30, 14).unwrap().contiguous().unwrap()), flat(&own));
    assert_ne!(draw(&alone, 6).0, labels, "another seed draws others");
    let x = shell.embed(&alone.ids).unwrap();
    let logits = shell.lm_head.forward(&shell.normed(&x).unwrap()).unwrap();
    let row = flat(&logits.narrow(0, 2, 1).unwrap().contiguous().unwrap());
    let total: f64 = row.iter().map(|&z| (f64::from(z) / temperature).exp()).sum();
    let most = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    let (p, n) = ((f64::from(row[most]) / temperature).exp() / total, 600_u32);
    let hits = (0..u64::from(n)).filter(|&seed| draw(&alone, seed).0[2] as usize == most).count() as f64;
    let spread = (p * (1.0 - p) * f64::from(n)).sqrt();
    assert!((hits - p * f64::from(n)).abs() < 4.0 * spread, "{hits} of {n}, {p}");
}
