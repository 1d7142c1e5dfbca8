//! What a company asks of a stack besides that it copies: how it is deployed, started, watched, updated and removed.

use std::time::Duration;

use local::aws::xml_text;
use local::images::{self, Format, ImageSpec, LayerSpec};
use local::machine::{ACCOUNT, CLUSTER, REGION, SOURCE_ACCOUNT, SOURCE_CREDENTIAL, SOURCE_REGION};
use local::registry::contents;
use local::stack::Stack;
use serde_json::{Value, json};

use crate::command::IS_COMMAND;
use crate::comparing::tags;
use crate::world::{Result, World, rows};

/// How long a test waits for an execution that something else starts.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(200);

pub async fn a_published_template_takes_data_transfer_hubs_command_and_runs_as_soon_as_it_is_deployed(
    world: &World,
) -> Result {
    let home = world.machine().home()?;
    let template = world.published_template().await?;
    let key = json!({ "SecretId": SOURCE_CREDENTIAL });
    let key = home.json("secretsmanager", "secretsmanager.GetSecretValue", key).await?;
    let secret = json!({ "Name": "dev-us-credential", "SecretString": key["SecretString"] });
    home.json("secretsmanager", "secretsmanager.CreateSecret", secret).await?;
    let network = world.machine().network();
    // Its names, its order, its blanks; with this machine's accounts, regions and network.
    let parameters = [
        ("sourceType", "Amazon_ECR"),
        ("srcRegion", SOURCE_REGION),
        ("srcAccountId", SOURCE_ACCOUNT),
        ("srcList", "ALL"),
        ("includeUntagged", "false"),
        ("srcImageList", ""),
        ("srcCredential", "dev-us-credential"),
        ("destAccountId", ""),
        ("destRegion", REGION),
        ("destCredential", ""),
        ("destPrefix", ""),
        ("alarmEmail", "your_email@example.com"),
        ("ecsVpcId", &network.vpc),
        ("ecsClusterName", CLUSTER),
        ("ecsSubnetA", &network.subnets[0]),
        ("ecsSubnetB", &network.subnets[1]),
    ];
    let stack = Stack::create(home, "dth-ecr-task", template, &["CAPABILITY_NAMED_IAM"], &parameters).await?;
    world.deployed(&stack, &parameters);

    let event = json!({
        "version": "0", "id": "0", "source": "aws.cloudformation", "detail-type": "CloudFormation Stack Status Change",
        "account": ACCOUNT, "region": REGION, "time": "2026-01-01T00:00:00Z", "resources": [stack.id().await?],
        "detail": { "stack-id": stack.id().await?, "status-details": { "status": "CREATE_COMPLETE" } },
    });
    world.machine().fargate().deliver(&event).await?;
    let executions = stack.executions().await?;
    let execution = executions.first().ok_or("it has not started")?;
    let outcome = execution.wait().await?;

    assert!(outcome.succeeded(), "{outcome:?} {:?}", rows(&stack).await?);
    let source = tags(&contents(&world.machine().aws(SOURCE_ACCOUNT, SOURCE_REGION)?, "").await?);
    let mut there = tags(&contents(&world.machine().home()?, "").await?);
    // Without a prefix: the other tests' repositories are next to these.
    there.retain(|tag, _| source.contains_key(tag));
    assert_eq!(there, source);
    assert_eq!(rows(&stack).await?.len(), source.len(), "untagged images were not asked for");
    assert!(stack.state_machine_arn()?.ends_with(":dth-ecr-task-ECRReplicationSM"));
    let resources = stack.resources().await?;
    let log_group = resources.get("ListImagesFunctionLog").ok_or("the function has no log group")?;
    assert!(log_group.starts_with("/aws/lambda/dth-ecr-task-ListImagesFunction"), "{log_group}");
    assert!(resources.contains_key("DTHECRContainerLogGroup"), "CloudFormation names it after this");
    Ok(())
}

pub async fn parameters_that_contradict_each_other_are_refused_at_deployment(world: &World) -> Result {
    let template = world.published_template().await?;
    for (parameters, reason) in [
        (&[("sourceType", "Public")][..], "set srcList to SELECTED"),
        (&[("srcList", "SELECTED")], "must name at least one image"),
        (&[("srcAccountId", "333333333333")], "srcCredential must name a credential"),
        (&[("destAccountId", "333333333333")], "destCredential must name a credential"),
        (&[("srcExternalId", "partner")], "srcExternalId is for a role"),
        (&[("ecsVpcId", "vpc-0123")], "leave all three blank"),
        (&[("assignPublicIp", "false")], "has public subnets only"),
        (&[("taskCpu", "256"), ("taskMemory", "8192")], "Fargate offers taskCpu 256"),
        (
            &[("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", "alpine"), ("copyOnPush", "true")],
            "sends events for pushed images",
        ),
        (&[("schedule", "daily")], "schedule"),
        (&[("srcRegion", "Frankfurt")], "srcRegion"),
    ] {
        let home = world.machine().home()?;
        let refused = Stack::create(home, "contradictory", template, &["CAPABILITY_IAM"], parameters).await;
        let message = refused.err().ok_or(format!("{parameters:?} is accepted"))?.to_string();
        assert!(message.contains(reason), "{parameters:?}: {message}");
    }
    Ok(())
}

pub async fn a_stacks_name_works_or_is_refused_with_a_reason(world: &World) -> Result {
    let template = world.published_template().await?;
    let parameters = [("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", "alpine:3.20")];
    let longest = "n".repeat(63);
    for name in ["a", "aws-mirror", "SSM-mirror", &longest] {
        let home = world.machine().home()?;
        let stack = Stack::create(home, name, template, &["CAPABILITY_IAM"], &parameters).await?;
        assert!(stack.state_machine_arn()?.ends_with(&format!(":{name}-ECRReplicationSM")));
        stack.delete().await?;
    }

    let (home, name) = (world.machine().home()?, "n".repeat(64));
    let refused = Stack::create(home.clone(), &name, template, &["CAPABILITY_IAM"], &parameters).await;
    assert!(refused.is_err(), "it is longer than the state machine's name may be");
    let events = home.query("cloudformation", "DescribeStackEvents", &[("StackName", &name)]).await?;
    let failed: Vec<_> = local::aws::xml_texts(&events, "ResourceStatusReason");
    assert!(failed.iter().any(|reason| reason.contains("^.{1,63}$")), "{failed:?}");
    assert!(events.contains("StackNameOfAtMost63Characters"), "{events}");
    let tables = home.json("dynamodb", "DynamoDB_20120810.ListTables", json!({})).await?;
    assert!(!tables.to_string().contains(&name), "what would stay has not been created: {tables}");
    Ok(())
}

pub async fn images_that_are_pushed_are_copied_by_one_run_that_starts_with_the_next_minute(world: &World) -> Result {
    let home = world.machine().home()?;
    let ecr = async |action: &str, request: Value| {
        home.json("ecr", &format!("AmazonEC2ContainerRegistry_V20150921.{action}"), request).await
    };
    ecr("CreateRepository", json!({ "repositoryName": "upstream/app" })).await?;
    // Cluster and network are the stack's own, and so are the cluster's capacity providers.
    let blank = ["ecsClusterName", "ecsVpcId", "ecsSubnetA", "ecsSubnetB"].map(|name| (name, ""));
    let parameters =
        [("includeRepositories", "upstream/"), ("copyOnPush", "true"), ("fargateSpot", "true"), ("schedule", "once")];
    let stack = world.deploy("pushed", &[&blank[..], &parameters].concat()).await?;
    let registry = world.machine().ecr(ACCOUNT, REGION).await?;
    let pushed = |tag: &str| {
        json!({
            "version": "0", "id": "0", "source": "aws.ecr", "detail-type": "ECR Image Action", "account": ACCOUNT,
            "region": REGION, "time": "2026-01-01T00:00:00Z", "resources": [],
            "detail": { "action-type": "PUSH", "result": "SUCCESS", "repository-name": "upstream/app", "image-tag": tag },
        })
    };
    for (tag, architectures) in [("1", vec!["amd64"]), ("2", vec!["amd64", "arm64"])] {
        let layers = vec![LayerSpec { name: format!("upstream/{tag}"), size: 1_000 }];
        let made = images::make(&[ImageSpec { format: Format::Oci, architectures, layers }])?;
        registry.push("upstream/app", &[(&made[0], &[tag.to_owned()])]).await?;
        world.machine().fargate().deliver(&pushed(tag)).await?;
    }

    let executions = async || Ok(Some(stack.executions().await?).filter(|it| !it.is_empty()));
    let executions = eventually(executions).await?;
    for execution in &executions {
        assert!(execution.name().starts_with("pushed-"), "{}", execution.name());
        let outcome = execution.wait().await?;
        assert!(outcome.succeeded(), "{outcome:?} {:?}", rows(&stack).await?);
    }
    // Two only where a minute went by between the two.
    assert!(executions.len() <= 2);
    let source = contents(&home, "upstream/app").await?;
    let there = contents(&home, "pushed/").await?;
    assert_eq!(there.into_values().collect::<Vec<_>>(), source.into_values().collect::<Vec<_>>());
    Ok(())
}

pub async fn an_update_keeps_the_history_and_a_deletion_keeps_what_it_was_told_to(world: &World) -> Result {
    let home = world.machine().home()?;
    let list = [("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", "busybox:1.36")];
    let first = world.run(world.deploy("kept", &list).await?).await?;
    assert!(first.outcome.succeeded(), "{:?}", first.outcome);
    let before = (rows(&first.stack).await?, first.stack.resources().await?);

    let key = home.json("kms", "TrentService.CreateKey", json!({})).await?;
    let key = key["KeyMetadata"]["Arn"].as_str().ok_or("the key has no ARN")?;
    let changed = [
        ("kmsKey", key),
        ("srcImageList", "busybox:1.36,busybox:1.37"),
        ("destPrefix", "kept"),
        ("maxConcurrency", "3"),
        ("taskCpu", "1024"),
        ("taskMemory", "2048"),
        ("logRetentionDays", "7"),
        ("excludeTags", "*beta*"),
        ("alarmEmail", "somebody@example.com"),
        ("schedule", "rate(6 hours)"),
        ("maxHoursWithoutRun", "12"),
        ("recordsOnDeletion", "Retain"),
    ];
    let second = world.run(world.deploy("kept", &[&list[..2], &changed].concat()).await?).await?;
    assert!(second.outcome.succeeded(), "{:?}", second.outcome);

    let after = (rows(&second.stack).await?, second.stack.resources().await?);
    let row = ("busybox".to_owned(), "1.36".to_owned());
    assert_eq!(before.0.get(&row), after.0.get(&row));
    assert_eq!(after.0.len(), 2);
    for resource in
        ["ImageTable", "ExecutionTable", "PlanBucket", "Topic", "RegistryAuthSecret", "DTHECRContainerLogGroup"]
    {
        assert_eq!(before.1.get(resource), after.1.get(resource), "{resource} is still the same");
    }

    let table = after.1.get("ImageTable").ok_or("there is no table")?.clone();
    let logs = json!({ "logGroupNamePrefix": second.stack.output("ContainerLogGroup")? });
    second.stack.delete().await?;
    let described = home.json("dynamodb", "DynamoDB_20120810.DescribeTable", json!({ "TableName": table })).await?;
    assert_eq!(described["Table"]["ItemCount"], 2);
    let logs = home.json("logs", "Logs_20140328.DescribeLogGroups", logs).await?;
    assert_eq!(logs["logGroups"].as_array().map(Vec::len), Some(0), "{logs}");
    Ok(())
}

pub async fn the_check_for_an_aws_account_passes_on_this_machine(world: &World) -> Result {
    let log = world.machine().directory().join("check.log");
    let check = Stack::check(world.machine(), &std::env::current_exe()?).await?;
    let ended = check.envs([(IS_COMMAND, "1")]).run(&log).await;
    let said = std::fs::read_to_string(&log)?;
    assert!(ended.is_ok() && said.contains("checks passed"), "{said}");
    Ok(())
}

pub async fn a_stack_has_alarms_and_a_dashboard(world: &World) -> Result {
    let stack = &world.private_run().await?.stack;
    let home = world.machine().home()?;
    let resources = stack.resources().await?;
    let alarms = home.query("monitoring", "DescribeAlarms", &[("AlarmNamePrefix", stack.name())]).await?;
    for alarm in ["RunFailedAlarm", "RunTimedOutAlarm", "ImagesFailedAlarm", "NoRunAlarm"] {
        let name = resources.get(alarm).ok_or(format!("there is no {alarm}"))?;
        assert!(alarms.contains(&format!("<AlarmName>{name}</AlarmName>")), "{alarms}");
    }
    let name = resources.get("Dashboard").ok_or("there is no dashboard")?;
    let dashboard = home.query("monitoring", "GetDashboard", &[("DashboardName", name)]).await?;
    let body = xml_text(&dashboard, "DashboardBody").ok_or("it is empty")?;
    let body: Value = serde_json::from_str(&body)?;
    let widgets = body["widgets"].as_array().ok_or("it has no widgets")?;
    let titles: Vec<_> = widgets.iter().filter_map(|widget| widget["properties"]["title"].as_str()).collect();
    assert_eq!(titles, ["Images", "Runs", "Bytes copied", "Duration of runs", "Last runs", "Failed images"]);
    // What the queries look for is what the functions and the script write.
    let text = body.to_string();
    for source in [resources.get("ListImagesFunctionLog"), resources.get("DTHECRContainerLogGroup")] {
        assert!(text.contains(&format!("SOURCE '{}'", source.ok_or("there is no log group")?)), "{text}");
    }
    let log = world.logs(&format!("/{}-ListImages", stack.name())).await?.to_string();
    assert!(log.contains(r#"\"ImagesListed\":"#) && log.contains(r#"\"ImagesToCopy\":"#), "{log}");
    Ok(())
}

/// Waits until there is something.
async fn eventually<T>(probe: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let wait = async {
        loop {
            if let Some(found) = probe().await? {
                return Ok(found);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await?
}
