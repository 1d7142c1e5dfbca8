//! `bench`: how ecr-transfer compares with others, how its functions start, how it plans a large registry, and what its batches and runs of any size cost.

mod bars;
mod batches;
mod chart;
mod copying;
mod error;
mod fake;
mod goals;
mod grid;
mod measure;
mod model;
mod packing;
mod registry;
mod report;
mod runtime;
mod scale;
mod scenario;
mod server;
mod starting;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum as _};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    error::{Error, Result},
    fake::Conditions,
    goals::{Row, goals},
    measure::{Settings, measure},
    report::Report,
    scenario::Scenario,
};

/// Measures ecr-transfer, next to others and by itself, and works out what its batches cost.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures how ecr-transfer copies, next to what one would use instead.
    Copying(Copying),
    /// Measures how list-images, as it is deployed, plans a large registry.
    Planning(Planning),
    /// Measures how long the functions take to start, and how large they are.
    Starting(Starting),
    /// Works out what the start of tasks costs with more and fewer images in each.
    Batches(Page),
    /// Works out what runs of up to 100,000 images take and cost, and which of AWS's limits they come near.
    Scale(Page),
}

#[derive(Args)]
struct Starting {
    /// Where the functions were built.
    #[arg(long, default_value = ".aws-sam/build")]
    build: PathBuf,
    /// A Python with boto3.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// How often each function starts; the median counts.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Write a page with all that was measured.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Fail if a goal is missed.
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
struct Copying {
    /// What is copied.
    #[arg(long, value_enum, default_value = "large")]
    set: copying::Set,
    /// How often each tool does each job; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How many milliseconds each request to a registry is delayed: one after the other, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 30])]
    latency_ms: Vec<u64>,
    /// Who copies: these, as far as they are on this machine, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = copying::Tool::value_variants().to_vec())]
    tools: Vec<copying::Tool>,
    /// A parameter of the stack that has another value than its default, as name=value; any number of them.
    #[arg(long = "parameter", value_parser = pair)]
    parameters: Vec<(String, String)>,
    /// Write a page with all that was measured, and a picture next to it.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Fail if a goal is missed.
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
struct Planning {
    /// The function's binary.
    #[arg(long, default_value = ".aws-sam/build/ListImagesFunction/bootstrap")]
    lambda: PathBuf,
    /// How often each scenario runs; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How many milliseconds each call of AWS takes.
    #[arg(long, default_value_t = 30)]
    latency_ms: u64,
    /// The share of ECR's calls that are throttled, from 0 to 1.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    throttled: f64,
    /// Write a page with all that was measured, and a picture next to it.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Fail if a goal is missed.
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
struct Page {
    /// Write a page with all that was worked out.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Copying(arguments) => copy(&arguments).await.map(|all_met| all_met || !arguments.check),
        Command::Planning(arguments) => planning(&arguments).await.map(|all_met| all_met || !arguments.check),
        Command::Starting(arguments) => start(&arguments).await.map(|all_met| all_met || !arguments.check),
        Command::Batches(arguments) => batches(&arguments).map(|()| true),
        Command::Scale(arguments) => scale(&arguments).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn start(arguments: &Starting) -> Result<bool> {
    let report = starting::Report::measure(&arguments.build, &arguments.python, arguments.runs.into()).await?;
    report.print();
    if let Some(page) = &arguments.markdown {
        report.write(page)?;
    }
    Ok(report.all_met())
}

async fn copy(arguments: &Copying) -> Result<bool> {
    let directory = tempfile::tempdir().map_err(Error::system("a temporary directory"))?;
    let settings = copying::Settings {
        set: arguments.set,
        runs: arguments.runs.into(),
        latencies: &arguments.latency_ms,
        tools: &arguments.tools,
        parameters: &arguments.parameters,
    };
    let rows = copying::measure(&settings, directory.path()).await?;
    let report = copying::Report { set: settings.set, rows, runs: settings.runs };
    report.print();
    if let Some(page) = &arguments.markdown {
        report.write(page)?;
    }
    Ok(report.all_met())
}

fn scale(arguments: &Page) -> Result<()> {
    let report = scale::Report::new();
    report.print();
    arguments.markdown.as_ref().map_or(Ok(()), |page| report.write(page))
}

fn batches(arguments: &Page) -> Result<()> {
    let report = batches::Report::new();
    report.print();
    arguments.markdown.as_ref().map_or(Ok(()), |page| report.write(page))
}

/// Measures everything, and says whether all goals are met.
async fn planning(arguments: &Planning) -> Result<bool> {
    if !arguments.lambda.is_file() {
        return Err(Error::MissingFunction(arguments.lambda.clone()));
    }
    let latency = Duration::from_millis(arguments.latency_ms);
    let conditions = Conditions { latency, throttled: arguments.throttled };
    let settings = Settings { lambda: &arguments.lambda, runs: arguments.runs.into(), conditions };
    let rows = measure_all(&settings).await;
    let report = Report { goals: goals(&rows), rows, conditions, runs: settings.runs };
    report.print();
    if let Some(page) = &arguments.markdown {
        report.write(page)?;
    }
    Ok(report.goals.iter().all(|goal| goal.met))
}

async fn measure_all(settings: &Settings<'_>) -> Vec<Row> {
    let scenarios = Scenario::all();
    let bar = progress(scenarios.len() * settings.runs);
    let mut rows = Vec::new();
    for scenario in scenarios {
        let (images, repositories) = (scenario.expected().listed, scenario.looked_at());
        let what = format!("{}: {images} images in {repositories} repositories", scenario.name());
        bar.set_message(what.clone());
        let result = measure(settings, &scenario, || bar.inc(1)).await;
        bar.suspend(|| match &result {
            Ok(run) => say(&format!("✓ {what}  {:.2} s", run.time.as_secs_f64())),
            Err(error) => say(&format!("✗ {what}: {error}")),
        });
        rows.push(Row { scenario, result });
    }
    bar.finish_and_clear();
    rows
}

/// A bar for so many steps.
fn progress(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:32.green} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Progress and complaints, which are no result.
#[expect(clippy::print_stderr, reason = "this is a command")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("expected a number from 0 to 1".into()) }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}
