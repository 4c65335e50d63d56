//! The difference of two runs for people. Knows how it looks, not how it was found.

use std::fmt::Write;

use super::{Changed, Cost, Diff, Side, first, scores::Table};
use crate::cli::{
    paint::{Colour, Palette, bytes, seconds},
    table::{self, Cell},
};

/// Beyond so many figures of one output the rest is counted.
const LISTED: usize = 40;

/// Both runs, the stages that differ, their figures, and what it comes to.
pub(super) fn render(diff: &Diff, palette: Palette) -> String {
    let mut out = table::render(&[heading(), side("a", &diff.a), side("b", &diff.b)], palette);
    let mut say = |text: &str| {
        let _infallible = writeln!(out, "{text}");
    };
    say("");
    for (names, mark, side) in [(&diff.only_a, "-", "a"), (&diff.only_b, "+", "b")] {
        for name in names {
            say(&format!("  {mark} {}  only in {side}", palette.paint(Colour::Strong, name)));
        }
    }
    for stage in &diff.stages {
        say(&changed(stage, palette));
    }
    for stage in &diff.stages {
        for table in &stage.scores {
            let name = format!("{}.{}", stage.name, table.port);
            say(&format!("\n  {}\n{}", palette.paint(Colour::Strong, &name), figures(table, palette)));
        }
    }
    if !(diff.only_a.is_empty() && diff.only_b.is_empty() && diff.stages.is_empty()) {
        say("");
    }
    say(&format!("  {}", counts(diff)));
    out
}

fn heading() -> Vec<Cell> {
    let mut cells: Vec<Cell> =
        ["", "run", "pipeline", "started (UTC)", "status", "time"].map(Cell::new).into_iter().collect();
    cells[5].right = true;
    cells
}

fn side(mark: &str, side: &Side) -> Vec<Cell> {
    vec![
        Cell::new(mark).colour(Colour::Accent),
        Cell::new(&side.run).colour(Colour::Strong),
        Cell::new(&side.pipeline),
        Cell::new(side.started.replace('T', " ").trim_end_matches('Z')),
        Cell::new(&side.status),
        Cell::new(seconds(side.seconds)).right(),
    ]
}

/// A stage with what it cost, why its key is another one, and its outputs.
fn changed(stage: &Changed, palette: Palette) -> String {
    let Cost { status, seconds: time, peak_memory, .. } = &stage.a;
    let mut head = vec![palette.paint(Colour::Strong, &stage.name).to_string()];
    if *status != stage.b.status {
        head.push(format!("{status} -> {}", stage.b.status));
    }
    head.extend(both(*time, stage.b.seconds, &seconds));
    head.extend(both(*peak_memory, stage.b.peak_memory, &bytes));
    let mut lines = vec![format!("  ~ {}", head.join("  "))];
    lines.extend(stage.reasons.iter().map(|reason| format!("      {}", first(reason))));
    for port in &stage.outputs {
        let what = match (port.a, port.b) {
            (Some(a), Some(b)) => format!("has other bytes: {} -> {}", a.short(), b.short()),
            (None, _) => "is only in b".to_owned(),
            (_, None) => "is only in a".to_owned(),
        };
        lines.push(format!("      output `{}` {what}", port.port));
    }
    if stage.reasons.is_empty() && !stage.outputs.is_empty() {
        let odd = "the key is the same: the stage does not give the same bytes each time";
        lines.push(format!("      {}", palette.paint(Colour::Warning, odd)));
    }
    lines.join("\n")
}

/// A figure of both sides, or nothing where one lacks it.
fn both<T: Copy>(a: Option<T>, b: Option<T>, show: &dyn Fn(T) -> String) -> Option<String> {
    let (a, b) = (show(a?), show(b?));
    Some(if a == b { a } else { format!("{a} -> {b}") })
}

fn figures(table: &Table, palette: Palette) -> String {
    let mut rows = vec![["figure", "a", "b", "change", ""].map(Cell::new).into_iter().collect::<Vec<_>>()];
    for cell in &mut rows[0][1..] {
        cell.right = true;
    }
    for figure in table.values.iter().take(LISTED) {
        let show = |x: Option<f64>| Cell::new(x.map_or_else(String::new, number)).right();
        let change = figure.change.map_or_else(String::new, |x| format!("{}{}", sign(x), number(x.abs())));
        let share =
            figure.change.zip(figure.a).filter(|(_, a)| *a != 0.0).map(|(change, a)| change / a.abs());
        let share = share.map_or_else(String::new, |x| format!("{}{:.1} %", sign(x), 100.0 * x.abs()));
        rows.push(vec![
            Cell::new(&figure.name),
            show(figure.a),
            show(figure.b),
            Cell::new(change).right(),
            Cell::new(share).right().colour(Colour::Faint),
        ]);
    }
    let mut text = table::render(&rows, palette);
    if let Some(rest) = table.values.len().checked_sub(LISTED).filter(|&rest| rest > 0) {
        let _infallible = writeln!(text, "  … and {rest} more: --format json has all");
    }
    text.trim_end().to_owned()
}

fn sign(x: f64) -> &'static str {
    if x < 0.0 { "−" } else { "+" }
}

/// Five digits that count, without zeros at the end; whole numbers in full.
fn number(x: f64) -> String {
    const WHOLE: f64 = 1e15;
    if x.fract() == 0.0 && x.abs() < WHOLE {
        return format!("{x:.0}");
    }
    let before = x.abs().log10().floor() as i32 + 1;
    if !(-4..=15).contains(&before) {
        return format!("{x:.4e}");
    }
    let text = format!("{x:.*}", (5 - before).max(0) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `11 stages: 3 changed, 1 only in b, 7 the same`.
fn counts(diff: &Diff) -> String {
    let parts = [
        (diff.stages.len(), "changed"),
        (diff.only_a.len(), "only in a"),
        (diff.only_b.len(), "only in b"),
        (diff.same, "the same"),
    ];
    let total: usize = parts.iter().map(|(count, _)| count).sum();
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    format!("{total} {}: {}", if total == 1 { "stage" } else { "stages" }, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::diff::{Artifact, scores::Figure},
        store::Digest,
    };

    fn side(run: &str, seconds: f64) -> Side {
        Side {
            run: run.to_owned(),
            pipeline: "p".to_owned(),
            started: "2026-11-23T15:25:18Z".to_owned(),
            status: "ok".to_owned(),
            seconds,
        }
    }

    fn cost(status: &str, seconds: f64) -> Cost {
        Cost { status: status.to_owned(), key: None, seconds: Some(seconds), peak_memory: Some(3 << 20) }
    }

    fn diff(stages: Vec<Changed>) -> Diff {
        let (a, b) = (side("x", 1.0), side("y", 2.0));
        Diff { a, b, only_a: vec![], only_b: vec![], stages, same: 2 }
    }

    fn stage() -> Changed {
        let digest = |text: &str| Some(Digest::of(text.as_bytes()));
        Changed {
            name: "svd".to_owned(),
            a: cost("cached", 1.0),
            b: Cost { peak_memory: Some(5 << 20), ..cost("ran", 2.0) },
            reasons: vec!["parameter `rank` changed: 96 -> 64".to_owned()],
            outputs: vec![Artifact { port: "model".to_owned(), a: digest("1"), b: digest("2") }],
            scores: vec![],
        }
    }

    #[test]
    fn a_difference() {
        let figure = |name: &str, a: f64, b: f64| Figure {
            name: name.to_owned(),
            a: Some(a),
            b: Some(b),
            change: Some(b - a),
        };
        let values = vec![figure("kl", 0.5, 0.25), figure("n", 0.0, 7.0)];
        let scores = vec![Table { port: "scores".to_owned(), values }];
        let (only_a, only_b) = (vec!["old".to_owned()], vec!["new".to_owned()]);
        let digests = ["1", "2"].map(|text| Digest::of(text.as_bytes()).short());
        let expected = format!(
            "     run  pipeline  started (UTC)        status   time
  a  x    p         2026-11-23 15:25:18  ok      1.0 s
  b  y    p         2026-11-23 15:25:18  ok      2.0 s

  - old  only in a
  + new  only in b
  ~ svd  cached -> ran  1.0 s -> 2.0 s  3.0 MiB -> 5.0 MiB
      parameter `rank` changed: 96 -> 64
      output `model` has other bytes: {} -> {}

  svd.scores
  figure    a     b  change
  kl      0.5  0.25   −0.25  −50.0 %
  n         0     7      +7

  5 stages: 1 changed, 1 only in a, 1 only in b, 2 the same
",
            digests[0], digests[1]
        );
        let diff = Diff { only_a, only_b, ..diff(vec![Changed { scores, ..stage() }]) };
        assert_eq!(render(&diff, Palette(false)), expected);
    }

    #[test]
    fn runs_that_are_the_same_are_said_in_one_line() {
        let text = render(&diff(vec![]), Palette(false));
        assert!(text.ends_with("ok      2.0 s\n\n  2 stages: 2 the same\n"), "{text}");
    }

    #[test]
    fn other_bytes_of_one_key_are_remarked() {
        let text = changed(&Changed { reasons: vec![], ..stage() }, Palette(false));
        assert!(text.ends_with("the stage does not give the same bytes each time"), "{text}");
    }

    #[test]
    fn many_figures_are_cut_short() {
        let figure = |i: usize| Figure { name: format!("f{i}"), a: Some(1.0), b: None, change: None };
        let table = Table { port: "scores".to_owned(), values: (0..45).map(figure).collect() };
        let text = figures(&table, Palette(false));
        assert!(text.ends_with("  … and 5 more: --format json has all"), "{text}");
        assert_eq!(text.lines().count(), 1 + LISTED + 1);
    }

    #[test]
    fn numbers_have_five_digits() {
        for (x, text) in [
            (0.0, "0"),
            (1536.0, "1536"),
            (-3.0, "-3"),
            (0.1, "0.1"),
            (0.123_456_7, "0.12346"),
            (2.077_28, "2.0773"),
            (12345.678, "12346"),
            (123_456.7, "123457"),
            (0.001_234_567, "0.0012346"),
            (1.25e-9, "1.2500e-9"),
            (1e20, "1.0000e20"),
        ] {
            assert_eq!(number(x), text);
        }
    }
}
