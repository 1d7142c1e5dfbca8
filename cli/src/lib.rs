//! The subcommands of the command `ecr-transfer`.

mod aws;
mod commands;
mod console;
pub mod mirror;
mod output;
pub mod tasks;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

pub use output::Outcome;
use output::note;

/// The command line.
#[derive(Parser)]
#[command(name = "ecr-transfer", version, about = "Copies container images to Amazon ECR, and uses the copies")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Task(commands::Command),
    /// Show the tasks in the browser, and change them there
    Console(console::Arguments),
    /// Make workloads pull the copies in ECR instead of the original images
    Mirror(mirror::Arguments),
}

/// Runs the command of the process's arguments. The exit code is 0 for success, 1 for a negative [`Outcome`], and 2 for an error.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            note(format_args!("error: {error:#}"));
            // As clap for arguments that it rejects.
            ExitCode::from(2)
        }
    }
}

/// Runs a command.
///
/// # Errors
/// If it cannot do its work, for example because of a missing permission. That an image is not mirrored is an [`Outcome`].
pub async fn run(arguments: Arguments) -> Result<Outcome> {
    match arguments.command {
        Command::Task(command) => commands::run(command).await,
        Command::Console(arguments) => console::run(&arguments).await,
        Command::Mirror(arguments) => mirror::run(arguments).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
