//! Lambda: decides what a run must copy, and writes the plan.

mod batches;
mod config;
mod difference;
mod handler;
mod public;
mod selection;
mod source;

use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn, tracing};
use shared::config::Environment;

use crate::config::Config;
use crate::handler::{Clients, Request};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    let aws = aws_config::load_from_env().await;
    let clients = Clients::new(&aws);
    run(service_fn(async |event: LambdaEvent<Request>| {
        // Read here and not before, so that a wrong parameter fails the execution with its name and not the start-up.
        let answer = async { handler::list(&Config::read(&environment)?, &aws, &clients, &event.payload).await }.await;
        answer.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot list the images");
            Diagnostic { error_type: error.name().into(), error_message: error.to_string() }
        })
    }))
    .await
}
