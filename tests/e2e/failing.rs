//! What becomes of a run when something goes wrong.

use http::Method;
use local::proxy::{Action, Fault, Pattern};
use serde_json::json;

use crate::world::{Result, World, rows, run, until_hit};

pub async fn a_missing_image_is_recorded_as_an_error_while_the_others_are_done(world: &World) -> Result {
    let stack = world.deploy_public("missing", "alpine:3.20,alpine:9.99,quay.io/coreos/etcd:v3.5.16").await?;
    let notifications = world.notifications(&stack).await?;

    let run = run(stack).await?;

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

    assert_eq!(world.tasks(&run.stack).len(), 1, "an image that does not exist is not worth another try");
    let received = notifications.received().await?;
    assert_eq!(received.len(), 1, "{received:?}");
    assert_eq!(received[0].0, "ecr-transfer missing: images were not copied");
    assert!(received[0].1.starts_with("3 of 4 images were copied, 1 failed"), "{}", received[0].1);
    assert!(received[0].1.contains(run.execution.arn()), "{}", received[0].1);
    Ok(())
}

pub async fn a_list_with_a_wrong_entry_fails_the_run_naming_it(world: &World) -> Result {
    let stack = world.deploy_public("wrong", "alpine:3.20,UPPER:1").await?;
    let notifications = world.notifications(&stack).await?;

    let run = run(stack).await?;

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
    // The task gets as far as its first layer, and stays there.
    let uploads = Pattern::new("*", "/v2/killed/redis/blobs/uploads/*").method(Method::POST);
    let stalled = world.machine().proxy().inject(Fault::new(uploads, Action::Stall).always());
    let execution = stack.start(&json!({})).await?;
    until_hit(&stalled, &execution).await?;

    let family = format!("{}-copy", stack.name());
    let task = world.machine().fargate().wait_for(|task| task.family == family && task.started.is_some()).await;
    assert!(world.machine().fargate().kill(&task.arn), "it was running");
    stalled.lift();
    let outcome = execution.wait().await?;

    assert!(outcome.succeeded(), "{outcome:?}");
    assert_eq!(world.tasks(&stack).len(), 2);
    for image in world.seeded(|registry, repository| (registry, repository) == ("docker.io", "library/redis")) {
        if matches!(image.tag.as_deref(), Some("7.2" | "7.4")) {
            world.check_copied(&stack, "redis", image).await?;
        }
    }
    let rows = rows(&stack).await?;
    assert_eq!(rows.len(), 2);
    assert!(rows.values().all(|row| row.status == "Done"), "{rows:?}");
    Ok(())
}

pub async fn a_permission_that_is_taken_away_fails_the_run_and_says_so(world: &World) -> Result {
    let stack = world.deploy_public("denied", "busybox:1.36").await?;
    let resources = stack.resources().await?;
    let role = resources.get("LaunchTaskFunctionRole").ok_or("the function has no role")?;
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Deny", "Action": "ecr:CreateRepository", "Resource": "*" }
    ] });
    let parameters =
        [("RoleName", role.as_str()), ("PolicyName", "TakenAway"), ("PolicyDocument", &policy.to_string())];
    world.machine().home()?.query("iam", "PutRolePolicy", &parameters).await?;

    let run = run(stack).await?;

    assert_eq!(run.outcome.error.as_deref(), Some("ImagesNotCopied"));
    let rows = rows(&run.stack).await?;
    let row = rows.values().next().ok_or("the image has no row")?;
    assert_eq!(row.status, "Error");
    let message = row.error_message.as_deref().unwrap_or_default();
    assert!(message.starts_with("AccessDenied: ecr:CreateRepository on denied/busybox failed"), "{message}");
    assert_eq!(world.tasks(&run.stack).len(), 0);
    Ok(())
}
