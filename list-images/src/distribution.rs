//! A client of the [OCI distribution API](https://github.com/opencontainers/distribution-spec/blob/main/spec.md): what
//! registries hold, to the last page.
//!
//! A registry may answer anything. Each answer is limited in size, number and time, and is parsed into types that hold
//! nothing else; a registry that exceeds a limit fails by itself.

mod address;

use std::collections::{BTreeSet, HashMap};
use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LINK, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use shared::ecr::Login;
use shared::manifest::{Manifest, at_most, is_index};
use shared::reference::{Digest, RegistryHost, Repository, Tag};
use shared::text::Excerpt;
use shared::{Error, Result};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

/// Requests to one registry at a time; registries limit how fast one client may ask.
const CONCURRENCY: usize = 16;

/// The tags asked for in one page.
const PAGE: usize = 1_000;

/// A token that is younger has not expired: who is refused with it has no access.
const TOKEN_LIVES: Duration = Duration::from_secs(60);

/// No answer tells to wait for longer than this; the run would take too long.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The time that one registry gets for all that it is asked. The function has 15 minutes, and all registries are asked at the
/// same time.
const TIME: Duration = Duration::from_secs(180);

/// The most bytes of a manifest, as registries
/// [must take them](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-manifests), and of a page of
/// a list.
const ANSWER: usize = 4 << 20;

/// The most bytes of an error and of a token.
const SMALL_ANSWER: usize = 64 << 10;

/// Most answers are smaller. Of larger ones only [`LARGE_ANSWERS`] are read at a time: what registries send must fit into
/// the function's memory.
const LARGE: usize = 64 << 10;

/// See [`LARGE`]. Of one registry, one at a time.
const LARGE_ANSWERS: usize = 6;

/// The most bytes that one registry sends in a run.
const ALL_ANSWERS: usize = 256 << 20;

/// The longest address of a next page.
const LINK_LENGTH: usize = 4 << 10;

/// The most tags of a repository.
const TAGS: usize = 100_000;

/// The most pages of a list.
const PAGES: usize = 1_000;

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

/// How a registry wants to be logged in to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    None,
    Basic,
    Bearer { realm: Url, service: Option<String> },
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

/// An answer that was read to its end.
struct Answer {
    headers: HeaderMap,
    body: Vec<u8>,
    _permits: Permits,
}

/// Held while a large body is in memory: the registry's own, and one of all.
type Permits = Vec<OwnedSemaphorePermit>;

/// What went wrong with one request.
#[derive(Debug)]
struct Failure {
    status: Option<StatusCode>,
    message: Excerpt,
    retry_after: Option<Duration>,
}

impl Failure {
    /// An answer with this status that cannot be used.
    fn of(status: StatusCode, message: &str) -> Self {
        Self { status: Some(status), message: Excerpt::new(message), retry_after: None }
    }

    fn is_transient(&self) -> bool {
        self.status.is_none_or(|status| status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error())
    }

    /// Whether the registry exceeded a limit, or led to where it must not.
    fn is_limit(&self) -> bool {
        const LIMITS: [StatusCode; 3] =
            [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::REQUEST_TIMEOUT, StatusCode::MISDIRECTED_REQUEST];
        self.status.is_some_and(|status| LIMITS.contains(&status))
    }

    fn is_absence(&self) -> bool {
        matches!(self.status, Some(StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }

    fn about(self, subject: &str) -> Error {
        Error::Registry {
            subject: subject.to_owned(),
            status: self.status.map(|status| status.as_u16()),
            message: self.message,
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let url = error.url().map(|url| format!("{}{}", url.host_str().unwrap_or_default(), url.path()));
        let mut cause: &dyn StdError = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let message = Excerpt::new(&format!("{}: {cause}", url.unwrap_or_default()));
        // Where it was led to will be the same the next time.
        let status = error.is_redirect().then_some(StatusCode::MISDIRECTED_REQUEST);
        Self { status, message, retry_after: None }
    }
}

impl Client {
    /// A client that asks over TLS, and only public addresses: what a registry leads to must not be the function's own
    /// surroundings.
    ///
    /// # Errors
    /// When the system's certificates cannot be read.
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
    #[must_use]
    pub fn pulls_left(&self) -> Option<u64> {
        *self.pulls_left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a repository, with a login where there is one.
    ///
    /// # Errors
    /// When the registry cannot be reached, or refuses the login.
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

    /// Reads an answer of `host`, if it is a good one and has at most `limit` bytes.
    async fn read(&self, host: &Host, response: Response, limit: usize) -> Result<Answer, Failure> {
        let status = response.status();
        if !status.is_success() {
            return Err(self.problem(host, response).await);
        }
        let headers = response.headers().clone();
        let (body, _permits) = self.body(host, response, limit).await?;
        Ok(Answer { headers, body, _permits })
    }

    /// The body of a response. A large one waits for its turn.
    async fn body(&self, host: &Host, mut response: Response, limit: usize) -> Result<(Vec<u8>, Permits), Failure> {
        let (mut body, mut permits) = (Vec::new(), Permits::new());
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > limit {
                let message = format!("{} sends more than the {limit} bytes that are allowed", place(response.url()));
                return Err(Failure::of(StatusCode::PAYLOAD_TOO_LARGE, &message));
            }
            if host.sent.fetch_add(chunk.len(), Ordering::Relaxed) > ALL_ANSWERS {
                let message = format!("the registry sends more than the {ALL_ANSWERS} bytes that are allowed in a run");
                return Err(Failure::of(StatusCode::PAYLOAD_TOO_LARGE, &message));
            }
            if permits.is_empty() && body.len() + chunk.len() > LARGE {
                for semaphore in [&host.large, &self.large] {
                    permits.extend(Arc::clone(semaphore).acquire_owned().await);
                }
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body, permits))
    }

    /// What a registry says is wrong. Of a long answer, only that it is one.
    async fn problem(&self, host: &Host, response: Response) -> Failure {
        #[derive(Default, Deserialize)]
        struct Problem {
            code: Option<String>,
            message: Option<String>,
        }
        #[derive(Default, Deserialize)]
        struct Problems {
            #[serde(default)]
            errors: Vec<Problem>,
        }
        let (status, place) = (response.status(), place(response.url()));
        let retry_after = text(response.headers(), RETRY_AFTER.as_str());
        let body = self.body(host, response, SMALL_ANSWER).await.map(|(body, _)| body).unwrap_or_default();
        let problems: Problems = serde_json::from_slice(&body).unwrap_or_default();
        let words = problems.errors.into_iter().next().and_then(|problem| problem.message.or(problem.code));
        Failure {
            status: Some(status),
            message: Excerpt::new(&match words {
                Some(words) => format!("{place} answers {status}: {words}"),
                None => format!("{place} answers {status}"),
            }),
            retry_after: retry_after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs),
        }
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
    ///
    /// # Errors
    /// When the registry does not answer to the last page, or has too many of them.
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
    ///
    /// # Errors
    /// When the registry does not have it, does not let us see it, or does not answer.
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
    ///
    /// # Errors
    /// When the registry does not have it, has something else in its place, or does not answer.
    pub async fn manifest(&self, digest: Digest) -> Result<Manifest> {
        let url = self.url(&format!("manifests/{digest}"), &[]);
        let answer = self.get(Method::GET, &url, MANIFESTS, ANSWER).await.map_err(|failure| self.failed(failure))?;
        if Digest::of(&answer.body) != digest {
            return Err(self.refused(&format!("what it sends for {digest} has another digest")));
        }
        Manifest::parse(&answer.body).map_err(|error| self.refused(&format!("the manifest {digest} is wrong: {error}")))
    }

    /// The digests of the images that refer to `digest`, as the registry says; none where it does not know of referrers.
    ///
    /// # Errors
    /// When the registry refuses, does not answer to the last page, or has too many of them.
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

    /// Asks, as often as it takes: again with a new token where the old one has expired, and again a little later where
    /// the registry is busy.
    async fn get(&self, method: Method, url: &Url, accept: &str, limit: usize) -> Result<Answer, Failure> {
        let attempt = || async {
            let _slot = self.host.slots.acquire().await;
            let response = self.send(&method, url, accept).await?;
            let response = if response.status() == StatusCode::UNAUTHORIZED && self.token_may_have_expired() {
                self.log_in().await?;
                self.send(&method, url, accept).await?
            } else {
                response
            };
            self.client.read(&self.host, response, limit).await
        };
        self.retried(attempt).await
    }

    async fn send(&self, method: &Method, url: &Url, accept: &str) -> Result<Response, Failure> {
        let mut request = self.client.http.request(method.clone(), url.clone()).header(ACCEPT, accept);
        if let Some((authorization, _)) = &*self.authorization.lock().unwrap_or_else(PoisonError::into_inner) {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        Ok(request.send().await?)
    }

    /// Tries until it succeeds, fails for good, or the registry's time is up.
    async fn retried<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let last = Mutex::new(None);
        let attempts = attempt
            .retry(self.client.retry)
            .when(Failure::is_transient)
            .notify(|failure, _| *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.message.clone()))
            .adjust(|failure, wait| wait.map(|wait| failure.retry_after.map_or(wait, |told| told.min(LONGEST_WAIT))));
        let time = self.client.time;
        let deadline = *self.host.deadline.get_or_init(|| Instant::now() + time);
        let in_time = async { if Instant::now() < deadline { attempts.await } else { std::future::pending().await } };
        timeout_at(deadline.into(), in_time).await.unwrap_or_else(|_elapsed| {
            let last = last.lock().unwrap_or_else(PoisonError::into_inner).take();
            let last = last.map(|last| format!("; the last failure: {last}")).unwrap_or_default();
            let message =
                format!("the registry takes longer than the {} seconds that are allowed{last}", time.as_secs());
            Err(Failure::of(StatusCode::REQUEST_TIMEOUT, &message))
        })
    }

    fn token_may_have_expired(&self) -> bool {
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        authorization.as_ref().is_some_and(|(_, since)| since.elapsed() > TOKEN_LIVES)
    }

    /// Gets what requests are authorized with, as the registry wants it.
    async fn log_in(&self) -> Result<(), Failure> {
        let challenge = self.host.challenge.get_or_try_init(|| self.challenge()).await?;
        let basic = |login: &Login| authorization("Basic", &login.token);
        let header = match (challenge, &self.login) {
            (Challenge::None, _) | (Challenge::Basic, None) => None,
            (Challenge::Basic, Some(login)) => Some(basic(login)?),
            (Challenge::Bearer { realm, service }, login) => {
                #[derive(Deserialize)]
                struct Token {
                    token: Option<String>,
                    access_token: Option<String>,
                }
                let scope = format!("repository:{}:pull", self.repository.name);
                let mut url = realm.clone();
                url.query_pairs_mut()
                    .extend_pairs(service.iter().map(|service| ("service", service.as_str())))
                    .append_pair("scope", &scope);
                let login = login.as_ref().map(basic).transpose()?;
                let answer = self
                    .retried(|| async {
                        let request = self.client.http.get(url.clone());
                        let request = match &login {
                            Some(login) => request.header(AUTHORIZATION, login.clone()),
                            None => request,
                        };
                        self.client.read(&self.host, request.send().await?, SMALL_ANSWER).await
                    })
                    .await?;
                let token: Token = serde_json::from_slice(&answer.body)
                    .map_err(|error| Failure::of(StatusCode::OK, &format!("{}: not a token: {error}", place(&url))))?;
                let token = token.token.or(token.access_token).unwrap_or_default();
                (!token.is_empty()).then(|| authorization("Bearer", &token)).transpose()?
            }
        };
        let now = Instant::now();
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = header.map(|header| (header, now));
        Ok(())
    }

    async fn challenge(&self) -> Result<Challenge, Failure> {
        let response = self
            .retried(|| async {
                let response = self.client.http.get(self.base.clone()).send().await?;
                if response.status() == StatusCode::UNAUTHORIZED || response.status().is_success() {
                    Ok(response)
                } else {
                    Err(self.client.problem(&self.host, response).await)
                }
            })
            .await;
        let response = match response {
            Ok(response) => response,
            Err(failure) if failure.is_transient() || failure.is_limit() => return Err(failure),
            // Some hide this page; the repository's own answer will tell.
            Err(_) => return Ok(Challenge::None),
        };
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges
            .iter()
            .filter_map(|header| http_auth::parse_challenges(header.to_str().ok()?).ok())
            .flatten()
            .collect();
        let parameter = |challenge: &http_auth::ChallengeRef<'_>, name: &str| {
            let (_, value) = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value.to_unescaped())
        };
        let bearer = challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case("Bearer"));
        if let Some(bearer) = bearer {
            let realm = parameter(bearer, "realm").unwrap_or_default();
            return match Url::parse(&realm) {
                // The password goes there.
                Ok(url) if address::is_allowed(self.client.scheme, &url) => {
                    Ok(Challenge::Bearer { realm: url, service: parameter(bearer, "service") })
                }
                _ => {
                    let scheme = self.client.scheme;
                    let message = format!("it hands out tokens at {realm:?}, which is not a public {scheme} address");
                    Err(Failure::of(StatusCode::MISDIRECTED_REQUEST, &message))
                }
            };
        }
        let is_basic = challenges.iter().any(|challenge| challenge.scheme.eq_ignore_ascii_case("Basic"));
        Ok(if is_basic { Challenge::Basic } else { Challenge::None })
    }
}

/// The pages of a list that were read.
struct Pages {
    list: &'static str,
    seen: BTreeSet<Url>,
}

impl Pages {
    fn new(list: &'static str) -> Self {
        Self { list, seen: BTreeSet::new() }
    }

    /// Enters a page.
    ///
    /// # Errors
    /// When it was read already, or there are too many.
    fn visit(&mut self, page: &Url) -> Result<(), String> {
        if !self.seen.insert(page.clone()) {
            return Err(format!("the pages of its {} go in circles", self.list));
        }
        if self.seen.len() > PAGES {
            return Err(format!("its {} has more than the {PAGES} pages that are allowed", self.list));
        }
        Ok(())
    }
}

fn authorization(scheme: &str, token: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("{scheme} {token}"))
        .map_err(|_| Failure::of(StatusCode::UNAUTHORIZED, "its token has characters that a header cannot carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Host and path of an address, for messages.
fn place(url: &Url) -> String {
    format!("{}{}", url.host_str().unwrap_or_default(), url.path())
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|text| text.trim().to_owned())
}

/// The address of the next page: `Link: </v2/…>; rel="next"`.
fn link(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(LINK)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(','))
        .find_map(|link| {
            let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let is_next = parameters.split(';').map(str::trim).any(|it| matches!(it, "rel=\"next\"" | "rel=next"));
            is_next.then(|| address.to_owned())
        })
}

#[cfg(test)]
pub mod tests {
    //! Against a registry that says what it is told to.

    use axum::Router;
    use axum::body::Body;
    use axum::http::{Request, Response as Answer};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use std::net::SocketAddr;

    use reqwest::header::HOST;

    use super::*;

    /// A client that asks over plain HTTP, and does not wait long before it asks again.
    pub fn client() -> Client {
        let retry = ExponentialBuilder::default().with_min_delay(Duration::from_millis(1));
        Client::with("http", reqwest::Client::builder(), retry).expect("it needs no certificates")
    }

    /// Starts a registry; its host is what image references name it by.
    pub async fn serve(answer: impl Fn(&Request<Body>) -> Answer<Body> + Clone + Send + Sync + 'static) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address: SocketAddr = listener.local_addr().expect("it is bound");
        let router = Router::new().fallback(move |request: Request<Body>| {
            let answer = answer(&request);
            async move { answer }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        address.to_string()
    }

    pub fn status(code: u16) -> Answer<Body> {
        Answer::builder().status(code).body(Body::empty()).expect("it is an answer")
    }

    pub fn json(value: &serde_json::Value) -> Answer<Body> {
        Answer::new(Body::from(value.to_string()))
    }

    fn repository(host: &str) -> Repository {
        format!("{host}/team/app").parse().expect(host)
    }

    fn query(request: &Request<Body>, name: &str) -> Option<String> {
        let url = Url::parse(&format!("http://host{}", request.uri())).expect("it is a URL");
        url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    fn page(from: usize, length: usize) -> serde_json::Value {
        let tags: Vec<_> = (from..from + length).map(|number| format!("{number:06}")).collect();
        serde_json::json!({ "name": "team/app", "tags": tags })
    }

    async fn tags(host: &str) -> Result<Option<usize>> {
        count(&client().open(&repository(host), None).await?).await
    }

    async fn count(session: &Session<'_>) -> Result<Option<usize>> {
        Ok(session.tags().await?.map(|list| list.tags.len()))
    }

    /// A registry with so many tags that says with Link what comes next.
    async fn linking(count: usize) -> (String, Arc<AtomicUsize>) {
        let pages = Arc::<AtomicUsize>::default();
        let asked = Arc::clone(&pages);
        let host = serve(move |request| {
            if !request.uri().path().ends_with("/tags/list") {
                return status(200);
            }
            asked.fetch_add(1, Ordering::Relaxed);
            let from: usize = query(request, "next").and_then(|from| from.parse().ok()).unwrap_or_default();
            let length: usize = query(request, "n").and_then(|n| n.parse().ok()).unwrap_or(100);
            let to = count.min(from + length);
            let mut answer = json(&page(from, to - from));
            if to < count {
                let link = format!("</v2/team/app/tags/list?n={length}&next={to}>; rel=\"next\"");
                answer.headers_mut().insert(LINK, link.parse().expect("it is a header"));
            }
            answer
        })
        .await;
        (host, pages)
    }

    #[tokio::test]
    async fn every_page_of_the_tags_is_read_at_full_size() {
        for (count, pages) in [(0, 1), (1, 1), (100, 1), (101, 1), (999, 1), (1_000, 2), (1_001, 2), (2_500, 3)] {
            let (host, asked) = linking(count).await;
            assert_eq!(tags(&host).await.expect("it answers"), Some(count));
            // A page that is exactly full asks for one more, in case the registry has never heard of Link.
            assert_eq!(asked.load(Ordering::Relaxed), pages, "{count}");
        }
    }

    #[tokio::test]
    async fn a_registry_that_knows_no_link_is_asked_by_the_last_tag() {
        let host = serve(|request| {
            let from = query(request, "last").and_then(|last| last.parse::<usize>().ok()).map_or(0, |last| last + 1);
            json(&page(from, 1_500_usize.saturating_sub(from).min(PAGE)))
        })
        .await;
        assert_eq!(tags(&host).await.expect("it answers"), Some(1_500));
    }

    #[tokio::test]
    async fn a_registry_that_ignores_how_much_is_asked_for_is_read_once() {
        let host = serve(|_| json(&page(0, 3_000))).await;
        assert_eq!(tags(&host).await.expect("it answers"), Some(3_000));
    }

    #[tokio::test]
    async fn pages_that_go_in_circles_or_to_another_host_are_errors_and_not_short_lists() {
        for (link, problem) in [
            ("</v2/team/app/tags/list?n=1000>; rel=\"next\"", "go in circles"),
            ("<http://elsewhere.example/v2/team/app/tags/list>; rel=\"next\"", "on another host"),
        ] {
            let host = serve(move |_| {
                let mut answer = json(&page(0, 10));
                answer.headers_mut().insert(LINK, link.parse().expect("it is a header"));
                answer
            })
            .await;
            let error = tags(&host).await.expect_err("there is more");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[tokio::test]
    async fn a_page_that_fails_is_asked_for_again_and_then_an_error() {
        let (failing, asked) = (Arc::new(AtomicUsize::new(2)), Arc::<AtomicUsize>::default());
        let (left, count) = (Arc::clone(&failing), Arc::clone(&asked));
        let host = serve(move |request| {
            if !request.uri().path().ends_with("/tags/list") {
                return status(200);
            }
            count.fetch_add(1, Ordering::Relaxed);
            let fails = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            if fails { status(429) } else { json(&page(0, 3)) }
        })
        .await;
        assert_eq!(tags(&host).await.expect("the third time"), Some(3));
        assert_eq!(asked.load(Ordering::Relaxed), 3);

        failing.store(usize::MAX, Ordering::Relaxed);
        let error = tags(&host).await.expect_err("it never answers");
        assert_eq!(error.name(), "ServiceUnavailable");
        assert!(error.to_string().contains("429 Too Many Requests"), "{error}");
    }

    #[tokio::test]
    async fn a_registry_that_wants_a_token_gets_the_login_where_tokens_are_and_the_token_where_images_are() {
        let host = serve(|request| {
            let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            let host = request.headers()[HOST].to_str().unwrap_or_default();
            match request.uri().path() {
                "/token" => {
                    let is_asked_well = query(request, "service").as_deref() == Some("the registry")
                        && query(request, "scope").as_deref() == Some("repository:team/app:pull")
                        && authorization == Some(&format!("Basic {}", STANDARD.encode("me:hush")));
                    if is_asked_well { json(&serde_json::json!({ "token": "t0ken" })) } else { status(403) }
                }
                _ if authorization == Some("Bearer t0ken") => json(&page(0, 1)),
                _ => {
                    let mut answer = status(401);
                    let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"the registry\"");
                    answer.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().expect("it is a header"));
                    answer
                }
            }
        })
        .await;
        let login =
            |token: &str| Login { host: repository(&host).registry, token: STANDARD.encode(token), expires_at: None };
        let client = client();
        let session = client.open(&repository(&host), Some(login("me:hush"))).await.expect("it may log in");
        assert_eq!(count(&session).await.expect("it answers"), Some(1));
        let refused = client.open(&repository(&host), Some(login("me:wrong"))).await.err().expect("it may not");
        assert_eq!(refused.name(), "AccessDenied");
    }

    #[tokio::test]
    async fn a_registry_with_users_gets_the_login_itself() {
        let host = serve(|request| {
            let is_user = request.headers().get(AUTHORIZATION).is_some_and(|it| it == "Basic bWU6aHVzaA==");
            if is_user {
                return json(&page(0, 1));
            }
            let mut answer = status(401);
            answer.headers_mut().insert(WWW_AUTHENTICATE, "Basic realm=\"r\"".parse().expect("it is a header"));
            answer
        })
        .await;
        let client = client();
        let login = Login { host: repository(&host).registry, token: "bWU6aHVzaA==".into(), expires_at: None };
        let session = client.open(&repository(&host), Some(login)).await.expect("it has answered");
        assert_eq!(count(&session).await.expect("it answers"), Some(1));
        let session = client.open(&repository(&host), None).await.expect("it has answered");
        assert_eq!(count(&session).await.expect("it answers"), None);
    }

    fn with_header(mut answer: Answer<Body>, name: &'static str, value: &str) -> Answer<Body> {
        answer.headers_mut().insert(name, value.parse().expect("it is a header"));
        answer
    }

    #[tokio::test]
    async fn a_manifest_is_named_by_the_header_or_by_its_own_digest_and_one_that_is_missing_says_so() {
        let digest = Digest::of(b"named");
        let host = serve(move |request| {
            let answer = match request.uri().path() {
                "/v2/team/app/manifests/named" => {
                    let answer = with_header(status(200), "docker-content-digest", &digest.to_string());
                    with_header(answer, "ratelimit-remaining", "76;w=21600")
                }
                "/v2/team/app/manifests/unnamed" => Answer::new(Body::from("{}")),
                "/v2/team/app/manifests/wrong" => with_header(status(200), "docker-content-digest", "sha256:$(id)"),
                _ => {
                    let mut answer = json(&serde_json::json!({ "errors": [{ "message": "manifest unknown" }] }));
                    *answer.status_mut() = StatusCode::NOT_FOUND;
                    answer
                }
            };
            with_header(answer, "content-type", "application/vnd.oci.image.index.v1+json")
        })
        .await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        assert_eq!(session.head("named").await.expect("it answers"), Head { digest, is_index: true });
        assert_eq!(client.pulls_left(), None, "it is not Docker Hub that says so");
        let unnamed = session.head("unnamed").await.expect("it answers");
        assert_eq!(unnamed, Head { digest: Digest::of(b"{}"), is_index: true });
        for (tag, problem) in
            [("missing", "404 Not Found: manifest unknown"), ("wrong", r#""sha256:$(id)" is not a digest"#)]
        {
            let error = session.head(tag).await.expect_err(tag).to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[tokio::test]
    async fn the_pulls_that_docker_hub_allows_count_where_it_is_asked_as_a_user() {
        let host = serve(|request| match request.uri().path() {
            "/v2/" => with_header(status(401), "www-authenticate", "Basic realm=\"r\""),
            _ => {
                let answer = with_header(status(200), "docker-content-digest", &Digest::of(b"").to_string());
                with_header(answer, "ratelimit-remaining", "76;w=21600")
            }
        })
        .await;
        let address = host.parse().expect("it is an address");
        let docker_hub: Repository = "docker.io/library/nginx".parse().expect("it is a repository");
        let login = Login { host: docker_hub.registry.clone(), token: "bWU6aHVzaA==".into(), expires_at: None };
        for (login, left) in [(None, None), (Some(login), Some(76))] {
            let http = reqwest::Client::builder().resolve("registry-1.docker.io", address);
            let client = Client::with("http", http, ExponentialBuilder::default()).expect("it needs no certificates");
            let session = client.open(&docker_hub, login).await.expect("it has answered");
            session.head("latest").await.expect("it answers");
            assert_eq!(client.pulls_left(), left);
        }
    }

    #[tokio::test]
    async fn a_manifest_with_another_digest_is_refused() {
        let host = serve(|_| Answer::new(Body::from("{}"))).await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        session.manifest(Digest::of(b"{}")).await.expect("it is that");
        let error = session.manifest(Digest::of(b"other")).await.expect_err("it is another").to_string();
        assert!(error.contains("has another digest"), "{error}");
    }

    #[tokio::test]
    async fn referrers_are_listed_where_the_registry_knows_them() {
        let [one, two, three] = ["1", "2", "3"].map(|content| Digest::of(content.as_bytes()));
        let host = serve(move |request| match request.uri().path() {
            path if path == format!("/v2/team/app/referrers/{one}") => {
                json(&serde_json::json!({ "manifests": [{ "digest": two }] }))
            }
            "/v2/" => status(200),
            _ => status(404),
        })
        .await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        assert_eq!(session.referrers(one).await.expect("it answers"), [two]);
        assert!(session.referrers(three).await.expect("it answers").is_empty());
    }

    #[tokio::test]
    async fn referrers_that_the_registry_refuses_to_list_are_an_error_and_others_are_still_asked_for() {
        let [refused, one] = ["refused", "1"].map(|content| Digest::of(content.as_bytes()));
        let host = serve(move |request| match request.uri().path() {
            "/v2/" => status(200),
            path if path.ends_with(&one.to_string()) => json(&serde_json::json!({ "manifests": [{ "digest": one }] })),
            _ => status(405),
        })
        .await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        let error = session.referrers(refused).await.expect_err("it is refused");
        assert!(error.to_string().ends_with("answers 405 Method Not Allowed"), "{error}");
        assert_eq!(session.referrers(one).await.expect("it answers"), [one]);
    }

    #[tokio::test]
    async fn what_is_not_a_tag_is_told_apart_and_never_asked_for() {
        let evil = "1 due[$(id)]\n> evil.example/backdoor d.example/prod";
        let host =
            serve(move |_| json(&serde_json::json!({ "tags": ["1", evil, "\u{1b}[31m", "1", "x".repeat(10_000)] })))
                .await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        let list = session.tags().await.expect("it answers").expect("there are tags");
        assert_eq!(list.tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["1"]);
        let (count, first) = list.invalid.expect("some are not tags");
        assert_eq!(count, 3);
        assert!(!first.as_str().contains('\n') && first.as_str().chars().count() <= MENTIONED, "{first}");
    }

    /// What a registry that answers everything in one way is refused with.
    async fn refused(answer: impl Fn(&Request<Body>) -> Answer<Body> + Clone + Send + Sync + 'static) -> String {
        let host =
            serve(move |request| if request.uri().path() == "/v2/" { status(200) } else { answer(request) }).await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        let digest = Digest::of(b"");
        let errors =
            [session.tags().await.err(), session.manifest(digest).await.err(), session.referrers(digest).await.err()];
        errors.into_iter().flatten().map(|error| error.to_string()).collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn a_registry_that_sends_more_than_is_allowed_is_refused_with_the_limit() {
        let endless = |code: u16| {
            let chunk = Ok::<_, std::convert::Infallible>(vec![b'x'; 1 << 16]);
            let body = Body::from_stream(futures_util::stream::repeat(chunk));
            Answer::builder().status(code).body(body).expect("it is an answer")
        };
        let errors = refused(move |_| endless(200)).await;
        assert_eq!(errors.matches("sends more than the 4194304 bytes that are allowed").count(), 3, "{errors}");
        let errors = refused(move |_| endless(500)).await;
        assert_eq!(errors.matches("answers 500 Internal Server Error").count(), 3, "{errors}");
    }

    /// An error that a registry has answered with.
    #[derive(Clone, Deserialize)]
    struct Recorded {
        /// What was asked for: `manifests`, `tags`, or `token`.
        path: String,
        status: u16,
        code: Option<String>,
        message: Option<String>,
        body: Option<String>,
        kind: String,
        seen: String,
    }

    impl Recorded {
        fn answer(&self) -> Answer<Body> {
            let errors =
                || serde_json::json!({ "errors": [{ "code": self.code, "message": self.message }] }).to_string();
            let body = Body::from(self.body.clone().unwrap_or_else(errors));
            Answer::builder().status(self.status).body(body).expect("it is an answer")
        }
    }

    #[tokio::test]
    async fn each_error_that_a_registry_has_answered_with_is_of_its_kind() {
        let file = include_str!("../../shared/tests/data/errors.json");
        let mut file: serde_json::Value = serde_json::from_str(file).expect("it is JSON");
        let all: Vec<Recorded> = serde_json::from_value(file["registries"].take()).expect("they are errors");
        for recorded in all {
            let answer = recorded.clone();
            let host = serve(move |request| match request.uri().path() {
                "/v2/" if answer.path == "token" => {
                    let host = request.headers()[HOST].to_str().unwrap_or_default();
                    with_header(status(401), "www-authenticate", &format!("Bearer realm=\"http://{host}/token\""))
                }
                "/v2/" => status(200),
                _ => answer.answer(),
            })
            .await;
            let client = client();
            let asked = async {
                let session = client.open(&repository(&host), None).await?;
                match recorded.path.as_str() {
                    "tags" => session.tags().await.map(drop),
                    _ => session.manifest(Digest::of(b"")).await.map(drop),
                }
            };
            let error = asked.await.expect_err(&recorded.seen);
            assert_eq!(format!("{:?}", error.kind()), recorded.kind, "{error} ({})", recorded.seen);
            let message = recorded.message.unwrap_or_default();
            assert!(error.to_string().contains(&message), "{error}");
        }
    }

    #[tokio::test]
    async fn an_error_is_cut_and_escaped() {
        let errors = refused(|_| {
            let message = format!("\u{1b}[31m{}", "x".repeat(30_000));
            let mut answer = json(&serde_json::json!({ "errors": [{ "message": message }] }));
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            answer
        })
        .await;
        assert!(errors.contains(r"\u{1b}[31mxxx") && !errors.contains('\u{1b}'), "{errors}");
        assert!(errors.lines().all(|error| error.chars().count() < Excerpt::LIMIT + 100), "{errors}");
    }

    #[tokio::test]
    async fn endless_lists_are_refused_with_the_limit() {
        let errors = refused(|request| {
            let page: usize = query(request, "page").and_then(|page| page.parse().ok()).unwrap_or_default();
            let body = serde_json::json!({ "tags": [page.to_string()], "manifests": [] });
            let next = format!("<{}?page={}>; rel=\"next\"", request.uri().path(), page + 1);
            with_header(json(&body), "link", &next)
        })
        .await;
        assert!(errors.contains("its tag list has more than the 1000 pages that are allowed"), "{errors}");
        assert!(errors.contains("its list of referrers has more than the 1000 pages that are allowed"), "{errors}");

        let errors = refused(|request| {
            let page: usize = query(request, "page").and_then(|page| page.parse().ok()).unwrap_or_default();
            let tags: Vec<_> = (0..20_000).map(|number| format!("{page}-{number}")).collect();
            let digests: Vec<_> = (0..400)
                .map(|n| serde_json::json!({ "digest": Digest::of(format!("{page}{n}").as_bytes()) }))
                .collect();
            let body = serde_json::json!({ "tags": tags, "manifests": digests });
            let next = format!("<{}?page={}>; rel=\"next\"", request.uri().path(), page + 1);
            with_header(json(&body), "link", &next)
        })
        .await;
        assert!(errors.contains("it has more than the 100000 tags that are allowed"), "{errors}");
        assert!(errors.contains("more than the 1000 images that are allowed refer to sha256:"), "{errors}");
    }

    #[tokio::test]
    async fn a_registry_has_a_time_limit_for_all_that_it_is_asked() {
        let host = serve(|request| {
            if request.uri().path() == "/v2/" {
                return status(200);
            }
            let mut answer = status(429);
            answer.headers_mut().insert(RETRY_AFTER, "60".parse().expect("it is a header"));
            answer
        })
        .await;
        let client = Client { time: Duration::from_millis(200), ..client() };
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        let asked = futures_util::future::join_all((0..40).map(|tag| {
            let session = &session;
            async move { session.head(&tag.to_string()).await }
        }));
        for head in asked.await {
            let error = head.expect_err("it is never answered");
            assert_eq!(error.name(), "RequestRefused", "it is not asked again at once");
            assert!(error.to_string().contains("takes longer than the 0 seconds that are allowed"), "{error}");
        }
    }

    #[tokio::test]
    async fn redirects_lead_to_addresses_of_the_same_scheme_and_not_for_ever() {
        let errors = refused(|request| {
            let next = match request.uri().path() {
                path if path.contains("manifests") => "https://169.254.169.254/".to_owned(),
                path => format!("{path}/x"),
            };
            with_header(status(307), "location", &next)
        })
        .await;
        assert!(
            errors.contains("it redirects to https://169.254.169.254/, which is not a public http address"),
            "{errors}"
        );
        assert!(errors.contains("it redirects more than 5 times"), "{errors}");
    }

    #[tokio::test]
    async fn a_login_never_leaves_its_host_however_often_it_is_redirected() {
        let shown = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&shown);
        let elsewhere = serve(move |request| {
            count.fetch_add(usize::from(request.headers().contains_key(AUTHORIZATION)), Ordering::Relaxed);
            with_header(status(307), "location", &format!("{}/again", request.uri().path()))
        })
        .await;
        let host = serve(move |request| match request.uri().path() {
            "/v2/" => with_header(status(401), "www-authenticate", "Basic realm=\"r\""),
            path => with_header(status(307), "location", &format!("http://{elsewhere}{path}")),
        })
        .await;
        let client = client();
        let login = Login { host: repository(&host).registry, token: "bWU6aHVzaA==".into(), expires_at: None };
        let session = client.open(&repository(&host), Some(login)).await.expect("it has answered");
        let error = session.tags().await.expect_err("it leads nowhere").to_string();
        assert!(error.contains("it redirects from another host than its own"), "{error}");
        assert_eq!(shown.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_registry_may_not_send_more_in_a_run_than_is_allowed() {
        let host = serve(|_| json(&serde_json::json!({ "tags": ["1"] }))).await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        session.tags().await.expect("it is little");
        session.host.sent.store(ALL_ANSWERS + 1, Ordering::Relaxed);
        let error = session.tags().await.expect_err("it is too much").to_string();
        assert!(error.contains("bytes that are allowed in a run"), "{error}");
    }

    #[tokio::test]
    async fn a_registry_that_hands_out_tokens_elsewhere_gets_no_password_there() {
        for realm in ["https://169.254.169.254/token", "file:///token", "not an address"] {
            let host =
                serve(move |_| with_header(status(401), "www-authenticate", &format!("Bearer realm=\"{realm}\"")))
                    .await;
            let login = Login { host: repository(&host).registry, token: "bWU6aHVzaA==".into(), expires_at: None };
            let error = client().open(&repository(&host), Some(login)).await.err().expect(realm).to_string();
            assert!(error.contains("which is not a public http address") && error.contains(realm), "{error}");
        }
    }

    #[tokio::test]
    async fn over_tls_only_public_addresses_are_asked() {
        let client = Client::new().expect("there are certificates");
        for host in ["127.0.0.1:9001", "localhost", "169.254.170.2", "10.0.0.1:5000"] {
            let error = client.open(&repository(host), None).await.err().expect(host).to_string();
            assert!(error.contains("it is not a public address"), "{error}");
        }
    }
}
