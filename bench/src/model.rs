//! What runs of up to 100,000 images take and cost, computed from the figures that docs/scale.md explains. list-images packs
//! the images; nothing runs.

use list_images::{
    SourceImage,
    batches::{Packing, Work, pack},
};
use shared::{plan::RepositoryCopy, reference::Digest};

use crate::{
    ecr::{DESTINATION, SOURCE, repository_name, tag},
    report::{Report, count, duration, table},
};

/// Round trips that a copy waits for, those of TCP and TLS included: measured.
const ROUND_TRIPS: f64 = 47.0;
/// Round trips in which ECR redirects to S3: assumed.
const REDIRECTS: f64 = 8.0;
/// Requests of a copy that wait for one another: measured.
const REQUESTS: f64 = 15.0;
/// Seconds in which a registry answers a request: assumed.
const ANSWER: f64 = 0.05;
/// Seconds of a core that a copy takes besides its bytes, and that each byte takes: measured.
const COPY_CPU: f64 = 0.03;
const BYTE_CPU: f64 = 3.5e-9;
const LAYERS: usize = 5;

/// Dollars in us-east-1: of a task of 0.5 vCPU and 1 GB on ARM for a second, of its public address, of a transition, of a
/// GB-second of a function on ARM, and of a written item.
const VCPUS: f64 = 0.5;
const TASK: f64 = (VCPUS * 0.03238 + 0.00356) / 3_600.0;
const ADDRESS: f64 = 0.005 / 3_600.0;
const TRANSITION: f64 = 0.000_025;
const FUNCTION: f64 = 0.000_013_333_4;
const WRITE: f64 = 0.625e-6;
/// Seconds of a task that are billed at least.
const LEAST_BILLED: f64 = 60.0;

/// Parameters of the stack, and assumptions.
#[derive(Clone, Copy)]
struct Model {
    packing: Packing,
    copies_per_task: usize,
    /// Seconds from the request for a task to its first copy.
    start: f64,
    /// Seconds.
    round_trip: f64,
    /// Bytes per second in a task.
    bandwidth: f64,
}

const DEFAULTS: Model = Model {
    packing: Packing { tasks: 10, images: 100, bytes: 512 << 20, manifests_per_second: 10 },
    copies_per_task: 4,
    start: 40.0,
    round_trip: 0.03,
    bandwidth: 50e6,
};
const LARGEST: Model = Model {
    packing: Packing { tasks: 100, manifests_per_second: 100, ..DEFAULTS.packing },
    copies_per_task: 8,
    ..DEFAULTS
};
/// The network of another continent.
const SLOW: f64 = 10e6;

/// Images of 20 MB for each platform, as many in each repository.
#[derive(Clone, Copy)]
struct Images {
    repositories: usize,
    each: usize,
    platforms: u32,
}

impl Images {
    const BYTES: u64 = 20_000_000;
    const MANY: Self = Self { repositories: 100, each: 100, platforms: 1 };
    const FEW: Self = Self { repositories: 10, each: 5, platforms: 1 };

    fn count(&self) -> usize {
        self.repositories * self.each
    }

    /// An index has a manifest for each platform, and its own.
    fn manifests(&self) -> usize {
        if self.platforms == 1 { 1 } else { 1 + self.platforms as usize }
    }

    fn work(&self) -> Work {
        let image = |number| SourceImage {
            bytes: Self::BYTES * u64::from(self.platforms),
            is_index: self.platforms > 1,
            images: self.platforms,
            ..SourceImage::new(tag(number).parse().ok(), Digest::of(tag(number).as_bytes()))
        };
        let repository = |number| {
            let image_name = repository_name(number).parse().expect("it is a repository's name");
            let at = |host: String| format!("{host}/{image_name}").parse().expect("it is a repository");
            let (source, destination) = (at(SOURCE.host()), at(DESTINATION.host()));
            let copy = RepositoryCopy { source, destination, image: image_name, images: Vec::new() };
            (copy, (0..self.each).map(image).collect())
        };
        Work { copies: (0..self.repositories).map(repository).collect(), ..Work::default() }
    }
}

struct Run {
    images: Images,
    model: Model,
    tasks: usize,
    /// Seconds from the start of the first task to the end of the last one.
    time: f64,
    /// Seconds of all tasks, and those of them that are billed.
    running: f64,
    billed: f64,
}

impl Model {
    /// The seconds that a task takes to copy so many images. Copies that begin together share the task evenly, so they also
    /// end together, and then the next ones begin. The manifests of an index are copied one after the other.
    fn copying(&self, number: usize, images: &Images) -> f64 {
        let manifests = images.manifests() as f64;
        let waiting = (ROUND_TRIPS + REDIRECTS) * self.round_trip + REQUESTS * ANSWER;
        let bytes = (Images::BYTES * u64::from(images.platforms)) as f64;
        let working = manifests * COPY_CPU / VCPUS + bytes / self.bandwidth.min(VCPUS / BYTE_CPU);
        number.div_ceil(self.copies_per_task) as f64 * manifests * waiting + number as f64 * working
    }

    /// Each batch starts as soon as a task may.
    fn run(self, images: Images) -> Run {
        let mut free = vec![0.0_f64; self.packing.tasks];
        let mut run = Run { images, model: self, tasks: 0, time: 0.0, running: 0.0, billed: 0.0 };
        for batch in pack(images.work(), &self.packing) {
            let copies: Vec<_> = batch.repositories.iter().flat_map(|copy| &copy.images).collect();
            let manifests: u32 = copies.iter().map(|image| image.manifests).sum();
            let paced = (u64::from(manifests) * batch.pace) as f64 / 1e3;
            let seconds = self.start + self.copying(copies.len(), &images).max(paced);
            run.tasks += 1;
            run.running += seconds;
            run.billed += seconds.ceil().max(LEAST_BILLED);
            if let Some(first) = free.iter_mut().min_by(|a, b| a.total_cmp(b)) {
                *first += seconds;
            }
        }
        run.time = free.into_iter().fold(0.0, f64::max);
        run
    }
}

impl Run {
    /// All but the transfer: tasks with their addresses, state machine, functions, and tables.
    fn cost(&self) -> f64 {
        let (images, tasks) = (self.images.count() as f64, self.tasks as f64);
        let functions = images * 4.0 / 10_000.0 + tasks * 2.0 * 2.0 * 0.25;
        self.billed * (TASK + ADDRESS)
            + (10.0 + 4.0 * tasks) * TRANSITION
            + functions * FUNCTION
            + (images + 2.0 * tasks) * WRITE
    }

    /// What it takes of the quotas: of each, per second or at once.
    fn taken(&self) -> [f64; 4] {
        let Images { platforms, .. } = self.images;
        let per_second = |number: usize| number as f64 / (self.time - self.model.start);
        let at_once = self.tasks.min(self.model.packing.tasks) as f64;
        let uploads = self.images.count() * platforms as usize * (LAYERS + 1);
        [per_second(self.manifests()), per_second(uploads), at_once * VCPUS, at_once]
    }

    fn manifests(&self) -> usize {
        self.images.count() * self.images.manifests()
    }
}

/// AWS's default quotas. All tasks that may run at once are asked for at once.
const QUOTAS: [(&str, f64); 4] = [
    ("PutImage per second (10)", 10.0),
    ("InitiateLayerUpload per second (100)", 100.0),
    ("Fargate vCPUs (6)", 6.0),
    ("RunTask per second (20)", 20.0),
];

/// From 100 to 100,000 images, for one platform and for two.
fn runs(model: Model) -> impl Iterator<Item = Run> {
    let sizes = [1, 2].into_iter().flat_map(|platforms| [1, 100, 1_000].map(|size| (size, platforms)));
    sizes.map(move |(repositories, platforms)| model.run(Images { repositories, each: 100, platforms }))
}

pub fn report() -> Report {
    let parts = vec![
        ("defaults", sizes(DEFAULTS)),
        ("largest", sizes(LARGEST)),
        ("images per task", images_per_task()),
        ("another task", another_task()),
        ("assumptions", assumptions()),
    ];
    Report { parts, ..Report::default() }
}

fn sizes(model: Model) -> String {
    let [put_image, upload, vcpus, run_task] = QUOTAS.map(|(name, _)| name);
    table(
        ["Images", "Manifests", "Tasks", "Time", "Cost", put_image, upload, vcpus, run_task],
        runs(model).map(|run| {
            let platforms = if run.images.platforms == 1 { "one platform" } else { "two platforms" };
            let [put_image, upload, vcpus, run_task] = run.taken().map(|number| format!("{number:.0}"));
            let images = format!("{}, {platforms}", count(run.images.count()));
            let (time, cost) = (duration(run.time), dollars(run.cost()));
            [images, count(run.manifests()), count(run.tasks), time, cost, put_image, upload, vcpus, run_task]
        }),
    )
}

fn with_images_per_task(model: Model, images: usize) -> Model {
    Model { packing: Packing { images, ..model.packing }, ..model }
}

fn images_per_task() -> String {
    let header = ["maxImagesPerTask", "Tasks", "Time", "Spent starting tasks", "Billed", "Cost"];
    let limits = [(1, "1"), (5, "5"), (20, "20"), (50, "50"), (DEFAULTS.packing.images, "100 (the default)")];
    table(
        header,
        limits.map(|(limit, name)| {
            let run = with_images_per_task(DEFAULTS, limit).run(Images::MANY);
            let starting = run.tasks as f64 * run.model.start / run.running;
            [
                name.to_owned(),
                count(run.tasks),
                duration(run.time),
                format!("{:.0} %", starting * 100.0),
                duration(run.billed),
                dollars(run.cost()),
            ]
        }),
    )
}

fn another_task() -> String {
    let header = ["minMiBPerTask", "Tasks", "Time", "Cost", "Time at 10 MB/s", "Cost at 10 MB/s"];
    table(
        header,
        [128, 256, 512, 1_024, 2_048].map(|mebibytes: u64| {
            let model = Model { packing: Packing { bytes: mebibytes << 20, ..DEFAULTS.packing }, ..DEFAULTS };
            let (usual, slow) = (model.run(Images::FEW), Model { bandwidth: SLOW, ..model }.run(Images::FEW));
            [
                mebibytes.to_string(),
                count(usual.tasks),
                duration(usual.time),
                dollars(usual.cost()),
                duration(slow.time),
                dollars(slow.cost()),
            ]
        }),
    )
}

fn assumptions() -> String {
    let assumed = [
        ("as above", DEFAULTS),
        ("20 s to start a task", Model { start: 20.0, ..DEFAULTS }),
        ("80 s to start a task", Model { start: 80.0, ..DEFAULTS }),
        ("10 MB/s", Model { bandwidth: SLOW, ..DEFAULTS }),
        ("100 MB/s", Model { bandwidth: 100e6, ..DEFAULTS }),
        ("round trips of 5 ms", Model { round_trip: 0.005, ..DEFAULTS }),
        ("round trips of 150 ms", Model { round_trip: 0.15, ..DEFAULTS }),
    ];
    table(
        ["Assumed", "5 images per task", "20", "50", "as packed"],
        assumed.map(|(name, model)| {
            let time = |limit| duration(with_images_per_task(model, limit).run(Images::MANY).time);
            [name.to_owned(), time(5), time(20), time(50), time(model.packing.images)]
        }),
    )
}

fn dollars(dollars: f64) -> String {
    match dollars {
        1.0.. => format!("${dollars:.2}"),
        0.01.. => format!("${dollars:.3}"),
        _ => format!("${dollars:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy waits 2 s, and then moves 20 MB in 0.26 s. Nothing is worth another task.
    const SIMPLE: Model = Model {
        packing: Packing { bytes: u64::MAX, manifests_per_second: 1_000_000, ..DEFAULTS.packing },
        round_trip: (2.0 - REQUESTS * ANSWER) / (ROUND_TRIPS + REDIRECTS),
        bandwidth: 100e6,
        ..DEFAULTS
    };

    fn images(each: usize, platforms: u32) -> Images {
        Images { repositories: 1, each, platforms }
    }

    #[track_caller]
    fn assert_close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn copies_at_once_share_the_work_and_not_the_wait() {
        let copying = |number| SIMPLE.copying(number, &images(number, 1));
        assert_close(copying(0), 0.0);
        assert_close(copying(1), 2.26);
        assert_close(copying(4), 2.0 + 4.0 * 0.26);
        assert_close(copying(5), 4.0 + 5.0 * 0.26);
        assert_close(SIMPLE.copying(1, &images(1, 2)), 6.0 + 3.0 * 0.06 + 0.4);
    }

    #[test]
    fn a_fast_network_waits_for_the_processor() {
        let copying = |bandwidth| Model { bandwidth, ..SIMPLE }.copying(1, &images(1, 1));
        assert_close(copying(1e12), copying(VCPUS / BYTE_CPU));
    }

    #[test]
    fn tasks_start_as_others_end() {
        let run = |number| with_images_per_task(SIMPLE, 1).run(images(number, 1));
        assert_close(run(10).time, 42.26);
        assert_close(run(11).time, 2.0 * 42.26);
        assert_eq!(run(11).tasks, 11);
    }

    #[test]
    fn all_tasks_share_the_rate_of_manifests() {
        let slow = Model { packing: Packing { manifests_per_second: 1, ..SIMPLE.packing }, ..SIMPLE };
        assert_close(slow.run(images(10, 2)).time, 40.0 + 30.0);
        assert_close(with_images_per_task(slow, 5).run(images(10, 2)).time, 40.0 + 30.0);
    }

    #[test]
    fn at_least_a_minute_is_billed_and_seconds_are_rounded_up() {
        let billed = |number| SIMPLE.run(images(number, 1)).billed;
        assert_close(billed(1), 60.0);
        // 10 × 2 s + 40 × 0.26 s
        assert_close(billed(40), 71.0);
        assert_close(with_images_per_task(SIMPLE, 1).run(images(2, 1)).billed, 120.0);
    }

    #[test]
    fn a_run_with_the_defaults_stays_within_the_quotas_and_a_day() {
        for run in runs(DEFAULTS) {
            for ((name, quota), taken) in QUOTAS.into_iter().zip(run.taken()) {
                assert!(taken <= quota * 1.001, "{}: {name}: {taken}", run.images.count());
            }
            assert!(run.time < 86_400.0, "{}: {}", run.images.count(), run.time);
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_template() {
        let template = include_str!("../../template.yaml");
        let default = |parameter: &str| {
            let (_, rest) = template.split_once(&format!("\n  {parameter}:\n"))?;
            let (value, _) = rest.split_once("Default: ")?.1.split_once('\n')?;
            value.parse::<u64>().ok()
        };
        let Packing { tasks, images, bytes, manifests_per_second } = DEFAULTS.packing;
        assert_eq!(default("maxConcurrency"), Some(tasks as u64));
        assert_eq!(default("maxImagesPerTask"), Some(images as u64));
        assert_eq!(default("minMiBPerTask"), Some(bytes >> 20));
        assert_eq!(default("putImageRate"), Some(manifests_per_second));
        assert_eq!(default("copiesPerTask"), Some(DEFAULTS.copies_per_task as u64));
    }

    #[test]
    fn the_pages_have_the_figures_of_the_model() {
        let page = include_str!("../../docs/scale.md");
        for (name, table) in report().parts {
            assert!(
                page.contains(&table),
                "{name}: run `cargo run -p ecr-transfer-bench -- model --markdown docs/scale.md`"
            );
        }
        let cost = format!("**{}**", dollars(DEFAULTS.run(Images::MANY).cost()));
        for guide in [include_str!("../../docs/guide.md"), include_str!("../../docs/guide.zh.md")] {
            assert!(guide.contains(&cost), "the guides have another cost than {cost}");
        }
    }
}
