//! Lambda: decides what a run copies, and writes the plan.

use aws_config::retry::RetryConfig;
use lambda_runtime::{Error, tracing};
use list_images::config::Config;
use list_images::handler::{self, Clients, Request};
use shared::config::Environment;
use shared::lambda::{parse, serve};

/// Attempts of each AWS call. ECR throttles the listing of large registries.
const ATTEMPTS: u32 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    let aws = aws_config::from_env().retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS)).load().await;
    let clients = Clients::new(&aws);
    serve(async |payload| {
        let request: Request = parse(payload)?;
        // Parameters are read here, because an error before `serve` would not reach the state machine.
        let config = Config::read(&environment)?;
        // Without the box, the futures are nested more deeply than the compiler allows.
        let summary = Box::pin(handler::list(&config, &aws, &clients, &request)).await?;
        handler::emit_metrics(&environment, &request, &summary);
        Ok(summary)
    })
    .await
}
