//! The dataset card: what the splits hold and how they were chosen, in figures. Knows no file but its template.

use std::collections::BTreeMap;

use minijinja::{Environment, value::Serde};
use serde::Serialize;

use super::thin::Dropped;
use crate::artifact::{drops::Tally, splits::Chosen, texts::group};

/// Everything that the card says; also written as `stats.json`.
#[derive(Debug, Serialize)]
pub(super) struct Card {
    pub(super) tokenizer: String,
    pub(super) swa_below: usize,
    pub(super) full_above: usize,
    pub(super) outlier_percent: u32,
    /// Whether outliers are told by their neighbours; how many count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) neighbours: Option<usize>,
    /// How far a vector may be off in the count of borderline rows, in grid units.
    pub(super) radius: i64,
    pub(super) scale: u32,
    /// Tokens beyond which a rare one that comes again is counted.
    pub(super) window: usize,
    /// How long range was measured by a model; absent if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) context_gain: Option<GainCounts>,
    /// Documents that repeat another one in meaning; absent if none were looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repeats: Option<usize>,
    /// Whether the JSONL has the rows of the original toolkit.
    pub(super) original: bool,
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

/// How context gains were measured, and what they decided.
#[derive(Debug, Serialize)]
pub(super) struct GainCounts {
    pub(super) window: usize,
    pub(super) samples: usize,
    pub(super) max_tokens: usize,
    /// Documents that have one.
    pub(super) measured: usize,
    /// What rows of the long split gain at least, in nats per token; absent if nothing was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) least: Option<f64>,
    /// Long documents that gain less or have no figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) left_out: Option<usize>,
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
    /// Rows in which a rare token comes again beyond the window.
    recalling: usize,
    /// Rows whose text holds special tokens: rendered conversations.
    #[serde(skip_serializing_if = "crate::stage::is_default")]
    conversations: usize,
    /// The median context gain of the rows that have one, the lower of two, in millionths of a nat.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_gain: Option<i64>,
    /// Left out since they are like another row.
    similar: usize,
    /// Left out since they do not fit the budget.
    over_budget: usize,
    sources: BTreeMap<String, usize>,
    licences: BTreeMap<String, usize>,
}

impl SplitCounts {
    /// Counts rows, of which `borderline` could change, and what was left out.
    pub(super) fn new(
        name: &'static str,
        what: String,
        rows: &[Chosen],
        (borderline, dropped): (usize, &[Dropped]),
    ) -> Self {
        let left_out = |reason: &str| dropped.iter().filter(|d| d.reason == reason).count();
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
            borderline,
            recalling: rows.iter().filter(|row| row.recalls > 0).count(),
            conversations: rows.iter().filter(|row| row.special_tokens).count(),
            context_gain: median(rows.iter().filter_map(|row| row.context_gain).collect()),
            similar: left_out("similar"),
            over_budget: left_out("budget"),
            sources: tally(|row| group(&row.source)),
            licences: tally(|row| &row.licence),
        }
    }

    /// One line for the run's journal.
    pub(super) fn line(&self) -> String {
        let left_out = match (self.similar, self.over_budget) {
            (0, 0) => String::new(),
            (similar, over) => format!("; left out: {similar} similar, {over} over budget"),
        };
        let gain = self.context_gain.map_or_else(String::new, |gain| {
            format!("; median context gain {:.3} nats per token", gain as f64 / 1e6)
        });
        format!(
            "{}: {} documents of {} to {} tokens ({} near, {} outliers, {} mixed; {} borderline{left_out}){gain}",
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

/// The lower of two in the middle.
fn median(mut values: Vec<i64>) -> Option<i64> {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

/// The card as Markdown.
pub(super) fn render(card: &Card) -> Result<String, minijinja::Error> {
    Environment::new().render_str(include_str!("card.md.jinja"), Serde(card))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, n_tokens: usize, reason: &str) -> Chosen {
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
            margin: 0,
            split: "calib_swa_golden".into(),
            density: None,
            recalls: u32::from(id == "b"),
            recall_typical: 0,
            recall_longest: 0,
            special_tokens: false,
            context_gain: None,
            context_gain_error: None,
            marks: vec![],
        }
    }

    fn card(splits: Vec<SplitCounts>) -> Card {
        let dropped = BTreeMap::from([("duplicate".to_owned(), 2), ("too-long".to_owned(), 1)]);
        let tally = Tally { read: 6, kept: 3, dropped };
        Card {
            tokenizer: "`o200k_harmony`".into(),
            swa_below: 2048,
            full_above: 4096,
            outlier_percent: 5,
            neighbours: None,
            radius: 8,
            scale: 4000,
            window: 128,
            context_gain: None,
            repeats: None,
            original: false,
            corpus: CorpusCounts { documents: 3, swa: 2, gap: 1, full: 0, clusters: 1 },
            splits,
            drops: Some(BTreeMap::from([("sources.0".to_owned(), tally)])),
        }
    }

    #[test]
    fn the_card_shows_every_count() {
        let rows = [row("a", 10, "near"), row("b", 30, "outlier"), row("c", 20, "mix")];
        let counts = SplitCounts::new("calib_swa_golden", "short".into(), &rows, (1, &[]));
        assert_eq!(
            counts.line(),
            "calib_swa_golden: 3 documents of 10 to 30 tokens (1 near, 1 outliers, 1 mixed; 1 borderline)"
        );
        let card = card(vec![counts]);
        insta::assert_snapshot!(render(&card).unwrap());
        assert!(!render(&Card { drops: None, ..card }).unwrap().contains("left out of the corpus"));
    }

    #[test]
    fn conversations_are_explained_where_there_are_some() {
        let chat = Chosen { special_tokens: true, ..row("a", 10, "near") };
        let counts = |rows: &[Chosen]| SplitCounts::new("x", String::new(), rows, (0, &[]));
        let (with, without) = (counts(&[chat, row("b", 10, "near")]), counts(&[row("b", 10, "near")]));
        assert_eq!((with.conversations, without.conversations), (1, 0));
        assert!(
            !serde_json::to_string(&without).unwrap().contains("conversations"),
            "older files stay as they are"
        );
        let said = |splits: Vec<SplitCounts>| {
            let template = include_str!("card.md.jinja").split("## Columns").nth(1).unwrap();
            let context = minijinja::context! { splits => Serde(splits), scale => 4000, original => false };
            Environment::new().render_str(template, context).unwrap().contains("`special_tokens`")
        };
        assert_eq!((said(vec![counts(&[]), with]), said(vec![without])), (true, false));
    }

    #[test]
    fn the_card_shows_context_gains_where_they_were_measured() {
        let gains = |gains: &[Option<i64>]| {
            let rows: Vec<Chosen> =
                gains.iter().map(|&context_gain| Chosen { context_gain, ..row("a", 10, "near") }).collect();
            SplitCounts::new("x", String::new(), &rows, (0, &[]))
        };
        assert_eq!(gains(&[Some(3), None, Some(-5), Some(9)]).context_gain, Some(3));
        assert_eq!((gains(&[Some(3), Some(9)]).context_gain, gains(&[None]).context_gain), (Some(3), None));
        let line = gains(&[Some(123_456)]).line();
        assert!(line.ends_with("; 0 borderline); median context gain 0.123 nats per token"), "{line}");

        let measured =
            GainCounts { window: 64, samples: 8, max_tokens: 900, measured: 2, least: None, left_out: None };
        let card = Card {
            context_gain: Some(measured),
            splits: vec![gains(&[Some(123_456)]), gains(&[])],
            ..card(vec![])
        };
        let text = render(&card).unwrap();
        assert!(text.contains("| recalling | context gain | similar |"), "{text}");
        assert!(text.contains("| 0 | 0.123 | 0 | 0 |") && text.contains("| 0 | – | 0 | 0 |"), "{text}");
        assert!(text.contains("the last 64 tokens") && !text.contains("At least"), "{text}");
        let asked = GainCounts { least: Some(0.05), left_out: Some(7), ..card.context_gain.unwrap() };
        let text = render(&Card { context_gain: Some(asked), ..self::card(vec![]) }).unwrap();
        assert!(text.contains("At least 0.05 was asked of `full`;\n  7 documents of that stratum"), "{text}");
    }

    #[test]
    fn what_was_left_out_of_a_split_is_told() {
        let gone = |reason| Dropped { index: 0, reason, of: None };
        let dropped = [gone("similar"), gone("budget"), gone("budget")];
        let counts = SplitCounts::new("x", String::new(), &[row("a", 10, "near")], (0, &dropped));
        let line = "x: 1 documents of 10 to 10 tokens (1 near, 0 outliers, 0 mixed; 0 borderline; left out: 1 similar, 2 over budget)";
        assert_eq!(counts.line(), line);
    }

    #[test]
    fn an_empty_split_has_zero_figures() {
        let counts = SplitCounts::new("x", String::new(), &[], (0, &[]));
        assert_eq!((counts.shortest, counts.longest, counts.tokens), (0, 0, 0));
    }
}
