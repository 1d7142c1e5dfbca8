//! `start`, `stop`, `runs` and `run`.

use anyhow::Result;
use serde::Serialize;
use shared::text::Excerpt;

use super::Common;
use super::progress::{Progress, blank, bytes, duration, interruptible};
use super::stacks::show_stopping;
use crate::Outcome;
use crate::output::{cell, note, print, print_json, status_cell, table};
use crate::tasks::{Account, Batch, Decision, Input, Run as TaskRun, RunDetails, Status, Task};

#[derive(clap::Args)]
pub struct Start {
    /// The task
    task: String,
    /// Report what a run would copy and why, and copy nothing. Waits for the report
    #[arg(long)]
    dry_run: bool,
    /// Copy these images instead of the task's own: a list in the format of srcImageList
    #[arg(long, value_name = "LIST")]
    images: Option<String>,
    /// Wait until the run has ended; exit code 1 if it fails
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub struct Stop {
    /// The task
    task: String,
    /// The run; default: all that run
    run: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub struct Runs {
    /// The task
    task: String,
    /// The most runs to list
    #[arg(long, default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
pub struct Run {
    /// The task
    task: String,
    /// The run; default: the latest
    run: Option<String>,
    /// Wait until the run has ended
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

/// A run, as `run` and `start` print it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    run: &'a RunDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    batches: Option<Vec<Batch>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decisions: Option<Vec<Decision>>,
}

pub async fn start(arguments: &Start) -> Result<Outcome> {
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    let input = Input { dry_run: arguments.dry_run, src_image_list: arguments.images.clone() };
    let name = account.start(&task, &input).await?;
    if arguments.wait || arguments.dry_run {
        note(format_args!("The run {name} has started."));
        return follow(&account, &task, &name, &arguments.common).await;
    }
    if arguments.common.json {
        print_json(&serde_json::json!({ "name": name }))?;
    } else {
        print(format_args!("{name}\n"))?;
    }
    Ok(Outcome::Success)
}

pub async fn stop(arguments: &Stop) -> Result<Outcome> {
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    let progress = Progress::start("stopping");
    let stopping = account.stop(&task, arguments.run.as_deref(), |it| show_stopping(&progress, &it));
    let runs = interruptible(stopping, "What was asked for goes on.").await??;
    drop(progress);
    if arguments.common.json {
        print_json(&runs)?;
    } else if runs.is_empty() {
        note(format_args!("{} has no run that could be stopped.", task.name));
    } else {
        print(runs.iter().map(|run| format!("{run} is stopped.\n")).collect::<String>())?;
    }
    Ok(Outcome::Success)
}

pub async fn runs(arguments: &Runs) -> Result<Outcome> {
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    let (mut runs, mut next) = (Vec::new(), None);
    loop {
        let page = account.runs(&task, arguments.limit - runs.len(), next.as_deref()).await?;
        runs.extend(page.items);
        next = page.next;
        if next.is_none() || runs.len() >= arguments.limit {
            break;
        }
    }
    runs.truncate(arguments.limit);
    if arguments.common.json {
        print_json(&runs)?;
        return Ok(Outcome::Success);
    }
    let mut rows = table(["RUN", "STATUS", "STARTED", "TOOK", "UNCHANGED", "TO COPY", "COPIED", "FAILED", "BYTES"]);
    for run in &runs {
        let TaskRun { name, status, started_at, counts, .. } = run;
        rows.add_row([
            cell(name),
            status_cell(status.as_str()),
            cell(blank(*started_at)),
            cell(duration(run.seconds())),
            cell(blank(counts.map(|it| it.unchanged))),
            cell(blank(counts.map(|it| it.to_copy))),
            cell(blank(counts.map(|it| it.done))),
            cell(blank(counts.map(|it| it.failed))),
            cell(bytes(counts.map(|it| it.bytes_done))),
        ]);
    }
    print(format_args!("{rows}\n"))?;
    Ok(Outcome::Success)
}

pub async fn run(arguments: &Run) -> Result<Outcome> {
    let account = arguments.common.account().await?;
    let task = account.task(&arguments.task).await?;
    let name = match &arguments.run {
        Some(run) => run.clone(),
        None => account.latest_run(&task).await?,
    };
    if arguments.follow {
        return follow(&account, &task, &name, &arguments.common).await;
    }
    let run = account.run(&task, &name).await?;
    show(&account, &task, &run, &arguments.common).await
}

/// Waits for the end of a run, and prints it.
async fn follow(account: &Account, task: &Task, name: &str, common: &Common) -> Result<Outcome> {
    let progress = Progress::start("starting");
    let goes_on = format!("The run goes on. To see how it stands: ecr-transfer run {} {name}", task.name);
    let run = interruptible(account.follow_run(task, name, |run| progress.show(run)), goes_on).await??;
    drop(progress);
    show(account, task, &run, common).await
}

async fn show(account: &Account, task: &Task, run: &RunDetails, common: &Common) -> Result<Outcome> {
    let status = run.run.status;
    let decisions = match run.report {
        Some(_) => Some(account.report(task, run).await?),
        None => None,
    };
    let batches = match run.run.counts {
        Some(_) if !status.is_final() => Some(account.batches(task, run).await?),
        _ => None,
    };
    if common.json {
        print_json(&Shown { run, batches, decisions })?;
    } else {
        print(summary(run))?;
        if let Some(batches) = batches.filter(|batches| !batches.is_empty()) {
            print(format_args!("\n{}\n", batch_table(&batches)))?;
        }
        if let Some(decisions) = decisions {
            print(format_args!("\n{}\n", decision_table(&decisions)))?;
        }
    }
    Ok(Outcome::success_if(matches!(status, Status::Running | Status::Succeeded)))
}

/// A run in lines of a name and a value.
fn summary(run: &RunDetails) -> String {
    let TaskRun { name, status, started_at, stopped_at, counts } = &run.run;
    let mut lines = vec![
        ("Run", name.clone()),
        ("Status", status.as_str().to_owned()),
        ("Started", blank(*started_at)),
        ("Ended", blank(*stopped_at)),
        ("Took", duration(run.run.seconds())),
        ("Images instead of the task's", blank(run.input.src_image_list.as_ref())),
    ];
    if let Some(counts) = counts {
        lines.extend([
            ("At the source", format!("{}, {} excluded", counts.listed, counts.excluded)),
            ("Unchanged", counts.unchanged.to_string()),
            ("To copy", format!("{}, {}", counts.to_copy, bytes(Some(counts.bytes)))),
        ]);
        if !run.input.dry_run {
            lines.extend([
                ("Copied", format!("{}, {}", counts.done, bytes(Some(counts.bytes_done)))),
                ("Failed", counts.failed.to_string()),
                ("Left", run.left.to_string()),
            ]);
        }
    }
    lines.push((
        "Rate",
        run.bytes_per_second.filter(|&it| it > 0).map(|it| format!("{}/s", bytes(Some(it)))).unwrap_or_default(),
    ));
    lines.push(("Error", blank(run.error.as_ref())));
    lines.push(("Cause", blank(run.cause.as_ref())));
    lines.extend(run.failures.iter().map(|failure| ("Failed image", failure.to_string())));
    lines.retain(|(_, value)| !value.is_empty());
    lines.iter().map(|(name, value)| format!("{name}: {}\n", Excerpt::new(value))).collect()
}

fn batch_table(batches: &[Batch]) -> comfy_table::Table {
    let mut rows = table(["BATCH", "IMAGES", "BYTES", "STATUS", "FARGATE TASK", "STARTED"]);
    for batch in batches {
        let task = batch.task.as_ref();
        let status = match task {
            _ if batch.is_recorded => "ended",
            Some(task) => &task.status,
            None => "waits",
        };
        rows.add_row([
            cell(&batch.id),
            cell(batch.images),
            cell(bytes(Some(batch.bytes))),
            status_cell(status),
            cell(blank(task.map(|task| &task.id))),
            cell(blank(task.and_then(|task| task.started_at))),
        ]);
    }
    rows
}

fn decision_table(decisions: &[Decision]) -> comfy_table::Table {
    let mut rows = table(["REASON", "SOURCE", "DESTINATION", "RULE OR ERROR"]);
    for Decision { reason, source, destination, rule, error } in decisions {
        rows.add_row([
            cell(reason),
            cell(source),
            cell(blank(destination.as_ref())),
            cell(blank(rule.as_ref().or(error.as_ref()))),
        ]);
    }
    rows
}
