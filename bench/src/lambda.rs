//! Runs a Lambda function once, as a process, behind the Lambda Runtime API and in front of a simulated AWS.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, anyhow};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
    routing::{get, post},
    serve::ListenerExt as _,
};
use procfs::process::Process;
use serde_json::Value;
use tokio::{net::TcpListener, process::Command, sync::mpsc, task::JoinSet};

use crate::ecr::{Conditions, DESTINATION, Registries, SOURCE, error};

/// As in the template.
const TIMEOUT: Duration = Duration::from_secs(900);

/// What the stack's parameters and Lambda put into the environment of the three functions.
const ENVIRONMENT: [(&str, &str); 28] = [
    ("AWS_REGION", DESTINATION.region),
    ("AWS_DEFAULT_REGION", DESTINATION.region),
    ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    // Without it, the SDK may look for credentials on the machine's network.
    ("AWS_EC2_METADATA_DISABLED", "true"),
    ("AWS_LAMBDA_FUNCTION_NAME", "function"),
    ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
    ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024"),
    ("SOURCE_TYPE", "Amazon_ECR"),
    ("SRC_LIST", "ALL"),
    ("SRC_REGION", SOURCE.region),
    ("SRC_ACCOUNT_ID", SOURCE.id),
    ("DEST_REGION", DESTINATION.region),
    ("DEST_ACCOUNT_ID", DESTINATION.id),
    ("PLAN_BUCKET", "plans"),
    ("STATE_MACHINE", "machine"),
    ("IMAGE_TABLE", "images"),
    ("MAX_CONCURRENCY", "10"),
    ("CLUSTER", "cluster"),
    ("TASK_DEFINITION", "definition"),
    ("CONTAINER", "skopeo"),
    ("SUBNETS", "subnet-1"),
    ("SECURITY_GROUPS", "sg-1"),
    ("REGISTRY_AUTH_SECRET", "secret"),
    ("LOG_GROUP", "logs"),
    ("LOG_STREAM_PREFIX", "copy"),
    ("EXECUTION_TABLE", "executions"),
    ("STACK_NAME", "bench"),
];

/// The servers that a function needs for one invocation.
pub struct Lambda {
    pub address: SocketAddr,
    state: Arc<Shared>,
    answers: mpsc::UnboundedReceiver<Answered>,
    /// Dropping it ends the servers.
    _servers: JoinSet<()>,
}

type Answered = (Instant, Result<Bytes, String>);

struct Shared {
    registries: Arc<Registries>,
    conditions: Conditions,
    record: Mutex<Record>,
    answers: mpsc::UnboundedSender<Answered>,
}

#[derive(Clone, Default)]
pub struct Record {
    /// What the function is invoked with, until it takes it.
    payload: Option<String>,
    began: Option<Instant>,
    /// The calls of each action, throttled ones included.
    pub calls: BTreeMap<String, usize>,
    pub throttled: usize,
    pub first_images: Option<Instant>,
    /// The bytes of the plan.
    pub plan: usize,
}

pub struct Invocation {
    /// When the process started, took the invocation, and answered.
    pub started: Instant,
    pub began: Instant,
    pub ended: Instant,
    pub answer: Bytes,
    /// The most bytes of memory that the process ever had resident.
    pub peak_memory: u64,
    pub record: Record,
}

impl Lambda {
    pub async fn start(registries: &Arc<Registries>, conditions: Conditions, payload: &Value) -> Result<Self> {
        let (sender, answers) = mpsc::unbounded_channel();
        let record = Mutex::new(Record { payload: Some(payload.to_string()), ..Record::default() });
        let state = Arc::new(Shared { registries: Arc::clone(registries), conditions, record, answers: sender });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(respond))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(fail))
            .route("/2018-06-01/runtime/init/error", post(fail))
            .fallback(aws)
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&state));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        // Otherwise an answer's last packet may wait for the acknowledgement of the one before it.
        let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
        let mut servers = JoinSet::new();
        servers.spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { address, state, answers, _servers: servers })
    }

    /// Starts the function, with AWS at `endpoint`, and waits for its answer.
    pub async fn invoke(mut self, command: &[&Path], endpoint: &[(&str, String)]) -> Result<Invocation> {
        let [program, arguments @ ..] = command else { return Err(anyhow!("There is no command")) };
        let log = tempfile::NamedTempFile::new()?;
        let started = Instant::now();
        let mut function = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(ENVIRONMENT)
            .envs(endpoint.iter().map(|(name, value)| (name, value)))
            .env("AWS_LAMBDA_RUNTIME_API", self.address.to_string())
            .stdin(Stdio::null())
            .stdout(log.as_file().try_clone()?)
            .stderr(log.as_file().try_clone()?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} does not start. Build it with `make build`", program.display()))?;
        let answered = tokio::select! {
            Some((ended, answer)) = self.answers.recv() => answer.map(|answer| (ended, answer)),
            status = function.wait() => Err(format!("it ended: {}", status?)),
            () = tokio::time::sleep(TIMEOUT) => Err(format!("no answer within {TIMEOUT:?}")),
        };
        let (ended, answer) = answered.map_err(|problem| {
            let log = std::fs::read_to_string(log.path()).unwrap_or_default();
            anyhow!("{}: {problem}\n{log}", program.display())
        })?;
        let status = Process::new(function.id().context("the process has ended")?.cast_signed())?.status()?;
        let record = self.state.record().clone();
        let began = record.began.context("the function answered before it was asked")?;
        let peak_memory = status.vmhwm.context("the kernel reports no VmHWM")? << 10;
        Ok(Invocation { started, began, ended, answer, peak_memory, record })
    }
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder panics")
    }

    fn answered(&self, answer: Result<Bytes, String>) -> StatusCode {
        // Nothing waits for a second answer.
        let _ = self.answers.send((Instant::now(), answer));
        StatusCode::ACCEPTED
    }
}

async fn next(State(state): State<Arc<Shared>>) -> Response {
    let payload = state.record().payload.take();
    // There is no second invocation.
    let Some(payload) = payload else { return std::future::pending().await };
    let deadline = (SystemTime::now() + TIMEOUT).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let headers = [
        ("Lambda-Runtime-Aws-Request-Id", "00000000-0000-0000-0000-000000000001".to_owned()),
        ("Lambda-Runtime-Deadline-Ms", deadline.as_millis().to_string()),
        ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:111111111111:function:function".to_owned()),
        ("Lambda-Runtime-Trace-Id", "Root=1-00000000-000000000000000000000001;Sampled=0".to_owned()),
        ("Content-Type", "application/json".to_owned()),
    ];
    state.record().began = Some(Instant::now());
    (headers, payload).into_response()
}

async fn respond(State(state): State<Arc<Shared>>, body: Bytes) -> StatusCode {
    state.answered(Ok(body))
}

async fn fail(State(state): State<Arc<Shared>>, body: Bytes) -> StatusCode {
    state.answered(Err(String::from_utf8_lossy(&body).into_owned()))
}

async fn aws(State(state): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let target = text("x-amz-target").and_then(|target| target.split_once('.')).map(|(_, action)| action.to_owned());
    let is_upload = target.is_none() && method == Method::PUT;
    let action = target.unwrap_or_else(|| if is_upload { "PutObject".into() } else { format!("{method} {uri}") });
    let throttled = {
        let mut record = state.record();
        let number: usize = record.calls.values().sum();
        let throttled = !is_upload && state.conditions.throttles(number);
        *record.calls.entry(action.clone()).or_default() += 1;
        record.throttled += usize::from(throttled);
        if action == "DescribeImages" {
            record.first_images.get_or_insert_with(Instant::now);
        }
        if uri.path().contains("/plans/") {
            // A body in signed chunks is longer than its content.
            let decoded = text("x-amz-decoded-content-length").and_then(|length| length.parse().ok());
            record.plan += decoded.unwrap_or(body.len());
        }
        throttled
    };
    let answer = match () {
        () if throttled => error("ThrottlingException", "Rate exceeded"),
        () if is_upload => StatusCode::OK.into_response(),
        () => state.registries.answer(&action, &headers, &body),
    };
    tokio::time::sleep(state.conditions.latency).await;
    answer
}
