//! An AWS of two ECR registries and a bucket: as slow, and as short of patience, as it is asked to be.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    error::Result,
    registry::{Image, Registry, Repository, mix, page},
    server::Server,
};

/// Decides, together with a call's number, which calls are throttled.
const SEED: u64 = 421;

/// How AWS treats its callers.
#[derive(Clone, Copy)]
pub struct Conditions {
    /// How long each call takes.
    pub latency: Duration,
    /// The share of ECR's calls that are answered with a ThrottlingException.
    pub throttled: f64,
}

/// The registries, with images to copy from one to the other.
pub struct Registries {
    /// Where images are.
    pub source: Registry,
    /// Where they are to be.
    pub destination: Registry,
}

/// What AWS was asked.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// How often it was asked for each action, throttled calls included.
    pub calls: BTreeMap<String, usize>,
    /// How many calls were throttled.
    pub throttled: usize,
    /// When images were first asked for.
    pub first_images: Option<Instant>,
    /// The size of what was put into the bucket.
    pub stored: usize,
}

/// A running AWS.
pub struct Aws {
    /// Its endpoint.
    pub server: Server,
    state: Arc<Shared>,
}

struct Shared {
    registries: Arc<Registries>,
    conditions: Conditions,
    record: Mutex<Record>,
}

impl Aws {
    /// Starts one.
    ///
    /// # Errors
    /// If there is no port for it.
    pub async fn start(registries: Arc<Registries>, conditions: Conditions) -> Result<Self> {
        let state = Arc::new(Shared { registries, conditions, record: Mutex::default() });
        let router = Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(Arc::clone(&state));
        Ok(Self { server: Server::start(router).await?, state })
    }

    /// What it was asked until now.
    #[must_use]
    pub fn record(&self) -> Record {
        self.state.record().clone()
    }
}

/// What ECR is asked, of all actions.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Request {
    registry_id: Option<String>,
    registry_ids: Vec<String>,
    repository_name: String,
    repository_names: Vec<String>,
    image_ids: Vec<ImageId>,
    max_results: Option<usize>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageId {
    image_digest: Option<String>,
    image_tag: Option<String>,
}

async fn answer(
    State(state): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok());
    let answer = match target.and_then(|target| target.split_once('.')) {
        Some((_service, action)) if state.count(action) => error("ThrottlingException", "Rate exceeded"),
        Some((_service, action)) => state.ecr(action, &headers, &body),
        None if method == Method::PUT => {
            state.store(&headers, &body);
            StatusCode::OK.into_response()
        }
        None => {
            state.record().call(&format!("{method} {}", uri.path()));
            StatusCode::NOT_IMPLEMENTED.into_response()
        }
    };
    tokio::time::sleep(state.conditions.latency).await;
    answer
}

impl Record {
    fn call(&mut self, action: &str) {
        *self.calls.entry(action.to_owned()).or_default() += 1;
    }
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nobody panics with the record in hand")
    }

    /// Counts a call, and says whether it is throttled.
    fn count(&self, action: &str) -> bool {
        let mut record = self.record();
        if action == "DescribeImages" {
            record.first_images.get_or_insert_with(Instant::now);
        }
        let number: usize = record.calls.values().sum();
        record.call(action);
        let throttled = is_throttled(number, self.conditions.throttled);
        record.throttled += usize::from(throttled);
        throttled
    }

    fn store(&self, headers: &HeaderMap, body: &Bytes) {
        // A body in signed chunks is longer than what it carries.
        let decoded = headers.get("x-amz-decoded-content-length").and_then(|value| value.to_str().ok()?.parse().ok());
        let mut record = self.record();
        record.call("PutObject");
        record.stored += decoded.unwrap_or(body.len());
    }

    fn ecr(&self, action: &str, headers: &HeaderMap, body: &Bytes) -> Response {
        let Ok(request) = serde_json::from_slice::<Request>(body) else {
            return error("SerializationException", "the request is not what this AWS understands");
        };
        let registry = self.registry(&request, headers);
        match action {
            "GetAuthorizationToken" => authorization(registry),
            "DescribeRepositories" => describe_repositories(registry, &request),
            "DescribeImages" => with_repository(registry, &request, describe_images),
            "BatchGetImage" => with_repository(registry, &request, batch_get_image),
            // Of other services, as little as there can be.
            "DescribeTasks" => answered(json!({ "tasks": [], "failures": [] }).to_string()),
            "ListExecutions" => answered(json!({ "executions": [] }).to_string()),
            "Scan" => answered(json!({ "Items": [], "Count": 0, "ScannedCount": 0 }).to_string()),
            "UpdateItem" => answered("{}".into()),
            _ => error("UnknownOperationException", &format!("this AWS does not know {action}")),
        }
    }

    /// The registry that a request names, or else that of the region for which it is signed.
    fn registry(&self, request: &Request, headers: &HeaderMap) -> &Registry {
        let Registries { source, destination } = &*self.registries;
        let is_source = match request.registry_id.as_ref().or(request.registry_ids.first()) {
            Some(account) => account == source.account,
            None => {
                let signature = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
                signature.is_some_and(|signature| signature.contains(&format!("/{}/", source.region)))
            }
        };
        if is_source { source } else { destination }
    }
}

/// Whether the call of this number is throttled, where a `share` of them is.
fn is_throttled(number: usize, share: f64) -> bool {
    let random = mix(SEED ^ number as u64) as f64 / u64::MAX as f64;
    random < share
}

fn authorization(registry: &Registry) -> Response {
    let data = json!({
        "authorizationToken": "QVdTOnRva2Vu",
        "expiresAt": 4_102_444_800_u64,
        "proxyEndpoint": registry.endpoint(),
    });
    answered(json!({"authorizationData": [data]}).to_string())
}

fn describe_repositories(registry: &Registry, request: &Request) -> Response {
    if request.repository_names.is_empty() {
        let all = &registry.repositories;
        let (range, next) = page(all.len(), request.next_token.as_deref(), request.max_results);
        return listing("repositories", all[range].iter().map(|it| it.description.as_str()), next);
    }
    let mut found = Vec::new();
    for name in &request.repository_names {
        match registry.repository(name) {
            Some(repository) => found.push(repository.description.as_str()),
            None => return no_repository(registry, name),
        }
    }
    listing("repositories", found, None)
}

fn with_repository(
    registry: &Registry,
    request: &Request,
    answer: impl Fn(&Repository, &Request) -> Response,
) -> Response {
    registry
        .repository(&request.repository_name)
        .map_or_else(|| no_repository(registry, &request.repository_name), |repository| answer(repository, request))
}

fn describe_images(repository: &Repository, request: &Request) -> Response {
    let all = &repository.images;
    let (range, next) = page(all.len(), request.next_token.as_deref(), request.max_results);
    listing("imageDetails", all[range].iter().map(|image| image.detail.as_str()), next)
}

fn batch_get_image(repository: &Repository, request: &Request) -> Response {
    let (mut images, mut failures) = (Vec::new(), Vec::new());
    for id in &request.image_ids {
        match id.of(repository) {
            Some(image) => images.push(json!({
                "imageId": {"imageDigest": image.digest, "imageTag": id.image_tag},
                "imageManifest": json!({
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                    "config": {"size": 1_000, "digest": image.digest},
                    "layers": [{"size": 20_000_000, "digest": image.digest}],
                }).to_string(),
                "imageManifestMediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "repositoryName": repository.name,
            })),
            None => failures.push(json!({
                "imageId": {"imageDigest": id.image_digest, "imageTag": id.image_tag},
                "failureCode": "ImageNotFound",
                "failureReason": "Requested image not found",
            })),
        }
    }
    answered(json!({"images": images, "failures": failures}).to_string())
}

impl ImageId {
    fn of<'a>(&self, repository: &'a Repository) -> Option<&'a Image> {
        repository.image(self.image_digest.as_deref(), self.image_tag.as_deref())
    }
}

/// A page of items that are JSON already, which saves the time to write it anew for each call.
fn listing<'a>(name: &str, items: impl IntoIterator<Item = &'a str>, next: Option<String>) -> Response {
    let items = items.into_iter().collect::<Vec<_>>().join(",");
    let next = next.map(|token| format!(r#","nextToken":"{token}""#)).unwrap_or_default();
    answered(format!(r#"{{"{name}":[{items}]{next}}}"#))
}

fn no_repository(registry: &Registry, name: &str) -> Response {
    let message =
        format!("The repository with name '{name}' does not exist in the registry with id '{}'", registry.account);
    error("RepositoryNotFoundException", &message)
}

fn error(code: &str, message: &str) -> Response {
    (StatusCode::BAD_REQUEST, answered(json!({"__type": code, "message": message}).to_string())).into_response()
}

fn answered(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/x-amz-json-1.1")], json).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_the_share_of_calls_that_was_asked_for_is_throttled() {
        let throttled = |share| (0..10_000).filter(|&number| is_throttled(number, share)).count();
        assert_eq!((throttled(0.0), throttled(1.0)), (0, 10_000));
        assert!((80..120).contains(&throttled(0.01)), "{}", throttled(0.01));
    }
}
