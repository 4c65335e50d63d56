//! Aligned columns for people. Knows no stage.

use super::paint::{Colour, Palette};

/// A cell: its text, its colour, and whether it stands at the right.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub text: String,
    pub colour: Option<Colour>,
    pub right: bool,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), colour: None, right: false }
    }

    pub(super) fn colour(self, colour: Colour) -> Self {
        Self { colour: Some(colour), ..self }
    }

    pub(super) fn right(self) -> Self {
        Self { right: true, ..self }
    }
}

/// The rows, indented, each column as wide as its widest cell. The first row is the heading.
pub(super) fn render(rows: &[Vec<Cell>], palette: Palette) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.text.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let last = column + 1 == row.len() && !cell.right;
            let padded = match (cell.right, last) {
                (true, _) => format!("{:>width$}", cell.text),
                (false, true) => cell.text.clone(),
                (false, false) => format!("{:width$}", cell.text),
            };
            let colour = if i == 0 { Some(Colour::Faint) } else { cell.colour };
            line.push_str("  ");
            line.push_str(
                &colour.map_or(padded.clone(), |colour| palette.paint(colour, &padded).to_string()),
            );
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let head = vec![Cell::new("stage"), Cell::new("time").right(), Cell::new("why")];
        let rows = [
            head,
            vec![Cell::new("é").colour(Colour::Good), Cell::new("12 ms").right(), Cell::new("new")],
            vec![Cell::new("select"), Cell::new("").right(), Cell::new("")],
        ];
        let expected = "  stage    time  why\n  é       12 ms  new\n  select\n";
        assert_eq!(render(&rows, Palette(false)), expected);
        assert!(render(&rows, Palette(true)).contains("\x1b[32mé     \x1b[0m"));
    }

    #[test]
    fn short_rows_and_wide_letters_keep_the_columns() {
        let cells = |texts: &[&str]| texts.iter().map(|&text| Cell::new(text)).collect::<Vec<_>>();
        let rows = [cells(&["a", "b", "c"]), cells(&["ÄÖÜß", "x"]), cells(&[]), cells(&["y", "", "z"])];
        let expected = "  a     b  c\n  ÄÖÜß  x\n\n  y        z\n";
        assert_eq!(render(&rows, Palette(false)), expected);
        assert_eq!(render(&[], Palette(false)), "");
    }

    #[test]
    fn a_right_column_at_the_end_is_filled_and_a_heading_is_faint() {
        let rows = [
            vec![Cell::new("n").colour(Colour::Bad), Cell::new("size").right()],
            vec![Cell::new("a"), Cell::new("7").right().colour(Colour::Accent)],
        ];
        assert_eq!(render(&rows, Palette(false)), "  n  size\n  a     7\n");
        let expected = "  \x1b[2mn\x1b[0m  \x1b[2msize\x1b[0m\n  a  \x1b[36m   7\x1b[0m\n";
        assert_eq!(render(&rows, Palette(true)), expected);
    }
}
