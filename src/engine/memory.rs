//! How much memory a running stage takes, as far as Linux tells.
//!
//! Stages share the process, so the figure is the process's peak while the stage ran: exact when it ran alone, an upper bound
//! otherwise. Elsewhere than on Linux there is none.

use std::{
    fs,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// Attempts that run now.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Follows the memory of one attempt.
pub(crate) struct Watch {
    /// The most that processes which the stage started took together.
    pub(crate) children: AtomicU64,
}

impl Watch {
    /// Starts to follow.
    pub(crate) fn start() -> Self {
        if RUNNING.fetch_add(1, Ordering::SeqCst) == 0 {
            // Sets the kernel's high-water mark back; where that is refused the mark is that of the whole run.
            drop(fs::write("/proc/self/clear_refs", "5"));
        }
        Self { children: AtomicU64::new(0) }
    }

    /// The peak in bytes: of the processes that the stage started if there were any, else of this one.
    pub(crate) fn peak(&self) -> Option<u64> {
        match self.children.load(Ordering::Relaxed) {
            0 => high_water(&fs::read_to_string("/proc/self/status").ok()?),
            children => Some(children),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_this_process_is_seen() {
        let watch = Watch::start();
        let block = vec![1_u8; 64 << 20];
        let peak = watch.peak().expect("Linux tells");
        assert!(peak > 64 << 20 && block[5] == 1, "{peak}");
        watch.children.store(5, Ordering::Relaxed);
        assert_eq!(watch.peak(), Some(5));
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(high_water("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(high_water("Name:\tx\n"), None);
    }
}
