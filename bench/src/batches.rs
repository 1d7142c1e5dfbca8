//! The page on batches: what the model says of batch sizes, and where its figures come from. `batches.md` has the words,
//! and this the numbers.

use std::path::Path;

use crate::{
    bars::{self, Bar, Panel},
    error::Result,
    grid::{self, Grid, NOTHING, count, dollars, duration, percent},
    model::{
        ANSWER, ARM, BYTE_CPU, DEFAULTS, IMAGE_CPU, LEAST_BILLED, Model, REDIRECTS, REQUESTS, ROUND_TRIPS, Run, USUAL,
        X86,
    },
    packing::{COPIES_LIMIT, COPY_OVERHEAD, Images, OVERRIDES, Packing, WORTH_A_TASK, alone, header, line, most},
};

const MEBIBYTE: u64 = 1 << 20;

/// As many small images as in one of the registries of the benchmarks.
const SMALL: Images = Images { repositories: 100, each: 100, bytes: 20_000_000, manifests: 1 };
/// Images as they are made for machine learning.
const LARGE: Images = Images { repositories: 10, each: 10, bytes: 2_000_000_000, manifests: 1 };
/// What a day's builds leave to copy.
const FEW: Images = Images { repositories: 10, each: 5, bytes: 20_000_000, manifests: 1 };

/// The slow network of another continent, in bytes a second.
const SLOW: f64 = 10e6;

/// As list-images packs.
const PACKED: Packing = Packing::ListImages(WORTH_A_TASK);

/// What measuring a copy came to: medians.
struct Measured {
    image: &'static str,
    /// All that both registries were asked.
    requests: usize,
    /// The seconds that it took: without delay, with round trips of 30 ms, and of 60 ms.
    times: Option<[f64; 3]>,
    /// The seconds of a core that skopeo took.
    cpu: f64,
}

const MEASURED: [Measured; 5] = [
    Measured { image: "1 kB in one layer", requests: 15, times: Some([0.09, 1.51, 2.97]), cpu: 0.03 },
    Measured { image: "20 MB in one layer", requests: 15, times: Some([0.22, 1.66, 3.06]), cpu: 0.11 },
    Measured { image: "20 MB in five layers", requests: 39, times: Some([0.24, 1.63, 3.03]), cpu: 0.12 },
    Measured { image: "2 GB in one layer", requests: 15, times: None, cpu: 7.1 },
    Measured { image: "2 GB in five layers", requests: 39, times: None, cpu: 5.6 },
];

impl Measured {
    /// By how many round trips it took longer with longer ones.
    fn round_trips(&self) -> Option<f64> {
        self.times.map(|[without, _, with]| (with - without) / 0.06)
    }
}

/// A way to pack, and what the run comes to.
struct Row {
    packing: Packing,
    batches: Vec<usize>,
    run: Run,
}

/// In the order of the tables.
type Rows = [Row; 6];

/// Everything that the model says.
pub struct Report {
    small: Rows,
    large: Rows,
    few: Rows,
}

impl Report {
    /// Works everything out.
    #[must_use]
    pub fn new() -> Self {
        Self { small: rows(&SMALL), large: rows(&LARGE), few: rows(&FEW) }
    }

    /// Prints all tables.
    #[expect(clippy::print_stdout, reason = "this is what the command prints")]
    pub fn print(&self) {
        for (images, rows) in [(&SMALL, &self.small), (&LARGE, &self.large), (&FEW, &self.few)] {
            println!("{}\n{}", name(images), sizes(rows).terminal());
        }
        println!("{}\n{}\n{}", name(&FEW), worth().terminal(), doubts().terminal());
    }

    /// Writes the page, and the picture next to it.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, page: &Path) -> Result<()> {
        grid::write(page, |picture| self.page(picture), self.picture())
    }

    fn picture(&self) -> String {
        let panel =
            |images: &Images, rows: &[Row]| Panel { title: name(images), bars: rows.iter().map(Row::bar).collect() };
        bars::draw(&[panel(&SMALL, &self.small), panel(&LARGE, &self.large)])
    }

    /// Fills the template in, section by section.
    fn page(&self, picture: &str) -> String {
        let [one, _, twenty, fifty, _, packed] = &self.small;
        let [_, _, idle, .., busy] = &self.large;
        let [each, .., little] = &self.few;
        let slow = Model { bandwidth: SLOW, ..USUAL };
        let worth_moves = |model: &Model| duration(WORTH_A_TASK as f64 / model.bandwidth);
        format!(
            include_str!("batches.md"),
            picture = picture,
            start = USUAL.start,
            tasks = DEFAULTS.tasks,
            copies = DEFAULTS.copies,
            small = name(&SMALL),
            large = name(&LARGE),
            few = name(&FEW),
            // What follows from it
            one_time = duration(one.run.time),
            one_cost = dollars(one.run.cost(&ARM)),
            one_starting = percent(one.run.starting),
            packed_time = duration(packed.run.time),
            packed_cost = dollars(packed.run.cost(&ARM)),
            twenty_size = twenty.sizes(),
            twenty_time = duration(twenty.run.time),
            fifty_size = fifty.sizes(),
            fifty_time = duration(fifty.run.time),
            idle_size = idle.sizes(),
            idle_tasks = idle.run.tasks,
            idle_slots = DEFAULTS.tasks.saturating_sub(idle.run.tasks),
            idle_time = duration(idle.run.time),
            busy_time = duration(busy.run.time),
            little_tasks = little.run.tasks,
            little_cost = dollars(little.run.cost(&ARM)),
            each_tasks = each.run.tasks,
            each_cost = dollars(each.run.cost(&ARM)),
            // What batches cost
            small_table = sizes(&self.small).markdown(),
            large_table = sizes(&self.large).markdown(),
            few_table = sizes(&self.few).markdown(),
            x86_dearer = percent(X86.second(&DEFAULTS) / ARM.second(&DEFAULTS) - 1.0),
            overrides = count(OVERRIDES),
            limit = count(COPIES_LIMIT),
            header = header(0),
            line = line(0),
            most = SMALL.most(),
            most_usual = most(30, 10),
            most_longest = most(255, 128),
            most_alone = alone(),
            // What another task is worth
            worth = WORTH_A_TASK / MEBIBYTE,
            worth_table = worth().markdown(),
            worth_usual = worth_moves(&USUAL),
            worth_slow = worth_moves(&slow),
            minute = dollars(LEAST_BILLED * ARM.second(&DEFAULTS)),
            overhead = COPY_OVERHEAD / MEBIBYTE,
            overhead_usual = mebibytes(USUAL.overhead()),
            slow = SLOW / 1e6,
            overhead_slow = mebibytes(slow.overhead()),
            // If the assumptions are wrong
            doubts_table = doubts().markdown(),
            behind = percent(most_behind()),
            // Where the figures come from
            waiting = format_args!("{:.1}", USUAL.waiting()),
            working = format_args!("{:.2}", USUAL.working(SMALL.bytes)),
            measured_table = measured().markdown(),
            round_trips = ROUND_TRIPS,
            requests = REQUESTS,
            image_cpu = IMAGE_CPU,
            byte_cpu = format_args!("{:.1}", BYTE_CPU * 1e9),
            arm_vcpu = ARM.vcpu,
            arm_memory = ARM.memory,
            x86_vcpu = X86.vcpu,
            x86_memory = X86.memory,
            vcpus = DEFAULTS.vcpus,
            memory = DEFAULTS.memory,
            round_trip = USUAL.round_trip * 1e3,
            redirects = REDIRECTS,
            answer = ANSWER * 1e3,
            bandwidth = USUAL.bandwidth / 1e6,
            processor = (DEFAULTS.vcpus / BYTE_CPU / 1e6).round(),
            small_bytes = bytes(SMALL.bytes),
            large_bytes = bytes(LARGE.bytes),
            small_repositories = SMALL.repositories,
            small_each = SMALL.each,
            large_repositories = LARGE.repositories,
            large_each = LARGE.each,
            few_repositories = FEW.repositories,
            few_each = FEW.each,
        )
    }
}

impl Row {
    fn new(images: &Images, packing: Packing) -> Self {
        let batches = images.pack(packing, DEFAULTS.tasks);
        let run = USUAL.run(&batches, images);
        Self { packing, batches, run }
    }

    fn name(&self) -> String {
        match self.packing {
            Packing::Equal(size) => size.to_string(),
            Packing::ListImages(_) => format!("{}, as list-images packs", self.sizes()),
        }
    }

    fn bar(&self) -> Bar {
        let name = match self.packing {
            Packing::Equal(size) => size.to_string(),
            Packing::ListImages(_) => "packed".into(),
        };
        Bar { name, time: self.run.time, starting: self.run.starting }
    }

    /// The fewest and the most images in a task.
    fn sizes(&self) -> String {
        let least = self.batches.iter().min().copied().unwrap_or_default();
        let most = self.batches.iter().max().copied().unwrap_or_default();
        if least == most { most.to_string() } else { format!("{least} to {most}") }
    }
}

/// In the order of the tables.
fn packings() -> [Packing; 6] {
    let equal = Packing::Equal;
    [equal(1), equal(5), equal(20), equal(50), equal(SMALL.most()), PACKED]
}

fn rows(images: &Images) -> Rows {
    packings().map(|packing| Row::new(images, packing))
}

fn name(images: &Images) -> String {
    format!("{} images of {}", count(images.count()), bytes(images.bytes))
}

fn sizes(rows: &[Row]) -> Grid {
    let header = ["Images per task", "Tasks", "Time", "Spent starting", "Billed", "Cost"];
    Grid::new(header, rows, |row| {
        let Run { time, tasks, starting, billed } = row.run;
        let cost = dollars(row.run.cost(&ARM));
        vec![row.name(), count(tasks), duration(time), percent(starting), duration(billed), cost]
    })
}

/// The same few images, if another task were worth less or more.
fn worth() -> Grid {
    let header = ["Worth another task", "Tasks", "Time", "Billed", "Cost", "Time at 10 MB/s", "Cost at 10 MB/s"];
    let thresholds = [128, 256, 512, 1_024, 2_048].map(|mebibytes| mebibytes * MEBIBYTE);
    Grid::new(header, &thresholds, |&threshold| {
        let batches = FEW.pack(Packing::ListImages(threshold), DEFAULTS.tasks);
        let run = USUAL.run(&batches, &FEW);
        let slow = Model { bandwidth: SLOW, ..USUAL }.run(&batches, &FEW);
        vec![
            format!("{} MiB", count((threshold / MEBIBYTE) as usize)),
            count(run.tasks),
            duration(run.time),
            duration(run.billed),
            dollars(run.cost(&ARM)),
            duration(slow.time),
            dollars(slow.cost(&ARM)),
        ]
    })
}

/// Other assumptions, the usual ones first.
fn doubtful() -> [(&'static str, Model); 7] {
    [
        ("as above", USUAL),
        ("20 s to start", Model { start: 20.0, ..USUAL }),
        ("80 s to start", Model { start: 80.0, ..USUAL }),
        ("10 MB/s", Model { bandwidth: SLOW, ..USUAL }),
        ("100 MB/s", Model { bandwidth: 100e6, ..USUAL }),
        ("round trips of 5 ms", Model { round_trip: 0.005, ..USUAL }),
        ("round trips of 150 ms", Model { round_trip: 0.15, ..USUAL }),
    ]
}

fn time(model: &Model, images: &Images, packing: Packing) -> f64 {
    model.run(&images.pack(packing, DEFAULTS.tasks), images).time
}

/// How the times change with what is assumed.
fn doubts() -> Grid {
    let most = format!("small, {}", SMALL.most());
    let small = ["small, 1 per task", "small, 20", &most, "small, packed"];
    let large = ["large, 1 per task", "large, 5", "large, 20", "large, packed"];
    let header = ["Assumed"].into_iter().chain(small).chain(large);
    Grid::new(header, &doubtful(), |(name, model)| {
        let times =
            |images: &Images, packings: [Packing; 4]| packings.map(|packing| duration(time(model, images, packing)));
        let small = times(&SMALL, [Packing::Equal(1), Packing::Equal(20), Packing::Equal(SMALL.most()), PACKED]);
        let large = times(&LARGE, [Packing::Equal(1), Packing::Equal(5), Packing::Equal(20), PACKED]);
        [(*name).to_owned()].into_iter().chain(small).chain(large).collect()
    })
}

/// By which share list-images' batches take longer than the best ones of equal size, at worst.
fn most_behind() -> f64 {
    let behind = |model: &Model, images: &Images| {
        let [equal @ .., packed] = packings().map(|packing| time(model, images, packing));
        packed / equal.into_iter().fold(f64::INFINITY, f64::min) - 1.0
    };
    let all = doubtful().into_iter().flat_map(|(_, model)| [&SMALL, &LARGE].map(|images| behind(&model, images)));
    all.fold(0.0, f64::max)
}

fn measured() -> Grid {
    let header = ["Image", "Requests", "Time", "round trips of 30 ms", "of 60 ms", "Round trips", "Seconds of a core"];
    Grid::new(header, &MEASURED, |row| {
        let times = row.times.map_or([NOTHING; 3].map(str::to_owned), |times| times.map(|time| format!("{time:.2} s")));
        let round_trips = row.round_trips().map_or_else(|| NOTHING.into(), |number| format!("{number:.0}"));
        let mut cells = vec![row.image.to_owned(), count(row.requests)];
        cells.extend(times);
        cells.extend([round_trips, row.cpu.to_string()]);
        cells
    })
}

fn bytes(bytes: u64) -> String {
    if bytes >= 1_000_000_000 { format!("{} GB", bytes / 1_000_000_000) } else { format!("{} MB", bytes / 1_000_000) }
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.0}", bytes / MEBIBYTE as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_made_of_what_was_measured() {
        let round_trips: Vec<_> = MEASURED.iter().filter_map(Measured::round_trips).collect();
        assert_eq!((round_trips.iter().sum::<f64>() / round_trips.len() as f64).round(), ROUND_TRIPS);
        let [tiny, small, .., large, _] = &MEASURED;
        assert_eq!(tiny.cpu, IMAGE_CPU);
        assert_eq!(small.requests as f64, REQUESTS);
        let byte = (large.cpu - tiny.cpu) / LARGE.bytes as f64;
        assert!((byte / BYTE_CPU - 1.0).abs() < 0.03, "{byte}");
    }

    #[test]
    fn the_page_draws_the_conclusions_that_the_model_bears_out() {
        let Report { small, large, few } = Report::new();
        let [one, .., most, packed] = &small;
        assert!(packed.run.time < one.run.time / 20.0);
        assert!(packed.run.time < most.run.time * 1.05);
        let [equal @ .., packed] = &large;
        assert!(equal.iter().all(|row| packed.run.time < row.run.time));
        let [one, .., packed] = &few;
        assert!(packed.run.cost(&ARM) < one.run.cost(&ARM) / 10.0);
        assert!(packed.run.billed < 1.05 * LEAST_BILLED * packed.run.tasks as f64);
        assert!(most_behind() < 0.1, "{}", most_behind());
    }

    #[test]
    fn the_page_has_no_row_without_numbers() {
        let page = Report::new().page("batches.svg");
        assert!(page.contains("(batches.svg)"));
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
