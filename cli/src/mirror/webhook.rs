//! `ecr-transfer mirror webhook`: an admission webhook that makes the pods of a cluster pull the copies. For clusters before
//! Kubernetes 1.36; later ones need no server, see `mirror kubernetes`.

pub(super) mod admission;
mod certificate;
mod feed;
mod image;
mod manifests;
mod metrics;
mod push;
mod registry;
mod serve;

use anyhow::Result;
use clap::Subcommand;
use shared::reference::Invalid;

use crate::Outcome;

/// The name of the Deployment, the Service, and whatever else belongs to the webhook.
const NAME: &str = "ecr-transfer-webhook";

/// The command line after `webhook`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Push an image that has just this command to ECR; prints its name for `manifests --image`
    Push(push::Arguments),
    /// Print the Kubernetes objects that run the webhook, for `kubectl apply`
    Manifests(manifests::Arguments),
    /// Answer the admission requests of the API server (runs in the pod)
    Serve(serve::Arguments),
}

/// Runs a subcommand.
///
/// # Errors
/// If an input is invalid, or a service or a file cannot be used.
pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    match &arguments.command {
        Command::Push(arguments) => push::run(arguments).await,
        Command::Manifests(arguments) => manifests::run(arguments),
        Command::Serve(arguments) => serve::run(arguments).await,
    }
}

/// Parses the name of a bucket.
fn bucket(text: &str) -> Result<String, Invalid> {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_valid = (3..=63).contains(&text.len())
        && text.bytes().all(|byte| is_word(&byte) || matches!(byte, b'.' | b'-'))
        && [text.as_bytes().first(), text.as_bytes().last()].into_iter().flatten().all(is_word);
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err(Invalid::new(text, "the name of a bucket: 3 to 63 lowercase letters, digits, . and -"))
    }
}
