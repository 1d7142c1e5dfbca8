//! The tables: a row for each image, and an item with counts for each execution.

use std::collections::HashMap;
use std::time::SystemTime;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::primitives::{DateTime, DateTimeFormat};
use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use shared::config::Environment;
use shared::metrics::{self, Unit};
use shared::plan::Row;
use shared::task::{DONE, ERROR, Log};
use shared::{Error, Result};

use crate::config::Config;
use crate::outcome::{Outcome, Outcomes, Request};

/// How many rows are written at once.
const CONCURRENCY: usize = 10;

/// Failures in an execution's item, for its notification.
const FAILURES: usize = 10;

/// The most characters of one of these.
const FAILURE_LIMIT: usize = 300;

pub struct Tables<'a> {
    dynamodb: &'a Client,
    config: &'a Config,
}

/// The counts of a batch.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recorded {
    pub done: u64,
    pub failed: u64,
    /// Of the images that are done.
    pub bytes: u64,
    /// The sum of all copies.
    pub seconds: u64,
    /// Whether the batch was already recorded, and is not counted again.
    pub again: bool,
}

impl Recorded {
    pub fn emit_metrics(&self, environment: &Environment) {
        let Self { done, failed, bytes, seconds, again } = *self;
        if again {
            return;
        }
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
}

impl<'a> Tables<'a> {
    pub fn new(dynamodb: &'a Client, config: &'a Config) -> Self {
        Self { dynamodb, config }
    }

    /// Writes the rows of a batch's images, corrects and deletes outdated `Error` rows, and adds the batch to the execution's
    /// counts. A batch that is recorded again does not count again.
    pub async fn record(&self, request: &Request, outcomes: &Outcomes) -> Result<Recorded> {
        let log = &request.report.log;
        let Outcomes { counted, present } = outcomes;
        let attempts = counted.iter().map(|outcome| (outcome, true)).chain(present.iter().map(|it| (it, false)));
        stream::iter(attempts)
            .map(|(outcome, is_attempt)| self.row(request, log.as_ref(), outcome, is_attempt))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<()>()
            .await?;
        stream::iter(&request.batch.obsolete)
            .map(|row| self.delete(row))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<()>()
            .await?;
        self.count(request, counted).await
    }

    /// Deletes a row that still says `Error`.
    async fn delete(&self, row: &Row) -> Result<()> {
        let delete = self.dynamodb.delete_item().table_name(&self.config.image_table);
        let delete = delete.key("Image", text(row.image.as_str())).key("Tag", text(row.tag.as_str()));
        let delete = delete.condition_expression("#Status = :Status").expression_attribute_names("#Status", "Status");
        match delete.expression_attribute_values(":Status", text(ERROR)).send().await {
            Err(error)
                if !error.as_service_error().is_some_and(DeleteItemError::is_conditional_check_failed_exception) =>
            {
                Err(Error::aws("dynamodb:DeleteItem", &self.config.image_table)(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes the row of an image. Attempts are counted across executions. A batch that is recorded again, and an image that
    /// the destination already had, are not counted.
    async fn row(&self, request: &Request, log: Option<&Log>, outcome: &Outcome, is_attempt: bool) -> Result<()> {
        let mut values = HashMap::from([
            ("MultiArchOption", text(&self.config.platforms)),
            ("Execution", text(&request.execution)),
            ("Batch", text(request.batch.id.as_str())),
            ("Source", text(&outcome.source)),
            ("UpdatedAt", text(&now())),
        ]);
        if let Some(destination) = &outcome.destination {
            values.insert("Destination", text(destination));
        }
        match &outcome.status {
            Ok(done) => {
                values.insert("Status", text(DONE));
                values.insert("LastDoneAt", text(&now()));
                values.insert("Digest", text(&done.digest.to_string()));
                values.insert("Bytes", number(done.bytes));
            }
            Err(error) => {
                values.insert("Status", text(ERROR));
                values.insert("ErrorMessage", text(error.as_str()));
            }
        }
        if let Some(seconds) = outcome.seconds {
            values.insert("Seconds", number(seconds));
        }
        if let Some(log) = log {
            values.insert("LogGroup", text(&log.group));
            values.insert("LogStream", text(&log.stream));
        }
        // Values of an earlier attempt must not remain.
        let fails = outcome.status.is_err();
        let stale = ["ErrorMessage", "Destination", "Digest", "Bytes", "Seconds", "LogGroup", "LogStream"].into_iter();
        let stale = stale.filter(|name| !values.contains_key(name));
        // FailingSince remains until the image is done.
        let stale: Vec<_> = stale.chain((!fails).then_some("FailingSince")).collect();

        let first = self
            .update(outcome, &values, &stale, fails, true)
            .condition_expression("#Execution <> :Execution OR #Batch <> :Batch");
        if is_attempt && self.written(first).await? {
            return Ok(());
        }
        // Otherwise the row is only written if its status changes.
        let again = self.update(outcome, &values, &stale, fails, false).condition_expression("#Status <> :Status");
        self.written(again).await.map(drop)
    }

    /// Sends a conditional update. Returns whether its condition was true.
    async fn written(&self, update: UpdateItemFluentBuilder) -> Result<bool> {
        match update.send().await {
            Ok(_) => Ok(true),
            Err(error) if is_refused(&error) => Ok(false),
            Err(error) => Err(Error::aws("dynamodb:UpdateItem", &self.config.image_table)(error)),
        }
    }

    async fn count(&self, request: &Request, outcomes: &[Outcome]) -> Result<Recorded> {
        let done = || outcomes.iter().filter_map(|outcome| outcome.status.as_ref().ok());
        let mut recorded = Recorded {
            done: done().count() as u64,
            failed: outcomes.iter().filter(|outcome| outcome.status.is_err()).count() as u64,
            bytes: done().map(|done| done.bytes).fold(0, u64::saturating_add),
            seconds: outcomes.iter().filter_map(|outcome| outcome.seconds).fold(0, u64::saturating_add),
            again: false,
        };
        let added = self
            .execution(request)
            .update_expression(
                "SET updatedAt = :now \
                 ADD done :done, failed :failed, bytesDone :bytes, secondsCopying :seconds, recorded :batches",
            )
            .condition_expression("NOT contains(recorded, :batch)")
            .expression_attribute_values(":now", text(&now()))
            .expression_attribute_values(":done", number(recorded.done))
            .expression_attribute_values(":failed", number(recorded.failed))
            .expression_attribute_values(":bytes", number(recorded.bytes))
            .expression_attribute_values(":seconds", number(recorded.seconds))
            .expression_attribute_values(":batch", text(request.batch.id.as_str()))
            .expression_attribute_values(":batches", AttributeValue::Ss(vec![request.batch.id.to_string()]))
            .send()
            .await;
        match added {
            Ok(_) => self.add_failures(request, outcomes).await?,
            Err(error) if is_refused(&error) => {
                tracing::info!(batch = %request.batch.id, "the batch is already counted");
                recorded.again = true;
            }
            Err(error) => return Err(Error::aws("dynamodb:UpdateItem", &self.config.execution_table)(error)),
        }
        Ok(recorded)
    }

    /// Adds failures to the execution's item until it has [`FAILURES`] of them, or a few more.
    async fn add_failures(&self, request: &Request, outcomes: &[Outcome]) -> Result<()> {
        let failures = outcomes.iter().filter_map(|outcome| {
            let error = outcome.status.as_ref().err()?.cut(FAILURE_LIMIT);
            Some(text(&format!("{}:{}: {error}", outcome.image, outcome.tag)))
        });
        let failures: Vec<_> = failures.take(FAILURES).collect();
        if failures.is_empty() {
            return Ok(());
        }
        let added = self
            .execution(request)
            .update_expression("SET failures = list_append(if_not_exists(failures, :none), :failures)")
            .condition_expression("attribute_not_exists(failures) OR size(failures) < :limit")
            .expression_attribute_values(":none", AttributeValue::L(Vec::new()))
            .expression_attribute_values(":failures", AttributeValue::L(failures))
            .expression_attribute_values(":limit", number(FAILURES as u64))
            .send()
            .await;
        match added {
            Err(error) if !is_refused(&error) => {
                Err(Error::aws("dynamodb:UpdateItem", &self.config.execution_table)(error))
            }
            _ => Ok(()),
        }
    }

    fn execution(&self, request: &Request) -> UpdateItemFluentBuilder {
        let update = self.dynamodb.update_item().table_name(&self.config.execution_table);
        update.key("Execution", text(&request.execution))
    }

    fn update(
        &self,
        outcome: &Outcome,
        values: &HashMap<&str, AttributeValue>,
        stale: &[&str],
        fails: bool,
        is_attempt: bool,
    ) -> UpdateItemFluentBuilder {
        let mut update = self
            .dynamodb
            .update_item()
            .table_name(&self.config.image_table)
            .key("Image", text(&outcome.image))
            .key("Tag", text(&outcome.tag));
        let mut set = Vec::new();
        for (name, value) in values {
            set.push(format!("#{name} = :{name}"));
            update = update
                .expression_attribute_names(format!("#{name}"), *name)
                .expression_attribute_values(format!(":{name}"), value.clone());
        }
        if fails {
            set.push("FailingSince = if_not_exists(FailingSince, :UpdatedAt)".into());
        }
        for name in stale {
            update = update.expression_attribute_names(format!("#{name}"), *name);
        }
        let remove: Vec<_> = stale.iter().map(|name| format!("#{name}")).collect();
        let mut expression = format!("SET {}", set.join(", "));
        if !remove.is_empty() {
            expression = format!("{expression} REMOVE {}", remove.join(", "));
        }
        if is_attempt {
            expression.push_str(" ADD Attempts :one");
            update = update.expression_attribute_values(":one", number(1));
        }
        update.update_expression(expression)
    }
}

fn is_refused<R>(error: &SdkError<UpdateItemError, R>) -> bool {
    error.as_service_error().is_some_and(UpdateItemError::is_conditional_check_failed_exception)
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
    use std::time::Duration;

    use aws_sdk_dynamodb::config::retry::RetryConfig;
    use aws_sdk_dynamodb::error::ErrorMetadata;
    use aws_sdk_dynamodb::operation::delete_item::DeleteItemOutput;
    use aws_sdk_dynamodb::operation::update_item::{UpdateItemInput, UpdateItemOutput};
    use aws_sdk_dynamodb::types::error::ConditionalCheckFailedException;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use shared::reference::Digest;

    use super::*;
    use crate::outcome::Done;

    fn config() -> Config {
        let environment = [("IMAGE_TABLE", "images"), ("EXECUTION_TABLE", "executions")].into_iter().collect();
        Config::read(&environment).expect("it is complete")
    }

    fn request() -> Request {
        serde_json::from_value(serde_json::json!({
            "execution": "run", "batch": {"id": "7", "bytes": 0, "repositories": []},
            "result": {"log": {"group": "g", "stream": "s"}}
        }))
        .expect("it is a request")
    }

    fn outcome(status: Result<Done, &str>) -> Outcome {
        Outcome {
            image: "app".into(),
            tag: "1".into(),
            source: "s.example/app".into(),
            destination: Some("d.example/app:1".into()),
            status: status.map_err(Into::into),
            seconds: Some(3),
        }
    }

    fn digest() -> Digest {
        Digest::of(b"image")
    }

    fn done() -> Outcome {
        outcome(Ok(Done { digest: digest(), bytes: 9 }))
    }

    fn counted(outcomes: impl IntoIterator<Item = Outcome>) -> Outcomes {
        Outcomes { counted: outcomes.into_iter().collect(), ..Outcomes::default() }
    }

    fn any(table: &'static str) -> Rule {
        mock!(Client::update_item)
            .match_requests(move |request| request.table_name() == Some(table))
            .then_output(|| UpdateItemOutput::builder().build())
    }

    #[tokio::test]
    async fn the_row_of_a_copied_image_is_done_and_loses_an_old_error() {
        let row = mock!(Client::update_item)
            .match_requests(|request| {
                let value = |name: &str| request.expression_attribute_values().and_then(|values| values.get(name));
                let expression = request.update_expression().unwrap_or_default();
                request.table_name() == Some("images")
                    && request.key().and_then(|key| key.get("Image")) == Some(&text("app"))
                    && request.key().and_then(|key| key.get("Tag")) == Some(&text("1"))
                    && value(":Status") == Some(&text("Done"))
                    && value(":Digest") == Some(&text(&digest().to_string()))
                    && value(":Bytes") == Some(&number(9))
                    && value(":LogStream") == Some(&text("s"))
                    && value(":LastDoneAt").is_some()
                    && expression.contains("REMOVE #ErrorMessage, #FailingSince")
                    && expression.ends_with("ADD Attempts :one")
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let executions = any("executions");
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&row, &executions]);
        let recorded =
            Tables::new(&dynamodb, &config()).record(&request(), &counted([done()])).await.expect("it is written");
        let expected = Recorded { done: 1, bytes: 9, seconds: 3, ..Recorded::default() };
        assert_eq!((recorded, row.num_calls(), executions.num_calls()), (expected, 1, 1));
    }

    #[tokio::test]
    async fn the_row_of_a_failed_image_has_its_error() {
        let row = mock!(Client::update_item)
            .match_requests(|request| {
                let value = |name: &str| request.expression_attribute_values().and_then(|values| values.get(name));
                value(":Status") == Some(&text("Error"))
                    && value(":ErrorMessage") == Some(&text("manifest unknown"))
                    && value(":Digest").is_none()
                    && value(":LastDoneAt").is_none()
                    && request.update_expression().is_some_and(|expression| {
                        expression.contains("FailingSince = if_not_exists(FailingSince, :UpdatedAt)")
                    })
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let executions = any("executions");
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&row, &executions]);
        let failed = outcome(Err("manifest unknown"));
        let recorded =
            Tables::new(&dynamodb, &config()).record(&request(), &counted([failed])).await.expect("it is written");
        let expected = Recorded { failed: 1, seconds: 3, ..Recorded::default() };
        assert_eq!((recorded, row.num_calls()), (expected, 1));
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
                    && value(":seconds") == Some(&number(6))
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let failures = mock!(Client::update_item)
            .match_requests(|request| {
                let values = request.expression_attribute_values();
                let failures = values.and_then(|values| values.get(":failures"));
                failures == Some(&AttributeValue::L(vec![text("app:1: no")]))
                    && request.condition_expression()
                        == Some("attribute_not_exists(failures) OR size(failures) < :limit")
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&rows, &count, &failures]);
        Tables::new(&dynamodb, &config())
            .record(&request(), &counted([done(), outcome(Err("no"))]))
            .await
            .expect("it is written");
        assert_eq!((count.num_calls(), failures.num_calls()), (1, 1));
    }

    #[tokio::test]
    async fn a_batch_that_is_recorded_again_unchanged_writes_nothing() {
        let refused =
            mock!(Client::update_item).match_requests(|request| request.condition_expression().is_some()).then_error(
                || UpdateItemError::ConditionalCheckFailedException(ConditionalCheckFailedException::builder().build()),
            );
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&refused]);
        let recorded =
            Tables::new(&dynamodb, &config()).record(&request(), &counted([done()])).await.expect("it is not an error");
        // The row as an attempt, the row with another status, and the count: each with a condition.
        assert!(recorded.again);
        assert_eq!(refused.num_calls(), 3);
    }

    #[tokio::test]
    async fn a_batch_that_is_recorded_again_with_another_outcome_updates_its_rows_and_not_their_attempts() {
        let refused = mock!(Client::update_item)
            .match_requests(|request| request.condition_expression().is_some_and(|it| it != "#Status <> :Status"))
            .then_error(|| {
                UpdateItemError::ConditionalCheckFailedException(ConditionalCheckFailedException::builder().build())
            });
        let row = mock!(Client::update_item)
            .match_requests(|request| !request.update_expression().unwrap_or_default().contains("Attempts"))
            .then_output(|| UpdateItemOutput::builder().build());
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&refused, &row]);
        Tables::new(&dynamodb, &config()).record(&request(), &counted([done()])).await.expect("it is not an error");
        assert_eq!((refused.num_calls(), row.num_calls()), (2, 1));
    }

    #[tokio::test]
    async fn outdated_error_rows_are_corrected_or_deleted_and_not_counted() {
        let corrected = mock!(Client::update_item)
            .match_requests(|request| {
                let values = request.expression_attribute_values();
                request.condition_expression() == Some("#Status <> :Status")
                    && values.and_then(|values| values.get(":Status")) == Some(&text("Done"))
                    && !request.update_expression().unwrap_or_default().contains("Attempts")
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let deleted = mock!(Client::delete_item)
            .match_requests(|request| {
                let key = |name: &str| request.key().and_then(|key| key.get(name));
                (key("Image"), key("Tag")) == (Some(&text("app")), Some(&text("9.*")))
                    && request.condition_expression() == Some("#Status = :Status")
            })
            .then_output(|| DeleteItemOutput::builder().build());
        let executions = any("executions");
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&corrected, &deleted, &executions]);
        let mut request = request();
        request.batch.obsolete = vec![Row { image: "app".parse().expect("it is a name"), tag: "9.*".into() }];
        let outcomes = Outcomes { present: vec![done()], ..Outcomes::default() };
        let recorded = Tables::new(&dynamodb, &config()).record(&request, &outcomes).await.expect("it is written");
        assert_eq!((recorded, corrected.num_calls(), deleted.num_calls()), (Recorded::default(), 1, 1));
    }

    #[tokio::test]
    async fn a_throttled_write_is_retried() {
        let throttled = r#"{"__type": "com.amazonaws.dynamodb.v20120810#ThrottlingException", "message": "slow down"}"#;
        let updates = mock!(Client::update_item)
            .sequence()
            .http_status(400, Some(throttled.into()))
            .times(2)
            .output(|| UpdateItemOutput::builder().build())
            .times(2)
            .build();
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::Sequential, [&updates], |builder| {
            builder.retry_config(RetryConfig::standard().with_initial_backoff(Duration::from_millis(1)))
        });
        let recorded =
            Tables::new(&dynamodb, &config()).record(&request(), &counted([done()])).await.expect("it is written");
        assert_eq!((recorded.done, updates.num_calls()), (1, 4), "the row after two retries, and the execution's item");
    }

    fn denied() -> ErrorMetadata {
        ErrorMetadata::builder().code("AccessDeniedException").build()
    }

    /// An answer that the condition of an update does not hold.
    fn refused() -> UpdateItemError {
        UpdateItemError::ConditionalCheckFailedException(ConditionalCheckFailedException::builder().build())
    }

    fn answers(is_asked: fn(&UpdateItemInput) -> bool, error: fn() -> UpdateItemError) -> Rule {
        mock!(Client::update_item).match_requests(is_asked).then_error(error)
    }

    #[tokio::test]
    async fn a_table_that_must_not_be_written_is_an_error_whichever_it_is() {
        let asked: [fn(&UpdateItemInput) -> bool; 3] = [
            |request| request.table_name() == Some("images"),
            |request| request.update_expression().is_some_and(|it| it.contains("ADD done")),
            |request| request.update_expression().is_some_and(|it| it.contains("failures")),
        ];
        for is_asked in asked {
            let closed = answers(is_asked, || UpdateItemError::generic(denied()));
            let (rows, executions) = (any("images"), any("executions"));
            let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&closed, &rows, &executions]);
            let failed = counted([outcome(Err("no"))]);
            let error = Tables::new(&dynamodb, &config()).record(&request(), &failed).await.expect_err("we may not");
            assert_eq!((error.name(), closed.num_calls()), ("AccessDenied", 1));
        }
    }

    #[tokio::test]
    async fn an_execution_that_has_failures_enough_takes_no_more_and_that_is_no_error() {
        let full = answers(|request| request.update_expression().is_some_and(|it| it.contains("failures")), refused);
        let (rows, executions) = (any("images"), any("executions"));
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&full, &rows, &executions]);
        let failed = counted([outcome(Err("no"))]);
        let recorded = Tables::new(&dynamodb, &config()).record(&request(), &failed).await.expect("it is recorded");
        assert_eq!((recorded.failed, recorded.again, full.num_calls()), (1, false, 1));
    }

    #[tokio::test]
    async fn an_obsolete_row_that_no_longer_says_error_stays_and_one_that_must_not_be_deleted_is_an_error() {
        let delete = async |error: fn() -> DeleteItemError| {
            let (deleted, executions) = (mock!(Client::delete_item).then_error(error), any("executions"));
            let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&deleted, &executions]);
            let mut request = request();
            request.batch.obsolete = vec![Row { image: "app".parse().expect("it is a name"), tag: "9.*".into() }];
            Tables::new(&dynamodb, &config()).record(&request, &Outcomes::default()).await
        };
        let stays = delete(|| {
            let refused = ConditionalCheckFailedException::builder().build();
            DeleteItemError::ConditionalCheckFailedException(refused)
        });
        assert_eq!(stays.await.expect("it is not for us to delete"), Recorded::default());
        let error = delete(|| DeleteItemError::generic(denied())).await.expect_err("we may not");
        assert_eq!(error.name(), "AccessDenied");
    }

    #[tokio::test]
    async fn a_row_says_when_it_was_written() {
        let row = mock!(Client::update_item)
            .match_requests(|request| {
                let values = request.expression_attribute_values().expect("it has values");
                let time = |name: &str| {
                    let text = values.get(name)?.as_s().ok()?;
                    DateTime::from_str(text, DateTimeFormat::DateTime).ok()
                };
                let now = DateTime::from(SystemTime::now()).secs();
                [":UpdatedAt", ":LastDoneAt"].map(time).iter().flatten().filter(|it| now - it.secs() < 3_600).count()
                    == 2
            })
            .then_output(|| UpdateItemOutput::builder().build());
        let executions = any("executions");
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&row, &executions]);
        Tables::new(&dynamodb, &config()).record(&request(), &counted([done()])).await.expect("it is written");
        assert_eq!(row.num_calls(), 1);
    }
}
