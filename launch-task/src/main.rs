//! Lambda: starts a skopeo task for a batch, and answers for it when the task stops. It also hears of executions that were
//! stopped, and of images that were pushed.

mod answer;
mod config;
mod error;
mod launch;
mod logins;
mod push;
mod repositories;
mod stop;

use std::time::SystemTime;

use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn, tracing};
use serde::Deserialize;
use shared::config::Environment;

use crate::config::Config;

/// What invokes this Lambda: the state machine with a batch, or EventBridge with a task or an execution that has stopped,
/// or an image that was pushed.
#[derive(Deserialize)]
#[serde(untagged)]
enum Event {
    Launch(launch::Request),
    TaskStateChange(answer::TaskStateChange),
    ExecutionStatusChange(stop::ExecutionStatusChange),
    ImageAction(push::ImageAction),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    let aws = aws_config::load_from_env().await;
    let clients = launch::Clients::new(&aws);
    let answerer = answer::Clients::new(&aws);
    run(service_fn(async |event: LambdaEvent<Event>| {
        let config = Config::read(&environment).map_err(error::Error::from);
        let outcome = match (&event.payload, config) {
            (Event::Launch(request), config) => {
                let launched = async { launch::launch(&config?, &aws, &clients, request).await }.await;
                answer::for_launch(&answerer.sfn, &request.token, launched).await
            }
            (Event::TaskStateChange(event), Ok(config)) => answer::for_task(&answerer, &config.log, event).await,
            (Event::ExecutionStatusChange(event), Ok(config)) => {
                stop::for_execution(&clients.ecs, &config.task.cluster, &config.state_machine, event).await
            }
            (Event::ImageAction(event), Ok(config)) => {
                push::for_image(&answerer.sfn, &config.state_machine, event, SystemTime::now()).await
            }
            (_, Err(error)) => Err(error),
        };
        outcome.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "failed");
            Diagnostic { error_type: error.name().into(), error_message: error.to_string() }
        })
    }))
    .await
}
