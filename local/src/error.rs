//! What can go wrong on the machine, in words that say what to do about it.

use std::{io, path::PathBuf};

/// The result of anything that the machine does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the machine, or something asked of it, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the machine is made of is not there.
    #[error("`{program}` was not found: {hint}")]
    MissingProgram {
        /// Its name, or the path where it was expected.
        program: String,
        /// How to get it.
        hint: &'static str,
    },
    /// A program could not be started.
    #[error("`{program}` could not be started")]
    Start {
        /// Its name.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program ended though it was still needed, or failed.
    #[error("`{program}` ended ({status}); its last words:\n{output}")]
    Ended {
        /// Its name.
        program: String,
        /// Its exit status.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// Something did not happen within its time.
    #[error("waited {seconds} s for {what}, in vain")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
    },
    /// Somebody else listens on the port.
    #[error(
        "port {0} is in use: stop what listens on it (`make down`, if it is this project), or choose another with --port"
    )]
    PortInUse(u16),
    /// Another machine uses the same state directory.
    #[error("a local AWS is already running in {}: stop it with `make down` first", .0.display())]
    AlreadyRunning(PathBuf),
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An AWS service refused a request.
    #[error("{operation}: {code}: {message} (HTTP {status})")]
    Aws {
        /// What was asked, `service:Action`.
        operation: String,
        /// The service's name for the error.
        code: String,
        /// Its explanation.
        message: String,
        /// The HTTP status.
        status: u16,
    },
    /// A Lambda function ran, and failed.
    #[error("function {function} failed: {payload}")]
    Function {
        /// The function's name.
        function: String,
        /// What it answered.
        payload: String,
    },
    /// A registry refused a request.
    #[error("{method} {url}: HTTP {status}: {body}")]
    Registry {
        /// The method of the request.
        method: &'static str,
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        body: String,
    },
    /// No answer came.
    #[error("no answer from {what}")]
    Http {
        /// Who was asked for what.
        what: String,
        /// Why there was none.
        #[source]
        source: reqwest::Error,
    },
    /// An answer, or something asked for, is not what it should be.
    #[error("{0}")]
    Unexpected(String),
    /// The proxy could not be set up.
    #[error("the intercepting proxy could not be set up")]
    Proxy(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps an I/O error with the file that it is about.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// The service's name for the error, where a service answered.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Aws { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// The error and all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
