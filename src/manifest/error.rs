//! What can be wrong with a manifest's syntax, each mistake with its place and what to do about it.

use std::io;

use super::Span;

/// One mistake in a manifest, with its place.
#[derive(Debug)]
pub struct Fault<E = Mistake> {
    /// What is wrong.
    pub error: E,
    /// The text at fault; none when the fault has no place in a file.
    pub place: Option<Span>,
    /// A word or two beside the underlined text.
    pub label: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Other places that matter, each with a word or two.
    pub related: Vec<(Span, String)>,
}

impl<E> Fault<E> {
    /// A fault without a place.
    pub fn new(error: E) -> Self {
        Self { error, place: None, label: None, hint: None, related: Vec::new() }
    }

    /// A fault at a place.
    pub fn at(place: Span, error: E) -> Self {
        Self::new(error).at_maybe(Some(place))
    }

    /// Sets the place, where there is one.
    #[must_use]
    pub fn at_maybe(mut self, place: Option<Span>) -> Self {
        self.place = place;
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a word or two beside the underlined text.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Points at another place that matters.
    #[must_use]
    pub fn see(mut self, place: Span, label: impl Into<String>) -> Self {
        self.related.push((place, label.into()));
        self
    }

    /// The same fault with another type of error.
    pub fn map<F>(self, f: impl FnOnce(E) -> F) -> Fault<F> {
        let Self { error, place, label, hint, related } = self;
        Fault { error: f(error), place, label, hint, related }
    }
}

/// What can be wrong with a manifest before anybody asks what its stages mean.
#[derive(Debug, thiserror::Error)]
pub enum Mistake {
    /// A file could not be read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The text is not TOML.
    #[error("this is not valid TOML: {0}")]
    Syntax(String),
    /// A name that is used twice in one table.
    #[error("`{0}` is written twice")]
    Twice(String),
    /// A chain of `extends` that comes back to itself.
    #[error("`extends` goes in a circle: {0}")]
    ExtendsCycle(String),
    /// A key that the section does not have.
    #[error("unknown key `{key}` in {section}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where: `the manifest`, `[pipeline]`.
        section: String,
    },
    /// A value of the wrong type.
    #[error("{what} must be {expected}, found {found}")]
    WrongType {
        /// Which value.
        what: String,
        /// The type it should have.
        expected: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// A text under `trust` that is no key.
    #[error("`{0}` is not a public key")]
    PublicKey(String),
    /// A stage's name that could not be written in an input.
    #[error("`{0}` cannot be the name of a stage")]
    StageName(String),
    /// A manifest that does nothing.
    #[error("the manifest has no stage")]
    NoStages,
    /// `${name}` of a variable that does not exist.
    #[error("unknown variable `{0}`")]
    UnknownVariable(String),
    /// `${` without its end.
    #[error("`${{` without a closing `}}`")]
    Unclosed,
    /// Variables that need each other.
    #[error("variables need each other: {0}")]
    VariableCycle(String),
    /// Variables that need one another in a long row, or nest their values in each other.
    #[error("variable `{0}` goes too deep")]
    VariableTooDeep(String),
    /// Variables that stand for more than a manifest may hold.
    #[error("the variables make the manifest too large")]
    VariablesTooLarge,
    /// A table or an array inside a longer string.
    #[error("variable `{name}` is {article} {found} and cannot stand inside a longer string")]
    NotText {
        /// The variable.
        name: String,
        /// `a` or `an`.
        article: &'static str,
        /// Its type.
        found: &'static str,
    },
    /// A number of tasks that is none.
    #[error("expected a whole number of at least 1")]
    AtOnce,
    /// A length of time in no form that is known.
    #[error("expected a time")]
    Time,
    /// `--profile` of a profile that does not exist.
    #[error("unknown profile `{0}`")]
    UnknownProfile(String),
    /// `--set` without `=`.
    #[error("`--set` needs the form NAME=VALUE or STAGE.PARAMETER=VALUE")]
    SetForm,
    /// `--set` with too many parts.
    #[error("`--set` goes too deep")]
    SetTooDeep,
    /// `--set` of a value that starts like TOML but is not.
    #[error("the value is not valid TOML: {0}")]
    SetValue(String),
    /// `--set` of a stage that does not exist.
    #[error("unknown stage `{0}`")]
    SetStage(String),
    /// `--set a.b.c` where `a.b` cannot hold `c`.
    #[error("`{0}` is {1} and has no parts to set")]
    SetThrough(String, &'static str),
    /// An axis of a matrix without values.
    #[error("axis `{0}` of the matrix has no values")]
    EmptyAxis(String),
    /// A value of a matrix that cannot be part of a name.
    #[error("axis `{axis}` of the matrix holds {found}; a value must be a string, a number or a boolean")]
    AxisValue {
        /// The axis.
        axis: String,
        /// The type found.
        found: &'static str,
    },
    /// A value that would give two stages the same name.
    #[error("axis `{axis}` of the matrix lists {value} twice")]
    AxisTwice {
        /// The axis.
        axis: String,
        /// The value.
        value: String,
    },
    /// A parameter that is fixed and varied at once.
    #[error("parameter `{0}` is also an axis of the matrix")]
    AxisAndParameter(String),
    /// An axis over a key that is no parameter.
    #[error("`{0}` cannot be an axis of a matrix")]
    AxisName(String),
}
