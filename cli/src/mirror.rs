//! `ecr-transfer mirror`: makes workloads pull the copies in ECR. What the mirror has is known from the inventory.

#[cfg(test)]
mod agreement;
mod files;
mod helm_values;
pub mod inventory;
mod kubernetes;
mod kustomize;
mod list;
mod login;
mod resolve;
mod rewrite;
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
    /// Print how to log in to the mirror, and the policies that allow pulling from it
    Login(login::Arguments),
    /// Replace the images in Kubernetes, Helm, Compose, ECS and Docker files with those of the mirror
    Rewrite(rewrite::Arguments),
    /// Print values for a Helm chart that replace its images with those of the mirror
    HelmValues(helm_values::Arguments),
    /// Print a Kustomize component that replaces images with those of the mirror
    Kustomize(kustomize::Arguments),
    /// Print a policy with which Kubernetes 1.36 makes new pods pull the copies
    Kubernetes(kubernetes::Arguments),
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
        Command::Login(arguments) => login::run(&arguments).await,
        Command::Rewrite(arguments) => rewrite::run(&arguments).await,
        Command::HelmValues(arguments) => helm_values::run(&arguments).await,
        Command::Kustomize(arguments) => kustomize::run(&arguments).await,
        Command::Kubernetes(arguments) => kubernetes::run(&arguments).await,
        Command::Webhook(arguments) => webhook::run(&arguments).await,
    }
}
