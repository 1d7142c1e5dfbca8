//! The demonstration: two stacks copy images, and a second run copies nothing, since nothing has changed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use fs_err as fs;
use futures_util::future::try_join_all;
use local::corpus::Corpus;
use local::machine::{ACCOUNT, REGION, SOURCE_ACCOUNT, SOURCE_CREDENTIAL, SOURCE_REGION};
use local::stack::{ExecutionRow, ImageRow, Stack, project};
use local::{Machine, Options};
use oci_spec::distribution::Reference;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::step;

const REFRESH: Duration = Duration::from_millis(500);

/// The stack that copies the source account's whole registry, and its parameters.
pub const ECR_STACK: &str = "DTHECRStack";
pub const ECR_PARAMETERS: &[(&str, &str)] = &[
    ("sourceType", "Amazon_ECR"),
    ("srcAccountId", SOURCE_ACCOUNT),
    ("srcRegion", SOURCE_REGION),
    ("srcCredential", SOURCE_CREDENTIAL),
    ("srcList", "ALL"),
];

/// The stack that copies images of public registries, and the images.
const PUBLIC_STACK: &str = "DTHPublicStack";
const SELECTED: &str = "alpine:3.19,alpine:3.20,alpine:latest,bitnami/redis:7.4,busybox:1.36,busybox:1.37,\
    docker.io/library/nginx:1.26,docker.io/library/nginx:1.27,docker.io/library/redis:7,quay.io/coreos/etcd:ALL_TAGS,\
    quay.io/prometheus/prometheus:v2.54.1";

/// Starts a machine, copies all of its images (or just the given ones) twice, and checks the copies.
pub async fn run(images: &[String]) -> Result<bool> {
    let real_registries = !images.is_empty() && has_network().await;
    match (images, real_registries) {
        ([], _) => {}
        (_, true) => println!("The images come from the real registries."),
        (_, false) => println!("There is no network: images with these names are made here."),
    }
    on_machine("run-", real_registries, async |machine| demonstrate(machine, images).await).await
}

/// Starts a machine, and runs `make check-aws` on it.
pub async fn check() -> Result<bool> {
    // `make check-aws-local` builds it beside this program.
    let command = std::env::current_exe()?.with_file_name("ecr-transfer");
    on_machine("check-", false, async |machine| Stack::check(machine, &command).await?.show().await).await
}

/// The output of `make build`: functions without optimization, which are built in a fraction of the time.
pub fn quick_build() -> PathBuf {
    project().join(".aws-sam/local")
}

/// Works on a new machine. If anything fails, its logs stay.
async fn on_machine(
    prefix: &str,
    real_registries: bool,
    work: impl AsyncFnOnce(&Machine) -> Result<bool>,
) -> Result<bool> {
    let parent = project().join(".local");
    fs::create_dir_all(&parent)?;
    let directory = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
    let result = async {
        let options = Options { real_registries, build: quick_build(), ..Options::new(directory.path()) };
        let machine = step("Starting a local AWS", Machine::start(options)).await?;
        let result = work(&machine).await;
        machine.stop().await;
        result
    };
    let result = result.await;
    if !matches!(result, Ok(true)) {
        println!("The logs are in {}", directory.keep().display());
    }
    result
}

async fn has_network() -> bool {
    let connection = TcpStream::connect(("registry-1.docker.io", 443));
    timeout(Duration::from_secs(2), connection).await.is_ok_and(|connection| connection.is_ok())
}

async fn demonstrate(machine: &Machine, images: &[String]) -> Result<bool> {
    let stacks = deploy(machine, images).await?;

    println!("\nFirst run");
    let first = execute(&stacks).await?;
    let tasks = machine.fargate().count();
    let requests = machine.proxy().traffic(|_, _, _| true).requests;
    let mut rows = Vec::new();
    for stack in &stacks {
        rows.extend(stack.image_rows().await?);
    }
    println!("{}", table(&mut rows));
    let problems = problems(machine, &rows).await?;
    for problem in problems.iter().take(10) {
        println!("✗ {problem}");
    }
    println!("Images in ECR with the digest of their source: {} of {}.", rows.len() - problems.len(), rows.len());
    println!("Tasks started: {tasks}. Requests to registries: {requests}.");

    println!("\nSecond run: nothing has changed");
    let second = execute(&stacks).await?;
    let more_tasks = machine.fargate().count() - tasks;
    println!("Tasks started: {more_tasks}.");
    Ok(first && second && problems.is_empty() && more_tasks == 0)
}

/// Deploys both stacks and makes their images, or deploys one stack for the given images.
async fn deploy(machine: &Machine, images: &[String]) -> Result<Vec<Stack>> {
    if machine.public().is_some() {
        let corpus = match images {
            [] => machine.private_corpus().await?.and(Corpus::public()),
            images => images.iter().try_fold(Corpus::public(), add)?,
        };
        step("Making images and pushing them to their registries", machine.seed(corpus)).await?;
    }
    let list = if images.is_empty() { SELECTED.to_owned() } else { images.join(",") };
    let public = [("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", list.as_str())];
    let mut stacks = vec![(PUBLIC_STACK, public.as_slice())];
    if images.is_empty() {
        stacks.push((ECR_STACK, ECR_PARAMETERS));
    }
    let deploy = try_join_all(stacks.iter().map(|(name, parameters)| Stack::deploy(machine, name, parameters)));
    step(if images.is_empty() { "Deploying two stacks with sam" } else { "Deploying a stack with sam" }, deploy).await
}

/// Adds the image of a list's entry.
fn add(corpus: Corpus, image: &String) -> Result<Corpus> {
    let reference: Reference = image.parse().with_context(|| image.clone())?;
    match reference.tag() {
        Some("ALL_TAGS") => Ok(corpus),
        Some(tag) => Ok(corpus.with(reference.registry(), reference.repository(), tag)),
        None => bail!("{image}: without a network, an image needs a tag"),
    }
}

/// Runs the stacks at the same time. Returns whether all succeeded.
async fn execute(stacks: &[Stack]) -> Result<bool> {
    Ok(try_join_all(stacks.iter().map(follow)).await?.into_iter().all(|succeeded| succeeded))
}

/// Runs a stack, and prints how far it is.
async fn follow(stack: &Stack) -> Result<bool> {
    let (name, started) = (stack.name(), Instant::now());
    let execution = stack.start(&json!({})).await?;
    println!("  {name}: listing images");
    let mut shown = None;
    loop {
        // In this order: the counts of an execution that has ended are final.
        let outcome = execution.describe().await?;
        let counts = stack.execution_row(execution.name()).await?;
        if outcome.status != "RUNNING" {
            let mark = if outcome.succeeded() { "✓" } else { "✗" };
            let (progress, seconds) = (progress(&counts.unwrap_or_default()), started.elapsed().as_secs_f64());
            println!("{mark} {name}: {}, {progress}, {seconds:.1} s", outcome.status.to_lowercase());
            [&outcome.error, &outcome.cause].into_iter().flatten().for_each(|text| println!("    {text}"));
            return Ok(outcome.succeeded());
        }
        if let Some(counts) = counts.filter(|counts| counts.to_copy > 0 && shown != Some(*counts)) {
            println!("  {name}: {}", progress(&counts));
            shown = Some(counts);
        }
        sleep(REFRESH).await;
    }
}

fn progress(counts: &ExecutionRow) -> String {
    let ExecutionRow { to_copy, done, failed, bytes_done, .. } = counts;
    match (to_copy, failed) {
        (0, _) => "nothing to copy".to_owned(),
        (_, 0) => format!("{done} of {to_copy} images copied, {}", megabytes(*bytes_done)),
        _ => format!("{done} of {to_copy} images copied, {}, {failed} failed", megabytes(*bytes_done)),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Sorts the images into a table.
fn table(rows: &mut [ImageRow]) -> Table {
    rows.sort_by(|a, b| (&a.image, &a.tag).cmp(&(&b.image, &b.tag)));
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(["Image", "Tag", "Status", "Digest", "Size", "Seconds"]);
    for row in rows {
        let color = if row.status == "Done" { Color::Green } else { Color::Red };
        let digest = row.digest.as_deref().unwrap_or_default().trim_start_matches("sha256:");
        table.add_row([
            Cell::new(&row.image),
            Cell::new(if row.tag.starts_with("sha256:") { "(none)" } else { &row.tag }),
            Cell::new(&row.status).fg(color),
            Cell::new(digest.get(..12).unwrap_or(digest)),
            Cell::new(row.bytes.map(megabytes).unwrap_or_default()),
            Cell::new(row.seconds.map(|seconds| seconds.to_string()).unwrap_or_default()),
        ]);
    }
    table.column_iter_mut().skip(4).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// Compares each image in both registries, and returns what is wrong.
async fn problems(machine: &Machine, rows: &[ImageRow]) -> Result<Vec<String>> {
    let private = machine.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?;
    let destination = machine.ecr(ACCOUNT, REGION).await?;
    let mut problems = Vec::new();
    for ImageRow { image, tag, error_message, source, destination: copy, .. } in rows {
        if let Some(error) = error_message {
            problems.push(format!("{image}:{tag}: {error}"));
            continue;
        }
        let (source, copy): (Reference, Reference) = (source.parse()?, copy.parse()?);
        let expected = match machine.public() {
            _ if source.registry() == private.host() => private.digest(source.repository(), tag).await?,
            Some(public) => public.digest(source.repository(), tag).await?,
            // The digest that the registry returned to the run.
            None => source.digest().map(str::to_owned),
        };
        let copied = destination.digest(copy.repository(), tag).await?;
        if copied.is_none() || copied != expected {
            problems.push(format!("{image}:{tag}: the source has {expected:?}, and ECR has {copied:?}"));
        }
    }
    Ok(problems)
}
