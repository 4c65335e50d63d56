//! The table of an evaluation as text: one column per model, one row per figure. Knows nothing of how it was measured.

use std::collections::BTreeMap;

use super::{Figures, Row, Scores};

/// More models than this have a row each.
const MOST_COLUMNS: usize = 5;

/// What stands where a model has no such figure.
const NONE: &str = "–";

impl Scores {
    /// The table and its protocol in Markdown.
    pub fn markdown(&self) -> String {
        let bar = |cells: &Vec<String>| format!("| {} |", cells.join(" | "));
        let rows = self.rows();
        let mut lines: Vec<String> = rows.iter().map(bar).collect();
        lines.insert(1, format!("|---|{}", "---:|".repeat(rows[0].len() - 1)));
        lines.push(String::new());
        lines.extend(self.notes());
        lines.join("\n") + "\n"
    }

    /// The table and its protocol as lines of plain text, columns aligned.
    pub fn lines(&self) -> Vec<String> {
        let rows = self.rows();
        let chars = |cell: &String| cell.chars().count();
        let width = |column: usize| rows.iter().map(|row| chars(&row[column])).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let first = format!("{:<1$}", row[0], widths[0]);
            row[1..]
                .iter()
                .zip(&widths[1..])
                .fold(first, |line, (cell, width)| format!("{line}  {cell:>width$}"))
        };
        rows.iter().map(line).chain(self.notes()).collect()
    }

    /// The cells, head first; every row has as many. Of many models, the main figures only, a row for each.
    fn rows(&self) -> Vec<Vec<String>> {
        if self.models.len() > MOST_COLUMNS { self.one_row_each() } else { self.one_column_each() }
    }

    fn one_row_each(&self) -> Vec<Vec<String>> {
        let head = ["", "KL, mean", "KL 99 %", "same top", "perplexity ratio", "recall", "KV elements"];
        let row = |m: &Row| {
            vec![
                m.model.clone(),
                with_error(m.all.kl_mean, m.all.kl_mean_se),
                nats(m.all.kl_p99),
                share_with_error(m.all.top1, m.all.top1_se),
                nats(m.all.perplexity_ratio),
                m.recall.as_ref().map_or(NONE.to_owned(), |r| percent(r.accuracy)),
                elements(&m.kv_elements_per_layer),
            ]
        };
        std::iter::once(head.map(str::to_owned).to_vec()).chain(self.models.iter().map(row)).collect()
    }

    fn one_column_each(&self) -> Vec<Vec<String>> {
        let row = |name: &str, cell: &dyn Fn(&Row) -> String| {
            std::iter::once(name.to_owned()).chain(self.models.iter().map(cell)).collect::<Vec<_>>()
        };
        let mut rows = vec![
            row("", &|m| m.model.clone()),
            row("KL to the original, mean", &|m| with_error(m.all.kl_mean, m.all.kl_mean_se)),
            row("KL median", &|m| nats(m.all.kl_median)),
            row("KL 90 %, 95 %", &|m| format!("{:.4}, {:.4}", m.all.kl_p90, m.all.kl_p95)),
            row("KL 99 %, 99.9 %", &|m| format!("{:.4}, {:.4}", m.all.kl_p99, m.all.kl_p999)),
            row("KL max", &|m| nats(m.all.kl_max)),
            row("same top token", &|m| share_with_error(m.all.top1, m.all.top1_se)),
            row("Δp of the next token, RMS", &|m| percent(m.all.delta_p_rms)),
            row("perplexity", &|m| format!("{:.3}", m.all.perplexity)),
            row("perplexity ratio", &|m| nats(m.all.perplexity_ratio)),
            row("ln ratio", &|m| with_error(m.all.ln_ratio, m.all.ln_ratio_se)),
        ];
        let buckets = self.models.first().map_or(&[][..], |first| &first.buckets);
        for (i, bucket) in buckets.iter().enumerate() {
            let name = format!("KL, ratio at {}", span(bucket.from, Some(bucket.to)));
            rows.push(row(&name, &|m| m.buckets.get(i).map_or(NONE.to_owned(), |b| pair(&b.figures))));
        }
        if let Some(recall) = self.models.first().and_then(|m| m.recall.as_ref()) {
            let name = format!("recall, {} answers", recall.answers);
            rows.push(row(&name, &|m| m.recall.as_ref().map_or(NONE.to_owned(), |r| percent(r.accuracy))));
            for (i, far) in recall.by_distance.iter().enumerate() {
                let name = format!("recall {} tokens back", span(far.from, far.to));
                let accuracy =
                    |m: &Row| m.recall.as_ref().and_then(|r| r.by_distance.get(i)).map(|d| d.accuracy);
                rows.push(row(&name, &|m| accuracy(m).map_or(NONE.to_owned(), percent)));
            }
            rows.push(row("recall by chance", &|m| {
                m.recall.as_ref().map_or(NONE.to_owned(), |r| percent(r.chance))
            }));
        }
        rows.push(row("KV elements per token, full layers", &|m| elements(&m.kv_elements_per_layer)));
        rows.push(row("KV bytes per token, full layers", &|m| m.kv_bytes_per_token.to_string()));
        rows.push(row("KV cut, full layers", &|m| percent(m.kv_cut)));
        let name = format!("KV cut, whole model at {} tokens", self.protocol.max_tokens);
        rows.push(row(&name, &|m| percent(m.kv_cut_whole_model)));
        rows
    }

    /// Of models that are samples of one kind, `golden.1` and `golden.2`: mean, standard deviation and range of their divergence.
    fn spreads(&self) -> Vec<String> {
        let mut kinds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for model in &self.models {
            if let Some((kind, _)) = model.model.rsplit_once('.').filter(|(_, n)| n.parse::<u64>().is_ok()) {
                kinds.entry(kind).or_default().push(model.all.kl_mean);
            }
        }
        let line = |(kind, kls): (&str, Vec<f64>)| {
            let n = kls.len() as f64;
            let mean = kls.iter().sum::<f64>() / n;
            let deviation = (kls.iter().map(|kl| (kl - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            let (least, most) =
                kls.iter().fold((f64::INFINITY, 0f64), |(least, most), &kl| (least.min(kl), most.max(kl)));
            format!(
                "{kind}: mean KL {mean:.4}, standard deviation {deviation:.4}, {least:.4} to {most:.4} over {} samples",
                kls.len()
            )
        };
        kinds.into_iter().filter(|(_, kls)| kls.len() > 1).map(line).collect()
    }

    fn notes(&self) -> Vec<String> {
        let p = &self.protocol;
        let bos = p.bos.as_ref().map_or("no token".to_owned(), |token| format!("`{token}`"));
        let mut notes = self.spreads();
        notes.extend([
            format!(
                "{}: {} documents, each cut after {} tokens, {bos} before each; {} predicted tokens; {}.",
                p.text, p.documents, p.max_tokens, p.tokens, p.numerics
            ),
            format!(
                "KL(original ‖ model) in nats per token; ± is a standard error over documents; a cached element has {} bytes.",
                p.kv_element_bytes
            ),
        ]);
        notes
    }
}

fn nats(x: f64) -> String {
    format!("{x:.4}")
}

fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

fn with_error(x: f64, error: Option<f64>) -> String {
    error.map_or_else(|| nats(x), |error| format!("{x:.4} ± {error:.4}"))
}

fn share_with_error(x: f64, error: Option<f64>) -> String {
    error.map_or_else(|| percent(x), |error| format!("{:.1} ± {:.1} %", 100.0 * x, 100.0 * error))
}

fn pair(figures: &Figures) -> String {
    format!("{:.4}, {:.4}", figures.kl_mean, figures.perplexity_ratio)
}

fn span(from: usize, to: Option<usize>) -> String {
    to.map_or_else(|| format!("{from} or more"), |to| format!("{from}–{}", to - 1))
}

/// `288` where all layers agree, else their mean and their range; each layer's number is in the scores.
fn elements(layers: &[usize]) -> String {
    let (Some(least), Some(most)) = (layers.iter().min(), layers.iter().max()) else {
        return NONE.to_owned();
    };
    if least == most {
        return least.to_string();
    }
    let mean = layers.iter().sum::<usize>() as f64 / layers.len() as f64;
    format!("{mean:.0} ({least} to {most})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::scores::tests::example;

    #[test]
    fn one_table_with_its_protocol() {
        insta::assert_snapshot!(example().lines().join("\n"));
    }

    #[test]
    fn markdown_has_a_cell_for_every_model() {
        let text = example().markdown();
        let table: Vec<&str> = text.lines().take_while(|line| line.starts_with('|')).collect();
        assert_eq!(table[1], "|---|---:|---:|");
        assert!(table.iter().all(|line| line.matches('|').count() == 4), "{text}");
        assert!(text.ends_with("a cached element has 2 bytes.\n"), "{text}");
    }

    #[test]
    fn many_models_have_a_row_each() {
        let mut scores = example();
        let healed = scores.models[1].clone();
        scores.models.resize(7, healed);
        scores.models[6].kv_elements_per_layer = vec![96, 128, 100];
        let lines = scores.lines();
        assert_eq!(lines.len(), 1 + 7 + 2, "{}", lines.join("\n"));
        assert!(lines[0].contains("KL, mean") && lines[2].starts_with("healed  "), "{}", lines.join("\n"));
        assert!(lines[7].ends_with("108 (96 to 128)") && lines[6].ends_with("  108"), "{}", lines.join("\n"));
        let text = scores.markdown();
        assert_eq!(text.lines().nth(1), Some("|---|---:|---:|---:|---:|---:|---:|"));
        assert!(text.lines().take(9).all(|line| line.matches('|').count() == 8), "{text}");
    }

    #[test]
    fn samples_of_one_kind_show_their_spread() {
        let mut scores = example();
        for (name, kl) in [("golden.1", 0.1), ("golden.2", 0.3), ("other.1", 0.5), ("v1.5b", 0.5)] {
            let mut row = scores.models[1].clone();
            row.model = name.into();
            row.all.kl_mean = kl;
            scores.models.push(row);
        }
        let spread = "golden: mean KL 0.2000, standard deviation 0.1414, 0.1000 to 0.3000 over 2 samples";
        let lines = scores.lines();
        assert_eq!(lines[lines.len() - 3], spread);
        assert_eq!(lines.iter().filter(|line| line.contains("samples")).count(), 1);
        assert!(scores.markdown().contains(spread));
    }

    #[test]
    fn what_was_not_measured_is_a_dash_or_left_out() {
        let mut scores = example();
        scores.protocol.bos = None;
        scores.models[1].recall = None;
        scores.models[1].all.ln_ratio_se = None;
        scores.models[1].kv_elements_per_layer = vec![96, 128];
        let text = scores.lines().join("\n");
        assert!(text.contains("no token before each"), "{text}");
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(line("recall, 40").ends_with(NONE), "{text}");
        assert!(line("ln ratio").ends_with("  0.0488"), "{text}");
        assert!(line("KV elements").ends_with("  112 (96 to 128)"), "{text}");
        scores.models[0].recall = None;
        assert!(!scores.lines().join("\n").contains("recall"));
    }

    #[test]
    fn columns_are_aligned_whatever_the_names() {
        let mut scores = example();
        scores.models[1].model = "a model with a long näme".into();
        let lines = scores.lines();
        let table = &lines[..lines.len() - 2];
        let width = |line: &String| line.chars().count();
        assert!(table.iter().all(|line| width(line) == width(&table[0])), "{}", table.join("\n"));
        assert!(table[0].ends_with("a model with a long näme"));
    }

    #[test]
    fn a_model_without_a_bucket_or_a_distance_has_a_dash_there() {
        let mut scores = example();
        scores.models[1].buckets.clear();
        scores.models[1].recall.as_mut().unwrap().by_distance.clear();
        let text = scores.lines().join("\n");
        for name in ["KL, ratio at 0–511", "recall 128–511 tokens back"] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line.ends_with(NONE), "{line}");
        }
    }

    #[test]
    fn spans_and_widths_in_words() {
        assert_eq!(
            [span(0, Some(1)), span(512, Some(1024)), span(4096, None)],
            ["0–0", "512–1023", "4096 or more"]
        );
        for (layers, expected) in
            [(&[][..], "–"), (&[7], "7"), (&[288, 288, 288], "288"), (&[168, 384, 216], "256 (168 to 384)")]
        {
            assert_eq!(elements(layers), expected);
        }
    }
}
