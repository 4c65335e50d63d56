//! The gradients of the layer-wise pass against those of one graph over the whole model.

use std::collections::BTreeMap;

use super::*;
use crate::{
    kernel::testing::{close, flat},
    model::{
        probe::NoProbe,
        testing::{FULL, LATENT, SLIDING, checkpoint, draft},
    },
};

const LAYERS: [&str; 4] = [SLIDING, LATENT, FULL, LATENT];

fn model(trains: &dyn Fn(&str) -> bool) -> Model {
    Model::load(&checkpoint(&draft(&LAYERS)).1, trains).unwrap()
}

fn batch() -> Batch {
    Batch::new([&[3, 1, 4, 1, 5, 9, 2, 6][..], &[5, 3, 5][..]])
}

/// The gradients of `sum(stream²) / 2 + Σ local` by name, and their values' size.
type Named = BTreeMap<String, Vec<f32>>;

fn named(model: &Model, grads: &GradStore, into: &mut Named) {
    for (name, var) in &model.vars {
        if let Some(grad) = grads.get(var.as_tensor()) {
            let sum = into.entry(name.clone()).or_insert_with(|| vec![0.0; grad.elem_count()]);
            sum.iter_mut().zip(flat(&grad.contiguous().unwrap())).for_each(|(sum, grad)| *sum += grad);
        }
    }
}

/// What layers cost by themselves: a mean square of the stream behind layer 1, and of every router's logits.
fn own(index: usize, output: &Output) -> Result<Option<Tensor>> {
    let router = output.router.as_ref().expect("every layer has a router").sqr()?.mean_all()?;
    Ok(Some(if index == 1 { (router + output.stream.sqr()?.mean_all()?)? } else { router }))
}

fn half_square(x: &Tensor) -> Tensor {
    (x.sqr().unwrap().sum_all().unwrap() * 0.5).unwrap()
}

fn taped(model: &Model, keep: Keep) -> Named {
    let batch = batch();
    let tape = Tape::forward(model, &batch, keep).unwrap();
    let (mut found, cost) = (Named::new(), half_square(tape.stream()));
    tape.backward(&cost, &mut own, &mut |grads| {
        named(model, grads, &mut found);
        Ok(())
    })
    .unwrap();
    found
}

fn at_once(model: &Model) -> Named {
    let batch = batch();
    let mut x = model.shell.embed(&batch.ids).unwrap();
    let mut cost = Tensor::zeros((), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    for index in 0..LAYERS.len() {
        let output = through(model, index, (&x, &batch)).unwrap();
        cost = (cost + own(index, &output).unwrap().unwrap()).unwrap();
        x = output.stream;
    }
    cost = (cost + half_square(&x)).unwrap();
    let mut found = Named::new();
    named(model, &cost.backward().unwrap(), &mut found);
    found
}

#[test]
fn layer_by_layer_gives_the_gradients_of_one_graph() {
    for trains in
        [|_: &str| true, |name: &str| name.contains("3.self_attn"), |name: &str| name.contains("layers.1.")]
    {
        let model = model(&trains);
        let (want, got) = (at_once(&model), taped(&model, Keep::Inputs));
        assert!(!want.is_empty());
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
        for (name, want) in &want {
            let largest = want.iter().fold(0f32, |a, x| a.max(x.abs()));
            let scaled = |x: &[f32]| x.iter().map(|x| x / largest).collect::<Vec<_>>();
            let want: Vec<f64> = scaled(want).into_iter().map(f64::from).collect();
            close(&scaled(&got[name]), &want, 2e-5);
        }
        assert_eq!(taped(&model, Keep::Graphs), got, "what is kept does not change a bit");
    }
}

#[test]
fn the_stream_is_the_models_and_nothing_below_what_trains_is_visited() {
    let model = model(&|name| name.contains("layers.2."));
    assert!(model.trains(2) && !model.trains(1) && !model.trains_embedding());
    let batch = batch();
    let tape = Tape::forward(&model, &batch, Keep::Inputs).unwrap();
    let hidden = model.hidden(&batch, &mut NoProbe).unwrap();
    assert_eq!(flat(&model.shell.normed(tape.stream()).unwrap()), flat(&hidden));
    let (mut visited, cost) = (Vec::new(), half_square(tape.stream()));
    let mut local = |index: usize, _: &Output| {
        visited.push(index);
        Ok(None)
    };
    tape.backward(&cost, &mut local, &mut |_| Ok(())).unwrap();
    assert_eq!(visited, [3, 2]);

    let frozen = self::model(&|name| name == "model.norm.weight");
    let tape = Tape::forward(&frozen, &batch, Keep::Graphs).unwrap();
    let (mut sunk, cost) = (0, half_square(&frozen.shell.normed(tape.stream()).unwrap()));
    let mut sink = |grads: &GradStore| {
        assert!(grads.get(frozen.vars["model.norm.weight"].as_tensor()).is_some());
        sunk += 1;
        Ok(())
    };
    tape.backward(&cost, &mut |_, _| panic!("no layer trains"), &mut sink).unwrap();
    assert_eq!(sunk, 1, "what stands above the layers, and nothing else");
    assert!(self::model(&|name| name.starts_with("model.embed")).trains_embedding());
}
