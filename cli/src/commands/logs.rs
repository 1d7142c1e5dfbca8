//! `logs`.

use anyhow::Result;
use clap::ValueEnum;

use super::Common;
use super::progress::blank;
use crate::Outcome;
use crate::output::{note, print};
use crate::tasks::{Account, Function, Log, Reader, Task};

#[derive(clap::Args)]
pub struct Logs {
    /// The task
    task: String,
    /// Only the lines about this image, repository:tag, of its last copy
    #[arg(long, conflicts_with_all = ["function", "run"])]
    image: Option<String>,
    /// The log of a function, instead of that of the Fargate tasks
    #[arg(long, value_enum)]
    function: Option<FunctionArgument>,
    /// Only what was written during this run; `latest` is the latest one
    #[arg(long)]
    run: Option<String>,
    /// Print new lines when they are written: until the run has ended, or until Ctrl-C
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, ValueEnum)]
enum FunctionArgument {
    ListImages,
    LaunchTask,
    RecordStatus,
}

impl From<FunctionArgument> for Function {
    fn from(function: FunctionArgument) -> Self {
        match function {
            FunctionArgument::ListImages => Self::ListImages,
            FunctionArgument::LaunchTask => Self::LaunchTask,
            FunctionArgument::RecordStatus => Self::RecordStatus,
        }
    }
}

pub async fn logs(arguments: &Logs) -> Result<Outcome> {
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    let mut log = match (&arguments.image, arguments.function) {
        (Some(image), _) => Log::of_image(&task, &account.image(&task, image).await?)?,
        (None, Some(function)) => account.function_log(&task, function.into()).await?,
        (None, None) => Log::of_tasks(&task)?,
    };
    let run = match arguments.run.as_deref() {
        Some("latest") => Some(account.latest_run(&task).await?),
        run => run.map(str::to_owned),
    };
    if let Some(run) = &run {
        log = log.during(&account.run(&task, run).await?);
    }
    let reader = log.reader();
    if arguments.follow {
        tokio::select! {
            result = follow(&account, &task, run.as_deref(), reader, arguments.common.json) => result?,
            _ = tokio::signal::ctrl_c() => {}
        }
    } else if read_to_end(&account, reader, arguments.common.json).await?.1 == 0 {
        note("There are no lines.");
    }
    Ok(Outcome::Success)
}

/// Prints a log, and then what is written. Ends when the run has ended.
async fn follow(account: &Account, task: &Task, run: Option<&str>, mut reader: Reader, json: bool) -> Result<()> {
    loop {
        let has_ended = match run {
            Some(run) => account.run(task, run).await?.run.status.is_final(),
            None => false,
        };
        // What was written before the run ended is read after it has.
        reader = read_to_end(account, reader, json).await?.0;
        if has_ended {
            return Ok(());
        }
        account.pause().await;
    }
}

/// Prints a log to its present end, and counts the lines.
async fn read_to_end(account: &Account, mut reader: Reader, json: bool) -> Result<(Reader, usize)> {
    let mut count = 0;
    loop {
        let lines = account.read(&mut reader).await?;
        count += lines.len();
        for line in &lines {
            if json {
                print(format_args!("{}\n", serde_json::to_string(line)?))?;
            } else {
                let stream = line.stream.as_ref().map(|stream| format!("{stream}  ")).unwrap_or_default();
                print(format_args!("{}  {stream}{}\n", blank(line.time), line.message))?;
            }
        }
        if reader.is_at_end() {
            return Ok((reader, count));
        }
    }
}
