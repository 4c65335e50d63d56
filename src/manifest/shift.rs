//! Moves the places in a parsed table to where its text lies among all texts.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::Value;

/// The value with all its places moved by `by`.
pub(super) fn value(value: Value<'_>, by: usize) -> Value<'_> {
    let span = value.span();
    let span = span.start + by..span.end + by;
    let inner = match value.into_inner() {
        DeValue::Array(mut items) => {
            for item in items.iter_mut() {
                let taken = std::mem::replace(item, Spanned::new(0..0, DeValue::Boolean(false)));
                *item = self::value(taken, by);
            }
            DeValue::Array(items)
        }
        DeValue::Table(inner) => DeValue::Table(table(inner, by)),
        plain => plain,
    };
    Spanned::new(span, inner)
}

/// The table with all its places moved by `by`.
pub(super) fn table(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    if by == 0 {
        return table;
    }
    let moved = table.into_iter().map(|(key, inner)| {
        let span = key.span();
        (Spanned::new(span.start + by..span.end + by, key.into_inner()), value(inner, by))
    });
    moved.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_moves() {
        let text = "a = [1, { b = 'x' }]";
        let root = table(DeTable::parse(text).unwrap().into_inner(), 100);
        let shifted = format!("{}{text}", " ".repeat(100));
        let (key, list) = root.get_key_value("a").unwrap();
        let inner = list.get_ref().get(1).unwrap();
        let (b, x) = inner.get_ref().as_table().unwrap().get_key_value("b").unwrap();
        let under: Vec<&str> =
            [key.span(), list.span(), inner.span(), b.span(), x.span()].map(|s| &shifted[s]).into();
        assert_eq!(under, ["a", "[1, { b = 'x' }]", "{ b = 'x' }", "b", "'x'"]);
    }
}
