//! The quality gate: the rules of Gopher and C4 that need no model, for prose. Knows no source; every decision is in integers.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{math::hash::hash, stage::Invalid};

/// Rules that prose keeps and lists, menus, tables and broken extractions do not. Not for source code: its sources go without.
/// Words are what white space separates; shares are in thousandths. A document is dropped by the first rule that it breaks, and
/// the rule's name is the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Quality {
    /// Fewer words: `too-few-words`.
    pub min_words: usize,
    /// More words: `too-many-words`.
    pub max_words: usize,
    /// Words that are shorter on average, in thousandths of a character: `short-words`.
    pub min_word_length: usize,
    /// Words that are longer on average, in thousandths of a character: `long-words`.
    pub max_word_length: usize,
    /// A larger share of `#` and of ellipses, by words: `symbols`.
    pub max_symbols: usize,
    /// A larger share of lines that start as in a list (`-`, `*`, `•` …): `bullet-lines`.
    pub max_bullet_lines: usize,
    /// A larger share of lines that end in an ellipsis: `ellipsis-lines`.
    pub max_ellipsis_lines: usize,
    /// A smaller share of words with a letter: `few-letters`.
    pub min_alphabetic: usize,
    /// A larger share of lines that stood before: `repeated-lines`. Empty lines do not count.
    pub max_repeated_lines: usize,
    /// A larger share of words in the most common run of three: `common-run`.
    pub max_common_run: usize,
    /// A larger share of words in runs of five that stood before: `repeated-runs`.
    pub max_repeated_runs: usize,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            min_words: 50,
            max_words: 100_000,
            min_word_length: 3_000,
            max_word_length: 10_000,
            max_symbols: 100,
            max_bullet_lines: 900,
            max_ellipsis_lines: 300,
            min_alphabetic: 800,
            max_repeated_lines: 300,
            max_common_run: 180,
            max_repeated_runs: 150,
        }
    }
}

/// Marks that a line of a list starts with.
const BULLETS: [char; 10] = ['-', '*', '+', '•', '‣', '◦', '▪', '●', '○', '·'];

impl Quality {
    /// Checks the bounds. `at` is where the parameters stand in the manifest: `sources.0.quality`.
    pub(super) fn check(&self, at: &str) -> Result<(), Invalid> {
        let shares = [
            ("max-symbols", self.max_symbols),
            ("max-bullet-lines", self.max_bullet_lines),
            ("max-ellipsis-lines", self.max_ellipsis_lines),
            ("min-alphabetic", self.min_alphabetic),
            ("max-repeated-lines", self.max_repeated_lines),
            ("max-common-run", self.max_common_run),
            ("max-repeated-runs", self.max_repeated_runs),
        ];
        if let Some((name, value)) = shares.into_iter().find(|(_, value)| *value > 1000) {
            let why = format!("is {value}, and a share has at most 1000 thousandths");
            return Err(Invalid::new(format!("{at}.{name}"), why));
        }
        let least = [
            ("max-words", self.max_words, self.min_words, "min-words"),
            ("max-word-length", self.max_word_length, self.min_word_length, "min-word-length"),
        ];
        if let Some((name, _, _, other)) = least.into_iter().find(|(_, max, min, _)| max < min) {
            return Err(Invalid::new(format!("{at}.{name}"), format!("is smaller than `{other}`")));
        }
        Ok(())
    }

    /// The first rule that the text breaks.
    pub(super) fn fault(&self, text: &str) -> Option<&'static str> {
        self.words(text).or_else(|| self.lines(text)).or_else(|| self.runs(text))
    }

    fn words(&self, text: &str) -> Option<&'static str> {
        let (mut words, mut chars, mut with_letter) = (0, 0, 0);
        for word in text.split_whitespace() {
            words += 1;
            chars += word.chars().count();
            with_letter += usize::from(word.contains(char::is_alphabetic));
        }
        let symbols = text.matches(['#', '…']).count() + text.matches("...").count();
        let rules = [
            ("too-few-words", words < self.min_words),
            ("too-many-words", words > self.max_words),
            ("short-words", chars * 1000 < self.min_word_length * words),
            ("long-words", chars * 1000 > self.max_word_length * words),
            ("symbols", more(symbols, self.max_symbols, words)),
            ("few-letters", with_letter * 1000 < self.min_alphabetic * words),
        ];
        rules.into_iter().find_map(|(name, broken)| broken.then_some(name))
    }

    fn lines(&self, text: &str) -> Option<&'static str> {
        let (mut lines, mut bullets, mut ellipses, mut repeated) = (0, 0, 0, 0);
        let mut seen = BTreeSet::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            lines += 1;
            bullets += usize::from(line.starts_with(BULLETS));
            ellipses += usize::from(line.ends_with("...") || line.ends_with('…'));
            repeated += usize::from(!seen.insert(line));
        }
        let rules = [
            ("bullet-lines", more(bullets, self.max_bullet_lines, lines)),
            ("ellipsis-lines", more(ellipses, self.max_ellipsis_lines, lines)),
            ("repeated-lines", more(repeated, self.max_repeated_lines, lines)),
        ];
        rules.into_iter().find_map(|(name, broken)| broken.then_some(name))
    }

    fn runs(&self, text: &str) -> Option<&'static str> {
        let words: Vec<u64> = text.split_whitespace().map(|word| hash(3, [word.as_bytes()])).collect();
        let mut threes: BTreeMap<&[u64], usize> = BTreeMap::new();
        words.windows(3).for_each(|run| *threes.entry(run).or_default() += 1);
        // A run that stands once is not common, however short the text.
        let most = threes.into_values().filter(|&n| n > 1).max().unwrap_or(0);
        if more(3 * most, self.max_common_run, words.len()) {
            return Some("common-run");
        }
        let (mut seen, mut at, mut repeated) = (BTreeSet::new(), 0, 0);
        while let Some(run) = words.get(at..at + 5) {
            // After a repeated run the next one starts behind it, so that no word counts twice.
            let step = if seen.insert(run) { 1 } else { 5 };
            repeated += if step == 5 { 5 } else { 0 };
            at += step;
        }
        more(repeated, self.max_repeated_runs, words.len()).then_some("repeated-runs")
    }
}

/// Whether `part` is more than `limit` thousandths of `whole`.
fn more(part: usize, limit: usize, whole: usize) -> bool {
    part * 1000 > limit * whole
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prose of `n` different words, ten a line.
    fn prose(n: usize) -> String {
        let lines: Vec<Vec<String>> = (0..n)
            .map(|i| format!("word{}", ["a", "b", "c", "d"][i % 4].repeat(1 + i / 4 % 3) + &i.to_string()))
            .collect::<Vec<_>>()
            .chunks(10)
            .map(<[String]>::to_vec)
            .collect();
        lines.iter().map(|line| line.join(" ")).collect::<Vec<_>>().join("\n")
    }

    fn fault(text: &str) -> Option<&'static str> {
        Quality::default().fault(text)
    }

    #[test]
    fn every_rule_has_its_own_reason() {
        let words = prose(100);
        assert_eq!(fault(&words), None);
        let each_line = |f: &dyn Fn(&str) -> String| words.lines().map(f).collect::<Vec<_>>().join("\n");
        let again = |n: usize, text: &str| vec![text; n].join("\n");
        for (text, reason) in [
            (prose(49), "too-few-words"),
            (prose(100_001), "too-many-words"),
            (words.replace("word", "").replace(char::is_numeric, ""), "short-words"),
            (words.replace("word", "wordwordword"), "long-words"),
            (words.replace("worda", "#worda"), "symbols"),
            (words.replace("worda", "worda..."), "symbols"),
            (words.replace("worda", "1234").replace('a', "5"), "few-letters"),
            (each_line(&|line| format!("- {line}")), "bullet-lines"),
            (each_line(&|line| format!("{line}…")), "ellipsis-lines"),
            (again(2, &words), "repeated-lines"),
            (format!("{words} {}", again(8, "one and two")), "repeated-lines"),
            (format!("{words} {}", "one and two ".repeat(8)), "common-run"),
            (format!("{words} {}", words.replace('\n', " ").split_at(260).0), "repeated-runs"),
        ] {
            assert_eq!(fault(&text), Some(reason), "{text:.200}");
        }
    }

    #[test]
    fn limits_include_their_ends() {
        let words = prose(100);
        let with = |edit: fn(&mut Quality), text: &str| {
            let mut rule = Quality::default();
            edit(&mut rule);
            rule.fault(text)
        };
        assert_eq!(with(|q| q.min_words = 100, &words), None);
        assert_eq!(with(|q| q.min_words = 101, &words), Some("too-few-words"));
        assert_eq!(with(|q| q.max_words = 100, &words), None);
        assert_eq!(with(|q| q.max_words = 99, &words), Some("too-many-words"));
        // Ten lines, three of which end in an ellipsis, and three dots are a symbol each.
        let dotted: Vec<_> = words
            .lines()
            .enumerate()
            .map(|(i, l)| if i < 3 { format!("{l}...") } else { l.to_owned() })
            .collect();
        let dotted = dotted.join("\n");
        assert_eq!(with(|q| q.max_ellipsis_lines = 300, &dotted), None);
        assert_eq!(with(|q| q.max_ellipsis_lines = 299, &dotted), Some("ellipsis-lines"));
        assert_eq!(with(|q| q.max_symbols = 30, &dotted), None);
        assert_eq!(with(|q| q.max_symbols = 29, &dotted), Some("symbols"));
    }

    #[test]
    fn any_text_is_judged() {
        let open = Quality { min_words: 0, ..Quality::default() };
        for text in ["", " ", "\n\n", "one", "one two", "語", "a\u{301}"] {
            assert!(fault(text) == Some("too-few-words"));
            open.fault(text);
        }
        assert_eq!(open.fault("some words here"), None);
    }

    #[test]
    fn bounds_are_checked_and_named() {
        let check = |toml: &str| {
            let rule: Quality = toml::from_str(toml).unwrap();
            rule.check("sources.2.quality").map_err(|e| e.param)
        };
        assert_eq!(check(""), Ok(()));
        let at = |param: &str| Err(format!("sources.2.quality.{param}"));
        assert_eq!(check("max-symbols = 1001"), at("max-symbols"));
        assert_eq!(check("max-words = 49"), at("max-words"));
        assert_eq!(check("min-word-length = 10001"), at("max-word-length"));
    }
}
