//! Every figure of a layer by hand.

use super::*;
use crate::artifact::moments::{BUCKETS, Model};

fn about() -> About {
    let model = Model {
        head_dim: 2,
        inv_freq: vec![0.25],
        concentration: 2.0,
        num_experts_per_tok: 2,
        ..Model::default()
    };
    About { max_length: 9, model, ..About::default() }
}

/// `sums` at the first positions in powers of two.
fn at(sums: &[f64]) -> Vec<f64> {
    let mut all = vec![0.0; BUCKETS];
    all[..sums.len()].copy_from_slice(sums);
    all
}

fn sums() -> LayerMoments {
    LayerMoments {
        attention: "full".into(),
        tokens: 4,
        sink_logits: vec![0.5],
        positions: at(&[1.0, 1.0, 2.0]),
        sink: at(&[0.5, 0.25, 0.25]),
        first_token: at(&[0.5, 0.75, 0.75]),
        distance: vec![1.0, 0.5, 0.25, 0.25, 1.0],
        query_energy: vec![64.0],
        key_energy: vec![16.0],
        first_keys: [10.0, 1.0, 20.0, 2.0, 5.0, 1.0].repeat(2),
        first_values: [2.0, 1.0, 8.0, 2.0, 4.0, 1.0].repeat(2),
        query_pairs: vec![64.0],
        key_pairs: vec![16.0],
        chosen: vec![3.0, 0.0, 5.0],
        together: vec![3.0, 0.0, 3.0, 0.0, 0.0, 0.0, 3.0, 0.0, 5.0],
        probability: vec![2.0, 0.0, 2.0],
        gates: vec![3.0, 1.0],
        router_entropy: vec![2.0],
        router_gap: vec![1.0, 1.0],
        gaps: vec![0.0; 7],
        // Keys of energy 4 and 0, values of energy 36 and 16, none of them correlated.
        keys_values: (0..16)
            .map(|at| if at / 4 == at % 4 { [4.0, 0.0, 36.0, 16.0][at / 4] } else { 0.0 })
            .collect(),
        ..LayerMoments::default()
    }
}

fn near(got: &[f64], want: &[f64]) {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
    assert!(got.len() == want.len() && got.iter().zip(want).all(near), "{got:?} {want:?}");
}

#[test]
fn heads_by_hand() {
    let layer = layer(&about(), 7, &sums()).unwrap();
    assert_eq!((layer.layer, layer.attention.as_str()), (7, "full"));
    assert_eq!(layer.positions, [1.0, 1.0, 2.0]);
    let head = &layer.heads[0];
    assert_eq!((head.sink_logit, head.sink_mass, head.first_token_mass), (Some(0.5), 0.25, 0.5));
    assert_eq!(head.sink_by_position, [0.5, 0.25, 0.125]);
    assert_eq!(head.first_token_by_position, [0.5, 0.75, 0.375]);
    assert_eq!(head.distance, [0.25, 0.125, 0.125, 0.25], "0, 1, 2 to 3, 4 to 7");
    near(&[head.mean_distance, head.far, head.query_norm], &[5.75 / 3.0, 0.0, 2.0]);
    assert_eq!(head.reach, 4);
    let kv = &layer.kv_heads[0];
    near(&[kv.key_norm, kv.first_key_ratio, kv.first_four_keys_ratio], &[1.0, 1.2, 2.0]);
    near(&[kv.first_value_ratio], &[0.5]);
}

#[test]
fn the_geometry_is_that_of_all_heads() {
    let layer = layer(&about(), 0, &sums()).unwrap();
    let all = &layer.geometry;
    near(&[all.query_norm, all.key_norm, all.query_key_ratio], &[2.0, 1.0, 2.0]);
    near(&[all.first_key_ratio, all.first_four_keys_ratio, all.first_value_ratio], &[1.2, 2.0, 0.5]);
    assert_eq!((all.reach, all.still_pairs, all.sharing, all.correlation), (4, 0, Some(1.0), None));
    let pair = &layer.pairs[0];
    near(&[pair.query_energy, pair.key_energy], &[4.0, 1.0]);
    near(&[pair.turn_mean, pair.turn_reach, pair.turn_longest], &[5.75 / 12.0, 1.0, 2.0]);
    let sums = [1.0, 0.5, 0.25, 0.25, 1.0];
    let part = |f: fn(f64) -> f64| (0..5).map(|i| sums[i] * f(0.25 * i as f64)).sum::<f64>() / 3.0;
    near(&[pair.coherence], &[part(f64::cos).hypot(part(f64::sin))]);
}

#[test]
fn a_pair_turns_from_one_radian_on() {
    let turns = |frequency: f64| {
        let mut about = about();
        about.model.inv_freq = vec![frequency];
        let layer = layer(&about, 0, &sums()).unwrap();
        (layer.pairs[0].turns, layer.geometry.still_pairs)
    };
    assert_eq!((turns(0.25), turns(0.2499)), ((true, 0), (false, 1)), "the reach is 4");
}

#[test]
fn a_window_bounds_what_turns_and_says_what_is_far() {
    let mut about = about();
    assert_eq!(protocol(&about).far, 128);
    about.model.sliding_window = 3;
    assert_eq!(protocol(&about).far, 3);
    let sliding = LayerMoments { attention: "sliding".into(), ..sums() };
    near(&[layer(&about, 0, &sliding).unwrap().pairs[0].turn_longest], &[0.5]);
    let layer = layer(&about, 0, &sums()).unwrap();
    near(&[layer.pairs[0].turn_longest, layer.heads[0].far], &[2.0, 1.25 / 4.0]);
}

#[test]
fn experts_and_spectra_by_hand() {
    let layer = layer(&about(), 0, &sums()).unwrap();
    let routing = layer.routing.unwrap();
    assert_eq!((routing.load, routing.entropy, routing.dead), (vec![0.375, 0.0, 0.625], 0.5, vec![1]));
    let spectra = layer.spectra.unwrap();
    near(&spectra.keys.singular_values, &[1.0, 0.0]);
    near(&spectra.values.singular_values, &[3.0, 2.0]);
    near(&spectra.joint.singular_values, &[3.0, 2.0, 1.0, 0.0]);
    let joint = &spectra.joint;
    assert_eq!([joint.rank_90, joint.rank_95, joint.rank_99], [2, 3, 3], "36 + 16 of 56 is 93 %");
    near(&[spectra.keys.effective_rank], &[1.0]);
}

#[test]
fn what_a_layer_does_not_have_it_has_no_figures_of() {
    let bare = LayerMoments {
        sink_logits: vec![f64::NEG_INFINITY],
        chosen: vec![],
        query_pairs: vec![],
        key_pairs: vec![],
        keys_values: vec![],
        distance: vec![],
        ..sums()
    };
    let layer = layer(&about(), 0, &bare).unwrap();
    assert!(layer.pairs.is_empty() && layer.routing.is_none() && layer.spectra.is_none());
    assert_eq!((layer.heads[0].sink_logit, layer.heads[0].sink_by_position.len()), (None, 0));
    assert_eq!((layer.geometry.sharing, layer.geometry.correlation, layer.geometry.reach), (None, None, 0));
}
