//! A heat map: a cell for each row and column, a colour legend, numbers where they fit. Knows no meaning of rows and columns.

use std::error::Error;

use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        FontTransform,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::colour::{around, ink, rising};

/// What a cell's number means and how it is coloured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Shares from 0 to this one.
    Share(f64),
    /// Multiples of a fair share, from `1/x` to `x` in equal steps of their logarithm; 0 has a colour of its own.
    Fair(f64),
}

/// What is drawn.
pub(super) struct Map {
    pub(super) title: String,
    /// What rows are, and the name of each, from the top.
    pub(super) rows: (&'static str, Vec<String>),
    /// What columns are, and the name of each.
    pub(super) columns: (&'static str, Vec<String>),
    /// What the colours mean.
    pub(super) legend: &'static str,
    pub(super) scale: Scale,
    /// Row by row; `None` is a cell without a number.
    pub(super) cells: Vec<Option<f64>>,
}

/// Steps of the legend.
pub(super) const STEPS: usize = 40;
/// Shares up to less than this are told with a decimal.
const FINE: f64 = 0.2;
const MISSING: RGBColor = RGBColor(226, 226, 226);
const ZERO: RGBColor = RGBColor(60, 60, 60);
const TEXT: RGBColor = RGBColor(40, 40, 40);
/// Pixels left of and above the cells, and for the legend right of them.
const LEFT: i32 = 66;
const TOP: i32 = 46;
const RIGHT: i32 = 104;
const BOTTOM: i32 = 46;

impl Scale {
    /// Where `x` lies from 0 to 1.
    fn place(self, x: f64) -> f64 {
        match self {
            Self::Share(most) => x / most,
            Self::Fair(most) => 0.5 + 0.5 * x.ln() / most.ln(),
        }
    }

    fn colour(self, x: f64) -> RGBColor {
        match self {
            Self::Share(_) => rising(self.place(x)),
            Self::Fair(_) if x <= 0.0 => ZERO,
            Self::Fair(_) => around(self.place(x)),
        }
    }

    /// The numbers beside the legend, from the bottom.
    fn ticks(self) -> Vec<(f64, String)> {
        match self {
            Self::Share(most) => {
                let text = |x: f64| {
                    if most < FINE { format!("{:.1} %", 100.0 * x) } else { format!("{:.0} %", 100.0 * x) }
                };
                (0..=4).map(|i| most * f64::from(i) / 4.0).map(|x| (x, text(x))).collect()
            }
            Self::Fair(most) => {
                let root = most.sqrt();
                let text = |x: f64| if x < 1.0 { format!("1/{:.0}", 1.0 / x) } else { format!("{x:.0}×") };
                [1.0 / most, 1.0 / root, 1.0, root, most].map(|x| (x, text(x))).into()
            }
        }
    }

    /// A cell's number, short.
    fn short(self, x: f64) -> String {
        match self {
            Self::Share(most) if most < FINE => format!("{:.1}", 100.0 * x),
            Self::Share(_) => format!("{:.0}", 100.0 * x),
            Self::Fair(_) => format!("{x:.1}"),
        }
    }
}

/// An SVG of the map.
pub(super) fn draw(map: &Map) -> Result<String, Box<dyn Error>> {
    let (rows, columns) = (map.rows.1.len() as i32, map.columns.1.len() as i32);
    let (w, h) = ((640 / columns.max(1)).clamp(12, 56), (520 / rows.max(1)).clamp(8, 30));
    // The legend and the title need some room even beside a small map.
    let (width, height) = (w * columns, (h * rows).max(96));
    let size = ((LEFT + width + RIGHT).max(420), TOP + height + BOTTOM);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (size.0 as u32, size.1 as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        say(&area, &map.title, (LEFT, 12), (15, HPos::Left, VPos::Top))?;
        cells(&area, map, (w, h))?;
        axes(&area, map, (w, h))?;
        legend(&area, map, (LEFT + width + 20, height))?;
        area.present()?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Text at a place with its size and what of it is there.
fn say(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    (size, h, v): (i32, HPos, VPos),
) -> Result<(), Box<dyn Error>> {
    let style = ("sans-serif", size).into_font().color(&TEXT).pos(Pos::new(h, v));
    Ok(area.draw(&Text::new(text.to_owned(), at, style))?)
}

fn cells(area: &Area<'_>, map: &Map, (w, h): (i32, i32)) -> Result<(), Box<dyn Error>> {
    let columns = map.columns.1.len().max(1);
    let gap = i32::from(w >= 10 && h >= 10);
    let numbers = w >= 26 && h >= 14;
    for (i, cell) in map.cells.iter().enumerate() {
        let (x, y) = (LEFT + w * (i % columns) as i32, TOP + h * (i / columns) as i32);
        let colour = cell.map_or(MISSING, |cell| map.scale.colour(cell));
        area.draw(&Rectangle::new([(x, y), (x + w - gap, y + h - gap)], colour.filled()))?;
        if let Some(cell) = cell.filter(|_| numbers) {
            let style =
                ("sans-serif", 12).into_font().color(&ink(colour)).pos(Pos::new(HPos::Center, VPos::Center));
            area.draw(&Text::new(map.scale.short(cell), (x + w / 2, y + h / 2), style))?;
        }
    }
    Ok(())
}

/// Names of rows and columns, as many as have room.
fn axes(area: &Area<'_>, map: &Map, (w, h): (i32, i32)) -> Result<(), Box<dyn Error>> {
    let (rows, columns) = (&map.rows.1, &map.columns.1);
    let bottom = TOP + h * rows.len() as i32;
    let widest = columns.iter().map(|name| name.chars().count() as i32).max().unwrap_or(1);
    for (i, name) in rows.iter().enumerate().step_by(every(h, 14)) {
        say(area, name, (LEFT - 6, TOP + h * i as i32 + h / 2), (12, HPos::Right, VPos::Center))?;
    }
    for (i, name) in columns.iter().enumerate().step_by(every(w, 7 * widest + 6)) {
        say(area, name, (LEFT + w * i as i32 + w / 2, bottom + 4), (12, HPos::Center, VPos::Top))?;
    }
    let middle = (LEFT + w * columns.len() as i32 / 2, TOP + h * rows.len() as i32 / 2);
    say(area, map.columns.0, (middle.0, bottom + 22), (13, HPos::Center, VPos::Top))?;
    let font = ("sans-serif", 13).into_font().transform(FontTransform::Rotate270).color(&TEXT);
    let style = font.pos(Pos::new(HPos::Center, VPos::Top));
    Ok(area.draw(&Text::new(map.rows.0, (12, middle.1), style))?)
}

/// Names for every first, second, fourth … cell of `size` pixels, so that each has `needs`.
fn every(size: i32, needs: i32) -> usize {
    let mut every = 1;
    while every * size.max(1) < needs {
        every *= 2;
    }
    every as usize
}

/// The colours with their numbers, `height` pixels high.
fn legend(area: &Area<'_>, map: &Map, (x, height): (i32, i32)) -> Result<(), Box<dyn Error>> {
    let (from, high) = (TOP + 18, height.min(260) - 18);
    say(area, map.legend, (x, TOP), (12, HPos::Left, VPos::Top))?;
    let edge = |i: usize| from + high - high * i as i32 / STEPS as i32;
    for i in 0..STEPS {
        let place = (i as f64 + 0.5) / STEPS as f64;
        let colour = if matches!(map.scale, Scale::Share(_)) { rising(place) } else { around(place) };
        area.draw(&Rectangle::new([(x, edge(i + 1)), (x + 14, edge(i))], colour.filled()))?;
    }
    for (value, text) in map.scale.ticks() {
        let y = from + high - (f64::from(high) * map.scale.place(value)).round() as i32;
        say(area, &text, (x + 20, y), (12, HPos::Left, VPos::Center))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn map(rows: usize, columns: usize, cells: Vec<Option<f64>>, scale: Scale) -> Map {
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect();
        Map {
            title: "a <b> & c".into(),
            rows: ("row", names(rows)),
            columns: ("column", names(columns)),
            legend: "share",
            scale,
            cells,
        }
    }

    /// Every tag of an SVG that is closed where it should be, as far as attributes.
    pub(in super::super) fn tags(svg: &str) -> Vec<String> {
        let (mut open, mut all) = (Vec::new(), Vec::new());
        let mut rest = svg;
        while let Some(from) = rest.find('<') {
            assert!(!rest[..from].contains('>'), "a bracket in text");
            let to = from + rest[from..].find('>').expect("every tag ends");
            let tag = &rest[from + 1..to];
            let name = tag.trim_matches('/').split_whitespace().next().unwrap().to_owned();
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => assert_eq!(open.pop(), Some(name)),
                (false, true) => all.push(tag.to_owned()),
                (false, false) => {
                    all.push(tag.to_owned());
                    open.push(name);
                }
            }
            rest = &rest[to + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
        all
    }

    /// Rectangles that are cells: not the ground, not the legend.
    pub(in super::super) fn cells_in(svg: &str) -> usize {
        tags(svg).iter().filter(|tag| tag.starts_with("rect")).count() - 1 - STEPS
    }

    #[test]
    fn every_cell_is_there_once_with_its_colour_and_number() {
        let cells = vec![Some(0.0), Some(0.25), Some(1.0), None, Some(0.5), Some(0.75)];
        let svg = draw(&map(2, 3, cells, Scale::Share(1.0))).unwrap();
        assert_eq!(cells_in(&svg), 6);
        assert!(svg.contains("a &lt;b&gt; &amp; c"));
        let lines: Vec<&str> = svg.lines().map(str::trim).collect();
        for number in ["0", "25", "100", "50", "75"] {
            assert!(lines.contains(&number), "{number}");
        }
        let fills = |colour: &str| svg.matches(&format!("fill=\"{colour}\"")).count();
        assert_eq!([fills("#E2E2E2"), fills("#BED6EB")], [1, 1], "one is missing, one is a quarter");
    }

    #[test]
    fn a_large_map_has_all_cells_and_names_that_do_not_collide() {
        let svg = draw(&map(64, 36, vec![Some(0.1); 64 * 36], Scale::Share(0.1))).unwrap();
        assert_eq!(cells_in(&svg), 64 * 36);
        let names = tags(&svg).iter().filter(|tag| tag.starts_with("text")).count();
        // Title, two axes, the legend with five numbers, every second row and column.
        assert_eq!(names, 1 + 2 + 6 + 32 + 18);
        assert_eq!([every(8, 14), every(14, 14), every(3, 14)], [2, 1, 8]);
    }

    #[test]
    fn fair_shares_are_around_the_middle_and_nothing_has_its_own_colour() {
        let scale = Scale::Fair(4.0);
        assert!(
            [(0.25, 0.0), (0.5, 0.25), (1.0, 0.5), (4.0, 1.0)]
                .iter()
                .all(|(x, p)| (scale.place(*x) - p).abs() < 1e-12)
        );
        assert_eq!(
            (scale.colour(0.0), scale.colour(1.0), scale.colour(9.0)),
            (ZERO, around(0.5), around(1.0))
        );
        let ticks: Vec<String> = scale.ticks().into_iter().map(|(_, text)| text).collect();
        assert_eq!(ticks, ["1/4", "1/2", "1×", "2×", "4×"]);
        let small: Vec<String> = Scale::Share(0.1).ticks().into_iter().map(|(_, text)| text).collect();
        assert_eq!(small, ["0.0 %", "2.5 %", "5.0 %", "7.5 %", "10.0 %"]);
        assert_eq!(
            [scale.short(1.26), Scale::Share(0.1).short(0.0126), Scale::Share(0.2).short(0.126)],
            ["1.3", "1.3", "13"]
        );
    }

    #[test]
    fn a_map_of_nothing_is_drawn() {
        assert_eq!(cells_in(&draw(&map(0, 0, vec![], Scale::Share(1.0))).unwrap()), 0);
    }
}
