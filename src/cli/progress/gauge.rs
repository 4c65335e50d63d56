//! Figures that change while one looks: a rate, and the memory of this process. Knows no stage and no terminal.

use std::{
    fs,
    time::{Duration, Instant},
};

/// How many seconds ago half of what a rate knows was measured.
const HALF: f64 = 10.0;

/// Units a second, where what was done lately counts more.
#[derive(Debug, Default)]
pub(super) struct Rate {
    smooth: f64,
    at: f64,
    done: u64,
}

impl Rate {
    /// Takes how much is done so many seconds after the start; returns the rate once there is one.
    pub(super) fn measure(&mut self, seconds: f64, done: u64) -> Option<f64> {
        const SHORTEST: f64 = 0.2;
        if seconds - self.at >= SHORTEST {
            let new = done.saturating_sub(self.done) as f64 / (seconds - self.at);
            let keep = 0.5_f64.powf((seconds - self.at) / HALF);
            self.smooth = self.smooth * keep + new * (1.0 - keep);
            (self.at, self.done) = (seconds, done);
        }
        // At first nothing was measured, which is no rate of zero: that part is divided out.
        let measured = 1.0 - 0.5_f64.powf(self.at / HALF);
        (done > 0 && measured > 0.0).then(|| self.smooth / measured).filter(|rate| *rate > 0.0)
    }
}

/// The memory that this process has now.
pub(super) struct Memory {
    read: fn() -> Option<u64>,
    last: Option<(Instant, Option<u64>)>,
}

impl Memory {
    /// How long a figure is shown before it is read again.
    const EVERY: Duration = Duration::from_millis(500);

    pub(super) fn new() -> Self {
        Self { read: resident, last: None }
    }

    /// Bytes, where the system tells.
    pub(super) fn now(&mut self) -> Option<u64> {
        match self.last {
            Some((at, bytes)) if at.elapsed() < Self::EVERY => bytes,
            _ => {
                let bytes = (self.read)();
                self.last = Some((Instant::now(), bytes));
                bytes
            }
        }
    }
}

fn resident() -> Option<u64> {
    of_status(&fs::read_to_string("/proc/self/status").ok()?)
}

fn of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_steady_rate_is_seen_at_once() {
        let mut rate = Rate::default();
        assert_eq!(rate.measure(0.0, 0), None);
        assert_eq!(rate.measure(0.1, 1), None, "too early");
        for i in 1..20 {
            let found = rate.measure(f64::from(i), 5 * i as u64).unwrap();
            assert!((found - 5.0).abs() < 1e-9, "{found}");
        }
    }

    #[test]
    fn a_new_pace_counts_more_than_an_old_one() {
        let mut rate = Rate::default();
        rate.measure(10.0, 100);
        let found = rate.measure(30.0, 300 + 1600).unwrap();
        assert!(found > 70.0 && found < 90.0, "{found}");
        let stopped = rate.measure(130.0, 1900).unwrap();
        assert!(stopped < 0.2, "{stopped}");
    }

    #[test]
    fn nothing_done_is_no_rate() {
        let mut rate = Rate::default();
        assert_eq!((rate.measure(1.0, 0), rate.measure(60.0, 0)), (None, None));
    }

    #[test]
    fn memory_is_read_twice_a_second_at_most() {
        static READ: AtomicU64 = AtomicU64::new(0);
        let mut memory = Memory { read: || Some(READ.fetch_add(1, Ordering::Relaxed)), last: None };
        assert!((0..100).all(|_| memory.now() == Some(0)));
        memory.last = Instant::now().checked_sub(Memory::EVERY).map(|at| (at, Some(0)));
        assert_eq!(memory.now(), Some(1));
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(of_status("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(of_status("Name:\tx\n"), None);
        assert!(resident().is_none_or(|bytes| bytes > 1 << 20));
    }
}
