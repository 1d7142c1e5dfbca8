//! Lambda: decides what a run must copy, and writes the plan.

use aws_config::retry::RetryConfig;
use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn, tracing};
use shared::config::Environment;
use shared::metrics::{self, Unit};

use list_images::config::Config;
use list_images::handler::{self, Clients, Request};

/// How often a call is tried before it has failed.
const ATTEMPTS: u32 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    // ECR limits how fast its listings may be asked for; a large registry takes more calls than it allows at once.
    let aws = aws_config::from_env().retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS)).load().await;
    let clients = Clients::new(&aws);
    run(service_fn(async |event: LambdaEvent<Request>| {
        // Read here and not before, so that a wrong parameter fails the execution with its name and not the start-up.
        let answer = async { handler::list(&Config::read(&environment)?, &aws, &clients, &event.payload).await }.await;
        if let Ok(summary) = &answer
            && summary.dry_run.is_none()
            && summary.left_to.is_none()
            && summary.wait.is_none()
        {
            let metrics = [
                ("ImagesListed", summary.listed),
                ("ImagesUnchanged", summary.unchanged),
                ("ImagesExcluded", summary.excluded),
                ("ImagesToCopy", summary.to_copy),
            ];
            metrics::emit(&environment, &metrics.map(|(name, count)| (name, Unit::Count, count as u64)));
        }
        answer.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot list the images");
            Diagnostic { error_type: error.name().into(), error_message: error.to_string() }
        })
    }))
    .await
}
