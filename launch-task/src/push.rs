//! Starts a run when an image is pushed to the source.

use std::time::{Duration, SystemTime};

use aws_sdk_sfn::Client;
use aws_sdk_sfn::error::SdkError;
use aws_sdk_sfn::operation::start_execution::StartExecutionError;
use aws_sdk_sfn::primitives::{DateTime, DateTimeFormat};
use serde_json::{Value, json};
use shared::lambda::ImageAction;
use shared::{Error, Result};

/// Pushes within this time start one run, in seconds. The state machine waits for the same time.
const INTERVAL: i64 = 60;

/// Starts the run of the next minute, unless it is already started: the minute is the execution's name, and Step Functions
/// [rejects a used name](https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html).
pub async fn for_image(sfn: &Client, state_machine: &str, event: &ImageAction, now: SystemTime) -> Result<Value> {
    let ImageAction { action_type, repository_name } = event;
    if action_type != "PUSH" {
        return Ok(json!({}));
    }
    // At the end of the minute, its run can already have ended.
    let mut started = start(sfn, state_machine, now).await;
    if matches!(&started, Err(error) if error.as_service_error().is_some_and(StartExecutionError::is_execution_already_exists))
    {
        started = start(sfn, state_machine, now + Duration::from_secs(INTERVAL.unsigned_abs())).await;
    }
    let execution = started.map_err(Error::aws("states:StartExecution", state_machine))?;
    tracing::info!(execution, repository = repository_name, "execution started for a pushed image");
    Ok(json!({ "execution": execution }))
}

/// Starts the execution for images that are pushed at `now`, and returns its name.
async fn start(sfn: &Client, state_machine: &str, now: SystemTime) -> Result<String, SdkError<StartExecutionError>> {
    let next = (DateTime::from(now).secs() / INTERVAL + 1) * INTERVAL;
    let next = DateTime::from_secs(next).fmt(DateTimeFormat::DateTime).unwrap_or_default();
    let name = format!("pushed-{}", next.replace([':', '-'], ""));
    let input = json!({ "pushed": true }).to_string();
    sfn.start_execution().state_machine_arn(state_machine).name(&name).input(input).send().await?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use aws_sdk_sfn::operation::start_execution::StartExecutionOutput;
    use aws_sdk_sfn::types::error::ExecutionAlreadyExists;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    fn event(action: &str) -> ImageAction {
        let detail = json!({ "action-type": action, "result": "SUCCESS", "repository-name": "app", "image-tag": "1" });
        serde_json::from_value(detail).expect("it is an event")
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_039)
    }

    fn starts(name: &'static str, input: &'static str) -> Rule {
        mock!(Client::start_execution)
            .match_requests(move |request| request.name() == Some(name) && request.input() == Some(input))
            .then_output(|| {
                let output = StartExecutionOutput::builder().execution_arn("arn").start_date(DateTime::from_secs(0));
                output.build().expect("it is complete")
            })
    }

    #[tokio::test]
    async fn all_pushes_of_a_minute_start_one_run() {
        let started = starts("pushed-20231114T221400Z", r#"{"pushed":true}"#);
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&started]);
        for seconds in [0, 20] {
            let now = now() - Duration::from_secs(seconds);
            for_image(&sfn, "arn:machine", &event("PUSH"), now).await.expect("it is started");
        }
        assert_eq!(started.num_calls(), 2);
    }

    #[tokio::test]
    async fn a_push_starts_the_next_run_if_the_run_of_its_minute_has_ended() {
        let ended = mock!(Client::start_execution)
            .match_requests(|request| request.name() == Some("pushed-20231114T221400Z"))
            .then_error(|| StartExecutionError::ExecutionAlreadyExists(ExecutionAlreadyExists::builder().build()));
        let started = starts("pushed-20231114T221500Z", r#"{"pushed":true}"#);
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&ended, &started]);
        let answer = for_image(&sfn, "arn:machine", &event("PUSH"), now()).await.expect("it is started");
        assert_eq!(answer, json!({ "execution": "pushed-20231114T221500Z" }));
    }

    #[tokio::test]
    async fn a_deleted_image_starts_no_run() {
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, []);
        for_image(&sfn, "arn:machine", &event("DELETE"), now()).await.expect("it needs no call");
    }
}
