//! Whole pages for small sets of figures, and every threshold at its ends.

use super::*;
use crate::artifact::analysis::{
    Geometry, Head, KvHead, Layer, Pair, Protocol, Routing, Spectra, Spectrum, Together,
};

fn head(sink: f64, first: f64, far: f64) -> Head {
    Head {
        sink_logit: Some(1.0),
        sink_mass: sink,
        sink_by_position: vec![0.8, 0.5, 0.25 * sink],
        first_token_mass: first,
        far,
        ..Head::default()
    }
}

fn spectrum(size: usize, effective_rank: f64) -> Spectrum {
    Spectrum { singular_values: vec![1.0; size], effective_rank, rank_99: size - 1, ..Spectrum::default() }
}

fn ordinary(layer: usize, attention: &str) -> Layer {
    let pair = |key_energy, turns, sharing| Pair { key_energy, turns, sharing, ..Pair::default() };
    let kv =
        KvHead { first_key_ratio: 1.0, first_four_keys_ratio: 1.0, first_value_ratio: 1.0, key_norm: 1.0 };
    Layer {
        layer,
        attention: attention.into(),
        heads: vec![head(0.2, 0.1, 0.0); 4],
        kv_heads: vec![kv; 2],
        geometry: Geometry {
            query_key_ratio: 0.5,
            first_key_ratio: 1.0,
            first_four_keys_ratio: 1.0,
            first_value_ratio: 1.0,
            reach: 5 + layer,
            still_pairs: 1,
            sharing: Some(0.6),
            correlation: Some(0.25),
            ..Geometry::default()
        },
        pairs: vec![pair(3.0, true, Some(0.7)), pair(1.0, false, Some(0.5))],
        routing: Some(Routing {
            load: vec![0.25; 4],
            gates: vec![0.75, 0.25],
            balance: 1.0,
            effective_experts: 4.0,
            entropy_share: 0.9,
            gaps: vec![0.02, 0.98],
            lift_by_chance: 2.0 / 3.0,
            ..Routing::default()
        }),
        spectra: Some(Spectra { keys: spectrum(4, 2.0), values: spectrum(4, 3.0), joint: spectrum(8, 4.6) }),
        ..Layer::default()
    }
}

fn figures(layers: Vec<Layer>) -> Figures {
    let protocol = Protocol { sequences: 2, tokens: 1000, max_length: 600, far: 8 };
    Figures { protocol, layers }
}

/// A layer in which everything is unusual.
fn unusual(layer: usize) -> Layer {
    let mut layer = ordinary(layer, "full");
    layer.heads[1] = head(0.62, 0.31, 0.0);
    layer.heads[3] = head(0.5, 0.0, 0.125);
    layer.kv_heads[0].first_key_ratio = 7.25;
    layer.kv_heads[1].first_value_ratio = 0.1;
    layer.geometry.first_key_ratio = 4.0;
    layer.pairs[0].sharing = Some(0.9);
    let routing = layer.routing.as_mut().unwrap();
    routing.load = vec![0.6, 0.2, 0.2, 0.0];
    routing.dead = vec![3];
    routing.balance = 1.5;
    routing.effective_experts = 2.6;
    routing.together = vec![Together { experts: [1, 2], share: 0.4, lift: 2.5 }];
    layer
}

#[test]
fn a_page_of_an_ordinary_model() {
    let text = write(&figures(vec![ordinary(0, "sliding"), ordinary(1, "full")]));
    insta::assert_snapshot!(text);
}

#[test]
fn a_page_of_an_unusual_model() {
    let text = write(&figures(vec![ordinary(0, "sliding"), unusual(1)]));
    insta::assert_snapshot!(text);
}

/// Without sinks, without experts, and with one key head.
fn plain(layer: usize) -> Layer {
    let mut layer = Layer { routing: None, ..ordinary(layer, "full") };
    layer.heads.iter_mut().for_each(|head| *head = Head { first_token_mass: 0.4, ..Head::default() });
    layer.kv_heads.truncate(1);
    (layer.geometry.sharing, layer.geometry.correlation) = (Some(1.0), None);
    layer.pairs.iter_mut().for_each(|pair| pair.sharing = Some(1.0));
    layer
}

#[test]
fn what_a_model_does_not_have_is_not_on_the_page() {
    let text = write(&figures(vec![plain(0), plain(1)]));
    insta::assert_snapshot!(text);
    let text = text.to_lowercase();
    for word in ["expert", "router", "learned", "sliding", "share", "component"] {
        assert!(!text.replace("sink share", "").contains(word), "{word} in\n{text}");
    }
    let latent = Layer { pairs: vec![], spectra: None, ..Layer { attention: "latent".into(), ..plain(0) } };
    let text = write(&figures(vec![latent]));
    assert!(!text.contains("rotary") && !text.contains("rank") && text.contains("| 0 | latent |"), "{text}");
    assert!(write(&figures(vec![])).contains("Nothing passes a threshold"));
}

#[test]
fn a_page_stays_a_page() {
    let text = write(&figures((0..36).map(unusual).collect()));
    let (lines, longest) =
        (text.lines().count(), text.lines().map(|line| line.chars().count()).max().unwrap());
    assert!(lines < 70 && longest < 600, "{lines} lines, up to {longest} long\n{text}");
    let rest = "36 of 36 layers have heads that mostly rest (sink share of at least 50 %): 0 (heads 1, 3), ";
    assert!(text.contains(rest) && text.contains("7 (heads 1, 3) and 28 more."), "{text}");
}

#[test]
fn thresholds_at_their_ends() {
    let details = |change: &dyn Fn(&mut Layer)| {
        let mut layer = ordinary(0, "full");
        change(&mut layer);
        let text = write(&figures(vec![layer]));
        text.split("## What stands out").nth(1).unwrap().trim().to_owned()
    };
    assert_eq!(details(&|_| ()), "Nothing passes a threshold.");
    let check = |change: &dyn Fn(&mut Layer), part: &str| {
        let said = details(change);
        let lines = said.lines().count();
        assert!(lines == 1 && said.contains(part), "{part}: {said}");
    };
    let quiet = "Nothing passes";
    check(
        &|l| l.heads[2].sink_mass = 0.5,
        "heads that mostly rest (sink share of at least 50 %): 0 (head 2)",
    );
    check(&|l| l.heads[2].sink_mass = 0.499, quiet);
    check(
        &|l| l.heads[2].first_token_mass = 0.3,
        "the first token as a sink (at least 30 % of a head's attention): 0 (head 2)",
    );
    check(&|l| l.heads[2].first_token_mass = 0.299, quiet);
    check(
        &|l| l.heads[2].far = 0.1,
        "at least 8 tokens back with at least 10 % of their attention: 0 (head 2)",
    );
    check(&|l| l.heads[2].far = 0.099, quiet);
    check(&|l| (l.heads[2].far, l.attention) = (0.5, "sliding".into()), quiet);
    check(&|l| l.kv_heads[1].first_key_ratio = 1.51, "keys at the first position that are longer or shorter");
    check(&|l| l.kv_heads[1].first_key_ratio = 1.5, quiet);
    check(&|l| l.kv_heads[1].first_key_ratio = 0.66, "0 (head 1: 0.7×)");
    check(&|l| l.kv_heads[1].first_key_ratio = 0.67, quiet);
    check(
        &|l| l.kv_heads[1].first_value_ratio = 0.25,
        "values at the first position that are longer or shorter",
    );
    check(
        &|l| l.pairs[1].sharing = Some(0.8),
        "nearly share (one component holds at least 80 %): 0 (pair 1)",
    );
    check(&|l| l.pairs[1].sharing = Some(0.799), quiet);
    let routing = |l: &mut Layer, load: [f64; 4]| l.routing.as_mut().unwrap().load = load.into();
    check(&|l| routing(l, [0.51, 0.3, 0.1, 0.09]), "more than 2 times their fair share: 0 (expert 0: 2.0×)");
    check(&|l| routing(l, [0.5, 0.3, 0.1, 0.1]), quiet);
    let lift = |l: &mut Layer, lift| {
        let pair = Together { experts: [1, 3], share: 0.1, lift };
        l.routing.as_mut().unwrap().together = vec![pair];
    };
    check(&|l| lift(l, 2.01), "as often as by chance: 0 (pair 1+3: 3.0×)");
    check(&|l| lift(l, 1.99), quiet);
}

#[test]
fn keys_are_massive_from_five_times_on() {
    let verdict = |ratio: f64| {
        let mut layer = ordinary(0, "full");
        layer.kv_heads[0].first_key_ratio = ratio;
        write(&figures(vec![layer])).contains("massive sinks in 1 of 2 key heads")
    };
    assert_eq!([verdict(4.99), verdict(5.0)], [false, true]);
}
