//! Runs of a task: starts, stops and describes them. A run is an execution of the task's state machine.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use aws_sdk_ecs::operation::list_tasks::ListTasksError;
use aws_sdk_ecs::types::{ContainerOverride, DesiredStatus, Task as EcsTask, TaskOverride};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_sfn::error::ProvideErrorMetadata as _;
use aws_sdk_sfn::types::{ExecutionListItem, ExecutionStatus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shared::Error as AwsError;
use shared::plan::{self, Object, Summary};
use shared::task::{BATCH, started_by};
use shared::text::Excerpt;
use tokio::time::Instant;

use super::{Account, Error, Log, Page, Result, Task, Time, excerpt};

/// Runs of a page. It is also the most keys of a
/// [BatchGetItem](https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html).
pub(super) const PAGE: usize = 100;

/// The largest plan or report that is read: of about 1,000,000 images.
const MAX_BYTES: i64 = 256 << 20;

/// After this, tasks that launch-task has not stopped are stopped here.
const GRACE: Duration = Duration::from_secs(30);

/// How long tasks may take to stop.
const TASKS_STOP: Duration = Duration::from_secs(10 * 60);

/// A page of runs.
pub type Runs = Page<Run>;

/// An item of a table.
pub(super) type Item = HashMap<String, AttributeValue>;

/// What a run is started with. list-images reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Input {
    /// Report what a run would copy, and copy nothing.
    #[serde(skip_serializing_if = "is_false")]
    pub dry_run: bool,
    /// Images to copy instead of the task's selection, in the format of `srcImageList`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_image_list: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
fn is_false(flag: &bool) -> bool {
    !flag
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// It lists, copies, or waits for an earlier run.
    Running,
    /// Every image is at its destination, or it was a dry run.
    Succeeded,
    /// An image is not at its destination, or nothing could be listed.
    Failed,
    /// It exceeded `runTimeoutSeconds`.
    TimedOut,
    /// Somebody stopped it.
    Aborted,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The execution's name.
    pub name: String,
    /// How it stands.
    pub status: Status,
    /// When it started.
    pub started_at: Option<Time>,
    /// When it ended.
    pub stopped_at: Option<Time>,
    /// `None` until it has listed the source, and for dry runs.
    pub counts: Option<Counts>,
}

/// The counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Images at the source.
    pub listed: u64,
    /// Images that the destination already had.
    pub unchanged: u64,
    /// Images that a rule excludes.
    pub excluded: u64,
    /// Images to copy.
    pub to_copy: u64,
    /// Images that were copied.
    pub done: u64,
    /// Images that could not be copied.
    pub failed: u64,
    /// Bytes to copy.
    pub bytes: u64,
    /// Bytes that were copied.
    pub bytes_done: u64,
    /// The sum of the seconds of all copies.
    pub seconds_copying: u64,
}

/// Everything about a run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunDetails {
    /// The run.
    #[serde(flatten)]
    pub run: Run,
    /// What it was started with.
    pub input: Input,
    /// Images that are neither copied nor failed yet.
    pub left: u64,
    /// Bytes per second since it started.
    pub bytes_per_second: Option<u64>,
    /// Why it failed: a short name.
    pub error: Option<Excerpt>,
    /// Why it failed, in words.
    pub cause: Option<Excerpt>,
    /// The first failures of images.
    pub failures: Vec<Excerpt>,
    /// The report of a dry run, for [`Account::report`].
    #[serde(skip)]
    pub report: Option<Object>,
    /// The batches that have ended.
    #[serde(skip)]
    recorded: HashSet<String>,
}

/// What a dry run says about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `new` and `changed` images are copied. `unchanged` and `excluded` ones are not copied. `failed` ones cannot be copied.
    pub reason: Excerpt,
    /// The image, or for `excluded` and `failed` also a pattern or a repository.
    pub source: Excerpt,
    /// Where a run would copy it to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Excerpt>,
    /// The rule of `excluded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Excerpt>,
    /// Why it `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Excerpt>,
}

/// A batch of images that one Fargate task copies.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Its id in the run.
    pub id: String,
    /// The number of its images.
    pub images: usize,
    /// The sum of their bytes.
    pub bytes: u64,
    /// Whether it has ended, and its images are counted.
    pub is_recorded: bool,
    /// Its Fargate task. ECS forgets it an hour after its end.
    pub task: Option<FargateTask>,
}

/// A task of ECS.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FargateTask {
    /// The last part of its ARN.
    pub id: String,
    /// ECS's: `RUNNING` or `STOPPED`, for example.
    pub status: String,
    /// When its container started.
    pub started_at: Option<Time>,
    /// When it stopped.
    pub stopped_at: Option<Time>,
    /// Why it stopped.
    pub stopped_reason: Option<Excerpt>,
    /// Its log.
    #[serde(skip)]
    pub log: Option<Log>,
    #[serde(skip)]
    arn: String,
    #[serde(skip)]
    batch: Option<String>,
    #[serde(skip)]
    started_by: String,
}

/// What happens while runs are stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopping {
    /// A run is stopped.
    Run(String),
    /// As many Fargate tasks have not stopped yet.
    Tasks(usize),
}

impl Status {
    fn of(status: &ExecutionStatus) -> Self {
        match status {
            ExecutionStatus::Succeeded => Self::Succeeded,
            ExecutionStatus::Failed => Self::Failed,
            ExecutionStatus::TimedOut => Self::TimedOut,
            ExecutionStatus::Aborted => Self::Aborted,
            _ => Self::Running,
        }
    }

    /// Whether it has ended.
    pub fn is_final(self) -> bool {
        self != Self::Running
    }

    /// As Step Functions writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Aborted => "ABORTED",
        }
    }
}

impl Run {
    fn of(execution: &ExecutionListItem, counts: Option<Counts>) -> Self {
        Self {
            name: execution.name.clone(),
            status: Status::of(&execution.status),
            started_at: Some(execution.start_date.into()),
            stopped_at: execution.stop_date.map(Time::from),
            counts,
        }
    }

    /// How long it took, or has taken so far.
    pub fn seconds(&self) -> Option<u64> {
        Some(self.stopped_at.unwrap_or_else(Time::now).seconds_since(self.started_at?))
    }
}

impl Counts {
    fn of_item(item: &Item) -> Self {
        let number = |name: &str| number(item, name).unwrap_or_default();
        Self {
            listed: number("listed"),
            unchanged: number("unchanged"),
            excluded: number("excluded"),
            to_copy: number("toCopy"),
            done: number("done"),
            failed: number("failed"),
            bytes: number("bytes"),
            bytes_done: number("bytesDone"),
            seconds_copying: number("secondsCopying"),
        }
    }

    fn of_summary(summary: &Summary) -> Self {
        Self {
            listed: summary.listed as u64,
            unchanged: summary.unchanged as u64,
            excluded: summary.excluded as u64,
            to_copy: summary.to_copy as u64,
            bytes: summary.bytes,
            ..Self::default()
        }
    }

    /// Images that are neither copied nor failed yet.
    pub fn left(&self) -> u64 {
        self.to_copy.saturating_sub(self.done.saturating_add(self.failed))
    }
}

/// The cluster of a task's Fargate tasks, if there is one yet.
pub(super) fn cluster_of<'a>(task: &'a Task, resources: &'a BTreeMap<String, String>) -> &'a str {
    let own = resources.get("Cluster").or_else(|| task.parameters.get("ecsClusterName"));
    own.map(String::as_str).unwrap_or_default()
}

/// Which runs are stopped.
pub(super) enum Scope<'a> {
    /// All, also those that start in the meantime.
    All,
    /// Those of these names.
    Runs(&'a [String]),
}

impl Account {
    /// Starts a run, and returns its name. It runs beside a run of all images only if it is a dry run; otherwise it waits.
    ///
    /// # Errors
    /// If the task is not complete, or a permission is missing.
    pub async fn start(&self, task: &Task, input: &Input) -> Result<String> {
        let machine = task.output("StateMachineArn")?;
        // With a name, a request that is sent twice starts one execution.
        let name = format!("manual-{}-{:08x}", Time::now().millis() / 1_000, fastrand::u32(..));
        let input = serde_json::to_string(input).unwrap_or_default();
        let start = self.sfn.start_execution().state_machine_arn(machine).name(&name).input(input);
        start.send().await.map_err(AwsError::aws("states:StartExecution", &task.name))?;
        Ok(name)
    }

    /// The runs of a task, the latest first: at most `limit`, and at most 100. `from` is the end of another page.
    ///
    /// # Errors
    /// If the task is not complete, or a permission is missing.
    pub async fn runs(&self, task: &Task, limit: usize, from: Option<&str>) -> Result<Runs> {
        let machine = task.output("StateMachineArn")?;
        let limit = i32::try_from(limit.clamp(1, PAGE)).unwrap_or_default();
        let list = self.sfn.list_executions().state_machine_arn(machine).max_results(limit);
        let answer = list.set_next_token(from.map(str::to_owned)).send().await;
        let answer = answer.map_err(AwsError::aws("states:ListExecutions", &task.name))?;
        let keys = answer.executions.iter().map(|it| Item::from([("Execution".into(), text_value(&it.name))]));
        let items = self.items(task.output("ExecutionTable")?, keys.collect()).await?;
        let counts: HashMap<_, _> =
            items.iter().filter_map(|item| Some((text(item, "Execution")?, Counts::of_item(item)))).collect();
        let runs = answer.executions.iter().map(|it| Run::of(it, counts.get(it.name.as_str()).copied()));
        Ok(Runs { items: runs.collect(), next: answer.next_token })
    }

    /// The name of the latest run.
    ///
    /// # Errors
    /// If there is none.
    pub async fn latest_run(&self, task: &Task) -> Result<String> {
        let machine = task.output("StateMachineArn")?;
        let answer = self.sfn.list_executions().state_machine_arn(machine).max_results(1).send().await;
        let answer = answer.map_err(AwsError::aws("states:ListExecutions", &task.name))?;
        let latest = answer.executions.into_iter().next();
        latest
            .map(|it| it.name)
            .ok_or_else(|| Error::Rejected(format!("{0} has no run yet. Start one: ecr-transfer start {0}", task.name)))
    }

    /// Everything about a run.
    ///
    /// # Errors
    /// If there is no run of that name.
    pub async fn run(&self, task: &Task, name: &str) -> Result<RunDetails> {
        let execution = self.sfn.describe_execution().execution_arn(execution_arn(task, name)?).send().await;
        let execution = match execution {
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|it| it.is_execution_does_not_exist() || it.is_invalid_arn()) =>
            {
                return Err(Error::Rejected(format!(
                    "{} has no run {:?}. `ecr-transfer runs {0}` lists them.",
                    task.name,
                    Excerpt::within(name, 100)
                )));
            }
            other => other.map_err(AwsError::aws("states:DescribeExecution", name))?,
        };
        let key = Item::from([("Execution".into(), text_value(name))]);
        let get = self.dynamodb.get_item().table_name(task.output("ExecutionTable")?).set_key(Some(key));
        let item = get.send().await.map_err(AwsError::aws("dynamodb:GetItem", &task.name))?.item;
        let parse = |json: Option<&str>| serde_json::from_str::<Summary>(json?).ok();
        let summary = parse(execution.output.as_deref());
        let counts = item.as_ref().map(Counts::of_item).or_else(|| summary.as_ref().map(Counts::of_summary));
        let run = Run {
            name: name.to_owned(),
            status: Status::of(&execution.status),
            started_at: Some(execution.start_date.into()),
            stopped_at: execution.stop_date.map(Time::from),
            counts,
        };
        let item = item.unwrap_or_default();
        let strings = |name: &str| match item.get(name) {
            Some(AttributeValue::L(list)) => list.iter().filter_map(|it| it.as_s().ok()).cloned().collect(),
            Some(AttributeValue::Ss(set)) => set.clone(),
            _ => Vec::new(),
        };
        let seconds = run.seconds().filter(|&seconds| seconds > 0);
        Ok(RunDetails {
            // A dry run and one that failed before copies nothing.
            left: if item.is_empty() { 0 } else { counts.unwrap_or_default().left() },
            bytes_per_second: counts.zip(seconds).map(|(counts, seconds)| counts.bytes_done / seconds),
            input: serde_json::from_str(execution.input.as_deref().unwrap_or_default()).unwrap_or_default(),
            error: excerpt(execution.error.as_deref()),
            cause: excerpt(execution.cause.as_deref().map(message).as_deref()),
            failures: strings("failures").into_iter().map(Excerpt::from).collect(),
            report: summary.and_then(|summary| summary.dry_run),
            recorded: strings("recorded").into_iter().collect(),
            run,
        })
    }

    /// Waits for the end of a run, and reports how it stands.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub async fn follow_run(&self, task: &Task, name: &str, mut report: impl FnMut(&RunDetails)) -> Result<RunDetails> {
        loop {
            let details = self.run(task, name).await?;
            report(&details);
            if details.run.status.is_final() {
                return Ok(details);
            }
            self.pause().await;
        }
    }

    /// What a dry run would do with each image, and why.
    ///
    /// # Errors
    /// If it has not ended, was no dry run, or its report has expired.
    pub async fn report(&self, task: &Task, run: &RunDetails) -> Result<Vec<Decision>> {
        let missing =
            || Error::Rejected(format!("The run {} has no report of a dry run, or it has expired.", run.run.name));
        // The task's own bucket, whatever the output says.
        let report = run.report.as_ref().filter(|report| report.key.starts_with("dry-runs/")).ok_or_else(missing)?;
        self.json(task.output("PlanBucket")?, &report.key).await?.ok_or_else(missing)
    }

    /// The batches of a run: those that run first, then those that wait, then those that have ended. Empty before it has a
    /// plan, and when the plan has expired.
    ///
    /// # Errors
    /// If a permission is missing.
    pub async fn batches(&self, task: &Task, run: &RunDetails) -> Result<Vec<Batch>> {
        let key = format!("plans/{}.json", run.run.name);
        let plan: Option<Vec<plan::Batch>> = self.json(task.output("PlanBucket")?, &key).await?;
        let Some(plan) = plan else { return Ok(Vec::new()) };
        let resources = self.resources(task).await?;
        let by = started_by(task.output("StateMachineArn")?, &run.run.name);
        let mut tasks = HashMap::new();
        for found in self.fargate_tasks(task, cluster_of(task, &resources)).await? {
            if let Some(batch) = found.batch.clone().filter(|_| found.started_by == by) {
                // A batch that is tried again has another task. The one that runs counts, and otherwise the last one.
                let slot = tasks.entry(batch).or_insert_with(|| found.clone());
                if slot.status == "STOPPED" && (found.status != "STOPPED" || found.started_at > slot.started_at) {
                    *slot = found;
                }
            }
        }
        let batches = plan.into_iter().map(|batch| Batch {
            images: batch.repositories.iter().map(|copy| copy.images.len()).sum(),
            bytes: batch.bytes,
            is_recorded: run.recorded.contains(batch.id.as_str()),
            task: tasks.remove(batch.id.as_str()),
            id: batch.id.to_string(),
        });
        let mut batches: Vec<_> = batches.collect();
        batches.sort_by_key(|batch| (batch.is_recorded, batch.task.is_none()));
        Ok(batches)
    }

    /// Stops a run of a task, or all that run, and waits until their Fargate tasks have stopped. Returns the names of the runs.
    ///
    /// # Errors
    /// If the run has ended already.
    pub async fn stop(&self, task: &Task, run: Option<&str>, report: impl FnMut(Stopping)) -> Result<Vec<String>> {
        let machine = task.output("StateMachineArn")?;
        let mut runs = self.running(machine).await?;
        if let Some(run) = run {
            runs.retain(|it| it == run);
            if runs.is_empty() {
                return Err(Error::Rejected(format!(
                    "{} has no run {:?} that could be stopped.",
                    task.name,
                    Excerpt::within(run, 100)
                )));
            }
        }
        let resources = self.resources(task).await?;
        let cluster = cluster_of(task, &resources);
        let reason = "A person stopped it with ecr-transfer.";
        self.stop_runs(task, machine, cluster, &Scope::Runs(&runs), reason, report).await?;
        Ok(runs)
    }

    /// Stops runs, and waits until none of their tasks is left. One that is being stopped still holds its network interface.
    pub(super) async fn stop_runs(
        &self,
        task: &Task,
        machine: &str,
        cluster: &str,
        scope: &Scope<'_>,
        reason: &str,
        mut report: impl FnMut(Stopping),
    ) -> Result<()> {
        let is_meant = |run: &String| match scope {
            Scope::All => true,
            Scope::Runs(runs) => runs.contains(run),
        };
        let tasks_of = match scope {
            Scope::All => None,
            Scope::Runs(runs) => Some(runs.iter().map(|run| started_by(machine, run)).collect::<HashSet<_>>()),
        };
        let (began, mut stopped) = (Instant::now(), HashSet::new());
        loop {
            let mut runs = self.running(machine).await?;
            runs.retain(is_meant);
            for run in &runs {
                let stop = self.sfn.stop_execution().execution_arn(execution_of(machine, run)).cause(reason);
                match stop.send().await {
                    // It has just ended by itself.
                    Err(error)
                        if error
                            .as_service_error()
                            .is_some_and(|it| it.is_execution_does_not_exist() || it.is_validation_exception()) => {}
                    other => {
                        other.map_err(AwsError::aws("states:StopExecution", run))?;
                    }
                }
                if stopped.insert(run.clone()) {
                    report(Stopping::Run(run.clone()));
                }
            }
            let mut tasks = self.fargate_tasks(task, cluster).await?;
            tasks.retain(|it| it.status != "STOPPED" && tasks_of.as_ref().is_none_or(|by| by.contains(&it.started_by)));
            if runs.is_empty() && tasks.is_empty() {
                return Ok(());
            }
            report(Stopping::Tasks(tasks.len()));
            if began.elapsed() > TASKS_STOP {
                let tasks: Vec<_> = tasks.iter().map(|it| it.id.as_str()).collect();
                return Err(Error::Rejected(format!(
                    "These tasks of {} have not stopped in {} minutes: {}. Stop them in the cluster {cluster}, and try again.",
                    task.name,
                    TASKS_STOP.as_secs() / 60,
                    tasks.join(", ")
                )));
            }
            if began.elapsed() > GRACE {
                self.stop_tasks(cluster, &tasks, reason).await?;
            }
            self.pause().await;
        }
    }

    async fn stop_tasks(&self, cluster: &str, tasks: &[FargateTask], reason: &str) -> Result<()> {
        for task in tasks {
            match self.ecs.stop_task().cluster(cluster).task(&task.arn).reason(reason).send().await {
                // launch-task stops them, too, whatever this caller is allowed to.
                Err(error)
                    if error
                        .as_service_error()
                        .is_some_and(|it| it.is_access_denied_exception() || it.is_invalid_parameter_exception()) => {}
                other => {
                    other.map_err(AwsError::aws("ecs:StopTask", &task.id))?;
                }
            }
        }
        Ok(())
    }

    /// The names of the runs that have not ended.
    async fn running(&self, machine: &str) -> Result<Vec<String>> {
        let list = self.sfn.list_executions().state_machine_arn(machine).status_filter(ExecutionStatus::Running);
        let mut pages = list.into_paginator().items().send();
        let mut names = Vec::new();
        while let Some(execution) = pages.next().await {
            match execution {
                Ok(execution) => names.push(execution.name),
                // An earlier deletion came that far.
                Err(error) if matches!(error.code(), Some("StateMachineDoesNotExist" | "StateMachineDeleting")) => {
                    break;
                }
                Err(error) => return Err(AwsError::aws("states:ListExecutions", machine)(error).into()),
            }
        }
        Ok(names)
    }

    /// The Fargate tasks of a task that ECS still knows.
    async fn fargate_tasks(&self, task: &Task, cluster: &str) -> Result<Vec<FargateTask>> {
        let mut arns = Vec::new();
        if cluster.is_empty() {
            return Ok(Vec::new());
        }
        // ListTasks lists tasks that are being stopped with those that have stopped.
        for status in [DesiredStatus::Running, DesiredStatus::Stopped] {
            let list = self.ecs.list_tasks().cluster(cluster).family(format!("{}-copy", task.name));
            let mut pages = list.desired_status(status).into_paginator().items().send();
            while let Some(arn) = pages.next().await {
                match arn {
                    Ok(arn) => arns.push(arn),
                    Err(error)
                        if error.as_service_error().is_some_and(ListTasksError::is_cluster_not_found_exception) =>
                    {
                        return Ok(Vec::new());
                    }
                    Err(error) => return Err(AwsError::aws("ecs:ListTasks", cluster)(error).into()),
                }
            }
        }
        let mut tasks = Vec::new();
        for arns in arns.chunks(PAGE) {
            let described = self.ecs.describe_tasks().cluster(cluster).set_tasks(Some(arns.to_vec())).send().await;
            let described = described.map_err(AwsError::aws("ecs:DescribeTasks", cluster))?;
            tasks.extend(described.tasks().iter().map(|found| FargateTask::of(found, task)));
        }
        Ok(tasks)
    }

    /// The items of a table with these keys, at most [`PAGE`], in no order.
    pub(super) async fn items(&self, table: &str, keys: Vec<Item>) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut keys = Some(keys).filter(|keys| !keys.is_empty());
        while let Some(wanted) = keys {
            let wanted = KeysAndAttributes::builder().set_keys(Some(wanted)).build();
            let wanted = wanted.map_err(|error| Error::Rejected(error.to_string()))?;
            let answer = self.dynamodb.batch_get_item().request_items(table, wanted).send().await;
            let answer = answer.map_err(AwsError::aws("dynamodb:BatchGetItem", table))?;
            items.extend(answer.responses.into_iter().flatten().flat_map(|(_, items)| items));
            let left = answer.unprocessed_keys.and_then(|mut left| left.remove(table)).map(|left| left.keys);
            keys = left.filter(|keys| !keys.is_empty());
            if keys.is_some() {
                self.pause().await;
            }
        }
        Ok(items)
    }

    /// An object in JSON; `None` if there is none.
    async fn json<T: DeserializeOwned>(&self, bucket: &str, key: &str) -> Result<Option<T>> {
        let invalid = |problem: String| Error::Rejected(format!("s3://{bucket}/{key} cannot be read: {problem}"));
        let answer = match self.s3.get_object().bucket(bucket).key(key).send().await {
            Err(error) if error.as_service_error().is_some_and(GetObjectError::is_no_such_key) => return Ok(None),
            other => other.map_err(AwsError::aws("s3:GetObject", format!("{bucket}/{key}")))?,
        };
        if answer.content_length.is_some_and(|length| length > MAX_BYTES) {
            return Err(invalid(format!("it has more than {} MiB.", MAX_BYTES >> 20)));
        }
        let json = answer.body.collect().await.map_err(|error| invalid(error.to_string()))?;
        serde_json::from_slice(&json.into_bytes()).map(Some).map_err(|error| invalid(error.to_string()))
    }
}

impl FargateTask {
    fn of(found: &EcsTask, task: &Task) -> Self {
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let arn = text(found.task_arn());
        let id = arn.rsplit('/').next().unwrap_or_default().to_owned();
        let containers = found.overrides().map(TaskOverride::container_overrides).unwrap_or_default();
        let mut variables = containers.iter().flat_map(ContainerOverride::environment);
        let batch = variables.find(|variable| variable.name() == Some(BATCH)).and_then(|variable| variable.value());
        Self {
            log: Log::of_fargate_task(task, &id).ok(),
            status: text(found.last_status()),
            started_at: found.started_at().copied().map(Time::from),
            stopped_at: found.stopped_at().copied().map(Time::from),
            stopped_reason: excerpt(found.stopped_reason()),
            batch: batch.map(str::to_owned),
            started_by: text(found.started_by()),
            arn,
            id,
        }
    }
}

/// The ARN of a task's execution.
fn execution_arn(task: &Task, name: &str) -> Result<String> {
    Ok(execution_of(task.output("StateMachineArn")?, name))
}

/// <https://docs.aws.amazon.com/step-functions/latest/dg/concepts-state-machine-executions.html>
fn execution_of(machine: &str, name: &str) -> String {
    format!("{}:{name}", machine.replacen(":stateMachine:", ":execution:", 1))
}

/// The message in the cause of a failure: Lambda's is JSON.
fn message(cause: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(cause).ok();
    let message = json.as_ref().and_then(|json| json["errorMessage"].as_str());
    message.unwrap_or(cause).to_owned()
}

pub(super) fn text_value(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

pub(super) fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

pub(super) fn number(item: &Item, name: &str) -> Option<u64> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use aws_sdk_cloudformation::operation::list_stack_resources::ListStackResourcesOutput;
    use aws_sdk_cloudformation::primitives::DateTime;
    use aws_sdk_cloudformation::types::StackResourceSummary;
    use aws_sdk_dynamodb::operation::batch_get_item::BatchGetItemOutput;
    use aws_sdk_dynamodb::operation::get_item::GetItemOutput;
    use aws_sdk_ecs::operation::describe_tasks::DescribeTasksOutput;
    use aws_sdk_ecs::operation::list_tasks::ListTasksOutput;
    use aws_sdk_ecs::types::KeyValuePair;
    use aws_sdk_s3::operation::get_object::GetObjectOutput;
    use aws_sdk_s3::primitives::ByteStream;
    use aws_sdk_s3::types::error::NoSuchKey;
    use aws_sdk_sfn::operation::describe_execution::{DescribeExecutionError, DescribeExecutionOutput};
    use aws_sdk_sfn::operation::list_executions::ListExecutionsOutput;
    use aws_sdk_sfn::operation::start_execution::StartExecutionOutput;
    use aws_sdk_sfn::operation::stop_execution::StopExecutionOutput;
    use aws_sdk_sfn::types::error::ExecutionDoesNotExist;
    use aws_smithy_mocks::{Rule, mock};
    use serde_json::{Value, json};
    use shared::reference::Digest;

    use super::super::account::tests::account;
    use super::super::stack::tests::{MACHINE, task};
    use super::*;

    const EXECUTION: &str = "arn:aws:states:us-east-1:111111111111:execution:copies-ECRReplicationSM:run";

    #[tokio::test]
    async fn a_run_is_started_with_what_list_images_reads() {
        let started = |expected: Value| {
            mock!(aws_sdk_sfn::Client::start_execution)
                .match_requests(move |request| {
                    let input = serde_json::from_str::<Value>(request.input().unwrap_or_default()).ok();
                    let is_valid =
                        |name: &str| name.len() <= 80 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
                    request.state_machine_arn() == Some(MACHINE)
                        && request.name().is_some_and(is_valid)
                        && input.as_ref() == Some(&expected)
                })
                .then_output(|| {
                    let output = StartExecutionOutput::builder().execution_arn(EXECUTION);
                    output.start_date(DateTime::from_secs(0)).build().expect("it is complete")
                })
        };
        for (input, expected) in [
            (Input::default(), json!({})),
            (
                Input { dry_run: true, src_image_list: Some("nginx:1".into()) },
                json!({ "dryRun": true, "srcImageList": "nginx:1" }),
            ),
        ] {
            let rule = started(expected);
            let name = account(&[&rule]).start(&task(), &input).await.expect("it starts");
            assert!(name.starts_with("manual-"), "{name}");
        }
        let incomplete = Task { outputs: BTreeMap::new(), ..task() };
        let error = account(&[]).start(&incomplete, &Input::default()).await.expect_err("it has none").to_string();
        assert_eq!(error, "The stack copies is CREATE_COMPLETE and has no output StateMachineArn yet.");
    }

    fn listed(name: &str, status: ExecutionStatus) -> ExecutionListItem {
        let item = ExecutionListItem::builder().execution_arn(EXECUTION).state_machine_arn(MACHINE).name(name);
        item.status(status).start_date(DateTime::from_secs(1_000)).build().expect("it is complete")
    }

    fn numbers(pairs: &[(&str, u64)]) -> Item {
        let number = |(name, value): &(&str, u64)| ((*name).to_owned(), AttributeValue::N(value.to_string()));
        pairs.iter().map(number).collect()
    }

    fn counted() -> Item {
        let mut item = numbers(&[("toCopy", 5), ("done", 2), ("failed", 1), ("bytes", 70), ("bytesDone", 40)]);
        item.insert("Execution".into(), text_value("run"));
        item.insert("failures".into(), AttributeValue::L(vec![text_value("app:1: no \u{1b}")]));
        item.insert("recorded".into(), AttributeValue::Ss(vec!["1".into()]));
        item
    }

    #[tokio::test]
    async fn runs_have_their_counts_also_if_dynamodb_answers_some_later() {
        let executions = mock!(aws_sdk_sfn::Client::list_executions)
            .match_requests(|request| request.max_results() == Some(2) && request.next_token() == Some("from"))
            .then_output(|| {
                let output = ListExecutionsOutput::builder().next_token("next");
                let output = output.executions(listed("run", ExecutionStatus::Running));
                output.executions(listed("other", ExecutionStatus::TimedOut)).build().expect("it is complete")
            });
        let key = Item::from([("Execution".into(), text_value("run"))]);
        let later = KeysAndAttributes::builder().keys(key).build().expect("it is complete");
        let counts = mock!(aws_sdk_dynamodb::Client::batch_get_item)
            .sequence()
            .output(move || BatchGetItemOutput::builder().unprocessed_keys("executions", later.clone()).build())
            .output(|| BatchGetItemOutput::builder().responses("executions", vec![counted()]).build())
            .build();
        let runs = account(&[&executions, &counts]).runs(&task(), 2, Some("from")).await.expect("they are listed");
        assert_eq!(runs.next.as_deref(), Some("next"));
        let [run, other] = &runs.items[..] else { panic!("{runs:?}") };
        assert_eq!((run.name.as_str(), run.status, run.counts.map(|it| it.left())), ("run", Status::Running, Some(2)));
        assert_eq!((other.status, other.counts), (Status::TimedOut, None));
        assert_eq!(serde_json::to_value(Status::TimedOut).expect("it is JSON"), Status::TimedOut.as_str());
    }

    fn described(
        status: ExecutionStatus,
        input: &'static str,
        output: Option<&'static str>,
        cause: &'static str,
    ) -> Rule {
        mock!(aws_sdk_sfn::Client::describe_execution)
            .match_requests(|request| request.execution_arn() == Some(EXECUTION))
            .then_output(move || {
                let described = DescribeExecutionOutput::builder().execution_arn(EXECUTION).state_machine_arn(MACHINE);
                let described = described.name("run").status(status.clone()).start_date(DateTime::from_secs(1_000));
                let described = described.stop_date(DateTime::from_secs(1_010)).input(input).error("E").cause(cause);
                described.set_output(output.map(str::to_owned)).build().expect("it is complete")
            })
    }

    fn item(item: fn() -> Option<Item>) -> Rule {
        mock!(aws_sdk_dynamodb::Client::get_item).then_output(move || GetItemOutput::builder().set_item(item()).build())
    }

    #[tokio::test]
    async fn a_run_is_described_with_what_is_left_and_why_it_failed() {
        let execution = described(
            ExecutionStatus::Failed,
            r#"{"srcImageList": "nginx", "version": 1}"#,
            None,
            r#"{"errorType": "X", "errorMessage": "no \u001b", "trace": []}"#,
        );
        let row = item(|| Some(counted()));
        let run = account(&[&execution, &row]).run(&task(), "run").await.expect("it is described");
        assert_eq!((run.left, run.bytes_per_second, run.run.seconds()), (2, Some(4), Some(10)));
        assert_eq!(run.failures, [Excerpt::from(r"app:1: no \u{1b}")]);
        assert_eq!(run.input.src_image_list.as_deref(), Some("nginx"));
        assert_eq!(run.error.as_ref().map(Excerpt::as_str), Some("E"));
        assert_eq!(run.cause.as_ref().map(Excerpt::as_str), Some(r"no \u{1b}"));
        let json = serde_json::to_value(&run).expect("it is JSON");
        assert_eq!((&json["status"], &json["counts"]["toCopy"]), (&json!("FAILED"), &json!(5)));
    }

    #[tokio::test]
    async fn a_dry_run_has_the_counts_of_its_output_and_a_report_in_the_tasks_own_bucket() {
        let output = r#"{"batches": 0, "listed": 3, "unchanged": 1, "excluded": 0, "toCopy": 2, "bytes": 9,
            "dryRun": {"bucket": "theirs", "key": "dry-runs/run.json", "version": "v"}}"#;
        let execution = described(ExecutionStatus::Succeeded, r#"{"dryRun": true}"#, Some(output), "");
        let none = item(|| None);
        let object = mock!(aws_sdk_s3::Client::get_object)
            .match_requests(|request| (request.bucket(), request.key()) == (Some("plans"), Some("dry-runs/run.json")))
            .then_output(|| {
                let json = r#"[{"reason": "new", "source": "s\u001b", "destination": "d"},
                    {"reason": "excluded", "source": "x", "rule": "r"}]"#;
                GetObjectOutput::builder().body(ByteStream::from_static(json.as_bytes())).build()
            });
        let account = account(&[&execution, &none, &object]);
        let mut run = account.run(&task(), "run").await.expect("it is described");
        assert_eq!((run.run.counts.map(|it| it.to_copy), run.left), (Some(2), 0));
        let report = account.report(&task(), &run).await.expect("it is there");
        assert_eq!(report[0].source.as_str(), r"s\u{1b}");
        assert_eq!(report[1].rule.as_ref().map(Excerpt::as_str), Some("r"));
        if let Some(report) = &mut run.report {
            report.key = "inventory/latest.json".into();
        }
        assert!(account.report(&task(), &run).await.is_err(), "the key is another one");
    }

    #[tokio::test]
    async fn a_run_that_does_not_exist_is_an_error_that_says_what_to_do() {
        let missing = mock!(aws_sdk_sfn::Client::describe_execution)
            .then_error(|| DescribeExecutionError::ExecutionDoesNotExist(ExecutionDoesNotExist::builder().build()));
        let error = account(&[&missing]).run(&task(), "x\n").await.expect_err("there is none").to_string();
        assert_eq!(error, r#"copies has no run "x\n". `ecr-transfer runs copies` lists them."#);
        let none = mock!(aws_sdk_sfn::Client::list_executions).then_output(|| {
            ListExecutionsOutput::builder().set_executions(Some(Vec::new())).build().expect("it is complete")
        });
        let error = account(&[&none]).latest_run(&task()).await.expect_err("there is none").to_string();
        assert_eq!(error, "copies has no run yet. Start one: ecr-transfer start copies");
    }

    fn resources() -> Rule {
        mock!(aws_sdk_cloudformation::Client::list_stack_resources).then_output(|| {
            let cluster =
                StackResourceSummary::builder().logical_resource_id("Cluster").physical_resource_id("cluster");
            let cluster = cluster.resource_type("AWS::ECS::Cluster").last_updated_timestamp(DateTime::from_secs(0));
            let cluster =
                cluster.resource_status(aws_sdk_cloudformation::types::ResourceStatus::CreateComplete).build();
            ListStackResourcesOutput::builder().stack_resource_summaries(cluster).build()
        })
    }

    /// Tasks of ECS: id, run, batch and status.
    fn fargate(tasks: &'static [(&'static str, &'static str, &'static str, &'static str)]) -> [Rule; 2] {
        let list = mock!(aws_sdk_ecs::Client::list_tasks)
            .match_requests(|request| (request.cluster(), request.family()) == (Some("cluster"), Some("copies-copy")))
            .then_compute_output(|request| {
                let running = request.desired_status() == Some(&DesiredStatus::Running);
                ListTasksOutput::builder()
                    .set_task_arns(Some(if running { vec!["arn".into()] } else { Vec::new() }))
                    .build()
            });
        let describe = mock!(aws_sdk_ecs::Client::describe_tasks).then_output(move || {
            let described = tasks.iter().map(|(id, run, batch, status)| {
                let variable = KeyValuePair::builder().name(BATCH).value(*batch).build();
                let container = ContainerOverride::builder().environment(variable).build();
                let task = EcsTask::builder().task_arn(format!("arn:aws:ecs:x:task/cluster/{id}")).last_status(*status);
                let task = task.overrides(TaskOverride::builder().container_overrides(container).build());
                task.started_by(started_by(MACHINE, run)).build()
            });
            DescribeTasksOutput::builder().set_tasks(Some(described.collect())).build()
        });
        [list, describe]
    }

    #[tokio::test]
    async fn the_batches_of_a_run_have_their_tasks_and_those_that_run_come_first() {
        let plan = mock!(aws_sdk_s3::Client::get_object)
            .match_requests(|request| (request.bucket(), request.key()) == (Some("plans"), Some("plans/run.json")))
            .then_output(|| {
                let digest = Digest::of(b"image").to_string();
                let images = json!([{ "digest": digest }]);
                let copy = json!({ "source": "q.io/a", "destination": "h.example/a", "image": "a", "images": images });
                let plan = ["1", "2", "3"].map(|id| json!({ "id": id, "bytes": 7, "repositories": [copy] }));
                GetObjectOutput::builder().body(ByteStream::from(json!(plan).to_string().into_bytes())).build()
            });
        let execution = described(ExecutionStatus::Running, "{}", None, "");
        let (row, resources) = (item(|| Some(counted())), resources());
        let [list, describe] = fargate(&[
            ("old", "run", "3", "STOPPED"),
            ("new", "run", "3", "RUNNING"),
            ("foreign", "other", "2", "RUNNING"),
        ]);
        let account = account(&[&plan, &execution, &row, &resources, &list, &describe]);
        let run = account.run(&task(), "run").await.expect("it is described");
        let batches = account.batches(&task(), &run).await.expect("they are listed");
        let shown: Vec<_> = batches
            .iter()
            .map(|it| (it.id.as_str(), it.images, it.is_recorded, it.task.as_ref().map(|task| task.id.as_str())))
            .collect();
        assert_eq!(shown, [("3", 1, false, Some("new")), ("2", 1, false, None), ("1", 1, true, None)]);
        let task_of_batch = batches[0].task.as_ref().and_then(|it| it.log.clone());
        assert_eq!(task_of_batch, Log::of_fargate_task(&task(), "new").ok());

        let expired = mock!(aws_sdk_s3::Client::get_object)
            .then_error(|| GetObjectError::NoSuchKey(NoSuchKey::builder().build()));
        let account = super::super::account::tests::account(&[&expired]);
        assert!(account.batches(&task(), &run).await.expect("it is not an error").is_empty());
    }

    #[tokio::test]
    async fn a_run_is_stopped_and_its_tasks_are_waited_for_and_no_others() {
        let executions = mock!(aws_sdk_sfn::Client::list_executions)
            .match_requests(|request| request.status_filter() == Some(&ExecutionStatus::Running))
            .sequence()
            .output(|| {
                let output = ListExecutionsOutput::builder().executions(listed("run", ExecutionStatus::Running));
                output.executions(listed("later", ExecutionStatus::Running)).build().expect("it is complete")
            })
            .times(2)
            .output(|| {
                let output = ListExecutionsOutput::builder().executions(listed("later", ExecutionStatus::Running));
                output.build().expect("it is complete")
            })
            .times(2)
            .build();
        let stopped = mock!(aws_sdk_sfn::Client::stop_execution)
            .match_requests(|request| request.execution_arn() == Some(EXECUTION))
            .then_output(|| {
                StopExecutionOutput::builder().stop_date(DateTime::from_secs(0)).build().expect("it is complete")
            });
        let resources = resources();
        let [list, describe] = fargate(&[("a", "run", "1", "STOPPED"), ("b", "later", "1", "RUNNING")]);
        let account = account(&[&executions, &stopped, &resources, &list, &describe]);
        let mut told = Vec::new();
        let runs = account.stop(&task(), Some("run"), |it| told.push(it)).await.expect("it is stopped");
        assert_eq!(runs, ["run"]);
        assert_eq!(told, [Stopping::Run("run".into()), Stopping::Tasks(0)]);
        assert_eq!(stopped.num_calls(), 1);
        let error = account.stop(&task(), Some("old"), |_| ()).await.expect_err("it has ended").to_string();
        assert_eq!(error, r#"copies has no run "old" that could be stopped."#);
    }

    #[test]
    fn the_message_of_a_cause_is_that_of_lambda_if_there_is_one() {
        assert_eq!(message(r#"{"errorMessage": "no", "errorType": "X"}"#), "no");
        assert_eq!(message("Not every image"), "Not every image");
    }
}
