//! The results: tables on the terminal and on a page, and a picture.

use std::{fmt::Write as _, path::Path};

use super::{Job, Measurement, Row, Set, Tool};
use crate::{
    bars::rectangle,
    chart::{open, text},
    error::Result,
    grid::{self, Grid, count, duration},
    model::{ARM, DEFAULTS, LEAST_BILLED, USUAL},
    report::machine,
};

/// All that was measured, with one set of images.
pub struct Report {
    /// The set.
    pub set: Set,
    /// The medians.
    pub rows: Vec<Row>,
    /// Of how many runs.
    pub runs: usize,
}

/// A goal, and what was measured.
struct Goal {
    what: &'static str,
    measured: String,
    met: bool,
}

impl Report {
    /// Prints it.
    #[expect(clippy::print_stdout, reason = "this is a command, and its result")]
    pub fn print(&self) {
        for latency in self.latencies() {
            println!("{latency} ms for each request\n{}\n", self.table(latency).terminal());
        }
        println!("{}", self.goals_table().terminal());
    }

    /// Writes the page, and the picture next to it.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, page: &Path) -> Result<()> {
        grid::write(page, |picture| self.page(picture), self.picture())
    }

    /// Whether all goals are met.
    #[must_use]
    pub fn all_met(&self) -> bool {
        self.goals().iter().all(|goal| goal.met)
    }

    fn latencies(&self) -> Vec<u64> {
        let mut all: Vec<_> = self.rows.iter().map(|row| row.latency).collect();
        all.dedup();
        all
    }

    fn page(&self, picture: &str) -> String {
        let mut tables = String::new();
        for latency in self.latencies() {
            let title =
                if latency == 0 { "Without latency".to_owned() } else { format!("{latency} ms for each request") };
            let _ = write!(tables, "### {title}\n\n{}\n", self.table(latency).markdown());
        }
        let text = match self.set {
            Set::Large => include_str!("page-large.md"),
            Set::Small => include_str!("page-small.md"),
        };
        text.replace("{picture}", picture)
            .replace("{goals}", &self.goals_table().markdown())
            .replace("{tables}", &tables)
            .replace("{legend}", include_str!("legend.md"))
            .replace("{runs}", &self.runs.to_string())
            .replace("{machine}", &machine())
    }

    fn table(&self, latency: u64) -> Grid {
        let header = [
            "",
            "Time",
            "to skopeo sync",
            "Requests",
            "source",
            "destination",
            "AWS",
            "MB",
            "Tasks",
            "CPU",
            "Memory",
            "On Fargate",
            "Cost",
        ];
        let rows: Vec<_> = self.rows.iter().filter(|row| row.latency == latency).collect();
        Grid::new(header, &rows, |row| {
            let it = &row.measured;
            let (manifests, blobs, uploads) = it.destination;
            let sync = self.find(latency, row.job, Tool::SkopeoSync).map(|sync| sync.measured.time.as_secs_f64());
            let ratio = sync.map_or_else(String::new, |sync| format!("{:.2}", it.time.as_secs_f64() / sync));
            let (time, cost) = on_fargate(it);
            vec![
                format!("{}: {}", row.job.name(), row.tool.name()),
                format!("{:.1} s", it.time.as_secs_f64()),
                ratio,
                count(usize::try_from(it.requests()).unwrap_or(usize::MAX)),
                format!("{} + {}", it.source.0, it.source.1),
                format!("{manifests} + {blobs} + {uploads}"),
                it.calls.to_string(),
                format!("{:.0}", it.bytes as f64 / 1e6),
                it.tasks.to_string(),
                format!("{:.1} s", it.usage.cpu),
                format!("{:.0} MB", it.usage.memory as f64 / 1e6),
                duration(time),
                format!("${cost:.4}"),
            ]
        })
    }

    fn find(&self, latency: u64, job: Job, tool: Tool) -> Option<&Row> {
        self.rows.iter().find(|row| (row.latency, row.job, row.tool) == (latency, job, tool))
    }

    fn goals(&self) -> Vec<Goal> {
        let Some(latency) = self.latencies().into_iter().max() else { return Vec::new() };
        let ours = |job| self.find(latency, job, Tool::EcrTransfer).map(|row| &row.measured);
        let peers =
            |job| self.rows.iter().filter(move |row| (row.latency, row.job) == (latency, job) && !row.tool.is_ours());
        let (Some(cold), Some(nothing), Some(changed)) = (ours(Job::Cold), ours(Job::Nothing), ours(Job::OneChanged))
        else {
            return Vec::new();
        };
        if peers(Job::Cold).next().is_none() {
            return Vec::new();
        }
        let fewest = peers(Job::Nothing).map(|row| row.measured.requests()).min().unwrap_or_default();
        let against = |what, job, ours: &Measurement, is_met: fn(f64, f64) -> bool| {
            let ours = ours.time.as_secs_f64();
            let fastest = peers(job).map(|row| row.measured.time.as_secs_f64()).fold(f64::INFINITY, f64::min);
            let measured = format!("{ours:.1} s, and the fastest of the others {fastest:.1} s");
            Goal { what, measured, met: is_met(ours, fastest) }
        };
        let sync = self.find(latency, Job::Cold, Tool::SkopeoSync).map_or(0.0, |row| row.measured.time.as_secs_f64());
        let ratio = sync / cold.time.as_secs_f64();
        vec![
            Goal {
                what: "Nothing to do: no task",
                measured: format!("{} tasks", nothing.tasks),
                met: nothing.tasks == 0,
            },
            Goal {
                what: "Nothing to do: fewer requests than any other",
                measured: format!("{}, and the fewest of the others {fewest}", nothing.requests()),
                met: nothing.requests() < fewest,
            },
            against("Nothing to do: faster than any other", Job::Nothing, nothing, |ours, others| ours < others),
            Goal {
                what: "One image changed: one task",
                measured: format!("{} tasks", changed.tasks),
                met: changed.tasks == 1,
            },
            Goal {
                what: "Cold copy: three times as fast as skopeo sync",
                measured: format!("{ratio:.1} times"),
                met: ratio >= 3.0,
            },
            against("Cold copy: not slower than the fastest other", Job::Cold, cold, |ours, others| ours <= others),
        ]
    }

    fn goals_table(&self) -> Grid {
        Grid::new(["Goal, with the longest latency", "Measured", "Result"], &self.goals(), |goal| {
            vec![goal.what.to_owned(), goal.measured.clone(), if goal.met { "met" } else { "missed" }.to_owned()]
        })
    }

    /// A panel for each job, with a bar for each tool.
    fn picture(&self) -> String {
        const STEP: f64 = 26.0;
        const LEFT: f64 = 250.0;
        const LONGEST: f64 = 480.0;
        let latency = self.latencies().into_iter().max().unwrap_or_default();
        let jobs = Job::ALL.map(|job| {
            (job, self.rows.iter().filter(|row| (row.latency, row.job) == (latency, job)).collect::<Vec<_>>())
        });
        let height: f64 = jobs.iter().map(|(_, rows)| 50.0 + STEP * rows.len() as f64).sum();
        let mut svg = open((860.0, height + 20.0), "Time of each tool for each job");
        let mut top = 34.0;
        for (job, rows) in jobs {
            let most = rows.iter().map(|row| row.measured.time.as_secs_f64()).fold(f64::MIN_POSITIVE, f64::max);
            svg += &text("title", (24.0, top), &format!("{}, {latency} ms for each request", job.name()));
            for row in rows {
                top += STEP;
                let time = row.measured.time.as_secs_f64();
                let class = if row.tool.is_ours() { "same" } else { "changed" };
                svg += &text("end", (LEFT - 10.0, top), row.tool.name());
                svg += &rectangle(class, (LEFT, top - 12.0), (LONGEST * time / most).max(1.0), 16.0);
                svg += &text("", (LEFT + LONGEST * time / most + 8.0, top), &format!("{time:.1} s"));
            }
            top += 50.0;
        }
        svg + "</svg>\n"
    }
}

/// How long it would take on Fargate, and what that would cost: of the tasks, so many at once, each starts, and copies for
/// its share of the time; at least a minute of it is billed.
fn on_fargate(it: &Measurement) -> (f64, f64) {
    let time = it.time.as_secs_f64();
    let tasks = it.tasks as f64;
    if tasks == 0.0 {
        return (time, 0.0);
    }
    let at_once = DEFAULTS.tasks as f64;
    let each = USUAL.start + time * tasks.min(at_once) / tasks;
    let rounds = (tasks / at_once).ceil();
    (rounds * USUAL.start + time, tasks * each.max(LEAST_BILLED) * ARM.second(&DEFAULTS))
}
