//! The manifest's syntax: names, kinds, untouched tables with their places. Knows no stage.
//!
//! Layers, from low to high: the files that `extends` names, the manifest itself, the chosen profile, `--set`. Upper values
//! win, table by table. Then variables are put into strings. What remains of a stage's table after its common keys is
//! handed on as it stands, every value with the place that wrote it.

mod cache;
pub mod entry;
pub mod error;
mod executor;
mod limit;
mod merge;
pub mod near;
mod set;
mod shift;
pub mod source;
mod syntax;
pub mod vars;

use std::path::PathBuf;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub use cache::Cache;
pub use entry::{Axis, COMMON, Entry};
pub use error::{Fault, Mistake};
pub use executor::Slurm;
pub use source::{Options, Source, Sources, Span};
pub use vars::Vars;

/// A TOML value with its place.
pub type Value<'s> = Spanned<DeValue<'s>>;

/// A manifest after all layers and variables.
#[derive(Debug)]
pub struct Manifest<'s> {
    /// The texts it was made of.
    pub sources: &'s Sources,
    /// The pipeline's name, if one was given.
    pub name: Option<String>,
    /// The seed of stages that give none.
    pub seed: u64,
    /// The variables.
    pub vars: Vars<'s>,
    /// The cache that is shared.
    pub cache: Cache,
    /// The cluster that runs the stages.
    pub slurm: Option<Slurm>,
    /// The stages in the order of the text.
    pub stages: Vec<Entry<'s>>,
}

impl<'s> Manifest<'s> {
    /// The folder that a path written at `place` is relative to. A path out of a variable belongs to the file that gives the
    /// variable its value.
    pub fn folder(&self, place: &Span) -> PathBuf {
        let next = |place: &Span| self.vars.origins(self.sources.text(place)).into_iter().next();
        let mut place = place.clone();
        // Variables that use each other in a circle are a mistake, and mistakes are looked for to the end.
        for _ in 0..self.vars.len() {
            let Some((_, origin)) = next(&place) else { break };
            place = origin;
        }
        self.sources.folder(&place)
    }

    /// Parses and merges the texts. `None` if one of them is not TOML; otherwise the good parts, and all faults.
    pub fn parse(sources: &'s Sources) -> (Option<Self>, Vec<Fault>) {
        let mut faults = Vec::new();
        let mut root = DeTable::new();
        for file in sources.files().iter().rev() {
            let (table, errors) = DeTable::parse_recoverable(&file.text);
            faults.extend(syntax::faults(file, &errors));
            root = merge::manifest(root, shift::table(table.into_inner(), file.start));
        }
        if !faults.is_empty() || sources.files().is_empty() {
            return (None, faults);
        }
        root = with_profile(root, sources, &mut faults);
        for set in sources.sets() {
            if let Err(fault) = set::apply(&mut root, set) {
                faults.push(*fault);
            }
        }
        let manifest = Self::from_root(root, sources, &mut faults);
        (Some(manifest), faults)
    }

    fn from_root(mut root: DeTable<'s>, sources: &'s Sources, faults: &mut Vec<Fault>) -> Self {
        check_keys(
            &root,
            "the manifest",
            &["pipeline", "vars", "cache", "executor", "profile", "stage"],
            faults,
        );
        let vars = Vars::new(sources, take_table(&mut root, "vars", "[vars]", faults), faults);
        let header = take_table(&mut root, "pipeline", "[pipeline]", faults);
        check_keys(&header, "[pipeline]", &["name", "extends", "seed"], faults);
        let mut name = None;
        let mut seed = 0;
        for (key, value) in header {
            let what = format!("`{}`", key.get_ref());
            match key.get_ref().as_ref() {
                "name" => {
                    name = vars.expand(value, faults).and_then(|value| entry::string(&what, &value, faults));
                }
                "seed" => {
                    let value = vars.expand(value, faults);
                    seed = value.and_then(|value| entry::seed(&what, &value, faults)).unwrap_or(0);
                }
                "extends" => drop(entry::string(&what, &value, faults)),
                _ => {}
            }
        }
        let table = take_table(&mut root, "cache", "[cache]", faults);
        check_keys(&table, "[cache]", &cache::KEYS, faults);
        let section = cache::Section::new(table, &vars, faults);
        let slurm = executor::read(take_table(&mut root, "executor", "[executor]", faults), &vars, faults);
        let no_stages =
            root.get("stage").is_none_or(|stages| stages.get_ref().as_table().is_some_and(DeTable::is_empty));
        if no_stages {
            let fault = Fault::at(0..0, Mistake::NoStages);
            faults.push(fault.hint("begin one with `[stage.NAME]`; `mla-run stages` lists the kinds"));
        }
        let tables = take_table(&mut root, "stage", "[stage]", faults);
        let stages = tables.into_iter().filter_map(|(key, value)| Entry::new(&key, value, &vars, faults));
        let stages = stages.collect();
        let mut manifest = Self { sources, name, seed, vars, cache: Cache::default(), slurm, stages };
        manifest.cache = section.settle(&manifest);
        manifest
    }

    /// A stage by name.
    pub fn stage(&self, name: &str) -> Option<&Entry<'s>> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

const PROFILE_KEYS: &[&str] = &["vars", "cache", "executor", "stage"];

/// Lays the chosen profile over the rest, and checks the form of all of them.
fn with_profile<'s>(mut root: DeTable<'s>, sources: &'s Sources, faults: &mut Vec<Fault>) -> DeTable<'s> {
    let profiles = take_table(&mut root, "profile", "[profile]", faults);
    let mut known: Vec<String> = Vec::new();
    let mut chosen = None;
    for (key, value) in profiles {
        let section = format!("[profile.{}]", key.get_ref());
        known.push(key.get_ref().to_string());
        let Some(table) = entry::table(&section, value, faults) else { continue };
        check_keys(&table, &section, PROFILE_KEYS, faults);
        if sources.profile().is_some_and(|profile| profile.text == *key.get_ref()) {
            // What is unknown has been told; as a key of the manifest it would be told again.
            let known = table.into_iter().filter(|(key, _)| PROFILE_KEYS.contains(&key.get_ref().as_ref()));
            chosen = Some(known.collect());
        }
    }
    match (sources.profile(), chosen) {
        (Some(_), Some(profile)) => merge::manifest(root, profile),
        (Some(wanted), None) if !known.contains(&wanted.text) => {
            let place = wanted.start..wanted.start + wanted.text.len();
            let hint = near::suggest(&wanted.text, "profiles", known.iter().map(String::as_str));
            faults.push(Fault::at(place, Mistake::UnknownProfile(wanted.text.clone())).hint(hint));
            root
        }
        _ => root,
    }
}

fn check_keys(table: &DeTable<'_>, section: &str, known: &[&str], faults: &mut Vec<Fault>) {
    for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
        let name = key.get_ref().to_string();
        let hint = near::suggest(&name, "keys", known.iter().copied());
        faults.push(
            Fault::at(key.span(), Mistake::UnknownKey { key: name, section: section.to_owned() }).hint(hint),
        );
    }
}

fn take_table<'s>(root: &mut DeTable<'s>, key: &str, section: &str, faults: &mut Vec<Fault>) -> DeTable<'s> {
    root.remove(key).and_then(|value| entry::table(section, value, faults)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
