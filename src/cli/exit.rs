//! The exit codes, which scripts may rely on.

use std::process::ExitCode;

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(u8);

impl Exit {
    /// All is well.
    pub const OK: Self = Self(0);
    /// A stage failed.
    pub const FAILED: Self = Self(1);
    /// The command line asks for something that does not exist.
    pub const USAGE: Self = Self(2);
    /// The manifest has mistakes.
    pub const MANIFEST: Self = Self(3);
    /// `--locked` or `--frozen` does not allow what would have to be done.
    pub const LOCKED: Self = Self(4);
    /// The cache is damaged, or it cannot be read or written.
    pub const CACHE: Self = Self(5);
    /// Stopped after a checkpoint was published: the next run goes on from there.
    pub const STOPPED: Self = Self(75);
    /// Interrupted.
    pub const INTERRUPTED: Self = Self(130);

    /// The number itself.
    pub const fn code(self) -> u8 {
        self.0
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}

/// The codes as the help shows them.
pub(super) const HELP: &str = "\
Exit codes:
    0  all is well
    1  a stage failed
    2  the command line is wrong
    3  the manifest has mistakes
    4  --locked or --frozen does not allow it
    5  the cache is damaged or cannot be used
   75  stopped with a checkpoint; the next run goes on from there
  130  interrupted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_code() {
        let all = [
            Exit::OK,
            Exit::FAILED,
            Exit::USAGE,
            Exit::MANIFEST,
            Exit::LOCKED,
            Exit::CACHE,
            Exit::STOPPED,
            Exit::INTERRUPTED,
        ];
        let shown: Vec<u8> = HELP
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(shown, all.map(Exit::code));
    }
}
