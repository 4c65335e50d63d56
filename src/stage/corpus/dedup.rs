//! Exact duplicates: one row per id, whatever the order of the input. Knows no text beyond its id.

use crate::artifact::{drops::Drop, texts::Text};

/// Sorts by id and keeps, of the rows with one id, the one with the smallest source, then licence. The texts of such rows are
/// equal, so the rule only decides whose name stays.
pub(super) fn exact(mut texts: Vec<Text>, drops: &mut Vec<Drop>) -> Vec<Text> {
    texts.sort_by(|a, b| (&a.id, &a.source, &a.licence).cmp(&(&b.id, &b.source, &b.licence)));
    let mut kept: Vec<Text> = Vec::with_capacity(texts.len());
    for text in texts {
        match kept.last() {
            Some(last) if last.id == text.id => {
                drops.push(Drop { source: text.source, reason: "duplicate".to_owned(), kept: text.id });
            }
            _ => kept.push(text),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: &str, source: &str, licence: &str) -> Text {
        let [id, source, licence] = [id, source, licence].map(str::to_owned);
        Text { text: id.clone(), id, source, licence, marks: vec![] }
    }

    #[test]
    fn the_survivor_does_not_depend_on_the_order() {
        let rows = [text("2", "b", "MIT"), text("1", "c", ""), text("2", "a", "X"), text("2", "a", "MIT")];
        let expected = [text("1", "c", ""), text("2", "a", "MIT")];
        for turn in 0..rows.len() {
            let mut rows = rows.to_vec();
            rows.rotate_left(turn);
            let mut drops = Vec::new();
            assert_eq!(exact(rows, &mut drops), expected);
            let dropped: Vec<_> = drops.iter().map(|d| (d.source.as_str(), d.kept.as_str())).collect();
            assert_eq!(dropped, [("a", "2"), ("b", "2")]);
        }
    }
}
