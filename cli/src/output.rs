//! What a command prints, and its exit code.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use shared::text::Excerpt;

/// The most characters of a line for the person.
const LINE: usize = 4_000;

/// The result of a command that did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Success,
    /// Something that was asked for is not so: an image is not mirrored, or a file would change. Exit code 1.
    Negative,
}

impl Outcome {
    /// [`Success`](Self::Success) if `condition` holds.
    pub fn success_if(condition: bool) -> Self {
        if condition { Self::Success } else { Self::Negative }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::SUCCESS,
            Outcome::Negative => Self::FAILURE,
        }
    }
}

/// Prints a result. A reader that closes the pipe early, such as `head`, is not an error.
pub fn print(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a line for the person to standard error, so that standard output has the result alone. It may have text from outside,
/// which must not control the terminal.
pub fn note(line: impl Display) {
    // If nobody can read it, the result counts alone.
    let _ = writeln!(io::stderr().lock(), "{}", Excerpt::within(&line.to_string(), LINE).as_str());
}
