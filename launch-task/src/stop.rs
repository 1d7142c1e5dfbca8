//! Stops tasks: the earlier task of a batch that is launched again, and all tasks of an execution that was stopped.

use aws_sdk_ecs::Client;
use aws_sdk_ecs::operation::stop_task::StopTaskError;
use aws_sdk_ecs::types::{ContainerOverride, Task, TaskOverride};
use serde_json::{Value, json};
use shared::lambda::ExecutionStatusChange;
use shared::task::{BATCH, started_by};
use shared::{Error, Result};

/// The most tasks of a DescribeTasks.
const PAGE: usize = 100;

/// Stops the tasks of an execution that was stopped or timed out.
pub async fn for_execution(
    ecs: &Client,
    cluster: &str,
    state_machine: &str,
    event: &ExecutionStatusChange,
) -> Result<Value> {
    let ExecutionStatusChange { name, status, .. } = event;
    if !matches!(status.as_str(), "ABORTED" | "TIMED_OUT") {
        return Ok(json!({}));
    }
    let started_by = started_by(state_machine, name);
    let reason = format!("The status of the execution {name} is {status}.");
    let stopped = stop(ecs, cluster, &started_by, |_| true, &reason).await?;
    Ok(json!({ "stopped": stopped }))
}

/// Stops an earlier task of the batch, so that two tasks do not copy the same images.
pub async fn for_batch(ecs: &Client, cluster: &str, started_by: &str, batch: &str) -> Result<()> {
    let is_of_batch = |task: &Task| {
        let containers = task.overrides().map(TaskOverride::container_overrides).unwrap_or_default();
        let mut variables = containers.iter().flat_map(ContainerOverride::environment);
        variables.any(|variable| (variable.name(), variable.value()) == (Some(BATCH), Some(batch)))
    };
    stop(ecs, cluster, started_by, is_of_batch, "The batch is launched again.").await.map(drop)
}

/// Stops the running tasks of an execution that `matches` selects. Returns their number.
async fn stop(
    ecs: &Client,
    cluster: &str,
    started_by: &str,
    matches: impl Fn(&Task) -> bool,
    reason: &str,
) -> Result<usize> {
    // startedBy must be the only filter, and selects running tasks:
    // https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ListTasks.html
    let mut pages = ecs.list_tasks().cluster(cluster).started_by(started_by).into_paginator().send();
    let mut arns = Vec::new();
    while let Some(page) = pages.next().await {
        arns.extend(page.map_err(Error::aws("ecs:ListTasks", cluster))?.task_arns.unwrap_or_default());
    }
    let mut stopped = 0;
    for arns in arns.chunks(PAGE) {
        let described = ecs.describe_tasks().cluster(cluster).set_tasks(Some(arns.to_vec())).send().await;
        let described = described.map_err(Error::aws("ecs:DescribeTasks", cluster))?;
        for arn in described.tasks().iter().filter(|task| matches(task)).filter_map(Task::task_arn) {
            match ecs.stop_task().cluster(cluster).task(arn).reason(reason).send().await {
                Ok(_) => stopped += 1,
                // It has just ended.
                Err(error) if error.as_service_error().is_some_and(StopTaskError::is_invalid_parameter_exception) => {}
                Err(error) => return Err(Error::aws("ecs:StopTask", arn)(error)),
            }
            tracing::info!(task = arn, started_by, reason, "task stopped");
        }
    }
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecs::error::ErrorMetadata;
    use aws_sdk_ecs::operation::describe_tasks::DescribeTasksOutput;
    use aws_sdk_ecs::operation::list_tasks::ListTasksOutput;
    use aws_sdk_ecs::operation::stop_task::StopTaskOutput;
    use aws_sdk_ecs::types::KeyValuePair;
    use aws_sdk_ecs::types::error::InvalidParameterException;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    fn listed() -> Rule {
        mock!(Client::list_tasks)
            .match_requests(|request| {
                request.started_by() == Some(started_by("arn:machine", "run 1").as_str())
                    && request.desired_status().is_none()
                    && request.family().is_none()
            })
            .then_output(|| ListTasksOutput::builder().task_arns("arn:1").task_arns("arn:2").build())
    }

    fn described() -> Rule {
        mock!(Client::describe_tasks).then_output(|| {
            let task = |arn: &str, batch: &str| {
                let variable = KeyValuePair::builder().name(BATCH).value(batch).build();
                let container = ContainerOverride::builder().environment(variable).build();
                let overrides = TaskOverride::builder().container_overrides(container).build();
                Task::builder().task_arn(arn).overrides(overrides).build()
            };
            DescribeTasksOutput::builder().tasks(task("arn:1", "1")).tasks(task("arn:2", "2")).build()
        })
    }

    fn event(status: &str) -> ExecutionStatusChange {
        let detail = json!({ "executionArn": "arn:run", "name": "run 1", "status": status });
        serde_json::from_value(detail).expect("it is an event")
    }

    #[tokio::test]
    async fn all_tasks_of_a_stopped_execution_are_stopped_even_if_one_has_just_ended() {
        let (listed, described) = (listed(), described());
        let ended = mock!(Client::stop_task)
            .match_requests(|request| request.task() == Some("arn:1"))
            .then_error(|| StopTaskError::InvalidParameterException(InvalidParameterException::builder().build()));
        let stopped = mock!(Client::stop_task)
            .match_requests(|request| request.task() == Some("arn:2") && request.reason().is_some())
            .then_output(|| StopTaskOutput::builder().build());
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&listed, &described, &ended, &stopped]);
        let answer = for_execution(&ecs, "cluster", "arn:machine", &event("ABORTED")).await.expect("they are stopped");
        assert_eq!((answer, ended.num_calls(), stopped.num_calls()), (json!({ "stopped": 1 }), 1, 1));
    }

    #[tokio::test]
    async fn an_execution_that_succeeded_stops_no_tasks() {
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, []);
        for_execution(&ecs, "cluster", "arn:machine", &event("SUCCEEDED")).await.expect("it needs no call");
    }

    #[tokio::test]
    async fn only_the_earlier_task_of_a_batch_is_stopped_before_it_is_launched_again() {
        let (listed, described) = (listed(), described());
        let stopped = mock!(Client::stop_task)
            .match_requests(|request| request.task() == Some("arn:2"))
            .then_output(|| StopTaskOutput::builder().build());
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&listed, &described, &stopped]);
        for_batch(&ecs, "cluster", &started_by("arn:machine", "run 1"), "2").await.expect("it is stopped");
        assert_eq!(stopped.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_task_that_must_not_be_stopped_is_an_error() {
        let (listed, described) = (listed(), described());
        let denied = mock!(Client::stop_task)
            .then_error(|| StopTaskError::generic(ErrorMetadata::builder().code("AccessDeniedException").build()));
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&listed, &described, &denied]);
        let error = for_batch(&ecs, "cluster", &started_by("arn:machine", "run 1"), "2").await.expect_err("we may not");
        assert_eq!(error.name(), "AccessDenied");
    }
}
