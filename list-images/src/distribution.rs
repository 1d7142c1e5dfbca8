//! A client of the [OCI distribution API](https://github.com/opencontainers/distribution-spec/blob/main/spec.md): what
//! registries hold, to the last page.
//!
//! A registry may answer anything. Each answer is limited in size, number and time, and is parsed into types that hold
//! nothing else; a registry that exceeds a limit fails by itself.

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
use self::http::{Answer, Failure, text};
use self::pages::{Pages, link};

/// Requests to one registry at a time; registries limit how fast one client may ask.
const CONCURRENCY: usize = 16;

/// The tags asked for in one page.
const PAGE: usize = 1_000;

/// The time that one registry gets for all that it is asked. The function has 15 minutes, and all registries are asked at the
/// same time.
const TIME: Duration = Duration::from_secs(180);

/// The most bytes of a manifest, as registries
/// [must take them](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-manifests), and of a page of
/// a list.
const ANSWER: usize = 4 << 20;

/// The most large answers that are read at a time, of all registries; of one registry, one.
const LARGE_ANSWERS: usize = 6;

/// The longest address of a next page.
const LINK_LENGTH: usize = 4 << 10;

/// The most tags of a repository.
const TAGS: usize = 100_000;

/// The most images that refer to one image.
const REFERRERS: usize = 1_000;

/// The most characters of what is not a tag.
const MENTIONED: usize = 100;

/// The most addresses that one request is led to.
const REDIRECTS: usize = 5;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// A client for all registries; it remembers how each wants to be asked.
pub struct Client {
    /// How many pulls Docker Hub still allows to the user that it is asked as, as it said last.
    pulls_left: Mutex<Option<u64>>,
    http: reqwest::Client,
    hosts: Mutex<HashMap<RegistryHost, Arc<Host>>>,
    retry: ExponentialBuilder,
    scheme: &'static str,
    large: Arc<Semaphore>,
    time: Duration,
}

/// A registry.
struct Host {
    challenge: OnceCell<Challenge>,
    slots: Semaphore,
    /// Held by the one large answer of this registry that is read.
    large: Arc<Semaphore>,
    /// The bytes that it has sent.
    sent: AtomicUsize,
    /// Until when it is asked; set by the first request.
    deadline: OnceLock<Instant>,
    /// Set once it has said that it does not.
    knows_no_referrers: AtomicBool,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            challenge: OnceCell::new(),
            slots: Semaphore::new(CONCURRENCY),
            large: Arc::new(Semaphore::new(1)),
            sent: AtomicUsize::new(0),
            deadline: OnceLock::new(),
            knows_no_referrers: AtomicBool::new(false),
        }
    }
}

/// An image that a registry has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its digest.
    pub digest: Digest,
    /// Whether it is an index.
    pub is_index: bool,
}

/// A page of a tag list, as far as it could be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TagList {
    /// The tags, in order.
    pub tags: Vec<Tag>,
    /// How many more there are that are not tags, and the first of these.
    pub invalid: Option<(usize, Excerpt)>,
}

impl Client {
    /// A client that asks over TLS, and only public addresses: what a registry leads to must not be the function's own
    /// surroundings.
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
            .map_err(|error| Failure::from(error).about("the HTTP client"))?;
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

    /// How many pulls the user has left, as Docker Hub's
    /// [`RateLimit-Remaining`](https://docs.docker.com/docker-hub/usage/pulls/) says; `None` for a user without a limit, and
    /// where there is no user. Docker Hub counts anonymous pulls by address, and the tasks have other addresses than this
    /// function.
    pub fn pulls_left(&self) -> Option<u64> {
        *self.pulls_left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a repository, with a login where there is one.
    pub async fn open(&self, repository: &Repository, login: Option<Login>) -> Result<Session<'_>> {
        let host = self.host(&repository.registry);
        let authority =
            if repository.registry.is_docker_hub() { "registry-1.docker.io" } else { repository.registry.as_str() };
        let base = Url::parse(&format!("{}://{authority}/v2/", self.scheme));
        let is_public = |url: &Url| self.scheme != "https" || address::is_public(url);
        let base = base.ok().filter(is_public).ok_or_else(|| {
            Failure::of(StatusCode::MISDIRECTED_REQUEST, "it is not a public address").about(&repository.to_string())
        })?;
        let session = Session {
            client: self,
            host,
            base,
            repository: repository.clone(),
            login,
            authorization: Mutex::default(),
        };
        session.log_in().await.map_err(|failure| failure.about(&repository.to_string()))?;
        Ok(session)
    }

    fn host(&self, registry: &RegistryHost) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hosts.entry(registry.clone()).or_default())
    }
}

/// A repository that is being asked.
pub struct Session<'a> {
    client: &'a Client,
    host: Arc<Host>,
    base: Url,
    repository: Repository,
    login: Option<Login>,
    authorization: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Session<'_> {
    /// All tags; `None` where there is no such repository, or it does not show its tags.
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
            pages.visit(&url).map_err(|message| self.refused(&message))?;
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
                    Err(error) => drop(invalid.insert(error.text().cut(MENTIONED))),
                }
            }
            if tags.len() + invalid.len() > TAGS {
                return Err(self.refused(&format!("it has more than the {TAGS} tags that are allowed")));
            }
            // A page that is full, and does not say what comes next, may not be the last one of a registry that has never
            // heard of Link.
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

    /// What a tag or a digest leads to.
    pub async fn head(&self, reference: &str) -> Result<Head> {
        let url = self.url(&format!("manifests/{reference}"), &[]);
        let answer = match self.get(Method::HEAD, &url, MANIFESTS, ANSWER).await {
            Ok(answer) => Some(answer),
            // There is no body that would say why.
            Err(failure) if failure.is_absence() => None,
            Err(failure) => return Err(self.failed(failure)),
        };
        // Only Docker Hub's is a limit of Docker Hub.
        if self.repository.registry.is_docker_hub()
            && self.login.is_some()
            && let Some(left) = answer.as_ref().and_then(|answer| text(&answer.headers, "ratelimit-remaining"))
        {
            // 76;w=21600 is 76 within that many seconds.
            let left = left.split(';').next().and_then(|left| left.parse().ok());
            *self.client.pulls_left.lock().unwrap_or_else(PoisonError::into_inner) = left;
        }
        let is_an_index =
            |answer: &Answer| text(&answer.headers, CONTENT_TYPE.as_str()).is_some_and(|it| is_index(&it));
        if let Some(answer) = answer
            && let Some(digest) = text(&answer.headers, "docker-content-digest")
        {
            let digest = digest.parse().map_err(|error| self.refused(&format!("{reference}: {error}")))?;
            return Ok(Head { digest, is_index: is_an_index(&answer) });
        }
        // The header is not mandatory: then the digest is that of the manifest itself.
        let answer = self.get(Method::GET, &url, MANIFESTS, ANSWER).await.map_err(|failure| self.failed(failure))?;
        Ok(Head { digest: Digest::of(&answer.body), is_index: is_an_index(&answer) })
    }

    /// The manifest with this digest.
    pub async fn manifest(&self, digest: Digest) -> Result<Manifest> {
        let url = self.url(&format!("manifests/{digest}"), &[]);
        let answer = self.get(Method::GET, &url, MANIFESTS, ANSWER).await.map_err(|failure| self.failed(failure))?;
        if Digest::of(&answer.body) != digest {
            return Err(self.refused(&format!("what it sends for {digest} has another digest")));
        }
        Manifest::parse(&answer.body).map_err(|error| self.refused(&format!("the manifest {digest} is wrong: {error}")))
    }

    /// The digests of the images that refer to `digest`, as the registry says; none where it does not know of referrers.
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
        if self.host.knows_no_referrers.load(Ordering::Relaxed) {
            return Ok(referrers);
        }
        let mut pages = Pages::new("list of referrers");
        let mut next = Some(self.url(&format!("referrers/{digest}"), &[]));
        while let Some(url) = next {
            pages.visit(&url).map_err(|message| self.refused(&message))?;
            let answer = match self.get(Method::GET, &url, "application/vnd.oci.image.index.v1+json", ANSWER).await {
                Ok(answer) => answer,
                Err(failure) => match failure.status {
                    // [404](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers), and of
                    // some registries the others, says that it does not know of referrers: they are in a tag then, which is
                    // copied with the image, as those of cosign are.
                    Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::NOT_ACCEPTABLE) => {
                        self.host.knows_no_referrers.store(true, Ordering::Relaxed);
                        return Ok(referrers);
                    }
                    Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => return Ok(referrers),
                    _ => return Err(self.failed(failure)),
                },
            };
            next = link(&answer.headers).map(|link| self.on_host(&url, &link)).transpose()?;
            // Some answer with a page for people.
            if !text(&answer.headers, CONTENT_TYPE.as_str()).is_some_and(|it| it.contains("json"))
                && !answer.body.starts_with(b"{")
            {
                return Ok(referrers);
            }
            referrers.extend(self.json::<Index>(&answer)?.manifests.into_iter().map(|image| image.digest));
            if referrers.len() > REFERRERS {
                let message = format!("more than the {REFERRERS} images that are allowed refer to {digest}");
                return Err(self.refused(&message));
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

    /// The address of the next page, which must be the same registry's: it gets our login.
    fn on_host(&self, page: &Url, link: &str) -> Result<Url> {
        if link.len() > LINK_LENGTH {
            return Err(self.refused(&format!("the address of its next page has more than {LINK_LENGTH} bytes")));
        }
        let next =
            page.join(link).map_err(|error| self.refused(&format!("its next page {link} is no address: {error}")))?;
        if next.origin() == self.base.origin() {
            return Ok(next);
        }
        Err(self.refused(&format!("its next page is on another host: {next}")))
    }

    /// The error of an answer that cannot be used.
    pub fn refused(&self, message: &str) -> Error {
        self.failed(Failure::of(StatusCode::OK, message))
    }

    fn failed(&self, failure: Failure) -> Error {
        failure.about(&self.repository.to_string())
    }

    fn json<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T> {
        serde_json::from_slice(&answer.body)
            .map_err(|error| self.refused(&format!("its answer is not as specified: {error}")))
    }
}
