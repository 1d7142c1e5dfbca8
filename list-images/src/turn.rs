//! Decides which execution of the state machine runs: one at a time lists and copies.

use std::time::SystemTime;

use aws_sdk_sfn::Client;
use aws_sdk_sfn::primitives::DateTime;
use aws_sdk_sfn::types::{ExecutionListItem, ExecutionStatus};
use serde_json::Value;
use shared::plan::Wait;
use shared::{Error, Result};

use crate::input::Input;

#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// The execution runs.
    Now,
    /// The execution ends: the waiting execution with this ARN copies everything that it would copy.
    LeftTo(String),
    /// The execution checks again later: an earlier one is active.
    Wait(Wait),
}

/// The shortest and the longest pause, in seconds. Each check adds nine events to the history, which has
/// [at most 25,000](https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html). 30 days add about 20,000.
const PAUSES: (i64, i64) = (60, 1_200);

/// Decides whether the execution `name` runs now. The earliest one runs. The others wait, unless one that already waits copies
/// the same images. Dry runs do not wait, and other executions do not wait for them.
pub async fn take(sfn: &Client, state_machine: &str, name: &str, input: &Input) -> Result<Turn> {
    if input.dry_run {
        return Ok(Turn::Now);
    }
    let (earlier, started_at) = earlier(sfn, state_machine, name).await?;
    let mut active = None;
    for execution in earlier {
        let arn = execution.execution_arn();
        let described = sfn.describe_execution().execution_arn(arn).send().await;
        let described = described.map_err(Error::aws("states:DescribeExecution", arn))?;
        let other: Value = described.input().and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        // An execution with an invalid input will fail.
        let other = Input::parse(&other).ok();
        if other.as_ref().is_some_and(|it| it.dry_run) || *described.status() != ExecutionStatus::Running {
            continue;
        }
        let copies_the_same = input.src_image_list.is_none() && other.is_some_and(|it| it.src_image_list.is_none());
        if active.is_some() && copies_the_same {
            return Ok(Turn::LeftTo(arn.to_owned()));
        }
        active.get_or_insert_with(|| arn.to_owned());
    }
    let waited = started_at.map_or(0, |start| DateTime::from(SystemTime::now()).secs() - start.secs());
    Ok(active.map_or(Turn::Now, |execution| Turn::Wait(Wait { execution, seconds: pause(waited) })))
}

/// The next pause of an execution that has waited for this time, both in seconds.
fn pause(waited: i64) -> i64 {
    (waited / 50).clamp(PAUSES.0, PAUSES.1)
}

/// The running executions that were started before `name`, the earliest first, and the time when `name` was started. The list is
/// [eventually consistent](https://docs.aws.amazon.com/step-functions/latest/apireference/API_ListExecutions.html). If `name` is
/// not listed yet, it counts as the latest.
async fn earlier(sfn: &Client, state_machine: &str, name: &str) -> Result<(Vec<ExecutionListItem>, Option<DateTime>)> {
    let running = sfn.list_executions().state_machine_arn(state_machine).status_filter(ExecutionStatus::Running);
    let mut pages = running.into_paginator().send();
    let mut executions = Vec::new();
    while let Some(page) = pages.next().await {
        executions.extend(page.map_err(Error::aws("states:ListExecutions", state_machine))?.executions);
    }
    executions.sort_by(|a, b| (a.start_date(), a.name()).cmp(&(b.start_date(), b.name())));
    let this = executions.iter().position(|execution| execution.name() == name);
    let started_at = this.map(|this| *executions[this].start_date());
    executions.truncate(this.unwrap_or(executions.len()));
    Ok((executions, started_at))
}

#[cfg(test)]
mod tests {
    use aws_sdk_sfn::operation::describe_execution::DescribeExecutionOutput;
    use aws_sdk_sfn::operation::list_executions::ListExecutionsOutput;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use serde_json::json;

    use super::*;

    /// The turn of `this`. `running` are the names and inputs of executions in the order in which they were started.
    async fn turn(running: &[(&'static str, Value)], this: &str, input: &Value) -> Result<Turn> {
        let item = |(second, (name, _)): (usize, &(&str, Value))| {
            let item =
                ExecutionListItem::builder().execution_arn(format!("arn:{name}")).state_machine_arn("arn:machine");
            let item = item.name(*name).status(ExecutionStatus::Running).start_date(DateTime::from_secs(second as i64));
            item.build().expect("it is complete")
        };
        // AWS lists the latest first.
        let items: Vec<_> = running.iter().enumerate().rev().map(item).collect();
        let listed = mock!(Client::list_executions)
            .match_requests(|request| request.status_filter() == Some(&ExecutionStatus::Running))
            .then_output(move || {
                ListExecutionsOutput::builder().set_executions(Some(items.clone())).build().expect("it is complete")
            });
        let inputs: Vec<_> = running.iter().map(|(name, input)| (format!("arn:{name}"), input.to_string())).collect();
        let described = mock!(Client::describe_execution).then_compute_output(move |request| {
            let arn = request.execution_arn().unwrap_or_default();
            let input = inputs.iter().find(|(known, _)| known == arn).map(|(_, input)| input.clone());
            let output = DescribeExecutionOutput::builder().execution_arn(arn).state_machine_arn("arn:machine");
            let output = output.status(ExecutionStatus::Running).start_date(DateTime::from_secs(0)).set_input(input);
            output.build().expect("it is complete")
        });
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&listed, &described]);
        take(&sfn, "arn:machine", this, &Input::parse(input).expect("it is valid")).await
    }

    fn waits_for(turn: Result<Turn>) -> String {
        match turn {
            Ok(Turn::Wait(wait)) => wait.execution,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_first_runs_the_second_waits_and_the_third_ends() {
        let all = [("b", json!({})), ("a", json!({ "pushed": true })), ("c", json!({}))];
        assert_eq!(turn(&all, "b", &all[0].1).await.expect("it runs"), Turn::Now);
        assert_eq!(waits_for(turn(&all, "a", &all[1].1).await), "arn:b");
        assert_eq!(turn(&all, "c", &all[2].1).await.expect("it ends"), Turn::LeftTo("arn:a".into()));
    }

    #[tokio::test]
    async fn an_execution_waits_if_the_waiting_one_copies_other_images() {
        let other = json!({ "srcImageList": "nginx:1" });
        let all = [("a", json!({})), ("b", other.clone()), ("c", json!({})), ("d", other.clone())];
        assert_eq!(waits_for(turn(&all, "c", &json!({})).await), "arn:a");
        assert_eq!(waits_for(turn(&all, "d", &other).await), "arn:a");
    }

    #[tokio::test]
    async fn an_execution_waits_if_the_waiting_one_will_fail() {
        let all = [("a", json!({})), ("b", json!({ "typo": 1 })), ("c", json!({}))];
        assert_eq!(waits_for(turn(&all, "c", &json!({})).await), "arn:a");
    }

    #[test]
    fn the_history_has_room_for_the_longest_wait() {
        let (mut waited, mut rounds) = (0, 0);
        while waited < 2_592_000 {
            waited += pause(waited);
            rounds += 1;
        }
        assert!((1_000..2_600).contains(&rounds), "{rounds} checks with 9 events each");
        assert_eq!((pause(0), pause(6_000), pause(1_000_000)), (60, 120, 1_200));
    }

    #[tokio::test]
    async fn a_dry_run_does_not_wait_and_does_not_block_others() {
        let dry = json!({ "dryRun": true });
        let all = [("a", dry.clone()), ("b", json!({})), ("c", dry.clone())];
        assert_eq!(turn(&all, "b", &json!({})).await.expect("it runs"), Turn::Now);
        assert_eq!(turn(&all, "c", &dry).await.expect("it runs"), Turn::Now);
    }

    #[tokio::test]
    async fn an_execution_that_is_not_listed_yet_counts_as_the_latest() {
        assert_eq!(turn(&[], "a", &json!({})).await.expect("it runs"), Turn::Now);
        assert_eq!(waits_for(turn(&[("b", json!({}))], "a", &json!({})).await), "arn:b");
    }

    #[tokio::test]
    async fn an_execution_that_was_just_started_asks_again_soon() {
        let item = |name: &str, start: DateTime| {
            let item = ExecutionListItem::builder().execution_arn(format!("arn:{name}")).name(name).start_date(start);
            let item = item.state_machine_arn("arn:machine").status(ExecutionStatus::Running);
            item.build().expect("it is complete")
        };
        let executions = [item("a", DateTime::from_secs(0)), item("b", DateTime::from(SystemTime::now()))];
        let listed = mock!(Client::list_executions).then_output(move || {
            let all = Some(executions.to_vec());
            ListExecutionsOutput::builder().set_executions(all).build().expect("it is complete")
        });
        let described = mock!(Client::describe_execution).then_output(|| {
            let output = DescribeExecutionOutput::builder().execution_arn("arn:a").state_machine_arn("arn:machine");
            let output = output.status(ExecutionStatus::Running).start_date(DateTime::from_secs(0));
            output.build().expect("it is complete")
        });
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&listed, &described]);
        let turn = take(&sfn, "arn:machine", "b", &Input::default()).await.expect("it waits");
        assert_eq!(turn, Turn::Wait(Wait { execution: "arn:a".into(), seconds: PAUSES.0 }));
    }
}
