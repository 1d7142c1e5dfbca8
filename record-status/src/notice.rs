//! Notifications about executions that did not succeed. The template's rule can also select those that succeeded: then each
//! execution that copied something is notified.

use std::collections::HashMap;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sfn::operation::describe_execution::DescribeExecutionOutput;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use shared::lambda::ExecutionStatusChange;
use shared::text::Excerpt;
use shared::{Error, Kind, Result};

use crate::config::NoticeConfig;

/// The most characters of a subject, which must be
/// ["less than 100 characters long"](https://docs.aws.amazon.com/sns/latest/api/API_Publish.html).
const SUBJECT: usize = 99;

/// The error of an execution that did not copy all images.
const NOT_COPIED: &str = "ImagesNotCopied";

pub struct Clients {
    pub sfn: aws_sdk_sfn::Client,
    pub dynamodb: aws_sdk_dynamodb::Client,
    pub sns: aws_sdk_sns::Client,
}

impl Clients {
    pub fn new(aws: &SdkConfig) -> Self {
        Self {
            sfn: aws_sdk_sfn::Client::new(aws),
            dynamodb: aws_sdk_dynamodb::Client::new(aws),
            sns: aws_sdk_sns::Client::new(aws),
        }
    }
}

/// An execution's item in the table.
struct Counts(HashMap<String, AttributeValue>);

impl Counts {
    fn number(&self, name: &str) -> &str {
        self.0.get(name).and_then(|value| value.as_n().ok()).map_or("0", String::as_str)
    }

    /// The first failures, one per line.
    fn failures(&self) -> String {
        let failures = self.0.get("failures").and_then(|value| value.as_l().ok()).into_iter().flatten();
        failures.filter_map(|failure| Some(format!("\n- {}", without_links(failure.as_s().ok()?)))).collect()
    }

    fn text(&self) -> String {
        let [done, to_copy, failed, unchanged] =
            ["done", "toCopy", "failed", "unchanged"].map(|name| self.number(name));
        format!("{done} of {to_copy} images were copied, {failed} failed, {unchanged} were unchanged.")
    }
}

/// Notifies about an execution that has ended. If this fails, Lambda retries, and then sends the event itself to the topic.
pub async fn send(clients: &Clients, config: &NoticeConfig, execution: &ExecutionStatusChange) -> Result<Value> {
    let ExecutionStatusChange { execution_arn, name, status, .. } = execution;
    let ended = clients.sfn.describe_execution().execution_arn(execution_arn).send().await;
    let ended = ended.map_err(Error::aws("states:DescribeExecution", execution_arn))?;
    // DescribeExecution is eventually consistent, so its answer can be older than the event:
    // https://docs.aws.amazon.com/step-functions/latest/apireference/API_DescribeExecution.html
    if ended.status().as_str() != status {
        return Err(Error::Aws {
            action: "states:DescribeExecution",
            subject: execution_arn.clone(),
            kind: Kind::Unavailable,
            message: Excerpt::new(&format!("the status in the event is {status}, and still {} here.", ended.status())),
            source: "the answer is older than the event".into(),
        });
    }
    let table = &config.execution_table;
    let item = clients.dynamodb.get_item().table_name(table).key("Execution", AttributeValue::S(name.clone()));
    let item = item.consistent_read(true).send().await.map_err(Error::aws("dynamodb:GetItem", table))?;
    let counts = item.item.map(Counts);
    let Some(Message { summary, text, failures }) = message(&ended, counts.as_ref()) else { return Ok(json!({})) };
    let subject: String = format!("ecr-transfer {}: {summary}", config.stack).chars().take(SUBJECT).collect();
    let NoticeConfig { console, region, .. } = config;
    // An execution without an item failed while it listed images.
    let log = if counts.is_some() { &config.task_log } else { &config.list_log };
    // The console's encoding of a slash.
    let log = log.replace('/', "$252F");
    let message = format!(
        "{text}\n\nExecution: {console}/states/home?region={region}#/v2/executions/details/{execution_arn}\n\
         Logs: {console}/cloudwatch/home?region={region}#logsV2:log-groups/log-group/{log}{failures}",
    );
    let sent = clients.sns.publish().topic_arn(&config.topic).subject(subject).message(message).send().await;
    sent.map_err(Error::aws("sns:Publish", &config.topic))?;
    Ok(json!({ "notified": name }))
}

struct Message {
    /// For the subject.
    summary: &'static str,
    text: String,
    /// Messages of registries and tools. They come last, after our links.
    failures: String,
}

/// `None` if the execution succeeded and had nothing to copy.
fn message(ended: &DescribeExecutionOutput, counts: Option<&Counts>) -> Option<Message> {
    let error = ended.error().unwrap_or_default();
    let cause = ended.cause().unwrap_or_default();
    // The cause of a Lambda's error is JSON.
    let lambda: Value = serde_json::from_str(cause).unwrap_or_default();
    let mut cause = without_links(Excerpt::new(lambda["errorMessage"].as_str().unwrap_or(cause)).as_str());
    if !error.is_empty() {
        cause = format!("{}: {cause}", Excerpt::new(error));
    }
    let so_far = || counts.map(|counts| format!("\n\n{}", counts.text())).unwrap_or_default();
    let (summary, text) = match ended.status() {
        ExecutionStatus::Succeeded => {
            let counts = counts.filter(|counts| counts.number("toCopy") != "0")?;
            ("all images were copied", format!("{} {} bytes.", counts.text(), counts.number("bytesDone")))
        }
        ExecutionStatus::Failed if error == NOT_COPIED => {
            ("images were not copied", counts.map_or(cause, Counts::text))
        }
        ExecutionStatus::TimedOut => (
            "the run timed out",
            format!("The run took longer than runTimeoutSeconds. The next run copies what is missing.{}", so_far()),
        ),
        ExecutionStatus::Aborted => (
            "the run was stopped",
            format!("The execution was stopped. {cause}\nThe next run copies what is missing.{}", so_far()),
        ),
        _ => ("the run failed", format!("{cause}{}", so_far())),
    };
    let mut failures = counts.map(Counts::failures).unwrap_or_default();
    if !failures.is_empty() {
        failures = format!("\n\nThe first failures, as registries and tools reported them:\n{failures}");
    }
    Some(Message { summary, text, failures })
}

/// Changes URLs of a registry's message, so that mail programs do not show them as links.
fn without_links(text: &str) -> String {
    text.replace("://", "[:]//")
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::operation::get_item::GetItemOutput;
    use aws_sdk_sfn::primitives::DateTime;
    use aws_sdk_sns::operation::publish::PublishOutput;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    fn event(status: &ExecutionStatus) -> ExecutionStatusChange {
        let detail = json!({ "executionArn": "arn:run", "name": "run", "status": status.as_str(), "input": "{}" });
        serde_json::from_value(detail).expect("it is an event")
    }

    fn config(stack: &str) -> NoticeConfig {
        NoticeConfig {
            stack: stack.into(),
            region: "us-east-1".into(),
            console: "https://console.aws.amazon.com".into(),
            topic: "arn:topic".into(),
            execution_table: "executions".into(),
            list_log: "/aws/lambda/list".into(),
            task_log: "tasks".into(),
        }
    }

    fn counts() -> HashMap<String, AttributeValue> {
        let number = |name: &str, value: &str| (name.to_owned(), AttributeValue::N(value.into()));
        let failures = vec![AttributeValue::S("app:9: see https://evil.example".into())];
        HashMap::from([
            number("done", "3"),
            number("toCopy", "4"),
            number("failed", "1"),
            number("unchanged", "7"),
            ("failures".to_owned(), AttributeValue::L(failures)),
        ])
    }

    /// The subject and the message of the notification.
    async fn sent(
        stack: &str,
        status: ExecutionStatus,
        error: Option<(&'static str, &'static str)>,
        item: Option<HashMap<String, AttributeValue>>,
    ) -> Option<(String, String)> {
        let ended = status.clone();
        let described = mock!(aws_sdk_sfn::Client::describe_execution)
            .match_requests(|request| request.execution_arn() == Some("arn:run"))
            .then_output(move || {
                let output =
                    DescribeExecutionOutput::builder().execution_arn("arn:run").state_machine_arn("arn:machine");
                let output = output.status(status.clone()).start_date(DateTime::from_secs(0));
                let output = output.set_error(error.map(|(name, _)| name.into()));
                output.set_cause(error.map(|(_, cause)| cause.into())).build().expect("it is complete")
            });
        let got = mock!(aws_sdk_dynamodb::Client::get_item)
            .then_output(move || GetItemOutput::builder().set_item(item.clone()).build());
        let (sender, messages) = std::sync::mpsc::channel();
        let published: Rule = mock!(aws_sdk_sns::Client::publish).then_compute_output(move |request| {
            let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
            sender.send((text(request.subject()), text(request.message()))).expect("it is received");
            PublishOutput::builder().build()
        });
        let clients = Clients {
            sfn: mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&described]),
            dynamodb: mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&got]),
            sns: mock_client!(aws_sdk_sns, RuleMode::MatchAny, [&published]),
        };
        send(&clients, &config(stack), &event(&ended)).await.expect("it is sent");
        messages.try_recv().ok()
    }

    #[tokio::test]
    async fn a_run_with_failed_images_is_notified_with_counts_and_the_first_failures() {
        let error = Some((NOT_COPIED, "Not every image is at its destination."));
        let (subject, text) = sent("hub", ExecutionStatus::Failed, error, Some(counts())).await.expect("one is sent");
        assert_eq!(subject, "ecr-transfer hub: images were not copied");
        assert_eq!(
            text,
            "3 of 4 images were copied, 1 failed, 7 were unchanged.\n\n\
             Execution: https://console.aws.amazon.com/states/home?region=us-east-1#/v2/executions/details/arn:run\n\
             Logs: https://console.aws.amazon.com/cloudwatch/home?region=us-east-1#logsV2:log-groups/log-group/tasks\n\n\
             The first failures, as registries and tools reported them:\n\n- app:9: see https[:]//evil.example"
        );
    }

    #[tokio::test]
    async fn a_run_that_failed_to_list_is_notified_with_its_cause_and_the_log_of_list_images() {
        let cause = r#"{"errorType": "InvalidImageList", "errorMessage": "UPPER:1: not a name\n\u001b[31m"}"#;
        let error = Some(("InvalidImageList", cause));
        let (subject, text) = sent("hub", ExecutionStatus::Failed, error, None).await.expect("one is sent");
        assert_eq!(subject, "ecr-transfer hub: the run failed");
        assert!(text.starts_with("InvalidImageList: UPPER:1: not a name\\n\\u{1b}[31m\n\nExecution: "), "{text}");
        assert!(text.ends_with("/log-group/$252Faws$252Flambda$252Flist"), "{text}");
    }

    #[tokio::test]
    async fn a_run_that_was_interrupted_is_notified_with_its_counts() {
        for (status, error, summary, cause) in [
            (ExecutionStatus::TimedOut, None, "the run timed out", "longer than runTimeoutSeconds"),
            (
                ExecutionStatus::Aborted,
                Some(("", "by hand")),
                "the run was stopped",
                "The execution was stopped. by hand",
            ),
            (
                ExecutionStatus::Failed,
                Some(("States.DataLimitExceeded", "The state/task 'CopyImages' returned a result")),
                "the run failed",
                "States.DataLimitExceeded: The state/task 'CopyImages'",
            ),
        ] {
            let (subject, text) = sent("hub", status, error, Some(counts())).await.expect("one is sent");
            assert_eq!(subject, format!("ecr-transfer hub: {summary}"));
            assert!(text.contains(cause) && text.contains("3 of 4 images were copied"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_run_that_succeeded_is_notified_only_if_it_copied_something() {
        let done = sent("hub", ExecutionStatus::Succeeded, None, Some(counts())).await.expect("one is sent");
        assert_eq!(done.0, "ecr-transfer hub: all images were copied");
        let nothing = HashMap::from([("toCopy".to_owned(), AttributeValue::N("0".into()))]);
        assert_eq!(sent("hub", ExecutionStatus::Succeeded, None, Some(nothing)).await, None);
        assert_eq!(sent("hub", ExecutionStatus::Succeeded, None, None).await, None);
    }

    #[tokio::test]
    async fn an_execution_that_is_still_described_as_running_is_retried() {
        let described = mock!(aws_sdk_sfn::Client::describe_execution).then_output(|| {
            let output = DescribeExecutionOutput::builder().execution_arn("arn:run").state_machine_arn("arn:machine");
            let output = output.status(ExecutionStatus::Running).start_date(DateTime::from_secs(0));
            output.build().expect("it is complete")
        });
        let clients = Clients {
            sfn: mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&described]),
            dynamodb: mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, []),
            sns: mock_client!(aws_sdk_sns, RuleMode::MatchAny, []),
        };
        let error = send(&clients, &config("hub"), &event(&ExecutionStatus::Failed)).await;
        assert!(error.expect_err("nothing is sent yet").kind().is_transient());
    }

    #[tokio::test]
    async fn a_subject_is_never_longer_than_sns_allows() {
        let (subject, _) = sent(&"x".repeat(128), ExecutionStatus::TimedOut, None, None).await.expect("one is sent");
        assert_eq!(subject.len(), SUBJECT);
    }
}
