//! How long list-images takes to plan large registries, with how much memory and how many calls.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shared::plan::Summary;

use crate::{
    ecr::{Conditions, PAGE, Registries, registry, repository_name, tag},
    lambda::{Invocation, Lambda},
    progress,
    report::{Goal, NOTHING, Report, circumstances, count, mebibytes, median, table},
};

/// The size of the registry that has goals.
const LARGE: usize = 100_000;

#[derive(clap::Args)]
pub struct Arguments {
    /// The binary of list-images.
    #[arg(long, default_value = ".aws-sam/build/ListImagesFunction/bootstrap")]
    lambda: PathBuf,
    /// Runs of each scenario; the one with the median time is reported.
    #[arg(long, default_value = "3")]
    runs: NonZeroUsize,
    /// Milliseconds that each AWS call takes.
    #[arg(long, default_value_t = 30)]
    latency_ms: u64,
    /// The share of ECR calls that are throttled, from 0 to 1.
    #[arg(long, default_value_t = 0.01)]
    throttled: f64,
}

/// A source registry, and what the destination has of it.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    repositories: usize,
    /// In each repository.
    images: usize,
    asked: Asked,
    destination: Destination,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Asked {
    WholeRegistry,
    /// Each image by its reference.
    References,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Destination {
    Same,
    /// The same tags, with other digests.
    Changed,
    /// No repository.
    Empty,
}

struct Row {
    scenario: Scenario,
    run: Invocation,
    summary: Summary,
}

impl Scenario {
    fn all() -> Vec<Self> {
        use Destination::{Changed, Empty, Same};
        let whole =
            |repositories, images, destination| Self { repositories, images, destination, asked: Asked::WholeRegistry };
        let sizes = [10, 100, 1_000].into_iter();
        let mut all: Vec<_> = sizes
            .flat_map(|repositories| [Same, Changed, Empty].map(|there| whole(repositories, 100, there)))
            .collect();
        all.push(whole(100, 1_000, Same));
        all.push(Self { asked: Asked::References, ..whole(750, 100, Same) });
        all
    }

    fn name(&self) -> &'static str {
        match (self.asked, self.destination) {
            (Asked::References, _) => "list of references",
            (_, Destination::Same) => "nothing changed",
            (_, Destination::Changed) => "everything changed",
            (_, Destination::Empty) => "everything new",
        }
    }

    fn all_images(&self) -> usize {
        self.repositories * self.images
    }

    fn to_copy(self) -> usize {
        if self.destination == Destination::Same { 0 } else { self.all_images() }
    }

    fn is_large(&self) -> bool {
        self.all_images() == LARGE
    }

    /// Both logins, the source's repositories, each repository's images at both ends (one call where there is no
    /// repository), and the plan. For references, the number depends on how they are looked up.
    fn fewest_calls(&self) -> Option<usize> {
        let pages = self.images.div_ceil(PAGE);
        let there = if self.destination == Destination::Empty { 1 } else { pages };
        let plan = usize::from(self.to_copy() > 0);
        let calls = 2 + self.repositories.div_ceil(PAGE) + self.repositories * (pages + there) + plan;
        (self.asked == Asked::WholeRegistry).then_some(calls)
    }

    fn registries(&self) -> Registries {
        let source = registry(self.repositories, self.images, 0);
        let destination = match self.destination {
            Destination::Same => source.clone(),
            Destination::Changed => registry(self.repositories, self.images, 1),
            Destination::Empty => registry(0, 0, 0),
        };
        Registries { source, destination }
    }

    fn payload(&self) -> Value {
        let references = |repository| {
            let name = repository_name(repository);
            (0..self.images).map(move |image| format!("{name}:{}", tag(image)))
        };
        let input = match self.asked {
            Asked::WholeRegistry => json!({}),
            Asked::References => {
                let all: Vec<_> = (0..self.repositories).flat_map(references).collect();
                json!({ "srcImageList": all.join(",") })
            }
        };
        json!({ "execution": "bench", "input": input })
    }

    async fn run(&self, lambda: &Path, registries: &Arc<Registries>, usual: Conditions) -> Result<Row> {
        let conditions = if self.asked == Asked::References { Conditions::IDEAL } else { usual };
        let function = Lambda::start(registries, conditions, &self.payload()).await?;
        let endpoint = [("AWS_ENDPOINT_URL", format!("http://{}", function.address))];
        let run = function.invoke(&[lambda], &endpoint).await?;
        let summary: Summary =
            serde_json::from_slice(&run.answer).with_context(|| String::from_utf8_lossy(&run.answer).into_owned())?;
        let found = (summary.listed, summary.unchanged, summary.to_copy);
        let expected = (self.all_images(), self.all_images() - self.to_copy(), self.to_copy());
        ensure!(found == expected, "{self:?}: listed, unchanged, to copy are {found:?} instead of {expected:?}");
        Ok(Row { scenario: *self, run, summary })
    }
}

impl Row {
    /// Of references, only reading them is measured: until images are first asked for.
    fn time(&self) -> Duration {
        let ended = match self.scenario.asked {
            Asked::WholeRegistry => self.run.ended,
            Asked::References => self.run.record.first_images.unwrap_or(self.run.ended),
        };
        ended.duration_since(self.run.began)
    }

    fn calls(&self) -> usize {
        self.run.record.calls.values().sum()
    }

    /// In percent of the fewest calls.
    fn calls_over(&self) -> f64 {
        self.scenario.fewest_calls().map_or(0.0, |fewest| (self.calls() as f64 / fewest as f64 - 1.0) * 100.0)
    }
}

pub async fn measure(arguments: &Arguments) -> Result<Report> {
    let Arguments { lambda, runs, latency_ms, throttled } = arguments;
    let usual = Conditions { latency: Duration::from_millis(*latency_ms), throttled: *throttled };
    let mut rows = Vec::new();
    for scenario in Scenario::all() {
        let registries = Arc::new(scenario.registries());
        let mut measured = Vec::new();
        for _ in 0..runs.get() {
            measured.push(scenario.run(lambda, &registries, usual).await?);
        }
        let row = median(measured, Row::time);
        progress(&format!("{}, {}: {:.2?}", scenario.name(), count(scenario.all_images()), row.time()));
        rows.push(row);
    }
    let circumstances = format!(
        "Each AWS call takes {latency_ms} ms, and {} % of the ECR calls are throttled; 0 for the list of references. {}",
        throttled * 100.0,
        circumstances(runs)
    );
    let parts = vec![("scenarios", scenarios(&rows)), ("circumstances", circumstances)];
    Ok(Report { parts, goals: goals(&rows), picture: None })
}

fn scenarios(rows: &[Row]) -> String {
    let header = [
        "Scenario",
        "Images",
        "Repositories",
        "Time",
        "Peak memory",
        "AWS calls",
        "Fewest",
        "Throttled",
        "Batches",
        "Plan",
    ];
    table(
        header,
        rows.iter().map(|row| {
            let Row { scenario, run, summary } = row;
            let plan = mebibytes(run.record.plan as u64);
            [
                scenario.name().to_owned(),
                count(scenario.all_images()),
                count(scenario.repositories),
                format!("{:.2} s", row.time().as_secs_f64()),
                format!("{:.0} MiB", mebibytes(run.peak_memory)),
                count(row.calls()),
                scenario.fewest_calls().map_or_else(|| NOTHING.to_owned(), count),
                count(run.record.throttled),
                count(summary.batches),
                if run.record.plan == 0 { NOTHING.to_owned() } else { format!("{plan:.1} MiB") },
            ]
        }),
    )
}

fn goals(rows: &[Row]) -> Vec<Goal> {
    let worst = |concerns: &dyn Fn(&Scenario) -> bool, number: &dyn Fn(&Row) -> f64| {
        rows.iter().filter(|row| concerns(&row.scenario)).map(number).fold(0.0, f64::max)
    };
    let seconds = |row: &Row| row.time().as_secs_f64();
    let memory = |row: &Row| mebibytes(row.run.peak_memory);
    let is_unchanged = |scenario: &Scenario| scenario.is_large() && scenario.to_copy() == 0;
    let are_references = |scenario: &Scenario| scenario.asked == Asked::References;
    let large = &Scenario::is_large;
    vec![
        Goal::at_most("100,000 images", 8.0, worst(large, &seconds), "s"),
        Goal::at_most("100,000 images, peak memory", 128.0, worst(large, &memory), "MiB"),
        Goal::at_most("100,000 images, nothing changed, peak memory", 64.0, worst(&is_unchanged, &memory), "MiB"),
        Goal::at_most("100,000 images, calls above the fewest", 5.0, worst(large, &Row::calls_over), "%"),
        Goal::at_most("Reading 75,000 references", 0.5, worst(&are_references, &seconds), "s"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_calls_are_counted_by_pages() {
        let fewest = |repositories, images, destination| {
            Scenario { repositories, images, destination, asked: Asked::WholeRegistry }.fewest_calls()
        };
        assert_eq!(fewest(10, 100, Destination::Same), Some(2 + 1 + 20));
        assert_eq!(fewest(10, 100, Destination::Changed), Some(2 + 1 + 20 + 1));
        assert_eq!(fewest(1_001, 1_001, Destination::Same), Some(2 + 2 + 1_001 * 4));
        assert_eq!(fewest(1_001, 1_001, Destination::Empty), Some(2 + 2 + 1_001 * 3 + 1));
    }

    #[test]
    fn a_list_names_each_image_once() {
        let scenario =
            Scenario { repositories: 2, images: 2, asked: Asked::References, destination: Destination::Same };
        let names = "team-1/service-1:v1,team-1/service-1:v2,team-1/service-2:v1,team-1/service-2:v2";
        assert_eq!(scenario.payload()["input"]["srcImageList"], names);
        assert_eq!(scenario.fewest_calls(), None);
    }
}
