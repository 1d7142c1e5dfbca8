//! Faults and changed tags at random, for as long as one likes: whatever happens, each image ends as Done or Error,
//! truthfully, and the first run that is left in peace leaves every tag in its place.
//!
//! Faults and changes follow from a seed, as far as the timing of processes does.

mod source;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use http::{Method, StatusCode};
use local::aws::code;
use local::corpus::Corpus;
use local::fargate::Behaviour;
use local::machine::{Machine, Options};
use local::proxy::{Action, Fault, Injected, Pattern};
use local::registry::{Contents, contents};
use local::stack::{Execution, Outcome, Stack};
use serde_json::json;

use crate::source::{Source, Tag};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const STACK: &str = "chaos";
const REPOSITORIES: usize = 40;
const TAGS: usize = 5;

/// How often tags change between two runs.
const CHANGES: usize = 10;
/// Faults of the network that may strike at a time.
const IN_FORCE: usize = 3;

/// Throws faults at a running stack while tags change at its source, and checks that it gets over them.
#[derive(Parser)]
struct Arguments {
    /// What faults and changes follow from.
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
    let public = machine.public().ok_or("the public registries are stand-ins")?;
    let mut source = Source::new(public, &images, arguments.seed).await?;
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
        source.begin();
        let execution = stack.start(&json!({})).await?;
        let outcome = loop {
            tokio::select! {
                outcome = execution.wait() => break outcome?,
                () = tokio::time::sleep(faults.pause()) => {}
            }
            faults.throw();
            source.change().await?;
        };
        runs += 1;
        let (done, failures) = check(&machine, &stack, &execution, &outcome, &source).await?;
        let (failed, thrown, changes) = (failures.len(), faults.summary(), source.summary());
        say(&format!("run {runs}: {}, {done} done, {failed} failed; {thrown}; {changes}", outcome.status));
        for failure in failures.iter().take(3) {
            say(&format!("  {failure}"));
        }
        if runs % 3 == 0 {
            // Otherwise there would soon be little left to do.
            empty(&machine, &names).await?;
        }
        for _ in 0..CHANGES {
            source.change().await?;
        }
    }

    faults.end();
    source.begin();
    let execution = stack.start(&json!({})).await?;
    let peaceful = execution.wait().await?;
    if !peaceful.succeeded() {
        return Err(format!("the run that was left in peace failed: {peaceful:?}").into());
    }
    check(&machine, &stack, &execution, &peaceful, &source).await?;
    let last = stack.start(&json!({})).await?;
    let last = (last.wait().await?.succeeded(), stack.execution_row(last.name()).await?.map(|row| row.to_copy));
    if last != (true, Some(0)) {
        return Err(format!("the run after it still had something to copy: {last:?}").into());
    }
    say(&format!("all {} tags are in their place; {}; {}", source.tags().len(), faults.summary(), source.summary()));
    machine.stop().await;
    Ok(())
}

/// Compares what the destination lists, and what an execution has recorded, with what the source had during the execution:
/// gives how many images are done, and why the others are not.
async fn check(
    machine: &Machine,
    stack: &Stack,
    execution: &Execution,
    outcome: &Outcome,
    source: &Source<'_>,
) -> Result<(usize, Vec<String>)> {
    let listed = contents(&machine.home()?, &format!("{STACK}/")).await?;
    let there = tags(&listed);
    let (mut done, mut failures, mut errors) = (0, Vec::new(), BTreeSet::new());
    for row in stack.image_rows().await?.into_iter().filter(|row| row.execution == execution.name()) {
        let tag = (row.image.clone(), row.tag.clone());
        let is_there = there.get(&tag) == row.digest.as_ref();
        match (row.status.as_str(), &row.error_message) {
            ("Done", None) if is_there && source.had(&tag, row.digest.as_deref()) => done += 1,
            ("Error", Some(message)) if !message.is_empty() => {
                failures.push(format!("{}:{}: {message}", row.image, row.tag));
                errors.insert(tag);
            }
            _ => return Err(format!("the destination has {:?}, and the row says {row:?}", there.get(&tag)).into()),
        }
    }
    // A run that fails before it has a plan records no images.
    let is_planned = outcome.succeeded() || outcome.error.as_deref() == Some("ImagesNotCopied");
    for (tag, digest) in source.steady().filter(|(tag, digest)| is_planned && there.get(tag) != Some(digest)) {
        let has_error = errors.contains(tag) || errors.contains(&(tag.0.clone(), "ALL_TAGS".to_owned()));
        if outcome.succeeded() || !has_error {
            let found = there.get(tag);
            return Err(format!("{tag:?} is {digest} at the source and {found:?} at the destination, in no row").into());
        }
    }
    // What the source no longer has stays at the destination.
    if let Some(other) = there.iter().find(|(tag, digest)| !source.ever_had(tag, digest)) {
        return Err(format!("the destination has {other:?}, which the source never had").into());
    }
    let digests = listed.values().flatten().map(|(_, digest)| digest);
    if let Some(other) = digests.into_iter().find(|digest| !source.knows(digest)) {
        return Err(format!("the destination has {other}, which the source never had").into());
    }
    if let Some(counts) = stack.execution_row(execution.name()).await?
        && counts.to_copy != counts.done + counts.failed
    {
        return Err(format!("{} has lost images: {counts:?}", execution.name()).into());
    }
    Ok((done, failures))
}

/// What the destination lists: the digests of all tags, by repository, as the table names it, and tag.
fn tags(listed: &Contents) -> BTreeMap<Tag, String> {
    let name = |repository: &str| repository.trim_start_matches(STACK).trim_start_matches('/').to_owned();
    let all = listed.iter().flat_map(|(repository, images)| images.iter().map(move |image| (name(repository), image)));
    all.filter_map(|(name, (tag, digest))| Some(((name, tag.clone()?), digest.clone()))).collect()
}

/// Deletes the repositories at the destination.
async fn empty(machine: &Machine, names: &[String]) -> Result {
    let home = machine.home()?;
    for name in names {
        let request = json!({ "repositoryName": format!("{STACK}/{name}"), "force": true });
        let deleted = home.json("ecr", "AmazonEC2ContainerRegistry_V20150921.DeleteRepository", request).await;
        if !matches!(&deleted, Err(error) if code(error) == Some("RepositoryNotFoundException")) {
            deleted?;
        }
    }
    Ok(())
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

    /// How long nothing new goes wrong.
    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.u64(200..1_500))
    }

    /// Lets something go wrong.
    fn throw(&mut self) {
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
