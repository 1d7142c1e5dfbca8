//! What becomes of a run when something goes wrong.

use std::error::Error;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, StatusCode};
use local::corpus::Corpus;
use local::fargate::{Behaviour, Task};
use local::machine::{ACCOUNT, REGION};
use local::proxy::{Action, Fault, Injected, Pattern};
use local::stack::{Execution, ImageRow, Stack};
use serde_json::{Value, json};

use crate::world::{Result, World, rows, start_stalled, start_stalled_with};

/// How long a test waits for what should come at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a test looks whether it has come.
const POLL: Duration = Duration::from_millis(200);
/// The policy that [`deny`] adds to a role.
const TAKEN_AWAY: &str = "TakenAway";

pub async fn a_missing_image_is_recorded_as_an_error_while_the_others_are_done(world: &World) -> Result {
    let stack = world.deploy_public("missing", "alpine:3.20,alpine:9.99,quay.io/coreos/etcd:v3.5.16").await?;
    let notifications = world.notifications(&stack).await?;

    let run = world.run(stack).await?;

    assert_eq!(run.outcome.status, "FAILED");
    assert_eq!(run.outcome.error.as_deref(), Some("ImagesNotCopied"));
    let rows = rows(&run.stack).await?;
    let row =
        |image: &str, tag: &str| rows.get(&(image.to_owned(), tag.to_owned())).ok_or(format!("no row: {image}:{tag}"));
    assert_eq!(row("alpine", "3.20")?.status, "Done");
    assert_eq!(row("quay.io/coreos/etcd", "v3.5.16")?.status, "Done");
    assert_eq!(rows.len(), 4, "the fourth is etcd's signature: {:?}", rows.keys());
    let missing = row("alpine", "9.99")?;
    assert_eq!(missing.status, "Error");
    let message = missing.error_message.as_deref().unwrap_or_default();
    assert!(message.contains("manifest unknown"), "{message}");

    assert_eq!(world.tasks(&run.stack).len(), 2, "one for each registry, and none for an image that does not exist");
    let received = notifications.received().await?;
    assert_eq!(received.len(), 1, "{received:?}");
    assert_eq!(received[0].0, "ecr-transfer missing: images were not copied");
    assert!(received[0].1.contains("\n- alpine:9.99: "), "{}", received[0].1);
    assert!(received[0].1.starts_with("3 of 4 images were copied, 1 failed"), "{}", received[0].1);
    assert!(received[0].1.contains(run.execution.arn()), "{}", received[0].1);
    Ok(())
}

pub async fn a_list_with_a_wrong_entry_fails_the_run_naming_it(world: &World) -> Result {
    let stack = world.deploy_public("wrong", "alpine:3.20,UPPER:1").await?;
    let notifications = world.notifications(&stack).await?;

    let run = world.run(stack).await?;

    assert_eq!(run.outcome.status, "FAILED");
    assert_eq!(run.outcome.error.as_deref(), Some("InvalidImageList"));
    let cause = run.outcome.cause.as_deref().unwrap_or_default();
    assert!(cause.contains("UPPER:1") && cause.contains("entry 2"), "{cause}");
    assert_eq!(world.tasks(&run.stack).len(), 0);
    let received = notifications.received().await?;
    assert_eq!(received.len(), 1, "{received:?}");
    assert!(received[0].1.contains("UPPER:1"), "{}", received[0].1);
    Ok(())
}

pub async fn a_task_that_is_killed_while_it_copies_is_retried_and_ends_done(world: &World) -> Result {
    let stack = world.deploy_public("killed", "redis:7.2,redis:7.4").await?;
    let (execution, stalled) = start_stalled(world, &stack, "redis").await?;

    let family = format!("{}-copy", stack.name());
    let task = world.machine().fargate().wait_for(|task| task.family == family && task.started.is_some()).await;
    assert!(world.machine().fargate().kill(&task.arn), "it was running");
    stalled.lift();
    let run = world.finish(stack, execution, &json!({})).await?;

    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    assert_eq!(world.tasks(&run.stack).len(), 2);
    let rows = rows(&run.stack).await?;
    assert_eq!(rows.len(), 2);
    assert!(rows.values().all(|row| row.status == "Done"), "{rows:?}");
    Ok(())
}

pub async fn a_permission_that_is_taken_away_fails_the_run_and_says_so(world: &World) -> Result {
    let stack = world.deploy_public("denied", "busybox:1.36").await?;
    deny(world, &stack, "LaunchTaskFunctionRole", "ecr:CreateRepository", "*").await?;

    let run = world.run(stack).await?;

    assert_eq!(run.outcome.error.as_deref(), Some("ImagesNotCopied"));
    let rows = rows(&run.stack).await?;
    let row = rows.values().next().ok_or("the image has no row")?;
    assert_eq!(row.status, "Error");
    let message = row.error_message.as_deref().unwrap_or_default();
    assert!(message.contains("AccessDenied: ecr:CreateRepository on denied/busybox failed"), "{message}");
    assert_eq!(world.tasks(&run.stack).len(), 0);
    Ok(())
}

pub async fn an_execution_that_is_stopped_stops_its_tasks_and_the_next_one_heals(world: &World) -> Result {
    let stack = world.deploy_public("stopped", "busybox:1.36").await?;
    let notifications = world.notifications(&stack).await?;
    let (execution, stalled) = start_stalled(world, &stack, "busybox").await?;

    execution.stop().await?;
    let family = format!("{}-copy", stack.name());
    let is_stopped = |task: &Task| task.family == family && task.stopped.is_some();
    let task = tokio::time::timeout(PATIENCE, world.machine().fargate().wait_for(is_stopped)).await?;
    let stopped = task.stopped.ok_or("it has not stopped")?;
    assert_eq!(stopped.code, "UserInitiated");
    assert!(stopped.reason.contains(execution.name()), "{stopped:?}");
    stalled.lift();
    let [(subject, text)] = &notifications.received().await?[..] else { return Err("there is not one message".into()) };
    assert_eq!(subject, "ecr-transfer stopped: the run was stopped");
    assert!(text.contains("stopped by hand") && text.contains(execution.arn()), "{text}");

    let next = world.run(stack).await?;
    assert!(next.outcome.succeeded(), "{:?}", next.outcome);
    assert_eq!(rows(&next.stack).await?.values().filter(|row| row.status == "Done").count(), 1);
    Ok(())
}

pub async fn an_execution_that_nothing_can_catch_is_told_of(world: &World) -> Result {
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", "busybox:1.36,busybox:1.37,alpine:3.19"),
        ("maxImagesPerTask", "1"),
        ("minMiBPerTask", "1"),
    ];
    let stack = world.deploy("uncaught", &parameters).await?;
    let notifications = world.notifications(&stack).await?;
    let message = async |execution: &Execution| match &notifications.received().await?[..] {
        [(subject, text)] if text.contains(execution.arn()) && text.matches("https://").count() == 2 => {
            Ok::<_, Box<dyn Error + Send + Sync>>((subject.clone(), text.clone()))
        }
        other => Err(format!("there is not one message: {other:?}").into()),
    };

    // The outputs of three batches are more than 256 KiB.
    let output = "/States/CopyImages/ItemProcessor/States/RecordStatus/ResultSelector";
    let long = json!({ "padding": "x".repeat(100_000) });
    stack.change_definition(|it| *it.pointer_mut(output).expect(output) = long).await?;
    let run = world.run(stack.clone()).await?;
    assert_eq!(run.outcome.error.as_deref(), Some("States.DataLimitExceeded"), "{:?}", run.outcome);
    let (subject, text) = message(&run.execution).await?;
    assert_eq!(subject, "ecr-transfer uncaught: the run failed");
    assert!(text.starts_with("States.DataLimitExceeded: ") && text.contains("3 of 3 images were copied"), "{text}");

    stack.change_definition(|it| it["TimeoutSeconds"] = 5.into()).await?;
    let (execution, stalled) =
        start_stalled_with(world, &stack, "alpine", &json!({ "srcImageList": "alpine:3.20" })).await?;
    assert_eq!(execution.wait().await?.status, "TIMED_OUT");
    stalled.lift();
    let (subject, text) = message(&execution).await?;
    assert_eq!(subject, "ecr-transfer uncaught: the run timed out");
    assert!(text.contains("0 of 1 images were copied"), "{text}");
    Ok(())
}

pub async fn a_failed_row_heals(world: &World) -> Result {
    let public = world.machine().public().ok_or("the public registries are stand-ins")?;
    let names = ["present", "pattern", "unlisted"];
    let seed =
        names.iter().fold(Corpus::default(), |seed, name| seed.with("quay.io", &format!("healing/{name}"), "1.0"));
    let seeded = world.machine().seed(seed).await?;
    let list =
        |entries: &[&str]| entries.iter().map(|entry| format!("quay.io/healing/{entry}")).collect::<Vec<_>>().join(",");
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let tags = Pattern::new("quay.io", "/v2/healing/unlisted/tags/list*");
    let fault = world.machine().proxy().inject(Fault::new(tags, Action::Status(status, Vec::new())).always());
    let stack =
        world.deploy_public("healing", &list(&["present:1.0", "pattern:9.*", "unlisted:ALL_TAGS", "gone:1.0"])).await?;
    let first = world.run(stack.clone()).await?;
    assert_eq!(first.outcome.error.as_deref(), Some("ImagesNotCopied"));
    // It is there; but a run that could not look at it recorded an error.
    let key = json!({ "Image": { "S": "quay.io/healing/present" }, "Tag": { "S": "1.0" } });
    let request = json!({
        "TableName": stack.output("ImageTable")?, "Key": key, "ExpressionAttributeNames": { "#S": "Status" },
        "UpdateExpression": "SET #S = :error, FailingSince = :error",
        "ExpressionAttributeValues": { ":error": { "S": "Error" } },
    });
    world.machine().home()?.json("dynamodb", "DynamoDB_20120810.UpdateItem", request).await?;
    let statuses = async || {
        let rows = rows(&stack).await?.into_values();
        let name = |row: &ImageRow| row.image.trim_start_matches("quay.io/healing/").to_owned();
        Ok::<_, Box<dyn Error + Send + Sync>>(
            rows.map(|row| format!("{}:{} {}", name(&row), row.tag, row.status)).collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        statuses().await?,
        ["gone:1.0 Error", "pattern:9.* Error", "present:1.0 Error", "unlisted:ALL_TAGS Error"]
    );

    fault.lift();
    let image = seeded.iter().find(|image| image.repository == "healing/pattern").ok_or("it is not seeded")?;
    public.tag(&image.repository, &image.digest, "9.1").await?;
    let stack = world.deploy_public("healing", &list(&["present:1.0", "pattern:9.*", "unlisted:ALL_TAGS"])).await?;
    let second = world.run(stack.clone()).await?;
    assert!(second.outcome.succeeded(), "{:?}", second.outcome);
    assert_eq!(statuses().await?, ["pattern:9.1 Done", "present:1.0 Done", "unlisted:1.0 Done"]);
    let counts = second.stack.execution_row(second.execution.name()).await?.ok_or("the execution has no item")?;
    assert_eq!((counts.to_copy, counts.done, counts.failed), (2, 2, 0), "what was there is not counted");

    let third = world.run(stack).await?;
    assert_eq!(third.outcome.output["batches"], 0, "nothing is left to correct: {:?}", third.outcome);
    Ok(())
}

pub async fn an_event_that_comes_twice_changes_nothing(world: &World) -> Result {
    let stack = world.deploy_public("twice", "busybox:1.36,alpine:3.19").await?;
    let twice = Behaviour { duplicate_events: true, ..Behaviour::default() };
    world.machine().fargate().set_behaviour("twice-copy", twice);

    let run = world.run(stack).await?;

    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    let counts = run.stack.execution_row(run.execution.name()).await?.ok_or("the execution has no item")?;
    assert_eq!((counts.to_copy, counts.done, counts.failed), (2, 2, 0));
    assert!(rows(&run.stack).await?.values().all(|row| row.attempts == Some(1)));
    Ok(())
}

pub async fn an_event_that_never_comes_costs_time_and_no_image_and_changes_nothing_when_it_does(
    world: &World,
) -> Result {
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", "busybox:1.36"),
        // The shortest; it passes in real time.
        ("taskTimeoutSeconds", "60"),
    ];
    let stack = world.deploy("lost", &parameters).await?;
    let lost = Behaviour { hold_events: true, ..Behaviour::default() };
    world.machine().fargate().set_behaviour("lost-copy", lost);

    let run = world.run(stack).await?;

    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    assert_eq!(world.tasks(&run.stack).len(), 1, "the image was there when the batch was launched again");
    let before = (run.stack.execution_row(run.execution.name()).await?, rows(&run.stack).await?);
    assert!(before.1.values().all(|row| row.status == "Done"));

    assert_eq!(world.machine().fargate().release_events("lost-copy").await?, 1);
    let answered = async || -> Result<bool> {
        Ok(world.logs("/lost-LaunchTask").await?.to_string().contains("the state is already answered"))
    };
    tokio::time::timeout(PATIENCE, async {
        while !answered().await? {
            tokio::time::sleep(POLL).await;
        }
        Result::Ok(())
    })
    .await??;
    let after = (run.stack.execution_row(run.execution.name()).await?, rows(&run.stack).await?);
    assert_eq!(before, after);
    Ok(())
}

pub async fn a_task_that_is_killed_before_it_starts_or_after_its_work_is_done_costs_no_image(world: &World) -> Result {
    let fargate = world.machine().fargate();
    let stack = world.deploy_public("unborn", "busybox:1.36").await?;
    let family = "unborn-copy";
    fargate.set_behaviour(family, Behaviour { start_delay: PATIENCE, ..Behaviour::default() });
    let execution = stack.start(&json!({})).await?;
    let task = fargate.wait_for(|task| task.family == family).await;
    fargate.set_behaviour(family, Behaviour { kill_at_end: true, ..Behaviour::default() });
    assert!(fargate.kill(&task.arn), "it was about to start");

    let run = world.finish(stack, execution, &json!({})).await?;

    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    let ends: Vec<_> = world.tasks(&run.stack).into_iter().filter_map(|task| task.stopped).collect();
    let ends: Vec<_> = ends.iter().map(|end| (end.code, end.exit_code)).collect();
    assert_eq!(ends, [("TaskFailedToStart", None), ("EssentialContainerExited", Some(137))], "a third was not needed");
    assert!(rows(&run.stack).await?.values().all(|row| row.status == "Done"));
    Ok(())
}

pub async fn a_task_that_never_starts_is_an_error_that_says_why(world: &World) -> Result {
    let stack = world.deploy_public("closed", "busybox:1.36").await?;
    deny(world, &stack, "TaskExecutionRole", "secretsmanager:GetSecretValue", "*").await?;

    let run = world.run(stack).await?;

    assert_eq!(run.outcome.error.as_deref(), Some("ImagesNotCopied"));
    assert_eq!(world.tasks(&run.stack).len(), 4, "it might have passed");
    let rows = rows(&run.stack).await?;
    let message = rows.values().next().and_then(|row| row.error_message.as_deref()).unwrap_or_default();
    assert!(message.contains("ResourceInitializationError") && message.contains("GetSecretValue"), "{message}");

    allow(world, &run.stack, "TaskExecutionRole").await?;
    let next = world.run(run.stack).await?;
    assert!(next.outcome.succeeded(), "{:?}", next.outcome);
    Ok(())
}

pub async fn a_launch_that_dies_when_it_has_started_a_task_leaves_no_second_one_behind(world: &World) -> Result {
    let stack = world.deploy_public("dying", "busybox:1.36").await?;
    let images = world.seeded(|registry, repository| (registry, repository) == ("docker.io", "library/busybox"));
    let image = images.into_iter().find(|image| image.tag.as_deref() == Some("1.36")).ok_or("it is not seeded")?;
    let host = world.machine().ecr(ACCOUNT, REGION).await?.host().to_owned();
    let batch = json!({ "id": "1", "bytes": 1, "repositories": [{
        "source": "docker.io/library/busybox", "destination": format!("{host}/dying/busybox"), "image": "busybox",
        "images": [{ "digest": image.digest, "tag": "1.36", "bytes": 1 }],
    }] });
    let uploads = Pattern::new("*", "/v2/dying/busybox/blobs/uploads/*").method(Method::POST);
    let stalled = world.machine().proxy().inject(Fault::new(uploads, Action::Stall).always());
    let function = stack.resources().await?.remove("LaunchTaskFunction").ok_or("there is no such function")?;
    // The state machine hears nothing of the first, and tries again with another token.
    let launch = async |token: &str, retries: u32| {
        let request = json!({ "execution": "dying", "batch": batch, "token": token, "retries": retries });
        world.machine().home()?.invoke(&function, &request).await
    };

    launch("first", 0).await?;
    stalled.hit(1).await;
    launch("second", 1).await?;

    let of = |number: usize| world.tasks(&stack).get(number).map(|task| task.arn.clone()).unwrap_or_default();
    let first = of(0);
    let stopped = world.machine().fargate().wait_for(|task| task.arn == first && task.stopped.is_some()).await;
    assert_eq!(stopped.stopped.map(|stopped| stopped.code), Some("UserInitiated"));
    stalled.lift();
    let second = |task: &Task| task.family == "dying-copy" && task.arn != first && task.stopped.is_some();
    let second = tokio::time::timeout(PATIENCE, world.machine().fargate().wait_for(second)).await?;
    assert_eq!(second.stopped.and_then(|stopped| stopped.exit_code), Some(0));
    world.check_copied(&stack).await
}

pub async fn an_image_that_arrives_otherwise_than_it_left_is_an_error_and_the_next_run_heals(world: &World) -> Result {
    world.machine().seed(Corpus::default().with("quay.io", "e2e/garbled", "1")).await?;
    let stack = world.deploy_public("garbled", "quay.io/e2e/garbled:1,busybox:1.36").await?;
    let blobs = Pattern::new("quay.io", "/v2/e2e/garbled/blobs/*").method(Method::GET);
    let garbled = world.machine().proxy().inject(Fault::new(blobs, Action::Corrupt).always());

    let first = world.run(stack).await?;

    assert_eq!(first.outcome.error.as_deref(), Some("ImagesNotCopied"));
    for ((image, _), row) in rows(&first.stack).await? {
        let message = row.error_message.as_deref().unwrap_or_default();
        match image.as_str() {
            "busybox" => assert_eq!(row.status, "Done", "{row:?}"),
            _ => assert!(row.status == "Error" && message.to_lowercase().contains("digest"), "{row:?}"),
        }
    }
    garbled.lift();
    let next = world.run(first.stack).await?;
    assert!(next.outcome.succeeded(), "{:?}", next.outcome);
    Ok(())
}

pub async fn a_login_that_expires_while_images_are_copied_costs_another_try(world: &World) -> Result {
    let stack = world.deploy_public("expired", "busybox:1.36").await?;
    let uploads = Pattern::new("*", "/v2/expired/busybox/blobs/uploads/*").method(Method::POST);
    let words = "Your authorization token has expired. Reauthenticate and try again.";
    let expired = Action::Error(StatusCode::FORBIDDEN, "DENIED", words);
    // Each layer of the image, and its configuration, meets it once.
    let expired = world.machine().proxy().inject(Fault::new(uploads, expired));

    let run = world.run(stack).await?;

    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    assert_eq!((expired.hits(), world.tasks(&run.stack).len()), (1, 2));
    Ok(())
}

pub async fn a_network_that_fails_now_and_then_costs_no_image(world: &World) -> Result {
    let list = "docker.io/library/redis:7.2,docker.io/library/redis:7.4,quay.io/prometheus/prometheus:v2.53.0";
    let stack = world.deploy_public("shaky", list).await?;
    let to = |path: &str| Pattern::new("*.dkr.ecr.*", &format!("/v2/shaky/{path}"));
    let wait = vec![(RETRY_AFTER, HeaderValue::from_static("1"))];
    let status = |status: u16| Action::Status(StatusCode::from_u16(status).expect("it is a status"), Vec::new());
    let proxy = world.machine().proxy();
    let faults = [
        // While the images are listed, and again while they are copied.
        Fault::new(
            Pattern::new("registry-1.docker.io", "/v2/library/redis/manifests/*").method(Method::HEAD),
            Action::Status(StatusCode::TOO_MANY_REQUESTS, wait),
        )
        .times(2),
        Fault::new(
            Pattern::new("quay.io", "/v2/prometheus/prometheus/blobs/*").method(Method::GET),
            Action::Truncate(1_000),
        ),
        Fault::new(to("redis/blobs/uploads/*").method(Method::POST), status(503)),
        Fault::new(to("redis/manifests/*").method(Method::PUT), status(500)),
        Fault::new(to("quay.io/prometheus/prometheus/blobs/uploads/*").method(Method::PATCH), Action::Reset),
    ]
    .map(|fault| proxy.inject(fault));

    let run = world.run(stack).await?;

    let hits: Vec<_> = faults.iter().map(Injected::hits).collect();
    assert_eq!(hits, [2, 1, 1, 1, 1], "every fault has struck");
    assert!(run.outcome.succeeded(), "{:?} {:?}", run.outcome, rows(&run.stack).await?);
    Ok(())
}

pub async fn a_plan_that_cannot_be_written_fails_the_run_and_says_so(world: &World) -> Result {
    let stack = world.deploy_public("planless", "busybox:1.36").await?;
    let notifications = world.notifications(&stack).await?;
    deny(world, &stack, "ListImagesFunctionRole", "s3:PutObject", "*").await?;

    let run = world.run(stack).await?;

    assert_eq!(run.outcome.error.as_deref(), Some("AccessDenied"), "{:?}", run.outcome);
    assert!(world.tasks(&run.stack).is_empty());
    let received = notifications.received().await?;
    assert_eq!(received.len(), 1, "{received:?}");
    assert!(received[0].1.contains("s3:PutObject") && received[0].1.contains("https://console.aws.amazon.com/states/"));
    Ok(())
}

pub async fn a_batch_that_is_recorded_twice_counts_once(world: &World) -> Result {
    let run = world.run(world.deploy_public("recorded", "busybox:1.36").await?).await?;
    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    let home = world.machine().home()?;
    let plan = home.object(run.stack.output("PlanBucket")?, &format!("plans/{}.json", run.execution.name())).await?;
    let plan: Value = serde_json::from_str(&plan)?;
    let resources = run.stack.resources().await?;
    let function = resources.get("RecordStatusFunction").ok_or("there is no such function")?;
    let request = json!({ "execution": run.execution.name(), "batch": plan[0], "result": {} });

    let before = (run.stack.execution_row(run.execution.name()).await?, rows(&run.stack).await?);
    let answer = home.invoke(function, &request).await?;
    let after = (run.stack.execution_row(run.execution.name()).await?, rows(&run.stack).await?);

    assert_eq!((&answer["done"], &answer["again"]), (&json!(1), &json!(true)), "{answer}");
    assert_eq!(before, after);
    Ok(())
}

pub async fn a_repository_that_cannot_be_created_costs_no_other_one(world: &World) -> Result {
    let stack = world.deploy_public("partly", "busybox:ALL_TAGS,alpine:3.19").await?;
    let repository = "arn:aws:ecr:*:*:repository/partly/busybox";
    deny(world, &stack, "LaunchTaskFunctionRole", "ecr:CreateRepository", repository).await?;

    let run = world.run(stack).await?;

    assert_eq!(run.outcome.error.as_deref(), Some("ImagesNotCopied"));
    assert_eq!(world.tasks(&run.stack).len(), 1, "it would be refused again");
    let rows = rows(&run.stack).await?;
    for ((image, tag), row) in &rows {
        let message = row.error_message.as_deref().unwrap_or_default();
        match image.as_str() {
            "alpine" => assert_eq!(row.status, "Done", "{row:?}"),
            _ => assert!(
                message.starts_with("The repository cannot be written: AccessDenied: ecr:Create"),
                "{tag}: {row:?}"
            ),
        }
    }
    assert_eq!(rows.len(), 3, "{:?}", rows.keys());
    Ok(())
}

/// Gives back what [`deny`] has taken away.
async fn allow(world: &World, stack: &Stack, role: &str) -> Result {
    let resources = stack.resources().await?;
    let role = resources.get(role).ok_or("there is no such role")?;
    let parameters = [("RoleName", role.as_str()), ("PolicyName", TAKEN_AWAY)];
    world.machine().home()?.query("iam", "DeleteRolePolicy", &parameters).await?;
    Ok(())
}

/// Takes a permission away from one of a stack's roles.
async fn deny(world: &World, stack: &Stack, role: &str, action: &str, resource: &str) -> Result {
    let resources = stack.resources().await?;
    let role = resources.get(role).ok_or("the function has no role")?;
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Deny", "Action": action, "Resource": resource }
    ] });
    let parameters = [("RoleName", role.as_str()), ("PolicyName", TAKEN_AWAY), ("PolicyDocument", &policy.to_string())];
    world.machine().home()?.query("iam", "PutRolePolicy", &parameters).await?;
    Ok(())
}
