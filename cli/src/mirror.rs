//! `ecr-transfer mirror`: makes workloads pull the copies in ECR. What the mirror has is known from the inventory.

pub mod inventory;
mod list;
mod resolve;
pub mod webhook;

use anyhow::Result;
use clap::Subcommand;

use crate::Outcome;

/// The command line after `mirror`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the images that the mirror has
    List(list::Arguments),
    /// Print the names of images at the mirror; exit code 1 if one is not mirrored
    Resolve(resolve::Arguments),
    /// Run an admission webhook that makes the pods of a cluster pull the copies, before Kubernetes 1.36
    Webhook(webhook::Arguments),
}

/// Runs a subcommand.
///
/// # Errors
/// If the inventory or an input cannot be read.
pub async fn run(arguments: Arguments) -> Result<Outcome> {
    match arguments.command {
        Command::List(arguments) => list::run(&arguments).await,
        Command::Resolve(arguments) => resolve::run(&arguments).await,
        Command::Webhook(arguments) => webhook::run(&arguments).await,
    }
}
