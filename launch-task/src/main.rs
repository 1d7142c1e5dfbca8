//! Lambda: starts a skopeo task for a batch, and answers the state when the task stops. It also stops the tasks of executions
//! that were stopped, and starts an execution when an image is pushed.

mod answer;
mod config;
mod launch;
mod logins;
mod push;
mod repositories;
mod stop;

use std::time::SystemTime;

use lambda_runtime::{Error, tracing};
use shared::config::Environment;
use shared::lambda::{Event, Invocation, serve};

use crate::config::Config;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    let aws = aws_config::load_from_env().await;
    let clients = launch::Clients::new(&aws);
    let answer_clients = answer::Clients::new(&aws);
    serve(async |payload| {
        let config = || Config::read(&environment);
        match Invocation::parse(payload)? {
            Invocation::State(request) => {
                let launched = async { launch::launch(&config()?, &aws, &clients, &request).await }.await;
                answer::for_launch(&answer_clients.sfn, &request.token, launched).await
            }
            Invocation::Event(Event::TaskStateChange(task)) => {
                answer::for_task(&answer_clients, &config()?.log, &task).await
            }
            Invocation::Event(Event::ExecutionStatusChange(execution)) => {
                let config = config()?;
                stop::for_execution(&clients.ecs, &config.task.cluster, &config.state_machine, &execution).await
            }
            Invocation::Event(Event::ImageAction(image)) => {
                push::for_image(&answer_clients.sfn, &config()?.state_machine, &image, SystemTime::now()).await
            }
        }
    })
    .await
}
