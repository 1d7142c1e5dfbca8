//! Lambda: decides what a run copies, and writes the plan and the inventory.

use aws_config::retry::RetryConfig;
use lambda_runtime::{Error, tracing};
use list_images::config::Config;
use list_images::handler::{self, Clients};
use serde_json::json;
use shared::config::Environment;
use shared::lambda::{Event, Invocation, serve};

/// Attempts of each AWS call. ECR throttles the listing of large registries.
const ATTEMPTS: u32 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    let aws = aws_config::from_env().retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS)).load().await;
    let clients = Clients::new(&aws);
    serve(async |payload| {
        // Parameters are read here, because an error before `serve` would not reach the state machine.
        let config = || Config::read(&environment);
        // Without the boxes, the futures are nested more deeply than the compiler allows.
        match Invocation::parse(payload)? {
            Invocation::State(request) => {
                let summary = Box::pin(handler::list(&config()?, &aws, &clients, &request)).await?;
                handler::emit_metrics(&environment, &summary);
                Ok(json!(summary))
            }
            Invocation::Event(Event::ExecutionStatusChange(execution)) => {
                Box::pin(handler::update_inventory(&config()?, &aws, &clients, &execution)).await?;
                Ok(json!({}))
            }
            Invocation::Event(event) => Err(shared::Error::Event(format!("unexpected {event:?}").into())),
        }
    })
    .await
}
