//! HTTP requests with retries, and limits for size, number and time of the responses.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::Retryable;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use shared::text::Excerpt;
use shared::{Error, root_cause};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use super::{Client, Host, Session};

/// The longest `Retry-After`.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The most bytes of an error response.
const PROBLEM: usize = 64 << 10;

/// Larger responses need a permit, so that only [`LARGE_ANSWERS`](super::LARGE_ANSWERS) of them are in memory.
const LARGE: usize = 64 << 10;

/// The most bytes of all responses of one registry in a run.
pub(super) const ALL_ANSWERS: usize = 256 << 20;

/// A complete response.
pub struct Answer {
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    _permits: Permits,
}

/// The permits for a large body: that of its registry, and one of all registries.
type Permits = Vec<OwnedSemaphorePermit>;

/// Why a request failed.
#[derive(Debug)]
pub struct Failure {
    pub status: Option<StatusCode>,
    message: Excerpt,
    retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(status: StatusCode, message: &str) -> Self {
        Self { status: Some(status), message: Excerpt::new(message), retry_after: None }
    }

    pub fn is_transient(&self) -> bool {
        self.status.is_none_or(|status| status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error())
    }

    /// Whether the registry exceeds a limit, or redirects to an address that is not allowed.
    pub fn is_limit(&self) -> bool {
        const LIMITS: [StatusCode; 3] =
            [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::REQUEST_TIMEOUT, StatusCode::MISDIRECTED_REQUEST];
        self.status.is_some_and(|status| LIMITS.contains(&status))
    }

    pub fn is_absence(&self) -> bool {
        matches!(self.status, Some(StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }

    pub fn into_error(self, subject: &str) -> Error {
        Error::Registry {
            subject: subject.to_owned(),
            status: self.status.map(|status| status.as_u16()),
            message: self.message,
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let url = error.url().map(host_and_path).unwrap_or_default();
        let message = Excerpt::new(&format!("{url}: {}", root_cause(&error)));
        // A retry would get the same redirect.
        let status = error.is_redirect().then_some(StatusCode::MISDIRECTED_REQUEST);
        Self { status, message, retry_after: None }
    }
}

impl Client {
    /// Reads a successful response of at most `limit` bytes.
    pub(super) async fn read(&self, host: &Host, response: Response, limit: usize) -> Result<Answer, Failure> {
        let status = response.status();
        if !status.is_success() {
            return Err(self.problem(host, response).await);
        }
        let headers = response.headers().clone();
        let (body, _permits) = self.body(host, response, limit).await?;
        Ok(Answer { headers, body, _permits })
    }

    async fn body(&self, host: &Host, mut response: Response, limit: usize) -> Result<(Vec<u8>, Permits), Failure> {
        let (mut body, mut permits) = (Vec::new(), Permits::new());
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > limit {
                let url = host_and_path(response.url());
                let message = format!("the response of {url} exceeds the limit of {limit} bytes.");
                return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, &message));
            }
            if host.sent.fetch_add(chunk.len(), Ordering::Relaxed) > ALL_ANSWERS {
                let message = format!("the registry exceeds the limit of {ALL_ANSWERS} bytes per run.");
                return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, &message));
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

    /// Reads an error response. If it is too long, only its status is used.
    pub(super) async fn problem(&self, host: &Host, response: Response) -> Failure {
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
        let (status, url) = (response.status(), host_and_path(response.url()));
        let retry_after = header(response.headers(), RETRY_AFTER.as_str());
        let body = self.body(host, response, PROBLEM).await.map(|(body, _)| body).unwrap_or_default();
        let problems: Problems = serde_json::from_slice(&body).unwrap_or_default();
        let message = problems.errors.into_iter().next().and_then(|problem| problem.message.or(problem.code));
        Failure {
            status: Some(status),
            message: Excerpt::new(&match message {
                Some(message) => format!("{url} returned {status}: {message}"),
                None => format!("{url} returned {status}"),
            }),
            retry_after: retry_after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs),
        }
    }
}

impl Session<'_> {
    /// Sends a request, with a new token if the old one has expired, and with retries.
    pub(super) async fn get(&self, method: Method, url: &Url, accept: &str, limit: usize) -> Result<Answer, Failure> {
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

    /// Retries transient failures until the registry's time limit.
    pub(super) async fn retried<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let last = Mutex::new(None);
        let attempts = attempt
            .retry(self.client.retry)
            .when(Failure::is_transient)
            .notify(|failure, _| *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.message.clone()))
            .adjust(|failure, wait| Some(failure.retry_after.map_or(wait?, |after| after.min(LONGEST_WAIT))));
        let time = self.client.time;
        let deadline = *self.host.deadline.get_or_init(|| Instant::now() + time);
        let in_time = async { if Instant::now() < deadline { attempts.await } else { std::future::pending().await } };
        timeout_at(deadline.into(), in_time).await.unwrap_or_else(|_elapsed| {
            let last = last.lock().unwrap_or_else(PoisonError::into_inner).take();
            let last = last.map(|last| format!(" The last failure: {last}")).unwrap_or_default();
            let message = format!("the registry exceeds the limit of {} seconds per run.{last}", time.as_secs());
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, &message))
        })
    }
}

/// A URL without its query, for messages.
pub fn host_and_path(url: &Url) -> String {
    format!("{}{}", url.host_str().unwrap_or_default(), url.path())
}

pub fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|text| text.trim().to_owned())
}
