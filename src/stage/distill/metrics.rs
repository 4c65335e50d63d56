//! What training tells while it runs: a line of JSON for each step and each measurement, the same for TensorBoard, and its speed. Knows no
//! loss and no optimiser.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Serialize;

use super::{
    curve::{Candidate, Curve, FILE, MEASURED, Measured, Point},
    tensorboard::Events,
};

/// Files that grow, in a folder beside the stage's log.
pub(crate) struct Metrics {
    steps: File,
    measured: File,
    events: Events,
    begun: Instant,
    /// Tokens of the steps that this process made.
    tokens: usize,
}

impl Metrics {
    /// Where they lie: `log` is the file that the stage may write its log to.
    pub(crate) fn folder(log: &Path) -> PathBuf {
        log.with_extension("metrics")
    }

    /// New files, in which what `so_far` has seen comes first.
    pub(crate) fn begin(folder: &Path, so_far: &Curve) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let file = |name: &str| File::create(folder.join(name));
        let mut metrics = Self {
            steps: file(FILE)?,
            measured: file(MEASURED)?,
            events: Events::create(folder)?,
            begun: Instant::now(),
            tokens: 0,
        };
        so_far.points.iter().try_for_each(|point| metrics.write_step(point, None))?;
        so_far.measured.iter().try_for_each(|measured| metrics.measured(measured))?;
        metrics.begun = Instant::now();
        Ok(metrics)
    }

    /// A step that was made now.
    pub(crate) fn step(&mut self, point: &Point) -> io::Result<()> {
        self.tokens += point.tokens;
        let speed = self.speed();
        self.write_step(point, Some(speed))
    }

    /// Tokens per second since the files were begun, whatever else there was to do.
    pub(crate) fn speed(&self) -> f32 {
        self.tokens as f32 / self.begun.elapsed().as_secs_f32().max(f32::MIN_POSITIVE)
    }

    fn write_step(&mut self, point: &Point, speed: Option<f32>) -> io::Result<()> {
        line(&mut self.steps, point)?;
        let named = [("loss", point.loss), ("grad_norm", point.grad_norm), ("lr", point.lr)];
        let named = named.into_iter().chain(speed.map(|speed| ("tokens_per_second", speed)));
        let scalars: Vec<_> = named.map(|(name, value)| (format!("{}/{name}", point.phase), value)).collect();
        self.events.scalars(u64::from(point.step), &scalars)
    }

    /// A measurement on the text that is held out.
    pub(crate) fn measured(&mut self, measured: &Measured) -> io::Result<()> {
        line(&mut self.measured, measured)?;
        let what = match measured.candidate {
            Candidate::Last => "held-out",
            Candidate::Ema => "held-out-ema",
            Candidate::Mean => "held-out-mean",
        };
        let at = format!("{}/{what}", measured.phase);
        let buckets = measured.buckets.iter();
        let buckets = buckets.map(|bucket| (format!("{at}/from-{}", bucket.from), bucket.loss));
        let scalars: Vec<_> = std::iter::once((at.clone(), measured.loss)).chain(buckets).collect();
        self.events.scalars(u64::from(measured.step), &scalars)
    }
}

fn line(file: &mut File, row: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(row)?;
    text.push(b'\n');
    file.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::{super::held_out::Bucket, *};
    use crate::artifact::texts;

    fn point(step: u32) -> Point {
        Point { phase: "kl".into(), step, loss: 0.5, grad_norm: 2.0, lr: 1e-3, tokens: 10 }
    }

    #[test]
    fn lines_and_events_are_there_as_soon_as_a_step_is_made_and_begin_with_what_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Metrics::folder(&dir.path().join("heal.log"));
        assert_eq!(folder, dir.path().join("heal.metrics"));
        let measured = Measured {
            phase: "kl".into(),
            step: 1,
            candidate: Candidate::Ema,
            loss: 0.25,
            buckets: vec![Bucket { from: 128, tokens: 3, loss: 0.125 }],
        };
        let so_far = Curve { points: vec![point(1)], measured: vec![measured.clone()] };
        let events = || fs::read(folder.join("events.out.tfevents.mla-run")).unwrap();
        let mut metrics = Metrics::begin(&folder, &so_far).unwrap();
        let before = events();
        let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
        for tag in ["kl/loss", "kl/grad_norm", "kl/lr", "kl/held-out-ema", "kl/held-out-ema/from-128"] {
            assert!(holds(&before, tag), "{tag}");
        }
        assert!(!holds(&before, "tokens_per_second"), "nobody knows how fast earlier steps were");
        assert!(metrics.speed().abs() < f32::MIN_POSITIVE);

        metrics.step(&point(2)).unwrap();
        assert!(events().len() > before.len() && holds(&events(), "kl/tokens_per_second"));
        assert!(metrics.speed() > 0.0);
        let files = crate::artifact::checkpoint::files_in(&folder).unwrap();
        let read = |name| texts::read_jsonl::<Point>("curve", &files, name).unwrap();
        assert_eq!(read(FILE), [point(1), point(2)]);
        assert_eq!(texts::read_jsonl::<Measured>("curve", &files, MEASURED).unwrap(), [measured]);
    }
}
