//! The dataset card: what the splits hold and how they were chosen, in figures. Knows no file but its template.

use std::collections::BTreeMap;

use minijinja::{Environment, value::Serde};
use serde::Serialize;

use crate::artifact::{drops::Tally, splits::Chosen, texts::group};

/// Everything that the card says; also written as `stats.json`.
#[derive(Debug, Serialize)]
pub(super) struct Card {
    pub(super) tokenizer: String,
    pub(super) swa_below: usize,
    pub(super) full_above: usize,
    pub(super) outlier_percent: u32,
    pub(super) noise: f64,
    pub(super) scale: u32,
    pub(super) corpus: CorpusCounts,
    pub(super) splits: Vec<SplitCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drops: Option<BTreeMap<String, Tally>>,
}

/// Counts over the whole corpus.
#[derive(Debug, Serialize)]
pub(super) struct CorpusCounts {
    pub(super) documents: usize,
    pub(super) swa: usize,
    pub(super) gap: usize,
    pub(super) full: usize,
    pub(super) clusters: usize,
}

/// Counts over one split.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct SplitCounts {
    name: &'static str,
    what: String,
    documents: usize,
    tokens: usize,
    shortest: usize,
    longest: usize,
    near: usize,
    outliers: usize,
    mixed: usize,
    borderline: usize,
    sources: BTreeMap<String, usize>,
    licences: BTreeMap<String, usize>,
}

impl SplitCounts {
    /// Counts rows. A row is borderline when its margin is at most `bound`.
    pub(super) fn new(name: &'static str, what: String, rows: &[Chosen], bound: i64) -> Self {
        let reason = |reason: &str| rows.iter().filter(|row| row.reason == reason).count();
        let lengths = || rows.iter().map(|row| row.n_tokens);
        let tally = |key: fn(&Chosen) -> &str| {
            let mut tally = BTreeMap::new();
            for row in rows {
                *tally.entry(key(row).to_owned()).or_default() += 1;
            }
            tally
        };
        Self {
            name,
            what,
            documents: rows.len(),
            tokens: lengths().sum(),
            shortest: lengths().min().unwrap_or(0),
            longest: lengths().max().unwrap_or(0),
            near: reason("near"),
            outliers: reason("outlier"),
            mixed: reason("mix"),
            borderline: rows.iter().filter(|row| row.reason != "mix" && row.margin <= bound).count(),
            sources: tally(|row| group(&row.source)),
            licences: tally(|row| &row.licence),
        }
    }

    /// One line for the run's journal.
    pub(super) fn line(&self) -> String {
        format!(
            "{}: {} documents of {} to {} tokens ({} near, {} outliers, {} mixed; {} borderline)",
            self.name,
            self.documents,
            self.shortest,
            self.longest,
            self.near,
            self.outliers,
            self.mixed,
            self.borderline
        )
    }
}

/// By how much a product of unit vectors can change, in grid units squared, when one of them is off by `noise`: `(2ε + ε²) S²`.
pub(super) fn bound(noise: f64, scale: u32) -> i64 {
    ((2.0 * noise + noise * noise) * f64::from(scale).powi(2)).round() as i64
}

/// The card as Markdown.
pub(super) fn render(card: &Card) -> Result<String, minijinja::Error> {
    Environment::new().render_str(include_str!("card.md.jinja"), Serde(card))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, n_tokens: usize, reason: &str, margin: i64) -> Chosen {
        Chosen {
            id: id.into(),
            text: "t".into(),
            source: format!("sources.0/{id}"),
            licence: if id == "a" { String::new() } else { "MIT".into() },
            n_tokens,
            bucket: "swa".into(),
            cluster: 0,
            reason: reason.into(),
            rank: 0,
            score: 0,
            margin,
            marks: vec![],
        }
    }

    #[test]
    fn the_card_shows_every_count() {
        let rows = [row("a", 10, "near", 5), row("b", 30, "outlier", 6), row("c", 20, "mix", 0)];
        let counts = SplitCounts::new("calib_swa_golden", "short".into(), &rows, 5);
        assert_eq!(
            counts.line(),
            "calib_swa_golden: 3 documents of 10 to 30 tokens (1 near, 1 outliers, 1 mixed; 1 borderline)"
        );
        let dropped = BTreeMap::from([("duplicate".to_owned(), 2), ("too-long".to_owned(), 1)]);
        let tally = Tally { read: 6, kept: 3, dropped };
        let card = Card {
            tokenizer: "`o200k_harmony`".into(),
            swa_below: 2048,
            full_above: 4096,
            outlier_percent: 5,
            noise: 0.001,
            scale: 4000,
            corpus: CorpusCounts { documents: 3, swa: 2, gap: 1, full: 0, clusters: 1 },
            splits: vec![counts],
            drops: Some(BTreeMap::from([("sources.0".to_owned(), tally)])),
        };
        insta::assert_snapshot!(render(&card).unwrap());
        assert!(!render(&Card { drops: None, ..card }).unwrap().contains("left out"));
    }

    #[test]
    fn an_empty_split_has_zero_figures() {
        let counts = SplitCounts::new("x", String::new(), &[], 0);
        assert_eq!((counts.shortest, counts.longest, counts.tokens), (0, 0, 0));
    }

    #[test]
    fn the_bound_is_that_of_cauchy_and_schwarz() {
        assert_eq!(bound(0.0, 4000), 0);
        assert_eq!(bound(0.001, 4000), 32_016);
    }
}
