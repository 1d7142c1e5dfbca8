//! A client of the [OCI distribution API](https://github.com/opencontainers/distribution-spec/blob/main/spec.md). Registries
//! are not trusted: size, number and time of their responses are limited, and exceeding a limit is an error of this registry
//! only.

mod address;
mod auth;
mod http;
mod pages;
#[cfg(test)]
pub mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use backon::ExponentialBuilder;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use shared::ecr::Login;
use shared::manifest::{Manifest, at_most, is_index};
use shared::reference::{Digest, RegistryHost, Repository, Tag};
use shared::text::Excerpt;
use shared::{Error, Result};
use tokio::sync::{OnceCell, Semaphore};

use self::auth::Challenge;
use self::http::{Answer, Failure, header};
use self::pages::{Pages, link};

/// Requests to one registry at once.
const CONCURRENCY: usize = 16;

/// The tags of a page.
const PAGE: usize = 1_000;

/// The time limit of one registry for all requests. The function has 15 minutes, and queries all registries at the same time.
const TIME: Duration = Duration::from_secs(180);

/// The most bytes of a manifest, as
/// [specified](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-manifests), and of a page.
const ANSWER: usize = 4 << 20;

/// The most large responses that are read at once. Each registry has at most one of them.
const LARGE_ANSWERS: usize = 6;

/// The most bytes of the URL of a next page.
const LINK_LENGTH: usize = 4 << 10;

/// The most tags of a repository.
const TAGS: usize = 100_000;

/// The most referrers of an image.
const REFERRERS: usize = 1_000;

/// The most characters of an invalid tag in a message.
const INVALID_TAG: usize = 100;

/// The most redirects of a request.
const REDIRECTS: usize = 5;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// A client for all registries.
pub struct Client {
    pulls_left: Mutex<Option<u64>>,
    http: reqwest::Client,
    hosts: Mutex<HashMap<RegistryHost, Arc<Host>>>,
    retry: ExponentialBuilder,
    scheme: &'static str,
    large: Arc<Semaphore>,
    time: Duration,
}

/// The state of a registry.
struct Host {
    challenge: OnceCell<Challenge>,
    slots: Semaphore,
    /// For the large response that is being read.
    large: Arc<Semaphore>,
    /// The bytes of all responses.
    sent: AtomicUsize,
    /// Set by the first request.
    deadline: OnceLock<Instant>,
    /// The registry does not have the referrers API.
    has_no_referrers: AtomicBool,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            challenge: OnceCell::new(),
            slots: Semaphore::new(CONCURRENCY),
            large: Arc::new(Semaphore::new(1)),
            sent: AtomicUsize::new(0),
            deadline: OnceLock::new(),
            has_no_referrers: AtomicBool::new(false),
        }
    }
}

/// The answer to a HEAD of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub digest: Digest,
    pub is_index: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct TagList {
    /// Sorted.
    pub tags: Vec<Tag>,
    /// The number of invalid tags, and the first of them.
    pub invalid: Option<(usize, Excerpt)>,
}

impl Client {
    /// A client that only sends requests over TLS to public addresses. A registry cannot redirect it to the network of the
    /// function.
    pub fn new() -> Result<Self> {
        let builder = reqwest::Client::builder().https_only(true).dns_resolver(address::PublicOnly);
        Self::with("https", builder, ExponentialBuilder::default().with_jitter())
    }

    fn with(scheme: &'static str, builder: reqwest::ClientBuilder, retry: ExponentialBuilder) -> Result<Self> {
        let http = builder
            .user_agent(concat!("ecr-transfer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(30))
            .redirect(address::redirects(scheme, REDIRECTS))
            .build()
            .map_err(|error| Failure::from(error).into_error("the HTTP client"))?;
        Ok(Self {
            pulls_left: Mutex::default(),
            http,
            hosts: Mutex::default(),
            retry,
            scheme,
            large: Arc::new(Semaphore::new(LARGE_ANSWERS)),
            time: TIME,
        })
    }

    /// The user's remaining pulls, from Docker Hub's latest
    /// [`RateLimit-Remaining`](https://docs.docker.com/docker-hub/usage/pulls/); `None` for a user without a limit, and without
    /// a user. Docker Hub counts anonymous pulls by address, and the tasks have other addresses than this function.
    pub fn pulls_left(&self) -> Option<u64> {
        *self.pulls_left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs in for requests to a repository.
    pub async fn open(&self, repository: &Repository, login: Option<Login>) -> Result<Session<'_>> {
        let host = self.host(&repository.registry);
        let authority =
            if repository.registry.is_docker_hub() { "registry-1.docker.io" } else { repository.registry.as_str() };
        let base = Url::parse(&format!("{}://{authority}/v2/", self.scheme));
        let is_public = |url: &Url| self.scheme != "https" || address::is_public(url);
        let base = base.ok().filter(is_public).ok_or_else(|| {
            Failure::new(StatusCode::MISDIRECTED_REQUEST, "the registry's address is not public.")
                .into_error(&repository.to_string())
        })?;
        let session = Session {
            client: self,
            host,
            base,
            repository: repository.clone(),
            login,
            authorization: Mutex::default(),
        };
        session.log_in().await.map_err(|failure| failure.into_error(&repository.to_string()))?;
        Ok(session)
    }

    fn host(&self, registry: &RegistryHost) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hosts.entry(registry.clone()).or_default())
    }
}

/// Requests to one repository.
pub struct Session<'a> {
    client: &'a Client,
    host: Arc<Host>,
    base: Url,
    repository: Repository,
    login: Option<Login>,
    authorization: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Session<'_> {
    /// All tags, or an error; `None` if the repository does not exist, or listing its tags is denied.
    pub async fn tags(&self) -> Result<Option<TagList>> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default, deserialize_with = "at_most::<_, _, TAGS>")]
            tags: Vec<String>,
        }
        let first = self.url("tags/list", &[("n", &PAGE.to_string())]);
        let mut tags = BTreeSet::new();
        let mut invalid = BTreeSet::new();
        let mut pages = Pages::new("tag list");
        let mut next = Some(first.clone());
        while let Some(url) = next {
            pages.visit(&url).map_err(|message| self.unusable(&message))?;
            let answer = match self.get(Method::GET, &url, "application/json", ANSWER).await {
                Ok(answer) => answer,
                Err(failure) if failure.is_absence() && tags.is_empty() => return Ok(None),
                Err(failure) => return Err(self.failed(failure)),
            };
            let link = link(&answer.headers).map(|link| self.on_host(&url, &link)).transpose()?;
            let page = self.json::<Page>(&answer)?.tags;
            let (length, last, known) = (page.len(), page.last().cloned(), tags.len());
            for text in page {
                match Tag::try_from(text) {
                    Ok(tag) => drop(tags.insert(tag)),
                    Err(error) => drop(invalid.insert(error.text().cut(INVALID_TAG))),
                }
            }
            if tags.len() + invalid.len() > TAGS {
                return Err(self.unusable(&format!("the repository exceeds the limit of {TAGS} tags.")));
            }
            // A registry that does not support Link can have another page after a full page.
            let more = || {
                let last = last.filter(|_| length >= PAGE && tags.len() > known)?;
                Some(self.url("tags/list", &[("n", &PAGE.to_string()), ("last", &last)]))
            };
            next = link.or_else(more);
        }
        let count = invalid.len();
        let invalid = invalid.pop_first().map(|first| (count, first));
        Ok(Some(TagList { tags: tags.into_iter().collect(), invalid }))
    }

    /// The image of a tag or a digest.
    pub async fn head(&self, reference: &str) -> Result<Head> {
        let url = self.url(&format!("manifests/{reference}"), &[]);
        let answer = match self.get(Method::HEAD, &url, MANIFESTS, ANSWER).await {
            Ok(answer) => Some(answer),
            // The answer to a HEAD has no message. The GET below gets it.
            Err(failure) if failure.is_absence() => None,
            Err(failure) => return Err(self.failed(failure)),
        };
        if self.repository.registry.is_docker_hub()
            && self.login.is_some()
            && let Some(left) = answer.as_ref().and_then(|answer| header(&answer.headers, "ratelimit-remaining"))
        {
            // `76;w=21600` is 76 pulls in 21,600 seconds.
            let left = left.split(';').next().and_then(|left| left.parse().ok());
            *self.client.pulls_left.lock().unwrap_or_else(PoisonError::into_inner) = left;
        }
        let is_an_index =
            |answer: &Answer| header(&answer.headers, CONTENT_TYPE.as_str()).is_some_and(|it| is_index(&it));
        if let Some(answer) = answer
            && let Some(digest) = header(&answer.headers, "docker-content-digest")
        {
            let digest = digest
                .parse()
                .map_err(|error| self.unusable(&format!("the digest of {reference} is invalid: {error}.")))?;
            return Ok(Head { digest, is_index: is_an_index(&answer) });
        }
        // The header is optional. Without it, the digest is calculated.
        let answer = self.get(Method::GET, &url, MANIFESTS, ANSWER).await.map_err(|failure| self.failed(failure))?;
        Ok(Head { digest: Digest::of(&answer.body), is_index: is_an_index(&answer) })
    }

    /// The manifest with this digest, which is checked.
    pub async fn manifest(&self, digest: Digest) -> Result<Manifest> {
        let url = self.url(&format!("manifests/{digest}"), &[]);
        let answer = self.get(Method::GET, &url, MANIFESTS, ANSWER).await.map_err(|failure| self.failed(failure))?;
        if Digest::of(&answer.body) != digest {
            return Err(self.unusable(&format!("the content of {digest} has another digest.")));
        }
        Manifest::parse(&answer.body)
            .map_err(|error| self.unusable(&format!("the manifest {digest} is invalid: {error}")))
    }

    /// The referrers of an image; none if the registry does not have the referrers API.
    pub async fn referrers(&self, digest: Digest) -> Result<Vec<Digest>> {
        #[derive(Deserialize)]
        struct Referrer {
            digest: Digest,
        }
        #[derive(Deserialize)]
        struct Index {
            #[serde(default, deserialize_with = "at_most::<_, _, REFERRERS>")]
            manifests: Vec<Referrer>,
        }
        let mut referrers = Vec::new();
        if self.host.has_no_referrers.load(Ordering::Relaxed) {
            return Ok(referrers);
        }
        let mut pages = Pages::new("list of referrers");
        let mut next = Some(self.url(&format!("referrers/{digest}"), &[]));
        while let Some(url) = next {
            pages.visit(&url).map_err(|message| self.unusable(&message))?;
            let answer = match self.get(Method::GET, &url, "application/vnd.oci.image.index.v1+json", ANSWER).await {
                Ok(answer) => answer,
                Err(failure) => match failure.status {
                    // The registry does not have the referrers API. It returns
                    // [404](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers); some
                    // return 400 or 406. Referrers are then in tags, like those of cosign.
                    Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::NOT_ACCEPTABLE) => {
                        self.host.has_no_referrers.store(true, Ordering::Relaxed);
                        return Ok(referrers);
                    }
                    Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => return Ok(referrers),
                    _ => return Err(self.failed(failure)),
                },
            };
            next = link(&answer.headers).map(|link| self.on_host(&url, &link)).transpose()?;
            // Some registries without this API return an HTML page.
            if !header(&answer.headers, CONTENT_TYPE.as_str()).is_some_and(|it| it.contains("json"))
                && !answer.body.starts_with(b"{")
            {
                return Ok(referrers);
            }
            referrers.extend(self.json::<Index>(&answer)?.manifests.into_iter().map(|image| image.digest));
            if referrers.len() > REFERRERS {
                return Err(self.unusable(&format!("{digest} exceeds the limit of {REFERRERS} referrers.")));
            }
        }
        Ok(referrers)
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{path}", self.repository.name));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// The URL of the next page. It must be on the same host, because it gets the login.
    fn on_host(&self, page: &Url, link: &str) -> Result<Url> {
        if link.len() > LINK_LENGTH {
            return Err(self.unusable(&format!("the URL of the next page exceeds the limit of {LINK_LENGTH} bytes.")));
        }
        let next = page
            .join(link)
            .map_err(|error| self.unusable(&format!("the URL of the next page, {link:?}, is invalid: {error}")))?;
        if next.origin() == self.base.origin() {
            return Ok(next);
        }
        Err(self.unusable(&format!("the next page is on another host: {next}")))
    }

    /// The error of a response that cannot be used.
    pub fn unusable(&self, message: &str) -> Error {
        self.failed(Failure::new(StatusCode::OK, message))
    }

    fn failed(&self, failure: Failure) -> Error {
        failure.into_error(&self.repository.to_string())
    }

    fn json<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T> {
        serde_json::from_slice(&answer.body).map_err(|error| self.unusable(&format!("invalid response: {error}")))
    }
}
