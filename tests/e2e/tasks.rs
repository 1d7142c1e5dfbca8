//! The commands on tasks.

use std::collections::BTreeMap;

use local::aws::xml_text;
use local::machine::{ACCOUNT, REGION};
use local::registry::contents;
use local::stack::{Stack, known_parameters};
use serde_json::{Value, json};

use crate::command::{command, user};
use crate::world::{Result, World, start_stalled};

/// Actions for which AWS requires a permission on a resource, and ministack on `*`.
const LOCAL_ACTIONS: [&str; 4] =
    ["dynamodb:BatchGetItem", "ecs:DescribeTasks", "logs:FilterLogEvents", "logs:GetLogEvents"];

/// The arguments that name values of parameters.
fn options(parameters: &[(&str, &str)]) -> Vec<String> {
    parameters.iter().flat_map(|(name, value)| ["-p".to_owned(), format!("{name}={value}")]).collect()
}

/// Runs a command that must succeed, and returns what it prints as JSON.
async fn done(world: &World, arguments: &[&str]) -> Result<Value> {
    command(world, &[arguments, &["--json"]].concat(), &[]).await?.json(0)
}

/// A stack that a command has created.
async fn created(world: &World, name: &str, parameters: &[(&str, &str)]) -> Result<Stack> {
    let stack = Stack::find(world.machine().home()?, name).await?;
    stack.allow_for_ministack().await?;
    world.deployed(&stack, parameters);
    Ok(stack)
}

pub async fn a_task_is_created_cloned_changed_paused_and_deleted(world: &World) -> Result {
    let home = world.machine().home()?;
    let template = world.published_template().await?;
    let list = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", "busybox:1.36"),
        ("destPrefix", "made"),
        ("scheduleTimezone", "Asia/Shanghai"),
    ];
    let parameters = [&list[..], &known_parameters(world.machine())].concat();
    let given = options(&parameters);
    let create = ["create", "made", "--template", template].into_iter().chain(given.iter().map(String::as_str));
    let create: Vec<_> = create.collect();
    let refused = command(world, &[&create[..], &["-p", "maxConcurrency=0"]].concat(), &[]).await?;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains(r#"maxConcurrency is "0": expected a number from 1 to 1000."#), "{refused:?}");

    let made = done(world, &create).await?;
    assert_eq!((&made["status"], &made["paused"]), (&json!("CREATE_COMPLETE"), &json!(false)));
    let stack = created(world, "made", &parameters).await?;
    let run = done(world, &["start", "made", "--wait"]).await?;
    assert_eq!((&run["status"], &run["left"]), (&json!("SUCCEEDED"), &json!(0)), "{run}");
    assert_eq!(run["counts"]["done"], run["counts"]["toCopy"], "{run}");
    world.check_copied(&stack).await?;
    let again = command(world, &create, &[]).await?;
    assert!(again.code == 2 && again.stderr.contains("There is a stack made"), "{again:?}");

    // From the task's own template, to another place.
    let clone = ["clone", "made", "copy", "-p", "destPrefix=copy", "-p", "srcImageList=busybox:1.37"];
    let clone = command(world, &[&clone[..], &["--json"]].concat(), &[]).await?;
    assert!(clone.stderr.contains("made: busybox:1.36 → ECR"), "{clone:?}");
    assert!(clone.stderr.contains("copy: busybox:1.37 → ECR"), "{clone:?}");
    let clone = clone.json(0)?;
    assert_eq!(clone["parameters"]["scheduleTimezone"], "Asia/Shanghai");
    let mut parameters: BTreeMap<_, _> = parameters.into_iter().collect();
    parameters.extend([("destPrefix", "copy"), ("srcImageList", "busybox:1.37")]);
    let copy = created(world, "copy", &parameters.into_iter().collect::<Vec<_>>()).await?;
    assert_eq!(done(world, &["start", "copy", "--wait"]).await?["status"], "SUCCEEDED");
    world.check_copied(&copy).await?;

    let updated = done(world, &["update", "copy", "-p", "maxConcurrency=3"]).await?;
    assert_eq!(updated["status"], "UPDATE_COMPLETE");
    assert_eq!(
        (&updated["parameters"]["maxConcurrency"], &updated["parameters"]["destPrefix"]),
        (&json!("3"), &json!("copy"))
    );
    let functions = copy.resources().await?;
    let function = functions.get("ListImagesFunction").ok_or("it has no function")?;
    assert_eq!(variable(world, function, "MAX_CONCURRENCY").await?, "3");
    let unchanged = command(world, &["update", "copy", "-p", "maxConcurrency=3"], &[]).await?;
    assert!(unchanged.code == 0 && unchanged.stderr.contains("copy is so already"), "{unchanged:?}");

    for (action, paused, state) in [("pause", true, "DISABLED"), ("resume", false, "ENABLED")] {
        assert_eq!(done(world, &[action, "copy"]).await?["paused"], json!(paused));
        assert_eq!(
            states(world, &copy).await?,
            (state.to_owned(), state.to_owned(), (!paused).to_string()),
            "{action}"
        );
    }
    let listed = done(world, &["tasks"]).await?;
    let listed =
        listed.as_array().into_iter().flatten().find(|task| task["name"] == "copy").ok_or("it is not listed")?;
    assert_eq!(listed["latestRun"]["status"], "SUCCEEDED", "{listed}");

    let id = copy.id().await?;
    let remains = done(world, &["delete", "copy", "--yes"]).await?;
    let described = home.query("cloudformation", "DescribeStacks", &[("StackName", &id)]).await?;
    assert_eq!(xml_text(&described, "StackStatus").as_deref(), Some("DELETE_COMPLETE"));
    assert!(remains.to_string().contains("delete-table"), "{remains}");
    assert!(!contents(&home, "copy/").await?.is_empty(), "images at the destination stay");
    Ok(())
}

/// A variable of a function.
async fn variable(world: &World, function: &str, name: &str) -> Result<String> {
    let path = format!("/2015-03-31/functions/{function}/configuration");
    let configuration = world.machine().home()?.get("lambda", &path).await?;
    let value = &configuration["Environment"]["Variables"][name];
    Ok(value.as_str().ok_or(format!("there is no {name}: {configuration}"))?.to_owned())
}

/// Whether the schedule, the rule of deployments and the actions of the alarm are enabled.
async fn states(world: &World, stack: &Stack) -> Result<(String, String, String)> {
    let home = world.machine().home()?;
    let resources = stack.resources().await?;
    let name = |resource: &str| resources.get(resource).cloned().ok_or(format!("there is no {resource}"));
    let schedule = home.get("scheduler", &format!("/schedules/{}", name("Schedule")?)).await?;
    let rule = home.json("events", "AWSEvents.DescribeRule", json!({ "Name": name("DeployedRule")? })).await?;
    let alarm = name("NoRunAlarm")?;
    let target = "GraniteServiceVersion20100801.DescribeAlarms";
    let alarms = home.json("monitoring", target, json!({ "AlarmNames": [alarm] })).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&schedule["State"]), text(&rule["State"]), alarms["MetricAlarms"][0]["ActionsEnabled"].to_string()))
}

pub async fn a_dry_run_says_what_a_run_would_copy_and_why(world: &World) -> Result {
    let stack = world.deploy_public("dry", "busybox:1.36,busybox:9.99").await?;

    let dry = done(world, &["start", "dry", "--dry-run", "--images", "busybox:1.37,busybox:9.99"]).await?;

    assert_eq!(dry["input"], json!({ "dryRun": true, "srcImageList": "busybox:1.37,busybox:9.99" }));
    let decisions: Vec<_> = dry["decisions"].as_array().ok_or("there is no report")?.iter().collect();
    let of = |reason: &str| decisions.iter().filter(|it| it["reason"] == reason).collect::<Vec<_>>();
    assert_eq!((of("new").len(), of("failed").len()), (1, 1), "{decisions:?}");
    let destination = of("new")[0]["destination"].as_str().unwrap_or_default();
    assert!(destination.ends_with("/dry/busybox:1.37"), "{destination}");
    assert!(world.tasks(&stack).is_empty() && contents(&world.machine().home()?, "dry/").await?.is_empty());
    let shown = command(world, &["run", "dry"], &[]).await?;
    assert!(shown.code == 0 && shown.stdout.contains("REASON"), "{shown:?}");
    Ok(())
}

pub async fn a_slow_run_is_stopped_and_its_tasks_end(world: &World) -> Result {
    let stack = world.deploy_public("slow", "busybox:1.36").await?;
    let (execution, _stalled) = start_stalled(world, &stack, "busybox").await?;
    let running = done(world, &["run", "slow"]).await?;
    assert_eq!((&running["status"], &running["left"]), (&json!("RUNNING"), &json!(1)), "{running}");
    let [batch] = &running["batches"].as_array().cloned().unwrap_or_default()[..] else {
        return Err(running.to_string().into());
    };
    assert_eq!(batch["task"]["status"], "RUNNING", "{batch}");

    let stopped = done(world, &["stop", "slow"]).await?;

    assert_eq!(stopped, json!([execution.name()]));
    assert_eq!(execution.describe().await?.status, "ABORTED");
    let tasks = world.tasks(&stack);
    assert!(!tasks.is_empty() && tasks.iter().all(|task| task.stopped.is_some()), "{tasks:?}");
    let runs = done(world, &["runs", "slow"]).await?;
    assert_eq!(runs[0]["status"], "ABORTED", "{runs}");
    let shown = command(world, &["run", "slow", execution.name()], &[]).await?;
    assert!(shown.code == 1 && shown.stdout.contains("Status: ABORTED"), "{shown:?}");
    let nothing = command(world, &["stop", "slow"], &[]).await?;
    assert!(nothing.code == 0 && nothing.stderr.contains("no run that could be stopped"), "{nothing:?}");
    let nothing = command(world, &["stop", "slow", execution.name()], &[]).await?;
    assert_eq!(nothing.code, 2, "{nothing:?}");
    Ok(())
}

pub async fn failed_images_and_logs_are_found(world: &World) -> Result {
    world.deploy_public("found", "alpine:3.20,alpine:9.99,busybox:1.36").await?;
    let started = command(world, &["start", "found", "--wait", "--json"], &[]).await?;
    let run = started.json(1)?;
    assert_eq!((&run["counts"]["failed"], &run["error"]), (&json!(1), &json!("ImagesNotCopied")), "{run}");
    assert!(run["failures"][0].as_str().is_some_and(|it| it.starts_with("alpine:9.99: ")), "{run}");

    let failed = command(world, &["images", "found", "--failed", "--json"], &[]).await?.json(1)?;
    assert_eq!((failed.as_array().map(Vec::len), &failed[0]["tag"]), (Some(1), &json!("9.99")), "{failed}");
    let csv = command(world, &["images", "found", "--csv"], &[]).await?;
    let lines: Vec<_> = csv.stdout.lines().collect();
    assert!(csv.code == 0 && lines[0].starts_with("image,tag,status,error,"), "{csv:?}");
    assert!(lines[1..].iter().any(|line| line.starts_with("alpine,9.99,Error,")), "{csv:?}");
    let searched = command(world, &["images", "found", "--search", "busybox:1"], &[]).await?;
    assert!(searched.stdout.contains("busybox:1.36") && !searched.stdout.contains("alpine"), "{searched:?}");
    assert_eq!(command(world, &["images", "found", "--failed", "--search", "busybox"], &[]).await?.code, 0);

    let name = run["name"].as_str().unwrap_or_default();
    let followed = command(world, &["logs", "found", "--run", name, "--follow"], &[]).await?;
    assert!(followed.code == 0 && followed.stdout.contains(r"Done\t"), "{followed:?}");
    let of_image = command(world, &["logs", "found", "--image", "busybox:1.36"], &[]).await?;
    let lines: Vec<_> = of_image.stdout.lines().collect();
    assert!(matches!(lines[..], [line] if line.contains("/found/busybox:1.36")), "{of_image:?}");
    let never = command(world, &["logs", "found", "--image", "alpine:9.99"], &[]).await?;
    assert!(never.code == 2 && never.stderr.contains("No Fargate task has tried to copy alpine:9.99"), "{never:?}");
    let function = command(world, &["logs", "found", "--function", "list-images", "--run", "latest"], &[]).await?;
    assert!(function.code == 0 && function.stdout.contains("ImagesListed"), "{function:?}");
    Ok(())
}

pub async fn a_task_is_deleted_while_a_run_is_active(world: &World) -> Result {
    let home = world.machine().home()?;
    let stack = world.deploy_public("removed", "busybox:1.36").await?;
    let (execution, _stalled) = start_stalled(world, &stack, "busybox").await?;
    let (id, tables) = (stack.id().await?, ["ImageTable", "ExecutionTable"].map(|table| stack.output(table)));
    let unasked = command(world, &["delete", "removed"], &[]).await?;
    assert!(unasked.code == 2 && unasked.stderr.contains("use --yes"), "{unasked:?}");

    let deleted = command(world, &["delete", "removed", "--yes"], &[]).await?;

    assert_eq!(deleted.code, 0, "{deleted:?}");
    let described = home.query("cloudformation", "DescribeStacks", &[("StackName", &id)]).await?;
    assert_eq!(xml_text(&described, "StackStatus").as_deref(), Some("DELETE_COMPLETE"));
    assert_eq!(execution.describe().await?.status, "ABORTED");
    let tasks = world.tasks(&stack);
    assert!(!tasks.is_empty() && tasks.iter().all(|task| task.stopped.is_some()), "{tasks:?}");
    // What it says stays is what stays.
    let said = deleted.stdout;
    for table in tables {
        let table = table?;
        home.json("dynamodb", "DynamoDB_20120810.DescribeTable", json!({ "TableName": table })).await?;
        assert!(said.contains(&format!("delete-table --region {REGION} --table-name {table}\n")), "{said}");
    }
    assert!(said.contains("delete-bucket --bucket removed-planbucket"), "{said}");
    Ok(())
}

pub async fn a_stack_of_somebody_else_is_not_deleted(world: &World) -> Result {
    let home = world.machine().home()?;
    let template = json!({ "Resources": { "Topic": { "Type": "AWS::SNS::Topic" } } }).to_string();
    home.query("cloudformation", "CreateStack", &[("StackName", "theirs"), ("TemplateBody", &template)]).await?;
    let theirs = Stack::find(home, "theirs").await?;

    let refused = command(world, &["delete", "theirs", "--yes"], &[]).await?;

    assert!(refused.code == 2 && refused.stderr.contains("theirs is not a stack of ecr-transfer"), "{refused:?}");
    assert!(theirs.resources().await?.contains_key("Topic"));
    Ok(())
}

pub async fn a_viewer_sees_everything_and_an_operator_also_starts_and_stops(world: &World) -> Result {
    let home = world.machine().home()?;
    let stack = world.deploy_public("seen", "alpine:3.20,alpine:9.99").await?;
    let policy = |document: &str| -> Result<String> {
        let document = document.replace("DTHECRStack", "seen").replace("dthecrstack", "seen");
        let document = document.replace("us-east-1", REGION).replace("111111111111", ACCOUNT);
        let mut policy: Value = serde_json::from_str(&document)?;
        let statements = policy["Statement"].as_array_mut().ok_or("it has no statements")?;
        statements.push(json!({ "Effect": "Allow", "Action": LOCAL_ACTIONS, "Resource": "*" }));
        Ok(policy.to_string())
    };
    let viewer = user(&home, "viewer", &policy(include_str!("../../docs/policies/viewer.json"))?).await?;
    let operator = user(&home, "operator", &policy(include_str!("../../docs/policies/operator.json"))?).await?;

    let started = command(world, &["start", "seen", "--wait"], &operator).await?;
    assert_eq!(started.code, 1, "{started:?}");
    let dry = command(world, &["start", "seen", "--dry-run"], &operator).await?;
    assert_eq!(dry.code, 0, "{dry:?}");
    let stopped = command(world, &["stop", "seen"], &operator).await?;
    assert_eq!(stopped.code, 0, "{stopped:?}");
    let failed = stack.executions().await?.pop().ok_or("there is no run")?;

    for (arguments, code) in [
        (&["tasks"][..], 0),
        (&["runs", "seen"], 0),
        (&["run", "seen", failed.name()], 1),
        (&["run", "seen"], 0),
        (&["images", "seen"], 0),
        (&["images", "seen", "--failed"], 1),
        (&["logs", "seen"], 0),
        (&["logs", "seen", "--image", "alpine:3.20"], 0),
        (&["logs", "seen", "--function", "record-status"], 0),
    ] {
        let seen = command(world, arguments, &viewer).await?;
        assert_eq!(seen.code, code, "{arguments:?}: {seen:?}");
    }
    for (user, arguments, action) in [
        (&viewer, &["start", "seen"][..], "states:StartExecution"),
        (&operator, &["pause", "seen"], "cloudformation:UpdateStack"),
        (&operator, &["delete", "seen", "--yes"], "cloudformation:DeleteStack"),
    ] {
        let refused = command(world, arguments, user).await?;
        let is_named = refused.stderr.contains(action) || refused.stderr.contains("s3:PutObject");
        assert!(refused.code == 2 && is_named, "{arguments:?}: {refused:?}");
    }
    Ok(())
}
