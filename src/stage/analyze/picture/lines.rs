//! How far each layer looks back, as lines. Knows no way to measure.

use std::error::Error;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::colour::rising;
use crate::artifact::{
    analysis::{Figures, Layer},
    moments::begin,
};

/// Layers that the legend names at most.
const NAMED: usize = 12;

/// An SVG with one line per layer, the later the darker: the mean share of attention over the logarithm of the distance.
pub(super) fn draw(figures: &Figures) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    let curves: Vec<(&Layer, Vec<f64>)> = figures.layers.iter().map(|layer| (layer, curve(layer))).collect();
    let width = curves.iter().map(|(_, curve)| curve.len()).max().unwrap_or(1).max(2);
    let height = curves.iter().flat_map(|(_, curve)| curve.iter().copied()).fold(0.01, f64::max);
    // An odd step, so that where kinds of layers alternate both are named.
    let every = curves.len().div_ceil(NAMED) | 1;
    {
        let area = SVGBackend::with_string(&mut text, (760, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally(640);
        let mut chart = ChartBuilder::on(&left)
            .caption("How far layers look back (sliding ones dotted)", ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(0..width - 1, 0.0..1.05 * height)?;
        chart
            .configure_mesh()
            .x_desc("distance in tokens (from)")
            .y_desc("share of attention")
            .x_label_formatter(&|&i: &usize| begin(i).to_string())
            .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
            .light_line_style(WHITE)
            .draw()?;
        for (n, (layer, curve)) in curves.iter().enumerate() {
            // Not from the lightest colour on, which is that of the paper.
            let colour = rising(0.3 + 0.7 * n as f64 / curves.len() as f64);
            let points = || curve.iter().copied().enumerate();
            let sliding = layer.attention == "sliding";
            let stroke = colour.stroke_width(if sliding { 1 } else { 2 });
            chart.draw_series(LineSeries::new(points(), stroke))?;
            if sliding {
                chart.draw_series(points().map(|at| Circle::new(at, 3, colour.filled())))?;
            }
            if n % every == 0 {
                let y = 50 + 18 * (n / every) as i32;
                right.draw(&PathElement::new([(4, y), (22, y)], stroke))?;
                let style =
                    ("sans-serif", 12).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
                right.draw(&Text::new(format!("{} {}", layer.layer, layer.attention), (28, y), style))?;
            }
        }
        area.present()?;
    }
    Ok(text)
}

/// The mean over heads.
fn curve(layer: &Layer) -> Vec<f64> {
    let width = layer.heads.iter().map(|head| head.distance.len()).max().unwrap_or(0);
    let mean = |i: usize| {
        let sum: f64 = layer.heads.iter().filter_map(|head| head.distance.get(i)).sum();
        sum / layer.heads.len() as f64
    };
    (0..width).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{artifact::analysis::Head, stage::analyze::picture::heat::tests::tags};

    fn figures(layers: usize) -> Figures {
        let head = Head { distance: vec![0.5, 0.2, 0.1], ..Head::default() };
        let layer = |layer| Layer {
            layer,
            attention: if layer % 2 == 0 { "sliding" } else { "full" }.into(),
            heads: vec![head.clone()],
            ..Layer::default()
        };
        Figures { layers: (0..layers).map(layer).collect(), ..Figures::default() }
    }

    fn count(svg: &str, start: &str) -> usize {
        tags(svg).iter().filter(|tag| tag.starts_with(start)).count()
    }

    #[test]
    fn one_line_per_full_layer_and_dots_for_sliding_ones() {
        let svg = draw(&figures(2)).unwrap();
        assert!(svg.contains("1 full") && svg.contains("0 sliding"), "{svg}");
        assert_eq!(svg, draw(&figures(2)).unwrap());
        assert_eq!(count(&svg, "circle"), 3);
        assert_eq!(count(&draw(&figures(4)).unwrap(), "circle"), 6);
        assert!(draw(&Figures::default()).is_ok());
    }

    #[test]
    fn the_legend_stays_short() {
        let named = |layers| {
            let svg = draw(&figures(layers)).unwrap();
            svg.lines().filter(|line| line.ends_with(" full") || line.ends_with(" sliding")).count()
        };
        assert_eq!([named(12), named(13), named(36)], [12, 5, 12]);
    }

    #[test]
    fn a_curve_is_the_mean_over_heads() {
        let head = |distance: &[f64]| Head { distance: distance.to_vec(), ..Head::default() };
        let layer = Layer { heads: vec![head(&[0.5, 0.25]), head(&[0.25])], ..Layer::default() };
        assert_eq!(curve(&layer), [0.375, 0.125]);
    }
}
