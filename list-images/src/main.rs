//! Lambda: decides what a run must copy, and writes the plan.

use aws_config::retry::RetryConfig;
use lambda_runtime::{Error, tracing};
use list_images::config::Config;
use list_images::handler::{self, Clients, Request};
use shared::config::Environment;
use shared::lambda::{parse, serve};

/// How often a call is tried before it has failed.
const ATTEMPTS: u32 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    // ECR throttles its listings; a large registry needs more calls than it allows at once.
    let aws = aws_config::from_env().retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS)).load().await;
    let clients = Clients::new(&aws);
    serve(async |payload| {
        let request: Request = parse(payload)?;
        // Read here, so that a wrong parameter fails the execution with its name, and not the start of the function.
        let summary = handler::list(&Config::read(&environment)?, &aws, &clients, &request).await?;
        handler::emit_metrics(&environment, &summary);
        Ok(summary)
    })
    .await
}
