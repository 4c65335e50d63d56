//! The analysis in pictures: how far each layer looks, and maps of heads, experts and frequencies over layers. Knows no way to measure.

mod colour;
mod heat;
mod lines;
mod maps;

use std::{collections::BTreeMap, error::Error};

use crate::artifact::analysis::Figures;

/// Why a picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw `{name}`: {why}")]
pub(super) struct DrawError {
    name: &'static str,
    why: String,
}

/// SVGs by file name; what the model does not have has no picture.
pub(super) fn draw(figures: &Figures) -> Result<BTreeMap<String, String>, DrawError> {
    let mut pictures = BTreeMap::new();
    let mut add = |name: &'static str, drawn: Result<String, Box<dyn Error>>| {
        let picture = drawn.map_err(|e| DrawError { name, why: e.to_string() })?;
        pictures.insert(name.to_owned(), picture);
        Ok(())
    };
    if !figures.layers.is_empty() {
        add("attention.svg", lines::draw(figures))?;
    }
    for (name, map) in maps::all(figures) {
        add(name, heat::draw(&map))?;
    }
    Ok(pictures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::analysis::{Head, Layer, Pair, Routing};

    fn layer(attention: &str) -> Layer {
        let head = Head { distance: vec![0.5, 0.2], ..Head::default() };
        Layer { attention: attention.into(), heads: vec![head; 2], ..Layer::default() }
    }

    fn names(layers: Vec<Layer>) -> Vec<String> {
        draw(&Figures { layers, ..Figures::default() }).unwrap().into_keys().collect()
    }

    #[test]
    fn there_is_a_picture_of_what_there_is() {
        assert!(names(vec![]).is_empty());
        assert_eq!(names(vec![layer("sliding")]), ["attention.svg", "first-token.svg"]);
        assert_eq!(names(vec![layer("full")]), ["attention.svg", "far.svg", "first-token.svg"]);
        let mut rich = layer("full");
        rich.heads[0].sink_logit = Some(0.5);
        rich.pairs = vec![Pair { sharing: Some(0.5), key_energy: 1.0, ..Pair::default() }];
        rich.geometry.correlation = Some(0.25);
        rich.routing = Some(Routing { load: vec![1.0], ..Routing::default() });
        let all = [
            "attention.svg",
            "experts.svg",
            "far.svg",
            "first-token.svg",
            "frequencies.svg",
            "sharing.svg",
            "sinks.svg",
            "turns.svg",
        ];
        assert_eq!(names(vec![rich, layer("sliding")]), all);
    }
}
