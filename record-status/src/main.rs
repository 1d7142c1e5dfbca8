//! Lambda: checks each image at its destination, and records what became of it. It also notifies people of executions that ended.

mod config;
mod notice;
mod outcome;
mod tables;

use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn, tracing};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shared::config::Environment;
use shared::credentials::Stores;
use shared::ecr::Registry;
use shared::metrics::{self, Unit};

use crate::config::{Config, NoticeConfig};
use crate::tables::{Recorded, Tables};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    let aws = aws_config::load_from_env().await;
    let stores = Stores::new(&aws);
    let clients = notice::Clients::new(&aws);
    run(service_fn(async |event: LambdaEvent<Value>| {
        // Only EventBridge's events have a type. The others come from the state machine.
        if event.payload.get("detail-type").is_some() {
            let change = parse(event.payload)?;
            let notice = async { notice::send(&clients, &NoticeConfig::read(&environment)?, &change).await };
            return notice.await.map_err(|error| failed(&error));
        }
        let request = parse(event.payload)?;
        let recorded = async {
            let config = Config::read(&environment)?;
            let destination = Registry::connect(&aws, &stores, &config.destination).await?;
            let outcomes = outcome::of_batch(&destination, &request).await?;
            Tables::new(&clients.dynamodb, &config).record(&request, &outcomes).await
        };
        let recorded = recorded.await.map_err(|error| failed(&error))?;
        if !recorded.again {
            emit(&environment, &recorded);
        }
        Ok::<_, Diagnostic>(json!(recorded))
    }))
    .await
}

fn emit(environment: &Environment, recorded: &Recorded) {
    let Recorded { done, failed, bytes, seconds, .. } = *recorded;
    metrics::emit(
        environment,
        &[
            ("ImagesCopied", Unit::Count, done),
            ("ImagesFailed", Unit::Count, failed),
            ("BytesCopied", Unit::Bytes, bytes),
            ("SecondsCopying", Unit::Seconds, seconds),
        ],
    );
}

fn parse<T: DeserializeOwned>(payload: Value) -> Result<T, Diagnostic> {
    serde_json::from_value(payload).map_err(|error| {
        tracing::error!(%error, "invalid event");
        Diagnostic { error_type: "InvalidEvent".into(), error_message: error.to_string() }
    })
}

fn failed(error: &shared::Error) -> Diagnostic {
    tracing::error!(error = error as &dyn std::error::Error, "failed");
    Diagnostic { error_type: error.name().into(), error_message: error.to_string() }
}
