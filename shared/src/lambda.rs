//! What the Lambdas have in common: their invocations and events, and how an error reaches the state machine.

use std::error::Error as StdError;

use lambda_runtime::{Diagnostic, LambdaEvent, run, service_fn};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::text::Excerpt;
use crate::{Error, Result};

/// Calls `handler` for each invocation. An error is logged, and fails the invocation with its name and message.
///
/// # Errors
/// If the Lambda Runtime API fails.
pub async fn serve<T: Serialize>(handler: impl AsyncFn(Value) -> Result<T>) -> Result<(), lambda_runtime::Error> {
    run(service_fn(async |event: LambdaEvent<Value>| {
        handler(event.payload).await.map_err(|error| {
            tracing::error!(error = &error as &dyn StdError, "the invocation failed");
            Diagnostic { error_type: error.name().into(), error_message: error.to_string() }
        })
    }))
    .await
}

/// Parses the payload of an invocation.
///
/// # Errors
/// [`Error::Event`]
pub fn parse<T: DeserializeOwned>(payload: Value) -> Result<T> {
    serde_json::from_value(payload).map_err(|error| Error::Event(Excerpt::new(&error.to_string())))
}

/// A Lambda is invoked by a state of the state machine, or by EventBridge.
#[derive(Debug)]
pub enum Invocation<Request> {
    /// A state's request.
    State(Request),
    /// An event of EventBridge: it has a `detail-type`.
    Event(Event),
}

impl<Request: DeserializeOwned> Invocation<Request> {
    /// Parses the payload of an invocation.
    ///
    /// # Errors
    /// [`Error::Event`]
    pub fn parse(payload: Value) -> Result<Self> {
        if payload.get("detail-type").is_some() {
            parse(payload).map(Self::Event)
        } else {
            parse(payload).map(Self::State)
        }
    }
}

/// The events that the template's rules send, with the fields of `detail` that the Lambdas use.
#[derive(Debug, Deserialize)]
#[serde(tag = "detail-type", content = "detail")]
pub enum Event {
    /// ECS's [task state change](https://docs.aws.amazon.com/AmazonECS/latest/developerguide/ecs_task_events.html).
    #[serde(rename = "ECS Task State Change")]
    TaskStateChange(TaskStateChange),
    /// Step Functions'
    /// [execution status change](https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html).
    #[serde(rename = "Step Functions Execution Status Change")]
    ExecutionStatusChange(ExecutionStatusChange),
    /// ECR's [image action](https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-eventbridge.html).
    #[serde(rename = "ECR Image Action")]
    ImageAction(ImageAction),
}

/// A task's status changed. The event does not have the task's overrides.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskStateChange {
    /// The task's ARN.
    pub task_arn: String,
    /// The ARN of its cluster.
    pub cluster_arn: String,
    /// `STOPPED`, for example.
    pub last_status: String,
    /// Why it stopped.
    #[serde(default)]
    pub stopped_reason: String,
    /// Its containers.
    #[serde(default)]
    pub containers: Vec<Container>,
}

/// A container of a task.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Its name in the task definition.
    pub name: String,
    /// `None` if the container never ran.
    pub exit_code: Option<i32>,
    /// Why it stopped, if ECS knows.
    pub reason: Option<String>,
}

/// An execution's status changed. The event does not have the cause.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionStatusChange {
    /// The execution's ARN.
    pub execution_arn: String,
    /// The execution's name.
    pub name: String,
    /// `FAILED`, for example.
    pub status: String,
    /// The output as JSON, if it succeeded.
    pub output: Option<String>,
}

/// An image was pushed or deleted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageAction {
    /// `PUSH`, for example.
    pub action_type: String,
    /// The repository's name.
    pub repository_name: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(payload: Value) -> Result<Invocation<Vec<u8>>> {
        Invocation::parse(payload)
    }

    #[test]
    fn a_payload_with_a_detail_type_is_an_event_and_any_other_is_a_request() {
        let task = json!({ "taskArn": "arn:task", "clusterArn": "arn:cluster", "lastStatus": "STOPPED", "cpu": "512" });
        let execution = json!({ "executionArn": "arn:run", "name": "run", "status": "FAILED", "input": "{}" });
        let image = json!({ "action-type": "PUSH", "repository-name": "app", "image-tag": "1" });
        let event = |kind: &str, detail: &Value| {
            parsed(json!({ "version": "0", "id": "0", "detail": detail, "detail-type": kind, "resources": [] }))
        };
        use Invocation::Event as Is;
        assert!(matches!(event("ECS Task State Change", &task), Ok(Is(Event::TaskStateChange(_)))));
        assert!(matches!(
            event("Step Functions Execution Status Change", &execution),
            Ok(Is(Event::ExecutionStatusChange(_)))
        ));
        assert!(matches!(event("ECR Image Action", &image), Ok(Is(Event::ImageAction(_)))));
        assert!(matches!(parsed(json!([1])), Ok(Invocation::State(state)) if state == [1]));
    }

    #[test]
    fn a_payload_of_another_form_is_an_error() {
        for payload in [
            json!({ "detail-type": "Scheduled Event", "detail": {} }),
            json!({ "detail-type": "ECR Image Action", "detail": { "action-type": "PUSH" } }),
            json!({ "batch": {} }),
        ] {
            assert_eq!(parsed(payload).expect_err("it has another form").name(), "InvalidEvent");
        }
    }

    #[test]
    fn the_events_of_the_templates_rules_are_known() {
        let template = include_str!("../../template.yaml");
        let types = template.lines().filter_map(|line| line.trim().strip_prefix("detail-type: [")?.strip_suffix(']'));
        for name in types.filter(|name| *name != "CloudFormation Stack Status Change") {
            let error = parsed(json!({ "detail-type": name, "detail": {} })).expect_err("it has no fields").to_string();
            assert!(error.contains("missing field"), "{name}: {error}");
        }
    }
}
