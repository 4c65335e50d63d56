//! What can be wrong with a manifest's meaning.

use crate::manifest::{Fault, Mistake};

/// What can be wrong with a manifest, syntax and meaning together.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A mistake of syntax.
    #[error(transparent)]
    Manifest(#[from] Mistake),
    /// A kind that does not exist.
    #[error("unknown kind `{0}`")]
    UnknownKind(String),
    /// A parameter that the kind does not have.
    #[error("unknown parameter `{parameter}` of a stage of kind `{kind}`")]
    UnknownParameter {
        /// The parameter.
        parameter: String,
        /// The stage's kind.
        kind: &'static str,
    },
    /// A parameter that must be given and is not.
    #[error("stage `{stage}` lacks its parameter `{parameter}`")]
    MissingParameter {
        /// The stage.
        stage: String,
        /// The parameter.
        parameter: String,
    },
    /// `shards` on a kind that cannot be divided.
    #[error("a stage of kind `{0}` cannot be run in shards")]
    NoShards(&'static str),
    /// More shards than anybody wants, or none.
    #[error("`shards` is {0}, outside 1 to {MOST}", MOST = crate::stage::shards::MOST)]
    Shards(usize),
    /// A word that is none of those allowed.
    #[error("unknown value `{0}`")]
    UnknownWord(String),
    /// A value of the wrong type or form.
    #[error("{0}")]
    Value(String),
    /// A parameter that is out of range or does not fit another one.
    #[error("parameter `{parameter}`: {message}")]
    Invalid {
        /// The parameter, dotted.
        parameter: String,
        /// What is wrong.
        message: String,
    },
    /// An input that is not written as one.
    #[error("`{0}` does not name an output of a stage")]
    Target(String),
    /// An input from a stage that does not exist.
    #[error("unknown stage `{0}`")]
    UnknownStage(String),
    /// An input from an output that the stage does not have.
    #[error("stage `{stage}` has no output `{port}`")]
    UnknownPort {
        /// The stage.
        stage: String,
        /// The output asked for.
        port: String,
    },
    /// An input of the wrong kind.
    #[error("`{input}` takes `{wanted}`, but {from} writes {found}")]
    WrongKind {
        /// The input's port.
        input: String,
        /// The kind it takes.
        wanted: &'static str,
        /// The stage or the output named.
        from: String,
        /// The kinds it writes.
        found: String,
    },
    /// An input that could be one of several outputs.
    #[error("`{stage}` has several outputs that fit `{input}`")]
    Ambiguous {
        /// The stage.
        stage: String,
        /// The input's port.
        input: String,
    },
    /// A stage that reads its own output.
    #[error("stage `{0}` reads its own output")]
    SelfEdge(String),
    /// Stages that wait for each other.
    #[error("stages wait for each other: {0}")]
    Cycle(String),
    /// `[axis=value]` that selects nothing.
    #[error("stage `{stage}` has no variant `{selector}`")]
    NoVariant {
        /// The stage.
        stage: String,
        /// The selector.
        selector: String,
    },
    /// Inputs whose variants exclude each other.
    #[error("the inputs of stage `{0}` have no variant in common")]
    NoCombination(String),
    /// A matrix, or inputs with one, that give more nodes than anybody wants.
    #[error("stage `{0}` has more than 10,000 variants")]
    TooManyVariants(String),
}

impl From<Fault> for Fault<PlanError> {
    fn from(fault: Fault) -> Self {
        fault.map(PlanError::Manifest)
    }
}
