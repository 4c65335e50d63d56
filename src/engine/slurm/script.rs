//! The script of an array job. Pure text, so that it can be tested without a cluster.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use super::Settings;
use crate::{engine::limits::Resources, store::Digest};

/// One array job.
pub(super) struct Script<'a> {
    pub(super) settings: &'a Settings,
    pub(super) cache: &'a Path,
    pub(super) resources: &'a Resources,
    /// The file in the cache that lists the keys, one a line.
    pub(super) list: Digest,
    pub(super) count: usize,
    pub(super) name: &'a str,
}

/// Where a task's log lies; `%A_%a` stands for the job in a script.
pub(super) fn log(cache: &Path, job: &str) -> PathBuf {
    cache.join("job").join(format!("{job}.log"))
}

impl Script<'_> {
    /// The text for `sbatch`.
    pub(super) fn text(&self) -> String {
        let Resources { gpus, cpus, memory, time, partition } = self.resources;
        let mut text = String::from("#!/bin/sh\n");
        let mut option = |name: &str, value: &dyn std::fmt::Display| {
            let _infallible = writeln!(text, "#SBATCH --{name}={value}");
        };
        option("job-name", &self.name.replace(char::is_whitespace, "_"));
        let at_once = self.settings.at_once.map(|n| format!("%{n}")).unwrap_or_default();
        option("array", &format_args!("0-{}{at_once}", self.count - 1));
        option("output", &quoted(&log(self.cache, "%A_%a").to_string_lossy()));
        option("open-mode", &"append");
        // The batch shell itself becomes the worker, so that the signal reaches it.
        let lead = time.map_or(LEAD, |time| (time / 4).min(LEAD)).as_secs().max(1);
        option("signal", &format_args!("B:USR1@{lead}"));
        if let Some(partition) = partition.as_ref().or(self.settings.partition.as_ref()) {
            option("partition", partition);
        }
        if let Some(gpus) = gpus {
            option("gres", &format_args!("gpu:{gpus}"));
        }
        if let Some(cpus) = cpus {
            option("cpus-per-task", cpus);
        }
        if let Some(memory) = memory {
            option("mem", &format_args!("{}M", memory.div_ceil(1 << 20)));
        }
        if let Some(time) = time {
            option("time", &minutes(*time));
        }
        text += "#SBATCH --requeue\n";
        for arg in &self.settings.args {
            let _infallible = writeln!(text, "#SBATCH {arg}");
        }
        let list = self.cache.join("job").join(format!("{}.list", self.list));
        let words = [&self.settings.program, self.cache, &list].map(|path| quoted(&path.to_string_lossy()));
        let [program, cache, list] = words;
        let _infallible = writeln!(
            text,
            "exec {program} worker --cache {cache} --list {list} --index \"$SLURM_ARRAY_TASK_ID\""
        );
        text
    }
}

/// How long before its end a job is told to save what it has.
const LEAD: Duration = Duration::from_mins(2);

/// `--time` takes whole minutes.
fn minutes(time: Duration) -> u64 {
    time.as_secs().div_ceil(60).max(1)
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-%=".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            program: "/opt/my tools/mla-run".into(),
            partition: Some("low".into()),
            args: vec!["--account=lab".into()],
            at_once: Some(2),
            poll: Duration::from_secs(30),
        }
    }

    #[test]
    fn an_array_asks_for_what_its_stages_need() {
        let resources = Resources {
            gpus: Some(1),
            cpus: Some(8),
            memory: Some(64_000_000_000),
            time: Some(Duration::from_mins(90)),
            partition: Some("gpu".into()),
        };
        let list = Digest::of(b"list");
        let settings = settings();
        let cache = Path::new("/data/cache");
        let script =
            Script { settings: &settings, cache, resources: &resources, list, count: 3, name: "embed all" };
        let expected = format!(
            "#!/bin/sh\n\
             #SBATCH --job-name=embed_all\n\
             #SBATCH --array=0-2%2\n\
             #SBATCH --output=/data/cache/job/%A_%a.log\n\
             #SBATCH --open-mode=append\n\
             #SBATCH --signal=B:USR1@120\n\
             #SBATCH --partition=gpu\n\
             #SBATCH --gres=gpu:1\n\
             #SBATCH --cpus-per-task=8\n\
             #SBATCH --mem=61036M\n\
             #SBATCH --time=90\n\
             #SBATCH --requeue\n\
             #SBATCH --account=lab\n\
             exec '/opt/my tools/mla-run' worker --cache /data/cache --list /data/cache/job/{list}.list --index \"$SLURM_ARRAY_TASK_ID\"\n"
        );
        assert_eq!(script.text(), expected);
    }

    #[test]
    fn a_short_job_is_told_early_enough_and_nothing_is_asked_for_that_was_not_said() {
        let resources = Resources { time: Some(Duration::from_mins(1)), ..Resources::default() };
        let settings = Settings { partition: None, at_once: None, args: Vec::new(), ..settings() };
        let list = Digest::of(b"list");
        let cache = Path::new("/c");
        let text =
            Script { settings: &settings, cache, resources: &resources, list, count: 1, name: "a" }.text();
        assert!(text.contains("--signal=B:USR1@15\n") && text.contains("--array=0-0\n"), "{text}");
        for absent in ["partition", "gres", "cpus", "mem"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
