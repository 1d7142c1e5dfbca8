//! The endpoint of the local AWS: TLS in front of ministack. It also counts the calls of each access key.
//!
//! ministack sees which requests came through TLS, so a bucket's policy can refuse all others, as on AWS.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hudsucker::Body;
use hudsucker::hyper::body::Incoming;
use hudsucker::hyper::server::conn::http1;
use hudsucker::hyper::service::service_fn;
use hudsucker::hyper_util::rt::TokioIo;
use hudsucker::rustls::ServerConfig;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::forward::{Forwarder, answer, forward, forwarder};
use crate::lock;

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Call {
    pub access_key_id: String,
    /// As policies name it: `ecr:DescribeImages`.
    pub action: String,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Times {
    pub called: u64,
    pub denied: u64,
}

/// The running gateway. Dropping it stops it.
pub struct Gateway {
    address: SocketAddr,
    door: Arc<Door>,
    _server: JoinSet<()>,
}

impl Gateway {
    /// Listens at `address`, with this certificate, in front of `upstream`.
    pub async fn open(address: SocketAddr, identity: Arc<ServerConfig>, upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            let port = address.port();
            format!("port {port} is in use. Stop its server (`make down`, if it is this project's), or choose another --port")
        })?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(identity);
        let (calls, empty_pages) = (Mutex::default(), AtomicBool::default());
        let door = Arc::new(Door { upstream, forwarder: forwarder(), calls, empty_pages });
        let opened = Arc::clone(&door);
        let mut server = JoinSet::new();
        server.spawn(async move {
            loop {
                let Ok((connection, _)) = listener.accept().await else { continue };
                let _ = connection.set_nodelay(true);
                let (acceptor, door) = (acceptor.clone(), Arc::clone(&opened));
                tokio::spawn(async move {
                    let Ok(connection) = acceptor.accept(connection).await else { return };
                    let service = service_fn(async |request| Ok::<_, Infallible>(door.pass(request).await));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
                });
            }
        });
        Ok(Self { address, door, _server: server })
    }

    /// From now on, a log that is read from its head begins with an empty page, as it may on AWS.
    pub fn begin_logs_with_an_empty_page(&self) {
        self.door.empty_pages.store(true, Ordering::Relaxed);
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn calls(&self) -> BTreeMap<Call, Times> {
        lock(&self.door.calls).clone()
    }
}

struct Door {
    upstream: SocketAddr,
    forwarder: Forwarder,
    calls: Mutex<BTreeMap<Call, Times>>,
    empty_pages: AtomicBool,
}

impl Door {
    async fn pass(&self, request: Request<Incoming>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return answer(StatusCode::BAD_REQUEST, [], "") };
        let body = body.to_bytes();
        let call = call(&parts, &body);
        parts.headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        let request = Request::from_parts(parts, body.clone().into());
        let response = forward(&self.forwarder, self.upstream, request).await;
        let Some(call) = call else { return response };

        let (mut parts, mut content) = response.into_parts();
        let mut denied = false;
        if parts.status.is_success() {
            if self.empty_pages.load(Ordering::Relaxed)
                && let Some(page) = empty_page(&call.action, &body)
            {
                parts.headers.remove(CONTENT_LENGTH);
                content = page.into();
            }
        } else {
            let Ok(error) = content.collect().await else { return answer(StatusCode::BAD_GATEWAY, [], "") };
            let error = error.to_bytes();
            denied = String::from_utf8_lossy(&error).contains("AccessDenied");
            content = error.into();
        }
        let mut calls = lock(&self.calls);
        let times = calls.entry(call).or_default();
        times.called += 1;
        times.denied += u64::from(denied);
        Response::from_parts(parts, content)
    }
}

/// An empty page, for a request for the first page of a log. ministack's token for the head is `f/-`.
fn empty_page(action: &str, request: &[u8]) -> Option<&'static str> {
    let request: Value = serde_json::from_slice(request).ok().filter(|_| action == "logs:GetLogEvents")?;
    (request["startFromHead"] == true && request["nextToken"].is_null())
        .then_some(r#"{"events":[],"nextForwardToken":"f/-","nextBackwardToken":"b/-"}"#)
}

/// The caller and the action of a signed request. S3's requests do not name the action; only PutObject is known.
fn call(request: &Parts, body: &[u8]) -> Option<Call> {
    let authorization = request.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let mut scope = authorization.split_once("Credential=")?.1.split('/');
    let (access_key_id, service) = (scope.next()?, scope.nth(2)?);
    let operation = match request.headers.get("x-amz-target") {
        Some(target) => target.to_str().ok()?.rsplit('.').next()?,
        None if service == "s3" && request.method == Method::PUT => "PutObject",
        None => std::str::from_utf8(body).ok()?.split('&').find_map(|pair| pair.strip_prefix("Action="))?,
    };
    Some(Call { access_key_id: access_key_id.to_owned(), action: format!("{service}:{operation}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ["A returned page might only be partially full, or even empty." "Partially full or empty pages don't necessarily mean
    /// that pagination is finished."](https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html)
    #[test]
    fn a_log_may_begin_with_an_empty_page() {
        let page = |action, request: &str| empty_page(action, request.as_bytes()).is_some();
        assert!(page("logs:GetLogEvents", r#"{"startFromHead":true}"#));
        assert!(!page("logs:GetLogEvents", r#"{"startFromHead":true,"nextToken":"f/-"}"#));
        assert!(!page("logs:GetLogEvents", "{}"));
        assert!(!page("logs:FilterLogEvents", r#"{"startFromHead":true}"#));
    }

    fn called(headers: &[(&str, &str)], method: Method, body: &str) -> Option<(String, String)> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let call = call(&request.body(()).unwrap().into_parts().0, body.as_bytes())?;
        Some((call.access_key_id, call.action))
    }

    #[test]
    fn a_call_is_named_as_policies_name_it() {
        let signed = |service: &str| {
            format!("AWS4-HMAC-SHA256 Credential=KEY/20261121/us-east-1/{service}/aws4_request, SignedHeaders=host")
        };
        for (service, target, method, body, action) in [
            (
                "ecr",
                Some("AmazonEC2ContainerRegistry_V20150921.DescribeImages"),
                Method::POST,
                "{}",
                "ecr:DescribeImages",
            ),
            ("states", Some("AWSStepFunctions.SendTaskSuccess"), Method::POST, "{}", "states:SendTaskSuccess"),
            ("sts", None, Method::POST, "Action=AssumeRole&Version=2011-06-15", "sts:AssumeRole"),
            ("s3", None, Method::PUT, "[]", "s3:PutObject"),
        ] {
            let authorization = signed(service);
            let headers = [Some(("authorization", &*authorization)), target.map(|target| ("x-amz-target", target))];
            let headers: Vec<_> = headers.into_iter().flatten().collect();
            assert_eq!(called(&headers, method, body), Some(("KEY".into(), action.into())));
        }
        assert_eq!(called(&[], Method::POST, "Action=AssumeRole"), None, "it is not signed");
    }
}
