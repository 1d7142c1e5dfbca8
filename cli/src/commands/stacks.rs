//! `tasks`, `create`, `clone`, `update`, `pause`, `resume` and `delete`.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Result, bail};
use fs_err as fs;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use shared::text::Excerpt;
use shared::{Error as AwsError, Kind};

use super::Common;
use super::progress::{Progress, blank, interruptible};
use crate::Outcome;
use crate::output::{cell, note, print, print_json, status_cell, table};
use crate::tasks::{self, Account, Action, Change, Deleting, Package, Run, Stopping, Task, Values, read_values};

/// How many tasks are asked for their latest run at once.
const CONCURRENCY: usize = 8;

#[derive(clap::Args)]
pub struct Tasks {
    #[command(flatten)]
    common: Common,
}

/// Values of parameters, and a template.
#[derive(clap::Args)]
struct Deployment {
    /// A value of a parameter of the template; can be repeated
    #[arg(short, long = "parameter", value_name = "NAME=VALUE", value_parser = pair)]
    parameter: Vec<(String, String)>,
    /// A file with values, in JSON or YAML: a map of names and values, or as for the AWS CLI
    #[arg(long, value_name = "FILE")]
    parameters: Option<PathBuf>,
    /// A template whose code is in S3: a URL, such as `make publish` prints, or a file
    #[arg(long, value_name = "URL|FILE")]
    template: Option<String>,
    /// Do not wait until CloudFormation has ended
    #[arg(long)]
    no_wait: bool,
}

#[derive(clap::Args)]
pub struct Create {
    /// The name of the new task: at most 63 letters, digits and hyphens
    name: String,
    #[command(flatten)]
    deployment: Deployment,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub struct Cloning {
    /// The task to copy the parameters and the template of
    task: String,
    /// The name of the new task
    name: String,
    #[command(flatten)]
    deployment: Deployment,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub struct Update {
    /// The task
    task: String,
    #[command(flatten)]
    deployment: Deployment,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub struct OneTask {
    /// The task
    task: String,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub struct Delete {
    /// The task
    task: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "expected NAME=VALUE".to_owned())
}

impl Deployment {
    /// The values of the file, and over them those of the options.
    fn values(&self) -> Result<Values> {
        let mut values = match &self.parameters {
            Some(file) => read_values(&fs::read_to_string(file)?)?,
            None => Values::new(),
        };
        values.extend(self.parameter.iter().cloned());
        Ok(values)
    }

    async fn package(&self, account: &Account) -> tasks::Result<Option<Package>> {
        match &self.template {
            Some(template) => account.package(template).await.map(Some),
            None => Ok(None),
        }
    }
}

/// A task, as `tasks` lists it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(flatten)]
    task: Task,
    latest_run: Option<Run>,
}

pub async fn tasks(arguments: &Tasks) -> Result<Outcome> {
    let account = arguments.common.account().await?;
    let tasks: Vec<_> = stream::iter(account.tasks().await?)
        .map(|task| with_latest_run(&account, task))
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    if arguments.common.json {
        print_json(&tasks)?;
        return Ok(Outcome::Success);
    }
    if tasks.is_empty() {
        note(format_args!("There is no task in {}. Create one: ecr-transfer create NAME", account.region()));
        return Ok(Outcome::Success);
    }
    let mut rows = table(["TASK", "STATUS", "SOURCE", "DESTINATION", "SCHEDULE", "LATEST RUN", "STARTED", "FAILED"]);
    for Listed { task, latest_run } in &tasks {
        let run = latest_run.as_ref();
        rows.add_row([
            cell(&task.name),
            status_cell(&task.status),
            cell(&task.source),
            cell(&task.destination),
            cell(if task.paused == Some(true) { "paused" } else { &task.schedule }),
            run.map_or_else(|| cell(""), |run| status_cell(run.status.as_str())),
            cell(blank(run.and_then(|run| run.started_at))),
            cell(blank(run.and_then(|run| run.counts).map(|counts| counts.failed))),
        ]);
    }
    print(format_args!("{rows}\n"))?;
    Ok(Outcome::Success)
}

async fn with_latest_run(account: &Account, task: Task) -> tasks::Result<Listed> {
    let runs =
        if task.is_complete() { account.runs(&task, 1, None).await.map(|page| page.items) } else { Ok(Vec::new()) };
    let runs = match runs {
        // A policy may allow less for some tasks, and somebody may just have deleted one.
        Err(tasks::Error::Aws(AwsError::Aws { kind: Kind::Denied | Kind::NotFound, .. })) => Vec::new(),
        runs => runs?,
    };
    Ok(Listed { latest_run: runs.into_iter().next(), task })
}

pub async fn create(arguments: &Create) -> Result<Outcome> {
    let values = arguments.deployment.values()?;
    let account = arguments.common.account().await?;
    let package = match arguments.deployment.package(&account).await? {
        Some(package) => package,
        None => account.latest_package().await?,
    };
    let change = account.create(&arguments.name, &package, &values).await?;
    end(&account, &change, arguments.deployment.no_wait, &arguments.common).await
}

pub async fn clone(arguments: &Cloning) -> Result<Outcome> {
    let values = arguments.deployment.values()?;
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    let package = match arguments.deployment.package(&account).await? {
        Some(package) => package,
        None => account.package_of(&task).await?,
    };
    let clone = account.plan_clone(&task, &package, &values);
    note(format_args!("{}: {} → {}", task.name, task.source, task.destination));
    note(format_args!("{}: {} → {}", arguments.name, clone.source, clone.destination));
    if !clone.dropped.is_empty() {
        note(format_args!("The template has no parameter {}, so the clone is without.", clone.dropped.join(", ")));
    }
    if clone.shares_destination {
        note(
            "Both copy to the same place. A repository takes images of one source only: set destPrefix if sources differ.",
        );
    }
    let change = account.clone_task(&task, &arguments.name, &package, &clone).await?;
    end(&account, &change, arguments.deployment.no_wait, &arguments.common).await
}

pub async fn update(arguments: &Update) -> Result<Outcome> {
    let values = arguments.deployment.values()?;
    if values.is_empty() && arguments.deployment.template.is_none() {
        bail!("Nothing is to be changed. Name parameters with -p NAME=VALUE, or a template with --template.");
    }
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    let package = arguments.deployment.package(&account).await?;
    let change = account.update(&task, package.as_ref(), &values).await?;
    end_or_unchanged(&account, &task, change, arguments.deployment.no_wait, &arguments.common).await
}

pub async fn set_paused(arguments: &OneTask, paused: bool) -> Result<Outcome> {
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    let change = account.set_paused(&task, paused).await?;
    end_or_unchanged(&account, &task, change, false, &arguments.common).await
}

async fn end_or_unchanged(
    account: &Account,
    task: &Task,
    change: Option<Change>,
    no_wait: bool,
    common: &Common,
) -> Result<Outcome> {
    let Some(change) = change else {
        note(format_args!("{} is so already.", task.name));
        return show(task, common);
    };
    end(account, &change, no_wait, common).await
}

/// Waits for the end of a change, and prints the task.
async fn end(account: &Account, change: &Change, no_wait: bool, common: &Common) -> Result<Outcome> {
    let (doing, goes_on) = match change.action() {
        Action::Create => ("creating", "created"),
        Action::Update => ("updating", "updated"),
        Action::Delete => ("deleting", "deleted"),
    };
    if !no_wait {
        let name = change.name();
        let progress = Progress::start(format_args!("{doing} {name}"));
        let follow = account.follow(change, |event| {
            progress.say(format_args!("{doing} {name}: {} {}", event.resource, event.status));
            if event.status.ends_with("_FAILED") {
                progress.keep(format_args!("{} {}: {}", event.resource, event.status, blank(event.reason.as_ref())));
            }
        });
        let goes_on = format!("{name} is still being {goes_on}. `ecr-transfer tasks` shows how that ends.");
        interruptible(follow, goes_on).await??;
    }
    show(&account.task(change.id()).await?, common)
}

/// Prints a task.
fn show(task: &Task, common: &Common) -> Result<Outcome> {
    if common.json {
        print_json(task)?;
    } else {
        let paused = if task.paused == Some(true) { ", paused" } else { "" };
        let line = format!("{} is {}{paused}: {} → {}", task.name, task.status, task.source, task.destination);
        print(format_args!("{}\n", Excerpt::new(&line)))?;
    }
    Ok(Outcome::Success)
}

pub async fn delete(arguments: &Delete) -> Result<Outcome> {
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    if !arguments.yes {
        confirm(&task)?;
    }
    let progress = Progress::start(format_args!("deleting {}", task.name));
    let deleting = account.delete(&task, |it| match it {
        Deleting::Stopping(it) => show_stopping(&progress, &it),
        Deleting::Event(event) => {
            progress.say(format_args!("deleting {}: {} {}", task.name, event.resource, event.status));
        }
    });
    let goes_on = format!("What was asked for goes on. To delete the rest: ecr-transfer delete {}", task.name);
    let remains = interruptible(deleting, goes_on).await??;
    drop(progress);
    if arguments.common.json {
        print_json(&remains)?;
        return Ok(Outcome::Success);
    }
    let mut text = format!("{} is deleted. These stay. The commands remove them:\n", task.name);
    for it in &remains {
        text.push_str(&format!("\n  # {}\n", Excerpt::new(&it.description)));
        text.extend(it.commands.iter().map(|command| format!("  {}\n", Excerpt::new(command))));
    }
    print(text)?;
    Ok(Outcome::Success)
}

/// Asks for the name of the task.
fn confirm(task: &Task) -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("Nothing was deleted. Without a terminal to ask at, use --yes.");
    }
    let mut stderr = io::stderr().lock();
    write!(
        stderr,
        "This stops the runs of {} in {}, and deletes it. Images at the destination stay.\nType its name to go on: ",
        task.name, task.region
    )?;
    stderr.flush()?;
    let mut name = String::new();
    io::stdin().read_line(&mut name)?;
    if name.trim() == task.name { Ok(()) } else { bail!("That is not its name. Nothing was deleted.") }
}

/// Shows what happens while runs are stopped.
pub fn show_stopping(progress: &Progress, stopping: &Stopping) {
    match stopping {
        Stopping::Run(run) => progress.keep(format_args!("stopping the run {run}")),
        Stopping::Tasks(tasks) => progress.say(format_args!("waiting for {tasks} Fargate tasks to stop")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_before_the_file() {
        let directory = tempfile::tempdir().expect("it can be made");
        let file = directory.path().join("parameters.yaml");
        fs::write(&file, "srcList: ALL\nmaxImages: 5\n").expect("it can be written");
        let deployment = Deployment {
            parameter: vec![pair("srcList=a=b").expect("it is a pair")],
            parameters: Some(file),
            template: None,
            no_wait: false,
        };
        let expected = [("maxImages", "5"), ("srcList", "a=b")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(deployment.values().expect("they are read"), Values::from(expected));
        assert!(pair("=x").is_err() && pair("x").is_err());
    }
}
