//! The end of a run and the whole of a plan, as a table. Knows what the engine tells, not how it came to it.

use super::{
    paint::{Colour, Palette, seconds},
    table::{self, Cell},
};
use crate::engine::{
    state::Status,
    summary::{RunSummary, StageSummary},
};

/// Beyond so many stages only those that are not cached are listed.
const LISTED: usize = 40;

/// A table with one line a stage, and what it comes to.
pub(super) fn render(summary: &RunSummary, palette: Palette) -> String {
    let many = summary.stages.len() > LISTED;
    let listed = summary.stages.iter().filter(|stage| !many || stage.status != Status::Cached);
    let ran = |stage: &StageSummary| matches!(stage.status, Status::Ran | Status::Failed);
    let times = summary.stages.iter().any(ran);
    let heading = ["stage", "status", "time", "why"].map(Cell::new);
    let mut rows = vec![heading.into_iter().collect::<Vec<_>>()];
    for stage in listed {
        let time = if ran(stage) { seconds(stage.seconds) } else { String::new() };
        // That nothing changed is what `cached` says.
        let why = stage.why.lines().next().filter(|_| stage.status != Status::Cached).unwrap_or_default();
        rows.push(vec![
            Cell::new(&stage.name).colour(Colour::Strong),
            Cell::new(stage.status.as_str()).colour(colour(stage.status)),
            Cell::new(time).right(),
            Cell::new(why),
        ]);
    }
    if !times {
        for row in &mut rows {
            row.remove(2);
        }
    } else if let Some(heading) = rows[0].get_mut(2) {
        heading.right = true;
    }
    let table = if rows.len() > 1 { table::render(&rows, palette) + "\n" } else { String::new() };
    format!("{table}  {}\n", counts(&summary.stages))
}

fn colour(status: Status) -> Colour {
    match status {
        Status::Ran => Colour::Good,
        Status::Failed => Colour::Bad,
        Status::Blocked | Status::Maybe => Colour::Warning,
        Status::Run => Colour::Accent,
        Status::Cached | Status::Skipped => Colour::Faint,
    }
}

/// `9 stages: 2 ran, 7 cached`.
fn counts(stages: &[StageSummary]) -> String {
    let order = [
        Status::Failed,
        Status::Blocked,
        Status::Ran,
        Status::Run,
        Status::Maybe,
        Status::Cached,
        Status::Skipped,
    ];
    let count = |status: Status| stages.iter().filter(|stage| stage.status == status).count();
    let parts: Vec<String> = order
        .into_iter()
        .map(|status| (count(status), status.as_str()))
        .filter(|(count, _)| *count > 0)
        .map(
            |(count, word)| if word == "run" { format!("{count} to run") } else { format!("{count} {word}") },
        )
        .collect();
    let plural = if stages.len() == 1 { "stage" } else { "stages" };
    format!("{} {plural}: {}", stages.len(), parts.join(", "))
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::engine::summary::RunStatus;

    fn stage(name: &str, status: Status, seconds: f64, why: &str) -> StageSummary {
        StageSummary { seconds, ..StageSummary::new(name, "exec", status, why) }
    }

    fn summary(stages: Vec<StageSummary>) -> RunSummary {
        let run = String::new();
        RunSummary {
            run,
            pipeline: String::new(),
            status: RunStatus::Ok,
            seconds: 1.0,
            stages,
            interrupted: false,
            checkpointed: false,
        }
    }

    #[test]
    fn a_run() {
        let stages = vec![
            stage("corpus", Status::Cached, 0.0, ""),
            stage("svd", Status::Ran, 12.34, "parameter `rank` changed: 96 -> 64"),
            stage("distill", Status::Failed, 0.5, "first line\nsecond line"),
        ];
        let expected = "  stage    status    time  why
  corpus   cached
  svd      ran     12.3 s  parameter `rank` changed: 96 -> 64
  distill  failed   0.5 s  first line

  3 stages: 1 failed, 1 ran, 1 cached
";
        assert_eq!(render(&summary(stages), Palette(false)), expected);
    }

    #[test]
    fn a_plan_has_no_times() {
        let stages =
            vec![stage("a", Status::Run, 0.0, "never ran"), stage("b", Status::Maybe, 0.0, "waits on `a`")];
        let text = render(&summary(stages), Palette(false));
        assert_eq!(
            text,
            "  stage  status  why\n  a      run     never ran\n  b      maybe   waits on `a`\n\n  2 stages: 1 to run, 1 maybe\n"
        );
    }

    #[test]
    fn a_large_run_of_hits_is_one_line() {
        let stages = (0..1000).map(|i| stage(&format!("s{i}"), Status::Cached, 0.0, "")).collect();
        assert_eq!(render(&summary(stages), Palette(false)), "  1000 stages: 1000 cached\n");
    }

    #[test]
    fn of_a_large_run_what_is_not_cached_is_listed() {
        let mut stages: Vec<_> = (0..41).map(|i| stage(&format!("s{i}"), Status::Cached, 0.0, "")).collect();
        stages[7] = stage("odd", Status::Ran, 0.02, "never run");
        stages[9] = stage("left", Status::Skipped, 0.0, "not selected");
        let expected = "  stage  status    time  why
  odd    ran      20 ms  never run
  left   skipped         not selected

  41 stages: 1 ran, 39 cached, 1 skipped
";
        assert_eq!(render(&summary(stages), Palette(false)), expected);
        let forty = (0..40).map(|i| stage(&format!("s{i}"), Status::Cached, 0.0, "")).collect();
        assert_eq!(render(&summary(forty), Palette(false)).lines().count(), 1 + 40 + 2, "few are all listed");
    }

    #[test]
    fn the_count_names_the_worst_first() {
        let all = [
            Status::Skipped,
            Status::Cached,
            Status::Maybe,
            Status::Run,
            Status::Ran,
            Status::Blocked,
            Status::Failed,
        ];
        let stages: Vec<_> = all.map(|status| stage("x", status, 0.0, "")).into();
        let expected = "7 stages: 1 failed, 1 blocked, 1 ran, 1 to run, 1 maybe, 1 cached, 1 skipped";
        assert_eq!(counts(&stages), expected);
        assert_eq!(counts(&stages[1..2]), "1 stage: 1 cached");
    }

    #[test]
    fn every_status_has_its_colour() {
        for (status, code) in [
            (Status::Ran, "32"),
            (Status::Failed, "31;1"),
            (Status::Blocked, "33"),
            (Status::Maybe, "33"),
            (Status::Run, "36"),
            (Status::Cached, "2"),
            (Status::Skipped, "2"),
        ] {
            let text = render(&summary(vec![stage("x", status, 0.0, "")]), Palette(true));
            let word = status.as_str();
            assert!(text.contains(&format!("\x1b[{code}m{word}")), "{word}: {text:?}");
        }
    }
}
