//! `schema`: the JSON Schema of manifests, for editors.

use super::{error::CliError, exit::Exit, output};
use crate::{plan::schema, stage::table::STAGES};

pub(super) fn run() -> Result<Exit, CliError> {
    let text = serde_json::to_string_pretty(&schema::schema(STAGES)).expect("a schema is plain data");
    output::text(&(text + "\n"))?;
    Ok(Exit::OK)
}
