//! Which maps a model has, and what stands in their cells. Knows no pixels.

use super::heat::{Map, Scale};
use crate::artifact::analysis::{Figures, Head, Layer, Pair};

/// Loads are told from this fraction to this multiple of an even one.
const LOAD: f64 = 4.0;
/// The same of a pair's key energy.
const ENERGY: f64 = 16.0;
/// The least share that the darkest colour stands for, so that small shares look small.
const LEAST: f64 = 0.1;

/// The maps of a model with their file names.
pub(super) fn all(figures: &Figures) -> Vec<(&'static str, Map)> {
    let far = figures.protocol.far;
    let maps = [
        ("sinks.svg", sinks(figures)),
        (
            "first-token.svg",
            heads(figures, "Attention to the first token".into(), |_| true, |h| h.first_token_mass),
        ),
        (
            "far.svg",
            heads(
                figures,
                format!("Attention to tokens {far} or more back"),
                |layer| layer.attention != "sliding",
                |h| h.far,
            ),
        ),
        ("experts.svg", experts(figures)),
        ("frequencies.svg", energy(figures)),
        ("turns.svg", turns(figures)),
        ("sharing.svg", sharing(figures)),
    ];
    maps.into_iter().filter_map(|(name, map)| Some((name, map?))).collect()
}

/// Heads by layers, of the layers that `keep` keeps; `None` if it keeps none.
fn heads(figures: &Figures, title: String, keep: fn(&Layer) -> bool, of: fn(&Head) -> f64) -> Option<Map> {
    let layers: Vec<&Layer> = figures.layers.iter().filter(|layer| keep(layer)).collect();
    let count = layers.iter().map(|layer| layer.heads.len()).max().filter(|&count| count > 0)?;
    let cells = table(&layers, count, |layer, h| layer.heads.get(h).map(of));
    let most = cells.iter().flatten().copied().fold(0.0, f64::max);
    let (rows, scale) = (("head", numbers(count)), Scale::Share(round_up(most.max(LEAST))));
    Some(Map { title, rows, columns: columns(&layers), legend: "share", scale, cells })
}

fn sinks(figures: &Figures) -> Option<Map> {
    let learned = |layer: &Layer| layer.heads.iter().any(|head| head.sink_logit.is_some());
    heads(figures, "Attention to the learned sinks".into(), learned, |h| h.sink_mass)
}

fn experts(figures: &Figures) -> Option<Map> {
    let layers: Vec<&Layer> = figures.layers.iter().filter(|layer| layer.routing.is_some()).collect();
    let load = |layer: &Layer, e: usize| {
        let load = &layer.routing.as_ref()?.load;
        Some(load.get(e)? * load.len() as f64)
    };
    let count = layers.iter().filter_map(|layer| Some(layer.routing.as_ref()?.load.len())).max()?;
    Some(Map {
        title: "Load of experts (black: never chosen)".into(),
        rows: ("expert", numbers(count)),
        columns: columns(&layers),
        legend: "of fair share",
        scale: Scale::Fair(LOAD),
        cells: table(&layers, count, load),
    })
}

/// Pairs by layers.
fn pairs(
    figures: &Figures,
    title: &str,
    (legend, scale): (&'static str, Scale),
    of: impl Fn(&Layer, &Pair) -> Option<f64>,
) -> Option<Map> {
    let layers: Vec<&Layer> = figures.layers.iter().filter(|layer| !layer.pairs.is_empty()).collect();
    let count = layers.iter().map(|layer| layer.pairs.len()).max()?;
    let cells = table(&layers, count, |layer, j| of(layer, layer.pairs.get(j)?));
    let rows = ("rotary pair, fast to slow", numbers(count));
    Some(Map { title: title.into(), rows, columns: columns(&layers), legend, scale, cells })
}

fn energy(figures: &Figures) -> Option<Map> {
    let scale = ("of even share", Scale::Fair(ENERGY));
    pairs(figures, "Key energy of rotary pairs", scale, |layer, pair| {
        let all: f64 = layer.pairs.iter().map(|pair| pair.key_energy).sum();
        (all > 0.0).then(|| pair.key_energy / all * layer.pairs.len() as f64)
    })
}

fn turns(figures: &Figures) -> Option<Map> {
    let scale = ("coherence", Scale::Share(1.0));
    pairs(figures, "How still rotary pairs are where attention looks", scale, |_, pair| Some(pair.coherence))
}

fn sharing(figures: &Figures) -> Option<Map> {
    figures.layers.iter().find(|layer| layer.geometry.correlation.is_some())?;
    let scale = ("share", Scale::Share(1.0));
    pairs(figures, "Key energy in one component of all heads", scale, |_, pair| pair.sharing)
}

/// Row by row: what `of` says of each layer.
fn table(layers: &[&Layer], rows: usize, of: impl Fn(&Layer, usize) -> Option<f64>) -> Vec<Option<f64>> {
    (0..rows)
        .flat_map(|row| layers.iter().map(move |layer| (layer, row)))
        .map(|(layer, row)| of(layer, row))
        .collect()
}

fn columns(layers: &[&Layer]) -> (&'static str, Vec<String>) {
    ("layer", layers.iter().map(|layer| layer.layer.to_string()).collect())
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|i| i.to_string()).collect()
}

/// To the next tenth.
fn round_up(share: f64) -> f64 {
    ((share * 10.0 - 1e-9).ceil() / 10.0).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::analysis::{Protocol, Routing},
        stage::analyze::picture::heat::{self, tests::cells_in},
    };

    fn head(sink_mass: f64, far: f64) -> Head {
        Head { sink_logit: Some(0.0), sink_mass, far, ..Head::default() }
    }

    fn figures() -> Figures {
        let pair = |key_energy, sharing| Pair { key_energy, sharing, coherence: 0.5, ..Pair::default() };
        let layer = |layer, attention: &str, heads: [Head; 2], load: [f64; 2]| Layer {
            layer,
            attention: attention.into(),
            heads: heads.into(),
            pairs: vec![pair(3.0, Some(0.75)), pair(1.0, None), pair(0.0, None)],
            routing: Some(Routing { load: load.into(), ..Routing::default() }),
            ..Layer::default()
        };
        let mut layers = vec![
            layer(3, "sliding", [head(0.25, 0.0), head(0.5, 0.0)], [0.5, 0.5]),
            layer(4, "full", [head(0.62, 0.01), head(0.0, 0.02)], [1.0, 0.0]),
        ];
        layers[1].geometry.correlation = Some(0.5);
        Figures { protocol: Protocol { far: 8, ..Protocol::default() }, layers }
    }

    fn map(name: &str) -> Map {
        all(&figures()).into_iter().find(|(found, _)| *found == name).unwrap().1
    }

    #[test]
    fn rows_are_heads_experts_or_pairs_and_columns_are_layers() {
        let sinks = map("sinks.svg");
        assert_eq!(sinks.cells, [Some(0.25), Some(0.62), Some(0.5), Some(0.0)]);
        assert_eq!((sinks.scale, sinks.columns.1), (Scale::Share(0.7), vec!["3".to_owned(), "4".to_owned()]));
        let far = map("far.svg");
        assert_eq!((far.cells, far.scale), (vec![Some(0.01), Some(0.02)], Scale::Share(0.1)));
        assert_eq!(
            (far.title.as_str(), far.columns.1),
            ("Attention to tokens 8 or more back", vec!["4".to_owned()])
        );
        assert_eq!(map("experts.svg").cells, [Some(1.0), Some(2.0), Some(1.0), Some(0.0)]);
        let energy = map("frequencies.svg");
        assert_eq!(energy.cells, [2.25, 2.25, 0.75, 0.75, 0.0, 0.0].map(Some));
        assert_eq!(map("sharing.svg").cells, [Some(0.75), Some(0.75), None, None, None, None]);
        assert_eq!(map("turns.svg").cells, [Some(0.5); 6]);
    }

    #[test]
    fn every_picture_has_a_cell_for_each_entry() {
        let maps = all(&figures());
        assert_eq!(maps.len(), 7);
        for (name, map) in maps {
            assert_eq!(map.cells.len(), map.rows.1.len() * map.columns.1.len(), "{name}");
            assert_eq!(cells_in(&heat::draw(&map).unwrap()), map.cells.len(), "{name}");
        }
    }

    #[test]
    fn scales_end_at_a_tenth() {
        let scale = [0.1, 0.101, 0.2, 0.3, 0.999, 1.0].map(|share| Scale::Share(round_up(share)));
        assert_eq!(scale, [0.1, 0.2, 0.2, 0.3, 1.0, 1.0].map(Scale::Share));
    }
}
