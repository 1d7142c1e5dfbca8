//! How long `ecr-transfer mirror` takes with a large inventory: its commands, and the admission webhook on one core.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use procfs::process::Process;
use reqwest::{Certificate, Client};
use serde_json::{Value, json};
use shared::inventory::{MirroredImage, MirroredRepository, Writer};
use shared::reference::Digest;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};
use wait4::Wait4 as _;

use crate::report::{Goal, Report, circumstances, count, mebibytes, median, table};

const MIRROR: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";
/// The server of the printed certificate.
const HOST: &str = "ecr-transfer-webhook.ecr-transfer.svc";
const REPOSITORIES: usize = 10_000;
/// In each repository.
const TAGS: usize = 10;
/// Of the file that is rewritten.
const FILE_BYTES: usize = 1_000_000;

#[derive(clap::Args)]
pub struct Arguments {
    /// The command ecr-transfer.
    #[arg(long, default_value = "target/release/ecr-transfer")]
    command: PathBuf,
    /// Runs of each command; the one with the median time is reported.
    #[arg(long, default_value = "5")]
    runs: NonZeroUsize,
    /// Requests to the webhook, each with a pod of three containers.
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
}

pub async fn measure(arguments: &Arguments) -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let inventory_file = directory.path().join("inventory.json");
    std::fs::write(&inventory_file, inventory()?)?;
    let (commands, mut goals) = measure_commands(arguments, directory.path(), &inventory_file)?;
    let (times, peak) = measure_webhook(arguments, directory.path(), &inventory_file).await?;
    let milliseconds =
        |per_mille: usize| times[(times.len() * per_mille / 1_000).min(times.len() - 1)].as_secs_f64() * 1e3;
    goals.extend([
        Goal::at_most("webhook, 99th percentile", 5.0, milliseconds(990), "ms"),
        Goal::at_most("webhook, peak memory", 200.0, mebibytes(peak), "MiB"),
    ]);
    let cell = |per_mille| format!("{:.2} ms", milliseconds(per_mille));
    let row = [count(times.len()), cell(500), cell(990), cell(1_000), format!("{:.0} MiB", mebibytes(peak))];
    let webhook = table(["Requests", "Median", "99th percentile", "Slowest", "Peak memory"], [row]);
    let parts = vec![("commands", commands), ("webhook", webhook), ("circumstances", circumstances(arguments.runs))];
    Ok(Report { parts, goals, picture: None })
}

struct Run {
    time: Duration,
    peak_memory: u64,
}

/// The table of the commands, and their goals.
fn measure_commands(arguments: &Arguments, directory: &Path, inventory: &Path) -> Result<(String, Vec<Goal>)> {
    let deployments = directory.join("deployments.yaml");
    std::fs::write(&deployments, manifests(FILE_BYTES))?;
    let image = format!("quay.io/{}:v1.5.0", name(REPOSITORIES / 2));
    let (mut rows, mut goals) = (Vec::new(), Vec::new());
    for (what, parameters, seconds) in [
        ("resolve, one image", vec!["resolve".as_ref(), image.as_ref()], 1.0),
        ("rewrite, a file of 1 MB", vec!["rewrite".as_ref(), deployments.as_os_str()], 1.0),
        ("kubernetes, the whole policy", vec!["kubernetes".as_ref()], 5.0),
        ("list, everything", vec!["list".as_ref()], 5.0),
    ] {
        let runs = (0..arguments.runs.get()).map(|_| {
            let mut command = std::process::Command::new(&arguments.command);
            command.arg("mirror").args(&parameters).arg("--inventory").arg(inventory).stderr(Stdio::null());
            // A file, because a pipe would have to be read at the same time.
            command.stdout(std::fs::File::create(directory.join("output"))?);
            let start = Instant::now();
            let ended = command.spawn()?.wait4()?;
            ensure!(ended.status.success(), "{what} failed");
            Ok(Run { time: start.elapsed(), peak_memory: ended.rusage.maxrss })
        });
        let run = median(runs.collect::<Result<Vec<_>>>()?, |run| run.time);
        let (time, memory) = (run.time.as_secs_f64(), mebibytes(run.peak_memory));
        rows.push([what.to_owned(), format!("{time:.2} s"), format!("{memory:.0} MiB")]);
        goals.push(Goal::at_most(what, seconds, time, "s"));
        goals.push(Goal::at_most(&format!("{what}, peak memory"), 200.0, memory, "MiB"));
    }
    Ok((table(["Command", "Time", "Peak memory"], rows), goals))
}

/// The sorted times of the answers, and the most bytes of memory.
async fn measure_webhook(arguments: &Arguments, directory: &Path, inventory: &Path) -> Result<(Vec<Duration>, u64)> {
    let file = |name: &str, content: &[u8]| -> Result<PathBuf> {
        let path = directory.join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    };
    let manifests = Command::new(&arguments.command)
        .args(["mirror", "webhook", "manifests", "--image=registry.example/webhook:1", "--bucket=plans"])
        .output()
        .await
        .with_context(|| arguments.command.display().to_string())?;
    let manifests = String::from_utf8(manifests.stdout)?;
    let printed = |name: &str| -> Result<Vec<u8>> {
        let text = manifests.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        Ok(STANDARD.decode(text.with_context(|| format!("The manifests have no {name}"))?)?)
    };
    // The client has the other cores.
    let mut server = Command::new("taskset")
        .args(["--cpu-list", "0"])
        .arg(&arguments.command)
        .args(["mirror", "webhook", "serve", "--port=0", "--metrics-port=0", "--grace=0", "--inventory"])
        .arg(inventory)
        .arg("--certificate")
        .arg(file("crt", &printed("tls.crt")?)?)
        .arg("--key")
        .arg(file("key", &printed("tls.key")?)?)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let id = server.id().context("It runs")?;
    let mut log = BufReader::new(server.stderr.take().context("It is piped")?).lines();
    let mut port = Value::Null;
    while let Some(line) = log.next_line().await? {
        let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        if line["message"] == "Listening" {
            port = line["port"].clone();
        } else if line["message"] == "A new inventory is in use" {
            break;
        }
    }
    // What it logs is read, so that it never waits for a reader.
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    let address = ([127, 0, 0, 1], port.as_u64().and_then(|port| port.try_into().ok()).context("It listens")?).into();
    let client = Client::builder()
        .tls_certs_only([Certificate::from_pem(&printed("caBundle")?)?])
        .resolve(HOST, address)
        .build()?;
    let url = format!("https://{HOST}:{port}/mutate");
    let mut times = Vec::new();
    for number in 0..arguments.requests {
        let review = review(number).to_string();
        let start = Instant::now();
        let answer = client.post(&url).body(review).send().await?.text().await?;
        times.push(start.elapsed());
        ensure!(answer.contains("JSONPatch"), "The image is mirrored, but the answer is {answer}");
    }
    let peak = Process::new(id.try_into()?)?.status()?.vmhwm.context("the kernel reports no VmHWM")? << 10;
    times.sort();
    Ok((times, peak))
}

fn name(number: usize) -> String {
    format!("team-{}/service-{number}", number / 100)
}

fn inventory() -> Result<Vec<u8>> {
    let mut writer = Writer::new(&MIRROR.parse()?);
    for number in 0..REPOSITORIES {
        let image = |tag: usize| -> Result<MirroredImage> {
            let digest = Digest::of(format!("{number} {tag}").as_bytes());
            Ok(MirroredImage { tag: Some(format!("v1.{tag}.0").parse()?), digest })
        };
        writer.add(&MirroredRepository {
            source: format!("quay.io/{}", name(number)).parse()?,
            destination: format!("{MIRROR}/quay/{}", name(number)).parse()?,
            images: (0..TAGS).map(image).collect::<Result<_>>()?,
        });
    }
    Ok(writer.finish())
}

/// Deployments of about this many bytes.
fn manifests(bytes: usize) -> String {
    let mut yaml = String::new();
    for number in 0.. {
        if yaml.len() >= bytes {
            break;
        }
        let image = format!("quay.io/{}:v1.{}.0", name(number % REPOSITORIES), number % TAGS);
        yaml += &format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{ name: web-{number} }}\nspec:\n  template:\n    spec:\n      \
             containers:\n        - {{ name: web, image: '{image}' }}\n"
        );
    }
    yaml
}

/// A pod of about 10 KiB, as a Deployment makes it.
fn review(number: usize) -> Value {
    let container = |index: usize| {
        let image = format!("quay.io/{}:v1.{}.0", name((number * 7_919 + index) % REPOSITORIES), index);
        let environment =
            (0..30).map(|it| json!({ "name": format!("VARIABLE_{it}"), "value": "some value of a variable" }));
        json!({ "name": format!("c{index}"), "image": image, "env": environment.collect::<Vec<_>>(), "resources": {} })
    };
    let containers: Vec<_> = (0..3).map(container).collect();
    let pod =
        json!({ "metadata": { "generateName": "web-", "namespace": "shop" }, "spec": { "containers": containers } });
    let resource = json!({ "group": "", "version": "v1", "resource": "pods" });
    let request = json!({ "uid": number.to_string(), "resource": resource, "operation": "CREATE", "object": pod });
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request })
}
