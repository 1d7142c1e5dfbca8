//! Where credentials must not be.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use local::aws::Aws;
use local::machine::{Machine, SOURCE_ACCOUNT, SOURCE_CREDENTIAL, SOURCE_REGION};
use serde_json::{Value, json};

use crate::world::{PRIVATE_LOGIN, Result, World};

/// The credentials of a run: the access key for the source, and the logins to both registries.
pub async fn known(machine: &Machine) -> local::Result<Vec<String>> {
    let home = machine.home()?;
    let request = json!({ "SecretId": SOURCE_CREDENTIAL });
    let secret = home.json("secretsmanager", "secretsmanager.GetSecretValue", request).await?;
    let key: Value = serde_json::from_str(secret["SecretString"].as_str().unwrap_or_default()).unwrap_or_default();
    let mut secrets = vec![key["secret_access_key"].as_str().unwrap_or_default().to_owned()];
    for aws in [home, machine.aws(SOURCE_ACCOUNT, SOURCE_REGION)?] {
        let target = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
        let login = aws.json("ecr", target, json!({})).await?;
        secrets.push(login["authorizationData"][0]["authorizationToken"].as_str().unwrap_or_default().to_owned());
    }
    secrets.push(PRIVATE_LOGIN.to_owned());
    secrets.push("correct-horse".to_owned());
    Ok(secrets)
}

/// Watches the command lines of all processes for credentials.
pub struct CommandLines {
    found: Arc<Mutex<BTreeSet<String>>>,
    seen_skopeo: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl CommandLines {
    /// Starts watching for any of `secrets`.
    pub fn watch(secrets: Vec<String>) -> Self {
        let found = Arc::<Mutex<BTreeSet<String>>>::default();
        let (seen_skopeo, stop) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let watcher = std::thread::spawn({
            let (found, seen_skopeo, stop) = (Arc::clone(&found), Arc::clone(&seen_skopeo), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    for line in command_lines() {
                        if line.starts_with("skopeo") {
                            seen_skopeo.store(true, Ordering::Relaxed);
                        }
                        if secrets.iter().any(|secret| line.contains(secret)) {
                            found.lock().unwrap_or_else(PoisonError::into_inner).insert(line);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self { found, seen_skopeo, stop, watcher: Some(watcher) }
    }
}

impl Drop for CommandLines {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn command_lines() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}

pub async fn no_credential_is_in_a_command_line_a_log_an_override_a_payload_or_a_table(world: &World) -> Result {
    let run = world.private_run().await?;
    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    let secrets = known(world.machine()).await?;
    assert!(secrets.iter().all(|secret| secret.len() > 8), "there is something to look for");
    let home = world.machine().home()?;

    let auth = home
        .json(
            "secretsmanager",
            "secretsmanager.GetSecretValue",
            json!({ "SecretId": run.stack.output("RegistryAuthSecret")? }),
        )
        .await?;
    assert!(
        secrets[1..3].iter().all(|login| auth.to_string().contains(login)),
        "the logins are in the secret, and in use"
    );

    let lines = world.command_lines();
    assert!(lines.seen_skopeo.load(Ordering::Relaxed), "the watcher has seen the copying");
    let found = lines.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(found.is_empty(), "in a command line: {found:?}");

    let places = [
        ("an override", json!(world.tasks(&run.stack).into_iter().map(|task| task.overrides).collect::<Vec<_>>())),
        ("a payload", payloads(&home, run.execution.arn()).await?),
        ("a table", tables(&home, run).await?),
        ("a log", world.logs("").await?),
        ("the plan", json!(plan(world, run).await?)),
    ];
    for (place, content) in places {
        let content = content.to_string();
        assert!(content.len() > 100, "{place} has something in it: {content}");
        for secret in &secrets {
            assert!(!content.contains(secret), "a credential is in {place}");
        }
    }
    Ok(())
}

/// Inputs, outputs and history of an execution and of its batches' executions.
async fn payloads(aws: &Aws, execution: &str) -> Result<Value> {
    let states = |action: &str, request: Value| {
        let target = format!("AWSStepFunctions.{action}");
        async move { aws.json("states", &target, request).await }
    };
    let mut payloads = vec![
        states("DescribeExecution", json!({ "executionArn": execution })).await?,
        states("GetExecutionHistory", json!({ "executionArn": execution, "includeExecutionData": true })).await?,
    ];
    let maps = states("ListMapRuns", json!({ "executionArn": execution })).await?;
    for map in maps["mapRuns"].as_array().into_iter().flatten() {
        let batches = states("ListExecutions", json!({ "mapRunArn": map["mapRunArn"] })).await?;
        for batch in batches["executions"].as_array().into_iter().flatten() {
            payloads.push(states("DescribeExecution", json!({ "executionArn": batch["executionArn"] })).await?);
        }
    }
    assert!(payloads.len() > 2, "the batches are executions of their own");
    Ok(json!(payloads))
}

async fn tables(aws: &Aws, run: &crate::world::Run) -> Result<Value> {
    let mut tables = Vec::new();
    for table in ["ImageTable", "ExecutionTable"] {
        let request = json!({ "TableName": run.stack.output(table)? });
        tables.push(aws.json("dynamodb", "DynamoDB_20120810.Scan", request).await?);
    }
    Ok(json!(tables))
}

/// The plan, as the state machine reads it.
async fn plan(world: &World, run: &crate::world::Run) -> Result<String> {
    let bucket = run.stack.output("PlanBucket")?;
    Ok(world.machine().home()?.object(bucket, &format!("plans/{}.json", run.execution.name())).await?)
}
