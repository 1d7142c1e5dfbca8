//! Fargate: runs the tasks that ministack, without Docker, only keeps a record of.
//!
//! A task's containers run as processes of this machine, with skopeo from its `PATH` instead of the image's. All else is as on
//! AWS: the environment, the overrides, the secrets and the logs, as far as the execution role allows them; and when a
//! task stops, EventBridge's rules hear of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_smithy_types::{DateTime, date_time::Format};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{
    aws::{Aws, xml_text},
    error::{Error, Result, chain},
    process::{Process, Program},
    proxy::is_ecr,
};

/// How often ECS is asked for tasks. It has no way to tell.
const POLL: Duration = Duration::from_millis(150);
/// How many seconds a container has to end when its task is stopped, unless its definition says otherwise.
const STOP_TIMEOUT: u64 = 30;
/// The exit code of what was killed outright.
const KILLED: i32 = 137;

/// What ECS tells in seconds, and an event of ECS in words.
const MOMENTS: [&str; 8] = [
    "connectivityAt",
    "createdAt",
    "executionStoppedAt",
    "pullStartedAt",
    "pullStoppedAt",
    "startedAt",
    "stoppedAt",
    "stoppingAt",
];

const ECS: &str = "AmazonEC2ContainerServiceV20141113";
const EVENTS: &str = "AWSEvents";
const LOGS: &str = "Logs_20140328";

/// How tasks and their events go, where not as usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// How long a task takes to start. On AWS most of a minute; here nothing, unless asked for.
    pub start_delay: Duration,
    /// Events of tasks that stop are held back until [`Fargate::release_events`].
    pub hold_events: bool,
    /// Each event comes twice, as it may on AWS.
    pub duplicate_events: bool,
    /// A task is killed for its use of memory when it has done all its work, just before it would have ended.
    pub kill_at_end: bool,
}

/// A task, as far as it has come.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its ARN.
    pub arn: String,
    /// The family of its task definition.
    pub family: String,
    /// The overrides that it was run with.
    pub overrides: Value,
    /// When its containers were started, if they were.
    pub started: Option<SystemTime>,
    /// How it ended, if it has.
    pub stopped: Option<Stopped>,
}

/// How a task ended.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// `EssentialContainerExited`, `UserInitiated` or `TaskFailedToStart`.
    pub code: &'static str,
    /// Why, in words.
    pub reason: String,
    /// The exit code of the first container, if it ran.
    pub exit_code: Option<i32>,
}

/// The running service, for one account and region.
#[derive(Debug)]
pub struct Fargate {
    service: Arc<Service>,
    watcher: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Fargate {
    /// Starts watching for tasks. All containers get `environment`, and work below `directory`, which any user must be able to
    /// enter.
    #[must_use]
    pub fn start(aws: Aws, account: &str, environment: Vec<(String, String)>, directory: &Path) -> Self {
        let service = Arc::new(Service {
            aws,
            account: account.to_owned(),
            environment,
            directory: directory.to_owned(),
            tasks: watch::Sender::default(),
            orders: Mutex::default(),
            behaviours: Mutex::default(),
            held: Mutex::default(),
            authorized: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let watcher = tokio::spawn(Arc::clone(&service).watch(stopped));
        Self { service, watcher, stop }
    }

    /// All tasks so far, in the order in which they came.
    #[must_use]
    pub fn tasks(&self) -> Vec<Task> {
        self.service.tasks.borrow().clone()
    }

    /// How many tasks were ever asked for.
    #[must_use]
    pub fn count(&self) -> usize {
        self.service.tasks.borrow().len()
    }

    /// Waits until there is such a task, and returns the first.
    pub async fn wait_for(&self, mut such: impl FnMut(&Task) -> bool) -> Task {
        let mut tasks = self.service.tasks.subscribe();
        loop {
            if let Some(task) = tasks.borrow_and_update().iter().find(|task| such(task)) {
                return task.clone();
            }
            // The sender lives in `self`, so there is always a next change to wait for.
            let _ = tasks.changed().await;
        }
    }

    /// Kills a running task as if it had used up its memory. Returns whether it was running.
    pub fn kill(&self, arn: &str) -> bool {
        self.service.order(arn, Order::OutOfMemory)
    }

    /// Changes how the tasks of a family and their events go, from now on.
    pub fn set_behaviour(&self, family: &str, behaviour: Behaviour) {
        lock(&self.service.behaviours).insert(family.to_owned(), behaviour);
    }

    /// What was done in the name of execution roles so far: the role's ARN, and the action.
    #[must_use]
    pub fn authorized(&self) -> BTreeSet<(String, String)> {
        lock(&self.service.authorized).clone()
    }

    /// Hands out the events that were held back of a family's tasks, and says how many there were.
    ///
    /// # Errors
    /// If EventBridge or Lambda does not answer.
    pub async fn release_events(&self, family: &str) -> Result<usize> {
        let events = lock(&self.service.held).remove(family).unwrap_or_default();
        for event in &events {
            self.service.deliver(event).await?;
        }
        Ok(events.len())
    }

    /// Hands an event to the functions, state machines and topics of the rules that match it, as EventBridge would. ministack
    /// makes none but those of executions.
    ///
    /// # Errors
    /// If EventBridge or a target does not answer.
    pub async fn deliver(&self, event: &Value) -> Result<()> {
        self.service.deliver(event).await
    }

    /// Kills what still runs, without a word to anybody.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = (&mut self.watcher).await;
    }
}

impl Drop for Fargate {
    fn drop(&mut self) {
        // The tasks' futures end with the watcher's, which holds them, and their processes with them.
        self.watcher.abort();
    }
}

#[derive(Debug)]
struct Service {
    aws: Aws,
    account: String,
    environment: Vec<(String, String)>,
    directory: PathBuf,
    tasks: watch::Sender<Vec<Task>>,
    orders: Mutex<HashMap<String, mpsc::UnboundedSender<Order>>>,
    /// By family; others go as usual.
    behaviours: Mutex<HashMap<String, Behaviour>>,
    /// Events that are held back, by family.
    held: Mutex<HashMap<String, Vec<Value>>>,
    authorized: Mutex<BTreeSet<(String, String)>>,
}

/// What may come between a task and its own end.
#[derive(Debug)]
enum Order {
    OutOfMemory,
    Stop { reason: String },
}

/// How a task ended, in the terms of its event.
struct Outcome {
    code: &'static str,
    reason: String,
    containers: Vec<ContainerEnd>,
}

impl Outcome {
    /// What ECS's record of the task says of it.
    fn record(&self) -> Value {
        let mut task = json!({ "stopCode": self.code, "stoppedReason": self.reason });
        if self.containers.is_empty() {
            // It never ran, though ministack says that it did.
            task["startedAt"] = Value::Null;
        }
        let mut containers = json!({});
        for end in &self.containers {
            containers[&end.name] = json!({ "exitCode": end.exit_code });
            if let Some(reason) = end.reason {
                containers[&end.name]["reason"] = json!(reason);
            }
        }
        json!({ "task": task, "containers": containers })
    }
}

struct ContainerEnd {
    name: String,
    exit_code: Option<i32>,
    reason: Option<&'static str>,
}

impl Service {
    async fn watch(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        loop {
            match self.look().await {
                Ok(new) => {
                    for (task, orders) in new {
                        running.spawn(Arc::clone(&self).run(task, orders));
                    }
                }
                Err(error) => self.complain(&error),
            }
            while running.try_join_next().is_some() {}
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
        }
        running.shutdown().await;
    }

    /// Finds the tasks that were not seen before, and passes on that somebody stopped one.
    async fn look(&self) -> Result<Vec<(Value, mpsc::UnboundedReceiver<Order>)>> {
        let mut new = Vec::new();
        let mut listed = HashSet::new();
        for cluster in strings(&self.ecs("ListClusters", json!({})).await?["clusterArns"]) {
            let active = self.tasks_in(json!({ "cluster": cluster, "active": true })).await?;
            let known: HashSet<String> = self.tasks.borrow().iter().map(|task| task.arn.clone()).collect();
            let unknown: Vec<_> = active.into_iter().filter(|arn| !known.contains(arn)).collect();
            // DescribeTasks takes a hundred at most.
            for arns in unknown.chunks(100) {
                let described = self.ecs("DescribeTasks", json!({ "cluster": cluster, "tasks": arns })).await?;
                for task in described["tasks"].as_array().into_iter().flatten() {
                    new.push((task.clone(), self.admit(task)));
                }
            }
            listed.extend(self.tasks_in(json!({ "cluster": cluster, "desiredStatus": "RUNNING" })).await?);
        }
        let gone: Vec<String> = lock(&self.orders).keys().filter(|arn| !listed.contains(*arn)).cloned().collect();
        for arn in gone {
            let cluster = cluster_of(&arn);
            let described = self.ecs("DescribeTasks", json!({ "cluster": cluster, "tasks": [arn] })).await?;
            let task = &described["tasks"][0];
            if task["desiredStatus"] == "STOPPED" {
                self.order(&arn, Order::Stop { reason: text(&task["stoppedReason"]).to_owned() });
            }
        }
        Ok(new)
    }

    async fn tasks_in(&self, request: Value) -> Result<Vec<String>> {
        let arns = self.aws.pages("ecs", &format!("{ECS}.ListTasks"), request, "taskArns").await?;
        Ok(strings(&Value::from(arns)))
    }

    /// Enters a task into the history, and opens the way for orders to it.
    fn admit(&self, task: &Value) -> mpsc::UnboundedReceiver<Order> {
        let arn = text(&task["taskArn"]).to_owned();
        let (sender, orders) = mpsc::unbounded_channel();
        lock(&self.orders).insert(arn.clone(), sender);
        let family = family_of(task).to_owned();
        let overrides = task["overrides"].clone();
        self.tasks.send_modify(|tasks| tasks.push(Task { arn, family, overrides, started: None, stopped: None }));
        orders
    }

    fn behaviour(&self, task: &Value) -> Behaviour {
        lock(&self.behaviours).get(family_of(task)).copied().unwrap_or_default()
    }

    fn order(&self, arn: &str, order: Order) -> bool {
        lock(&self.orders).get(arn).is_some_and(|orders| orders.send(order).is_ok())
    }

    fn update(&self, arn: &str, change: impl FnOnce(&mut Task)) {
        self.tasks.send_modify(|tasks| {
            if let Some(task) = tasks.iter_mut().find(|task| task.arn == arn) {
                change(task);
            }
        });
    }

    /// A task's life, from its first sight to the event of its end.
    async fn run(self: Arc<Self>, task: Value, mut orders: mpsc::UnboundedReceiver<Order>) {
        let arn = text(&task["taskArn"]);
        let directory = self.directory.join(id_of(arn));
        let outcome = self.work(&task, &directory, &mut orders).await;
        lock(&self.orders).remove(arn);
        // What it has left behind is nobody's any more.
        let _ = tokio::fs::remove_dir_all(&directory).await;
        if let Err(error) = self.finish(&task, outcome).await {
            self.complain(&error);
        }
    }

    async fn work(&self, task: &Value, directory: &Path, orders: &mut mpsc::UnboundedReceiver<Order>) -> Outcome {
        let arn = text(&task["taskArn"]);
        let start = async {
            let delay = self.behaviour(task).start_delay;
            tokio::time::sleep(delay).await;
            self.start_containers(task, directory).await
        };
        let started = tokio::select! {
            started = start => started,
            order = orders.recv() => Err(order.unwrap_or(Order::OutOfMemory).before_start()),
        };
        let mut containers = match started {
            Ok(containers) => containers,
            Err(outcome) => return outcome,
        };
        self.update(arn, |task| task.started = Some(SystemTime::now()));

        let order = tokio::select! {
            () = essential_exit(&mut containers) => self.behaviour(task).kill_at_end.then_some(Order::OutOfMemory),
            order = orders.recv() => order,
        };
        let mut ends = Vec::new();
        for container in containers {
            ends.push(container.end(order.as_ref()).await);
        }
        match order {
            Some(Order::Stop { reason }) => Outcome { code: "UserInitiated", reason, containers: ends },
            Some(Order::OutOfMemory) | None => Outcome {
                code: "EssentialContainerExited",
                reason: "Essential container in task exited".into(),
                containers: ends,
            },
        }
    }

    async fn start_containers(&self, task: &Value, directory: &Path) -> Result<Vec<Container>, Outcome> {
        let start = async {
            let request = json!({ "taskDefinition": task["taskDefinitionArn"] });
            let definition = self.ecs("DescribeTaskDefinition", request).await?["taskDefinition"].take();
            let overrides = &task["overrides"];
            let role = overrides["executionRoleArn"].as_str().unwrap_or(text(&definition["executionRoleArn"]));
            let mut containers = Vec::new();
            for container in definition["containerDefinitions"].as_array().into_iter().flatten() {
                let none = Value::Null;
                let overrides = overrides["containerOverrides"].as_array().into_iter().flatten();
                let overrides = overrides.into_iter().find(|it| it["name"] == container["name"]).unwrap_or(&none);
                let agent = Agent { service: self, role, task_id: id_of(text(&task["taskArn"])) };
                containers.push(agent.start(container, overrides, directory).await?);
            }
            Ok(containers)
        };
        start.await.map_err(|error: Error| Outcome {
            code: "TaskFailedToStart",
            reason: chain(&error),
            containers: Vec::new(),
        })
    }

    /// Declares the task stopped, and lets the world know.
    async fn finish(&self, task: &Value, outcome: Outcome) -> Result<()> {
        let arn = text(&task["taskArn"]);
        let cluster = text(&task["clusterArn"]);
        let stop = json!({ "cluster": cluster, "task": arn, "outcome": outcome.record() });
        self.ecs("StopTask", stop).await?;
        let described = self.ecs("DescribeTasks", json!({ "cluster": cluster, "tasks": [arn] })).await?;
        let event = self.event(&described["tasks"][0]);
        let Behaviour { hold_events, duplicate_events, .. } = self.behaviour(task);
        let Outcome { code, reason, containers } = outcome;
        let exit_code = containers.first().and_then(|container| container.exit_code);
        self.update(arn, |task| task.stopped = Some(Stopped { code, reason, exit_code }));
        for _ in 0..=usize::from(duplicate_events) {
            if hold_events {
                lock(&self.held).entry(family_of(task).to_owned()).or_default().push(event.clone());
            } else {
                self.deliver(&event).await?;
            }
        }
        Ok(())
    }

    /// The event as ECS words it.
    fn event(&self, task: &Value) -> Value {
        let mut detail = task.clone();
        for moment in MOMENTS {
            if let Some(seconds) = detail[moment].as_f64() {
                detail[moment] = json!(timestamp(seconds));
            } else if let Some(detail) = detail.as_object_mut() {
                detail.remove(moment);
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        json!({
            "version": "0",
            "id": uuid::Uuid::new_v4().to_string(),
            "detail-type": "ECS Task State Change",
            "source": "aws.ecs",
            "account": self.account,
            "time": timestamp(now.floor()),
            "region": self.aws.region(),
            "resources": [task["taskArn"]],
            "detail": detail,
        })
    }

    /// Hands an event to what the matching rules name, since ministack lets nobody put events of AWS's own.
    async fn deliver(&self, event: &Value) -> Result<()> {
        let call = async |action, body| self.aws.json("events", &format!("{EVENTS}.{action}"), body).await;
        let (mut rules, mut request) = (Vec::new(), json!({}));
        loop {
            let mut page = call("ListRules", request.clone()).await?;
            rules.extend(page["Rules"].as_array_mut().map(std::mem::take).into_iter().flatten());
            match page["NextToken"].take() {
                Value::Null => break,
                token => request["NextToken"] = token,
            }
        }
        for rule in &rules {
            let Some(pattern) = rule["EventPattern"].as_str().filter(|_| rule["State"] == "ENABLED") else { continue };
            let test = json!({ "EventPattern": pattern, "Event": event.to_string() });
            if call("TestEventPattern", test).await?["Result"] != true {
                continue;
            }
            let targets = call("ListTargetsByRule", json!({ "Rule": rule["Name"] })).await?;
            for target in targets["Targets"].as_array().into_iter().flatten() {
                let arn = text(&target["Arn"]);
                let input = target["Input"].as_str().map_or_else(|| event.to_string(), str::to_owned);
                if arn.contains(":lambda:") {
                    self.aws.invoke_async(arn, event).await?;
                } else if arn.contains(":sns:") {
                    self.aws.query("sns", "Publish", &[("TopicArn", arn), ("Message", &input)]).await?;
                } else if arn.contains(":states:") {
                    let request = json!({ "stateMachineArn": arn, "input": input });
                    self.aws.json("states", "AWSStepFunctions.StartExecution", request).await?;
                }
            }
        }
        Ok(())
    }

    async fn ecs(&self, action: &str, body: Value) -> Result<Value> {
        self.aws.json("ecs", &format!("{ECS}.{action}"), body).await
    }

    #[expect(clippy::print_stderr, reason = "there is nobody to return it to; the machine's log is standard error")]
    fn complain(&self, error: &Error) {
        eprintln!("fargate: {}", chain(error));
    }
}

/// The family of a task's definition: `…:task-definition/family:revision`.
fn family_of(task: &Value) -> &str {
    let definition = text(&task["taskDefinitionArn"]).rsplit('/').next().unwrap_or_default();
    definition.split(':').next().unwrap_or_default()
}

impl Order {
    fn before_start(self) -> Outcome {
        let (code, reason) = match self {
            Self::Stop { reason } => ("UserInitiated", reason),
            Self::OutOfMemory => ("TaskFailedToStart", "Task killed before it started".into()),
        };
        Outcome { code, reason, containers: Vec::new() }
    }
}

/// What stands between ECS and a container: it fetches what the container needs, with the execution role's permissions.
struct Agent<'a> {
    service: &'a Service,
    role: &'a str,
    task_id: &'a str,
}

impl Agent<'_> {
    async fn start(&self, definition: &Value, overrides: &Value, directory: &Path) -> Result<Container> {
        let name = text(&definition["name"]);
        self.authorize_pull(text(&definition["image"])).await?;
        let secrets = self.secrets(definition).await?;
        let log = self.log(definition).await?;

        let command = overrides["command"].as_array().or(definition["command"].as_array());
        let mut words = strings(&definition["entryPoint"]);
        words.extend(command.into_iter().flatten().map(|word| text(word).to_owned()));
        let Some((program, arguments)) = words.split_first() else {
            return Err(Error::Unexpected(format!("CannotStartContainerError: container {name} has no command")));
        };

        let mut environment = BTreeMap::new();
        environment.extend(self.service.environment.iter().cloned());
        for pair in
            [&definition["environment"], &overrides["environment"]].into_iter().filter_map(Value::as_array).flatten()
        {
            environment.insert(text(&pair["name"]).to_owned(), text(&pair["value"]).to_owned());
        }
        environment.extend(secrets);

        let home = directory.join(name);
        std::fs::create_dir_all(&home).map_err(Error::file(&home))?;
        for variable in ["HOME", "TMPDIR"] {
            environment.insert(variable.into(), home.display().to_string());
        }
        let mut program =
            Program::new(program, "it is a container's entry point, and runs as a process of this machine")?
                .args(arguments)
                .envs(environment)
                .directory(&home);
        if let Some((user, group)) =
            numeric_user(text(&definition["user"])).filter(|_| rustix::process::geteuid().is_root())
        {
            std::os::unix::fs::chown(&home, Some(user), Some(group)).map_err(Error::file(&home))?;
            program = program.user(user, group);
        }
        let (process, (stdout, stderr)) = program.start_piped().await?;
        let (lines, batches) = mpsc::unbounded_channel();
        tokio::spawn(read_lines(stdout, lines.clone()));
        tokio::spawn(read_lines(stderr, lines));
        let shipper = tokio::spawn(ship(self.service.aws.clone(), log, batches));
        let essential = definition["essential"].as_bool().unwrap_or(true);
        let patience = Duration::from_secs(definition["stopTimeout"].as_u64().unwrap_or(STOP_TIMEOUT));
        Ok(Container { name: name.to_owned(), essential, process, shipper, patience })
    }

    /// Whether the execution role may pull the image. Public images need no permission.
    async fn authorize_pull(&self, image: &str) -> Result<()> {
        let Some((host, rest)) = image.split_once('/').filter(|(host, _)| is_ecr(host)) else { return Ok(()) };
        const FAILED: &str = "ResourceInitializationError: unable to pull secrets or registry auth";
        self.authorize("ecr:GetAuthorizationToken", "*", FAILED).await?;
        let labels: Vec<&str> = host.split('.').collect();
        let repository = rest.split(['@', ':']).next().unwrap_or(rest);
        let resource = format!("arn:aws:ecr:{}:{}:repository/{repository}", labels[3], labels[0]);
        for action in ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"] {
            self.authorize(
                action,
                &resource,
                "CannotPullContainerError: pull image manifest has been retried 1 time(s)",
            )
            .await?;
        }
        Ok(())
    }

    async fn secrets(&self, definition: &Value) -> Result<Vec<(String, String)>> {
        const FAILED: &str = "ResourceInitializationError: unable to pull secrets or registry auth: execution resource \
            retrieval failed: unable to retrieve secret from asm: service call has been retried 1 time(s)";
        let mut secrets = Vec::new();
        for secret in definition["secrets"].as_array().into_iter().flatten() {
            // ministack leaves these two names as CloudFormation has them.
            let field = |name: &str, in_template: &str| text(secret.get(name).unwrap_or(&secret[in_template]));
            let from = field("valueFrom", "ValueFrom");
            // After the seven parts of an ARN ECS may have the key of a JSON secret, a version stage and a version.
            let parts: Vec<&str> = from.split(':').collect();
            let (arn, key) = (parts[..parts.len().min(7)].join(":"), parts.get(7).copied().unwrap_or_default());
            self.authorize(
                "secretsmanager:GetSecretValue",
                &arn,
                &format!("{FAILED}: failed to fetch secret {arn} from secrets manager"),
            )
            .await?;
            let value = self
                .service
                .aws
                .json("secretsmanager", "secretsmanager.GetSecretValue", json!({ "SecretId": arn }))
                .await
                .map_err(|error| Error::Unexpected(format!("{FAILED}: {error}")))?;
            let value = text(&value["SecretString"]);
            let value = match key {
                "" => value.to_owned(),
                key => serde_json::from_str::<Value>(value)
                    .ok()
                    .and_then(|fields| fields[key].as_str().map(str::to_owned))
                    .ok_or_else(|| {
                        Error::Unexpected(format!(
                            "{FAILED}: retrieved secret from Secrets Manager did not contain json key {key}"
                        ))
                    })?,
            };
            secrets.push((field("name", "Name").to_owned(), value));
        }
        Ok(secrets)
    }

    /// Creates the log stream that the definition asks for, if it asks for one.
    async fn log(&self, definition: &Value) -> Result<Option<LogStream>> {
        const FAILED: &str = "ResourceInitializationError: failed to validate logger args: create stream has been retried 1 times: \
            failed to create Cloudwatch log stream";
        let log = &definition["logConfiguration"];
        if log["logDriver"] != "awslogs" {
            return Ok(None);
        }
        let group = text(&log["options"]["awslogs-group"]).to_owned();
        let stream = match text(&log["options"]["awslogs-stream-prefix"]) {
            "" => self.task_id.to_owned(),
            prefix => format!("{prefix}/{}/{}", text(&definition["name"]), self.task_id),
        };
        let resource = format!(
            "arn:aws:logs:{}:{}:log-group:{group}:log-stream:{stream}",
            self.service.aws.region(),
            self.service.account
        );
        for action in ["logs:CreateLogStream", "logs:PutLogEvents"] {
            self.authorize(action, &resource, FAILED).await?;
        }
        self.service
            .aws
            .json("logs", &format!("{LOGS}.CreateLogStream"), json!({ "logGroupName": group, "logStreamName": stream }))
            .await
            .map_err(|error| Error::Unexpected(format!("{FAILED}: {error}")))?;
        Ok(Some(LogStream { group, stream }))
    }

    /// Makes sure that the execution role may do what ECS does in its name. ministack would let this machine do it all.
    async fn authorize(&self, action: &str, resource: &str, failure: &str) -> Result<()> {
        let parameters =
            [("PolicySourceArn", self.role), ("ActionNames.member.1", action), ("ResourceArns.member.1", resource)];
        let answer = self.service.aws.query("iam", "SimulatePrincipalPolicy", &parameters).await?;
        if xml_text(&answer, "EvalDecision").is_some_and(|decision| decision == "allowed") {
            lock(&self.service.authorized).insert((self.role.to_owned(), action.to_owned()));
            return Ok(());
        }
        let role = self.role.rsplit('/').next().unwrap_or_default();
        Err(Error::Unexpected(format!(
            "{failure}: AccessDeniedException: User: arn:aws:sts::{}:assumed-role/{role}/{} is not authorized to perform: {action} \
             on resource: {resource} because no identity-based policy allows the {action} action",
            self.service.account, self.task_id
        )))
    }
}

/// A running container.
struct Container {
    name: String,
    essential: bool,
    process: Process,
    shipper: JoinHandle<()>,
    /// How long it may take to end when it is asked to.
    patience: Duration,
}

impl Container {
    /// Makes an end of it, if it has not ended by itself, and waits until its last line is logged.
    async fn end(mut self, order: Option<&Order>) -> ContainerEnd {
        if matches!(order, Some(Order::Stop { .. })) {
            self.process.terminate();
            let _ = tokio::time::timeout(self.patience, self.process.exited()).await;
        }
        self.process.kill();
        let status = self.process.exited().await;
        let _ = self.shipper.await;
        let killed = matches!(order, Some(Order::OutOfMemory));
        ContainerEnd {
            name: self.name,
            exit_code: Some(if killed { KILLED } else { exit_code(status) }),
            reason: killed.then_some("OutOfMemoryError: Container killed due to memory usage"),
        }
    }
}

/// Waits for the end of any container that the task cannot go on without.
async fn essential_exit(containers: &mut [Container]) {
    let exits = containers
        .iter_mut()
        .filter(|container| container.essential)
        .map(|container| Box::pin(container.process.exited()));
    let exits: Vec<_> = exits.collect();
    if exits.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(exits).await;
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(KILLED)
}

struct LogStream {
    group: String,
    stream: String,
}

async fn read_lines(output: impl AsyncRead + Unpin, lines: mpsc::UnboundedSender<(u128, String)>) {
    let mut output = BufReader::new(output).split(b'\n');
    while let Ok(Some(line)) = output.next_segment().await {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        if lines.send((now, String::from_utf8_lossy(&line).into_owned())).is_err() {
            return;
        }
    }
}

/// Sends lines to CloudWatch Logs while they come: as many at a time as came while the last ones were on their way.
async fn ship(aws: Aws, log: Option<LogStream>, mut lines: mpsc::UnboundedReceiver<(u128, String)>) {
    const BATCH: usize = 1_000;
    let mut batch = Vec::new();
    while lines.recv_many(&mut batch, BATCH).await > 0 {
        let events: Vec<Value> = batch
            .drain(..)
            .filter(|(_, line)| !line.is_empty())
            .map(|(time, line)| json!({ "timestamp": time as u64, "message": line }))
            .collect();
        let Some(LogStream { group, stream }) = log.as_ref().filter(|_| !events.is_empty()) else { continue };
        let request = json!({ "logGroupName": group, "logStreamName": stream, "logEvents": events });
        // As on AWS, a task does not fail because its log does.
        let _ = aws.json("logs", &format!("{LOGS}.PutLogEvents"), request).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|it| text(it).to_owned()).collect()
}

/// The last part of a task's ARN.
fn id_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// The part before it.
fn cluster_of(arn: &str) -> &str {
    arn.rsplit('/').nth(1).unwrap_or("default")
}

fn timestamp(seconds: f64) -> String {
    DateTime::from_secs_f64(seconds).fmt(Format::DateTime).unwrap_or_default()
}

/// `1000` or `1000:1000`, and nothing for a user who is root or has a name, which here may belong to somebody else.
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

    #[test]
    fn moments_are_written_as_events_have_them() {
        assert_eq!(timestamp(1_700_000_000.5), "2023-11-14T22:13:20.5Z");
    }
}
