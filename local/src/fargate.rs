//! Fargate: runs the tasks that ministack, without Docker, only records.
//!
//! A task's only container runs as a process of this machine, with skopeo from its `PATH` instead of the image's. Otherwise
//! it is as on AWS: the container has its environment, overrides, secrets and logs, if the execution role allows it, and when a
//! task stops, EventBridge sends an event.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::aws::{Aws, xml_text};
use crate::lock;
use crate::machine::{ACCOUNT, REGION};
use crate::process::{Process, Program};

const POLL: Duration = Duration::from_millis(150);
/// How many seconds a container has to end when its task is stopped, unless its definition says otherwise.
const STOP_TIMEOUT: u64 = 30;
/// The exit code of a container that was killed.
const KILLED: i32 = 137;

/// Deviations from the usual behaviour of tasks and their events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// How long a task takes to start. On AWS it is most of a minute.
    pub start_delay: Duration,
    /// Events of tasks that stop are held back until [`Fargate::release_events`].
    pub hold_events: bool,
    /// Each event comes twice, as it may on AWS.
    pub duplicate_events: bool,
    /// A task that has done all its work is killed for its use of memory instead of ending.
    pub kill_at_end: bool,
}

/// A task that ECS was asked to run.
#[derive(Clone, Debug)]
pub struct Task {
    pub arn: String,
    /// The family of its task definition.
    pub family: String,
    /// The overrides that it was run with.
    pub overrides: Value,
    /// When its container was started.
    pub started: Option<SystemTime>,
    pub stopped: Option<Stopped>,
    order: watch::Sender<Option<Order>>,
}

/// How a task ended.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// `EssentialContainerExited`, `UserInitiated` or `TaskFailedToStart`.
    pub code: &'static str,
    pub reason: String,
    /// The container's exit code, if it ran.
    pub exit_code: Option<i32>,
    is_out_of_memory: bool,
}

impl Stopped {
    fn before_start(code: &'static str, reason: String) -> Self {
        Self { code, reason, exit_code: None, is_out_of_memory: false }
    }

    /// What ECS records of the task and its container.
    fn record(&self) -> Value {
        let mut record = json!({
            "task": { "stopCode": self.code, "stoppedReason": self.reason },
            "container": { "exitCode": self.exit_code },
        });
        if self.exit_code.is_none() {
            // ministack says that it ran.
            record["task"]["startedAt"] = Value::Null;
        }
        if self.is_out_of_memory {
            record["container"]["reason"] = json!("OutOfMemoryError: Container killed due to memory usage");
        }
        record
    }
}

/// What may end a task early.
#[derive(Clone, Debug)]
enum Order {
    OutOfMemory,
    Stop { reason: String },
}

/// The running service, for one account and region. Dropping it kills what still runs, and sends no event.
pub struct Fargate {
    service: Arc<Service>,
    /// It holds the tasks' futures, which hold their processes.
    _watcher: JoinSet<()>,
}

impl Fargate {
    /// Starts watching for tasks. All containers get `environment`, and work below `directory`, which any user must be able to
    /// enter.
    pub fn start(aws: Aws, environment: Vec<(String, String)>, directory: &Path) -> Self {
        let service = Arc::new(Service {
            aws,
            environment,
            directory: directory.to_owned(),
            tasks: watch::Sender::default(),
            behaviours: Mutex::default(),
            held: Mutex::default(),
            authorized: Mutex::default(),
        });
        let mut watcher = JoinSet::new();
        watcher.spawn(Arc::clone(&service).watch());
        Self { service, _watcher: watcher }
    }

    /// All tasks so far, in the order in which they came.
    pub fn tasks(&self) -> Vec<Task> {
        self.service.tasks.borrow().clone()
    }

    /// How many tasks there were so far.
    pub fn count(&self) -> usize {
        self.service.tasks.borrow().len()
    }

    /// Waits until there is a task that `select` accepts, and returns the first.
    pub async fn wait_for(&self, mut select: impl FnMut(&Task) -> bool) -> Task {
        let mut tasks = self.service.tasks.subscribe();
        loop {
            if let Some(task) = tasks.borrow_and_update().iter().find(|task| select(task)) {
                return task.clone();
            }
            // The sender lives in `self`, so the wait cannot fail.
            let _ = tasks.changed().await;
        }
    }

    /// Kills a running task as if it had used up its memory. Returns whether it was running.
    pub fn kill(&self, arn: &str) -> bool {
        let tasks = self.service.tasks.borrow();
        let task = tasks.iter().find(|task| task.arn == arn && task.stopped.is_none());
        task.is_some_and(|task| task.order(Order::OutOfMemory))
    }

    /// Changes the behaviour of a family's tasks from now on.
    pub fn set_behaviour(&self, family: &str, behaviour: Behaviour) {
        lock(&self.service.behaviours).insert(family.to_owned(), behaviour);
    }

    /// The actions of execution roles so far, with the roles' ARNs.
    pub fn authorized(&self) -> BTreeSet<(String, String)> {
        lock(&self.service.authorized).clone()
    }

    /// Sends the events of a family's tasks that were held back, and returns their number.
    pub async fn release_events(&self, family: &str) -> Result<usize> {
        let held = lock(&self.service.held).remove(family).unwrap_or_default();
        for mut end in held.clone() {
            end["events"] = json!(1);
            self.service.ecs("StopTask", end).await?;
        }
        Ok(held.len())
    }

    /// Sends an event of an AWS service. By itself, ministack sends those of executions only.
    pub async fn deliver(&self, event: &Value) -> Result<()> {
        let entry = json!({
            "Source": event["source"], "DetailType": event["detail-type"], "Resources": event["resources"],
            "Detail": event["detail"].to_string(),
        });
        let request = json!({ "Entries": [entry], "ofAws": true });
        self.service.aws.json("events", "AWSEvents.PutEvents", request).await.map(drop)
    }
}

impl Task {
    /// Gives an order, unless there is one already.
    fn order(&self, order: Order) -> bool {
        self.order.send_if_modified(|it| {
            let is_first = it.is_none();
            it.get_or_insert(order);
            is_first
        })
    }
}

struct Service {
    aws: Aws,
    environment: Vec<(String, String)>,
    directory: PathBuf,
    tasks: watch::Sender<Vec<Task>>,
    /// By family.
    behaviours: Mutex<HashMap<String, Behaviour>>,
    /// The ends of tasks whose events are held back, by family.
    held: Mutex<HashMap<String, Vec<Value>>>,
    authorized: Mutex<BTreeSet<(String, String)>>,
}

impl Service {
    async fn watch(self: Arc<Self>) {
        let mut running = JoinSet::new();
        loop {
            match self.ecs("ListTasks", json!({ "active": true })).await {
                Ok(active) => {
                    for task in active["tasks"].as_array().into_iter().flatten() {
                        if let Some(order) = self.admit(task) {
                            running.spawn(Arc::clone(&self).run(task.clone(), order));
                        }
                    }
                }
                Err(error) => complain(&error),
            }
            while running.try_join_next().is_some() {}
            tokio::time::sleep(POLL).await;
        }
    }

    /// Accepts a new task. For a known one, passes on that it was stopped.
    fn admit(&self, task: &Value) -> Option<watch::Receiver<Option<Order>>> {
        let arn = text(&task["taskArn"]);
        if let Some(known) = self.tasks.borrow().iter().find(|task| task.arn == arn) {
            if task["desiredStatus"] == "STOPPED" {
                known.order(Order::Stop { reason: text(&task["stoppedReason"]).to_owned() });
            }
            return None;
        }
        let (order, orders) = watch::channel(None);
        let (arn, family, overrides) = (arn.to_owned(), family_of(task).to_owned(), task["overrides"].clone());
        let task = Task { arn, family, overrides, started: None, stopped: None, order };
        self.tasks.send_modify(|tasks| tasks.push(task));
        Some(orders)
    }

    fn behaviour(&self, task: &Value) -> Behaviour {
        lock(&self.behaviours).get(family_of(task)).copied().unwrap_or_default()
    }

    fn update(&self, arn: &str, change: impl FnOnce(&mut Task)) {
        self.tasks.send_modify(|tasks| {
            tasks.iter_mut().find(|task| task.arn == arn).map(change);
        });
    }

    /// Runs a task, and records its end.
    async fn run(self: Arc<Self>, task: Value, order: watch::Receiver<Option<Order>>) {
        let arn = text(&task["taskArn"]);
        let directory = self.directory.join(id_of(arn));
        let stopped = self.work(&task, &directory, order).await;
        let _ = fs::remove_dir_all(&directory);
        let Behaviour { hold_events, duplicate_events, .. } = self.behaviour(&task);
        let events = if hold_events { 0 } else { 1 + u32::from(duplicate_events) };
        let end = json!({ "cluster": task["clusterArn"], "task": arn, "outcome": stopped.record(), "events": events });
        if hold_events {
            lock(&self.held).entry(family_of(&task).to_owned()).or_default().push(end.clone());
        }
        self.update(arn, |task| task.stopped = Some(stopped));
        if let Err(error) = self.ecs("StopTask", end).await {
            complain(&error);
        }
    }

    async fn work(&self, task: &Value, directory: &Path, mut orders: watch::Receiver<Option<Order>>) -> Stopped {
        let start = async {
            tokio::time::sleep(self.behaviour(task).start_delay).await;
            self.start(task, directory).await
        };
        let mut container = tokio::select! {
            started = start => match started {
                Ok(container) => container,
                Err(error) => return Stopped::before_start("TaskFailedToStart", format!("{error:#}")),
            },
            order = next(&mut orders) => return match order {
                Order::Stop { reason } => Stopped::before_start("UserInitiated", reason),
                Order::OutOfMemory => Stopped::before_start("TaskFailedToStart", "Task killed before it started".into()),
            },
        };
        self.update(text(&task["taskArn"]), |task| task.started = Some(SystemTime::now()));

        let order = tokio::select! {
            _ = container.process.exited() => self.behaviour(task).kill_at_end.then_some(Order::OutOfMemory),
            order = next(&mut orders) => Some(order),
        };
        if matches!(order, Some(Order::Stop { .. })) {
            container.process.terminate();
            let _ = tokio::time::timeout(container.patience, container.process.exited()).await;
        }
        let is_out_of_memory = matches!(order, Some(Order::OutOfMemory));
        let status = container.end().await;
        let exit_code = Some(if is_out_of_memory { KILLED } else { exit_code(status) });
        let (code, reason) = match order {
            Some(Order::Stop { reason }) => ("UserInitiated", reason),
            _ => ("EssentialContainerExited", "Essential container in task exited".to_owned()),
        };
        Stopped { code, reason, exit_code, is_out_of_memory }
    }

    async fn start(&self, task: &Value, directory: &Path) -> Result<Container> {
        let request = json!({ "taskDefinition": task["taskDefinitionArn"] });
        let definition = self.ecs("DescribeTaskDefinition", request).await?["taskDefinition"].take();
        let [container] = definition["containerDefinitions"].as_array().map_or(&[][..], Vec::as_slice) else {
            bail!("CannotStartContainerError: here, a task has one container");
        };
        let overrides = &task["overrides"]["containerOverrides"][0];
        let role = text(&definition["executionRoleArn"]);
        let secrets = self.secrets(container, role).await?;
        let log = self.log(container, role, id_of(text(&task["taskArn"]))).await?;

        let mut words = strings(&container["entryPoint"]);
        words.extend(strings(&container["command"]));
        let Some((program, arguments)) = words.split_first() else {
            bail!("CannotStartContainerError: the container has no command");
        };
        let environment = [container, overrides].into_iter().filter_map(|it| it["environment"].as_array()).flatten();
        fs::create_dir_all(directory)?;
        let mut program = Program::new(program, "a task runs as a process of this machine, which has no such program")?
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .envs(environment.map(|pair| (text(&pair["name"]), text(&pair["value"]))))
            .envs(secrets)
            .envs([("HOME", directory), ("TMPDIR", directory)])
            .directory(directory);
        let user = numeric_user(text(&container["user"])).filter(|_| rustix::process::geteuid().is_root());
        if let Some((user, group)) = user {
            fs::os::unix::fs::chown(directory, Some(user), Some(group))?;
            program = program.user(user, group);
        }
        let (process, (stdout, stderr)) = program.start_piped().await?;
        let shipper = tokio::spawn(ship(self.aws.clone(), log, stream::select(lines(stdout), lines(stderr))));
        let patience = Duration::from_secs(container["stopTimeout"].as_u64().unwrap_or(STOP_TIMEOUT));
        Ok(Container { process, shipper, patience })
    }

    /// Fetches the secrets that the definition names, with the execution role's permissions.
    async fn secrets(&self, container: &Value, role: &str) -> Result<Vec<(String, String)>> {
        const FAILED: &str = "ResourceInitializationError: unable to pull secrets or registry auth: execution resource \
            retrieval failed: unable to retrieve secret from asm: service call has been retried 1 time(s)";
        let mut secrets = Vec::new();
        for secret in container["secrets"].as_array().into_iter().flatten() {
            // ministack leaves these two names as CloudFormation has them.
            let field = |name: &str, in_template: &str| text(secret.get(name).unwrap_or(&secret[in_template]));
            let (name, arn) = (field("name", "Name"), field("valueFrom", "ValueFrom"));
            self.authorize(role, "secretsmanager:GetSecretValue", arn).await.context(FAILED)?;
            let request = json!({ "SecretId": arn });
            let value = self.aws.json("secretsmanager", "secretsmanager.GetSecretValue", request).await;
            secrets.push((name.to_owned(), text(&value.context(FAILED)?["SecretString"]).to_owned()));
        }
        Ok(secrets)
    }

    /// Creates the log stream that the definition names, if it has a log.
    async fn log(&self, container: &Value, role: &str, task_id: &str) -> Result<Option<Value>> {
        const FAILED: &str = "ResourceInitializationError: failed to validate logger args: create stream has been retried 1 times: \
            failed to create Cloudwatch log stream";
        let log = &container["logConfiguration"];
        if log["logDriver"] != "awslogs" {
            return Ok(None);
        }
        let (group, prefix) = (text(&log["options"]["awslogs-group"]), text(&log["options"]["awslogs-stream-prefix"]));
        let stream = format!("{prefix}/{}/{}", text(&container["name"]), task_id);
        let resource = format!("arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{group}:log-stream:{stream}");
        for action in ["logs:CreateLogStream", "logs:PutLogEvents"] {
            self.authorize(role, action, &resource).await.context(FAILED)?;
        }
        let stream = json!({ "logGroupName": group, "logStreamName": stream });
        self.aws.json("logs", "Logs_20140328.CreateLogStream", stream.clone()).await.context(FAILED)?;
        Ok(Some(stream))
    }

    /// Checks that the execution role may do what ECS does in its name. ministack allows this machine everything.
    async fn authorize(&self, role: &str, action: &str, resource: &str) -> Result<()> {
        let parameters =
            [("PolicySourceArn", role), ("ActionNames.member.1", action), ("ResourceArns.member.1", resource)];
        let answer = self.aws.query("iam", "SimulatePrincipalPolicy", &parameters).await?;
        if xml_text(&answer, "EvalDecision").is_some_and(|decision| decision == "allowed") {
            lock(&self.authorized).insert((role.to_owned(), action.to_owned()));
            return Ok(());
        }
        bail!(
            "AccessDeniedException: User: {role} is not authorized to perform: {action} on resource: {resource} because no \
             identity-based policy allows the {action} action"
        )
    }

    async fn ecs(&self, action: &str, body: Value) -> Result<Value> {
        self.aws.json("ecs", &format!("AmazonEC2ContainerServiceV20141113.{action}"), body).await
    }
}

/// Waits for an order.
async fn next(orders: &mut watch::Receiver<Option<Order>>) -> Order {
    match orders.wait_for(Option::is_some).await.ok().and_then(|order| order.clone()) {
        Some(order) => order,
        // The machine is going down.
        None => std::future::pending().await,
    }
}

#[expect(clippy::print_stderr, reason = "it runs in the background; standard error is the machine's log")]
fn complain(error: &anyhow::Error) {
    eprintln!("fargate: {error:#}");
}

/// The family of a task's definition: `…:task-definition/family:revision`.
fn family_of(task: &Value) -> &str {
    let definition = id_of(text(&task["taskDefinitionArn"]));
    definition.split(':').next().unwrap_or_default()
}

/// A running container.
struct Container {
    process: Process,
    shipper: JoinHandle<()>,
    /// How long it may take to end after SIGTERM.
    patience: Duration,
}

impl Container {
    /// Kills it, if it has not ended, and waits until all its lines are logged.
    async fn end(mut self) -> ExitStatus {
        self.process.kill();
        let status = self.process.exited().await;
        let _ = self.shipper.await;
        status
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(KILLED)
}

/// The lines of a program's output.
fn lines(output: impl AsyncRead + Send + Unpin) -> impl Stream<Item = Vec<u8>> + Send {
    stream::unfold(BufReader::new(output).split(b'\n'), async |mut lines| {
        let line = lines.next_segment().await.ok()??;
        Some((line, lines))
    })
}

/// Sends lines to CloudWatch Logs: all that are there, and meanwhile the next ones come.
async fn ship(aws: Aws, log: Option<Value>, lines: impl Stream<Item = Vec<u8>>) {
    const BATCH: usize = 1_000;
    let mut batches = std::pin::pin!(lines.ready_chunks(BATCH));
    while let Some(batch) = batches.next().await {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let event = |line: &Vec<u8>| json!({ "timestamp": now, "message": String::from_utf8_lossy(line) });
        let events: Vec<Value> = batch.iter().filter(|line| !line.is_empty()).map(event).collect();
        let Some(mut request) = log.clone().filter(|_| !events.is_empty()) else { continue };
        request["logEvents"] = json!(events);
        // As on AWS, a task does not fail because its log does.
        let _ = aws.json("logs", "Logs_20140328.PutLogEvents", request).await;
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|it| text(it).to_owned()).collect()
}

/// The last part of an ARN.
fn id_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// `1000` or `1000:1000`. Root is ignored, and so are names, since here they may belong to other users.
fn numeric_user(user: &str) -> Option<(u32, u32)> {
    let (user, group) = user.split_once(':').unwrap_or((user, user));
    let ids = (user.parse().ok()?, group.parse().ok()?);
    (ids.0 != 0).then_some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_say_who_a_container_runs_as() {
        assert_eq!(numeric_user("1000"), Some((1000, 1000)));
        assert_eq!(numeric_user("1000:2000"), Some((1000, 2000)));
        assert_eq!(numeric_user("nobody"), None);
        assert_eq!(numeric_user("0"), None);
        assert_eq!(numeric_user(""), None);
    }

    #[test]
    fn a_signal_shows_in_the_exit_code() {
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
    }
}
