//! The analysis as a picture: how far each layer looks back. Knows no way to measure.

use plotters::prelude::*;

use crate::artifact::analysis::{Figures, Layer};

/// Why the picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the attention picture: {0}")]
pub(super) struct DrawError(String);

/// An SVG with one line per layer: the mean share of attention over the logarithm of the distance.
pub(super) fn draw(figures: &Figures) -> Result<String, DrawError> {
    let mut text = String::new();
    lines(figures, &mut text).map_err(|e| DrawError(e.to_string()))?;
    Ok(text)
}

fn lines(figures: &Figures, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let curves: Vec<(&Layer, Vec<f64>)> = figures.layers.iter().map(|layer| (layer, curve(layer))).collect();
    let width = curves.iter().map(|(_, curve)| curve.len()).max().unwrap_or(1).max(2);
    let height = curves.iter().flat_map(|(_, curve)| curve.iter().copied()).fold(0.01, f64::max);
    let area = SVGBackend::with_string(text, (720, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0..width - 1, 0.0..1.05 * height)?;
    chart
        .configure_mesh()
        .x_desc("distance in tokens (from)")
        .y_desc("share of attention")
        .x_label_formatter(&|&i: &usize| {
            if i == 0 { "0".to_owned() } else { (1_usize << (i - 1)).to_string() }
        })
        .draw()?;
    for (n, (layer, curve)) in curves.iter().enumerate() {
        let colour = Palette99::pick(n).to_rgba();
        let stroke = if layer.attention == "sliding" { 1 } else { 2 };
        chart
            .draw_series(LineSeries::new(curve.iter().copied().enumerate(), colour.stroke_width(stroke)))?
            .label(format!("{} {}", layer.layer, layer.attention))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
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
    use crate::artifact::analysis::Head;

    #[test]
    fn one_line_per_layer() {
        let head = Head { distance: vec![0.5, 0.2, 0.1], ..Head::default() };
        let layer = |layer, attention: &str| Layer {
            layer,
            attention: attention.into(),
            heads: vec![head.clone()],
            ..Layer::default()
        };
        let figures = Figures { layers: vec![layer(0, "sliding"), layer(1, "full")], ..Figures::default() };
        let svg = draw(&figures).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("1 full") && svg.contains("0 sliding"), "{svg}");
        assert_eq!(svg, draw(&figures).unwrap());
        assert!(draw(&Figures::default()).is_ok());
    }
}
