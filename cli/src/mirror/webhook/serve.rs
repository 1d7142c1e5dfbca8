//! The server: HTTPS for the API server, and HTTP for probes and metrics.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::Handle;
use clap::value_parser;
use hyper_util::rt::TokioTimer;
use shared::inventory::Inventory;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::admission::{Answer, Outcome as Admitted, Rules, answer};
use super::bucket;
use super::certificate::{Certificate, Files};
use super::feed::{Feed, Source};
use super::metrics::{CONTENT_TYPE, Metrics};
use crate::Outcome;
use crate::aws;
use crate::mirror::inventory::Matching;

/// How often the inventory is read.
const INVENTORY_INTERVAL: Duration = Duration::from_mins(1);

/// How often the certificate's files are read.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);

/// Two objects of 3 MiB each, the most that the API server accepts, and room for the rest of a review.
const BODY_LIMIT: usize = 8 << 20;

/// The most bytes of a request that is answered at once. A pod of ten containers has half of them.
const SMALL: usize = 64 << 10;

/// The API server gives up after 2 s, as the manifests say.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// An idle connection is closed after this time. The API server's client closes one after 90 s: if the server was the first,
/// a request that is just being sent would be lost.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);

/// In seconds. Whoever wants the server to end gives up long before, Kubernetes by default after 30 s.
const MAX_GRACE: u64 = 300;

/// How long requests that are being answered have when the server ends.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// S3 answers in less than a second; an inventory of 100,000 images takes a few.
const S3_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Arguments {
    /// The bucket with the inventory: the output PlanBucket of the stack
    #[arg(long, value_parser = bucket, required_unless_present = "inventory")]
    bucket: Option<String>,
    /// The bucket's region; default: as for the AWS CLI
    #[arg(long)]
    region: Option<String>,
    /// Read the inventory from a file, instead of from the bucket
    #[arg(long, value_name = "FILE", conflicts_with = "bucket")]
    inventory: Option<PathBuf>,
    #[command(flatten)]
    matching: Matching,
    /// Change no image; only annotate pods with the images that they would use
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    certificate: Files,
    /// The port for the API server
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// The port for probes and metrics, without TLS
    #[arg(long, default_value_t = 8080)]
    metrics_port: u16,
    /// Seconds to keep answering after SIGTERM, at most 300. The pod is not ready in this time, so that requests go to other pods
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = value_parser!(u64).range(..=MAX_GRACE))]
    grace: u64,
}

/// Answers requests.
pub struct Webhook {
    feed: Feed,
    certificate: Certificate,
    metrics: Metrics,
    rules: Rules,
    /// Held by the one large request that is being answered.
    large: Mutex<()>,
    is_ending: AtomicBool,
}

/// The sockets.
pub struct Listeners {
    /// For the API server.
    pub https: TcpListener,
    /// For probes and metrics.
    pub http: TcpListener,
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    tracing_subscriber::fmt().json().flatten_event(true).with_target(false).with_writer(std::io::stderr).init();
    let rules = Rules { matching: arguments.matching.value(), dry_run: arguments.dry_run };
    let webhook = Webhook::new(arguments.source().await?, &arguments.certificate, rules)?;
    let listeners = Listeners { https: listen(arguments.port)?, http: listen(arguments.metrics_port)? };
    let (https, http) = (listeners.https.local_addr()?, listeners.http.local_addr()?);
    info!(port = https.port(), metrics_port = http.port(), "Listening");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let webhook = Arc::new(webhook);
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = webhook.keep_current() => {}
        }
        webhook.is_ending.store(true, Ordering::Relaxed);
        info!("Ending");
        sleep(Duration::from_secs(arguments.grace)).await;
    };
    Arc::clone(&webhook).serve(listeners, end).await?;
    Ok(Outcome::Success)
}

impl Arguments {
    async fn source(&self) -> Result<Source> {
        if let Some(file) = &self.inventory {
            return Ok(Source::File(file.clone()));
        }
        let bucket = self.bucket.clone().context("Name the bucket with --bucket, or a file with --inventory.")?;
        let timeouts = TimeoutConfig::builder().operation_timeout(S3_TIMEOUT).build();
        let aws = aws::configuration(self.region.as_ref(), None).timeout_config(timeouts).load().await;
        Ok(Source::Bucket(aws_sdk_s3::Client::new(&aws), bucket))
    }
}

/// For IPv6 and IPv4, or IPv4 alone where the system has no IPv6.
fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| format!("Listening on port {port}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Webhook {
    /// A webhook that has its certificate, but no inventory yet.
    ///
    /// # Errors
    /// If the certificate cannot be loaded.
    pub fn new(source: Source, certificate: &Files, rules: Rules) -> Result<Self> {
        let metrics = Metrics::new();
        let certificate = Certificate::load(certificate, &metrics)?;
        let (feed, large, is_ending) = (Feed::new(source), Mutex::default(), AtomicBool::new(false));
        Ok(Self { feed, certificate, metrics, rules, large, is_ending })
    }

    /// Reads the inventory again. Failures are logged and counted.
    pub async fn refresh_inventory(&self) {
        if let Err(error) = self.feed.refresh(&self.metrics).await {
            warn!(error = format!("{error:#}"), "The inventory cannot be read. The last good one stays in use");
        }
    }

    /// Reads the certificate again. Failures are logged and counted.
    pub fn refresh_certificate(&self) {
        if let Err(error) = self.certificate.refresh(&self.metrics) {
            warn!(error = format!("{error:#}"), "The certificate cannot be loaded. The last good one stays in use");
        }
    }

    /// Reads inventory and certificate again and again.
    async fn keep_current(&self) {
        let inventory = every(INVENTORY_INTERVAL, || self.refresh_inventory());
        let certificate = every(CERTIFICATE_INTERVAL, async || self.refresh_certificate());
        tokio::join!(inventory, certificate);
    }

    /// Answers requests until `end`, and then those that are being answered.
    ///
    /// # Errors
    /// If a socket fails.
    pub async fn serve(self: Arc<Self>, listeners: Listeners, end: impl Future<Output = ()>) -> Result<()> {
        let handle = Handle::<SocketAddr>::new();
        let mut https = axum_server::from_tcp_rustls(listeners.https, self.certificate.config.clone())?
            .handle(handle.clone())
            // As the API server does: requests of one connection with HTTP/2 would all go to the same pod.
            .http1_only();
        https.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
        let mut http = axum_server::from_tcp(listeners.http)?.handle(handle.clone()).http1_only();
        http.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
        let mutate = Router::new().route("/mutate", post(mutate)).with_state(Arc::clone(&self));
        let watch = Router::new()
            .route("/livez", get(StatusCode::OK))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self);
        let end = async {
            end.await;
            handle.graceful_shutdown(Some(END_TIMEOUT));
            Ok(())
        };
        tokio::try_join!(https.serve(mutate.into_make_service()), http.serve(watch.into_make_service()), end)?;
        Ok(())
    }

    /// Answers a large request on a thread of its own, so that the others need not wait for it.
    async fn admit_large(self: &Arc<Self>, review: Bytes, inventory: Arc<Inventory>) -> Response {
        let webhook = Arc::clone(self);
        let answer = spawn_blocking(move || {
            let _turn = webhook.large.blocking_lock();
            webhook.admit(&review, &inventory)
        });
        let failed = |_| self.reject(StatusCode::INTERNAL_SERVER_ERROR, "The request cannot be answered.".into());
        answer.await.unwrap_or_else(failed)
    }

    fn admit(&self, review: &[u8], inventory: &Inventory) -> Response {
        match answer(review, inventory, self.rules) {
            Ok(answer) => {
                self.metrics.answered(&answer);
                log(&answer);
                Json(answer.review).into_response()
            }
            Err(problem) => self.reject(StatusCode::BAD_REQUEST, format!("This is not an AdmissionReview: {problem}.")),
        }
    }

    fn reject(&self, status: StatusCode, problem: String) -> Response {
        self.metrics.rejected();
        warn!(problem, "A request is rejected");
        (status, problem).into_response()
    }
}

async fn every<F: Future<Output = ()>>(period: Duration, task: impl Fn() -> F) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        task().await;
    }
}

async fn mutate(State(webhook): State<Arc<Webhook>>, request: Request<Body>) -> Response {
    let start = Instant::now();
    let response = match timeout(BODY_TIMEOUT, to_bytes(request.into_body(), BODY_LIMIT)).await {
        Ok(Ok(review)) => match webhook.feed.latest() {
            Some(inventory) if review.len() <= SMALL => webhook.admit(&review, &inventory),
            Some(inventory) => webhook.admit_large(review, inventory).await,
            None => webhook.reject(StatusCode::SERVICE_UNAVAILABLE, "There is no inventory yet.".into()),
        },
        Ok(Err(error)) => webhook.reject(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("The request has more than {BODY_LIMIT} bytes, or ended early: {error}."),
        ),
        Err(_) => webhook.reject(StatusCode::REQUEST_TIMEOUT, "The request did not arrive in time.".into()),
    };
    webhook.metrics.took(start.elapsed());
    response
}

async fn readyz(State(webhook): State<Arc<Webhook>>) -> (StatusCode, &'static str) {
    if webhook.is_ending.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "ending\n")
    } else if webhook.feed.latest().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "no inventory yet\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn metrics(State(webhook): State<Arc<Webhook>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], webhook.metrics.text())
}

/// One line for each pod that is rewritten, or that the webhook is not registered for.
fn log(answer: &Answer) {
    let images = || serde_json::to_string(&answer.rewritten).unwrap_or_default();
    match &answer.outcome {
        Admitted::Rewritten => info!(pod = %answer.pod, images = images(), "Rewritten"),
        Admitted::WouldRewrite => info!(pod = %answer.pod, images = images(), "Would be rewritten"),
        Admitted::Unchanged => {}
        Admitted::Unexpected(problem) => warn!(%problem, "The request is allowed without a change"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::pin::pin;

    use clap::Parser;
    use fs_err as fs;
    use reqwest::Client;
    use serde_json::{Value, json};
    use shared::inventory::{MirroredImage, MirroredRepository, Writer};
    use shared::reference::Digest;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::super::manifests::Issued;
    use super::*;

    const MIRROR: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";
    const SERVICE: &str = "ecr-transfer-webhook.ecr-transfer.svc";

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// A webhook that runs, with its files. It reads them again when the test says so.
    struct Running {
        directory: tempfile::TempDir,
        webhook: Arc<Webhook>,
        https: SocketAddr,
        http: SocketAddr,
        ca: String,
        end: oneshot::Sender<()>,
        server: JoinHandle<Result<()>>,
    }

    impl Running {
        async fn start() -> Self {
            let directory = tempfile::tempdir().expect("there is room");
            let ca = certify(directory.path());
            let path = |name: &str| directory.path().join(name).display().to_string();
            let line =
                ["serve", "--inventory", &path("inventory"), "--certificate", &path("crt"), "--key", &path("key")];
            let arguments = Command::try_parse_from(line).expect("it is complete").arguments;
            let source = arguments.source().await.expect("it is a file");
            let webhook = Webhook::new(source, &arguments.certificate, Rules::default()).expect("it has a certificate");
            let webhook = Arc::new(webhook);
            let listeners = Listeners { https: listen(0).expect("it is free"), http: listen(0).expect("it is free") };
            let local = |listener: &TcpListener| {
                SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr().expect("it is bound").port()))
            };
            let (https, http) = (local(&listeners.https), local(&listeners.http));
            let (end, ended) = oneshot::channel();
            let ended = async { ended.await.unwrap_or_default() };
            let server = tokio::spawn(Arc::clone(&webhook).serve(listeners, ended));
            Self { directory, webhook, https, http, ca, end, server }
        }

        async fn with_inventory() -> Self {
            let running = Self::start().await;
            running.write_inventory(&inventory("1.27"));
            running.webhook.refresh_inventory().await;
            running
        }

        fn write_inventory(&self, json: &[u8]) {
            fs::write(self.directory.path().join("inventory"), json).expect("it can be written");
        }

        /// A client with connections of its own, that trusts an authority.
        fn client(&self, ca: &str) -> Client {
            let ca = reqwest::Certificate::from_pem(ca.as_bytes()).expect("it is PEM");
            Client::builder().tls_certs_only([ca]).resolve(SERVICE, self.https).build().expect("it is complete")
        }

        async fn post(&self, client: &Client, body: impl Into<reqwest::Body>) -> reqwest::Result<(u16, String)> {
            let url = format!("https://{SERVICE}:{}/mutate", self.https.port());
            let answer = client.post(url).body(body).send().await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        }

        /// The image that a pod with `nginx:1.27` gets, as far as it is a new one.
        async fn admitted(&self) -> Option<String> {
            let (status, text) = self.post(&self.client(&self.ca), review()).await.expect("it answers");
            assert_eq!(status, 200, "{text}");
            let answer: Value = serde_json::from_str(&text).expect("it is JSON");
            assert_eq!(answer["response"]["allowed"], true);
            use base64::Engine as _;
            let patch = answer["response"]["patch"].as_str()?;
            let patch = base64::engine::general_purpose::STANDARD.decode(patch).expect("it is base64");
            let patch: Value = serde_json::from_slice(&patch).expect("it is JSON");
            patch[0]["value"].as_str().map(Into::into)
        }

        async fn get(&self, path: &str) -> (u16, String) {
            let answer = reqwest::get(format!("http://{}{path}", self.http)).await.expect("it answers");
            (answer.status().as_u16(), answer.text().await.expect("it is text"))
        }

        /// The value of a metric.
        async fn metric(&self, name: &str) -> f64 {
            let (_, text) = self.get("/metrics").await;
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("ecr_transfer_webhook_{name} ")));
            line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is not in {text}"))
        }
    }

    /// Writes a new certificate, and returns its authority.
    fn certify(directory: &Path) -> String {
        let Issued { ca, certificate, key } = Issued::new(SERVICE).expect("it is a name");
        fs::write(directory.join("crt"), certificate).expect("it can be written");
        fs::write(directory.join("key"), key).expect("it can be written");
        ca
    }

    fn inventory(tag: &str) -> Vec<u8> {
        let mut inventory = Writer::new(&MIRROR.parse().expect("it is a host"));
        inventory.add(&MirroredRepository {
            source: "docker.io/library/nginx".parse().expect("it is a repository"),
            destination: format!("{MIRROR}/nginx").parse().expect("it is a repository"),
            images: vec![MirroredImage { tag: tag.parse().ok(), digest: Digest::of(b"") }],
        });
        inventory.finish()
    }

    fn review() -> String {
        let pod = json!({ "spec": { "containers": [{ "name": "web", "image": "nginx:1.27" }] } });
        let resource = json!({ "group": "", "version": "v1", "resource": "pods" });
        let request = json!({ "uid": "1", "resource": resource, "operation": "CREATE", "object": pod });
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request }).to_string()
    }

    fn mirror(tag: &str) -> Option<String> {
        Some(format!("{MIRROR}/nginx:{tag}"))
    }

    #[tokio::test]
    async fn it_is_ready_when_it_has_an_inventory() {
        let running = Running::start().await;
        assert_eq!(running.get("/livez").await.0, 200);
        assert_eq!(running.get("/readyz").await, (503, "no inventory yet\n".into()));
        let (status, _) = running.post(&running.client(&running.ca), review()).await.expect("it answers");
        assert_eq!(status, 503);
        running.webhook.refresh_inventory().await;
        assert_eq!(running.get("/readyz").await.0, 503);
        assert_eq!(running.metric("inventory_failures_total").await, 1.0);
        assert_eq!(running.metric("inventory_written_timestamp_seconds").await, 0.0);

        running.write_inventory(&inventory("1.27"));
        running.webhook.refresh_inventory().await;
        assert_eq!(running.get("/readyz").await, (200, "ready\n".into()));
        assert_eq!(running.admitted().await, mirror("1.27"));
        assert_eq!(running.metric("inventory_images").await, 1.0);
        assert!(running.metric("inventory_written_timestamp_seconds").await > 0.0);
    }

    #[tokio::test]
    async fn the_last_good_inventory_stays_until_there_is_a_better_one() {
        let running = Running::with_inventory().await;
        let newer = br#"{"version": 2, "repositories": []}"#;
        let truncated = inventory("1.28");
        for broken in [&newer[..], b"", &truncated[..truncated.len() - 1]] {
            running.write_inventory(broken);
            running.webhook.refresh_inventory().await;
            assert_eq!(running.admitted().await, mirror("1.27"));
        }
        fs::remove_file(running.directory.path().join("inventory")).expect("it is there");
        running.webhook.refresh_inventory().await;
        assert_eq!(running.admitted().await, mirror("1.27"));
        assert_eq!(running.get("/readyz").await.0, 200);
        assert_eq!(running.metric("inventory_failures_total").await, 4.0);

        running.write_inventory(&inventory("1.28"));
        running.webhook.refresh_inventory().await;
        assert_eq!(running.admitted().await, None);
    }

    #[tokio::test]
    async fn a_new_certificate_is_used_and_a_broken_one_is_not() {
        let mut running = Running::with_inventory().await;
        let former = std::mem::take(&mut running.ca);
        running.ca = certify(running.directory.path());
        // The pod has the new files a while after the API server has the new authority. It trusts both.
        assert!(running.post(&running.client(&running.ca), review()).await.is_err());
        running.webhook.refresh_certificate();
        assert_eq!(running.admitted().await, mirror("1.27"));
        assert!(running.post(&running.client(&former), review()).await.is_err());
        let expiry = running.metric("certificate_expiry_timestamp_seconds").await;
        assert!(expiry > 2e9, "{expiry}");

        let (crt, key) = (running.directory.path().join("crt"), running.directory.path().join("key"));
        let other = Issued::new(SERVICE).expect("it is a name");
        for (file, content) in
            [(&key, other.key.as_str()), (&crt, ""), (&crt, "-----BEGIN"), (&key, &other.certificate)]
        {
            fs::write(file, content).expect("it can be written");
            running.webhook.refresh_certificate();
            assert_eq!(running.admitted().await, mirror("1.27"));
        }
        assert_eq!(running.metric("certificate_failures_total").await, 4.0);
    }

    #[tokio::test]
    async fn requests_and_images_are_counted() {
        let running = Running::with_inventory().await;
        running.admitted().await;
        running.admitted().await;
        let client = running.client(&running.ca);
        let post = async |body: Vec<u8>| running.post(&client, body).await.expect("it answers").0;
        assert_eq!(post(review().replace("nginx:1.27", "redis").into()).await, 200);
        assert_eq!(post(review().replace("CREATE", "DELETE").into()).await, 200);
        assert_eq!(post(b"{}".to_vec()).await, 400);
        for (name, count) in [
            ("requests_total{outcome=\"rewritten\"}", 2.0),
            ("requests_total{outcome=\"unchanged\"}", 1.0),
            ("requests_total{outcome=\"unexpected\"}", 1.0),
            ("requests_total{outcome=\"rejected\"}", 1.0),
            ("images_total{outcome=\"mirrored\"}", 2.0),
            ("images_total{outcome=\"not_mirrored\"}", 1.0),
            ("request_duration_seconds_count", 5.0),
        ] {
            assert_eq!(running.metric(name).await, count, "{name}");
        }
    }

    #[tokio::test]
    async fn a_request_has_a_limit() {
        let running = Running::with_inventory().await;
        let client = running.client(&running.ca);
        let padded = |length: usize| {
            let review = review();
            review.clone() + &" ".repeat(length - review.len())
        };
        let (status, _) = running.post(&client, padded(BODY_LIMIT)).await.expect("it answers");
        assert_eq!(status, 200);
        // The server may close the connection while the rest is being sent.
        let answer = running.post(&client, padded(BODY_LIMIT + 1)).await;
        assert!(answer.is_err() || answer.is_ok_and(|(status, _)| status == 413));
        assert_eq!(running.admitted().await, mirror("1.27"));
        assert_eq!(running.metric("requests_total{outcome=\"rejected\"}").await, 1.0);
    }

    #[tokio::test]
    async fn a_small_request_is_answered_while_a_large_one_is_being_worked_on() {
        let running = Running::with_inventory().await;
        let client = running.client(&running.ca);
        let turn = running.webhook.large.lock().await;
        let mut large = pin!(running.post(&client, review() + &" ".repeat(SMALL)));
        for _ in 0..10 {
            tokio::select! {
                answer = &mut large => panic!("It is answered before its turn: {answer:?}"),
                image = running.admitted() => assert_eq!(image, mirror("1.27")),
            }
        }
        drop(turn);
        assert_eq!(large.await.expect("it answers").0, 200);
    }

    #[tokio::test]
    async fn it_ends_when_it_is_told_and_is_not_ready_before() {
        let running = Running::with_inventory().await;
        running.webhook.is_ending.store(true, Ordering::Relaxed);
        assert_eq!(running.get("/readyz").await, (503, "ending\n".into()));
        assert_eq!(running.admitted().await, mirror("1.27"));
        running.end.send(()).expect("it waits");
        running.server.await.expect("it does not panic").expect("it ends");
    }

    #[test]
    fn a_bucket_or_a_file_is_needed_and_the_grace_is_limited() {
        for (line, is_valid) in [
            (&["serve"][..], false),
            (&["serve", "--bucket", "plans"], true),
            (&["serve", "--inventory", "f"], true),
            (&["serve", "--bucket", "plans", "--inventory", "f"], false),
            (&["serve", "--bucket", "plans", "--grace", "300"], true),
            (&["serve", "--bucket", "plans", "--grace", "301"], false),
        ] {
            assert_eq!(Command::try_parse_from(line).is_ok(), is_valid, "{line:?}");
        }
    }
}
