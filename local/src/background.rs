//! A machine that stays: started in the background, to be used from any shell, and stopped by hand.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use local::{
    Error, Machine, Options, Result,
    process::find,
    stack::{Stack, project},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{
    Ending, Interruption,
    demonstration::{ECR_PARAMETERS, ECR_STACK},
    report::{self, phase},
};

/// What the machine says to the one that started it when there is no more to say.
const READY: &str = "ready";
/// How long a machine may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(15);

fn directory() -> PathBuf {
    project().join(".local/up")
}

fn pid_file() -> PathBuf {
    directory().join("pid")
}

/// Starts a machine in the background, and waits until it is ready.
pub async fn up(port: u16) -> Result<Ending> {
    let directory = directory();
    std::fs::create_dir_all(&directory).map_err(Error::file(&directory))?;
    let log = directory.join("local.log");
    let errors = std::fs::File::create(&log).map_err(Error::file(&log))?;
    let this = std::env::current_exe().map_err(Error::file("this program"))?;
    let start = |source| Error::Start { program: "local serve".into(), source };
    // A session of its own, so that it survives this terminal.
    let mut child = Command::new(find(Path::new("setsid"), "install the package util-linux")?)
        .arg(this)
        .args(["serve", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(start)?;
    let output = child.stdout.take().ok_or_else(|| start(std::io::Error::other("no output")))?;

    let listen = async {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == READY {
                return Ok(true);
            }
            report::line(&line);
        }
        Ok(false)
    };
    match Interruption::listen()?.or(listen).await? {
        Some(true) => Ok(Ending::Good),
        Some(false) => {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            Err(Error::Unexpected(said.trim().trim_start_matches("local: ").to_owned()))
        }
        None => {
            if let Some(id) = child.id() {
                stop(id.cast_signed())?;
            }
            Ok(Ending::Interrupted)
        }
    }
}

/// Stops the machine that was started so.
pub async fn down() -> Result<Ending> {
    let running = std::fs::read_to_string(pid_file()).ok().and_then(|id| id.trim().parse().ok());
    let stopped = match running {
        // The number may be another process's by now.
        Some(id) if is_machine(id) => tokio::task::spawn_blocking(move || stop(id))
            .await
            .map_err(|error| Error::Unexpected(error.to_string()))??,
        _ => false,
    };
    report::line(if stopped { "The local AWS is stopped." } else { "No local AWS is running." });
    Ok(Ending::Good)
}

/// Whether this process is a machine that was started in the background.
fn is_machine(id: i32) -> bool {
    let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).nth(1) == Some(b"serve")
}

/// Stops a process, and waits for its end. Returns whether there was one.
fn stop(id: i32) -> Result<bool> {
    let failed = |error: rustix::io::Errno| Error::file(format!("process {id}"))(error.into());
    let Some(process) = Pid::from_raw(id).and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok()) else {
        return Ok(false);
    };
    let wait = || {
        let timeout = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).map_err(failed)
    };
    pidfd_send_signal(&process, Signal::TERM).map_err(failed)?;
    if wait()? == 0 {
        // Its children die with it.
        pidfd_send_signal(&process, Signal::KILL).map_err(failed)?;
        wait()?;
    }
    Ok(true)
}

/// Is the machine, until somebody stops it.
pub async fn serve(port: u16) -> Result<Ending> {
    let mut interruption = Interruption::listen()?;
    let options = Options { port: Some(port), ..Options::new(directory()) };
    let start = phase("a local AWS", Machine::start(options));
    let Some(mut machine) = interruption.or(start).await? else { return Ok(Ending::Interrupted) };
    let life = async {
        std::fs::write(pid_file(), std::process::id().to_string()).map_err(Error::file(pid_file()))?;
        set_up(&machine).await?;
        Err::<Ending, _>(machine.failed().await)
    };
    let ending = interruption.or(life).await;
    machine.stop().await;
    let _ = std::fs::remove_file(pid_file());
    ending.map(|_| Ending::Good)
}

async fn set_up(machine: &Machine) -> Result<()> {
    let corpus = machine.private_corpus().await?.and(local::corpus::Corpus::public());
    phase("images, made and pushed to their registries", machine.seed(corpus)).await?;
    let stack = phase("a stack, deployed with sam", Stack::deploy(machine, ECR_STACK, ECR_PARAMETERS)).await?;

    let environment = directory().join("env");
    let exports: String = machine.env().iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    std::fs::write(&environment, exports).map_err(Error::file(&environment))?;
    let environment = environment.strip_prefix(project()).unwrap_or(&environment);
    report::line(&format!(
        "\nThe local AWS is up. In any shell:\n\n  \
           source {environment}\n  \
           aws stepfunctions start-execution --state-machine-arn {machine}\n  \
           aws dynamodb scan --table-name {images}\n  \
           aws ecr describe-repositories\n\n\
         Its logs are in {logs}. `make down` stops it.",
        environment = environment.display(),
        machine = stack.state_machine_arn()?,
        images = stack.output("ImageTable")?,
        logs = environment.parent().unwrap_or(environment).display(),
    ));
    report::line(READY);
    Ok(())
}
