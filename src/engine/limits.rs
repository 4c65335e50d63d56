//! What a stage may use and how often it is tried. None of it enters a key: a stage that succeeds on its third attempt has made the
//! same bytes as one that succeeds on its first.

use std::{collections::BTreeSet, time::Duration};

use super::action::Class;

/// What a stage may use and how often it is tried.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// How long one attempt may take.
    pub timeout: Option<Duration>,
    /// When and how often a failed attempt is repeated.
    pub retry: Retry,
    /// Bytes of main memory that it keeps within, if it can.
    pub memory: Option<u64>,
    /// What it needs of a cluster.
    pub resources: Resources,
}

/// When and how often a failed attempt is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts after the first.
    pub times: u32,
    /// The pause before the second attempt; it doubles with each.
    pub backoff: Duration,
    /// The failures that are worth another attempt.
    pub on: BTreeSet<Class>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { times: 0, backoff: Duration::from_secs(1), on: Class::ALL.into() }
    }
}

impl Retry {
    /// The pause after attempt number `attempt` (from 1) failed, if there is to be another one.
    pub fn pause(&self, attempt: u32, class: Option<Class>) -> Option<Duration> {
        const LONGEST: Duration = Duration::from_hours(1);
        let worth = class.is_some_and(|class| self.on.contains(&class));
        let doubled = self.backoff.saturating_mul(2_u32.saturating_pow(attempt - 1));
        (worth && attempt <= self.times).then(|| doubled.min(LONGEST))
    }
}

/// What a stage needs of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// Devices.
    pub gpus: Option<u32>,
    /// Processor cores.
    pub cpus: Option<u32>,
    /// Main memory in bytes.
    pub memory: Option<u64>,
    /// Wall-clock time.
    pub time: Option<Duration>,
    /// The queue.
    pub partition: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end_with_the_attempts() {
        let retry = Retry { times: 3, backoff: Duration::from_secs(2), ..Retry::default() };
        let pauses: Vec<_> = (1..=4).map(|n| retry.pause(n, Some(Class::Io)).map(|p| p.as_secs())).collect();
        assert_eq!(pauses, [Some(2), Some(4), Some(8), None]);
        let many = Retry { times: 99, ..retry };
        assert_eq!(many.pause(80, Some(Class::Io)), Some(Duration::from_hours(1)), "an hour at most");
    }

    #[test]
    fn only_declared_classes_are_tried_again() {
        let retry = Retry { times: 1, on: [Class::Killed].into(), ..Retry::default() };
        assert_eq!(retry.pause(1, Some(Class::Io)), None);
        assert_eq!(retry.pause(1, None), None, "a fault of the stage itself comes back every time");
        assert!(retry.pause(1, Some(Class::Killed)).is_some());
    }
}
