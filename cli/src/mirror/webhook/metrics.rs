//! The webhook's Prometheus metrics.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::admission::{Answer, Outcome};

/// In seconds. The goal is 5 ms; the API server waits for 2 s.
const BUCKETS: [f64; 11] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 2.0];

/// What [`text`](Metrics::text) is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    images: Family<Labels, Counter>,
    duration: Histogram,
    inventory_written: Gauge,
    inventory_read: Gauge,
    repositories: Gauge,
    inventory_images: Gauge,
    inventory_failures: Counter,
    certificate_expiry: Gauge,
    certificate_failures: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: &'static str,
}

impl Metrics {
    /// Metrics that are all zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("ecr_transfer_webhook");
        let duration = Histogram::new(BUCKETS);
        registry.register("request_duration_seconds", "Time to answer an admission request", duration.clone());
        let all = &mut registry;
        Self {
            requests: registered(all, "requests", "Admission requests"),
            images: registered(all, "images", "Images of containers and volumes in admission requests"),
            duration,
            inventory_written: registered(
                all,
                "inventory_written_timestamp_seconds",
                "When the inventory in use was written; 0 without one",
            ),
            inventory_read: registered(
                all,
                "inventory_read_timestamp_seconds",
                "When the inventory was last read, or found unchanged",
            ),
            repositories: registered(all, "inventory_repositories", "Repositories of the inventory"),
            inventory_images: registered(all, "inventory_images", "Tags and untagged images of the inventory"),
            inventory_failures: registered(all, "inventory_failures", "Attempts to read the inventory that failed"),
            certificate_expiry: registered(
                all,
                "certificate_expiry_timestamp_seconds",
                "When the certificate in use expires",
            ),
            certificate_failures: registered(
                all,
                "certificate_failures",
                "Attempts to load the certificate that failed",
            ),
            registry,
        }
    }

    /// Counts an answered request.
    pub fn answered(&self, answer: &Answer) {
        self.request(match answer.outcome {
            Outcome::Rewritten => "rewritten",
            Outcome::WouldRewrite => "would_rewrite",
            Outcome::Unchanged => "unchanged",
            Outcome::Unexpected(_) => "unexpected",
        });
        for (outcome, count) in [
            ("mirrored", answer.rewritten.len() as u64),
            ("already_mirrored", answer.already_mirrored),
            ("not_mirrored", answer.not_mirrored),
        ] {
            self.images.get_or_create(&Labels { outcome }).inc_by(count);
        }
    }

    /// Counts a request that is not an AdmissionReview.
    pub fn rejected(&self) {
        self.request("rejected");
    }

    fn request(&self, outcome: &'static str) {
        self.requests.get_or_create(&Labels { outcome }).inc();
    }

    /// Records how long a request took.
    pub fn took(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }

    /// Records that another inventory is in use.
    pub fn inventory_replaced(&self, written_at: SystemTime, repositories: usize, images: usize) {
        self.inventory_written.set(timestamp(written_at));
        self.repositories.set(repositories as i64);
        self.inventory_images.set(images as i64);
    }

    /// Records that the inventory in use is the latest one, or that there is no better one.
    pub fn inventory_read(&self, succeeded: bool) {
        if succeeded {
            self.inventory_read.set(timestamp(SystemTime::now()));
        } else {
            self.inventory_failures.inc();
        }
    }

    /// Records that another certificate is in use. `expires_at` is in seconds since 1970.
    pub fn certificate_replaced(&self, expires_at: i64) {
        self.certificate_expiry.set(expires_at);
    }

    /// Counts files that have no usable certificate.
    pub fn certificate_failed(&self) {
        self.certificate_failures.inc();
    }

    /// All metrics, as [`CONTENT_TYPE`].
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("memory does not fail");
        text
    }
}

fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn timestamp(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
