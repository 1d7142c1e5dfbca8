//! The Lambda Runtime API, for one invocation, and the function as a process of its own.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};

use crate::{
    error::{Error, Result},
    server::Server,
};

/// How long the function may take; as in the template.
const TIMEOUT: Duration = Duration::from_secs(900);

/// One invocation of the function, answered.
pub struct Invocation {
    /// When its process was started.
    pub started: Instant,
    /// When the function was handed what it was invoked with.
    pub began: Instant,
    /// When it had answered.
    pub ended: Instant,
    /// What it answered.
    pub answer: Bytes,
    /// The most bytes of memory that it ever had.
    pub peak_memory: u64,
}

/// Starts the function that this command is, invokes it once, and ends it.
///
/// # Errors
/// If it cannot be started, fails, or does not answer.
pub async fn invoke(command: &[PathBuf], environment: &[(&str, String)], payload: String) -> Result<Invocation> {
    let (answers, mut answer) = mpsc::unbounded_channel();
    let state = Arc::new(Api { payload: Mutex::new(Some(payload)), began: OnceLock::new(), answers });
    let router = Router::new()
        .route("/2018-06-01/runtime/invocation/next", get(next))
        .route("/2018-06-01/runtime/invocation/{id}/response", post(respond))
        .route("/2018-06-01/runtime/invocation/{id}/error", post(fail))
        .route("/2018-06-01/runtime/init/error", post(fail))
        .with_state(Arc::clone(&state));
    let server = Server::start(router).await?;

    let mut log = tempfile::tempfile().map_err(Error::system("a temporary file"))?;
    let started = Instant::now();
    let mut function = start(command, environment, &server, &log)?;
    tokio::select! {
        answer = answer.recv() => {
            let Answer { ended, content } = answer.expect("the sender is in `state`, which is still here");
            let answer = content.map_err(|report| Error::Failed {
                report: String::from_utf8_lossy(&report).into_owned(),
                log: text(&mut log),
            })?;
            let began = *state.began.get().expect("nothing is answered before it is asked");
            Ok(Invocation { started, began, ended, answer, peak_memory: peak_memory(&function)? })
        }
        status = function.wait() => {
            let status = status.map_err(Error::system("the function's process"))?;
            Err(Error::Ended { status, log: text(&mut log) })
        }
        () = tokio::time::sleep(TIMEOUT) => Err(Error::Timeout { seconds: TIMEOUT.as_secs(), log: text(&mut log) }),
    }
}

fn start(command: &[PathBuf], environment: &[(&str, String)], api: &Server, log: &File) -> Result<Child> {
    let (path, arguments) = command.split_first().ok_or_else(|| Error::Wrong("there is no command".into()))?;
    let output = || log.try_clone().map(Stdio::from).map_err(Error::system("a temporary file"));
    Command::new(path)
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("AWS_LAMBDA_RUNTIME_API", api.address.to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", "ListImagesFunction")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1024")
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::system(path.display().to_string()))
}

struct Api {
    /// What the function is invoked with, until it has taken it.
    payload: Mutex<Option<String>>,
    /// When it took it.
    began: OnceLock<Instant>,
    answers: mpsc::UnboundedSender<Answer>,
}

struct Answer {
    ended: Instant,
    /// The function's answer, or the report of its failure.
    content: Result<Bytes, Bytes>,
}

async fn next(State(api): State<Arc<Api>>) -> Response {
    let payload = api.payload.lock().expect("nobody panics with the payload in hand").take();
    let Some(payload) = payload else {
        // There is no second invocation.
        return std::future::pending().await;
    };
    let deadline = SystemTime::now() + TIMEOUT;
    let deadline = deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let headers = [
        ("Lambda-Runtime-Aws-Request-Id", "00000000-0000-0000-0000-000000000001".to_owned()),
        ("Lambda-Runtime-Deadline-Ms", deadline.to_string()),
        (
            "Lambda-Runtime-Invoked-Function-Arn",
            "arn:aws:lambda:us-east-1:111111111111:function:ListImagesFunction".to_owned(),
        ),
        ("Lambda-Runtime-Trace-Id", "Root=1-00000000-000000000000000000000001;Sampled=0".to_owned()),
        ("Content-Type", "application/json".to_owned()),
    ];
    api.began.get_or_init(Instant::now);
    (headers, payload).into_response()
}

async fn respond(State(api): State<Arc<Api>>, body: Bytes) -> StatusCode {
    api.answered(Ok(body))
}

async fn fail(State(api): State<Arc<Api>>, body: Bytes) -> StatusCode {
    api.answered(Err(body))
}

impl Api {
    fn answered(&self, content: Result<Bytes, Bytes>) -> StatusCode {
        // Only the first answer is waited for.
        let _ = self.answers.send(Answer { ended: Instant::now(), content });
        StatusCode::ACCEPTED
    }
}

fn peak_memory(function: &Child) -> Result<u64> {
    let file = format!("/proc/{}/status", function.id().unwrap_or_default());
    let status = std::fs::read_to_string(&file).map_err(Error::system(&file))?;
    high_water_mark(&status).ok_or_else(|| Error::Wrong(format!("{file} has no VmHWM")))
}

/// The most bytes of memory that a process ever had, from its `/proc/…/status`.
fn high_water_mark(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    value.trim().strip_suffix(" kB")?.trim().parse().ok().map(|kibibytes: u64| kibibytes * 1_024)
}

/// All that the function has printed.
fn text(log: &mut File) -> String {
    let mut bytes = Vec::new();
    match log.rewind().and_then(|()| log.read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(what it said cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_in_bytes() {
        assert_eq!(high_water_mark("VmPeak:\t  99 kB\nVmHWM:\t   12345 kB\nVmRSS:\t 1 kB\n"), Some(12_641_280));
        assert_eq!(high_water_mark("Name:\tlist-images\n"), None);
    }
}
