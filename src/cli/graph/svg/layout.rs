//! A small layered layout: stages from top to bottom, edges that bend around what lies between. Knows no colours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use crate::cli::graph::Drawing;

pub(super) const ROW: f64 = 84.0;
pub(super) const HEIGHT: f64 = 44.0;
pub(super) const GAP: f64 = 28.0;
pub(super) const MARGIN: f64 = 20.0;
/// Average width of a letter at the size used, in pixels.
const LETTER: f64 = 7.9;
/// What an edge needs between two boxes.
const LANE: f64 = 18.0;
const SWEEPS: usize = 12;
/// The most stages side by side.
const WIDE: usize = 12;

/// A stage, or the place where a long edge crosses a row.
pub(super) struct Place {
    pub row: usize,
    pub width: f64,
    pub centre: f64,
    pub stage: Option<usize>,
}

pub(super) struct Layout {
    pub places: Vec<Place>,
    pub rows: Vec<Vec<usize>>,
    /// Each edge as the places that it passes, from producer to consumer.
    pub paths: Vec<Vec<usize>>,
}

impl Layout {
    pub(super) fn new(drawing: &Drawing) -> Self {
        let mut layout = Self { places: Vec::new(), rows: Vec::new(), paths: Vec::new() };
        let levels = rows(drawing);
        let rows = wrapped(&levels, &edges(drawing));
        let broken = rows != levels;
        for (stage, row) in rows.iter().enumerate() {
            let node = &drawing.nodes[stage];
            let below = node.below().map_or(0, |text| text.chars().count());
            let letters = node.name.chars().count().max(below);
            layout.add(*row, letters as f64 * LETTER + 28.0, Some(stage));
        }
        layout.join(drawing, broken);
        layout.order();
        layout.spread(broken);
        layout
    }

    /// Draws the edges. Long ones that share an end may share their way too.
    fn join(&mut self, drawing: &Drawing, share: bool) {
        let edges = edges(drawing);
        let (mut readers, mut producers) = (vec![0; drawing.nodes.len()], vec![0; drawing.nodes.len()]);
        for &(from, to) in &edges {
            readers[from] += 1;
            producers[to] += 1;
        }
        let mut bends: BTreeMap<(bool, usize, usize), usize> = BTreeMap::new();
        for &(from, to) in &edges {
            // The end with more edges has more to share.
            let spread = readers[from] >= producers[to];
            let end = if spread { from } else { to };
            let mut path = vec![from];
            for row in self.places[from].row + 1..self.places[to].row {
                path.push(match bends.get(&(spread, end, row)) {
                    Some(&place) if share => place,
                    _ => self.add(row, LANE, None),
                });
                bends.insert((spread, end, row), *path.last().unwrap_or(&from));
            }
            path.push(to);
            self.paths.push(path);
        }
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

    /// Gives every place its centre: near the mean of its neighbours, with no two places on top of each other. Where rows were
    /// broken they stay below each other: the way of a long edge lies at one end of its rows and would draw each further out.
    fn spread(&mut self, broken: bool) {
        let (above, below) = self.near();
        for row in 0..self.rows.len() {
            self.pack(row, &|_| None);
            self.centre(row);
        }
        for sweep in 0..if broken { 0 } else { 2 * SWEEPS } {
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

    fn centre(&mut self, row: usize) {
        let end = |place: Option<&usize>, side: f64| {
            place.map_or(0.0, |&place| self.places[place].centre + side * self.places[place].width / 2.0)
        };
        let middle = f64::midpoint(end(self.rows[row].first(), -1.0), end(self.rows[row].last(), 1.0));
        for &place in &self.rows[row] {
            self.places[place].centre -= middle;
        }
    }

    pub(super) fn curve(&self, path: &[usize]) -> String {
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
pub(super) fn rows(drawing: &Drawing) -> Vec<usize> {
    let mut rows: Vec<usize> = Vec::with_capacity(drawing.nodes.len());
    for node in &drawing.nodes {
        rows.push(node.inputs.iter().map(|input| rows[input.from] + 1).max().unwrap_or(0));
    }
    rows
}

/// Who reads whom: producer and consumer, each pair once.
pub(super) fn edges(drawing: &Drawing) -> Vec<(usize, usize)> {
    let mut edges = BTreeSet::new();
    for (to, node) in drawing.nodes.iter().enumerate() {
        edges.extend(node.inputs.iter().map(|input| (input.from, to)));
    }
    edges.into_iter().collect()
}

/// The same with every row that is too long for a page broken into several of about one length. Rows of equal length whose stages
/// read each other side by side, as those of one matrix do, are broken together: the first part of each, then the second of each.
pub(super) fn wrapped(rows: &[usize], edges: &[(usize, usize)]) -> Vec<usize> {
    let mut length = vec![0_usize; rows.iter().max().map_or(0, |row| row + 1)];
    let count = |&row: &usize| {
        length[row] += 1;
        length[row] - 1
    };
    let within: Vec<usize> = rows.iter().map(count).collect();
    let parts = |row: usize| length[row].div_ceil(WIDE).max(1);
    let part = |stage: usize| within[stage] / length[rows[stage]].div_ceil(parts(rows[stage]));
    let apart = |row: usize| {
        let here = |&&(from, to): &&(usize, usize)| rows[to] == row && length[rows[from]] == length[row];
        length[row] != length[row - 1] || edges.iter().filter(here).any(|&(from, to)| part(from) != part(to))
    };
    let mut bands: Vec<std::ops::Range<usize>> = Vec::new();
    for row in 0..length.len() {
        match bands.last_mut().filter(|_| parts(row) > 1) {
            Some(band) if !apart(row) => band.end = row + 1,
            _ => bands.push(row..row + 1),
        }
    }
    let mut first = vec![0; length.len()];
    let mut next = 0;
    for band in &bands {
        first[band.clone()].fill(next);
        next += band.len() * parts(band.start);
    }
    let band = |row: usize| bands.iter().find(|band| band.contains(&row)).expect("every row is in a band");
    let place = |(stage, &row): (usize, &usize)| {
        let band = band(row);
        first[row] + part(stage) * band.len() + row - band.start
    };
    rows.iter().enumerate().map(place).collect()
}

/// Where a row begins.
pub(super) fn top(row: usize) -> f64 {
    MARGIN + row as f64 * ROW
}

fn mean(places: &[usize], positions: &[f64]) -> Option<f64> {
    let sum: f64 = places.iter().map(|&place| positions[place]).sum();
    (!places.is_empty()).then(|| sum / places.len() as f64)
}
