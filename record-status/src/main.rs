//! Lambda: checks each image at its destination, and records the result. It also sends a notification when an execution ends.

mod config;
mod notice;
mod outcome;
mod tables;

use lambda_runtime::{Error, tracing};
use serde_json::json;
use shared::config::Environment;
use shared::credentials::Stores;
use shared::ecr::Registry;
use shared::lambda::{Event, Invocation, serve};

use crate::config::{Config, NoticeConfig};
use crate::tables::Tables;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    let aws = aws_config::load_from_env().await;
    let stores = Stores::new(&aws);
    let clients = notice::Clients::new(&aws);
    serve(async |payload| match Invocation::parse(payload)? {
        Invocation::State(request) => {
            let config = Config::read(&environment)?;
            let destination = Registry::connect(&aws, &stores, &config.destination).await?;
            let outcomes = outcome::of_batch(&destination, &request).await?;
            let recorded = Tables::new(&clients.dynamodb, &config).record(&request, &outcomes).await?;
            recorded.emit_metrics(&environment);
            Ok(json!(recorded))
        }
        Invocation::Event(Event::ExecutionStatusChange(execution)) => {
            notice::send(&clients, &NoticeConfig::read(&environment)?, &execution).await
        }
        Invocation::Event(event) => Err(shared::Error::Event(format!("unexpected {event:?}").into())),
    })
    .await
}
