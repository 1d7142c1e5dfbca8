//! What a person reads: the tables on the terminal, and the page with the picture.

use std::{collections::BTreeSet, path::Path};

use crate::{
    chart,
    error::Result,
    fake::Conditions,
    goals::{Goal, Row, mebibytes},
    grid::{self, Grid, NOTHING, count},
    measure::{Answer, Measurement},
};

/// Everything that was measured, and how.
pub struct Report {
    /// All scenarios.
    pub rows: Vec<Row>,
    /// All goals.
    pub goals: Vec<Goal>,
    /// How AWS behaved.
    pub conditions: Conditions,
    /// How often each scenario ran.
    pub runs: usize,
}

impl Report {
    /// Prints all tables.
    #[expect(clippy::print_stdout, reason = "this is what the command prints")]
    pub fn print(&self) {
        for grid in [self.costs(), self.answers(), self.goals()] {
            println!("{}", grid.terminal());
        }
    }

    /// Writes the page, and the picture next to it.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, page: &Path) -> Result<()> {
        grid::write(page, |picture| self.page(picture), chart::draw(&self.rows))
    }

    fn page(&self, picture: &str) -> String {
        let Self { conditions, runs, .. } = self;
        let latency = conditions.latency.as_millis();
        let throttled = conditions.throttled * 100.0;
        format!(
            "# Benchmarks\n\
             \n\
             How list-images plans the copying of a large registry. `make bench` measures it, and writes this page.\n\
             \n\
             ![Time and peak memory from 1,000 to 100,000 images]({picture})\n\
             \n\
             ## Goals\n\
             \n\
             {goals}\n\
             ## What it takes\n\
             \n\
             {costs}\n\
             - **Time**: from the invocation to the answer, without the start of the process. For the list of references,\n  \
               to the first call that asks for images: what it takes to read the list.\n\
             - **Peak memory**: the most that the process ever had resident (`VmHWM`), its code included.\n\
             - **AWS calls**: all of them, throttled ones and their repetitions included.\n\
             - **Fewest**: the fewest with which ECR and S3 let anybody do this, at 1,000 entries a page: both logins, the\n  \
               source's repositories, each repository's images at both ends, and the plan. **Over** is what the calls are\n  \
               above that.\n\
             \n\
             ## What it answered\n\
             \n\
             {answers}\n\
             The answers are checked: a row whose images are not all listed and told apart is a failed one. The last columns\n\
             are the calls by action.\n\
             \n\
             ## How it is measured\n\
             \n\
             The function is the one that is deployed: the release binary, as a process of its own, behind Lambda's Runtime\n\
             API. The AWS that it talks to is simulated, on the same machine and over plain HTTP: each call takes {latency} ms,\n\
             and {throttled} % of ECR's are answered with a ThrottlingException. For the list of references both are 0. A\n\
             registry's images have one tag each. In \"everything changed\" the destination has the same tags with other\n\
             digests; in \"everything new\" it has no repository yet.\n\
             \n\
             Each row is the run with the median time of {runs}, each in a fresh process. The machine: {machine}. A Lambda\n\
             function of 1,024 MB has a bit more than half a core.\n",
            goals = self.goals().markdown(),
            costs = self.costs().markdown(),
            answers = self.answers().markdown(),
            machine = machine(),
        )
    }

    fn costs(&self) -> Grid {
        let header =
            ["Scenario", "Images", "Repositories", "Time", "Peak memory", "AWS calls", "Fewest", "Over", "Throttled"];
        Grid::new(header, &self.rows, |row| {
            let [time, memory, calls, throttled] = numbers(row, |run| {
                [
                    format!("{:.2} s", run.time.as_secs_f64()),
                    format!("{:.0} MiB", mebibytes(run.peak_memory)),
                    count(run.all_calls()),
                    count(run.throttled),
                ]
            });
            let fewest = row.scenario.fewest_calls().map_or_else(|| NOTHING.into(), count);
            let over = row.calls_over().map_or_else(|| NOTHING.into(), |percent| format!("{percent:.1} %"));
            let images = count(row.scenario.expected().listed);
            let repositories = count(row.scenario.looked_at());
            vec![row.scenario.name().into(), images, repositories, time, memory, calls, fewest, over, throttled]
        })
    }

    fn answers(&self) -> Grid {
        let runs = self.rows.iter().filter_map(|row| row.result.as_ref().ok());
        let actions: BTreeSet<_> = runs.flat_map(|run| run.calls.keys().map(String::as_str)).collect();
        let header = ["Scenario", "Repositories", "Listed", "Unchanged", "To copy", "Batches", "Plan"];
        Grid::new(header.into_iter().chain(actions.iter().copied()), &self.rows, |row| {
            let mut cells = vec![row.scenario.name().to_owned(), count(row.scenario.looked_at())];
            cells.extend(numbers(row, |run| {
                let Answer { findings, batches } = run.answer;
                let plan =
                    if run.plan == 0 { NOTHING.into() } else { format!("{:.1} MiB", mebibytes(run.plan as u64)) };
                [count(findings.listed), count(findings.unchanged), count(findings.to_copy), count(batches), plan]
            }));
            cells.extend(actions.iter().map(|&action| {
                let [calls] = numbers(row, |run| [count(run.calls.get(action).copied().unwrap_or_default())]);
                calls
            }));
            cells
        })
    }

    fn goals(&self) -> Grid {
        Grid::new(["Goal", "Limit", "Measured", "Result"], &self.goals, |goal| {
            let measured = goal.measured.clone().unwrap_or_else(|| "failed".into());
            vec![goal.what.clone(), goal.limit.clone(), measured, if goal.met { "met" } else { "missed" }.into()]
        })
    }
}

/// The texts of a row's numbers; the first says so if there are none.
fn numbers<const N: usize>(row: &Row, texts: impl Fn(&Measurement) -> [String; N]) -> [String; N] {
    match &row.result {
        Ok(run) => texts(run),
        Err(_) => std::array::from_fn(|at| if at == 0 { "failed" } else { NOTHING }.into()),
    }
}

/// What all this ran on.
#[must_use]
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or_else(|_| "an unknown number of".into(), |n| n.to_string());
    let kernel = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model_name(&kernel).unwrap_or(std::env::consts::ARCH);
    format!("{cores} cores, {model}")
}

/// The processor's name, from `/proc/cpuinfo`; some architectures have none.
fn model_name(cpuinfo: &str) -> Option<&str> {
    cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_a_name() {
        assert_eq!(model_name("processor\t: 0\nmodel name\t: AMD EPYC\n"), Some("AMD EPYC"));
        assert_eq!(model_name("processor\t: 0\n"), None);
    }
}
