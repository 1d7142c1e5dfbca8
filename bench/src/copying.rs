//! How ecr-transfer compares with what a user would take instead: the same images, from and to the same registries, behind
//! the same proxy.

mod page;
mod site;
mod tools;
mod usage;

use std::{path::Path, time::Duration};

use clap::ValueEnum;

pub use self::{page::Report, tools::Tool};
use self::{
    site::Site,
    usage::{Sampler, Usage},
};
use crate::{
    error::{Error, Result},
    measure::median,
};

/// What is copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Set {
    /// 60 images in 40 repositories, half of them for two platforms, with layers of up to 30 MB.
    Large,
    /// 1,000 small images in 100 repositories.
    Small,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Job {
    /// The destination has nothing yet.
    Cold,
    /// It has everything.
    Nothing,
    /// The source has another image for one tag.
    OneChanged,
}

impl Job {
    const ALL: [Self; 3] = [Self::Cold, Self::Nothing, Self::OneChanged];

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "Cold copy",
            Self::Nothing => "Nothing to do",
            Self::OneChanged => "One image changed",
        }
    }
}

/// What a job took.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// From the start of the tool, or of the execution, to its end.
    pub time: Duration,
    /// Requests to the source: of manifests, and of all else.
    pub source: (u64, u64),
    /// Requests to the destination's registry: of manifests, of blobs, and of uploads.
    pub destination: (u64, u64, u64),
    /// Calls of ECR's API.
    pub calls: u64,
    /// Bytes that came from the source.
    pub bytes: u64,
    /// Fargate tasks that were started, or would have been.
    pub tasks: u64,
    /// What the processes took.
    pub usage: Usage,
}

impl Measurement {
    /// All requests, and calls of ECR's API.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let (manifests, blobs, uploads) = self.destination;
        self.source.0 + self.source.1 + manifests + blobs + uploads + self.calls
    }
}

/// A tool at a job: the median of its runs.
pub struct Row {
    /// How long each request is delayed, in milliseconds.
    pub latency: u64,
    /// What was done.
    pub job: Job,
    /// By whom.
    pub tool: Tool,
    /// What it took.
    pub measured: Measurement,
}

/// How it is measured.
pub struct Settings<'a> {
    /// What is copied.
    pub set: Set,
    /// How often.
    pub runs: usize,
    /// How many milliseconds each request to a registry takes, besides its own time.
    pub latencies: &'a [u64],
    /// By whom; those that are not on this machine are left out.
    pub tools: &'a [Tool],
    /// Parameters of the stack that have another value than their default.
    pub parameters: &'a [(String, String)],
}

/// Measures all tools at all jobs.
///
/// # Errors
/// If the local AWS does not start, or a tool does not copy what it should.
pub async fn measure(settings: &Settings<'_>, directory: &Path) -> Result<Vec<Row>> {
    let mut site = Site::start(settings, directory).await?;
    let mut tools: Vec<_> = settings.tools.iter().copied().filter(|tool| tool.is_here()).collect();
    let bar = crate::progress(settings.latencies.len() * settings.runs * tools.len() * Job::ALL.len());
    let mut rows = Vec::new();
    for &latency in settings.latencies {
        site.set_latency(Duration::from_millis(latency));
        let mut all: Vec<(Job, Tool, Measurement)> = Vec::new();
        for _ in 0..settings.runs {
            // Each tool once, and then each again: a machine that slows down does so for all of them.
            for tool in tools.clone() {
                bar.set_message(format!("{latency} ms, {}", tool.name()));
                let report = |job, measured: &Measurement| {
                    bar.suspend(|| tell(latency, job, tool, measured));
                    bar.inc(1);
                };
                match all_jobs(&mut site, tool, report).await {
                    Ok(measured) => all.extend(measured.into_iter().map(|(job, measured)| (job, tool, measured))),
                    // Whatever version of it is on this machine.
                    Err(error) if tool.is_optional() => {
                        bar.suspend(|| crate::say(&format!("{} is left out: {error}", tool.name())));
                        tools.retain(|other| *other != tool);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for job in Job::ALL {
            for &tool in &tools {
                let runs = all.iter().filter(|(its, of, _)| (*its, *of) == (job, tool)).map(|(.., run)| run);
                let median = median(runs.collect(), |run| run.time).cloned();
                rows.extend(median.map(|measured| Row { latency, job, tool, measured }));
            }
        }
    }
    bar.finish_and_clear();
    site.stop().await;
    Ok(rows)
}

/// One job after the other, beginning with an empty destination.
async fn all_jobs(site: &mut Site, tool: Tool, report: impl Fn(Job, &Measurement)) -> Result<Vec<(Job, Measurement)>> {
    let mut all = Vec::new();
    site.clear(tool).await?;
    for job in Job::ALL {
        if job == Job::OneChanged {
            site.change_one().await?;
        }
        let measured = run(site, tool).await?;
        site.check(tool).await?;
        if job == Job::Cold && measured.bytes < site.bytes / 10 * 9 {
            let (moved, all) = (measured.bytes, site.bytes);
            return Err(Error::Wrong(format!("{} found something there: {moved} of {all} bytes", tool.name())));
        }
        report(job, &measured);
        all.push((job, measured));
    }
    Ok(all)
}

async fn run(site: &Site, tool: Tool) -> Result<Measurement> {
    let before = site.tasks();
    let calls = site.calls();
    site.reset_traffic();
    let sampler = Sampler::start();
    let started = std::time::Instant::now();
    tool.run(site).await?;
    let time = started.elapsed();
    let usage = sampler.stop();
    let (source, destination, bytes) = site.traffic();
    let tasks = if tool.is_ours() { site.tasks() - before } else { tool.tasks(site) };
    Ok(Measurement { time, source, destination, calls: site.calls() - calls, bytes, tasks, usage })
}

fn tell(latency: u64, job: Job, tool: Tool, measured: &Measurement) {
    crate::say(&format!(
        "{latency:>3} ms  {:<18} {:<34} {:>7.2} s  {:>6} requests  {:>6.0} MB",
        job.name(),
        tool.name(),
        measured.time.as_secs_f64(),
        measured.requests(),
        measured.bytes as f64 / 1e6,
    ));
}
