//! What can go wrong, in words that say what it was about.

use std::{io, path::PathBuf, process::ExitStatus};

/// The result of anything that the benchmark does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to measure.
    #[error("there is no {}: build it with `make build`, or name another one with --lambda", .0.display())]
    MissingFunction(PathBuf),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// A file, a program, a port.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The function ended, and should have gone on.
    #[error("the function ended ({status}), and said:\n{log}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// All that it printed.
        log: String,
    },
    /// The function reported an error.
    #[error("the function failed: {report}\n{log}")]
    Failed {
        /// What it told the Runtime API.
        report: String,
        /// All that it printed.
        log: String,
    },
    /// The function did not answer.
    #[error("the function did not answer within {seconds} s, and said:\n{log}")]
    Timeout {
        /// How long it had.
        seconds: u64,
        /// All that it printed.
        log: String,
    },
    /// The local AWS, or what runs on it, failed.
    #[error(transparent)]
    Local(#[from] local::Error),
    /// The function answered, but not what it should.
    #[error("{0}")]
    Wrong(String),
}

impl Error {
    /// Wraps the system's error with what it is about; for `map_err`.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what: what.into(), source }
    }
}
