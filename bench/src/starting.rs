//! How long each Lambda function takes from the start of its process to its first answer, and how large it is.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::DeflateEncoder};
use local::{
    gateway::Gateway,
    proxy::{Proxy, Upstream},
};
use serde_json::{Value, json};

use crate::{
    ecr::{Conditions, Registries, registry},
    lambda::{Invocation, Lambda},
    report::{Goal, NOTHING, Report, circumstances, mebibytes, median, table},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// Where the functions were built.
    #[arg(long, default_value = ".aws-sam/build")]
    build: PathBuf,
    /// A Python with boto3.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Starts of each function; the one with the median time is reported.
    #[arg(long, default_value = "15")]
    runs: NonZeroUsize,
}

pub async fn measure(arguments: &Arguments) -> Result<Report> {
    let Arguments { build, python, runs } = arguments;
    let registries = Arc::new(Registries { source: registry(1, 1, 0), destination: registry(1, 1, 0) });
    let batch = json!({ "id": "1", "bytes": 0, "repositories": [] });
    let stopped = json!({ "detail-type": "ECS Task State Change", "detail": {
        "taskArn": "arn:aws:ecs:us-east-1:111111111111:task/cluster/1", "lastStatus": "STOPPED",
        "clusterArn": "arn:aws:ecs:us-east-1:111111111111:cluster/cluster",
    } });
    let (mut rows, mut goals) = (Vec::new(), Vec::new());
    for (name, function, payload) in [
        ("list-images", "ListImagesFunction", json!({ "execution": "run", "input": {} })),
        ("launch-task", "LaunchTaskFunction", stopped),
        ("record-status", "RecordStatusFunction", json!({ "execution": "run", "batch": batch, "result": {} })),
    ] {
        let binary = build.join(function).join("bootstrap");
        let row = start(&[&binary], &payload, &registries, *runs).await?;
        let megabytes = deflated(&binary)? as f64 / 1e6;
        goals.extend([
            Goal::at_most(&format!("{name}, first answer"), 25.0, milliseconds(&row), "ms"),
            Goal::at_most(&format!("{name}, peak memory"), 20.0, mebibytes(row.peak_memory), "MiB"),
            Goal::at_most(&format!("{name}, zip"), 5.2, megabytes, "MB"),
        ]);
        rows.push((name, row, format!("{megabytes:.2} MB")));
    }
    let handler = tempfile::Builder::new().suffix(".py").tempfile()?;
    std::fs::write(handler.path(), include_str!("starting/handler.py"))?;
    let row = start(&[python, handler.path()], &json!({}), &registries, *runs).await?;
    rows.push(("minimal function with boto3", row, NOTHING.to_owned()));
    let functions = table(
        ["Function", "Process start to first answer", "Peak memory", "Zip"],
        rows.into_iter().map(|(name, row, zip)| {
            let memory = format!("{:.0} MiB", mebibytes(row.peak_memory));
            [name.to_owned(), format!("{:.0} ms", milliseconds(&row)), memory, zip]
        }),
    );
    let parts = vec![("functions", functions), ("circumstances", circumstances(runs))];
    Ok(Report { parts, goals, picture: None })
}

async fn start(
    command: &[&Path],
    payload: &Value,
    registries: &Arc<Registries>,
    runs: NonZeroUsize,
) -> Result<Invocation> {
    let directory = tempfile::tempdir()?;
    let mut measured = Vec::new();
    for _ in 0..runs.get() {
        let function = Lambda::start(registries, Conditions::IDEAL, payload).await?;
        // TLS takes part of the time, as with AWS.
        let proxy = Proxy::start(Upstream { ecr: function.address, public: None }, directory.path()).await?;
        let gateway = Gateway::open((Ipv4Addr::LOCALHOST, 0).into(), proxy.identity(), function.address).await?;
        let bundle = proxy.ca_bundle().display().to_string();
        let endpoint = [
            ("AWS_ENDPOINT_URL", format!("https://{}", gateway.address())),
            ("SSL_CERT_FILE", bundle.clone()),
            ("AWS_CA_BUNDLE", bundle),
        ];
        measured.push(function.invoke(command, &endpoint).await?);
    }
    Ok(median(measured, |run| run.ended.duration_since(run.started)))
}

fn milliseconds(run: &Invocation) -> f64 {
    run.ended.duration_since(run.started).as_secs_f64() * 1e3
}

/// About the size of a file in a zip.
fn deflated(path: &Path) -> Result<usize> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&std::fs::read(path).with_context(|| path.display().to_string())?)?;
    Ok(encoder.finish()?.len())
}
