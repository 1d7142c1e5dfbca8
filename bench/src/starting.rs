//! How long the functions take to start, and how large they are, next to the least that one in Python is.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flate2::{Compression, write::DeflateEncoder};
use local::{
    gateway::Gateway,
    proxy::{Proxy, Upstream},
};
use serde_json::json;

use crate::{
    error::{Error, Result},
    fake::{Aws, Conditions},
    goals::mebibytes,
    grid::{Grid, NOTHING, write_page},
    measure::{environment, median},
    report::machine,
    runtime,
    scenario::{Destination, Scenario},
};

/// The limits.
const TIME: Duration = Duration::from_millis(60);
const MEMORY: f64 = 20.0;
const ZIP: f64 = 5.0;

/// How long a function took, and how large it is.
struct Row {
    name: &'static str,
    /// From the start of the process to the first answer, the median.
    time: Duration,
    memory: u64,
    /// Of the zip that is uploaded; none for a runtime that is there.
    zip: Option<u64>,
}

/// A function, and what it is invoked with.
struct Function {
    name: &'static str,
    command: Vec<PathBuf>,
    payload: String,
}

/// All that was measured.
pub struct Report {
    rows: Vec<Row>,
    runs: usize,
}

impl Report {
    /// Starts each function so many times.
    ///
    /// # Errors
    /// If one of them does not answer.
    pub async fn measure(build: &Path, python: &Path, runs: usize) -> Result<Self> {
        let scenario = Scenario { repositories: 1, images: 1, destination: Destination::Same, selected: None };
        let registries = Arc::new(scenario.registries());
        let directory = tempfile::tempdir().map_err(Error::system("a temporary directory"))?;
        let handler = tempfile::Builder::new().suffix(".py").tempfile().map_err(Error::system("a temporary file"))?;
        std::fs::write(handler.path(), include_str!("starting/handler.py"))
            .map_err(Error::system("a temporary file"))?;
        let ours = |name, function: &str, payload: serde_json::Value| Function {
            name,
            command: vec![build.join(function).join("bootstrap")],
            payload: payload.to_string(),
        };
        let stopped = json!({ "detail": {
            "taskArn": "arn:aws:ecs:us-east-1:111111111111:task/cluster/1", "lastStatus": "STOPPED",
            "clusterArn": "arn:aws:ecs:us-east-1:111111111111:cluster/cluster",
        } });
        let ended = json!({ "execution": "run", "batch": { "id": "1", "bytes": 0, "repositories": [] }, "result": {} });
        let functions = [
            ours("list-images", "ListImagesFunction", json!({ "execution": "run", "input": {} })),
            ours("launch-task", "LaunchTaskFunction", stopped),
            ours("record-status", "RecordStatusFunction", ended),
            Function {
                name: "boto3, the least",
                command: vec![python.to_owned(), handler.path().to_owned()],
                payload: "{}".to_owned(),
            },
        ];
        let mut rows = Vec::new();
        for function in &functions {
            let mut measured = Vec::new();
            for _ in 0..runs {
                let aws =
                    Aws::start(Arc::clone(&registries), Conditions { latency: Duration::ZERO, throttled: 0.0 }).await?;
                // TLS, as to AWS: to trust takes time, too.
                let upstream = aws.server.address;
                let proxy = Proxy::start(Upstream { ecr: upstream, public: None }, directory.path()).await?;
                let gateway = Gateway::open((Ipv4Addr::LOCALHOST, 0).into(), proxy.identity(), upstream).await?;
                let bundle = proxy.ca_bundle().display().to_string();
                let tls = [
                    ("AWS_ENDPOINT_URL", format!("https://{}", gateway.address())),
                    ("SSL_CERT_FILE", bundle.clone()),
                    ("AWS_CA_BUNDLE", bundle),
                ];
                let more = VARIABLES.map(|(name, value)| (name, value.to_owned()));
                let variables: Vec<_> = environment(&aws).into_iter().chain(more).chain(tls).collect();
                let invocation = runtime::invoke(&function.command, &variables, function.payload.clone()).await?;
                measured.push((invocation.ended.duration_since(invocation.started), invocation.peak_memory));
            }
            let (time, memory) =
                median(measured, |run| *run).ok_or_else(|| Error::Wrong(format!("{} never ran", function.name)))?;
            let ours = function.command.len() == 1;
            let zip = if ours { Some(deflated(&function.command[0])?) } else { None };
            rows.push(Row { name: function.name, time, memory, zip });
        }
        Ok(Self { rows, runs })
    }

    /// Prints it.
    #[expect(clippy::print_stdout, reason = "this is a command, and its result")]
    pub fn print(&self) {
        println!("{}", self.table().terminal());
    }

    /// Writes the page.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, page: &Path) -> Result<()> {
        let text = include_str!("starting/page.md")
            .replace("{table}", &self.table().markdown())
            .replace("{runs}", &self.runs.to_string())
            .replace("{machine}", &machine());
        write_page(page, &text)
    }

    /// Whether all functions are within the limits.
    #[must_use]
    pub fn all_met(&self) -> bool {
        let mut ours = self.rows.iter().filter_map(|row| Some((row, row.zip?)));
        let is_within =
            |(row, zip): (&Row, u64)| row.time < TIME && mebibytes(row.memory) < MEMORY && megabytes(zip) < ZIP;
        ours.all(is_within)
    }

    fn table(&self) -> Grid {
        Grid::new(["Function", "Process start to first answer", "Peak memory", "Zip"], &self.rows, |row| {
            vec![
                row.name.to_owned(),
                format!("{:.0} ms", row.time.as_secs_f64() * 1e3),
                format!("{:.0} MiB", mebibytes(row.memory)),
                row.zip.map_or_else(|| NOTHING.to_owned(), |zip| format!("{:.2} MB", megabytes(zip))),
            ]
        })
    }
}

/// What launch-task and record-status have in their environment besides what list-images has.
const VARIABLES: [(&str, &str); 11] = [
    ("AWS_DEFAULT_REGION", "us-east-1"),
    ("CLUSTER", "cluster"),
    ("TASK_DEFINITION", "definition"),
    ("CONTAINER", "skopeo"),
    ("SUBNETS", "subnet-1"),
    ("SECURITY_GROUPS", "sg-1"),
    ("REGISTRY_AUTH_SECRET", "secret"),
    ("LOG_GROUP", "logs"),
    ("LOG_STREAM_PREFIX", "copy"),
    ("EXECUTION_TABLE", "executions"),
    ("STACK_NAME", "bench"),
];

/// About the size of a file in a zip.
fn deflated(path: &Path) -> Result<u64> {
    let failed = || Error::system(path.display().to_string());
    let bytes = std::fs::read(path).map_err(failed())?;
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&bytes).map_err(failed())?;
    Ok(encoder.finish().map_err(failed())?.len() as u64)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
