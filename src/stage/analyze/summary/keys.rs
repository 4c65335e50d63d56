//! Lengths, frequencies and spectra of keys and values. Knows no attention weights and no experts.

use super::{
    Topic,
    words::{counted, mean, percent, places, range, tenths, whole},
};
use crate::artifact::analysis::{Figures, KvHead, Layer, Spectra, Spectrum};

/// Keys at the first position that are at least this many times as long as elsewhere make it a massive sink.
const MASSIVE: f64 = 5.0;
/// Norms at the first position outside 1/x to x of the others' stand out.
const STANDS_OUT: f64 = 1.5;
/// A pair of whose key energy one shared component holds at least this share can be shared between heads.
const SHARED: f64 = 0.8;

pub(super) fn topics(figures: &Figures) -> Vec<Topic> {
    let topics = [lengths(figures), frequencies(figures), sharing(figures), spectra(figures)];
    topics.into_iter().flatten().collect()
}

fn lengths(figures: &Figures) -> Option<Topic> {
    let layers = &figures.layers;
    let heads = || layers.iter().flat_map(|layer| &layer.kv_heads);
    heads().next()?;
    let massive = heads().filter(|head| head.first_key_ratio >= MASSIVE).count();
    let massive = match massive {
        0 => "no massive sinks".to_owned(),
        n => format!("massive sinks in {n} of {}", counted(heads().count(), "key head")),
    };
    let by_layer = |f: fn(&Layer) -> f64| range(layers.iter().map(f), tenths);
    let verdict = format!(
        "{massive}: keys at the first position are {} times as long as elsewhere (massive from {MASSIVE} on; {} with all heads of a layer as one, and {} \
         at the first four); values at the first position {}. Queries are {} times as long as keys",
        range(heads().map(|head| head.first_key_ratio), tenths),
        by_layer(|layer| layer.geometry.first_key_ratio),
        by_layer(|layer| layer.geometry.first_four_keys_ratio),
        by_layer(|layer| layer.geometry.first_value_ratio),
        by_layer(|layer| layer.geometry.query_key_ratio),
    );
    let unusual = |of: fn(&KvHead) -> f64, what: &str| {
        let members = |layer: &Layer| {
            let heads = layer.kv_heads.iter().map(of).enumerate();
            let out = heads.filter(|(_, x)| !(1.0 / STANDS_OUT..=STANDS_OUT).contains(x));
            (layer.layer, out.map(|(g, x)| format!("{g}: {x:.1}×")).collect())
        };
        let found: Vec<_> = layers.iter().map(members).collect();
        let what = format!(
            "{what} at the first position that are longer or shorter than elsewhere (outside 1/{STANDS_OUT} to {STANDS_OUT} times)"
        );
        places(&found, "head", &what)
    };
    let details = [unusual(|h| h.first_key_ratio, "keys"), unusual(|h| h.first_value_ratio, "values")];
    Some(Topic { name: "Lengths", verdict, details: details.into_iter().flatten().collect() })
}

fn frequencies(figures: &Figures) -> Option<Topic> {
    let of = |kind: &'static str| {
        figures.layers.iter().filter(move |l| l.attention == kind && !l.pairs.is_empty())
    };
    let told = |kind: &'static str| {
        let pairs = of(kind).map(|layer| layer.pairs.len()).max()?;
        let energy = |layer: &Layer, still: bool| -> f64 {
            layer.pairs.iter().filter(|pair| !(still && pair.turns)).map(|pair| pair.key_energy).sum()
        };
        let held = of(kind).map(|layer| energy(layer, true) / energy(layer, false).max(f64::MIN_POSITIVE));
        Some(format!(
            "{} of {pairs} rotary pairs stay still in {kind} layers and hold {} of the key energy",
            range(of(kind).map(|layer| layer.geometry.still_pairs as f64), whole),
            percent(mean(held))
        ))
    };
    let said: Vec<String> = ["full", "sliding"].into_iter().filter_map(told).collect();
    let still = "(a still one turns by less than 1 radian over the distance that holds 90 % of the layer's attention)";
    let verdict = format!("{} {still}", said.join("; "));
    (!said.is_empty()).then_some(Topic { name: "Frequencies", verdict, details: vec![] })
}

fn sharing(figures: &Figures) -> Option<Topic> {
    let layers = || figures.layers.iter().filter(|layer| layer.geometry.correlation.is_some());
    let heads = layers().map(|layer| layer.kv_heads.len()).max()?;
    let shared =
        |layer: &Layer| layer.pairs.iter().filter(|p| p.sharing.is_some_and(|s| s >= SHARED)).count();
    let (found, all) =
        layers().fold((0, 0), |(found, all), layer| (found + shared(layer), all + layer.pairs.len()));
    let verdict = format!(
        "one component for each rotary pair, shared by all {heads} key heads, holds {} of the key energy by layer ({} is nothing in common); \
         {} of {all} pairs could be shared (at least {}); the heads' mean correlation is {}",
        range(layers().filter_map(|layer| layer.geometry.sharing), percent),
        percent(1.0 / heads as f64),
        if found == 0 { "none".to_owned() } else { found.to_string() },
        percent(SHARED),
        range(layers().filter_map(|layer| layer.geometry.correlation), |x| format!("{x:.2}")),
    );
    let members = |layer: &Layer| {
        let pairs = layer.pairs.iter().enumerate().filter(|(_, p)| p.sharing.is_some_and(|s| s >= SHARED));
        (layer.layer, pairs.map(|(j, _)| j.to_string()).collect())
    };
    let what = format!(
        "rotary pairs whose keys all heads nearly share (one component holds at least {})",
        percent(SHARED)
    );
    let details = places(&layers().map(members).collect::<Vec<_>>(), "pair", &what).into_iter().collect();
    Some(Topic { name: "Heads alike", verdict, details })
}

fn spectra(figures: &Figures) -> Option<Topic> {
    let spectra = || figures.layers.iter().filter_map(|layer| layer.spectra.as_ref());
    let told = |of: fn(&Spectra) -> &Spectrum| {
        let size = spectra().map(|spectra| of(spectra).singular_values.len()).max()?;
        let ranks = spectra().map(|spectra| of(spectra).effective_rank);
        Some(format!("{} of {size}", range(ranks, whole)))
    };
    let held = range(spectra().map(|spectra| spectra.joint.rank_99 as f64), whole);
    Some(Topic {
        name: "Spectra",
        verdict: format!(
            "the effective rank by layer is {} for keys before rotation, {} for values, {} for both; 99 % of the energy of both lies in {held} directions",
            told(|s| &s.keys)?,
            told(|s| &s.values)?,
            told(|s| &s.joint)?,
        ),
        details: vec![],
    })
}
