//! `verify`: makes stages again in a cache of their own and compares the bytes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    args::{ChangeArgs, Format, PlaceArgs, SelectArgs, Words},
    error::CliError,
    exit::Exit,
    output,
    paint::Colour,
    project::Project,
    stage::recall,
};
use crate::{
    engine::summary::StageSummary,
    store::{Digest, Record, Store},
};

/// Make stages again, aside, and compare the bytes with those in the cache
///
/// Without stages, the whole pipeline. The cache is read and never written.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The stages [default: all], and the manifest unless the last one run is meant
    #[arg(value_name = "STAGE|PIPELINE.toml")]
    words: Vec<String>,
    /// Make them twice, with other numbers of threads and jobs, time zone, locale and order of folders, and compare those too
    #[arg(long)]
    twice: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// The surroundings of one attempt.
struct Surroundings {
    threads: &'static str,
    jobs: &'static str,
    zone: &'static str,
    locale: &'static str,
    reversed: bool,
}

const PLAIN: Surroundings =
    Surroundings { threads: "2", jobs: "2", zone: "UTC", locale: "C", reversed: false };
/// Few agree with this one: another date for most of the day, and a locale in which `i` has no dot above its capital.
const STRANGE: Surroundings = Surroundings {
    threads: "1",
    jobs: "7",
    zone: "Pacific/Kiritimati",
    locale: "tr_TR.UTF-8",
    reversed: true,
};

/// What came of one output.
#[derive(Debug, Serialize)]
struct Compared {
    stage: String,
    port: String,
    numerics: &'static str,
    same: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<String>,
}

#[derive(Serialize)]
struct Report {
    status: &'static str,
    outputs: Vec<Compared>,
    remarks: Vec<String>,
}

/// The part of a run's summary that is compared.
#[derive(Deserialize)]
struct Made {
    stages: Vec<MadeStage>,
}

#[derive(Deserialize)]
struct MadeStage {
    name: String,
    why: String,
    outputs: BTreeMap<String, MadeOutput>,
}

#[derive(Deserialize)]
struct MadeOutput {
    digest: Digest,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let words = Words::new(&self.words);
        let (pipeline, change) = match words.pipeline {
            Some(pipeline) => (pipeline, self.change.clone()),
            None => recall(self.place.cache.as_deref(), &self.change)?,
        };
        let select = SelectArgs { only: words.rest.clone(), ..SelectArgs::default() };
        let mut project = Project::open(&pipeline, &change, &self.place, &select)?;
        project.require_reads()?;
        let meant = project.meant()?;
        let stages = project.engine().plan()?.stages;
        let (chosen, others): (Vec<StageSummary>, Vec<StageSummary>) =
            stages.into_iter().partition(|stage| meant.contains(&stage.name));
        if let Some(missing) = chosen.iter().find(|stage| stage.record.is_none()) {
            return Err(CliError::failed(format!(
                "stage `{}` is not in the cache: {}",
                missing.name, missing.why
            ))
            .hint("run the pipeline first; then there is something to compare with"));
        }
        let bench = Bench {
            pipeline: &pipeline,
            change: &change,
            device: &project.options.device,
            only: &words.rest,
        };
        let mut report = Report { status: "ok", outputs: Vec::new(), remarks: Vec::new() };
        let rounds: &[Surroundings] = if self.twice { &[PLAIN, STRANGE] } else { &[PLAIN] };
        for surroundings in rounds {
            let folder =
                tempfile::Builder::new().prefix("verify-").tempdir_in(project.store.root().join("tmp"));
            let folder =
                folder.map_err(|error| CliError::failed(format!("cannot make a folder: {error}")))?;
            let aside = Store::open(&folder.path().join("cache"))?;
            for record in others.iter().filter_map(|stage| stage.record.as_deref()) {
                aside.import(&project.store, record)?;
            }
            let made = bench.make(surroundings, folder.path(), &mut report.remarks)?;
            for stage in &chosen {
                let numerics = project.numerics(&stage.name);
                report.outputs.extend(compare(stage, &made, (&project.store, &aside), numerics)?);
            }
        }
        let same = report.outputs.iter().all(|output| output.same);
        report.status = if same { "ok" } else { "failed" };
        match self.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::text(&told(&report))?,
        }
        Ok(if same { Exit::OK } else { Exit::FAILED })
    }
}

/// What is made, whatever the surroundings.
struct Bench<'a> {
    pipeline: &'a Path,
    change: &'a ChangeArgs,
    device: &'a str,
    only: &'a [String],
}

impl Bench<'_> {
    /// Runs the stages in a process of their own.
    fn make(
        &self,
        around: &Surroundings,
        folder: &Path,
        remarks: &mut Vec<String>,
    ) -> Result<Made, CliError> {
        let failed =
            |what: &str, why: &dyn std::fmt::Display| CliError::failed(format!("cannot {what}: {why}"));
        let program = std::env::current_exe().map_err(|error| failed("find this program", &error))?;
        let mut pipeline = std::path::absolute(self.pipeline).unwrap_or_else(|_| self.pipeline.to_owned());
        let mut reversed = None;
        if around.reversed {
            match Reversed::mount(pipeline.parent().unwrap_or(Path::new("/")), &folder.join("reversed")) {
                Ok(mount) => {
                    pipeline = mount.0.join(pipeline.file_name().unwrap_or_default());
                    reversed = Some(mount);
                }
                Err(why) => remarks.push(format!("the order of folders was not changed: {why}")),
            }
        }
        let mut process = Process::new(program);
        process.arg("run").arg(&pipeline).arg("--cache").arg(folder.join("cache"));
        process.args(["--format", "json", "--device", self.device, "--jobs", around.jobs, "--no-lock"]);
        for set in &self.change.set {
            process.args(["--set", set]);
        }
        if let Some(profile) = &self.change.profile {
            process.args(["--profile", profile]);
        }
        if !self.only.is_empty() {
            process.args(["--only", &self.only.join(",")]);
        }
        process.env("RAYON_NUM_THREADS", around.threads).env("TZ", around.zone).env("LC_ALL", around.locale);
        let output =
            process.stderr(Stdio::inherit()).output().map_err(|error| failed("start a run", &error))?;
        drop(reversed);
        let line = output.stdout.split(|&b| b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
        serde_json::from_slice(line).map_err(|_| failed("run the stages", &"see above"))
    }
}

/// A folder shown with its entries in reverse order, by disorderfs.
struct Reversed(PathBuf);

impl Reversed {
    fn mount(folder: &Path, at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let mut mount = Process::new("disorderfs");
        mount.args(["--shuffle-dirents=no", "--reverse-dirents=yes", "--multi-user=no"]).arg(folder).arg(at);
        match mount.stdout(Stdio::null()).output() {
            Err(_) => Err("disorderfs is not installed".to_owned()),
            Ok(output) if output.status.success() => Ok(Self(at.to_owned())),
            Ok(output) => Err(format!("disorderfs says {}", String::from_utf8_lossy(&output.stderr).trim())),
        }
    }
}

impl Drop for Reversed {
    fn drop(&mut self) {
        // What stays mounted would keep the folder from being removed, and then that is told.
        drop(Process::new("fusermount").arg("-u").arg(&self.0).output());
    }
}

/// A stage's outputs against what was made again.
fn compare(
    stage: &StageSummary,
    made: &Made,
    (cache, aside): (&Store, &Store),
    numerics: &'static str,
) -> Result<Vec<Compared>, CliError> {
    let again = made.stages.iter().find(|made| made.name == stage.name);
    let record = stage.record.as_deref().expect("chosen stages have one");
    let mut found = Vec::new();
    for (port, tree) in &record.outputs {
        let output = again.and_then(|again| again.outputs.get(port));
        let difference = match output {
            Some(output) if output.digest == tree.digest => None,
            Some(_) => Some(differing_files(record, port, cache, aside, stage)?),
            None => Some(again.map_or_else(|| "was not made".to_owned(), |again| again.why.clone())),
        };
        let (stage, port) = (stage.name.clone(), port.clone());
        found.push(Compared { stage, port, numerics, same: difference.is_none(), difference });
    }
    Ok(found)
}

/// Which files differ, and from which byte on.
fn differing_files(
    record: &Record,
    port: &str,
    cache: &Store,
    aside: &Store,
    stage: &StageSummary,
) -> Result<String, CliError> {
    let again = stage.key.map_or(Ok(None), |key| aside.record(&key))?;
    let Some(again) = again.as_ref().and_then(|again| again.outputs.get(port)) else {
        return Ok("its inputs have other bytes".to_owned());
    };
    let old: BTreeMap<&str, Digest> = record.outputs[port].files.iter().map(|f| (&*f.name, f.blob)).collect();
    let new: BTreeMap<&str, Digest> = again.files.iter().map(|f| (&*f.name, f.blob)).collect();
    let mut parts = Vec::new();
    for name in old.keys().chain(new.keys()).collect::<std::collections::BTreeSet<_>>() {
        match (old.get(name), new.get(name)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => {
                let read = |path: PathBuf| fs::read(&path).unwrap_or_default();
                let (a, b) = (read(cache.blob_path(a)), read(aside.blob_path(b)));
                let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
                parts.push(format!("{name} differs from byte {at} on"));
            }
            (Some(_), None) => parts.push(format!("{name} is gone")),
            (None, _) => parts.push(format!("{name} is new")),
        }
    }
    Ok(parts.join(", "))
}

fn told(report: &Report) -> String {
    let palette = output::palette();
    let mut text = String::new();
    for output in &report.outputs {
        let Compared { stage, port, numerics, .. } = output;
        let word = match &output.difference {
            None => palette.paint(Colour::Good, "same bytes").to_string(),
            Some(what) => palette.paint(Colour::Bad, &format!("other bytes: {what}")).to_string(),
        };
        let _infallible = writeln!(text, "{stage}.{port} ({numerics}): {word}");
    }
    for remark in &report.remarks {
        let _infallible = writeln!(text, "{}", palette.paint(Colour::Warning, remark));
    }
    text
}
