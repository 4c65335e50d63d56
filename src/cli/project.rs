//! From the words of the command line to a graph: the manifest, its cache folder, the stages that are meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{
    args::{ChangeArgs, PlaceArgs, SelectArgs},
    error::CliError,
};
use crate::{
    device::Device,
    engine::{
        self,
        executor::Engine,
        graph::{Graph, NodeId},
        options::{Force, Mode, Select},
    },
    manifest::{Cache, Options, Slurm, near::suggest},
    plan::{self, Plan, Rejected},
    stage::table::STAGES,
    store::Store,
};

/// Reads and plans a manifest.
pub(super) fn open(pipeline: &Path, change: &ChangeArgs) -> Result<Plan, CliError> {
    let options = Options { profile: change.profile.clone(), set: change.set.clone() };
    Ok(plan::open(pipeline, &options, STAGES)?)
}

/// The device, and what of it enters keys.
pub(super) fn device(name: &str) -> Result<(Device, String), CliError> {
    let usage = |error: crate::device::DeviceError| CliError::usage(error.to_string());
    let device: Device = name.parse().map_err(usage)?;
    Ok((device, device.fingerprint().map_err(usage)?))
}

/// The cache folder: as given; else the nearest `cache` folder at or above the manifest that is one (it holds `FORMAT` or
/// `CACHEDIR.TAG`); else `cache` in the working directory.
pub(super) fn cache(given: Option<&Path>, pipeline: Option<&Path>) -> PathBuf {
    if let Some(given) = given {
        return given.to_owned();
    }
    let start = std::path::absolute(pipeline.unwrap_or(Path::new("pipeline.toml"))).unwrap_or_default();
    let is_cache = |dir: &PathBuf| ["FORMAT", "CACHEDIR.TAG"].iter().any(|name| dir.join(name).is_file());
    let found = start.ancestors().skip(1).map(|dir| dir.join("cache")).find(is_cache);
    found.unwrap_or_else(|| "cache".into())
}

/// Stages by what the user may call them: a name, or a name without its variant or its shard, which means all of them.
pub(super) struct Names(BTreeMap<String, Vec<String>>);

impl Names {
    fn new(plan: &Plan) -> Self {
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for node in &plan.nodes {
            for called in BTreeSet::from([&node.name, &node.variant, &node.stage]) {
                names.entry(called.clone()).or_default().push(node.name.clone());
            }
        }
        Self(names)
    }

    /// The stages of one name.
    fn find(&self, name: &str) -> Result<&[String], CliError> {
        self.0.get(name).map(Vec::as_slice).ok_or_else(|| {
            let hint = suggest(name, "stages", self.0.keys().map(String::as_str));
            CliError::usage(format!("there is no stage `{name}`")).hint(hint)
        })
    }

    /// The one stage of a name.
    pub(super) fn one(&self, name: &str) -> Result<&str, CliError> {
        match self.find(name)? {
            [one] => Ok(one),
            several => {
                if let Some(read) = several.iter().find(|one| *one == name) {
                    return Ok(read); // a stage with shards: what others read of it
                }
                let list = several.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                Err(CliError::usage(format!("`{name}` has several variants"))
                    .hint(format!("name one: {list}")))
            }
        }
    }

    fn all(&self, names: &[String]) -> Result<Vec<String>, CliError> {
        let mut found = Vec::new();
        for name in names {
            found.extend_from_slice(self.find(name)?);
        }
        Ok(found)
    }

    fn select(&self, args: &SelectArgs) -> Result<Select, CliError> {
        Ok(Select { only: self.all(&args.only)?, until: self.all(&args.until)?, from: self.all(&args.from)? })
    }

    fn force(&self, args: &SelectArgs) -> Result<Force, CliError> {
        Ok(match &args.force[..] {
            [] => Force::None,
            names if names.iter().any(|name| name == "all") => Force::All,
            names => Force::Stages(self.all(names)?.into_iter().collect()),
        })
    }
}

/// A graph, its cache and what is asked of it.
pub(super) struct Project {
    pub graph: Graph,
    pub store: Store,
    pub options: engine::options::Options,
    pub names: Names,
    /// What the manifest says about the shared cache.
    pub shared: Cache,
    /// The cluster that the manifest names.
    pub slurm: Option<Slurm>,
    /// Stages whose own files cannot be read, with what is wrong.
    pub unreadable: BTreeMap<NodeId, String>,
    rejected: Option<Rejected>,
}

impl Project {
    /// Opens a manifest and its cache.
    pub(super) fn open(
        pipeline: &Path,
        change: &ChangeArgs,
        place: &PlaceArgs,
        select: &SelectArgs,
    ) -> Result<Self, CliError> {
        let plan = open(pipeline, change)?;
        let (device, fingerprint) = device(&place.device)?;
        let names = Names::new(&plan);
        let options = engine::options::Options {
            pipeline: plan.name.clone(),
            select: names.select(select)?,
            force: names.force(select)?,
            device: device.to_string(),
            fingerprint,
            hub: super::hub::open(),
            ..engine::options::Options::default()
        };
        let graph = plan.graph();
        let (shared, slurm) = (plan.cache.clone(), plan.slurm.clone());
        let faults = plan.nodes.iter().enumerate();
        let unreadable = faults
            .filter_map(|(i, node)| Some((NodeId(i), node.reads.as_ref().err()?.error.to_string())))
            .collect();
        let rejected = plan.require_reads().err();
        let store = Store::open(&cache(place.cache.as_deref(), Some(pipeline)))?;
        Ok(Self { graph, store, options, names, shared, slurm, unreadable, rejected })
    }

    /// Refuses to go on if a stage that is meant cannot read its own files.
    pub(super) fn require_reads(&mut self) -> Result<(), CliError> {
        let modes = self.options.select.modes(&self.graph)?;
        let meant = self.unreadable.keys().any(|id| modes[id.0] != Mode::Off);
        self.rejected.take_if(|_| meant).map_or(Ok(()), |rejected| Err(rejected.into()))
    }

    /// The names of the stages that may run.
    pub(super) fn meant(&self) -> Result<BTreeSet<String>, CliError> {
        let modes = self.options.select.modes(&self.graph)?;
        let meant = |id: &&NodeId| modes[id.0] == Mode::Run;
        let names = self.graph.order().iter().filter(meant).map(|&id| self.graph.node(id).name.clone());
        Ok(names.collect())
    }

    /// How far a stage's bytes can be trusted on another machine.
    pub(super) fn numerics(&self, stage: &str) -> &'static str {
        self.graph.find(stage).map_or("", |id| self.graph.node(id).action.numerics().as_str())
    }

    pub(super) fn engine(&self) -> Engine<'_> {
        Engine { store: &self.store, graph: &self.graph, options: &self.options }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_cache_is_the_nearest_one_above_the_manifest() {
        let dir = space(&[("cache/CACHEDIR.TAG", ""), ("a/cache/FORMAT", ""), ("a/b/cache/other", "")]);
        let check = |manifest: &str, expected: &str| {
            assert_eq!(cache(None, Some(&dir.path().join(manifest))), dir.path().join(expected));
        };
        check("p.toml", "cache");
        check("x/p.toml", "cache");
        check("a/b/c/p.toml", "a/cache");
        assert_eq!(cache(Some(Path::new("given")), None), Path::new("given"));
        let bare = tempfile::tempdir().unwrap();
        assert_eq!(cache(None, Some(&bare.path().join("p.toml"))), Path::new("cache"));
    }

    const CHAIN: &str = r#"
        [stage.a]
        kind = "exec"
        argv = ["true"]
        outputs = ["x"]
        [stage.b]
        kind = "exec"
        argv = ["true", "{in.a}"]
        inputs = { a = "a" }
        outputs = ["x"]
        matrix = { seed = [1, 2] }
        [stage.c]
        kind = "exec"
        argv = ["true", "{in.a}"]
        inputs = { a = "a" }
        outputs = ["x"]
    "#;

    #[test]
    fn a_name_without_its_variant_is_all_variants() {
        let dir = space(&[("p.toml", CHAIN)]);
        let names = Names::new(&open(&dir.path().join("p.toml"), &ChangeArgs::default()).unwrap());
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let args =
            SelectArgs { only: list(&["b", "c"]), force: list(&["b[seed=2]"]), ..SelectArgs::default() };
        assert_eq!(names.select(&args).unwrap().only, ["b[seed=1]", "b[seed=2]", "c"]);
        assert_eq!(names.force(&args).unwrap(), Force::Stages(["b[seed=2]".to_owned()].into()));
        let all = SelectArgs { force: list(&["c", "all"]), ..SelectArgs::default() };
        assert_eq!(names.force(&all).unwrap(), Force::All);
    }

    #[test]
    fn a_name_without_its_shard_is_all_parts_and_the_one_that_is_read() {
        let shards = CHAIN.replace("argv = [\"true\"]", "argv = [\"true\", \"{shard}\"]\nshards = 2");
        let dir = space(&[("p.toml", &shards)]);
        let names = Names::new(&open(&dir.path().join("p.toml"), &ChangeArgs::default()).unwrap());
        assert_eq!(names.find("a").unwrap(), ["a[shard=0]", "a[shard=1]", "a"]);
        assert_eq!(names.find("a[shard=1]").unwrap(), ["a[shard=1]"]);
        assert_eq!(names.one("a").unwrap(), "a");
        let both = shards
            .replace("seed = [1, 2] }", "seed = [1, 2] }\nshards = 1")
            .replace("\"{in.a}\"", "\"{in.a}\", \"{shard}\"");
        std::fs::write(dir.path().join("p.toml"), both.replace("[stage.c]", "[stage.c]\nshards = 1"))
            .unwrap();
        let names = Names::new(&open(&dir.path().join("p.toml"), &ChangeArgs::default()).unwrap());
        assert_eq!(names.find("b[seed=2]").unwrap(), ["b[seed=2,shard=0]", "b[seed=2]"]);
        assert_eq!(names.find("b").unwrap().len(), 4);
    }

    #[test]
    fn names_that_do_not_fit() {
        let dir = space(&[("p.toml", CHAIN)]);
        let names = Names::new(&open(&dir.path().join("p.toml"), &ChangeArgs::default()).unwrap());
        let check = |result: Result<&str, CliError>, expected: &str| {
            let Err(CliError::Usage { message, hint }) = result else { panic!("{result:?}") };
            assert_eq!(format!("{message}; {}", hint.unwrap()), expected);
        };
        check(names.one("b"), "`b` has several variants; name one: `b[seed=1]`, `b[seed=2]`");
        check(names.one("d"), "there is no stage `d`; did you mean `a`?");
    }
}
