//! `why`: why a stage would run, or why it last did.

use clap::Args;
use serde_json::json;

use super::{
    args::{Format, StageArgs},
    error::CliError,
    exit::Exit,
    output,
    stage::Found,
};
use crate::engine::state::Status;

/// Say why a stage runs: one sentence for each reason
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The stage, and the manifest unless the last one run is meant
    #[arg(value_names = ["STAGE", "PIPELINE.toml"], num_args = 1..=2, required = true)]
    words: Vec<String>,
    #[command(flatten)]
    stage: StageArgs,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let (found, _) = Found::open(&self.words, 0, &self.stage)?;
        let stage = &found.stage;
        let reasons: Vec<String> = match &stage.record {
            Some(record) if stage.status == Status::Cached => record.why.clone(),
            _ if stage.reasons.is_empty() => vec![stage.why.clone()],
            _ => stage.reasons.iter().map(ToString::to_string).collect(),
        };
        if self.format == Format::Json {
            output::json(&json!({ "name": stage.name, "status": stage.status, "reasons": reasons }))?;
            return Ok(Exit::OK);
        }
        let heading = match stage.status {
            Status::Cached => "is cached; why it ran:",
            Status::Run => "will run:",
            Status::Maybe => "may run:",
            _ => "cannot run:",
        };
        let lines: String = reasons.iter().flat_map(|reason| ["\n  ", reason]).collect();
        output::text(&format!("`{}` {heading}{lines}\n", stage.name))?;
        Ok(Exit::OK)
    }
}
