//! `check`: whether a manifest is right, without looking at the cache.

use clap::Args;

use super::{args::ManifestArgs, error::CliError, exit::Exit, output, project};

/// Check a manifest, and say all that is wrong with it
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    manifest: ManifestArgs,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let plan = project::open(&self.manifest.pipeline, &self.manifest.change)?;
        let (count, name) = (plan.nodes.len(), &plan.name);
        let plural = if count == 1 { "stage" } else { "stages" };
        let missing: Vec<String> = plan
            .nodes
            .iter()
            .filter_map(|node| Some(format!("\n  {}: {}", node.name, node.reads.as_ref().err()?.error)))
            .collect();
        let note = if missing.is_empty() { "" } else { "; its own files are not all there yet:" };
        output::text(&format!("`{name}` is right: {count} {plural}{note}{}\n", missing.concat()))?;
        Ok(Exit::OK)
    }
}
