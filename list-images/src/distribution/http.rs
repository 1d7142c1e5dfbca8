//! Requests, and their answers within limits: in size, number and time.

use std::error::Error as StdError;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::Retryable;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use shared::Error;
use shared::text::Excerpt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use super::{Client, Host, Session};

/// No answer tells to wait for longer than this; the run would take too long.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The most bytes of an error.
const PROBLEM: usize = 64 << 10;

/// Most answers are smaller. Of larger ones only [`LARGE_ANSWERS`](super::LARGE_ANSWERS) are read at a time: what registries send
/// must fit into the function's memory.
const LARGE: usize = 64 << 10;

/// The most bytes that one registry sends in a run.
pub(super) const ALL_ANSWERS: usize = 256 << 20;

/// An answer that was read to its end.
pub struct Answer {
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    _permits: Permits,
}

/// Held while a large body is in memory: the registry's own, and one of all.
type Permits = Vec<OwnedSemaphorePermit>;

/// What went wrong with one request.
#[derive(Debug)]
pub struct Failure {
    pub status: Option<StatusCode>,
    message: Excerpt,
    retry_after: Option<Duration>,
}

impl Failure {
    /// An answer with this status that cannot be used.
    pub fn of(status: StatusCode, message: &str) -> Self {
        Self { status: Some(status), message: Excerpt::new(message), retry_after: None }
    }

    pub fn is_transient(&self) -> bool {
        self.status.is_none_or(|status| status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error())
    }

    /// Whether the registry exceeded a limit, or led to where it must not.
    pub fn is_limit(&self) -> bool {
        const LIMITS: [StatusCode; 3] =
            [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::REQUEST_TIMEOUT, StatusCode::MISDIRECTED_REQUEST];
        self.status.is_some_and(|status| LIMITS.contains(&status))
    }

    pub fn is_absence(&self) -> bool {
        matches!(self.status, Some(StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }

    pub fn about(self, subject: &str) -> Error {
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
    /// Reads an answer of `host`, if it is a good one and has at most `limit` bytes.
    pub(super) async fn read(&self, host: &Host, response: Response, limit: usize) -> Result<Answer, Failure> {
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
        let (status, place) = (response.status(), place(response.url()));
        let retry_after = text(response.headers(), RETRY_AFTER.as_str());
        let body = self.body(host, response, PROBLEM).await.map(|(body, _)| body).unwrap_or_default();
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

impl Session<'_> {
    /// Asks, as often as it takes: again with a new token where the old one has expired, and again a little later where
    /// the registry is busy.
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

    /// Tries until it succeeds, fails for good, or the registry's time is up.
    pub(super) async fn retried<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, Failure>
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
}

/// Host and path of an address, for messages.
pub fn place(url: &Url) -> String {
    format!("{}{}", url.host_str().unwrap_or_default(), url.path())
}

pub fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|text| text.trim().to_owned())
}
