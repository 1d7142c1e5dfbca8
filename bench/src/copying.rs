//! How ecr-transfer compares with other tools: the same images, from and to the same registries, behind the same proxy.

mod page;
mod site;
mod tools;
mod usage;

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use self::{
    site::{Site, Traffic},
    tools::Tool,
    usage::{Sampler, Usage},
};
use crate::{
    progress,
    report::{Report, median},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// The images that are copied.
    #[arg(long, value_enum, default_value = "large")]
    set: Set,
    /// Rounds; of each tool and job, the one with the median time is reported.
    #[arg(long, default_value = "3")]
    runs: NonZeroUsize,
    /// Milliseconds that each request to a registry is delayed; several values are measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 30])]
    latency_ms: Vec<u64>,
    /// The tools, as far as they are on the PATH.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Tool::value_variants().to_vec())]
    tools: Vec<Tool>,
    /// A stack parameter that does not have its default value, as name=value; may be repeated.
    #[arg(long = "parameter", value_parser = pair)]
    parameters: Vec<(String, String)>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Set {
    /// 60 images in 40 repositories, half of them for two platforms, with layers of up to 30 MB.
    Large,
    /// 1,000 small images in 100 repositories.
    Small,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Job {
    Cold,
    Nothing,
    OneChanged,
}

impl Job {
    const ALL: [Self; 3] = [Self::Cold, Self::Nothing, Self::OneChanged];

    fn name(self) -> &'static str {
        match self {
            Self::Cold => "Cold copy",
            Self::Nothing => "Nothing to do",
            Self::OneChanged => "One image changed",
        }
    }
}

struct Row {
    /// Milliseconds.
    latency: u64,
    job: Job,
    tool: Tool,
    time: Duration,
    traffic: Traffic,
    /// Of a cold copy: the bytes from the source, over those of all different layers and configurations.
    over_unique: Option<f64>,
    /// Fargate tasks that were started, or that the tool would take.
    tasks: u64,
    usage: Usage,
}

pub async fn measure(arguments: &Arguments) -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let mut site = Site::start(arguments, directory.path()).await?;
    let mut tools: Vec<_> = arguments.tools.iter().copied().filter(|tool| tool.is_here()).collect();
    let mut rows = Vec::new();
    for &latency in &arguments.latency_ms {
        site.set_latency(Duration::from_millis(latency));
        let mut all = Vec::new();
        for _ in 0..arguments.runs.get() {
            // Round by round: if the machine slows down, it does so for all tools.
            for tool in tools.clone() {
                match round(&mut site, tool, latency).await {
                    Ok(measured) => all.extend(measured),
                    // It may be of a version that is configured in another way.
                    Err(error) if tool.is_optional() => {
                        progress(&format!("{} is left out: {error:#}", tool.name()));
                        tools.retain(|other| *other != tool);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for job in Job::ALL {
            for &tool in &tools {
                let runs = all.extract_if(.., |row| (row.job, row.tool) == (job, tool)).collect();
                rows.push(median(runs, |row: &Row| row.time));
            }
        }
    }
    site.stop().await;
    Ok(page::report(&rows, &arguments.latency_ms, arguments.runs))
}

/// One job after the other, beginning with an empty destination.
async fn round(site: &mut Site, tool: Tool, latency: u64) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    site.clear(tool).await?;
    let unique_bytes = site.unique_bytes().await?;
    for job in Job::ALL {
        if job == Job::OneChanged {
            site.change_one().await?;
        }
        let mut row = run(site, tool, job, latency).await?;
        site.check(tool).await?;
        if job == Job::Cold {
            let kept = "copied less than all layers, so something was kept from an earlier round";
            ensure!(row.traffic.bytes >= unique_bytes, "{} {kept}", tool.name());
            row.over_unique = Some(row.traffic.bytes as f64 / unique_bytes as f64);
        }
        progress(&format!(
            "{latency:>3} ms  {:<18} {:<34} {:>7.2} s  {:>6} requests  {:>6.0} MB",
            job.name(),
            tool.name(),
            row.time.as_secs_f64(),
            row.traffic.requests(),
            row.traffic.bytes as f64 / 1e6,
        ));
        rows.push(row);
    }
    Ok(rows)
}

async fn run(site: &Site, tool: Tool, job: Job, latency: u64) -> Result<Row> {
    let (tasks, calls) = (site.tasks(), site.calls());
    site.reset_traffic();
    let sampler = Sampler::start();
    let started = Instant::now();
    tool.run(site).await?;
    let time = started.elapsed();
    let usage = sampler.stop();
    let traffic = site.traffic(calls);
    let tasks = tool.tasks(site).unwrap_or(site.tasks() - tasks);
    Ok(Row { latency, job, tool, time, traffic, over_unique: None, tasks, usage })
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}
