//! The scatter of documents as an SVG. Knows no way to place them.

use plotters::prelude::*;

use super::report::Point;

/// Documents that are drawn besides the chosen ones; the first by id, which is a draw by hash.
const OTHERS: usize = 2000;

/// Why the picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the scatter: {0}")]
pub(super) struct DrawError(String);

/// Grey dots for the corpus, coloured ones by the reason of a choice.
pub(super) fn draw(points: &[Point<'_>], spread: [u32; 2]) -> Result<String, DrawError> {
    let mut text = String::new();
    scatter(points, spread, &mut text).map_err(|e| DrawError(e.to_string()))?;
    Ok(text)
}

fn scatter(
    points: &[Point<'_>],
    spread: [u32; 2],
    text: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let reach = points.iter().map(|p| p.x.abs().max(p.y.abs())).max().unwrap_or(0).max(1);
    let area = SVGBackend::with_string(text, (720, 720)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(-reach..reach, -reach..reach)?;
    let axis = |share: u32| format!("{}.{} % of the variance", share / 10, share % 10);
    chart.configure_mesh().x_desc(axis(spread[0])).y_desc(axis(spread[1])).draw()?;
    let others = points.iter().filter(|p| p.chosen.is_empty()).take(OTHERS);
    let grey = RGBColor(190, 190, 190);
    chart.draw_series(others.map(|p| Circle::new((p.x, p.y), 1, grey.filled())))?;
    for (reason, colour) in [("mix", GREEN), ("near", BLUE), ("outlier", RED)] {
        let chosen = points.iter().filter(|p| p.chosen.values().any(|r| *r == reason));
        chart
            .draw_series(chosen.map(|p| Circle::new((p.x, p.y), 3, colour.filled())))?
            .label(reason)
            .legend(move |(x, y)| Circle::new((x + 7, y), 3, colour.filled()));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chosen_document_is_drawn_and_only_so_many_others() {
        let point = |i: i32, chosen: &[(&'static str, &'static str)]| Point {
            id: "a",
            x: i,
            y: -i,
            cluster: 0,
            chosen: chosen.iter().copied().collect(),
        };
        let mut points: Vec<_> = (0..OTHERS as i32 + 9).map(|i| point(i, &[])).collect();
        points.push(point(3, &[("s", "near"), ("m", "mix")]));
        let svg = draw(&points, [123, 45]).unwrap();
        // One dot a document and reason, and three in the legend.
        assert_eq!(svg.matches("<circle").count(), OTHERS + 2 + 3);
        assert!(svg.contains("12.3 % of the variance") && svg.contains("4.5 %"));
        assert_eq!(svg, draw(&points, [123, 45]).unwrap());
        assert!(draw(&[], [0, 0]).is_ok());
    }
}
