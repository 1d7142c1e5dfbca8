//! The page on batches: what the model says of batch sizes, and where its figures come from.

use std::path::Path;

use crate::{
    bars::{self, Bar, Panel},
    error::Result,
    grid::{self, Grid, NOTHING, count, duration},
    model::{
        ANSWER, ARM, Assumptions, BYTE_CPU, COPIES, IMAGE_CPU, LEAST_BILLED, REDIRECTS, REQUESTS, ROUND_TRIPS, Run,
        SIZE, TASKS, USUAL, X86,
    },
    packing::{COPIES_LIMIT, COPY_OVERHEAD, Images, OVERRIDES, Packing, WORTH_A_TASK, header, line, most},
};

const MEBIBYTE: u64 = 1 << 20;

/// As many small images as in one of the registries of the benchmarks.
const SMALL: Images = Images { repositories: 100, each: 100, bytes: 20_000_000 };
/// Images as they are made for machine learning.
const LARGE: Images = Images { repositories: 10, each: 10, bytes: 2_000_000_000 };
/// What a day's builds leave to copy.
const FEW: Images = Images { repositories: 10, each: 5, bytes: 20_000_000 };

/// Where AWS says how much a task can be told.
const OVERRIDES_DOCUMENTATION: &str = "https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_TaskOverride.html";

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

    fn page(&self, picture: &str) -> String {
        format!(
            "# Batches\n\
             \n\
             A task copies a batch of images, and Fargate takes about {start} s to start it. With few images in each task, a run\n\
             mostly waits for that; with many, there may not be enough batches for the {TASKS} tasks that may run at once. This page\n\
             works out what batches of different sizes cost, and so why list-images packs as it does.\n\
             \n\
             **It is a model: nothing of this ran on Fargate.** `make bench` works it out, and writes this page. The figures that it\n\
             is made of are [below](#where-the-figures-come-from), the measured ones apart from the assumed ones.\n\
             \n\
             ![Time of a run with different numbers of images per task]({picture})\n\
             \n\
             {conclusions}\n\
             {tables}\n\
             {worth}\n\
             {doubts}\n\
             {sources}",
            start = USUAL.start,
            conclusions = self.conclusions(),
            tables = self.tables(),
            worth = worth_text(),
            doubts = doubts_text(),
            sources = sources(),
        )
    }

    fn conclusions(&self) -> String {
        let [one, _, twenty, fifty, _, packed] = &self.small;
        let [.., idle, _, _, busy] = &self.large;
        let [each, .., little] = &self.few;
        format!(
            "## What follows from it\n\
             \n\
             - **Small images: as many in a task as it can be told of.** One at a time, {small} take {time_one}\n  \
               and {cost_one}, and {starting_one} of the tasks' time is their start; as list-images packs them, {time_packed} and\n  \
               {cost_packed}. Most of that is gained with {twenty_size} in a task ({time_twenty}), nearly all with {fifty_size}\n  \
               ({time_fifty}): there is no need to tell tasks more than RunTask lets us, by way of a file, say.\n\
             - **Large images: as many tasks as may run at once.** Batches are balanced by bytes. With {idle_size} images of\n  \
               {large} in each, {idle_tasks} tasks would run, and {idle_slots} more might: {time_idle} instead of {time_busy}.\n\
             - **Little work: few tasks.** Another one is worth {worth} MiB: with so much, a task about fills the minute that is\n  \
               billed in any case. {few} are {little_tasks} tasks and {cost_little}, not {each_tasks} and {cost_each}.\n\
             - **A repository's images together.** The model knows no layers, so it does not show this: images of a\n  \
               repository share theirs. Within a task, a later copy finds at the destination what an earlier one brought\n  \
               there; tasks that copy at the same time each bring it. So a repository is split only where it is more than a\n  \
               task's share, or more than a task can be told of.\n",
            small = name(&SMALL),
            time_one = duration(one.run.time),
            cost_one = dollars(one.run.cost(&ARM)),
            starting_one = percent(one.run.starting),
            time_packed = duration(packed.run.time),
            cost_packed = dollars(packed.run.cost(&ARM)),
            twenty_size = twenty.sizes(),
            time_twenty = duration(twenty.run.time),
            fifty_size = fifty.sizes(),
            time_fifty = duration(fifty.run.time),
            idle_size = idle.sizes(),
            idle_tasks = idle.run.tasks,
            idle_slots = TASKS - idle.run.tasks,
            large = bytes(LARGE.bytes),
            time_idle = duration(idle.run.time),
            time_busy = duration(busy.run.time),
            worth = WORTH_A_TASK / MEBIBYTE,
            few = name(&FEW),
            little_tasks = little.run.tasks,
            cost_little = dollars(little.run.cost(&ARM)),
            each_tasks = each.run.tasks,
            cost_each = dollars(each.run.cost(&ARM)),
        )
    }

    fn tables(&self) -> String {
        let section = |images: &Images, rows| format!("### {}\n\n{}\n", name(images), sizes(rows).markdown());
        format!(
            "## What batches cost\n\
             \n\
             {small}\
             {large}\
             {few}\
             - **Time**: from the start of the first task to the end of the last one.\n\
             - **Spent starting**: the share of all tasks' time in which nothing is copied yet.\n\
             - **Billed**: all tasks' seconds, each task's rounded up, and at least a minute.\n\
             - **Cost**: of Fargate on ARM in us-east-1; on x86 it is {dearer} more.\n\
             - **{most}** is all that a task can be told of. [RunTask's overrides]({documentation})\n  \
               have {overrides} characters; the task's token and the JSON leave {limit} of them. From ECR to ECR, an image takes {line} and its tag; each repository\n  \
               {header}, and twice its name. That is {most} images of one repository with the benchmarks' short names, {usual} with a\n  \
               name of 30 characters and tags of 10, {longest} with the longest that ECR allows, and {alone} if each image has a\n  \
               repository to itself.\n",
            small = section(&SMALL, &self.small),
            large = section(&LARGE, &self.large),
            few = section(&FEW, &self.few),
            dearer = percent(X86.second() / ARM.second() - 1.0),
            most = SMALL.most(),
            documentation = OVERRIDES_DOCUMENTATION,
            overrides = count(OVERRIDES),
            limit = count(COPIES_LIMIT),
            header = header(0),
            line = line(0),
            usual = most(30, 10),
            longest = most(256, 128),
            alone = COPIES_LIMIT / (header(16) + line(2)),
        )
    }
}

impl Row {
    fn new(images: &Images, packing: Packing) -> Self {
        let batches = images.pack(packing, TASKS);
        let run = USUAL.run(&batches, images.bytes);
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
        let batches = FEW.pack(Packing::ListImages(threshold), TASKS);
        let run = USUAL.run(&batches, FEW.bytes);
        let slow = Assumptions { bandwidth: SLOW, ..USUAL }.run(&batches, FEW.bytes);
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
fn doubtful() -> [(&'static str, Assumptions); 7] {
    [
        ("as above", USUAL),
        ("20 s to start", Assumptions { start: 20.0, ..USUAL }),
        ("80 s to start", Assumptions { start: 80.0, ..USUAL }),
        ("10 MB/s", Assumptions { bandwidth: SLOW, ..USUAL }),
        ("100 MB/s", Assumptions { bandwidth: 100e6, ..USUAL }),
        ("round trips of 5 ms", Assumptions { round_trip: 0.005, ..USUAL }),
        ("round trips of 150 ms", Assumptions { round_trip: 0.15, ..USUAL }),
    ]
}

fn time(assumptions: &Assumptions, images: &Images, packing: Packing) -> f64 {
    assumptions.run(&images.pack(packing, TASKS), images.bytes).time
}

/// How the times change with what is assumed.
fn doubts() -> Grid {
    let most = format!("small, {}", SMALL.most());
    let small = ["small, 1 per task", "small, 20", &most, "small, packed"];
    let large = ["large, 1 per task", "large, 5", "large, 20", "large, packed"];
    let header = ["Assumed"].into_iter().chain(small).chain(large);
    Grid::new(header, &doubtful(), |(name, assumptions)| {
        let times = |images: &Images, packings: [Packing; 4]| {
            packings.map(|packing| duration(time(assumptions, images, packing)))
        };
        let small = times(&SMALL, [Packing::Equal(1), Packing::Equal(20), Packing::Equal(SMALL.most()), PACKED]);
        let large = times(&LARGE, [Packing::Equal(1), Packing::Equal(5), Packing::Equal(20), PACKED]);
        [(*name).to_owned()].into_iter().chain(small).chain(large).collect()
    })
}

/// By which share list-images' batches take longer than the best ones of equal size, at worst.
fn most_behind() -> f64 {
    let behind = |assumptions: &Assumptions, images: &Images| {
        let [equal @ .., packed] = packings().map(|packing| time(assumptions, images, packing));
        packed / equal.into_iter().fold(f64::INFINITY, f64::min) - 1.0
    };
    let all =
        doubtful().into_iter().flat_map(|(_, assumptions)| [&SMALL, &LARGE].map(|images| behind(&assumptions, images)));
    all.fold(0.0, f64::max)
}

fn worth_text() -> String {
    let slow = Assumptions { bandwidth: SLOW, ..USUAL };
    let seconds = |assumptions: &Assumptions| duration(WORTH_A_TASK as f64 / assumptions.bandwidth);
    format!(
        "## What another task is worth\n\
         \n\
         One task more makes a run shorter, until there are {TASKS}; and at least a minute of it is billed. How {few}\n\
         are packed if another task is worth so many bytes; {overhead} MiB for each image, which stand for its requests, are counted\n\
         among them:\n\
         \n\
         {table}\n\
         {worth} MiB move in {usual}, and in {slow} over a slow network. With less, tasks end before their minute does: twice as many\n\
         cost twice as much, for a few seconds. With more, the run takes longer, the more so the slower the network is, to save\n\
         minutes of {minute} each.\n\
         \n\
         {overhead} MiB are what a copy's requests cost at 25 MB/s; at 50 MB/s that is {overhead_usual} MiB, at 10 MB/s {overhead_slow} MiB.\n",
        few = name(&FEW),
        overhead = COPY_OVERHEAD / MEBIBYTE,
        table = worth().markdown(),
        worth = WORTH_A_TASK / MEBIBYTE,
        usual = seconds(&USUAL),
        slow = seconds(&slow),
        minute = dollars(LEAST_BILLED * ARM.second()),
        overhead_usual = mebibytes(USUAL.overhead()),
        overhead_slow = mebibytes(slow.overhead()),
    )
}

fn doubts_text() -> String {
    format!(
        "## If the assumptions are wrong\n\
         \n\
         The times of the same {small} and {large}:\n\
         \n\
         {table}\n\
         The times change, the order hardly does: of all these sizes, list-images' are the fastest, or within {behind} of them.\n",
        small = name(&SMALL),
        large = name(&LARGE),
        table = doubts().markdown(),
        behind = percent(most_behind()),
    )
}

fn sources() -> String {
    format!(
        "## Where the figures come from\n\
         \n\
         Copies that begin together in a task share its processor and its network evenly, and so end together if the images\n\
         are of equal size. So {COPIES} copies of 20 MB take one wait and {COPIES} times the work, {waiting:.1} s and {COPIES} × {working:.2} s, before the\n\
         next {COPIES} begin. Batches begin in their order, each as soon as one of the {TASKS} tasks has ended.\n\
         \n\
         ### Measured\n\
         \n\
         With skopeo 1.9.3, called as in the task's script, and two docker-registry 2.8.2 behind TLS on the same machine\n\
         (2 cores, AMD EPYC):\n\
         \n\
         ```console\n\
         docker-registry serve source.yml &        # on port 5611\n\
         docker-registry serve destination.yml &   # on port 5612\n\
         time skopeo copy --quiet --retry-times 3 --multi-arch all --preserve-digests \\\n  \
           --src-tls-verify=false --dest-tls-verify=false \\\n  \
           docker://127.0.0.1:5611/image@sha256:… docker://127.0.0.1:5612/new-repository:1\n\
         ```\n\
         \n\
         It ran as another user than root, with an empty HOME each time, so that it remembered no layers, and through a TCP\n\
         proxy in front of either registry, which makes the round trips as long as they are asked to be: it holds back each\n\
         direction by half of one, and a new connection by a whole one. Medians of 15 copies; of 4, and without the proxies,\n\
         for 2 GB. The images are random bytes.\n\
         \n\
         {measured}\n\
         - A copy waits for **{ROUND_TRIPS} round trips**, whatever its size: its layers are copied at the same time. {REQUESTS} requests wait\n  \
           for one another; the other round trips are for connections and TLS.\n\
         - It takes **{IMAGE_CPU} s of a core**, and **{byte_cpu:.1} s for each GB**: checksums, and TLS at both ends.\n\
         \n\
         ### Assumed\n\
         \n\
         - **{start} s** until a task copies. [An answer on AWS re:Post]({repost})\n  \
           calls 30 to 45 s normal.\n\
         - **All of it is billed**, although [billing begins](https://aws.amazon.com/fargate/pricing/) only with the pull of the\n  \
           task's own image.\n\
         - **${price_vcpu} for a vCPU and ${price_memory} for a GB an hour**, by the second, and for a minute at least: on demand, Linux on\n  \
           ARM, us-east-1. On x86, ${x86_vcpu} and ${x86_memory}. A task has {vcpus} vCPU and {memory} GB, as in the template.\n\
         - **{round_trip} ms for a round trip**, on average over a registry in the task's region and one across the continent.\n\
         - **{REDIRECTS} round trips more with ECR**, which sends whoever asks for a layer, or the configuration, on to S3.\n\
         - **{answer} ms until a registry answers**, for each of the {REQUESTS} requests. In all, a copy waits {waiting:.1} s.\n\
         - **{bandwidth} MB/s in a task**. AWS promises nothing for Fargate. {vcpus} vCPU would manage {processor} MB/s, were it half a core of\n  \
           the machine above.\n\
         - **The images**: of {bytes_small}, {small_repositories} repositories of {small_each}, and {few_repositories} of {few_each}; of {bytes_large}, {large_repositories} of {large_each}. Their names are the benchmarks'.\n\
         \n\
         ### Left out\n\
         \n\
         - What small batches cost besides: the state machine's transitions and the Lambda functions' calls for each, and the\n  \
           seconds from the end of a task until the next one may start.\n\
         - What keeping a repository together saves: layers that its images share.\n\
         - What is the same in any batch: the transfer's own price, and copies that are tried again.\n",
        waiting = USUAL.waiting(),
        working = USUAL.working(SMALL.bytes),
        measured = measured().markdown(),
        byte_cpu = BYTE_CPU * 1e9,
        repost = "https://repost.aws/questions/QUjZAzJd27SZWxXM7MgyxOZw",
        start = USUAL.start,
        price_vcpu = ARM.vcpu,
        price_memory = ARM.memory,
        x86_vcpu = X86.vcpu,
        x86_memory = X86.memory,
        vcpus = SIZE.0,
        memory = SIZE.1,
        round_trip = USUAL.round_trip * 1e3,
        answer = ANSWER * 1e3,
        bandwidth = USUAL.bandwidth / 1e6,
        processor = (SIZE.0 / BYTE_CPU / 1e6).round(),
        bytes_small = bytes(SMALL.bytes),
        bytes_large = bytes(LARGE.bytes),
        small_repositories = SMALL.repositories,
        small_each = SMALL.each,
        large_repositories = LARGE.repositories,
        large_each = LARGE.each,
        few_repositories = FEW.repositories,
        few_each = FEW.each,
    )
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

fn dollars(dollars: f64) -> String {
    match dollars {
        1.0.. => format!("${dollars:.2}"),
        0.01.. => format!("${dollars:.3}"),
        _ => format!("${dollars:.4}"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
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
