//! `bench` measures ecr-transfer, alone and against other tools, and computes what runs of up to 100,000 images take and cost.

mod chart;
mod copying;
mod ecr;
mod lambda;
mod mirror;
mod model;
mod planning;
mod report;
mod starting;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Measures ecr-transfer, alone and against other tools")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Update the measured parts of this page, and the picture next to it.
    #[arg(long, global = true)]
    markdown: Option<PathBuf>,
    /// Fail if a goal is missed.
    #[arg(long, global = true)]
    check: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Copy the same images with ecr-transfer and with other tools.
    Copying(copying::Arguments),
    /// Let list-images plan large registries.
    Planning(planning::Arguments),
    /// Start each Lambda function.
    Starting(starting::Arguments),
    /// Compute what runs of up to 100,000 images take and cost.
    Model,
    /// Run the commands of `ecr-transfer mirror`, and its webhook, with 100,000 images.
    Mirror(mirror::Arguments),
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "this is a command, and its result")]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { command, markdown, check } = Arguments::parse();
    let report = match command {
        Command::Copying(arguments) => copying::measure(&arguments).await?,
        Command::Planning(arguments) => planning::measure(&arguments).await?,
        Command::Starting(arguments) => starting::measure(&arguments).await?,
        Command::Model => model::report(),
        Command::Mirror(arguments) => mirror::measure(&arguments).await?,
    };
    println!("{report}");
    if let Some(page) = markdown {
        report.update(&page)?;
    }
    let failed = check && !report.goals.iter().all(|goal| goal.met);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Progress goes to standard error, so that standard output has the results alone.
#[expect(clippy::print_stderr, reason = "this is a command")]
fn progress(text: &str) {
    eprintln!("{text}");
}
