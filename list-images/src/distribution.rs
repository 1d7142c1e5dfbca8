//! A client of the [OCI distribution API](https://github.com/opencontainers/distribution-spec/blob/main/spec.md): what
//! registries hold, to the last page.

use std::collections::{BTreeSet, HashMap};
use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LINK, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use shared::ecr::Login;
use shared::manifest::{Descriptor, Manifest, is_index};
use shared::{Error, Result};
use tokio::sync::{OnceCell, Semaphore};

use crate::selection::Repository;

/// Requests to one registry at a time; registries limit how fast one client may ask.
const CONCURRENCY: usize = 16;

/// The tags asked for in one page.
const PAGE: usize = 1_000;

/// A token that is younger has not expired: who is refused with it has no access.
const TOKEN_LIVES: Duration = Duration::from_secs(60);

/// No answer tells to wait for longer than this; the run would take too long.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// A client for all registries; it remembers how each wants to be asked.
pub struct Client {
    /// How many pulls Docker Hub still allows, as it said last; `None` where it has not said.
    pulls_left: Mutex<Option<u64>>,
    http: reqwest::Client,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
    retry: ExponentialBuilder,
    scheme: &'static str,
}

/// A registry.
struct Host {
    challenge: OnceCell<Challenge>,
    slots: Semaphore,
    /// Set once it has said that it does not.
    knows_no_referrers: AtomicBool,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            challenge: OnceCell::new(),
            slots: Semaphore::new(CONCURRENCY),
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
    /// `sha256:…`
    pub digest: String,
    /// Whether it is an index.
    pub is_index: bool,
}

/// What went wrong with one request.
#[derive(Debug)]
struct Failure {
    status: Option<StatusCode>,
    message: String,
    retry_after: Option<Duration>,
}

impl Failure {
    fn is_transient(&self) -> bool {
        self.status.is_none_or(|status| status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error())
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
        Self { status: None, message: format!("{}: {cause}", url.unwrap_or_default()), retry_after: None }
    }
}

impl Client {
    /// A client that asks over TLS.
    ///
    /// # Errors
    /// When the system's certificates cannot be read.
    pub fn new() -> Result<Self> {
        Self::with("https", ExponentialBuilder::default().with_jitter())
    }

    fn with(scheme: &'static str, retry: ExponentialBuilder) -> Result<Self> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("ecr-transfer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(|error| Failure::from(error).about("the HTTP client"))?;
        Ok(Self { pulls_left: Mutex::default(), http, hosts: Mutex::default(), retry, scheme })
    }

    /// How many pulls are left where they are limited, as Docker Hub's
    /// [`RateLimit-Remaining`](https://docs.docker.com/docker-hub/usage/pulls/) says; `None` where nobody has said so.
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
        let authority = if repository.registry == "docker.io" { "registry-1.docker.io" } else { &repository.registry };
        let base = format!("{}://{authority}/v2/", self.scheme);
        let base = Url::parse(&base).map_err(|error| Error::Registry {
            subject: repository.to_string(),
            status: None,
            message: format!("{base} is no address: {error}"),
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
}

impl Client {
    fn host(&self, registry: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hosts.entry(registry.to_owned()).or_default())
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
    /// All tags, in no particular order; `None` where there is no such repository, or it does not show its tags.
    ///
    /// # Errors
    /// When the registry does not answer to the last page.
    pub async fn tags(&self) -> Result<Option<Vec<String>>> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let first = self.url("tags/list", &[("n", &PAGE.to_string())]);
        let mut tags = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut next = Some(first.clone());
        while let Some(url) = next {
            if !seen.insert(url.clone()) {
                return Err(self.refused("the pages of its tag list go in circles"));
            }
            let response = match self.get(Method::GET, &url, "application/json").await {
                Ok(response) => response,
                Err(failure) if failure.is_absence() && tags.is_empty() => return Ok(None),
                Err(failure) => return Err(self.failed(failure)),
            };
            let link = link(response.headers()).map(|link| self.on_host(&url, &link)).transpose()?;
            let page = self.json::<Page>(response).await?.tags.unwrap_or_default();
            let (length, last, known) = (page.len(), page.last().cloned(), tags.len());
            tags.extend(page);
            // A page that is full, and does not say what comes next, may not be the last one of a registry that has never
            // heard of Link.
            let more = || {
                let last = last.filter(|_| length >= PAGE && tags.len() > known)?;
                Some(self.url("tags/list", &[("n", &PAGE.to_string()), ("last", &last)]))
            };
            next = link.or_else(more);
        }
        Ok(Some(tags.into_iter().collect()))
    }

    /// What a tag or a digest leads to; `None` where the registry has no such image, or does not let us see it.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub async fn head(&self, reference: &str) -> Result<Option<Head>> {
        let url = self.url(&format!("manifests/{reference}"), &[]);
        let response = match self.get(Method::HEAD, &url, MANIFESTS).await {
            Ok(response) => response,
            Err(failure) if failure.is_absence() => return Ok(None),
            Err(failure) => return Err(self.failed(failure)),
        };
        if let Some(left) = text(response.headers(), "ratelimit-remaining") {
            // 76;w=21600 is 76 within that many seconds.
            let left = left.split(';').next().and_then(|left| left.parse().ok());
            *self.client.pulls_left.lock().unwrap_or_else(PoisonError::into_inner) = left;
        }
        let is_index = text(response.headers(), CONTENT_TYPE.as_str()).is_some_and(|it| is_index(&it));
        if let Some(digest) = text(response.headers(), "docker-content-digest") {
            return Ok(Some(Head { digest, is_index }));
        }
        // The header is not mandatory: then the digest is that of the manifest itself.
        let response = self.get(Method::GET, &url, MANIFESTS).await.map_err(|failure| self.failed(failure))?;
        let body = response.bytes().await.map_err(|error| self.failed(error.into()))?;
        Ok(Some(Head { digest: format!("sha256:{}", hex::encode(Sha256::digest(&body))), is_index }))
    }

    /// The manifest with this digest.
    ///
    /// # Errors
    /// When the registry does not have it, or does not answer.
    pub async fn manifest(&self, digest: &str) -> Result<Manifest> {
        let url = self.url(&format!("manifests/{digest}"), &[]);
        let response = self.get(Method::GET, &url, MANIFESTS).await.map_err(|failure| self.failed(failure))?;
        let body = response.bytes().await.map_err(|error| self.failed(error.into()))?;
        Ok(Manifest::parse(&String::from_utf8_lossy(&body)))
    }

    /// The digests of the images that refer to `digest`; none where the registry does not know of referrers.
    ///
    /// # Errors
    /// When the registry does not answer to the last page.
    pub async fn referrers(&self, digest: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default)]
            manifests: Vec<Descriptor>,
        }
        let mut referrers = Vec::new();
        let mut seen = BTreeSet::new();
        if self.host.knows_no_referrers.load(Ordering::Relaxed) {
            return Ok(referrers);
        }
        let mut next = Some(self.url(&format!("referrers/{digest}"), &[]));
        while let Some(url) = next {
            if !seen.insert(url.clone()) {
                return Err(self.refused("the pages of its referrers go in circles"));
            }
            let response = match self.get(Method::GET, &url, "application/vnd.oci.image.index.v1+json").await {
                Ok(response) => response,
                Err(failure) if failure.is_transient() => return Err(self.failed(failure)),
                // Registries say in many ways that they do not know it.
                Err(failure) => {
                    let is_refused = matches!(failure.status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN));
                    self.host.knows_no_referrers.fetch_or(!is_refused, Ordering::Relaxed);
                    return Ok(referrers);
                }
            };
            next = link(response.headers()).map(|link| self.on_host(&url, &link)).transpose()?;
            let Ok(index) = self.json::<Index>(response).await else { return Ok(referrers) };
            referrers.extend(index.manifests.into_iter().map(|image| image.digest));
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
        let next =
            page.join(link).map_err(|error| self.refused(&format!("its next page {link} is no address: {error}")))?;
        if next.origin() == self.base.origin() {
            return Ok(next);
        }
        Err(self.refused(&format!("its next page is on another host: {next}")))
    }

    fn refused(&self, message: &str) -> Error {
        Error::Registry { subject: self.repository.to_string(), status: Some(200), message: message.to_owned() }
    }

    fn failed(&self, failure: Failure) -> Error {
        failure.about(&self.repository.to_string())
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        response.json().await.map_err(|error| self.failed(error.into()))
    }

    /// Asks, as often as it takes: again with a new token where the old one has expired, and again a little later where
    /// the registry is busy.
    async fn get(&self, method: Method, url: &Url, accept: &str) -> Result<Response, Failure> {
        let attempt = || async {
            let _slot = self.host.slots.acquire().await;
            let response = self.send(&method, url, accept).await?;
            let response = if response.status() == StatusCode::UNAUTHORIZED && self.token_may_have_expired() {
                self.log_in().await?;
                self.send(&method, url, accept).await?
            } else {
                response
            };
            check(response).await
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

    async fn retried<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        attempt
            .retry(self.client.retry)
            .when(Failure::is_transient)
            .adjust(|failure, wait| wait.map(|wait| failure.retry_after.map_or(wait, |told| told.min(LONGEST_WAIT))))
            .await
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
                let response = self
                    .retried(|| async {
                        let request = self.client.http.get(url.clone());
                        let request = match &login {
                            Some(login) => request.header(AUTHORIZATION, login.clone()),
                            None => request,
                        };
                        check(request.send().await?).await
                    })
                    .await?;
                let token: Token = response.json().await?;
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
                if response.status() == StatusCode::UNAUTHORIZED { Ok(response) } else { check(response).await }
            })
            .await;
        let response = match response {
            Ok(response) => response,
            Err(failure) if failure.is_transient() => return Err(failure),
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
                Ok(url) if url.scheme() == self.client.scheme => {
                    Ok(Challenge::Bearer { realm: url, service: parameter(bearer, "service") })
                }
                _ => Err(Failure {
                    status: Some(response.status()),
                    message: format!("it hands out tokens at {realm:?}, which is no {} address", self.client.scheme),
                    retry_after: None,
                }),
            };
        }
        let is_basic = challenges.iter().any(|challenge| challenge.scheme.eq_ignore_ascii_case("Basic"));
        Ok(if is_basic { Challenge::Basic } else { Challenge::None })
    }
}

fn authorization(scheme: &str, token: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("{scheme} {token}")).map_err(|_| Failure {
        status: Some(StatusCode::UNAUTHORIZED),
        message: "its token has characters that a header cannot carry".into(),
        retry_after: None,
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The answer, if it is a good one.
async fn check(response: Response) -> Result<Response, Failure> {
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
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = text(response.headers(), RETRY_AFTER.as_str());
    let place = format!("{}{}", response.url().host_str().unwrap_or_default(), response.url().path());
    let body = response.bytes().await.unwrap_or_default();
    let problems: Problems = serde_json::from_slice(&body).unwrap_or_default();
    let words = problems.errors.into_iter().next().and_then(|problem| problem.message.or(problem.code));
    Err(Failure {
        status: Some(status),
        message: match words {
            Some(words) => format!("{place} answers {status}: {words}"),
            None => format!("{place} answers {status}"),
        },
        retry_after: retry_after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs),
    })
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

    use std::net::SocketAddr;
    use std::sync::atomic::AtomicUsize;

    use axum::Router;
    use axum::body::Body;
    use axum::http::{Request, Response as Answer};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use reqwest::header::HOST;

    use super::*;

    /// A client that asks over plain HTTP, and does not wait long before it asks again.
    pub fn client() -> Client {
        let retry = ExponentialBuilder::default().with_min_delay(Duration::from_millis(1));
        Client::with("http", retry).expect("it needs no certificates")
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
        Repository { registry: host.into(), name: "team/app".into() }
    }

    fn query(request: &Request<Body>, name: &str) -> Option<String> {
        let url = Url::parse(&format!("http://host{}", request.uri())).expect("it is a URL");
        url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    fn page(from: usize, length: usize) -> serde_json::Value {
        let tags: Vec<_> = (from..from + length).map(|number| format!("{number:06}")).collect();
        serde_json::json!({ "name": "team/app", "tags": tags })
    }

    async fn tags(host: &str) -> Result<Option<Vec<String>>> {
        client().open(&repository(host), None).await?.tags().await
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
            let tags = tags(&host).await.expect("it answers").expect("there is such a repository");
            assert_eq!(tags.len(), count);
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
        assert_eq!(tags(&host).await.expect("it answers").map(|tags| tags.len()), Some(1_500));
    }

    #[tokio::test]
    async fn a_registry_that_ignores_how_much_is_asked_for_is_read_once() {
        let host = serve(|_| json(&page(0, 3_000))).await;
        assert_eq!(tags(&host).await.expect("it answers").map(|tags| tags.len()), Some(3_000));
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
        assert_eq!(tags(&host).await.expect("the third time").map(|tags| tags.len()), Some(3));
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
        let login = |token: &str| Login { host: host.clone(), token: STANDARD.encode(token), expires_at: None };
        let client = client();
        let session = client.open(&repository(&host), Some(login("me:hush"))).await.expect("it may log in");
        assert_eq!(session.tags().await.expect("it answers").map(|tags| tags.len()), Some(1));
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
        let login = Login { host: host.clone(), token: "bWU6aHVzaA==".into(), expires_at: None };
        let session = client.open(&repository(&host), Some(login)).await.expect("it has answered");
        assert_eq!(session.tags().await.expect("it answers").map(|tags| tags.len()), Some(1));
        let session = client.open(&repository(&host), None).await.expect("it has answered");
        assert_eq!(session.tags().await.expect("it answers"), None);
    }

    #[tokio::test]
    async fn a_manifest_is_named_by_the_header_or_by_its_own_digest() {
        let host = serve(|request| {
            let mut answer = match request.uri().path() {
                "/v2/team/app/manifests/named" => {
                    let mut answer = status(200);
                    answer.headers_mut().insert("docker-content-digest", "sha256:1".parse().expect("it is a header"));
                    answer.headers_mut().insert("ratelimit-remaining", "76;w=21600".parse().expect("it is a header"));
                    answer
                }
                "/v2/team/app/manifests/unnamed" => Answer::new(Body::from("{}")),
                _ => status(404),
            };
            let index = "application/vnd.oci.image.index.v1+json".parse().expect("it is a header");
            answer.headers_mut().insert(CONTENT_TYPE, index);
            answer
        })
        .await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        let head = |digest: &str| Head { digest: digest.to_owned(), is_index: true };
        let of_two_braces = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(client.pulls_left(), None);
        assert_eq!(session.head("named").await.expect("it answers"), Some(head("sha256:1")));
        assert_eq!(client.pulls_left(), Some(76));
        assert_eq!(session.head("unnamed").await.expect("it answers"), Some(head(of_two_braces)));
        assert_eq!(session.head("missing").await.expect("it answers"), None);
    }

    #[tokio::test]
    async fn referrers_are_listed_where_the_registry_knows_them() {
        let host = serve(|request| match request.uri().path() {
            "/v2/team/app/referrers/sha256:1" => json(&serde_json::json!({ "manifests": [{ "digest": "sha256:2" }] })),
            "/v2/" => status(200),
            _ => status(404),
        })
        .await;
        let client = client();
        let session = client.open(&repository(&host), None).await.expect("it needs no login");
        assert_eq!(session.referrers("sha256:1").await.expect("it answers"), ["sha256:2"]);
        assert!(session.referrers("sha256:3").await.expect("it answers").is_empty());
    }
}
