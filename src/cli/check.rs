//! `check`: whether a manifest is right, without looking at the cache.

use clap::Args;

use serde_json::json;

use super::{
    args::{Format, ManifestArgs},
    error::CliError,
    exit::Exit,
    output, project,
};

/// Check a manifest, and say all that is wrong with it
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let plan = project::open(&self.manifest.pipeline, &self.manifest.change)?;
        let (count, name) = (plan.nodes.len(), &plan.name);
        let plural = if count == 1 { "stage" } else { "stages" };
        let missing: Vec<String> = plan
            .nodes
            .iter()
            .filter_map(|node| Some(format!("{}: {}", node.name, node.reads.as_ref().err()?.error)))
            .collect();
        if self.format == Format::Json {
            output::json(&json!({ "status": "ok", "pipeline": name, "stages": count, "missing": missing }))?;
            return Ok(Exit::OK);
        }
        let missing: Vec<String> = missing.iter().map(|file| format!("\n  {file}")).collect();
        let note = if missing.is_empty() { "" } else { "; its own files are not all there yet:" };
        output::text(&format!("`{name}` is right: {count} {plural}{note}{}\n", missing.concat()))?;
        Ok(Exit::OK)
    }
}
