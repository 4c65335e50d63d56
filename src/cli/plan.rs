//! `plan`: what a run would do and why, without doing it.

use clap::Args;

use super::{
    args::{Format, PipelineArgs},
    error::CliError,
    exit::Exit,
    forecast, output,
    project::Project,
    summary,
};
use crate::engine::{
    graph::NodeId,
    state::Status,
    summary::{RunStatus, RunSummary},
};

/// Say what a run would do, without doing it
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    pub args: PipelineArgs,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let PipelineArgs { manifest, place, select, format } = &self.args;
        let project = Project::open(&manifest.pipeline, &manifest.change, place, select)?;
        let mut plan = project.engine().plan()?;
        block_unreadable(&project, &mut plan);
        match format {
            Format::Json => output::json(&plan)?,
            Format::Text => {
                output::text(&summary::render(&plan, output::palette()))?;
                output::text(&forecast::render(&plan, forecast::speed))?;
            }
        }
        Ok(Exit::OK)
    }
}

/// A plan is of use before the user's files are there: it says which are missing, and what waits for them.
pub(super) fn block_unreadable(project: &Project, plan: &mut RunSummary) {
    let mut block = |id: NodeId, why: String| {
        let name = &project.graph.node(id).name;
        let stage = plan.stages.iter_mut().find(|stage| stage.name == *name);
        if let Some(stage) = stage.filter(|stage| stage.status != Status::Skipped) {
            (stage.status, stage.why) = (Status::Blocked, why);
            (stage.key, stage.record) = (None, None);
            stage.outputs.clear();
            plan.status = RunStatus::Failed;
        }
    };
    for (&id, why) in &project.unreadable {
        let needs = format!("needs `{}`, whose own files are not all there", project.graph.node(id).name);
        for reader in project.graph.with_descendants(&[id].into()) {
            if !project.unreadable.contains_key(&reader) {
                block(reader, needs.clone());
            }
        }
        block(id, why.clone());
    }
}
