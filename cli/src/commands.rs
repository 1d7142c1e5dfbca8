//! The commands on tasks: arguments, tables and progress. What they do is in [`tasks`].

mod images;
mod logs;
mod progress;
mod runs;
mod stacks;

use anyhow::Result;
use clap::Subcommand;

use crate::Outcome;
use crate::tasks::{self, Account};

/// A command on tasks.
#[derive(Subcommand)]
pub enum Command {
    /// List the tasks: the stacks of ecr-transfer in a region
    Tasks(stacks::Tasks),
    /// Create a task, and wait until it is complete. It then starts its first run
    Create(stacks::Create),
    /// Create a task with the parameters of another one
    Clone(stacks::Cloning),
    /// Change parameters or the template of a task
    Update(stacks::Update),
    /// Pause a task: only a person can start a run
    Pause(stacks::OneTask),
    /// Resume a paused task, which starts a run
    Resume(stacks::OneTask),
    /// Delete a task, also during a run, and print how to remove what stays
    Delete(stacks::Delete),
    /// Start a run
    Start(runs::Start),
    /// Stop runs, and wait until their Fargate tasks have stopped
    Stop(runs::Stop),
    /// List the runs of a task, the latest first
    Runs(runs::Runs),
    /// Show a run; exit code 1 if it failed
    Run(runs::Run),
    /// List the images of a task; with --failed, exit code 1 if there are any
    Images(images::Images),
    /// Show logs of Fargate tasks or functions
    Logs(logs::Logs),
}

/// Options of each command.
#[derive(clap::Args)]
pub struct Common {
    /// The region of the task; default: as for the AWS CLI
    #[arg(long)]
    region: Option<String>,
    /// The profile with the credentials; default: as for the AWS CLI
    #[arg(long)]
    profile: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Common {
    async fn account(&self) -> tasks::Result<Account> {
        Account::connect(self.region.as_ref(), self.profile.as_ref()).await
    }
}

/// Runs a command.
pub async fn run(command: Command) -> Result<Outcome> {
    match command {
        Command::Tasks(arguments) => stacks::tasks(&arguments).await,
        Command::Create(arguments) => stacks::create(&arguments).await,
        Command::Clone(arguments) => stacks::clone(&arguments).await,
        Command::Update(arguments) => stacks::update(&arguments).await,
        Command::Pause(arguments) => stacks::set_paused(&arguments, true).await,
        Command::Resume(arguments) => stacks::set_paused(&arguments, false).await,
        Command::Delete(arguments) => stacks::delete(&arguments).await,
        Command::Start(arguments) => runs::start(&arguments).await,
        Command::Stop(arguments) => runs::stop(&arguments).await,
        Command::Runs(arguments) => runs::runs(&arguments).await,
        Command::Run(arguments) => runs::run(&arguments).await,
        Command::Images(arguments) => images::images(&arguments).await,
        Command::Logs(arguments) => logs::logs(&arguments).await,
    }
}
