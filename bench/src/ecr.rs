//! An AWS with two ECR registries, as far as list-images needs one, with the latency and throttling that it is given.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use axum::{
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

pub const SOURCE: Account = Account { id: "222222222222", region: "us-west-2" };
pub const DESTINATION: Account = Account { id: "111111111111", region: "us-east-1" };

/// The most entries of an answer's page.
pub const PAGE: usize = 1_000;
const DEFAULT_PAGE: usize = 100;

pub struct Account {
    pub id: &'static str,
    pub region: &'static str,
}

impl Account {
    pub fn host(&self) -> String {
        format!("{}.dkr.ecr.{}.amazonaws.com", self.id, self.region)
    }
}

#[derive(Clone, Copy)]
pub struct Conditions {
    /// The time that each call takes.
    pub latency: Duration,
    /// The share of ECR calls that are throttled.
    pub throttled: f64,
}

impl Conditions {
    pub const IDEAL: Self = Self { latency: Duration::ZERO, throttled: 0.0 };

    /// Throttled calls are evenly spaced, so that each run has the same number of them.
    pub fn throttles(&self, call: usize) -> bool {
        let until = |calls: usize| (calls as f64 * self.throttled).floor();
        until(call + 1) > until(call)
    }
}

/// A registry's repositories by name, with their images in the JSON of `DescribeImages`.
pub type Registry = BTreeMap<String, Vec<String>>;

pub struct Registries {
    pub source: Registry,
    pub destination: Registry,
}

pub fn repository_name(number: usize) -> String {
    format!("team-{}/service-{}", number / 25 + 1, number + 1)
}

pub fn tag(number: usize) -> String {
    format!("v{}", number + 1)
}

/// A registry of `repositories` with `images` each. Two with different `variant`s have no digest in common.
pub fn registry(repositories: usize, images: usize, variant: usize) -> Registry {
    let image = |repository, number| {
        let identity = (variant * repositories + repository) * images + number;
        json!({
            "artifactMediaType": "application/vnd.docker.container.image.v1+json",
            "imageDigest": format!("sha256:{identity:064x}"),
            "imageManifestMediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "imagePushedAt": 1_700_000_000 + number,
            "imageSizeInBytes": 20_000_000 + identity * 1_299_709 % 200_000_000,
            "imageStatus": "ACTIVE",
            "imageTags": [tag(number)],
            "lastRecordedPullTime": 1_750_000_000 + number,
            "registryId": SOURCE.id,
            "repositoryName": repository_name(repository),
        })
        .to_string()
    };
    let repository = |number| (repository_name(number), (0..images).map(|it| image(number, it)).collect());
    (0..repositories).map(repository).collect()
}

impl Registries {
    pub fn answer(&self, action: &str, headers: &HeaderMap, body: &[u8]) -> Response {
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let (registry, account) = self.asked(&request, headers);
        match action {
            "GetAuthorizationToken" => answer(&json!({ "authorizationData": [{
                "authorizationToken": "QVdTOnRva2Vu",
                "expiresAt": 4_102_444_800_u64,
                "proxyEndpoint": format!("https://{}", account.host()),
            }] })),
            "DescribeRepositories" => describe_repositories(registry, &request),
            "DescribeImages" => match registry.get(text(&request["repositoryName"])) {
                Some(images) => page("imageDetails", &request, images.len(), |range| images[range].to_vec()),
                None => no_repository(&request["repositoryName"]),
            },
            // Of other services, the least that the functions need.
            "DescribeTasks" => answer(&json!({ "tasks": [], "failures": [] })),
            "ListExecutions" => answer(&json!({ "executions": [] })),
            "Scan" => answer(&json!({ "Items": [], "Count": 0, "ScannedCount": 0 })),
            "UpdateItem" => answer(&json!({})),
            _ => error("UnknownOperationException", action),
        }
    }

    /// The registry that the request names, or that of the region that it is signed for.
    fn asked(&self, request: &Value, headers: &HeaderMap) -> (&Registry, Account) {
        let account = request["registryId"].as_str().or_else(|| request["registryIds"][0].as_str());
        let signature = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_source =
            account.map_or_else(|| signature.contains(&format!("/{}/", SOURCE.region)), |it| it == SOURCE.id);
        if is_source { (&self.source, SOURCE) } else { (&self.destination, DESTINATION) }
    }
}

fn describe_repositories(registry: &Registry, request: &Value) -> Response {
    let describe = |name: &str| {
        json!({
            "createdAt": 1_700_000_000,
            "encryptionConfiguration": { "encryptionType": "AES256" },
            "imageScanningConfiguration": { "scanOnPush": false },
            "imageTagMutability": "MUTABLE",
            "registryId": SOURCE.id,
            "repositoryName": name,
        })
    };
    let Some(names) = request["repositoryNames"].as_array() else {
        let all: Vec<_> = registry.keys().collect();
        return page("repositories", request, all.len(), |range| {
            all[range].iter().map(|name| describe(name).to_string()).collect()
        });
    };
    match names.iter().find(|name| !registry.contains_key(text(name))) {
        Some(missing) => no_repository(missing),
        None => answer(&json!({ "repositories": names.iter().map(|it| describe(text(it))).collect::<Vec<_>>() })),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The page that the request asks for, of items that are JSON already: to write them for each call would take the time of
/// the function that is measured.
fn page(name: &str, request: &Value, total: usize, items: impl Fn(Range<usize>) -> Vec<String>) -> Response {
    let start = request["nextToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0).min(total);
    let limit = request["maxResults"].as_u64().map_or(DEFAULT_PAGE, |limit| limit as usize).clamp(1, PAGE);
    let end = total.min(start + limit);
    let next = if end < total { format!(r#","nextToken":"{end}""#) } else { String::new() };
    ok(format!(r#"{{"{name}":[{}]{next}}}"#, items(start..end).join(",")))
}

fn no_repository(name: &Value) -> Response {
    error("RepositoryNotFoundException", &format!("The repository {name} does not exist"))
}

pub fn error(code: &str, message: &str) -> Response {
    (StatusCode::BAD_REQUEST, answer(&json!({ "__type": code, "message": message }))).into_response()
}

fn answer(json: &Value) -> Response {
    ok(json.to_string())
}

fn ok(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/x-amz-json-1.1")], json).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_given_share_of_calls_is_throttled() {
        let throttled = |throttled| {
            let conditions = Conditions { throttled, ..Conditions::IDEAL };
            (0..10_000).filter(|&call| conditions.throttles(call)).count()
        };
        assert_eq!([0.0, 0.01, 1.0].map(throttled), [0, 100, 10_000]);
    }

    #[tokio::test]
    async fn pages_have_every_entry_once() {
        let all: Vec<String> = (0..2_500).map(|item| item.to_string()).collect();
        let (mut request, mut items, mut pages) = (json!({ "maxResults": 9_999 }), Vec::new(), 0);
        loop {
            let answer = page("items", &request, all.len(), |range| all[range].to_vec()).into_body();
            let answer = axum::body::to_bytes(answer, usize::MAX).await.expect("it is in memory");
            let answer: Value = serde_json::from_slice(&answer).expect("it is JSON");
            items.extend(answer["items"].as_array().expect("it is a list").iter().map(Value::to_string));
            pages += 1;
            if answer["nextToken"].is_null() {
                break;
            }
            request["nextToken"] = answer["nextToken"].clone();
        }
        assert_eq!((items, pages), (all, 3));
    }

    #[test]
    fn digests_differ_between_images_and_variants_only() {
        let images = |variant| registry(3, 3, variant).into_values().flatten().collect::<Vec<_>>();
        let digest =
            |image: &String| serde_json::from_str::<Value>(image).expect("it is JSON")["imageDigest"].to_string();
        assert_eq!(images(0), images(0));
        let mut digests: Vec<_> = [images(0), images(1)].concat().iter().map(digest).collect();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 18);
    }
}
