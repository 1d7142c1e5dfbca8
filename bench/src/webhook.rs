//! How long the admission webhook takes to answer, on one core and with a large inventory.

use std::{
    path::PathBuf,
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

use crate::report::{Goal, Report, count, mebibytes, table};

const MIRROR: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";
/// The server of the printed certificate.
const HOST: &str = "ecr-transfer-webhook.ecr-transfer.svc";
const REPOSITORIES: usize = 10_000;
/// In each repository.
const TAGS: usize = 10;

#[derive(clap::Args)]
pub struct Arguments {
    /// The command ecr-transfer.
    #[arg(long, default_value = "target/release/ecr-transfer")]
    command: PathBuf,
    /// Requests, each with a pod of three containers.
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
}

pub async fn measure(arguments: &Arguments) -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str, content: &[u8]| -> Result<PathBuf> {
        let path = directory.path().join(name);
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
        .arg(file("inventory", &inventory()?)?)
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
    Ok(report(&times, peak))
}

fn report(times: &[Duration], peak: u64) -> Report {
    let milliseconds =
        |per_mille: usize| times[(times.len() * per_mille / 1_000).min(times.len() - 1)].as_secs_f64() * 1e3;
    let cell = |per_mille| format!("{:.2} ms", milliseconds(per_mille));
    let memory = format!("{:.0} MiB", mebibytes(peak));
    let row = [count(REPOSITORIES * TAGS), cell(500), cell(990), cell(1_000), memory];
    let header = ["Images", "Median", "99th percentile", "Slowest", "Peak memory"];
    let goals = vec![
        Goal::at_most("Answer of the webhook, 99th percentile", 5.0, milliseconds(990), "ms"),
        Goal::at_most("Memory of the webhook", 200.0, mebibytes(peak), "MiB"),
    ];
    Report { parts: vec![("webhook", table(header, [row]))], goals, picture: None }
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
