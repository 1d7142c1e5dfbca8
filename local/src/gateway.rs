//! The door to AWS: it speaks TLS, as AWS does, in front of ministack, which is told that the request came that way.
//!
//! So what only plain HTTP would be refused for, by a bucket's policy, say, is refused here, too. The gateway knows who calls
//! what.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_LENGTH},
    request::Parts,
    uri::{Authority, Scheme},
};
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hudsucker::{
    hyper::{
        self,
        body::{Bytes, Incoming},
        server::conn::http1,
        service::service_fn,
    },
    hyper_util::{
        client::legacy::{Client, connect::HttpConnector},
        rt::{TokioExecutor, TokioIo},
    },
    rustls::ServerConfig,
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::error::{Error, Result};

/// By which ministack knows how a request came.
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Where services that speak AWS JSON are told what is asked of them.
const TARGET: HeaderName = HeaderName::from_static("x-amz-target");

type Forwarder = Client<HttpConnector, Full<Bytes>>;
type Body = BoxBody<Bytes, hyper::Error>;
type Calls = Arc<Mutex<BTreeMap<Call, Times>>>;

/// A call that somebody made.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Call {
    /// The access key id that it was signed with.
    pub access_key_id: String,
    /// What was called, as a policy names it: `ecr:DescribeImages`.
    pub action: String,
}

/// How often.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Times {
    /// It was called.
    pub called: u64,
    /// It was denied, for want of a permission.
    pub denied: u64,
}

/// The open door. Dropping it closes it.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    server: JoinHandle<()>,
    calls: Calls,
    empty_pages: Arc<AtomicBool>,
}

impl Gateway {
    /// Opens it at `address`, with this certificate, in front of `upstream`.
    ///
    /// # Errors
    /// If the address is taken.
    pub async fn open(address: SocketAddr, identity: Arc<ServerConfig>, upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| Error::Proxy(error.into()))?;
        let address = listener.local_addr().map_err(|error| Error::Proxy(error.into()))?;
        let upstream = Authority::try_from(upstream.to_string()).map_err(|error| Error::Proxy(error.into()))?;
        let acceptor = TlsAcceptor::from(identity);
        let forwarder = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        let calls = Calls::default();
        let seen = Arc::clone(&calls);
        let empty_pages = Arc::new(AtomicBool::new(false));
        let empty = Arc::clone(&empty_pages);
        let server = tokio::spawn(async move {
            loop {
                // A connection that is gone before it is accepted is nobody's loss.
                let Ok((connection, _)) = listener.accept().await else { continue };
                let _ = connection.set_nodelay(true);
                let (acceptor, forwarder, upstream) = (acceptor.clone(), forwarder.clone(), upstream.clone());
                let (seen, empty) = (Arc::clone(&seen), Arc::clone(&empty));
                tokio::spawn(async move {
                    let Ok(connection) = acceptor.accept(connection).await else { return };
                    let service = service_fn(|request| forward(&forwarder, &upstream, &seen, &empty, request));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
                });
            }
        });
        Ok(Self { address, server, calls, empty_pages })
    }

    /// From now on, a log that is read from its head begins with an empty page, as it may on AWS.
    pub fn begin_logs_with_an_empty_page(&self) {
        self.empty_pages.store(true, Ordering::Relaxed);
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was called so far, and how often.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<Call, Times> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Passes a request on as it is: the signature covers its host and its headers.
async fn forward(
    forwarder: &Forwarder,
    to: &Authority,
    calls: &Calls,
    empty_pages: &AtomicBool,
    request: Request<Incoming>,
) -> Result<Response<Body>, http::Error> {
    let refuse = |status| {
        let nothing = Empty::new().map_err(|never| match never {}).boxed();
        Response::builder().status(status).body(nothing)
    };
    let (mut parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return refuse(StatusCode::BAD_REQUEST) };
    let body = body.to_bytes();
    let call = call(&parts, &body);
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(to.clone());
    parts.uri = Uri::from_parts(uri)?;
    parts.headers.insert(FORWARDED, HeaderValue::from_static("https"));
    let Ok(response) = forwarder.request(Request::from_parts(parts, body.clone().into())).await else {
        return refuse(StatusCode::BAD_GATEWAY);
    };
    let count = |denied| {
        if let Some(call) = &call {
            let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
            let times = calls.entry(call.clone()).or_default();
            times.called += 1;
            times.denied += u64::from(denied);
        }
    };
    if response.status().is_success() {
        count(false);
        let action = call.map(|call| call.action).unwrap_or_default();
        if let Some(page) = empty_page(&action, &body).filter(|_| empty_pages.load(Ordering::Relaxed)) {
            let (mut parts, _) = response.into_parts();
            parts.headers.remove(CONTENT_LENGTH);
            return Ok(Response::from_parts(parts, whole(Bytes::from_static(page.as_bytes()))));
        }
        return Ok(response.map(BodyExt::boxed));
    }
    let (parts, body) = response.into_parts();
    let Ok(body) = body.collect().await else { return refuse(StatusCode::BAD_GATEWAY) };
    let body = body.to_bytes();
    count(String::from_utf8_lossy(&body).contains("AccessDenied"));
    Ok(Response::from_parts(parts, whole(body)))
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed()
}

/// An empty page, after which a log begins, for who asks for a log from its head. ministack's token for the head is `f/-`.
fn empty_page(action: &str, request: &[u8]) -> Option<&'static str> {
    let request: Value = serde_json::from_slice(request).ok().filter(|_| action == "logs:GetLogEvents")?;
    (request["startFromHead"] == true && request["nextToken"].is_null())
        .then_some(r#"{"events":[],"nextForwardToken":"f/-","nextBackwardToken":"b/-"}"#)
}

/// What a signed request asks for, and who asks. Only PutObject is known of S3, which has no other name for it.
fn call(request: &Parts, body: &[u8]) -> Option<Call> {
    let authorization = request.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let mut scope = authorization.split_once("Credential=")?.1.split('/');
    let (access_key_id, service) = (scope.next()?, scope.nth(2)?);
    let operation = match request.headers.get(TARGET) {
        Some(target) => target.to_str().ok()?.rsplit('.').next()?.to_owned(),
        None if service == "s3" && request.method == Method::PUT => "PutObject".to_owned(),
        None => {
            let form = std::str::from_utf8(body).ok()?;
            form.split('&').find_map(|pair| pair.strip_prefix("Action="))?.to_owned()
        }
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
