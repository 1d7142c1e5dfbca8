//! The tables: a row for each image, and an item with the counts of each execution.

use std::collections::HashMap;
use std::time::SystemTime;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::primitives::{DateTime, DateTimeFormat};
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use shared::task::Log;
use shared::{Error, Result};

use crate::config::Config;
use crate::outcome::{Outcome, Request};

/// How many rows are written at once.
const CONCURRENCY: usize = 10;

/// The tables of one stack.
pub struct Tables<'a> {
    dynamodb: &'a Client,
    config: &'a Config,
}

/// What a batch comes to.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Images at the destination.
    pub done: u64,
    /// Images that are not.
    pub failed: u64,
}

impl<'a> Tables<'a> {
    /// The tables that `config` names.
    #[must_use]
    pub fn new(dynamodb: &'a Client, config: &'a Config) -> Self {
        Self { dynamodb, config }
    }

    /// Writes the rows of a batch's images, and then adds it to the execution's counts, once, however often it is
    /// recorded.
    ///
    /// # Errors
    /// When DynamoDB refuses.
    pub async fn record(&self, request: &Request, outcomes: &[Outcome]) -> Result<Counts> {
        let log = request.report().log;
        stream::iter(outcomes)
            .map(|outcome| self.row(request, log.as_ref(), outcome))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<()>()
            .await?;
        self.count(request, outcomes).await
    }

    /// Writes one image's row. It keeps its count of attempts across executions; recording a batch again adds none.
    async fn row(&self, request: &Request, log: Option<&Log>, outcome: &Outcome) -> Result<()> {
        let copy = &outcome.copy;
        let mut values = HashMap::from([
            ("MultiArchOption", text(&self.config.platforms)),
            ("Execution", text(&request.execution)),
            ("Batch", text(&request.batch.id)),
            ("Source", text(&copy.source)),
            ("Destination", text(&copy.destination)),
            ("UpdatedAt", text(&now())),
        ]);
        match &outcome.status {
            Ok(done) => {
                values.insert("Status", text("Done"));
                values.insert("Digest", text(&done.digest));
                values.insert("Bytes", number(done.bytes));
            }
            Err(error) => {
                values.insert("Status", text("Error"));
                values.insert("ErrorMessage", text(error));
            }
        }
        if let Some(seconds) = outcome.seconds {
            values.insert("Seconds", number(seconds));
        }
        if let Some(log) = log {
            values.insert("LogGroup", text(&log.group));
            values.insert("LogStream", text(&log.stream));
        }
        // What this attempt does not tell must not be left over from the one before.
        let stale: Vec<_> = ["ErrorMessage", "Digest", "Bytes", "Seconds", "LogGroup", "LogStream"]
            .into_iter()
            .filter(|name| !values.contains_key(name))
            .collect();

        let first = self
            .update(copy.image.as_str(), &copy.tag, &values, &stale)
            .condition_expression("#Execution <> :Execution OR #Batch <> :Batch");
        let first = with_attempt(first);
        match first.send().await {
            Err(error)
                if error.as_service_error().is_some_and(UpdateItemError::is_conditional_check_failed_exception) =>
            {
                self.update(&copy.image, &copy.tag, &values, &stale)
                    .send()
                    .await
                    .map_err(Error::aws("dynamodb:UpdateItem", &self.config.image_table))?;
            }
            written => {
                written.map_err(Error::aws("dynamodb:UpdateItem", &self.config.image_table))?;
            }
        }
        Ok(())
    }

    async fn count(&self, request: &Request, outcomes: &[Outcome]) -> Result<Counts> {
        let mut counts = Counts::default();
        for outcome in outcomes {
            *(if outcome.status.is_ok() { &mut counts.done } else { &mut counts.failed }) += 1;
        }
        let bytes: u64 =
            outcomes.iter().filter_map(|outcome| outcome.status.as_ref().ok()).map(|done| done.bytes).sum();
        let added = self
            .dynamodb
            .update_item()
            .table_name(&self.config.execution_table)
            .key("Execution", text(&request.execution))
            .update_expression(
                "SET updatedAt = :now ADD done :done, failed :failed, bytesDone :bytes, recorded :batches",
            )
            .condition_expression("NOT contains(recorded, :batch)")
            .expression_attribute_values(":now", text(&now()))
            .expression_attribute_values(":done", number(counts.done))
            .expression_attribute_values(":failed", number(counts.failed))
            .expression_attribute_values(":bytes", number(bytes))
            .expression_attribute_values(":batch", text(&request.batch.id))
            .expression_attribute_values(":batches", AttributeValue::Ss(vec![request.batch.id.clone()]))
            .send()
            .await;
        match added {
            Err(error)
                if error.as_service_error().is_some_and(UpdateItemError::is_conditional_check_failed_exception) =>
            {
                tracing::info!(batch = request.batch.id, "counted already");
            }
            added => {
                added.map_err(Error::aws("dynamodb:UpdateItem", &self.config.execution_table))?;
            }
        }
        Ok(counts)
    }

    fn update(
        &self,
        image: &str,
        tag: &str,
        values: &HashMap<&str, AttributeValue>,
        stale: &[&str],
    ) -> UpdateItemFluentBuilder {
        let mut update = self
            .dynamodb
            .update_item()
            .table_name(&self.config.image_table)
            .key("Image", text(image))
            .key("Tag", text(tag));
        let mut set = Vec::new();
        for (name, value) in values {
            set.push(format!("#{name} = :{name}"));
            update = update
                .expression_attribute_names(format!("#{name}"), *name)
                .expression_attribute_values(format!(":{name}"), value.clone());
        }
        for name in stale {
            update = update.expression_attribute_names(format!("#{name}"), *name);
        }
        let remove: Vec<_> = stale.iter().map(|name| format!("#{name}")).collect();
        let mut expression = format!("SET {}", set.join(", "));
        if !remove.is_empty() {
            expression = format!("{expression} REMOVE {}", remove.join(", "));
        }
        update.update_expression(expression)
    }
}

fn with_attempt(update: UpdateItemFluentBuilder) -> UpdateItemFluentBuilder {
    let expression = format!("{} ADD Attempts :one", update.get_update_expression().as_deref().unwrap_or_default());
    update.update_expression(expression).expression_attribute_values(":one", number(1))
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn now() -> String {
    DateTime::from(SystemTime::now()).fmt(DateTimeFormat::DateTime).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::operation::update_item::UpdateItemOutput;
    use aws_sdk_dynamodb::types::error::ConditionalCheckFailedException;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};
    use shared::plan::Copy;

    use super::*;
    use crate::outcome::Done;

    fn config() -> Config {
        let environment = [("IMAGE_TABLE", "images"), ("EXECUTION_TABLE", "executions")].into_iter().collect();
        Config::read(&environment).expect("it is complete")
    }

    fn request() -> Request {
        serde_json::from_value(serde_json::json!({
            "execution": "run", "batch": {"id": "7", "bytes": 0, "copies": []},
            "result": {"log": {"group": "g", "stream": "s"}}
        }))
        .expect("it is a request")
    }

    fn outcome(status: Result<Done, String>) -> Outcome {
        let copy = Copy {
            source: "s/app@sha256:1".into(),
            destination: "d/app:1".into(),
            digest: "sha256:1".into(),
            image: "app".into(),
            tag: "1".into(),
            bytes: 5,
            ..Copy::default()
        };
        Outcome { copy, status, seconds: Some(3) }
    }

    fn done() -> Outcome {
        outcome(Ok(Done { digest: "sha256:1".into(), bytes: 9 }))
    }

    fn any(table: &'static str) -> Rule {
        mock!(Client::update_item)
            .match_requests(move |request| request.table_name() == Some(table))
            .then_output(|| UpdateItemOutput::builder().build())
    }

    #[tokio::test]
    async fn an_image_at_its_destination_gets_a_row_that_says_so_without_an_old_error() {
        let row = mock!(Client::update_item)
            .match_requests(|request| {
                let value = |name: &str| request.expression_attribute_values().and_then(|values| values.get(name));
                let expression = request.update_expression().unwrap_or_default();
                request.table_name() == Some("images")
                    && request.key().and_then(|key| key.get("Image")) == Some(&text("app"))
                    && request.key().and_then(|key| key.get("Tag")) == Some(&text("1"))
                    && value(":Status") == Some(&text("Done"))
                    && value(":Digest") == Some(&text("sha256:1"))
                    && value(":Bytes") == Some(&number(9))
                    && value(":LogStream") == Some(&text("s"))
                    && expression.contains("REMOVE #ErrorMessage")
                    && expression.ends_with("ADD Attempts :one")
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let executions = any("executions");
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&row, &executions]);
        let counts = Tables::new(&dynamodb, &config()).record(&request(), &[done()]).await.expect("it is written");
        assert_eq!((counts, row.num_calls()), (Counts { done: 1, failed: 0 }, 1));
    }

    #[tokio::test]
    async fn an_image_that_is_not_there_gets_a_row_with_its_error() {
        let row = mock!(Client::update_item)
            .match_requests(|request| {
                let value = |name: &str| request.expression_attribute_values().and_then(|values| values.get(name));
                value(":Status") == Some(&text("Error"))
                    && value(":ErrorMessage") == Some(&text("manifest unknown"))
                    && value(":Digest").is_none()
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let executions = any("executions");
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&row, &executions]);
        let failed = outcome(Err("manifest unknown".into()));
        let counts = Tables::new(&dynamodb, &config()).record(&request(), &[failed]).await.expect("it is written");
        assert_eq!((counts, row.num_calls()), (Counts { done: 0, failed: 1 }, 1));
    }

    #[tokio::test]
    async fn a_batch_is_counted_under_its_id() {
        let rows = any("images");
        let count = mock!(Client::update_item)
            .match_requests(|request| {
                let value = |name: &str| request.expression_attribute_values().and_then(|values| values.get(name));
                request.table_name() == Some("executions")
                    && request.condition_expression() == Some("NOT contains(recorded, :batch)")
                    && value(":batch") == Some(&text("7"))
                    && value(":done") == Some(&number(1))
                    && value(":failed") == Some(&number(1))
                    && value(":bytes") == Some(&number(9))
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&rows, &count]);
        Tables::new(&dynamodb, &config())
            .record(&request(), &[done(), outcome(Err("no".into()))])
            .await
            .expect("it is written");
        assert_eq!(count.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_batch_that_is_recorded_again_is_not_counted_again_and_adds_no_attempt() {
        let conditional =
            mock!(Client::update_item).match_requests(|request| request.condition_expression().is_some()).then_error(
                || UpdateItemError::ConditionalCheckFailedException(ConditionalCheckFailedException::builder().build()),
            );
        let again = mock!(Client::update_item)
            .match_requests(|request| {
                request.condition_expression().is_none()
                    && request.table_name() == Some("images")
                    && !request.update_expression().unwrap_or_default().contains("Attempts")
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&conditional, &again]);
        Tables::new(&dynamodb, &config()).record(&request(), &[done()]).await.expect("it is no error");
        assert_eq!((conditional.num_calls(), again.num_calls()), (2, 1));
    }
}
