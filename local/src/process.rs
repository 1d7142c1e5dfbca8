//! Child processes that never outlive the machine.
//!
//! Each leads a process group of its own, so that whatever it starts (ministack starts Lambda workers, a task's shell
//! starts skopeo) is stopped with it; and each dies with this process, even if that is killed outright.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{LazyLock, mpsc},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::{oneshot, watch},
    time::timeout,
};

use crate::error::{Error, Result};

/// How long anything may take to become ready. Generous, because a machine under test is often a busy one.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a server that has no other way to tell is asked whether it is ready.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// A program to start: what to run, in which environment, as whom.
#[derive(Debug)]
pub struct Program {
    name: String,
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    user: Option<(u32, u32)>,
}

impl Program {
    /// A program by its path, or by its name, which is then looked for in `PATH`. Its environment is empty but for `PATH`.
    ///
    /// # Errors
    /// [`Error::MissingProgram`] with `hint` if it is not there.
    pub fn new(program: impl AsRef<Path>, hint: &'static str) -> Result<Self> {
        let path = find(program.as_ref(), hint)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let environment = std::env::var_os("PATH").map(|path| ("PATH".into(), path)).into_iter().collect();
        Ok(Self { name, path, arguments: Vec::new(), environment, directory: None, user: None })
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds environment variables; a later value replaces an earlier one.
    #[must_use]
    pub fn envs(mut self, pairs: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>) -> Self {
        self.environment.extend(pairs.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs it as another user and group. Only root may do that.
    #[must_use]
    pub fn user(mut self, user: u32, group: u32) -> Self {
        self.user = Some((user, group));
        self
    }

    /// Starts it with its output going to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn start(self, log: impl Into<PathBuf>) -> Result<Process> {
        let log = log.into();
        let file = File::create(&log).map_err(Error::file(&log))?;
        let copy = file.try_clone().map_err(Error::file(&log))?;
        let (mut process, _) = self.spawn(file.into(), copy.into()).await?;
        process.log = Some(log);
        Ok(process)
    }

    /// Starts it, and hands out its output, both streams of it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn start_piped(self) -> Result<(Process, Output)> {
        let name = self.name.clone();
        let (process, output) = self.spawn(Stdio::piped(), Stdio::piped()).await?;
        let output =
            output.ok_or_else(|| Error::Start { program: name, source: std::io::Error::other("no output") })?;
        Ok((process, output))
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`Error::Ended`] with the end of its output, if it fails.
    pub async fn run(self, log: impl Into<PathBuf>) -> Result<()> {
        let mut process = self.start(log).await?;
        let status = process.exited().await;
        if status.success() { Ok(()) } else { Err(process.ended(status)) }
    }

    async fn spawn(self, stdout: Stdio, stderr: Stdio) -> Result<(Process, Option<Output>)> {
        let failed = |program: &str, source| Error::Start { program: program.to_owned(), source };
        let mut command = Command::new(find("setpriv".as_ref(), "install the package util-linux")?);
        command.args(["--pdeathsig", "KILL"]);
        if let Some((user, group)) = self.user {
            command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
        }
        command.arg("--").arg(&self.path).args(&self.arguments);
        command.env_clear().envs(self.environment);
        if let Some(directory) = self.directory {
            command.current_dir(directory);
        }
        command.process_group(0).stdin(Stdio::null()).stdout(stdout).stderr(stderr);

        let mut child = spawn_from_a_lasting_thread(command).await.map_err(|source| failed(&self.name, source))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let group = group.ok_or_else(|| failed(&self.name, std::io::Error::other("it was gone at once")))?;
        let output = child.stdout.take().zip(child.stderr.take());
        let (report, exit) = watch::channel(None);
        tokio::spawn(async move {
            let status = child.wait().await.unwrap_or_default();
            // What the leader has started ends with it, as in a container.
            signal(group, Signal::KILL);
            report.send_replace(Some(status));
        });
        Ok((Process { name: self.name, group, exit, log: None }, output))
    }
}

/// A process's standard output and standard error.
pub type Output = (tokio::process::ChildStdout, tokio::process::ChildStderr);

/// A running process, with everything that it has started. Dropping it kills them all.
#[derive(Debug)]
pub struct Process {
    name: String,
    group: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    log: Option<PathBuf>,
}

impl Process {
    /// Kills it and all that it has started.
    pub fn kill(&self) {
        // Once it has ended, its number may be another's.
        if self.exit.borrow().is_none() {
            signal(self.group, Signal::KILL);
        }
    }

    /// Asks it, and nothing that it has started, to end.
    pub fn terminate(&self) {
        if self.exit.borrow().is_none() {
            let _ = kill_process(self.group, Signal::TERM);
        }
    }

    /// Waits for its end.
    pub async fn exited(&mut self) -> ExitStatus {
        match self.exit.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            // The runtime is shutting down, and with it the task that waits for the process.
            Err(_) => ExitStatus::default(),
        }
    }

    /// Kills it and all that it has started, and waits for its end.
    pub async fn stop(mut self) {
        self.kill();
        self.exited().await;
    }

    /// Waits until `probe` finds what it looks for.
    ///
    /// # Errors
    /// [`Error::Ended`] if the process ends first, [`Error::Timeout`] if nothing happens for too long.
    pub async fn ready<T>(&mut self, probe: impl AsyncFn() -> Option<T>) -> Result<T> {
        let what = format!("`{}` to become ready", self.name);
        let found = async {
            loop {
                if let Some(found) = probe().await {
                    return found;
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        };
        let status = tokio::select! {
            found = timeout(PATIENCE, found) => {
                return found.map_err(|_| Error::Timeout { what, seconds: PATIENCE.as_secs() });
            }
            status = self.exited() => status,
        };
        Err(self.ended(status))
    }

    fn ended(&self, status: ExitStatus) -> Error {
        let output = self.log.as_deref().map(last_lines).unwrap_or_default();
        Error::Ended { program: self.name.clone(), status: status.to_string(), output }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a whole group; one that is gone already is what was wanted.
fn signal(group: Pid, signal: Signal) {
    if test_kill_process_group(group).is_ok() {
        let _ = kill_process_group(group, signal);
    }
}

/// Finds a program in `PATH`, or makes sure that the path leads to one.
///
/// # Errors
/// [`Error::MissingProgram`] with `hint` if it is not there.
pub fn find(program: &Path, hint: &'static str) -> Result<PathBuf> {
    let candidates = if program.components().count() > 1 {
        vec![program.to_owned()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|directory| directory.join(program)).collect()
    };
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| Error::MissingProgram { program: program.display().to_string(), hint })
}

/// The last lines of a log, for an error message.
fn last_lines(log: &Path) -> String {
    const LINES: usize = 25;
    let Ok(file) = File::open(log) else { return String::new() };
    let mut lines = VecDeque::with_capacity(LINES + 1);
    for line in BufReader::new(file).split(b'\n').map_while(std::io::Result::ok) {
        lines.push_back(String::from_utf8_lossy(&line).into_owned());
        if lines.len() > LINES {
            lines.pop_front();
        }
    }
    lines.into_iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

type Birth = Box<dyn FnOnce() + Send>;

/// The thread that all children are started from. The kernel sends a child its parent-death signal when the *thread* that
/// started it ends, and the runtime's own threads come and go.
static NURSERY: LazyLock<mpsc::Sender<Birth>> = LazyLock::new(|| {
    let (births, queue) = mpsc::channel::<Birth>();
    std::thread::spawn(move || queue.into_iter().for_each(|birth| birth()));
    births
});

async fn spawn_from_a_lasting_thread(mut command: Command) -> std::io::Result<Child> {
    let (reply, child) = oneshot::channel();
    let runtime = Handle::current();
    let birth: Birth = Box::new(move || {
        let _in_runtime = runtime.enter();
        let _ = reply.send(command.spawn());
    });
    NURSERY.send(birth).map_err(|_| std::io::Error::other("no thread to start it from"))?;
    child.await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, pidfd_open};

    use super::*;

    fn shell(script: &str) -> Program {
        Program::new("sh", "").unwrap().args(["-c", script])
    }

    #[tokio::test]
    async fn what_a_process_started_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! > {0}.part; mv {0}.part {0}; wait", pid_file.display());
        let mut process = shell(&script).start(directory.path().join("log")).await.unwrap();
        let pid = process.ready(async || std::fs::read_to_string(&pid_file).ok()).await.unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        let grandchild = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        process.stop().await;

        // It was killed, too, but dies when the kernel comes to it. Ready to be read means ended, reaped or not.
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&grandchild, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ended, 1, "it still runs");
    }

    #[tokio::test]
    async fn an_early_end_is_told_with_the_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell("echo no such luck; exit 3").start(directory.path().join("log")).await.unwrap();
        let error = process.ready(async || None::<()>).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such luck"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Program::new("no-such-program", "install it").unwrap_err();
        assert_eq!(error.to_string(), "`no-such-program` was not found: install it");
    }
}
