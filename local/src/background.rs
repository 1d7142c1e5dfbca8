//! The machine of `make up`, which runs in the background until `make down`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use fs_err as fs;
use local::corpus::Corpus;
use local::machine::running;
use local::stack::{Stack, project};
use local::{Machine, Options};
use rustix::process::{Signal, kill_process, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdout};
use tokio::time::{sleep, timeout};

use crate::demonstration::{ECR_PARAMETERS, ECR_STACK, quick_build};
use crate::step;

const POLL: Duration = Duration::from_millis(100);
/// How long a machine may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(15);

fn directory() -> PathBuf {
    project().join(".local/up")
}

/// The file that the user's shell reads. Once it exists, the machine is ready.
fn environment() -> PathBuf {
    directory().join("env")
}

/// Starts a machine in the background, and waits until it is ready.
pub async fn up(port: u16) -> Result<bool> {
    ensure!(running(&directory()).is_none(), "a local AWS is already running: stop it with `make down` first");
    let _ = fs::remove_file(environment());
    let mut machine = Command::new(std::env::current_exe()?)
        .args(["serve", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .spawn()?;
    while !environment().exists() {
        if machine.try_wait()?.is_some() {
            // It has printed why.
            return Ok(false);
        }
        sleep(POLL).await;
    }
    Ok(true)
}

/// Stops the machine that [`up`] started.
pub async fn down() -> Result<bool> {
    let Some(process) = running(&directory()) else {
        println!("No local AWS is running.");
        return Ok(true);
    };
    kill_process(process, Signal::TERM)?;
    let stopped = async {
        while running(&directory()).is_some() {
            sleep(POLL).await;
        }
    };
    if timeout(PATIENCE, stopped).await.is_err() {
        // Its children die with it.
        kill_process(process, Signal::KILL)?;
    }
    println!("The local AWS is stopped.");
    Ok(true)
}

/// Runs the machine until it is interrupted.
pub async fn serve(port: u16) -> Result<bool> {
    let directory = directory();
    let options = Options { port, build: quick_build(), ..Options::new(&directory) };
    let mut machine = step("Starting a local AWS", Machine::start(options)).await?;
    let corpus = machine.private_corpus().await?.and(Corpus::public());
    step("Making images and pushing them to their registries", machine.seed(corpus)).await?;
    let stack = step("Deploying a stack with sam", Stack::deploy(&machine, ECR_STACK, ECR_PARAMETERS)).await?;

    let relative = directory.strip_prefix(project())?.display();
    println!(
        "\nThe local AWS is up. In any shell:\n\n  \
           source {relative}/env\n  \
           aws stepfunctions start-execution --state-machine-arn {}\n  \
           aws dynamodb scan --table-name {}\n  \
           aws ecr describe-repositories\n\n\
         Its logs are in {relative}. `make down` stops it.",
        stack.state_machine_arn()?,
        stack.output("ImageTable")?,
    );
    // In a session of its own, Ctrl-C and the end of the terminal do not reach it.
    setsid()?;
    dup2_stdout(fs::OpenOptions::new().write(true).open("/dev/null")?)?;
    dup2_stderr(fs::File::create(directory.join("local.log"))?)?;
    let exports = machine.env().iter().map(|(name, value)| format!("export {name}='{value}'\n"));
    fs::write(environment(), exports.collect::<String>())?;
    bail!(machine.failed().await)
}
