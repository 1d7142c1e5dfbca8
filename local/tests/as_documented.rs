//! What README.md says of this machine: where ministack answers otherwise than AWS's documentation says, the machine answers
//! as documented.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]
#![allow(clippy::needless_pass_by_value, reason = "JSON is made where it is passed")]

use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use local::{Machine, Options, aws::Aws, machine::ACCOUNT};
use serde_json::{Value, json};

const POLL: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);

type Result<T = ()> = local::Result<T>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let world = (!arguments.list).then(|| runtime.block_on(World::create(Options::new(directory.path()))).unwrap());
    let world = Arc::new(world);
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$({
                let (world, runtime) = (Arc::clone(&world), runtime.handle().clone());
                Trial::test(stringify!($name), move || {
                    let Some(world) = world.as_ref() else { return Err("the machine is not running".into()) };
                    runtime.block_on($name(world)).map_err(Failed::from)
                })
            }),*]
        };
    }
    let trials = trials![
        a_change_of_status_of_an_execution_or_of_a_child_is_an_event,
        an_execution_that_takes_too_long_times_out,
        an_execution_that_is_stopped_stays_aborted_and_so_are_its_children,
        an_output_above_the_quota_fails_the_execution_and_cannot_be_caught,
        what_all_children_return_counts_even_where_it_is_dropped,
        a_failed_child_is_returned_with_its_input,
        a_history_ends_at_its_quota,
        a_function_that_fails_fails_the_task_that_waits_for_its_token,
        a_task_that_is_tried_again_has_another_token,
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(world) = Arc::into_inner(world).flatten() {
        runtime.block_on(world.machine.stop());
    }
    conclusion.exit_code()
}

struct World {
    machine: Machine,
    aws: Aws,
    names: AtomicUsize,
}

impl World {
    async fn create(options: Options) -> Result<Self> {
        let machine = Machine::start(options).await?;
        let aws = machine.home()?;
        let trust = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": { "Service": "states.amazonaws.com" }, "Action": "sts:AssumeRole",
        }] });
        let role = [("RoleName", "states"), ("AssumeRolePolicyDocument", &trust.to_string())];
        aws.query("iam", "CreateRole", &role).await?;
        Ok(Self { machine, aws, names: AtomicUsize::default() })
    }

    /// A name that no other test uses.
    fn name(&self) -> String {
        format!("documented-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    async fn states(&self, action: &str, request: Value) -> Result<Value> {
        self.aws.json("states", &format!("AWSStepFunctions.{action}"), request).await
    }

    async fn events(&self, action: &str, request: Value) -> Result<Value> {
        self.aws.json("events", &format!("AWSEvents.{action}"), request).await
    }

    /// Starts an execution of a new state machine, and returns its ARN.
    async fn start(&self, definition: Value) -> Result<String> {
        let role = format!("arn:aws:iam::{ACCOUNT}:role/states");
        let request = json!({ "name": self.name(), "definition": definition.to_string(), "roleArn": role });
        let machine = self.states("CreateStateMachine", request).await?;
        let started = self.states("StartExecution", json!({ "stateMachineArn": machine["stateMachineArn"] })).await?;
        Ok(text(&started["executionArn"]))
    }

    async fn end_of(&self, execution: &str) -> Result<Value> {
        let request = json!({ "executionArn": execution });
        until(async || {
            let described = self.states("DescribeExecution", request.clone()).await?;
            Ok((described["status"] != "RUNNING").then_some(described))
        })
        .await
    }

    async fn run(&self, definition: Value) -> Result<Value> {
        self.end_of(&self.start(definition).await?).await
    }

    async fn history(&self, execution: &str) -> Result<Vec<Value>> {
        let request = json!({ "executionArn": execution, "maxResults": 1_000 });
        self.aws.pages("states", "AWSStepFunctions.GetExecutionHistory", request, "events").await
    }

    async fn children(&self, execution: &str) -> Result<Vec<Value>> {
        let runs = self.states("ListMapRuns", json!({ "executionArn": execution })).await?;
        let Some(run) = runs["mapRuns"][0]["mapRunArn"].as_str() else { return Ok(Vec::new()) };
        let mut children = self.states("ListExecutions", json!({ "mapRunArn": run })).await?;
        Ok(children["executions"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// A queue of what the matching events are.
    async fn queue_of(&self, pattern: Value) -> Result<Queue<'_>> {
        let name = self.name();
        let url = self.aws.json("sqs", "AmazonSQS.CreateQueue", json!({ "QueueName": name })).await?;
        let arn = format!("arn:aws:sqs:{}:{ACCOUNT}:{name}", self.aws.region());
        self.events("PutRule", json!({ "Name": name, "EventPattern": pattern.to_string() })).await?;
        self.events("PutTargets", json!({ "Rule": name, "Targets": [{ "Id": "queue", "Arn": arn }] })).await?;
        Ok(Queue { aws: &self.aws, url: url["QueueUrl"].clone() })
    }
}

struct Queue<'a> {
    aws: &'a Aws,
    url: Value,
}

impl Queue<'_> {
    /// Waits for so many events.
    async fn received(&self, count: usize) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        while events.len() < count {
            let page: Vec<Value> = until(async || {
                let request = json!({ "QueueUrl": self.url, "MaxNumberOfMessages": 10 });
                let mut answer = self.aws.json("sqs", "AmazonSQS.ReceiveMessage", request).await?;
                Ok(answer["Messages"].as_array_mut().map(std::mem::take).filter(|messages| !messages.is_empty()))
            })
            .await?;
            events.extend(page.iter().map(|message| serde_json::from_str::<Value>(&text(&message["Body"])).unwrap()));
        }
        Ok(events)
    }
}

async fn until<T>(probe: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let found = async {
        loop {
            if let Some(found) = probe().await? {
                return Ok(found);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn machine(state: Value) -> Value {
    json!({ "StartAt": "Only", "States": { "Only": state } })
}

fn pass(fields: Value) -> Value {
    let mut state = json!({ "Type": "Pass", "End": true });
    state.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    state
}

/// A Distributed Map, whose children have one state each.
fn map(items: &Value, child: Value, fields: Value) -> Value {
    let mut processor = machine(child);
    processor["ProcessorConfig"] = json!({ "Mode": "DISTRIBUTED", "ExecutionType": "STANDARD" });
    let mut state =
        json!({ "Type": "Map", "Label": "Each", "ItemsPath": "$.items", "ItemProcessor": processor, "End": true });
    state.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({
        "StartAt": "Items",
        "States": { "Items": { "Type": "Pass", "Result": { "items": items }, "Next": "Map" }, "Map": state },
    })
}

/// ["Status changes in state machine executions are sent to EventBridge automatically."](https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html)
/// ministack sends those of a child to nobody. The ARN of a child's machine is
/// ["arn:…:stateMachine:stateMachineName/MapRunLabel or UUID"](https://docs.aws.amazon.com/step-functions/latest/dg/concepts-examine-map-run.html).
async fn a_change_of_status_of_an_execution_or_of_a_child_is_an_event(world: &World) -> Result {
    let queue = world.queue_of(json!({ "source": ["aws.states"], "detail": { "name": [{ "exists": true }] } })).await?;
    let execution = world.start(map(&json!([1]), pass(json!({})), json!({}))).await?;
    let ended = world.end_of(&execution).await?;
    let arn = text(&ended["stateMachineArn"]);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let events = queue.received(1).await?;
        let of = |event: &Value| text(&event["detail"]["stateMachineArn"]);
        let ours = events.iter().filter(|event| of(event).starts_with(&arn));
        seen.extend(ours.map(|event| (text(&event["detail-type"]), of(event), text(&event["detail"]["status"]))));
    }
    let change = |arn: &str, status: &str| {
        ("Step Functions Execution Status Change".to_owned(), arn.to_owned(), status.to_owned())
    };
    let child = format!("{arn}/Each");
    let expected =
        [change(&arn, "RUNNING"), change(&child, "RUNNING"), change(&child, "SUCCEEDED"), change(&arn, "SUCCEEDED")];
    assert_eq!(seen, expected);
    Ok(())
}

/// ["You can set a timeout for your state machine using the TimeoutSeconds field"](https://docs.aws.amazon.com/step-functions/latest/dg/sfn-stuck-execution.html),
/// and ["you might choose to listen for TIMED_OUT events from Standard workflows"](https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html).
/// ministack lets it run.
async fn an_execution_that_takes_too_long_times_out(world: &World) -> Result {
    let queue = world.queue_of(json!({ "source": ["aws.states"], "detail": { "status": ["TIMED_OUT"] } })).await?;
    let mut definition = machine(json!({ "Type": "Wait", "Seconds": 100_000, "End": true }));
    definition["TimeoutSeconds"] = json!(1);
    let ended = world.run(definition).await?;
    assert_eq!(ended["status"], "TIMED_OUT");
    let events = queue.received(1).await?;
    assert_eq!(events[0]["detail"]["executionArn"], ended["executionArn"]);
    Ok(())
}

/// `aborted` is the number of children that ["were running, but were either stopped by the user or by Step
/// Functions"](https://docs.aws.amazon.com/step-functions/latest/apireference/API_MapRunExecutionCounts.html). With ministack
/// they go on, and the one that fails makes the stopped execution `FAILED`.
async fn an_execution_that_is_stopped_stays_aborted_and_so_are_its_children(world: &World) -> Result {
    let waits = json!({
        "Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage.waitForTaskToken", "End": true,
        "Parameters": { "QueueUrl": world.queue_of(json!({ "source": ["none"] })).await?.url, "MessageBody": "wait" },
        "Catch": [{ "ErrorEquals": ["States.ALL"], "Next": "Only" }],
    });
    let execution = world.start(map(&json!([1]), waits, json!({}))).await?;
    let scheduled = async || {
        let children = world.children(&execution).await?;
        let Some(child) = children.first() else { return Ok(None) };
        let history = world.history(&text(&child["executionArn"])).await?;
        Ok(history.iter().any(|event| event["type"] == "TaskScheduled").then_some(()))
    };
    until(scheduled).await?;
    world.states("StopExecution", json!({ "executionArn": execution })).await?;
    until(async || Ok((world.children(&execution).await?[0]["status"] == "ABORTED").then_some(()))).await?;
    tokio::time::sleep(4 * POLL).await;
    assert_eq!(world.end_of(&execution).await?["status"], "ABORTED");
    Ok(())
}

/// `States.DataLimitExceeded` comes ["when the output of a state is larger than payload size quota", and "is a terminal error
/// that can't be caught by the States.ALL error type"](https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html).
/// The quota is ["256 KiB of data as a UTF-8 encoded string"](https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html).
async fn an_output_above_the_quota_fails_the_execution_and_cannot_be_caught(world: &World) -> Result {
    // With its quotes, and in bytes: 262,144 and 262,145.
    let (fits, exceeds) = ("é".repeat(131_071), format!("{}e", "é".repeat(131_071)));
    let fits = world.run(machine(pass(json!({ "Result": fits })))).await?;
    assert_eq!(fits["status"], "SUCCEEDED", "{}", fits["cause"]);
    let catch = json!([{ "ErrorEquals": ["States.ALL"], "Next": "Only" }]);
    let retry = json!([{ "ErrorEquals": ["States.ALL"] }]);
    let branches = json!([machine(pass(json!({ "Result": exceeds })))]);
    let state = json!({ "Type": "Parallel", "Branches": branches, "Retry": retry, "Catch": catch, "End": true });
    let exceeds = world.run(machine(state)).await?;
    assert_eq!((&exceeds["status"], &exceeds["error"]), (&json!("FAILED"), &json!("States.DataLimitExceeded")));
    Ok(())
}

/// ["COMPACT - returns the output of the child workflow executions. Default when ResultWriter is not
/// specified."](https://docs.aws.amazon.com/step-functions/latest/dg/input-output-resultwriter.html)
async fn what_all_children_return_counts_even_where_it_is_dropped(world: &World) -> Result {
    let child = pass(json!({ "Result": "x".repeat(100_000) }));
    let dropped = |items: Value| map(&items, child.clone(), json!({ "ResultPath": null }));
    let two = world.run(dropped(json!([1, 2]))).await?;
    assert_eq!(two["status"], "SUCCEEDED", "{}", two["cause"]);
    let three = world.run(dropped(json!([1, 2, 3]))).await?;
    assert_eq!(three["error"], "States.DataLimitExceeded");
    Ok(())
}

/// ["If a child workflow execution fails, Step Functions returns its execution result unchanged. The results would be
/// equivalent to having set Transformation to NONE."](https://docs.aws.amazon.com/step-functions/latest/dg/input-output-resultwriter.html)
/// ministack returns `null`.
async fn a_failed_child_is_returned_with_its_input(world: &World) -> Result {
    let child = json!({ "Type": "Fail", "Error": "Broken", "Cause": "so be it" });
    let ended = world.run(map(&json!(["item"]), child, json!({ "ToleratedFailurePercentage": 100 }))).await?;
    let output: Value = serde_json::from_str(&text(&ended["output"])).unwrap();
    let (input, error) = (&output[0]["Input"], &output[0]["Error"]);
    assert_eq!((input, error, &output[0]["Status"]), (&json!("\"item\""), &json!("Broken"), &json!("FAILED")));
    Ok(())
}

/// ["If the event number 25,000 isn't ExecutionSucceeded, the ExecutionFailed event is logged and the state machine execution
/// fails because of reaching the history limit."](https://docs.aws.amazon.com/step-functions/latest/dg/bp-history-limit.html)
async fn a_history_ends_at_its_quota(world: &World) -> Result {
    let execution = world.start(machine(json!({ "Type": "Pass", "Next": "Only" }))).await?;
    let ended = world.end_of(&execution).await?;
    assert_eq!((&ended["status"], &ended["error"]), (&json!("FAILED"), &json!("States.Runtime")));
    let request = json!({ "executionArn": execution, "reverseOrder": true, "maxResults": 1 });
    let last = &world.states("GetExecutionHistory", request).await?["events"][0];
    assert_eq!((&last["id"], &last["type"]), (&json!(25_000), &json!("ExecutionFailed")));
    Ok(())
}

/// ["Task failures - such as an exception in a Lambda function" are errors, and "when a state reports an error, Step Functions
/// defaults to failing the entire state machine execution"](https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html).
/// ministack waits for the token all the same.
async fn a_function_that_fails_fails_the_task_that_waits_for_its_token(world: &World) -> Result {
    let state = json!({
        "Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken", "End": true,
        "Parameters": { "FunctionName": "no-such-function", "Payload": { "token.$": "$$.Task.Token" } },
    });
    let ended = world.run(machine(state)).await?;
    assert_eq!(ended["error"], "Lambda.ResourceNotFoundException");
    Ok(())
}

/// `TaskTimedOut`: ["The task token has either expired or the task associated with the token has already been
/// closed."](https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskSuccess.html) ministack gives each
/// attempt the same token, and calls it unknown after the last.
async fn a_task_that_is_tried_again_has_another_token(world: &World) -> Result {
    let queue = world.queue_of(json!({ "source": ["none"] })).await?;
    let state = json!({
        "Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage.waitForTaskToken", "End": true,
        "Parameters": { "QueueUrl": queue.url, "MessageBody": { "token.$": "$$.Task.Token" } },
        "Retry": [{ "ErrorEquals": ["Again"] }],
    });
    let execution = world.start(machine(state)).await?;
    let first = queue.received(1).await?[0]["token"].clone();
    world.states("SendTaskFailure", json!({ "taskToken": first, "error": "Again" })).await?;
    let second = queue.received(1).await?[0]["token"].clone();
    let late = world.states("SendTaskSuccess", json!({ "taskToken": first, "output": "1" })).await;
    assert_eq!(late.unwrap_err().code(), Some("TaskTimedOut"));
    world.states("SendTaskSuccess", json!({ "taskToken": second, "output": "2" })).await?;
    assert_eq!(world.end_of(&execution).await?["output"], "2");
    Ok(())
}
