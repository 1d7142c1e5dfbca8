//! Lambda: checks each image at its destination, and records what became of it.

mod config;
mod outcome;
mod tables;

use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn, tracing};
use shared::config::Environment;
use shared::credentials::Stores;
use shared::ecr::Registry;
use shared::metrics::{self, Unit};

use crate::config::Config;
use crate::outcome::Request;
use crate::tables::{Recorded, Tables};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::of_process();
    let aws = aws_config::load_from_env().await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&aws);
    let stores = Stores::new(&aws);
    run(service_fn(async |event: LambdaEvent<Request>| {
        let recorded = async {
            let config = Config::read(&environment)?;
            let destination = Registry::connect(&aws, &stores, &config.destination).await?;
            let outcomes = outcome::of_batch(&destination, &event.payload).await?;
            let recorded = Tables::new(&dynamodb, &config).record(&event.payload, &outcomes).await?;
            if !recorded.again {
                let Recorded { done, failed, bytes, seconds, .. } = recorded;
                metrics::emit(
                    &environment,
                    &[
                        ("ImagesCopied", Unit::Count, done),
                        ("ImagesFailed", Unit::Count, failed),
                        ("BytesCopied", Unit::Bytes, bytes),
                        ("SecondsCopying", Unit::Seconds, seconds),
                    ],
                );
            }
            Ok(recorded)
        };
        recorded.await.map_err(|error: shared::Error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot record the batch");
            Diagnostic { error_type: error.name().into(), error_message: error.to_string() }
        })
    }))
    .await
}
