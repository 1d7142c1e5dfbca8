//! The network: an intercepting proxy that leads registry hosts to their local stand-ins.
//!
//! skopeo and the Lambdas use real host names over TLS, as they would on AWS; they trust the proxy's own certificate
//! authority through `SSL_CERT_FILE`. Hosts of ECR lead to ministack, which finds account and region in the `Host` header,
//! and only with a login, as ECR has it; hosts that were told to lead elsewhere do; every other host leads to the registry
//! that stands in for the public ones, and no IP address leads anywhere. On its way the proxy counts, delays, and breaks what
//! it is told to.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    future::{Ready, ready},
    iter::{Once, once},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, HeaderName, WWW_AUTHENTICATE},
    uri::{Authority, Scheme},
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hudsucker::{
    Body, HttpContext, HttpHandler, Proxy as Hudsucker, RequestOrResponse,
    certificate_authority::RcgenAuthority,
    futures::stream,
    hyper::body::Bytes,
    hyper_util::client::legacy::connect::{HttpConnector, dns::Name},
    rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose},
    rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivatePkcs8KeyDer},
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinHandle,
};

use crate::error::{Error, Result};

/// Where the proxy leads.
#[derive(Clone, Copy, Debug)]
pub struct Upstream {
    /// ministack, for hosts of ECR.
    pub ecr: SocketAddr,
    /// The stand-in for public registries; none where the real ones are to be reached.
    pub public: Option<SocketAddr>,
}

/// A part of the registry protocol.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Reading or writing a manifest.
    Manifest,
    /// Reading a blob, or asking whether it is there.
    Blob,
    /// Any step of uploading a blob.
    Upload,
    /// Logins, tag lists, and whatever else.
    Other,
}

impl Kind {
    fn of(path: &str) -> Self {
        if path.contains("/blobs/uploads") {
            Self::Upload
        } else if path.contains("/blobs/") {
            Self::Blob
        } else if path.contains("/manifests/") {
            Self::Manifest
        } else {
            Self::Other
        }
    }
}

/// Which requests are meant. `*` in host or path stands for any text, the path includes the query.
#[derive(Clone, Debug)]
pub struct Pattern {
    host: String,
    method: Option<Method>,
    path: String,
}

impl Pattern {
    /// Requests of any method, such as `Pattern::new("*.dkr.ecr.us-east-1.amazonaws.com", "*/manifests/*")`.
    #[must_use]
    pub fn new(host: &str, path: &str) -> Self {
        Self { host: host.to_owned(), method: None, path: path.to_owned() }
    }

    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self::new("*", "*")
    }

    /// Only requests of this method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    fn matches(&self, seen: &Seen) -> bool {
        self.method.as_ref().is_none_or(|method| *method == seen.method)
            && glob(&self.host, &seen.host)
            && glob(&self.path, &seen.path)
    }
}

/// Whether `text` is of the form `pattern`, in which each `*` stands for any text.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut parts = rest.split('*');
    let end = parts.next_back().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(end)
}

/// A request that came by.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The registry's host.
    pub host: String,
    /// The request's method.
    pub method: Method,
    /// The path and the query.
    pub path: String,
}

/// What becomes of a request that a fault is meant for.
#[derive(Clone, Debug)]
pub enum Action {
    /// It is answered with this status, and these headers.
    Status(StatusCode, Vec<(HeaderName, HeaderValue)>),
    /// It is answered with this status, and an error of the registry protocol: a code, and a message.
    Error(StatusCode, &'static str, &'static str),
    /// The connection is closed without an answer.
    Reset,
    /// It gets nowhere until the fault is lifted, and then goes on as if nothing had been.
    Stall,
    /// The connection is closed after so many bytes of the answer's body.
    Truncate(u64),
    /// The first byte of the answer's body becomes another one.
    Corrupt,
}

/// A fault in the network: what happens to the next so many requests of a kind.
#[derive(Clone, Debug)]
pub struct Fault {
    pattern: Pattern,
    action: Action,
    times: usize,
}

impl Fault {
    /// A fault that happens once.
    #[must_use]
    pub fn new(pattern: Pattern, action: Action) -> Self {
        Self { pattern, action, times: 1 }
    }

    /// Lets it happen so many times instead.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Lets it happen until it is lifted.
    #[must_use]
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }
}

/// A fault that is in force. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Injected {
    state: Arc<watch::Sender<FaultState>>,
}

#[derive(Clone, Copy, Debug)]
struct FaultState {
    left: usize,
    hits: usize,
    lifted: bool,
}

impl Injected {
    /// How many requests it has hit so far.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.state.borrow().hits
    }

    /// Waits until it has hit so many requests.
    pub async fn hit(&self, times: usize) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.state.subscribe().wait_for(|state| state.hits >= times).await;
    }

    /// Ends the fault. Stalled requests go on.
    pub fn lift(&self) {
        self.state.send_modify(|state| state.lifted = true);
    }

    fn strike(&self) -> bool {
        self.state.send_if_modified(|state| {
            let strikes = !state.lifted && state.left > 0;
            if strikes {
                state.left -= 1;
                state.hits += 1;
            }
            strikes
        })
    }

    async fn lifted(&self) {
        let _ = self.state.subscribe().wait_for(|state| state.lifted).await;
    }
}

/// What went through the proxy for one kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// How many requests.
    pub requests: u64,
    /// Bytes of request bodies.
    pub sent: u64,
    /// Bytes of answers' bodies.
    pub received: u64,
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
}

type Counters = BTreeMap<(String, String, Kind), Arc<Counter>>;

/// The running proxy.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    ca_bundle: PathBuf,
    identity: Arc<ServerConfig>,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Proxy {
    /// Starts it on a free port of the loopback interface. The certificate bundle is written to `directory`. ECR's hosts
    /// refuse everybody until there is a login for them.
    ///
    /// # Errors
    /// If no port can be had, or the bundle cannot be written.
    pub async fn start(upstream: Upstream, directory: &Path) -> Result<Self> {
        let Trust { authority, certificate, identity } = certificate_authority()?;
        let ca_bundle = directory.join("ca.pem");
        std::fs::write(&ca_bundle, system_roots() + &certificate).map_err(Error::file(&ca_bundle))?;

        let failed = |error: std::io::Error| Error::Proxy(error.into());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            logins: Mutex::default(),
            routes: Mutex::default(),
            public: upstream.public.is_some(),
            latency: Mutex::default(),
            counters: Mutex::default(),
            faults: Mutex::default(),
            watchers: Mutex::default(),
        });
        let mut connector = HttpConnector::new_with_resolver(Resolver { upstream, shared: Arc::clone(&shared) });
        connector.set_nodelay(true);
        let proxy = Hudsucker::builder()
            .with_listener(listener)
            .with_ca(authority)
            .with_http_connector(connector)
            .with_http_handler(Interceptor { shared: Arc::clone(&shared), exchange: None })
            .build()
            .map_err(|error| Error::Proxy(error.into()))?;
        let server = tokio::spawn(async move {
            // It ends only with the task that it runs in.
            let _ = proxy.start().await;
        });
        Ok(Self { address, ca_bundle, identity, shared, server })
    }

    /// Sets the login that hosts of this form ask for: `user:password` in base64. `*` stands for any text.
    pub fn require_login(&self, host: &str, token: &str) {
        lock(&self.shared.logins).push((host.to_owned(), format!("Basic {token}")));
    }

    /// Leads hosts of this form to `address`, and asks for no login there. `*` stands for any text.
    pub fn lead(&self, host: &str, address: SocketAddr) {
        lock(&self.shared.routes).push((host.to_owned(), address));
    }

    /// Its address, as `HTTPS_PROXY` wants it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The certificates to trust, the system's own among them: for `SSL_CERT_FILE`.
    #[must_use]
    pub fn ca_bundle(&self) -> &Path {
        &self.ca_bundle
    }

    /// A certificate for the loopback address, which whoever trusts the bundle trusts.
    #[must_use]
    pub fn identity(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.identity)
    }

    /// Puts a fault in force. Of several faults for a request the one that was injected first strikes.
    pub fn inject(&self, fault: Fault) -> Injected {
        let state = FaultState { left: fault.times, hits: 0, lifted: false };
        let injected = Injected { state: Arc::new(watch::Sender::new(state)) };
        lock(&self.shared.faults).push((fault.pattern, fault.action, injected.clone()));
        injected
    }

    /// Lifts all faults, and takes the latency away.
    pub fn heal(&self) {
        for (_, _, injected) in lock(&self.shared.faults).drain(..) {
            injected.lift();
        }
        self.set_latency(Duration::ZERO);
    }

    /// The next request of that form, from this call on.
    pub fn seen(&self, pattern: Pattern) -> impl Future<Output = Seen> + Send + 'static {
        let (found, seen) = oneshot::channel();
        lock(&self.shared.watchers).push((pattern, found));
        async move {
            match seen.await {
                Ok(seen) => seen,
                // The proxy is gone: nothing will be seen any more.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Delays every request by so much.
    pub fn set_latency(&self, latency: Duration) {
        *lock(&self.shared.latency) = latency;
    }

    /// What went through so far, by host, method and kind, for the requests that `select` wants.
    pub fn traffic(&self, select: impl Fn(&str, &str, Kind) -> bool) -> Traffic {
        lock(&self.shared.counters).iter().filter(|((host, method, kind), _)| select(host, method, *kind)).fold(
            Traffic::default(),
            |total, (_, counter)| Traffic {
                requests: total.requests + counter.requests.load(Ordering::Relaxed),
                sent: total.sent + counter.sent.load(Ordering::Relaxed),
                received: total.received + counter.received.load(Ordering::Relaxed),
            },
        )
    }

    /// Starts counting anew.
    pub fn reset_traffic(&self) {
        lock(&self.shared.counters).clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.heal();
        self.server.abort();
    }
}

#[derive(Debug)]
struct Shared {
    logins: Mutex<Vec<(String, String)>>,
    routes: Mutex<Vec<(String, SocketAddr)>>,
    public: bool,
    latency: Mutex<Duration>,
    counters: Mutex<Counters>,
    faults: Mutex<Vec<(Pattern, Action, Injected)>>,
    watchers: Mutex<Vec<(Pattern, oneshot::Sender<Seen>)>>,
}

impl Shared {
    fn route(&self, host: &str) -> Option<SocketAddr> {
        lock(&self.routes).iter().find(|(pattern, _)| glob(pattern, host)).map(|(_, address)| *address)
    }

    fn admits(&self, host: &str, login: Option<&HeaderValue>) -> bool {
        if self.route(host).is_some() {
            return true;
        }
        let logins = lock(&self.logins);
        match logins.iter().find(|(pattern, _)| glob(pattern, host)) {
            Some((_, known)) => login.is_some_and(|login| login.as_bytes() == known.as_bytes()),
            None => !is_ecr(host),
        }
    }

    fn count(&self, seen: &Seen, kind: Kind) -> Arc<Counter> {
        let key = (seen.host.clone(), seen.method.to_string(), kind);
        let counter = Arc::clone(lock(&self.counters).entry(key).or_default());
        counter.requests.fetch_add(1, Ordering::Relaxed);
        counter
    }

    fn tell(&self, seen: &Seen) {
        for (_, watcher) in lock(&self.watchers).extract_if(.., |(pattern, _)| pattern.matches(seen)) {
            let _ = watcher.send(seen.clone());
        }
    }

    fn strike(&self, seen: &Seen) -> Option<(Action, Injected)> {
        lock(&self.faults)
            .iter()
            .find(|(pattern, _, injected)| pattern.matches(seen) && injected.strike())
            .map(|(_, action, injected)| (action.clone(), injected.clone()))
    }
}

/// Locks; a panic elsewhere leaves nothing half done behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the host is an ECR registry's.
#[must_use]
pub fn is_ecr(host: &str) -> bool {
    host.split_once(".dkr.ecr.").is_some_and(|(account, rest)| {
        account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && (rest.ends_with(".amazonaws.com") || rest.ends_with(".amazonaws.com.cn"))
    })
}

/// Whether the host is an IP address, which in a URL has brackets around it if it is of version 6.
fn is_address(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// Finds the stand-in's address where a resolver would find the real one's.
#[derive(Clone)]
struct Resolver {
    upstream: Upstream,
    shared: Arc<Shared>,
}

impl tower_service::Service<Name> for Resolver {
    type Response = Once<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, host: Name) -> Self::Future {
        let Upstream { ecr, public } = self.upstream;
        let otherwise = if is_ecr(host.as_str()) { ecr } else { public.unwrap_or(ecr) };
        ready(Ok(once(self.shared.route(host.as_str()).unwrap_or(otherwise))))
    }
}

/// What must be remembered of a request until its answer comes.
#[derive(Clone)]
struct Exchange {
    counter: Arc<Counter>,
    harm: Option<Harm>,
}

/// What is done to a body on its way.
#[derive(Clone, Copy, PartialEq)]
enum Harm {
    /// It ends, with an error, after so many more bytes.
    CutAfter(u64),
    /// Its first byte becomes another.
    FirstByte,
}

#[derive(Clone)]
struct Interceptor {
    shared: Arc<Shared>,
    exchange: Option<Exchange>,
}

impl HttpHandler for Interceptor {
    async fn handle_request(&mut self, _: &HttpContext, request: Request<Body>) -> RequestOrResponse {
        if request.method() == Method::CONNECT {
            let host = request.uri().host().filter(|host| is_address(host)).map(str::to_owned);
            let Some(host) = host else { return request.into() };
            // A registry must not reach what the network really has there, such as this machine's metadata.
            self.shared.count(&Seen { host, method: Method::CONNECT, path: String::new() }, Kind::Other);
            return answer(StatusCode::BAD_GATEWAY, Vec::new()).into();
        }
        let (mut parts, body) = request.into_parts();
        let seen = Seen {
            host: parts.uri.host().unwrap_or_default().to_owned(),
            method: parts.method.clone(),
            path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        };
        let counter = self.shared.count(&seen, Kind::of(&seen.path));
        let strike = self.shared.strike(&seen);
        self.shared.tell(&seen);
        let latency = *lock(&self.shared.latency);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }

        let mut harm = None;
        match strike {
            Some((Action::Status(status, headers), _)) => return answer(status, headers).into(),
            Some((Action::Error(status, code, message), _)) => return registry_error(status, code, message).into(),
            Some((Action::Reset, _)) => return Response::new(broken()).into(),
            Some((Action::Stall, injected)) => injected.lifted().await,
            Some((Action::Truncate(bytes), _)) => harm = Some(Harm::CutAfter(bytes)),
            Some((Action::Corrupt, _)) => harm = Some(Harm::FirstByte),
            None => {}
        }
        if !self.shared.admits(&seen.host, parts.headers.get(AUTHORIZATION)) {
            return unauthorized(&seen.host).into();
        }
        match local(&parts.uri) {
            Some(uri) => parts.uri = uri,
            None => return answer(StatusCode::BAD_REQUEST, Vec::new()).into(),
        }
        let body = counted(body, Arc::clone(&counter.sent), None);
        self.exchange = Some(Exchange { counter, harm });
        Request::from_parts(parts, body).into()
    }

    async fn handle_response(&mut self, _: &HttpContext, response: Response<Body>) -> Response<Body> {
        match self.exchange.take() {
            Some(Exchange { counter, harm }) => response.map(|body| counted(body, Arc::clone(&counter.received), harm)),
            None => response,
        }
    }

    async fn should_intercept_connect(&mut self, _: &HttpContext, request: &Request<Body>) -> bool {
        let is_ours = |host: &str| is_ecr(host) || self.shared.route(host).is_some();
        self.shared.public || request.uri().host().is_some_and(is_ours)
    }
}

/// The same place in plain HTTP. The authority stays, since the `Host` header is made of it; without a port, so that the
/// resolver's holds.
fn local(uri: &Uri) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(uri.host()?).ok()?);
    Uri::from_parts(parts).ok()
}

fn answer(status: StatusCode, headers: Vec<(HeaderName, HeaderValue)>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().extend(headers);
    response
}

/// An error as registries word it; see the distribution specification's error codes.
fn registry_error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let errors = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    let mut response = Response::new(Body::from(errors.to_string()));
    *response.status_mut() = status;
    response
}

/// What ECR says to those who bring no login, or a wrong one; and so do other registries that know their own users.
fn unauthorized(host: &str) -> Response<Body> {
    let service = if is_ecr(host) { "ecr.amazonaws.com" } else { host };
    let realm = format!("Basic realm=\"https://{host}/\",service=\"{service}\"");
    let mut response = Response::new(Body::from("Not Authorized\n"));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    if let Ok(realm) = HeaderValue::from_str(&realm) {
        response.headers_mut().insert(WWW_AUTHENTICATE, realm);
    }
    response
}

/// A body that fails before its first byte, upon which the connection is closed.
fn broken() -> Body {
    Body::from_stream(stream::once(ready(Err::<Bytes, _>(cut()))))
}

fn cut() -> hudsucker::Error {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}

/// A body whose bytes are counted, and which may come to harm.
fn counted(body: Body, counter: Arc<AtomicU64>, harm: Option<Harm>) -> Body {
    Counted { body, counter, harm }.boxed()
}

struct Counted {
    body: Body,
    counter: Arc<AtomicU64>,
    harm: Option<Harm>,
}

impl Counted {
    fn boxed(self) -> Body {
        http_body_util::combinators::BoxBody::new(self).into()
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = hudsucker::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hudsucker::Error>>> {
        if self.harm == Some(Harm::CutAfter(0)) {
            return Poll::Ready(Some(Err(cut())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let Poll::Ready(Some(Ok(frame))) = polled else { return polled };
        let frame = frame.map_data(|mut data| {
            match &mut self.harm {
                Some(Harm::CutAfter(limit)) => {
                    data.truncate(usize::try_from(*limit).unwrap_or(usize::MAX));
                    *limit -= data.len() as u64;
                }
                Some(Harm::FirstByte) if !data.is_empty() => {
                    data = [&[!data[0]], &data[1..]].concat().into();
                    self.harm = None;
                }
                _ => {}
            }
            self.counter.fetch_add(data.len() as u64, Ordering::Relaxed);
            data
        });
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Who vouches for the hosts that are stood in for.
struct Trust {
    authority: RcgenAuthority,
    /// Its own certificate, in PEM.
    certificate: String,
    /// What it has issued for the loopback address.
    identity: Arc<ServerConfig>,
}

/// A certificate authority for this machine alone: its key is never written down.
fn certificate_authority() -> Result<Trust> {
    let failed = |error: hudsucker::rcgen::Error| Error::Proxy(error.into());
    let key = KeyPair::generate().map_err(failed)?;
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.distinguished_name.push(DnType::CommonName, "ecr-transfer, local AWS");
    let certificate = parameters.self_signed(&key).map_err(failed)?.pem();
    let issuer = Issuer::new(parameters, key);

    let key = KeyPair::generate().map_err(failed)?;
    let loopback = CertificateParams::new(vec![Ipv4Addr::LOCALHOST.to_string()]).map_err(failed)?;
    let loopback = loopback.signed_by(&key, &issuer).map_err(failed)?;
    let identity = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
            builder.with_no_client_auth().with_single_cert(vec![loopback.der().clone()], key)
        })
        .map_err(|error| Error::Proxy(error.into()))?;

    const HOSTS: u64 = 1_000;
    let authority = RcgenAuthority::new(issuer, HOSTS, aws_lc_rs::default_provider());
    Ok(Trust { authority, certificate, identity: Arc::new(identity) })
}

/// The certificates that this system trusts, in PEM. `SSL_CERT_FILE` replaces them, so they go into the bundle.
fn system_roots() -> String {
    let mut pem = String::new();
    for certificate in rustls_native_certs::load_native_certs().certs {
        let _ = write!(
            pem,
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            // Any line length is read; the standard's is 64.
            STANDARD
                .encode(&certificate)
                .as_bytes()
                .chunks(64)
                .map(String::from_utf8_lossy)
                .collect::<Vec<_>>()
                .join("\n")
        );
    }
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(glob("*", "") && glob("a", "a") && !glob("a", "b"));
        assert!(glob("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.us-east-1.amazonaws.com"));
        assert!(glob("/v2/*/manifests/*", "/v2/a/b/manifests/latest"));
        assert!(!glob("/v2/*/manifests/", "/v2/a/manifests/latest"));
        assert!(!glob("ab*b", "ab"));
    }

    #[test]
    fn only_registries_of_ecr_are_taken_for_ecr() {
        assert!(is_ecr("111111111111.dkr.ecr.us-east-1.amazonaws.com"));
        assert!(is_ecr("111111111111.dkr.ecr.cn-north-1.amazonaws.com.cn"));
        assert!(!is_ecr("1.dkr.ecr.us-east-1.amazonaws.com"));
        assert!(!is_ecr("111111111111.dkr.ecr.us-east-1.example.com"));
        assert!(!is_ecr("quay.io"));
    }

    #[test]
    fn a_fault_strikes_as_often_as_it_was_told_to() {
        let state = FaultState { left: 2, hits: 0, lifted: false };
        let injected = Injected { state: Arc::new(watch::Sender::new(state)) };
        assert!(injected.strike() && injected.strike() && !injected.strike());
        assert_eq!(injected.hits(), 2);
    }

    #[test]
    fn a_request_keeps_its_host_on_the_way_to_the_stand_in() {
        let uri = Uri::from_static("https://quay.io:443/v2/a/tags/list?n=1");
        assert_eq!(local(&uri).unwrap().to_string(), "http://quay.io/v2/a/tags/list?n=1");
    }
}
