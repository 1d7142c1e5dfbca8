//! The common part of proxy and gateway: answers, and requests that are passed on to servers of this machine.

use std::net::SocketAddr;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use hudsucker::Body;
use hudsucker::hyper_util::client::legacy::Client;
use hudsucker::hyper_util::client::legacy::connect::HttpConnector;
use hudsucker::hyper_util::rt::TokioExecutor;

pub(crate) type Forwarder = Client<HttpConnector, Body>;

pub(crate) fn forwarder() -> Forwarder {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Passes a request on with its own `Host` header, which its signature covers.
pub(crate) async fn forward(forwarder: &Forwarder, to: SocketAddr, mut request: Request<Body>) -> Response<Body> {
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let Ok(uri) = format!("http://{to}{path}").parse() else { return answer(StatusCode::BAD_REQUEST, [], "") };
    *request.uri_mut() = uri;
    match forwarder.request(request).await {
        Ok(response) => response.map(Body::from),
        Err(_) => answer(StatusCode::BAD_GATEWAY, [], ""),
    }
}

pub(crate) fn answer(
    status: StatusCode,
    headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().extend(headers);
    response
}
