//! The corrections that README.md lists: where ministack does not answer as AWS documents, the machine does.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]
#![allow(clippy::needless_pass_by_value, reason = "JSON is made where it is passed")]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use local::aws::{Aws, code, xml_text};
use local::images::{self, Format, Image, ImageSpec, LayerSpec};
use local::machine::{ACCOUNT, REGION};
use local::registry::Registry;
use local::{Machine, Options};
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
        a_state_machine_has_a_name_of_80_characters_at_most,
        a_listing_comes_in_pages,
        an_image_is_described_with_its_size_and_what_it_refers_to,
        an_image_that_is_asked_for_and_missing_is_an_error,
        tags_may_share_a_digest_and_move_and_be_swapped,
        an_image_is_asked_for_by_a_tag_or_a_digest,
        a_deleted_repository_takes_its_contents_with_it,
        an_archived_image_is_listed_only_when_asked_for_and_comes_back_with_a_push,
        a_request_for_a_task_with_the_same_token_starts_no_other_task,
        a_group_is_that_of_the_family_and_started_by_is_the_only_filter,
        a_task_that_is_stopped_ends_by_itself_or_is_killed,
        an_event_on_which_a_function_fails_is_tried_twice_more_and_then_kept,
        a_parameter_matches_its_pattern,
        a_stack_has_the_description_of_its_template,
        a_log_goes_on_after_the_empty_page_that_it_begins_with,
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

    async fn ecr(&self, action: &str, request: Value) -> Result<Value> {
        self.aws.json("ecr", &format!("AmazonEC2ContainerRegistry_V20150921.{action}"), request).await
    }

    async fn ecs(&self, action: &str, request: Value) -> Result<Value> {
        self.aws.json("ecs", &format!("AmazonEC2ContainerServiceV20141113.{action}"), request).await
    }

    /// A new repository, and the way that skopeo goes to it.
    async fn repository(&self) -> Result<(String, Registry)> {
        let name = self.name();
        self.ecr("CreateRepository", json!({ "repositoryName": name })).await?;
        Ok((name, self.machine.ecr(ACCOUNT, REGION).await?))
    }

    /// Asks for images of a repository, one by one.
    async fn get(&self, repository: &str, ids: Value) -> Result<Value> {
        self.ecr("BatchGetImage", json!({ "repositoryName": repository, "imageIds": ids })).await
    }

    /// The family of a new task definition with one container, which runs this script.
    async fn task_definition(&self, script: &str) -> Result<String> {
        let family = self.name();
        let container = json!({
            "name": "shell", "image": "shell", "entryPoint": ["sh", "-c"], "command": [script], "stopTimeout": 1,
        });
        let request = json!({ "family": family, "containerDefinitions": [container], "cpu": "256", "memory": "512" });
        self.ecs("RegisterTaskDefinition", request).await?;
        Ok(family)
    }

    async fn run_task(&self, request: Value) -> Result<Value> {
        Ok(self.ecs("RunTask", request).await?["tasks"][0].take())
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

    /// A queue behind a topic behind a rule, for the matching events.
    async fn queue_of(&self, pattern: Value) -> Result<Queue<'_>> {
        let name = self.name();
        let policy = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": { "Service": "sns.amazonaws.com" }, "Action": "sqs:SendMessage", "Resource": "*",
        }] });
        let request = json!({ "QueueName": name, "Attributes": { "Policy": policy.to_string() } });
        let url = self.aws.json("sqs", "AmazonSQS.CreateQueue", request).await?;
        let arn = |service: &str| format!("arn:aws:{service}:{REGION}:{ACCOUNT}:{name}");
        let (topic, queue) = (arn("sns"), arn("sqs"));
        self.aws.query("sns", "CreateTopic", &[("Name", &name)]).await?;
        let raw = [("Attributes.entry.1.key", "RawMessageDelivery"), ("Attributes.entry.1.value", "true")];
        let to = [("TopicArn", topic.as_str()), ("Protocol", "sqs"), ("Endpoint", &queue), raw[0], raw[1]];
        self.aws.query("sns", "Subscribe", &to).await?;
        self.events("PutRule", json!({ "Name": name, "EventPattern": pattern.to_string() })).await?;
        self.events("PutTargets", json!({ "Rule": name, "Targets": [{ "Id": "topic", "Arn": topic }] })).await?;
        Ok(Queue { aws: &self.aws, url: url["QueueUrl"].clone(), arn: queue })
    }
}

struct Queue<'a> {
    aws: &'a Aws,
    url: Value,
    arn: String,
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
/// ministack does not send those of a child. The ARN of a child's machine is
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
/// that cannot be caught by the States.ALL error type"](https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html).
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
    let child = json!({ "Type": "Fail", "Error": "Broken", "Cause": "it is broken" });
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
    assert_eq!(code(&late.unwrap_err()), Some("TaskTimedOut"));
    world.states("SendTaskSuccess", json!({ "taskToken": second, "output": "2" })).await?;
    assert_eq!(world.end_of(&execution).await?["output"], "2");
    Ok(())
}

/// ["Names of state machines, executions, and activity tasks must not exceed 80 characters in length."](https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html)
async fn a_state_machine_has_a_name_of_80_characters_at_most(world: &World) -> Result {
    let role = format!("arn:aws:iam::{ACCOUNT}:role/states");
    let definition = machine(pass(json!({}))).to_string();
    let create = |length| {
        let name = "n".repeat(length);
        world.states("CreateStateMachine", json!({ "name": name, "definition": definition, "roleArn": role }))
    };
    create(80).await?;
    assert_eq!(code(&create(81).await.unwrap_err()), Some("InvalidName"));
    Ok(())
}

fn image(content: &str, architectures: &[&'static str]) -> Image {
    let layers = vec![LayerSpec { name: content.to_owned(), size: 1_000 }];
    let spec = ImageSpec { format: Format::Oci, architectures: architectures.to_vec(), layers };
    images::make(&[spec]).unwrap().remove(0)
}

fn tags(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// `maxResults` ["can be between 1 and 1000. If this parameter is not used, then DescribeImages returns up to 100 results and a
/// nextToken value, if applicable. This option cannot be used when you specify images with
/// imageIds."](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeImages.html) ListImages and
/// DescribeRepositories are documented alike. ministack returns no pages.
async fn a_listing_comes_in_pages(world: &World) -> Result {
    let (repository, registry) = world.repository().await?;
    let many: Vec<String> = (0..101).map(|tag| format!("t{tag}")).collect();
    registry.push(&repository, &[(&image("a", &["amd64"]), &many), (&image("b", &["amd64"]), &tags(&["b"]))]).await?;
    let page = |action: &'static str, more: Value| {
        let mut request =
            if action == "DescribeRepositories" { json!({}) } else { json!({ "repositoryName": repository }) };
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.ecr(action, request)
    };
    for (action, field) in
        [("DescribeImages", "imageDetails"), ("ListImages", "imageIds"), ("DescribeRepositories", "repositories")]
    {
        world.repository().await?;
        let first = page(action, json!({ "maxResults": 1 })).await?;
        assert_eq!(first[field].as_array().unwrap().len(), 1, "{action}");
        let second = page(action, json!({ "maxResults": 1, "nextToken": first["nextToken"] })).await?;
        assert_ne!(first[field][0], second[field][0], "{action}");
        let all = page(action, json!({ "maxResults": 1_000 })).await?;
        assert_eq!(all["nextToken"], Value::Null, "{action}");
        for wrong in [0, 1_001] {
            let refused = page(action, json!({ "maxResults": wrong })).await.unwrap_err();
            assert_eq!(code(&refused), Some("InvalidParameterException"), "{action}");
        }
    }
    let usual = page("ListImages", json!({})).await?;
    assert_eq!((usual["imageIds"].as_array().unwrap().len(), usual["nextToken"].is_string()), (100, true));
    let both = page("DescribeImages", json!({ "imageIds": [{ "imageTag": "b" }], "maxResults": 1 })).await.unwrap_err();
    assert_eq!(code(&both), Some("InvalidParameterException"));
    Ok(())
}

/// `imageSizeInBytes`: ["If the image is a manifest list, this will be the max size of all manifests in the list."
/// `subjectManifestDigest`: "The digest of the subject manifest for images that are
/// referrers."](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_ImageDetail.html) ministack says how long the
/// manifest is, and leaves out the subject.
async fn an_image_is_described_with_its_size_and_what_it_refers_to(world: &World) -> Result {
    let (repository, registry) = world.repository().await?;
    let index = image("a", &["amd64", "arm64"]);
    let sbom = images::artifact("application/spdx+json", "{}", Some(&index.manifest.digest));
    registry.push(&repository, &[(&index, &tags(&["1"])), (&sbom, &[])]).await?;
    let described = world.ecr("DescribeImages", json!({ "repositoryName": repository })).await?;
    let details = described["imageDetails"].as_array().unwrap();
    let find = |digest: &str| details.iter().find(|it| it["imageDigest"] == digest).unwrap();
    let sizes = index.platforms.iter().map(|manifest| find(&manifest.digest)["imageSizeInBytes"].as_u64().unwrap());
    let largest = sizes.max().unwrap();
    assert!(largest > 1_000, "{largest}");
    assert_eq!(find(&index.manifest.digest)["imageSizeInBytes"], largest);
    assert_eq!(find(&index.manifest.digest)["imageTags"], json!(["1"]));
    let sbom = find(&sbom.manifest.digest);
    assert_eq!((&sbom["subjectManifestDigest"], &sbom["imageTags"]), (&json!(index.manifest.digest), &Value::Null));

    let filter = |wanted: &str| json!({ "repositoryName": repository, "filter": { "tagStatus": wanted } });
    let (tagged, untagged) =
        (world.ecr("DescribeImages", filter("TAGGED")).await?, world.ecr("DescribeImages", filter("UNTAGGED")).await?);
    let count = |page: &Value| page["imageDetails"].as_array().unwrap().len();
    assert_eq!((count(&tagged), count(&untagged)), (1, 3));
    Ok(())
}

/// [ImageNotFoundException: "The image requested does not exist in the specified
/// repository."](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeImages.html) ministack leaves it out.
async fn an_image_that_is_asked_for_and_missing_is_an_error(world: &World) -> Result {
    let (repository, _) = world.repository().await?;
    let request = json!({ "repositoryName": repository, "imageIds": [{ "imageTag": "none" }] });
    assert_eq!(code(&world.ecr("DescribeImages", request).await.unwrap_err()), Some("ImageNotFoundException"));
    Ok(())
}

/// `images` is ["a list of image objects corresponding to the image references in the
/// request"](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchGetImage.html). ministack names an image by its
/// last tag, whichever it was asked for, also when the image has lost it.
async fn tags_may_share_a_digest_and_move_and_be_swapped(world: &World) -> Result {
    let (repository, registry) = world.repository().await?;
    let (a, b) = (image("a", &["amd64"]), image("b", &["amd64"]));
    let (one, other) = (&a.manifest.digest, &b.manifest.digest);
    let expect = async |expected: &[(&str, &str)]| {
        let ids: Vec<Value> = expected.iter().map(|(tag, _)| json!({ "imageTag": tag })).collect();
        let digests = [json!({ "imageDigest": one }), json!({ "imageDigest": other })];
        let got = world.get(&repository, json!([&ids[..], &digests].concat())).await?;
        let mut named: Vec<Value> =
            expected.iter().map(|(tag, digest)| json!({ "imageTag": tag, "imageDigest": digest })).collect();
        let listed =
            world.ecr("ListImages", json!({ "repositoryName": repository, "filter": { "tagStatus": "TAGGED" } }));
        let mut listed = listed.await?["imageIds"].as_array().unwrap().clone();
        listed.sort_by_key(|id| text(&id["imageTag"]));
        assert_eq!(listed, named);
        named.extend(digests);
        let ids: Vec<_> = got["images"].as_array().unwrap().iter().map(|image| image["imageId"].clone()).collect();
        assert_eq!((ids, &got["failures"]), (named, &json!([])));
        Result::Ok(())
    };
    registry.push(&repository, &[(&a, &tags(&["1", "2"])), (&b, &tags(&["3"]))]).await?;
    expect(&[("1", one), ("2", one), ("3", other)]).await?;
    registry.push(&repository, &[(&b, &tags(&["2"]))]).await?;
    expect(&[("1", one), ("2", other), ("3", other)]).await?;
    registry.push(&repository, &[(&a, &tags(&["3"])), (&b, &tags(&["1"]))]).await?;
    expect(&[("1", other), ("2", other), ("3", one)]).await?;
    Ok(())
}

/// ["The format of the imageIds reference is imageTag=tag or
/// imageDigest=digest"](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchGetImage.html), 100 of them at most;
/// [`failureCode`](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_ImageFailure.html) may be
/// "ImageTagDoesNotMatchDigest | ImageNotFound | MissingDigestAndTag". To ministack, the digest is enough.
async fn an_image_is_asked_for_by_a_tag_or_a_digest(world: &World) -> Result {
    let (repository, registry) = world.repository().await?;
    let image = image("a", &["amd64"]);
    registry.push(&repository, &[(&image, &tags(&["1"]))]).await?;
    let ids = json!([{ "imageTag": "2", "imageDigest": image.manifest.digest }, { "imageTag": "2" }, {}]);
    let got = world.get(&repository, ids).await?;
    let codes: Vec<_> =
        got["failures"].as_array().unwrap().iter().map(|failure| text(&failure["failureCode"])).collect();
    assert_eq!(codes, ["ImageTagDoesNotMatchDigest", "ImageNotFound", "MissingDigestAndTag"]);
    let many = world.get(&repository, json!(vec![json!({ "imageTag": "1" }); 101])).await;
    assert_eq!(code(&many.unwrap_err()), Some("InvalidParameterException"));
    Ok(())
}

/// `force`: ["deleting the repository force deletes the contents of the
/// repository"](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DeleteRepository.html). ministack finds manifests
/// and layers of the deleted repository in a new one of its name.
async fn a_deleted_repository_takes_its_contents_with_it(world: &World) -> Result {
    let (repository, registry) = world.repository().await?;
    let image = image("a", &["amd64"]);
    registry.push(&repository, &[(&image, &tags(&["1"]))]).await?;
    let layer = registry.blobs(&repository, "1").await?.into_keys().next().unwrap();
    assert!(registry.has_blob(&repository, &layer).await?);
    world.ecr("DeleteRepository", json!({ "repositoryName": repository, "force": true })).await?;
    world.ecr("CreateRepository", json!({ "repositoryName": repository })).await?;
    assert_eq!(registry.digest(&repository, &image.manifest.digest).await?, None);
    assert!(!registry.has_blob(&repository, &layer).await?);
    Ok(())
}

/// ["If not specified, only images with ACTIVE status are
/// returned."](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeImagesFilter.html) ["Requests to pull the
/// archived image will fail with a 404 error", and "re-pushing the image" restores
/// it](https://docs.aws.amazon.com/AmazonECR/latest/userguide/archive-image.html). ministack archives nothing.
async fn an_archived_image_is_listed_only_when_asked_for_and_comes_back_with_a_push(world: &World) -> Result {
    let (repository, registry) = world.repository().await?;
    let image = image("a", &["amd64"]);
    registry.push(&repository, &[(&image, &tags(&["1"]))]).await?;
    let id = json!({ "imageTag": "1" });
    let archive = json!({ "repositoryName": repository, "imageId": id, "targetStorageClass": "ARCHIVE" });
    world.ecr("UpdateImageStorageClass", archive).await?;
    let listed = async |filter: Value| {
        let page = world.ecr("DescribeImages", json!({ "repositoryName": repository, "filter": filter })).await?;
        Result::Ok(
            page["imageDetails"].as_array().unwrap().iter().map(|it| text(&it["imageStatus"])).collect::<Vec<_>>(),
        )
    };
    assert!(listed(json!({})).await?.is_empty());
    assert_eq!(listed(json!({ "imageStatus": "ANY" })).await?, ["ARCHIVED"]);
    assert_eq!(registry.digest(&repository, "1").await?, None);
    assert_eq!(world.get(&repository, json!([id])).await?["images"], json!([]));
    registry.push(&repository, &[(&image, &tags(&["1"]))]).await?;
    assert_eq!(listed(json!({})).await?, ["ACTIVE"]);
    Ok(())
}

/// ["If you retry a request that completed successfully using the same client token and the same parameters, the retry succeeds
/// without performing any further actions."](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/ECS_Idempotency.html)
/// ConflictException: ["The provided clientToken is already in use with a different RunTask
/// request."](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RunTask.html) ministack ignores the token.
async fn a_request_for_a_task_with_the_same_token_starts_no_other_task(world: &World) -> Result {
    let family = world.task_definition("true").await?;
    let request = json!({ "taskDefinition": family, "clientToken": world.name() });
    let first = world.run_task(request.clone()).await?;
    let second = world.run_task(request.clone()).await?;
    assert_eq!(first["taskArn"], second["taskArn"]);
    let mut another = request;
    another["startedBy"] = json!("me");
    assert_eq!(code(&world.run_task(another.clone()).await.unwrap_err()), Some("ConflictException"));
    another["clientToken"] = json!(world.name());
    assert_ne!(world.run_task(another).await?["taskArn"], first["taskArn"]);
    Ok(())
}

/// `group`: ["The default value is the family name of the task definition (for example,
/// family:my-family-name)."](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RunTask.html) ["When you specify
/// startedBy as the filter, it must be the only filter that you
/// use."](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ListTasks.html)
async fn a_group_is_that_of_the_family_and_started_by_is_the_only_filter(world: &World) -> Result {
    let family = world.task_definition("sleep 60").await?;
    let task = world.run_task(json!({ "taskDefinition": family, "startedBy": family })).await?;
    assert_eq!(task["group"], format!("family:{family}"));
    let listed = world.ecs("ListTasks", json!({ "startedBy": family })).await?;
    assert_eq!(listed["taskArns"], json!([task["taskArn"]]));
    let refused = world.ecs("ListTasks", json!({ "startedBy": family, "desiredStatus": "RUNNING" })).await;
    assert_eq!(code(&refused.unwrap_err()), Some("InvalidParameterException"));
    Ok(())
}

/// ["This results in a stop signal value and a default 30-second timeout, after which the SIGKILL value is sent and the
/// containers are forcibly stopped." "If the container handles the SIGTERM value gracefully and exits within 30 seconds from
/// receiving it, no SIGKILL value is sent."](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_StopTask.html)
/// ministack says that all exit with 0, at once.
async fn a_task_that_is_stopped_ends_by_itself_or_is_killed(world: &World) -> Result {
    let queue = world.queue_of(json!({ "source": ["aws.ecs"], "detail": { "stoppedReason": ["enough"] } })).await?;
    for (script, exit_code) in
        [("trap 'exit 7' TERM; sleep 60 & wait", 7), ("exec sleep 60", 143), ("trap '' TERM; sleep 60; sleep 60", 137)]
    {
        let task = world.run_task(json!({ "taskDefinition": world.task_definition(script).await? })).await?;
        let arn = text(&task["taskArn"]);
        world.machine.fargate().wait_for(|task| task.arn == arn && task.started.is_some()).await;
        // The shell must have come to its trap.
        tokio::time::sleep(4 * POLL).await;
        let stopped = world.ecs("StopTask", json!({ "task": arn, "reason": "enough" })).await?;
        assert_eq!(stopped["task"]["desiredStatus"], "STOPPED");
        let detail = queue.received(1).await?[0]["detail"].take();
        assert_eq!(detail["containers"][0]["exitCode"], exit_code, "{script}");
        assert!(detail["stoppedAt"].as_str().is_some_and(|time| time.ends_with('Z')), "an event has times as texts");
        let described = world.ecs("DescribeTasks", json!({ "tasks": [arn] })).await?["tasks"][0].take();
        for task in [&detail, &described] {
            assert_eq!((&task["taskArn"], &task["stopCode"]), (&json!(arn), &json!("UserInitiated")));
            assert_eq!(
                (&task["lastStatus"], &task["containers"][0]["exitCode"]),
                (&json!("STOPPED"), &json!(exit_code))
            );
        }
    }
    Ok(())
}

/// ["If the function returns an error, by default Lambda attempts to run it two more
/// times"](https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html). To a rule's event, ministack runs
/// it once.
async fn an_event_on_which_a_function_fails_is_tried_twice_more_and_then_kept(world: &World) -> Result {
    let (name, queue) = (world.name(), world.queue_of(json!({ "source": ["none"] })).await?);
    let attempts = world.machine.directory().join(&name);
    let code = format!(
        "def handler(event, context):\n    open({attempts:?}, 'a').write('x')\n    raise ValueError('broken')\n"
    );
    let template = json!({ "Resources": {
        "Function": { "Type": "AWS::Lambda::Function", "Properties": {
            "Runtime": "python3.13", "Handler": "index.handler", "Code": { "ZipFile": code },
            "Role": format!("arn:aws:iam::{ACCOUNT}:role/states"),
        } },
        "OnFailure": { "Type": "AWS::Lambda::EventInvokeConfig", "Properties": {
            "FunctionName": { "Ref": "Function" }, "Qualifier": "$LATEST",
            "DestinationConfig": { "OnFailure": { "Destination": queue.arn } },
        } },
        "Rule": { "Type": "AWS::Events::Rule", "Properties": {
            "EventPattern": { "source": [name] }, "Targets": [{ "Id": "function", "Arn": { "Fn::GetAtt": ["Function", "Arn"] } }],
        } },
    } });
    let stack = [("StackName", name.as_str()), ("TemplateBody", &template.to_string())];
    world.aws.query("cloudformation", "CreateStack", &stack).await?;
    let complete = async || {
        let described = world.aws.query("cloudformation", "DescribeStacks", &stack[..1]).await?;
        Ok(described.contains("CREATE_COMPLETE").then_some(()))
    };
    until(complete).await?;
    let event = json!({ "Source": name, "DetailType": "test", "Detail": "{\"is\":\"kept\"}" });
    world.events("PutEvents", json!({ "Entries": [event] })).await?;
    assert_eq!(queue.received(1).await?[0]["requestPayload"]["detail"]["is"], "kept");
    assert_eq!(std::fs::read_to_string(attempts)?, "xxx");
    Ok(())
}

/// `AllowedPattern`: ["A regular expression used to validate the parameter value. For example, for String types with values
/// restricted to numbers, you can specify the following:
/// AllowedPattern=^\d+$"](https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_PutParameter.html). ministack keeps
/// it, and looks at no value.
async fn a_parameter_matches_its_pattern(world: &World) -> Result {
    let put = |value: &str| {
        let pattern = "^\\d+$";
        let request = json!({ "Name": world.name(), "Value": value, "Type": "String", "AllowedPattern": pattern });
        world.aws.json("ssm", "AmazonSSM.PutParameter", request)
    };
    put("12").await?;
    assert_eq!(code(&put("twelve").await.unwrap_err()), Some("ParameterPatternMismatchException"));
    Ok(())
}

/// [DescribeStacks](https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_Stack.html) returns "a user-defined
/// description associated with the stack", however it was created.
async fn a_stack_has_the_description_of_its_template(world: &World) -> Result {
    let name = world.name();
    let template = json!({ "Description": "What it is.", "Resources": { "Topic": { "Type": "AWS::SNS::Topic" } } });
    let template = template.to_string();
    let change = [("StackName", name.as_str()), ("ChangeSetName", "first")];
    let create = [("ChangeSetType", "CREATE"), ("TemplateBody", &template)];
    world.aws.query("cloudformation", "CreateChangeSet", &[change, create].concat()).await?;
    world.aws.query("cloudformation", "ExecuteChangeSet", &change).await?;
    let described = until(async || {
        let described = world.aws.query("cloudformation", "DescribeStacks", &change[..1]).await?;
        let is_complete = xml_text(&described, "StackStatus").as_deref() == Some("CREATE_COMPLETE");
        Ok(is_complete.then_some(described))
    });
    let described = described.await?;
    assert_eq!(xml_text(&described, "Description").as_deref(), Some("What it is."));
    Ok(())
}

/// ["As long as the nextBackwardToken or nextForwardToken returned is NOT equal to the nextToken that you passed into the API
/// call, there might be more log events available."](https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html)
/// The gateway's empty page has this token.
async fn a_log_goes_on_after_the_empty_page_that_it_begins_with(world: &World) -> Result {
    let logs = async |action: &str, more: Value| {
        let mut request = json!({ "logGroupName": "documented", "logStreamName": "log" });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.aws.json("logs", &format!("Logs_20140328.{action}"), request).await
    };
    logs("CreateLogGroup", json!({})).await?;
    logs("CreateLogStream", json!({})).await?;
    let first = logs("GetLogEvents", json!({ "startFromHead": true, "nextToken": "f/-" })).await?;
    assert_eq!(first["nextForwardToken"], "f/-", "there is nothing");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let now = u64::try_from(now).unwrap();
    logs("PutLogEvents", json!({ "logEvents": [{ "timestamp": now, "message": "line" }] })).await?;
    let second = logs("GetLogEvents", json!({ "startFromHead": true, "nextToken": "f/-" })).await?;
    assert_eq!(second["events"][0]["message"], "line");
    Ok(())
}
