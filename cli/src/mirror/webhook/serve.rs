//! The server: HTTPS for the API server, and HTTP for probes and metrics.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::Handle;
use hyper_util::rt::TokioTimer;
use shared::inventory::Inventory;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::admission::{Answer, Outcome as Admitted, Rules, answer};
use super::certificate::{Certificate, Files};
use super::feed::{Feed, Source};
use super::metrics::{CONTENT_TYPE, Metrics};
use crate::Outcome;
use crate::mirror::inventory::Matching;

/// How often the inventory is read.
const INVENTORY_INTERVAL: Duration = Duration::from_mins(1);

/// How often the certificate's files are read.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);

/// Two objects of 3 MiB each, the most that the API server accepts, and room for the rest of a review.
const BODY_LIMIT: usize = 8 << 20;

/// The API server gives up after 2 s, as the manifests say.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// An idle connection is closed after this time. The API server's client closes one after 90 s: if the server was the first,
/// a request that is just being sent would be lost.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);

/// How long requests that are being answered have when the server ends.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// S3 answers in less than a second; an inventory of 100,000 images takes a few.
const S3_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Arguments {
    /// The bucket with the inventory: the output PlanBucket of the stack
    #[arg(long, required_unless_present = "inventory")]
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
    /// Seconds from SIGTERM to the end. The pod is not ready in this time, so that requests go to other pods
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    grace: u64,
}

/// Answers requests.
pub struct Webhook {
    feed: Feed,
    certificate: Certificate,
    metrics: Metrics,
    rules: Rules,
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
        let aws = super::aws(self.region.as_ref()).timeout_config(timeouts).load().await;
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
        Ok(Self { feed: Feed::new(source), certificate, metrics, rules, is_ending: AtomicBool::new(false) })
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
            Some(inventory) => webhook.admit(&review, &inventory),
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
