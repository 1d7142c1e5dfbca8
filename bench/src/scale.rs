//! The page on scale: what runs of 100 to 100,000 images take and cost, and which of AWS's limits they come near first.
//! `scale.md` has the words, and this the numbers.

use std::path::Path;

use crate::{
    error::Result,
    grid::{Grid, count, dollars, duration, percent, write_page},
    model::{ARM, DEFAULTS, Model, REQUESTS, Run, Settings, USUAL},
    packing::{Images, Packing, WORTH_A_TASK},
};

/// How many images a run copies.
const SIZES: [usize; 3] = [100, 10_000, 100_000];

/// Images in each repository.
const EACH: usize = 100;

/// What an image of one platform has, in bytes and in layers; one for two platforms is two of them and an index.
const BYTES: u64 = 20_000_000;
const LAYERS: usize = 5;

/// Much more than the defaults, where AWS has granted it.
const LARGEST: Settings = Settings { tasks: 100, copies: 8, put_image_rate: 100.0, ..DEFAULTS };

/// A limit that AWS sets for an account in a region, unless it grants another.
struct Quota {
    name: &'static str,
    limit: f64,
    /// How much of it a run takes.
    taken: fn(&Row) -> f64,
}

const QUOTAS: [Quota; 4] = [
    Quota {
        name: "PutImage a second",
        limit: 10.0,
        taken: |row| row.a_second(row.images.count() * row.images.manifests),
    },
    Quota {
        name: "InitiateLayerUpload a second",
        limit: 100.0,
        taken: |row| row.a_second(row.images.count() * platforms(&row.images) * (LAYERS + 1)),
    },
    Quota { name: "Fargate's vCPUs", limit: 6.0, taken: |row| row.at_once() as f64 * row.settings.vcpus },
    Quota { name: "RunTask a second", limit: 20.0, taken: |row| row.at_once() as f64 },
];

/// Prices in us-east-1, in dollars: of a public address for a second, a transition, a GB-second of a function on ARM, and a
/// written item.
const ADDRESS: f64 = 0.005 / 3_600.0;
const TRANSITION: f64 = 0.000_025;
const FUNCTION: f64 = 0.000_013_333_4;
const WRITE: f64 = 0.625e-6;

/// The transitions of a run, and those of a batch.
const TRANSITIONS: (usize, usize) = (10, 4);
/// The GB-seconds of listing, for each image; and those of starting and recording a batch.
const LISTING: f64 = 4.0 / 10_000.0;
const BATCH: f64 = 2.0 * 2.0 * 0.25;

/// A run.
struct Row {
    images: Images,
    settings: Settings,
    run: Run,
}

impl Row {
    fn new(number: usize, manifests: usize, settings: Settings) -> Self {
        let repositories = number / EACH;
        let mut images = Images { repositories, each: EACH, bytes: BYTES, manifests };
        images.bytes *= platforms(&images) as u64;
        let batches = images.pack(Packing::ListImages(WORTH_A_TASK), settings.tasks);
        let run = Model { settings, ..USUAL }.run(&batches, &images);
        Self { images, settings, run }
    }

    /// The tasks that run at the same time; all of them are asked for at once.
    fn at_once(&self) -> usize {
        self.run.tasks.min(self.settings.tasks)
    }

    fn a_second(&self, number: usize) -> f64 {
        number as f64 / (self.run.time - USUAL.start)
    }

    /// All that it costs but the transfer.
    fn cost(&self) -> f64 {
        let (images, batches) = (self.images.count() as f64, self.run.tasks as f64);
        let (of_run, of_batch) = TRANSITIONS;
        self.run.billed * (ARM.second(&self.settings) + ADDRESS)
            + (of_run as f64 + of_batch as f64 * batches) * TRANSITION
            + (images * LISTING + batches * BATCH) * FUNCTION
            + (images + 2.0 * batches) * WRITE
    }

    fn name(&self) -> String {
        let kind = if self.images.manifests == 1 { "one platform" } else { "two platforms" };
        format!("{}, {kind}", count(self.images.count()))
    }

    /// The limit that it is the nearest to, or the farthest beyond.
    fn first(&self) -> String {
        let share = |quota: &Quota| (quota.taken)(self) / quota.limit;
        QUOTAS
            .iter()
            .max_by(|a, b| share(a).total_cmp(&share(b)))
            .map_or_else(String::new, |quota| format!("{}: {}", quota.name, percent(share(quota))))
    }
}

/// An index has a manifest for each of its platforms, and its own.
fn platforms(images: &Images) -> usize {
    images.manifests.saturating_sub(1).max(1)
}

fn rows(settings: Settings) -> Vec<Row> {
    [1, 3].into_iter().flat_map(|manifests| SIZES.map(|number| Row::new(number, manifests, settings))).collect()
}

/// A local run, and the same one without latency.
struct Check {
    what: &'static str,
    /// The seconds that it took, without latency and with 30 ms for each request.
    without: f64,
    with: f64,
    /// All manifests that were copied.
    manifests: usize,
    /// How many images were copied at once.
    at_once: usize,
}

/// From the pages that compare: medians.
const CHECKS: [Check; 2] = [
    Check { what: "60 images, in 2 tasks", without: 15.5, with: 18.2, manifests: 120, at_once: 2 * DEFAULTS.copies },
    Check {
        what: "1,000 images, in 17 tasks",
        without: 62.7,
        with: 71.2,
        manifests: 1_000,
        at_once: 10 * DEFAULTS.copies,
    },
];

impl Check {
    /// What the model makes of the run without latency: each copy waits as often as the model says, and shares the wait
    /// with those that are copied at the same time.
    fn worked_out(&self) -> f64 {
        self.without + self.manifests as f64 * REQUESTS * 0.03 / self.at_once as f64
    }

    /// By which share that is too long.
    fn over(&self) -> f64 {
        self.worked_out() / self.with - 1.0
    }
}

/// Everything that the page says.
pub struct Report {
    defaults: Vec<Row>,
    largest: Vec<Row>,
}

impl Report {
    /// Works everything out.
    #[must_use]
    pub fn new() -> Self {
        Self { defaults: rows(DEFAULTS), largest: rows(LARGEST) }
    }

    /// Prints all tables.
    #[expect(clippy::print_stdout, reason = "this is what the command prints")]
    pub fn print(&self) {
        for table in [runs(&self.defaults), runs(&self.largest), quotas(&self.largest), checks()] {
            println!("{}", table.terminal());
        }
    }

    /// Writes the page.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, page: &Path) -> Result<()> {
        write_page(page, &self.page())
    }

    fn page(&self) -> String {
        format!(
            include_str!("scale.md"),
            defaults = runs(&self.defaults).markdown(),
            largest = runs(&self.largest).markdown(),
            quotas = quotas(&self.largest).markdown(),
            checks = checks().markdown(),
            megabytes = BYTES / 1_000_000,
            layers = LAYERS,
            each = EACH,
            tasks = DEFAULTS.tasks,
            copies = DEFAULTS.copies,
            rate = DEFAULTS.put_image_rate,
            many_tasks = LARGEST.tasks,
            many_copies = LARGEST.copies,
            many_rate = LARGEST.put_image_rate,
            largest_time = duration(self.largest.iter().map(|row| row.run.time).fold(0.0, f64::max)),
            requests = REQUESTS,
        )
    }
}

fn runs(rows: &[Row]) -> Grid {
    let header = ["Images", "Manifests", "Tasks", "Time", "Cost", "Nearest limit"];
    Grid::new(header, rows, |row| {
        let manifests = row.images.count() * row.images.manifests;
        vec![
            row.name(),
            count(manifests),
            count(row.run.tasks),
            duration(row.run.time),
            dollars(row.cost()),
            row.first(),
        ]
    })
}

fn quotas(rows: &[Row]) -> Grid {
    let header: Vec<_> = QUOTAS.iter().map(|quota| format!("{} ({})", quota.name, quota.limit)).collect();
    let header = ["Images"].into_iter().chain(header.iter().map(String::as_str));
    Grid::new(header, rows, |row| {
        let taken = QUOTAS.iter().map(|quota| format!("{:.0}", (quota.taken)(row)));
        [row.name()].into_iter().chain(taken).collect()
    })
}

fn checks() -> Grid {
    let header = ["Cold copy", "Without latency", "30 ms for each request", "Worked out", "Too long by"];
    Grid::new(header, &CHECKS, |check| {
        vec![
            check.what.to_owned(),
            format!("{:.1} s", check.without),
            format!("{:.1} s", check.with),
            format!("{:.1} s", check.worked_out()),
            percent(check.over()),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_near_what_was_measured_and_promises_nothing() {
        for check in &CHECKS {
            assert!((-0.05..0.25).contains(&check.over()), "{}: {}", check.what, check.over());
        }
    }

    #[test]
    fn by_default_no_limit_is_exceeded() {
        for row in rows(DEFAULTS) {
            for quota in &QUOTAS {
                assert!((quota.taken)(&row) <= quota.limit * 1.001, "{}: {}", row.name(), quota.name);
            }
        }
    }

    #[test]
    fn a_thousand_images_are_packed_into_as_many_tasks_as_they_were_when_it_was_measured() {
        let images = Images { repositories: 100, each: 10, bytes: 1_000_000, manifests: 1 };
        assert_eq!(images.pack(Packing::ListImages(WORTH_A_TASK), DEFAULTS.tasks).len(), 17);
    }

    #[test]
    fn a_day_is_enough_for_the_largest_registry() {
        for row in rows(DEFAULTS) {
            assert!(row.run.time < 86_400.0, "{}: {}", row.name(), row.run.time);
        }
    }

    #[test]
    fn the_guide_has_the_cost_of_ten_thousand_images() {
        let guide = include_str!("../../docs/guide.md");
        let row = Row::new(10_000, 1, DEFAULTS);
        let cost = format!("**${:.3}**", row.cost());
        assert!(guide.contains(&cost), "{cost}");
    }

    #[test]
    fn the_page_has_no_row_without_numbers() {
        let page = Report::new().page();
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
