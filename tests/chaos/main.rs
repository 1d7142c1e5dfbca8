//! Faults at random, for as long as one likes: whatever happens, each image ends as Done or Error, truthfully, and the
//! first run that is left in peace leaves every image in its place.
//!
//! The faults follow from a seed, as far as the timing of processes does.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use http::{Method, StatusCode};
use local::corpus::{Corpus, Seeded};
use local::fargate::Behaviour;
use local::machine::{ACCOUNT, Machine, Options, REGION};
use local::proxy::{Action, Fault, Injected, Pattern};
use local::stack::Stack;
use serde_json::json;

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const STACK: &str = "chaos";
const REPOSITORIES: usize = 40;
const TAGS: usize = 5;

/// Faults of the network that may strike at a time.
const IN_FORCE: usize = 3;

/// Throws faults at a running stack, and checks that it gets over them.
#[derive(Parser)]
struct Arguments {
    /// What the faults follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long, in seconds.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match chaos(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("seed {}: {error}", arguments.seed));
            ExitCode::FAILURE
        }
    }
}

async fn chaos(arguments: &Arguments) -> Result {
    let directory = tempfile::tempdir()?;
    let machine = Machine::start(Options::new(directory.path())).await?;
    let names: Vec<_> = (0..REPOSITORIES).map(|number| format!("chaos/service-{number:02}")).collect();
    let mut corpus = Corpus::default();
    for name in &names {
        for tag in 0..TAGS {
            corpus = corpus.with("docker.io", name, &format!("1.{tag}"));
        }
    }
    let images = machine.seed(corpus).await?;
    let list: Vec<_> = names.iter().map(|name| format!("{name}:ALL_TAGS")).collect();
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", &*list.join(",")),
        ("destPrefix", STACK),
        ("taskTimeoutSeconds", "60"),
        // The destination has no such limit, and pacing would only leave less time for faults.
        ("putImageRate", "1000"),
    ];
    let stack = Stack::deploy(&machine, STACK, &parameters).await?;
    say(&format!("seed {}: {} images, {} s of faults", arguments.seed, images.len(), arguments.seconds));

    let mut faults = Faults::new(&machine, arguments.seed);
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut runs = 0;
    while Instant::now() < end {
        let execution = stack.start(&json!({})).await?;
        let outcome = loop {
            tokio::select! {
                outcome = execution.wait() => break outcome?,
                () = faults.next() => {}
            }
        };
        runs += 1;
        let (done, failures) = check(&machine, &stack, execution.name(), &images).await?;
        let failed = failures.len();
        say(&format!("run {runs}: {}, {done} done, {failed} failed; {}", outcome.status, faults.summary()));
        for failure in failures.iter().take(3) {
            say(&format!("  {failure}"));
        }
        if done + failed == 0 || runs % 3 == 0 {
            // Otherwise there would soon be nothing left to do.
            empty(&machine, &names).await?;
        }
    }

    faults.end();
    let peaceful = stack.start(&json!({})).await?.wait().await?;
    if !peaceful.succeeded() {
        return Err(format!("the run that was left in peace failed: {peaceful:?}").into());
    }
    let destination = machine.ecr(ACCOUNT, REGION).await?;
    for image in &images {
        let there = destination.digest(&format!("{STACK}/{}", image.repository), tag(image)).await?;
        if there.as_ref() != Some(&image.digest) {
            return Err(format!("{}:{} is {there:?} at the destination", image.repository, tag(image)).into());
        }
    }
    let last = stack.start(&json!({})).await?;
    let last = (last.wait().await?.succeeded(), stack.execution_row(last.name()).await?.map(|row| row.to_copy));
    if last != (true, Some(0)) {
        return Err(format!("the run after it still had something to copy: {last:?}").into());
    }
    say(&format!("all {} images are in their place; {}", images.len(), faults.summary()));
    machine.stop().await;
    Ok(())
}

/// Checks that what an execution has recorded is true: gives how many images are done, and why the others are not.
async fn check(machine: &Machine, stack: &Stack, execution: &str, images: &[Seeded]) -> Result<(usize, Vec<String>)> {
    let destination = machine.ecr(ACCOUNT, REGION).await?;
    let digests: BTreeMap<_, _> =
        images.iter().map(|image| ((image.repository.as_str(), tag(image)), &image.digest)).collect();
    let (mut done, mut failures) = (0, Vec::new());
    for row in stack.image_rows().await?.iter().filter(|row| row.execution == execution) {
        let expected = digests.get(&(row.image.as_str(), row.tag.as_str()));
        let there = destination.digest(&format!("{STACK}/{}", row.image), &row.tag).await?;
        match (row.status.as_str(), &row.error_message) {
            ("Done", None) if there.as_ref() == expected.copied() => done += 1,
            ("Error", Some(message)) if !message.is_empty() => {
                failures.push(format!("{}:{}: {message}", row.image, row.tag));
            }
            _ => return Err(format!("the destination has {there:?}, and the row says {row:?}").into()),
        }
    }
    if let Some(counts) = stack.execution_row(execution).await?
        && counts.to_copy != counts.done + counts.failed
    {
        return Err(format!("{execution} has lost images: {counts:?}").into());
    }
    Ok((done, failures))
}

/// Deletes the repositories at the destination.
async fn empty(machine: &Machine, names: &[String]) -> Result {
    let home = machine.home()?;
    for name in names {
        let request = json!({ "repositoryName": format!("{STACK}/{name}"), "force": true });
        let deleted = home.json("ecr", "AmazonEC2ContainerRegistry_V20150921.DeleteRepository", request).await;
        if !matches!(&deleted, Err(error) if error.code() == Some("RepositoryNotFoundException")) {
            deleted?;
        }
    }
    Ok(())
}

fn tag(image: &Seeded) -> &str {
    image.tag.as_deref().unwrap_or_default()
}

/// What goes wrong.
struct Faults<'a> {
    machine: &'a Machine,
    random: fastrand::Rng,
    /// Those in force, the oldest first.
    injected: VecDeque<Injected>,
    thrown: BTreeMap<&'static str, usize>,
}

impl<'a> Faults<'a> {
    fn new(machine: &'a Machine, seed: u64) -> Self {
        Self { machine, random: fastrand::Rng::with_seed(seed), injected: VecDeque::new(), thrown: BTreeMap::new() }
    }

    /// Waits a little, and then lets something go wrong.
    async fn next(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(200..1_500))).await;
        // What has not struck by now would pile up, and all of it meet the last image.
        while self.injected.len() > IN_FORCE {
            self.injected.pop_front().iter().for_each(Injected::lift);
        }
        let running = |task: &local::fargate::Task| task.started.is_some() && task.stopped.is_none();
        let name = match self.random.u32(0..10) {
            0 => {
                let tasks: Vec<_> = self.machine.fargate().tasks().into_iter().filter(running).collect();
                let Some(task) = self.random.choice(tasks) else { return };
                self.machine.fargate().kill(&task.arn);
                "killed task"
            }
            1 => {
                let duplicate_events = self.random.bool();
                let behaviour = Behaviour { duplicate_events, ..Behaviour::default() };
                self.machine.fargate().set_behaviour(&format!("{STACK}-copy"), behaviour);
                "events twice, or not"
            }
            2 => self.inject("stalled connections", Action::Stall),
            3 => self.inject("reset", Action::Reset),
            4 => {
                let bytes = self.random.u64(0..5_000);
                self.inject("truncated answer", Action::Truncate(bytes))
            }
            5 | 6 => self.inject("429", Action::Status(StatusCode::TOO_MANY_REQUESTS, Vec::new())),
            7 | 8 => self.inject("500", Action::Status(StatusCode::INTERNAL_SERVER_ERROR, Vec::new())),
            _ => self.inject("503", Action::Status(StatusCode::SERVICE_UNAVAILABLE, Vec::new())),
        };
        *self.thrown.entry(name).or_default() += 1;
    }

    fn inject(&mut self, name: &'static str, action: Action) -> &'static str {
        let times = self.random.usize(1..6);
        let fault = Fault::new(self.pattern(), action).times(times);
        self.injected.push_back(self.machine.proxy().inject(fault));
        name
    }

    /// Some part of the traffic.
    fn pattern(&mut self) -> Pattern {
        let (host, path) = self
            .random
            .choice([
                ("registry-1.docker.io", "*/manifests/*"),
                ("registry-1.docker.io", "*/blobs/*"),
                ("registry-1.docker.io", "*/tags/list*"),
                ("*.dkr.ecr.*", "*/blobs/uploads/*"),
                ("*.dkr.ecr.*", "*/manifests/*"),
                ("*.dkr.ecr.*", "*/blobs/sha256*"),
            ])
            .unwrap_or(("*", "*"));
        let pattern = Pattern::new(host, path);
        match self.random.u32(0..4) {
            0 => pattern.method(Method::GET),
            1 => pattern.method(Method::HEAD),
            _ => pattern,
        }
    }

    /// Lets everything go well from now on.
    fn end(&mut self) {
        self.machine.proxy().heal();
        self.machine.fargate().set_behaviour(&format!("{STACK}-copy"), Behaviour::default());
    }

    fn summary(&self) -> String {
        let thrown: Vec<_> = self.thrown.iter().map(|(name, count)| format!("{count} × {name}")).collect();
        format!("faults so far: {}", thrown.join(", "))
    }
}

#[allow(clippy::print_stdout)] // A person watches.
fn say(text: &str) {
    println!("{text}");
}
