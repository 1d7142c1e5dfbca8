//! Child processes that never outlive the machine.
//!
//! Each leads a process group of its own, so that everything that it starts (ministack starts Lambda workers, a task's shell
//! starts skopeo) is stopped with it; and each dies with this process, even if this process is killed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow};
use fs_err as fs;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use tokio::process::{ChildStderr, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a server may take to become ready, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// A program to start. Its environment is empty but for `PATH`.
#[derive(Debug)]
pub struct Program {
    name: String,
    command: Command,
}

impl Program {
    /// A program by its path, or by its name, which is then looked for in `PATH`. The hint says how to install it.
    pub fn new(program: impl AsRef<Path>, hint: &str) -> Result<Self> {
        let path = find(program.as_ref(), hint)?;
        let mut command = Command::new(find("setpriv".as_ref(), "install the package util-linux")?);
        command.args(["--pdeathsig", "KILL", "--"]).arg(&path);
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.process_group(0).stdin(Stdio::null());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, command })
    }

    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Adds environment variables; a later value replaces an earlier one.
    pub fn envs(mut self, pairs: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> Self {
        self.command.envs(pairs);
        self
    }

    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it as another user and group. Only root may do that.
    pub fn user(mut self, user: u32, group: u32) -> Self {
        self.command.uid(user).gid(group);
        self
    }

    /// Starts it with its output going to `log`.
    pub async fn start(self, log: impl Into<PathBuf>) -> Result<Process> {
        let log = log.into();
        let file = fs::File::create(&log)?.into_file();
        let (mut process, _) = self.spawn(file.try_clone()?, file).await?;
        process.log = Some(log);
        Ok(process)
    }

    /// Starts it, and hands out its standard output and standard error.
    pub(crate) async fn start_piped(self) -> Result<(Process, (ChildStdout, ChildStderr))> {
        let (process, output) = self.spawn(Stdio::piped(), Stdio::piped()).await?;
        Ok((process, output.context("the program has no output")?))
    }

    /// Runs it to its end. If it fails, the error has the end of its output.
    pub async fn run(self, log: impl Into<PathBuf>) -> Result<()> {
        let mut process = self.start(log).await?;
        let status = process.exited().await;
        if status.success() { Ok(()) } else { Err(process.ended(status)) }
    }

    /// Runs it to its end, with its output on this process's own. Returns whether it succeeded.
    pub async fn show(self) -> Result<bool> {
        let (mut process, _) = self.spawn(Stdio::inherit(), Stdio::inherit()).await?;
        Ok(process.exited().await.success())
    }

    async fn spawn(
        self,
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
    ) -> Result<(Process, Option<(ChildStdout, ChildStderr)>)> {
        let Self { name, mut command } = self;
        command.stdout(stdout).stderr(stderr);
        // The kernel kills a child when the *thread* that started it ends. The runtime's own threads stay.
        let child = tokio::spawn(async move { command.spawn() }).await?;
        let mut child = child.with_context(|| format!("`{name}` could not be started"))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("the program ended at once")?;
        let output = child.stdout.take().zip(child.stderr.take());
        let (report, exit) = watch::channel(None);
        tokio::spawn(async move {
            let status = child.wait().await.unwrap_or_default();
            // What the leader has started ends with it, as in a container.
            kill(group);
            report.send_replace(Some(status));
        });
        Ok((Process { name, group, exit, log: None }, output))
    }
}

/// A running process, with everything that it has started. Dropping it kills them all.
pub struct Process {
    name: String,
    group: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    log: Option<PathBuf>,
}

impl Process {
    /// Kills it and all that it has started.
    pub fn kill(&self) {
        // After its end, its number may belong to another process.
        if self.exit.borrow().is_none() {
            kill(self.group);
        }
    }

    /// Sends SIGTERM to it, but not to the processes that it has started.
    pub fn terminate(&self) {
        if self.exit.borrow().is_none() {
            let _ = kill_process(self.group, Signal::TERM);
        }
    }

    /// Waits for its end.
    pub async fn exited(&mut self) -> ExitStatus {
        // There is no report if the runtime is shutting down.
        self.exit.wait_for(Option::is_some).await.ok().and_then(|status| *status).unwrap_or_default()
    }

    /// Kills it and all that it has started, and waits for its end.
    pub async fn stop(mut self) {
        self.kill();
        self.exited().await;
    }

    /// Waits until `probe` returns something.
    pub async fn ready<T>(&mut self, probe: impl AsyncFn() -> Option<T>) -> Result<T> {
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
                return found.with_context(|| format!("`{}` is not ready after {} s", self.name, PATIENCE.as_secs()));
            }
            status = self.exited() => status,
        };
        Err(self.ended(status))
    }

    /// The error of a process that ended too early, or failed.
    fn ended(&self, status: ExitStatus) -> Error {
        const LINES: usize = 25;
        let log = self.log.as_ref().and_then(|log| fs::read(log).ok()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
        anyhow!("`{}` ended ({status}). The end of its output:\n  {last}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills a whole group, if it is still there.
fn kill(group: Pid) {
    if test_kill_process_group(group).is_ok() {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Finds a program in `PATH`, or makes sure that the path leads to one. The hint says how to install it.
pub fn find(program: &Path, hint: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Joined to a directory, an absolute path stays as it is.
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    let found = candidates.find(|path| path.is_file());
    found.with_context(|| format!("`{}` was not found: {hint}", program.display()))
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
        let pid = process.ready(async || fs::read_to_string(&pid_file).ok()).await.unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        let grandchild = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        process.stop().await;

        // It was killed, too, but may take a moment to die. Ready to be read means ended, reaped or not.
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&grandchild, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ended, 1, "it still runs");
    }

    #[tokio::test]
    async fn an_early_end_is_reported_with_the_last_output() {
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
