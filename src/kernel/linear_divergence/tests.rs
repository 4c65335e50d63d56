//! The fused loss against the unfused formula in f64.

use super::*;
use crate::kernel::{
    divergence::Divergence,
    kept::{Form, Row},
    testing::{check_gradients, close, flat, gradient, noise, var},
};

fn teacher<'a>(hidden: &'a Tensor, head: &'a Tensor, weights: &'a Arc<[f32]>) -> Teacher<'a> {
    Teacher {
        taught: Taught::States(hidden.clone()),
        head,
        weights,
        norm: 2.0,
        targets: None,
        loss: Loss::default(),
    }
}

/// The definition in f64, one token at a time.
fn reference(h: &[f32], t: &[f32], head: &[f32], weights: &[f32], (inner, vocab): (usize, usize)) -> f64 {
    let logits = |x: &[f32]| -> Vec<f64> {
        (0..vocab)
            .map(|v| (0..inner).map(|i| f64::from(x[i]) * f64::from(head[v * inner + i])).sum())
            .collect()
    };
    let softmax = |z: Vec<f64>| -> Vec<f64> {
        let total: f64 = z.iter().map(|z| z.exp()).sum();
        z.iter().map(|z| z.exp() / total).collect()
    };
    let kl = |i: usize| -> f64 {
        let (q, p) = (softmax(logits(&h[i * inner..][..inner])), softmax(logits(&t[i * inner..][..inner])));
        p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>() * f64::from(weights[i])
    };
    (0..weights.len()).map(kl).sum::<f64>() / 2.0
}

#[test]
fn value_across_chunks() {
    let (t, inner, vocab) = (2 * CHUNK + 3, 5, 11);
    let (h, u, w) = (noise(1, t * inner, 1.0), noise(2, t * inner, 1.0), noise(3, vocab * inner, 1.0));
    let weights: Arc<[f32]> = (0..t).map(|i| if i % 5 == 0 { 0.0 } else { 1.0 }).collect();
    let want = reference(&h, &u, &w, &weights, (inner, vocab));
    let (u, w) = (tensor(u, (t, inner)).unwrap(), tensor(w, (vocab, inner)).unwrap());
    let got = linear_divergence(&tensor(h, (t, inner)).unwrap(), &teacher(&u, &w, &weights))
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()[0];
    assert!((f64::from(got) - want).abs() < 1e-4 * want, "{got} {want}");
}

/// A row of three tokens and the rest for each of `rows` tokens, or three draws.
fn kept(form: Form, rows: usize, vocab: usize) -> Kept {
    let mut kept = Kept::new(form);
    for i in 0..rows {
        let ids = [i, i + 2, i + 5].map(|id| (id % vocab) as u32);
        let weights = if form == Form::Bucket { [0.5, 0.2, 0.1] } else { [0.25, 0.5, 0.25] };
        kept.push(Row { ids: &ids, weights: &weights, entropy: 0.3 });
    }
    kept
}

/// What is fused equals the costs of the rows of logits, one by one.
#[test]
fn what_was_kept_of_a_teacher_takes_the_place_of_its_states() {
    let (t, inner, vocab) = (CHUNK + 2, 5, 11);
    let (h, w) = (noise(1, t * inner, 1.0), noise(3, vocab * inner, 1.0));
    let weights: Arc<[f32]> = (0..t).map(|i| [0.0, 1.0, 0.5][i % 3]).collect();
    let head = tensor(w.clone(), (vocab, inner)).unwrap();
    for form in [Form::Bucket, Form::Draws] {
        let kept = kept(form, t, vocab);
        let row = |i: usize| {
            let dot = |v: usize| (0..inner).map(|k| h[i * inner + k] * w[v * inner + k]).sum::<f32>();
            f64::from(weights[i]) * kept.cost(i, &mut (0..vocab).map(dot).collect::<Vec<f32>>())
        };
        let want = (0..t).map(row).sum::<f64>() / 2.0;
        let taught = Taught::Kept(Arc::new(kept.clone()));
        let teacher = Teacher { taught, ..teacher(&head, &head, &weights) };
        let got = linear_divergence(&tensor(h.clone(), (t, inner)).unwrap(), &teacher).unwrap();
        close(&flat(&got), &[want], 1e-5);
    }
}

#[test]
fn gradients_towards_what_was_kept() {
    let (h, w) = (var(1, &[4, 5], 1.0), var(3, &[7, 5], 1.0));
    let weights: Arc<[f32]> = [1.0, 0.0, 1.0, 0.5].into();
    for form in [Form::Bucket, Form::Draws] {
        let taught = Taught::Kept(Arc::new(kept(form, 4, 7)));
        let teacher = || Teacher { taught: taught.clone(), ..teacher(&w, &w, &weights) };
        check_gradients(&[&h], 1e-3, || linear_divergence(&h, &teacher()));
    }
}

#[test]
fn what_was_kept_must_fit_and_serve_forward_divergence() {
    let (h, w) = (var(1, &[4, 5], 1.0), var(3, &[7, 5], 1.0));
    let weights: Arc<[f32]> = [1.0; 4].into();
    let fails = |kept: Kept, loss: Loss| {
        let taught = Taught::Kept(Arc::new(kept));
        linear_divergence(&h, &Teacher { taught, loss, ..teacher(&w, &w, &weights) }).is_err()
    };
    assert!(!fails(kept(Form::Bucket, 4, 7), Loss::default()));
    assert!(fails(kept(Form::Bucket, 3, 7), Loss::default()), "a row is missing");
    assert!(fails(kept(Form::Bucket, 4, 8), Loss::default()), "a token of another vocabulary");
    assert!(fails(kept(Form::Bucket, 4, 7), Loss { temperature: 2.0, ..Loss::default() }));
}

#[test]
fn gradients() {
    let (h, u, w) = (var(1, &[4, 5], 1.0), var(2, &[4, 5], 1.0), var(3, &[7, 5], 1.0));
    let weights: Arc<[f32]> = [1.0, 0.0, 1.0, 0.5].into();
    check_gradients(&[&h], 1e-3, || linear_divergence(&h, &teacher(&u, &w, &weights)));
}

/// The losses that the user can choose, with the next token counted too.
fn losses() -> [Loss; 3] {
    let loss = |divergence, temperature| Loss { divergence, temperature, cross_entropy: 0.4 };
    [loss(Divergence::Forward, 2.0), loss(Divergence::Reverse, 1.0), loss(Divergence::Jsd(0.3), 0.7)]
}

#[test]
fn gradients_of_every_loss() {
    let (h, u, w) = (var(1, &[4, 5], 1.0), var(2, &[4, 5], 1.0), var(3, &[7, 5], 1.0));
    let (weights, targets): (Arc<[f32]>, Arc<[u32]>) = ([1.0, 0.0, 1.0, 0.5].into(), [6, 0, 3, 1].into());
    for loss in losses() {
        let teacher = || Teacher { targets: Some(&targets), loss, ..teacher(&u, &w, &weights) };
        check_gradients(&[&h], 1e-3, || linear_divergence(&h, &teacher()));
    }
}

/// What is fused equals the losses of the rows of logits, one by one.
#[test]
fn values_of_every_loss_across_chunks() {
    let (t, inner, vocab) = (CHUNK + 2, 5, 11);
    let (h, u, w) = (noise(1, t * inner, 1.0), noise(2, t * inner, 1.0), noise(3, vocab * inner, 1.0));
    let weights: Arc<[f32]> = (0..t).map(|i| [0.0, 1.0, 0.5][i % 3]).collect();
    let targets: Arc<[u32]> = (0..t).map(|i| (i % vocab) as u32).collect();
    let logits = |x: &[f32], i: usize| -> Vec<f32> {
        let dot = |v: usize| (0..inner).map(|k| x[i * inner + k] * w[v * inner + k]).sum();
        (0..vocab).map(dot).collect()
    };
    let of = |x: &[f32], shape: (usize, usize)| tensor(x.to_vec(), shape).unwrap();
    for loss in losses() {
        let row = |i: usize| {
            let cost = loss.row(&mut logits(&h, i), &mut logits(&u, i), targets[i] as usize);
            f64::from(weights[i]) * cost
        };
        let want = (0..t).map(row).sum::<f64>() / 2.0;
        let (taught, head) = (of(&u, (t, inner)), of(&w, (vocab, inner)));
        let teacher = Teacher { targets: Some(&targets), loss, ..teacher(&taught, &head, &weights) };
        let got = f64::from(flat(&linear_divergence(&of(&h, (t, inner)), &teacher).unwrap())[0]);
        assert!((got - want).abs() < 1e-5 * want, "{loss:?}: {got} {want}");
    }
}

#[test]
fn a_student_equal_to_its_teacher_costs_nothing() {
    let (h, w) = (var(1, &[4, 5], 3.0), var(3, &[7, 5], 3.0));
    let weights: Arc<[f32]> = [1.0; 4].into();
    let loss = linear_divergence(&h, &teacher(&h, &w, &weights)).unwrap();
    assert!(loss.to_vec1::<f32>().unwrap()[0] < 1e-6);
    let grads = loss.backward().unwrap();
    let largest =
        grads.get(h.as_tensor()).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(largest < 1e-6);
}

/// Value and gradient for the student, both in f64 from the unfused formula.
fn gradient_of(
    h: &[f32],
    t: &[f32],
    head: &[f32],
    weights: &[f32],
    (inner, vocab): (usize, usize),
) -> Vec<f64> {
    let softmax = |x: &[f32]| -> Vec<f64> {
        let dot =
            |v: usize| (0..inner).map(|i| f64::from(x[i]) * f64::from(head[v * inner + i])).sum::<f64>();
        let z: Vec<f64> = (0..vocab).map(dot).collect();
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = z.iter().map(|z| (z - top).exp()).sum();
        z.iter().map(|z| (z - top).exp() / total).collect()
    };
    let row = |i: usize| {
        let (q, p) = (softmax(&h[i * inner..][..inner]), softmax(&t[i * inner..][..inner]));
        let along = move |d: usize| {
            let pull = (0..vocab).map(|v| (q[v] - p[v]) * f64::from(head[v * inner + d])).sum::<f64>();
            pull * f64::from(weights[i]) / 2.0
        };
        (0..inner).map(along).collect::<Vec<f64>>()
    };
    (0..weights.len()).flat_map(row).collect()
}

#[test]
fn value_and_gradient_match_the_unfused_formula_around_a_chunk() {
    let (inner, vocab) = (3, 17);
    let head = noise(3, vocab * inner, 1.0);
    for t in [1, CHUNK - 1, CHUNK, CHUNK + 1] {
        let (h, u) = (noise(1, t * inner, 2.0), noise(2, t * inner, 2.0));
        let weights: Arc<[f32]> = (0..t).map(|i| [1.0, 0.0, 0.5, 2.0][i % 4]).collect();
        let student = candle_core::Var::from_tensor(&tensor(h.clone(), (t, inner)).unwrap()).unwrap();
        let (taught, w) =
            (tensor(u.clone(), (t, inner)).unwrap(), tensor(head.clone(), (vocab, inner)).unwrap());
        let loss = linear_divergence(&student, &teacher(&taught, &w, &weights)).unwrap();
        close(&flat(&loss), &[reference(&h, &u, &head, &weights, (inner, vocab))], 1e-5);
        let want = gradient_of(&h, &u, &head, &weights, (inner, vocab));
        close(&gradient(&loss, &student), &want, 2e-6);
    }
}

#[test]
fn far_apart_models_give_a_large_finite_loss() {
    let (h, t) = (var(1, &[2, 4], 100.0), var(2, &[2, 4], 100.0));
    let (w, weights): (_, Arc<[f32]>) = (var(3, &[9, 4], 1.0), [1.0; 2].into());
    let loss = linear_divergence(&h, &teacher(&t, &w, &weights)).unwrap();
    let value = flat(&loss)[0];
    assert!(value > 10.0 && value.is_finite(), "{value}");
    assert!(gradient(&loss, &h).iter().all(|g| g.is_finite()));
}

#[test]
fn losses_of_parts_add_up() {
    let (h, t) = (noise(1, 6 * 4, 1.0), noise(2, 6 * 4, 1.0));
    let w = var(3, &[9, 4], 1.0);
    let part = |rows: std::ops::Range<usize>| {
        let cut = |x: &[f32]| tensor(x[rows.start * 4..rows.end * 4].to_vec(), (rows.len(), 4)).unwrap();
        let weights: Arc<[f32]> = vec![1.0; rows.len()].into();
        flat(&linear_divergence(&cut(&h), &teacher(&cut(&t), &w, &weights)).unwrap())[0]
    };
    assert!((part(0..6) - part(0..1) - part(1..6)).abs() < 1e-6);
}

#[test]
fn a_gradient_can_be_taken_once_and_scales_with_what_comes_from_above() {
    let (h, t, w) = (var(1, &[2, 4], 1.0), var(2, &[2, 4], 1.0), var(3, &[9, 4], 1.0));
    let weights: Arc<[f32]> = [1.0; 2].into();
    let loss = || linear_divergence(&h, &teacher(&t, &w, &weights)).unwrap();
    let once = gradient(&loss(), &h);
    let thrice: Vec<f64> = once.iter().map(|g| 3.0 * f64::from(*g)).collect();
    close(&gradient(&(loss() * 3.0).unwrap(), &h), &thrice, 1e-6);
    let used = loss();
    used.backward().unwrap();
    assert!(used.backward().unwrap_err().to_string().contains("already taken"));
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let check = |h: [usize; 2], t: [usize; 2], w: [usize; 2], n: usize| {
        let (h, t, w) = (var(1, &h, 1.0), var(2, &t, 1.0), var(3, &w, 1.0));
        let weights: Arc<[f32]> = vec![1.0; n].into();
        assert!(linear_divergence(&h, &teacher(&t, &w, &weights)).is_err());
    };
    check([3, 4], [2, 4], [9, 4], 3);
    check([3, 4], [3, 5], [9, 4], 3);
    check([3, 4], [3, 4], [9, 5], 3); // a wider head, whose data would suffice
    check([3, 4], [3, 4], [9, 4], 2);
}

#[test]
fn tokens_that_are_missing_or_unknown_are_refused() {
    let (h, t, w) = (var(1, &[3, 4], 1.0), var(2, &[3, 4], 1.0), var(3, &[9, 4], 1.0));
    let weights: Arc<[f32]> = [1.0; 3].into();
    let refused = |targets: Option<Vec<u32>>| {
        let targets: Option<Arc<[u32]>> = targets.map(Into::into);
        let loss = Loss { cross_entropy: 0.1, ..Loss::default() };
        let teacher = Teacher { targets: targets.as_ref(), loss, ..teacher(&t, &w, &weights) };
        linear_divergence(&h, &teacher).is_err()
    };
    assert!(refused(None) && refused(Some(vec![1, 2])) && refused(Some(vec![1, 2, 9])));
    assert!(!refused(Some(vec![1, 2, 8])));
}
