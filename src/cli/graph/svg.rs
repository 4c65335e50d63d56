//! A small layered drawing: stages from top to bottom, edges that bend around what lies between. Knows no pipeline.

use std::fmt::Write;

use super::Drawing;

const ROW: f64 = 84.0;
const HEIGHT: f64 = 44.0;
const GAP: f64 = 28.0;
const MARGIN: f64 = 20.0;
/// Average width of a letter at the size used, in pixels.
const LETTER: f64 = 7.9;
/// What an edge needs between two boxes.
const LANE: f64 = 18.0;
const SWEEPS: usize = 12;

/// A stage, or the place where a long edge crosses a row.
struct Place {
    row: usize,
    width: f64,
    centre: f64,
    stage: Option<usize>,
}

/// The picture as one SVG file, readable on light and dark pages.
pub(super) fn svg(drawing: &Drawing) -> String {
    let layout = Layout::new(drawing);
    let width =
        layout.places.iter().map(|place| place.centre + place.width / 2.0).fold(0.0, f64::max) + MARGIN;
    let height = layout.rows.len().max(1) as f64 * ROW - (ROW - HEIGHT) + 2.0 * MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n{STYLE}"
    );
    for path in &layout.paths {
        let _infallible = writeln!(out, "<path d=\"{}\" marker-end=\"url(#tip)\"/>", layout.curve(path));
    }
    for place in &layout.places {
        if let Some(stage) = place.stage {
            let _infallible = out.write_str(&node(place, &drawing.nodes[stage]));
        }
    }
    out.push_str("</svg>\n");
    out
}

const STYLE: &str = "<style>
  text { font: 600 13px system-ui, sans-serif; text-anchor: middle; fill: #1c2733 }
  .kind { font-weight: 400; font-size: 11px; fill: #5b6b7c }
  rect { fill: #eef4fb; stroke: #7aa2cf; stroke-width: 1.2 }
  path { fill: none; stroke: #8c9bab; stroke-width: 1.4 }
  marker path { fill: #8c9bab; stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4ecf4 } .kind { fill: #9fb0c2 } rect { fill: #1d2b3a; stroke: #4f7db0 } path { stroke: #6c7d8f }
    marker path { fill: #6c7d8f }
  }
</style>
<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
<path d=\"M0 0L8 4L0 8z\"/></marker></defs>
";

fn node(place: &Place, node: &super::Node) -> String {
    let (x, y) = (place.centre - place.width / 2.0, top(place.row));
    let text = |dy: f64, class: &str, text: &str| {
        format!("<text x=\"{:.1}\" y=\"{:.1}\"{class}>{}</text>", place.centre, y + dy, escape(text))
    };
    let label = if node.name == node.kind {
        text(HEIGHT / 2.0 + 4.5, "", &node.name)
    } else {
        text(19.0, "", &node.name) + &text(34.0, " class=\"kind\"", &node.kind)
    };
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{HEIGHT}\" rx=\"8\"/>{label}\n",
        place.width
    )
}

fn top(row: usize) -> f64 {
    MARGIN + row as f64 * ROW
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

struct Layout {
    places: Vec<Place>,
    rows: Vec<Vec<usize>>,
    /// Each edge as the places that it passes, from producer to consumer.
    paths: Vec<Vec<usize>>,
}

impl Layout {
    fn new(drawing: &Drawing) -> Self {
        let mut layout = Self { places: Vec::new(), rows: Vec::new(), paths: Vec::new() };
        for (stage, row) in rows(drawing).into_iter().enumerate() {
            let node = &drawing.nodes[stage];
            let letters = node.name.chars().count().max(node.kind.chars().count());
            layout.add(row, letters as f64 * LETTER + 28.0, Some(stage));
        }
        for (to, node) in drawing.nodes.iter().enumerate() {
            let mut producers: Vec<usize> = node.inputs.iter().map(|input| input.from).collect();
            producers.sort_unstable();
            producers.dedup();
            for from in producers {
                let between = layout.places[from].row + 1..layout.places[to].row;
                let bends: Vec<usize> = between.map(|row| layout.add(row, LANE, None)).collect();
                layout.paths.push(std::iter::once(from).chain(bends).chain([to]).collect());
            }
        }
        layout.order();
        layout.spread();
        layout
    }

    fn add(&mut self, row: usize, width: f64, stage: Option<usize>) -> usize {
        if self.rows.len() <= row {
            self.rows.resize(row + 1, Vec::new());
        }
        self.places.push(Place { row, width, centre: 0.0, stage });
        self.rows[row].push(self.places.len() - 1);
        self.places.len() - 1
    }

    /// The places that an edge joins to `place` in the row above or below.
    fn near(&self) -> (Vec<Vec<usize>>, Vec<Vec<usize>>) {
        let (mut above, mut below) =
            (vec![Vec::new(); self.places.len()], vec![Vec::new(); self.places.len()]);
        for step in self.paths.iter().flat_map(|path| path.windows(2)) {
            above[step[1]].push(step[0]);
            below[step[0]].push(step[1]);
        }
        (above, below)
    }

    /// Orders every row by the mean position of its neighbours, down and up, until edges cross little.
    fn order(&mut self) {
        let (above, below) = self.near();
        for sweep in 0..SWEEPS {
            let near = if sweep % 2 == 0 { &above } else { &below };
            let mut position = vec![0.0; self.places.len()];
            for row in &self.rows {
                for (i, &place) in row.iter().enumerate() {
                    position[place] = i as f64;
                }
            }
            for row in &mut self.rows {
                row.sort_by(|&a, &b| {
                    let mean = |place: usize| mean(&near[place], &position).unwrap_or(position[place]);
                    mean(a).total_cmp(&mean(b))
                });
            }
        }
    }

    /// Gives every place its centre: near the mean of its neighbours, with no two places on top of each other.
    fn spread(&mut self) {
        let (above, below) = self.near();
        for row in 0..self.rows.len() {
            self.pack(row, &|_| None);
        }
        for sweep in 0..2 * SWEEPS {
            let near = if sweep % 2 == 0 { &above } else { &below };
            for row in 0..self.rows.len() {
                let centres: Vec<f64> = self.places.iter().map(|place| place.centre).collect();
                self.pack(row, &|place| mean(&near[place], &centres));
            }
        }
        let left =
            self.places.iter().map(|place| place.centre - place.width / 2.0).fold(f64::INFINITY, f64::min);
        for place in &mut self.places {
            place.centre += MARGIN - left;
        }
    }

    /// Places a row from left to right at the wished centres, then shifts it so that the wishes balance.
    fn pack(&mut self, row: usize, wish: &dyn Fn(usize) -> Option<f64>) {
        let (mut edge, mut shift, mut count) = (f64::NEG_INFINITY, 0.0, 0.0);
        for &place in &self.rows[row] {
            let half = self.places[place].width / 2.0;
            let wished = wish(place).unwrap_or(self.places[place].centre);
            let centre = wished.max(edge + half);
            (shift, count) = (shift + wished - centre, count + 1.0);
            self.places[place].centre = centre;
            edge = centre + half + GAP;
        }
        for &place in &self.rows[row] {
            self.places[place].centre += shift / f64::max(count, 1.0);
        }
    }

    fn curve(&self, path: &[usize]) -> String {
        let mut out = String::new();
        for (i, step) in path.windows(2).enumerate() {
            let (from, to) = (&self.places[step[0]], &self.places[step[1]]);
            let (y0, y1) = (top(from.row) + HEIGHT, top(to.row));
            if i == 0 {
                let _infallible = write!(out, "M{:.1} {y0:.1}", from.centre);
            } else {
                // Straight through the row that a long edge crosses.
                let _infallible = write!(out, "L{:.1} {y0:.1}", from.centre);
            }
            let middle = f64::midpoint(y0, y1);
            let _infallible = write!(
                out,
                "C{:.1} {middle:.1} {:.1} {middle:.1} {:.1} {y1:.1}",
                from.centre, to.centre, to.centre
            );
        }
        out
    }
}

/// The row of every stage: one below its lowest producer. Producers come before consumers in a drawing.
fn rows(drawing: &Drawing) -> Vec<usize> {
    let mut rows: Vec<usize> = Vec::with_capacity(drawing.nodes.len());
    for node in &drawing.nodes {
        rows.push(node.inputs.iter().map(|input| rows[input.from] + 1).max().unwrap_or(0));
    }
    rows
}

fn mean(places: &[usize], positions: &[f64]) -> Option<f64> {
    let sum: f64 = places.iter().map(|&place| positions[place]).sum();
    (!places.is_empty()).then(|| sum / places.len() as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cli::graph::{Edge, Node, tests::diamond};

    #[test]
    fn rows_follow_the_edges() {
        assert_eq!(rows(&diamond()), [0, 1, 1, 2]);
    }

    #[test]
    fn boxes_of_a_row_do_not_touch() {
        let mut wide = diamond();
        for i in 0..6 {
            let mut node = wide.nodes[1].clone();
            node.name = format!("a-much-longer-name-{i}");
            wide.nodes.push(node);
        }
        let layout = Layout::new(&wide);
        for row in &layout.rows {
            for pair in row.windows(2) {
                let (a, b) = (&layout.places[pair[0]], &layout.places[pair[1]]);
                assert!(a.centre + a.width / 2.0 < b.centre - b.width / 2.0);
            }
        }
    }

    /// A drawing of eight stages with these edges, each from a smaller to a larger number.
    fn of(edges: &BTreeSet<(usize, usize)>) -> Drawing {
        let mut drawing = diamond();
        let node = drawing.nodes[0].clone();
        drawing.nodes = (0..8).map(|i| Node { name: "x".repeat(1 + i * i), ..node.clone() }).collect();
        for &(a, b) in edges.iter().filter(|(a, b)| a != b) {
            let edge = Edge { from: a.min(b), port: "p".to_owned() };
            drawing.nodes[a.max(b)].inputs.push(edge);
        }
        drawing
    }

    proptest::proptest! {
        #[test]
        fn any_graph_is_drawn_downwards_apart_and_inside(
            edges in proptest::collection::btree_set((0..8_usize, 0..8_usize), 0..20)
        ) {
            let drawing = of(&edges);
            let layout = Layout::new(&drawing);
            for row in &layout.rows {
                for pair in row.windows(2) {
                    let (a, b) = (&layout.places[pair[0]], &layout.places[pair[1]]);
                    proptest::prop_assert!(a.centre + a.width / 2.0 + GAP <= b.centre - b.width / 2.0 + 1e-6);
                }
            }
            for path in &layout.paths {
                let rows: Vec<usize> = path.iter().map(|&place| layout.places[place].row).collect();
                proptest::prop_assert!(rows.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{rows:?}");
            }
            let left = layout.places.iter().map(|place| place.centre - place.width / 2.0).fold(f64::INFINITY, f64::min);
            proptest::prop_assert!((left - MARGIN).abs() < 1e-6, "{left}");
            let svg = svg(&drawing);
            proptest::prop_assert_eq!(svg.matches("<rect").count(), 8);
            proptest::prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
    }

    #[test]
    fn two_inputs_from_one_stage_are_one_line() {
        let mut drawing = diamond();
        drawing.nodes[1].inputs.push(Edge { from: 0, port: "again".to_owned() });
        assert_eq!(svg(&drawing).matches("marker-end").count(), 5);
    }

    #[test]
    fn a_kind_that_is_the_name_is_not_written_twice() {
        let svg = svg(&diamond());
        assert_eq!((svg.matches(">corpus<").count(), svg.matches(">embed<").count()), (1, 2));
    }

    #[test]
    fn a_long_edge_passes_every_row_between() {
        let layout = Layout::new(&diamond());
        let longest = layout.paths.iter().map(Vec::len).max();
        assert_eq!(longest, Some(3), "corpus → select passes the row of embed");
    }

    #[test]
    fn text_is_escaped_and_inside_the_picture() {
        let mut drawing = diamond();
        drawing.nodes[0].name = "a<b>&\"c\"".to_owned();
        let svg = svg(&drawing);
        assert!(svg.contains("a&lt;b&gt;&amp;&quot;c&quot;"), "{svg}");
        assert!(!svg.contains("=\"-") && !svg.contains("NaN"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 4);
        assert_eq!(svg.matches("marker-end").count(), 5);
    }
}
