//! A run that stops, or is stopped, goes on from its checkpoint with the same bits.

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::*;
use crate::{
    artifact::Files,
    engine::action::{Checkpoints, Progress, Stop},
};

/// Checkpoints in a folder, and a stop after some steps.
struct Interrupted {
    dir: PathBuf,
    steps: AtomicU64,
    stop_after: u64,
    stop: Stop,
    published: Mutex<u32>,
}

fn interrupted(dir: PathBuf, stop_after: u64) -> Interrupted {
    let (steps, published) = (AtomicU64::new(0), Mutex::default());
    Interrupted { dir, steps, stop_after, stop: Stop::default(), published }
}

impl Checkpoints for Interrupted {
    fn latest(&self) -> std::io::Result<Option<Files>> {
        Ok(self.dir.exists().then(|| files_in(&self.dir).unwrap()))
    }
    fn publish(&self, dir: &Path) -> std::io::Result<()> {
        *self.published.lock().unwrap() += 1;
        std::fs::create_dir_all(&self.dir)?;
        files_in(dir)
            .unwrap()
            .iter()
            .try_for_each(|(name, path)| std::fs::copy(path, self.dir.join(name)).map(|_| ()))
    }
}

impl Progress for Interrupted {
    fn phase(&self, _: &str, _: Option<u64>, _: &str) {}
    fn advance(&self, _: u64) {}
    fn say(&self, _: &str) {}
    fn note(&self, _: &str) {
        if self.steps.fetch_add(1, Ordering::SeqCst) + 1 == self.stop_after {
            self.stop.raise();
        }
    }
}

#[test]
fn stopped_anywhere_and_resumed_ends_with_the_same_bytes() {
    let straight = bench();
    let held_out = HeldOut { keep: 3, every: 1000, ..healing().held_out };
    let healing = Distill { ema: Some(Finite(0.8)), held_out, ..healing() };
    straight.run(&healing).unwrap();
    for stop_after in [3, 14, 20, 33, 51] {
        let dir = tempfile::tempdir().unwrap();
        let resumed = bench();
        let state = |stop_after| interrupted(dir.path().join("checkpoint"), stop_after);
        let first = state(stop_after);
        let error = resumed.run_with(&healing, &first, &first, &first.stop).unwrap_err();
        assert!(matches!(error, Failure::Stopped), "{error}");
        assert!(*first.published.lock().unwrap() > 0);
        let second = state(u64::MAX);
        resumed.run_with(&healing, &second, &second, &second.stop).unwrap();
        assert_eq!(second.steps.load(Ordering::SeqCst), 60 - stop_after, "only the missing steps run");
        assert!(straight.bytes() == resumed.bytes(), "stopped after {stop_after}");
    }
}

#[test]
fn a_damaged_training_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("place.json"), "{").unwrap();
    let state = interrupted(dir.path().to_owned(), u64::MAX);
    let error = bench().run_with(&healing(), &state, &state, &state.stop).unwrap_err().to_string();
    assert!(error.contains("`place.json` is damaged"), "{error}");
}

#[test]
fn a_loss_that_is_no_number_is_told_with_its_batch_and_the_checkpoint_before_stays() {
    let dir = tempfile::tempdir().unwrap();
    let state = interrupted(dir.path().join("checkpoint"), u64::MAX);
    let wild = Distill {
        layerwise: None,
        self_fed: None,
        kl: phase(20, 1e30),
        clip: Finite(1e30),
        checkpoint_every: 1,
        held_out: HeldOut { tokens: 0, ..HeldOut::default() },
        ..healing()
    };
    let error = bench().run_with(&wild, &state, &state, &state.stop).unwrap_err().to_string();
    assert!(error.starts_with("kl step ") && error.contains("on the batch that begins with ["), "{error}");
    assert!(*state.published.lock().unwrap() > 0 && dir.path().join("checkpoint/place.json").exists());
}
