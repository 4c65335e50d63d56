//! Stages that divide: `shards = N` makes N nodes of one, each cached by itself, and one that merges what they wrote.
//!
//! ```text
//!                ┌─► embed[shard=0] ─┐
//! embed[split] ──┼─► embed[shard=1] ─┼─► embed
//!                └─► embed[shard=2] ─┘
//! ```
//!
//! A shard's key holds its own share of the input and not its number, so a change of the input reruns the shards that it falls into.
//! The merged artifact has the bytes that the undivided stage writes. Knows no particular stage.

pub mod texts;

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use serde_json::{Value, json};

use super::{Invalid, Stage, code};
use crate::engine::action::{Action, Cx, Failure, Numerics, OutputPort, Pool, Repo};

/// No stage has more shards.
pub const MOST: usize = 1000;

/// One of the shards of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Its number, from 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

/// A stage that can be run in shards.
pub trait Sharded: Stage {
    /// How its input is divided; without one, every shard reads all inputs and [`Shard::index`] tells it what to do.
    const SPLIT: Option<Split> = None;

    /// [`Stage::check`] for a stage with shards.
    fn check_shards(&self) -> Result<(), Invalid> {
        self.check()
    }

    /// The parameters that can change the bytes of a shard.
    fn shard_params(&self, shard: Shard) -> Value;

    /// Runs one shard: writes what the stage writes, for its share of the input.
    fn run_shard(&self, shard: Shard, cx: &Cx<'_>) -> Result<(), Failure>;

    /// The parameters that can change how shards are merged.
    fn merge_params(&self) -> Value;

    /// Merges what the shards wrote; that of shard `i` lies at [`merge_port`] of the output and `i`.
    fn merge(&self, of: usize, cx: &Cx<'_>) -> Result<(), Failure>;
}

/// How an input is divided among shards.
pub struct Split {
    /// The input's port; each shard finds its share there.
    pub port: &'static str,
    /// Writes the shares to the outputs [`ports`].
    pub run: fn(&'static str, usize, &Cx<'_>) -> Result<(), Failure>,
}

/// Where a merge finds what a shard wrote to an output: `embeddings.003`.
pub fn merge_port(output: &str, shard: usize) -> String {
    format!("{output}.{shard:03}")
}

/// The outputs of a split, one for each shard: `000`, `001`, …
pub fn ports(of: usize) -> &'static [OutputPort] {
    static PORTS: LazyLock<Vec<OutputPort>> = LazyLock::new(|| {
        let port = |i| OutputPort { name: String::leak(format!("{i:03}")), kind: "shard" };
        (0..MOST).map(port).collect()
    });
    &PORTS[..of]
}

/// What a node of a divided stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Divides the input.
    Split(usize),
    /// Works on one share.
    Shard(Shard),
    /// Puts the shards together.
    Merge(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Split(of) => write!(f, "split of {of}"),
            Self::Shard(Shard { index, of }) => write!(f, "shard {index} of {of}"),
            Self::Merge(of) => write!(f, "merge of {of}"),
        }
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |word: &str| word.parse::<usize>().ok();
        let words: Vec<&str> = text.split(' ').collect();
        let part = match *words.as_slice() {
            ["split", "of", of] => number(of).map(Self::Split),
            ["merge", "of", of] => number(of).map(Self::Merge),
            ["shard", index, "of", of] => {
                let shard = number(index).zip(number(of)).map(|(index, of)| Shard { index, of });
                shard.filter(|shard| shard.index < shard.of).map(Self::Shard)
            }
            _ => None,
        };
        part.filter(|part| (1..=MOST).contains(&part.of()))
            .ok_or_else(|| format!("`{text}` is no part of a stage"))
    }
}

impl Part {
    /// How many shards the stage has.
    pub fn of(&self) -> usize {
        match *self {
            Self::Split(of) | Self::Merge(of) | Self::Shard(Shard { of, .. }) => of,
        }
    }

    /// All parts of a stage with so many shards.
    pub fn all(of: usize, split: bool) -> impl Iterator<Item = Self> {
        let shards = (0..of).map(move |index| Self::Shard(Shard { index, of }));
        split.then_some(Self::Split(of)).into_iter().chain(shards).chain([Self::Merge(of)])
    }
}

/// The runnable form of one part.
pub(super) struct PartOf<S> {
    pub(super) stage: Arc<S>,
    pub(super) part: Part,
}

impl<S: Sharded> Action for PartOf<S> {
    fn kind(&self) -> &'static str {
        S::KIND
    }
    fn code(&self) -> BTreeMap<String, String> {
        code::map(S::CODE)
    }
    fn pool(&self) -> Pool {
        match self.part {
            Part::Shard(_) => S::POOL,
            Part::Split(_) | Part::Merge(_) => Pool::Cpu,
        }
    }
    fn numerics(&self) -> Numerics {
        match self.part {
            Part::Shard(_) => self.stage.numerics(),
            Part::Split(_) | Part::Merge(_) => Numerics::Bitwise,
        }
    }
    fn params(&self) -> Value {
        match self.part {
            Part::Split(of) => json!({ "part": "split", "of": of }),
            Part::Shard(shard) => json!({ "part": "shard", "params": self.stage.shard_params(shard) }),
            Part::Merge(_) => json!({ "part": "merge", "params": self.stage.merge_params() }),
        }
    }
    fn repos(&self) -> Vec<Repo> {
        match self.part {
            Part::Shard(_) => self.stage.repos(),
            Part::Split(_) | Part::Merge(_) => Vec::new(),
        }
    }
    fn outputs(&self) -> &'static [OutputPort] {
        match self.part {
            Part::Split(of) => ports(of),
            Part::Shard(_) | Part::Merge(_) => S::OUTPUTS,
        }
    }
    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        match self.part {
            Part::Shard(shard) => self.stage.run_shard(shard, cx),
            Part::Merge(of) => self.stage.merge(of, cx),
            Part::Split(of) => S::SPLIT.map_or(Ok(()), |split| (split.run)(split.port, of, cx)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_are_written() {
        let parts: Vec<Part> = Part::all(3, true).collect();
        let texts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["split of 3", "shard 0 of 3", "shard 1 of 3", "shard 2 of 3", "merge of 3"]);
        let read: Vec<Part> = texts.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(read, parts);
        assert_eq!(
            Part::all(1, false).map(|part| part.to_string()).collect::<Vec<_>>(),
            ["shard 0 of 1", "merge of 1"]
        );
        for wrong in
            ["", "split", "shard 3 of 3", "merge of 0", "split of 1001", "shard -1 of 2", "shard 0 of 2 "]
        {
            assert_eq!(wrong.parse::<Part>(), Err(format!("`{wrong}` is no part of a stage")));
        }
    }

    #[test]
    fn ports_sort_like_their_shards() {
        let names: Vec<&str> = ports(MOST).iter().map(|port| port.name).collect();
        assert!(names.is_sorted() && names.len() == MOST);
        assert_eq!((names[0], names[999]), ("000", "999"));
        assert_eq!(ports(2).len(), 2);
    }
}
