//! Tests of the picture and of its layout.

use std::collections::BTreeSet;

use super::{
    layout::{rows, wrapped},
    *,
};
use crate::cli::graph::{
    Edge, Node,
    tests::{coloured, diamond},
};

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

#[test]
fn a_row_that_is_too_long_is_broken_evenly() {
    assert_eq!(wrapped(&[0, 1, 1, 2], &[]), [0, 1, 1, 2]);
    assert_eq!(wrapped(&[], &[]), [0; 0]);
    let mut rows = vec![0];
    rows.extend([1; 26]);
    rows.push(2);
    let found = wrapped(&rows, &[]);
    let count = |row: usize| found.iter().filter(|&&r| r == row).count();
    assert_eq!([0, 1, 2, 3, 4].map(count), [1, 9, 9, 8, 1]);
}

#[test]
fn rows_that_read_each_other_side_by_side_are_broken_together() {
    // Thirty variants of two stages, one after the other.
    let rows: Vec<usize> = [vec![0; 30], vec![1; 30]].concat();
    let straight: Vec<(usize, usize)> = (0..30).map(|i| (i, i + 30)).collect();
    let found = wrapped(&rows, &straight);
    assert!(straight.iter().all(|&(from, to)| found[from] + 1 == found[to]), "{found:?}");
    assert_eq!((found[29], found[59]), (4, 5));
    // One edge that would have to go up breaks them one after the other.
    let crossed = [straight, vec![(29, 30)]].concat();
    let found = wrapped(&rows, &crossed);
    assert!(crossed.iter().all(|&(from, to)| found[from] < found[to]), "{found:?}");
    assert_eq!((found[29], found[30], found[59]), (2, 3, 5));
}

#[test]
fn the_rows_of_a_large_matrix_are_broken_and_its_lines_go_row_by_row() {
    let mut drawing = diamond();
    drawing.nodes.truncate(2);
    for i in 0..199 {
        drawing.nodes.push(Node { name: format!("embed[dim={i}]"), ..drawing.nodes[1].clone() });
    }
    let inputs = (1..=200).map(|from| Edge { from, port: "p".to_owned() }).collect();
    drawing.nodes.push(Node { name: "select".to_owned(), inputs, ..drawing.nodes[0].clone() });
    let layout = Layout::new(&drawing);
    let stages = |row: &Vec<usize>| row.iter().filter(|&&place| layout.places[place].stage.is_some()).count();
    assert_eq!((layout.rows.len(), layout.rows.iter().map(stages).max()), (19, Some(12)));
    assert!(layout.paths.iter().all(|path| {
        path.windows(2).all(|pair| layout.places[pair[0]].row + 1 == layout.places[pair[1]].row)
    }));
    assert_eq!(svg(&drawing).matches("<rect").count(), 202);
    let right = layout.places.iter().map(|place| place.centre + place.width / 2.0).fold(0.0, f64::max);
    assert!(right < 2600.0, "{right}");
}

#[test]
fn a_status_is_a_colour_a_word_and_an_entry_of_the_legend() {
    let text = svg(&coloured());
    for part in [
        "<g class=\"run\"><rect ",
        ">embed · maybe</text></g>",
        "  .run rect { fill: #e69f00; stroke: #111111 } .run text { fill: #111111 }\n",
        ">cached 1</text>",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!((text.matches("<rect").count(), text.matches("class=\"legend\"").count()), (8, 4));
    let plain = svg(&diamond());
    assert!(!plain.contains("legend") && !plain.contains("<g"), "{plain}");
}
