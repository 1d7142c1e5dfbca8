//! The command `ecr-transfer`.

use std::process::ExitCode;

use clap::Parser;
use cli::Arguments;

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stderr, reason = "this is a command, and its error")]
async fn main() -> ExitCode {
    match cli::run(Arguments::parse()).await {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            // As clap for arguments that it rejects.
            ExitCode::from(2)
        }
    }
}
