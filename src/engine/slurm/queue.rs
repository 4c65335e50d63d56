//! Questions to the scheduler: which jobs go on, and how large an array may be.

use std::{collections::BTreeMap, fmt, process::Command, str::FromStr};

use crate::engine::action::Class;

/// A task of an array job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) task: u32,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.id, self.task)
    }
}

impl FromStr for Job {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (id, task) = text.split_once('_').ok_or(())?;
        Ok(Self { id: id.parse().map_err(drop)?, task: task.parse().map_err(drop)? })
    }
}

/// What the scheduler says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) state: String,
    reason: String,
}

impl Seen {
    /// Whether the job waits or runs, or will again.
    pub(super) fn goes_on(&self) -> bool {
        const GOING: [&str; 12] = [
            "PENDING",
            "CONFIGURING",
            "RUNNING",
            "COMPLETING",
            "SUSPENDED",
            "STOPPED",
            "RESIZING",
            "REQUEUED",
            "REQUEUE_HOLD",
            "REQUEUE_FED",
            "SIGNALING",
            "STAGE_OUT",
        ];
        GOING.contains(&&*self.state)
    }

    /// What ended a job that left no result, where another one may have better luck.
    pub(super) fn class(&self) -> Option<Class> {
        match &*self.state {
            "OUT_OF_MEMORY" => Some(Class::Memory),
            "TIMEOUT" | "DEADLINE" => Some(Class::Timeout),
            "FAILED" | "NODE_FAIL" | "BOOT_FAIL" | "PREEMPTED" | "REVOKED" | "LAUNCH_FAILED" => {
                Some(Class::Killed)
            }
            _ => None, // somebody cancelled it, or it says that it succeeded
        }
    }

    pub(super) fn words(&self, job: Job) -> String {
        match &*self.state {
            "RUNNING" => format!("job {job} runs"),
            state => format!("job {job}: {} ({})", state.to_lowercase(), self.reason),
        }
    }
}

/// What the scheduler knows of jobs, in one question. Those that it does not know are left out.
pub(super) fn ask<'a>(jobs: impl Iterator<Item = &'a Job>) -> Result<BTreeMap<Job, Seen>, String> {
    let mut ids: Vec<u64> = jobs.map(|job| job.id).collect();
    ids.sort_unstable();
    ids.dedup();
    let list = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut squeue = Command::new("squeue");
    squeue.args(["--noheader", "--array", "--states", "all", "--format", "%i|%T|%r", "--jobs", &list]);
    let output = squeue.output().map_err(|error| format!("cannot start squeue: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !said.contains("Invalid job id") {
        return Err(format!("squeue failed: {}", said.trim()));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> BTreeMap<Job, Seen> {
    let line = |line: &str| {
        let mut parts = line.trim().split('|');
        let job = parts.next()?.parse().ok()?;
        let mut word = || parts.next().unwrap_or_default().to_owned();
        Some((job, Seen { state: word(), reason: word() }))
    };
    text.lines().filter_map(line).collect()
}

/// How many tasks an array may have: the site's limit, or Slurm's own where it cannot be asked.
pub(super) fn largest_array() -> u32 {
    const STANDARD: u32 = 1001;
    let output = Command::new("scontrol").args(["show", "config"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("MaxArraySize"));
    let size = line.and_then(|line| line.trim_matches([' ', '=']).parse().ok()).unwrap_or(STANDARD);
    // Indices go up to one less, and zero means that arrays are switched off.
    u32::max(size, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_squeue_prints_is_read_task_by_task() {
        let seen = parse(
            "12_0|RUNNING|None\n 12_1|PENDING|Resources\n12_[3-5]|PENDING|x\n13|RUNNING|None\n14_0|NODE_FAIL|NonZeroExitCode\n",
        );
        let all: Vec<String> =
            seen.iter().map(|(job, seen)| format!("{}: {}", seen.goes_on(), seen.words(*job))).collect();
        assert_eq!(
            all,
            [
                "true: job 12_0 runs",
                "true: job 12_1: pending (Resources)",
                "false: job 14_0: node_fail (NonZeroExitCode)",
            ]
        );
        let class = |state: &str| Seen { state: state.to_owned(), reason: String::new() }.class();
        assert_eq!(class("NODE_FAIL"), Some(Class::Killed));
        assert_eq!(class("OUT_OF_MEMORY"), Some(Class::Memory));
        assert_eq!((class("CANCELLED"), class("COMPLETED")), (None, None));
    }

    #[test]
    fn a_job_is_written_and_read_as_slurm_does() {
        let job = Job { id: 4711, task: 3 };
        assert_eq!("4711_3".parse(), Ok(job));
        assert_eq!(job.to_string(), "4711_3");
        assert_eq!("4711".parse::<Job>(), Err(()));
    }
}
