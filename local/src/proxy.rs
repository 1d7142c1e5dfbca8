//! The network: an intercepting proxy that leads registry hosts to their local stand-ins.
//!
//! skopeo and the Lambdas use real host names over TLS, as they would on AWS; they trust the proxy's own certificate
//! authority through `SSL_CERT_FILE`. Hosts of ECR lead to ministack, which finds account and region in the `Host` header,
//! and ask for a login, as ECR does. Every other host leads to the stand-in for public registries. IP addresses lead
//! nowhere. On the way the proxy counts requests, delays them, and injects faults.

use std::collections::HashMap;
use std::future::ready;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use fs_err as fs;
use futures_util::stream;
use http::header::{AUTHORIZATION, HOST, HeaderName, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use hudsucker::certificate_authority::RcgenAuthority;
use hudsucker::hyper::body::Bytes;
use hudsucker::hyper_util::client::legacy::connect::HttpConnector;
use hudsucker::rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use hudsucker::rustls::ServerConfig;
use hudsucker::rustls::crypto::aws_lc_rs;
use hudsucker::rustls::pki_types::PrivatePkcs8KeyDer;
use hudsucker::{Body, HttpContext, HttpHandler, Proxy as Hudsucker, RequestOrResponse};
use pem::Pem;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::forward::{Forwarder, answer, forward, forwarder};
use crate::lock;

/// The hosts of ECR's registries.
pub const ECR_HOSTS: &str = "*.dkr.ecr.*.amazonaws.com";

/// Where the proxy leads.
#[derive(Clone, Copy)]
pub struct Upstream {
    /// ministack, for hosts of ECR.
    pub ecr: SocketAddr,
    /// The stand-in for public registries, unless the real ones are used.
    pub public: Option<SocketAddr>,
}

/// A part of the registry protocol.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    Manifest,
    /// Reading a blob, or asking whether it is there.
    Blob,
    /// Any step of uploading a blob.
    Upload,
    /// Logins, tag lists, and anything else.
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

/// A set of requests. `*` in host or path matches any text; the path includes the query.
#[derive(Clone, Debug)]
pub struct Pattern {
    host: glob::Pattern,
    method: Option<Method>,
    path: glob::Pattern,
}

impl Pattern {
    /// Requests of any method, such as `Pattern::new("*.dkr.ecr.us-east-1.amazonaws.com", "*/manifests/*")`.
    pub fn new(host: &str, path: &str) -> Self {
        Self { host: pattern(host), method: None, path: pattern(path) }
    }

    /// Only requests of this method.
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    fn matches(&self, host: &str, method: &Method, path: &str) -> bool {
        self.host.matches(host) && self.path.matches(path) && self.method.as_ref().is_none_or(|it| it == method)
    }
}

fn pattern(text: &str) -> glob::Pattern {
    glob::Pattern::new(text).expect("a pattern is a text with `*`")
}

/// What a fault does to a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// The answer has this status and these headers.
    Status(StatusCode, Vec<(HeaderName, HeaderValue)>),
    /// The answer has this status and an error of the registry protocol, with a code and a message.
    Error(StatusCode, &'static str, &'static str),
    /// The connection is closed without an answer.
    Reset,
    /// The request waits until the fault is lifted, and then goes on as usual.
    Stall,
    /// The connection is closed after so many bytes of the answer's body.
    Truncate(u64),
    /// The first byte of the answer's body is changed.
    Corrupt,
}

/// A fault in the network, which affects the next requests that match a pattern.
#[derive(Clone, Debug)]
pub struct Fault {
    pattern: Pattern,
    action: Action,
    times: usize,
}

impl Fault {
    /// A fault that happens once.
    pub fn new(pattern: Pattern, action: Action) -> Self {
        Self { pattern, action, times: 1 }
    }

    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Lets it happen until [`Injected::lift`].
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }
}

/// A fault that is in force. Dropping it changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Injected(watch::Sender<FaultState>);

#[derive(Debug, Default)]
struct FaultState {
    hits: usize,
    lifted: bool,
}

impl Injected {
    /// How many requests it has affected so far.
    pub fn hits(&self) -> usize {
        self.0.borrow().hits
    }

    /// Waits until it has affected this many requests.
    pub async fn hit(&self, times: usize) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|state| state.hits >= times).await;
    }

    /// Ends the fault. Stalled requests go on.
    pub fn lift(&self) {
        self.0.send_modify(|state| state.lifted = true);
    }

    fn strikes(&self, times: usize) -> bool {
        self.0.send_if_modified(|state| {
            let strikes = !state.lifted && state.hits < times;
            state.hits += usize::from(strikes);
            strikes
        })
    }

    async fn lifted(&self) {
        let _ = self.0.subscribe().wait_for(|state| state.lifted).await;
    }
}

/// What went through the proxy: requests, and the bytes of their bodies and of the answers' bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    pub requests: u64,
    pub sent: u64,
    pub received: u64,
}

/// The running proxy. Dropping it stops it.
pub struct Proxy {
    address: SocketAddr,
    ca_bundle: PathBuf,
    identity: Arc<ServerConfig>,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl Proxy {
    /// Starts it on a free port of the loopback interface. The certificate bundle is written to `directory`. ECR's hosts
    /// refuse every request until there is a login for them.
    pub async fn start(upstream: Upstream, directory: &Path) -> Result<Self> {
        let (authority, certificate, identity) = certificate_authority()?;
        let ca_bundle = directory.join("ca.pem");
        // `SSL_CERT_FILE` replaces the system's certificates, so they are in the bundle.
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots = roots.iter().map(|root| pem::encode(&Pem::new("CERTIFICATE", root.to_vec())));
        fs::write(&ca_bundle, roots.collect::<String>() + &certificate)?;

        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            forwarder: forwarder(),
            logins: Mutex::new(vec![(pattern(ECR_HOSTS), None)]),
            stand_ins: Mutex::default(),
            latency: Mutex::default(),
            traffic: Mutex::default(),
            faults: Mutex::default(),
        });
        let proxy = Hudsucker::builder()
            .with_listener(listener)
            .with_ca(authority)
            .with_http_connector(HttpConnector::new())
            .with_http_handler(Interceptor(Arc::clone(&shared)))
            .build()?;
        let mut server = JoinSet::new();
        server.spawn(async move { drop(proxy.start().await) });
        Ok(Self { address, ca_bundle, identity, shared, _server: server })
    }

    /// Sets the login that hosts of this form ask for: `user:password` in base64.
    pub fn require_login(&self, hosts: &str, token: &str) {
        lock(&self.shared.logins).insert(0, (pattern(hosts), Some(format!("Basic {token}"))));
    }

    /// Lets `answer` stand in for hosts of this form, which ask for no login.
    pub(crate) fn stand_in(
        &self,
        hosts: &str,
        answer: impl Fn(&Request<Body>) -> Response<Body> + Send + Sync + 'static,
    ) {
        lock(&self.shared.stand_ins).push((pattern(hosts), Arc::new(answer)));
    }

    /// Its address, for `HTTPS_PROXY`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The certificates to trust, the system's own among them: for `SSL_CERT_FILE`.
    pub fn ca_bundle(&self) -> &Path {
        &self.ca_bundle
    }

    /// A certificate for the loopback address, issued by the authority in the bundle.
    pub fn identity(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.identity)
    }

    /// Puts a fault in force. If several match a request, the first that was injected affects it.
    pub fn inject(&self, fault: Fault) -> Injected {
        let injected = Injected::default();
        lock(&self.shared.faults).push((fault, injected.clone()));
        injected
    }

    /// Lifts all faults, and takes the latency away.
    pub fn heal(&self) {
        lock(&self.shared.faults).drain(..).for_each(|(_, injected)| injected.lift());
        self.set_latency(Duration::ZERO);
    }

    pub fn set_latency(&self, latency: Duration) {
        *lock(&self.shared.latency) = latency;
    }

    /// The traffic so far of the hosts, methods and kinds that `select` accepts.
    pub fn traffic(&self, select: impl Fn(&str, &str, Kind) -> bool) -> Traffic {
        let mut total = Traffic::default();
        for ((host, method, kind), traffic) in &*lock(&self.shared.traffic) {
            if select(host, method.as_str(), *kind) {
                total.requests += traffic.requests;
                total.sent += traffic.sent;
                total.received += traffic.received;
            }
        }
        total
    }

    /// Starts counting anew.
    pub fn reset_traffic(&self) {
        lock(&self.shared.traffic).clear();
    }
}

/// What is counted together.
type Key = (String, Method, Kind);

type Counter = fn(&mut Traffic) -> &mut u64;

type StandIn = Arc<dyn Fn(&Request<Body>) -> Response<Body> + Send + Sync>;

struct Shared {
    upstream: Upstream,
    forwarder: Forwarder,
    /// With `None`, every login is wrong.
    logins: Mutex<Vec<(glob::Pattern, Option<String>)>>,
    stand_ins: Mutex<Vec<(glob::Pattern, StandIn)>>,
    latency: Mutex<Duration>,
    traffic: Mutex<HashMap<Key, Traffic>>,
    faults: Mutex<Vec<(Fault, Injected)>>,
}

impl Shared {
    async fn serve(self: &Arc<Self>, mut request: Request<Body>) -> Response<Body> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let key = (host.clone(), request.method().clone(), Kind::of(&path));
        self.count(&key, |traffic| traffic.requests += 1);
        let fault = self.strike(&host, request.method(), &path);
        let latency = *lock(&self.latency);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let mut harm = None;
        match fault {
            Some((Action::Status(status, headers), _)) => return answer(status, headers, ""),
            Some((Action::Error(status, code, message), _)) => {
                let errors = json!({ "errors": [{ "code": code, "message": message }] });
                return answer(status, [], errors.to_string());
            }
            // A body that fails before its first byte: the connection is closed.
            Some((Action::Reset, _)) => {
                return Response::new(Body::from_stream(stream::once(ready(Err::<Bytes, _>(cut())))));
            }
            Some((Action::Stall, injected)) => injected.lifted().await,
            Some((action, _)) => harm = Some(action),
            None => {}
        }
        let response = if let Some(stand_in) = self.stand_in(&host) {
            stand_in(&request)
        } else if self.admits(&host, request.headers().get(AUTHORIZATION)) {
            if let Ok(host) = HeaderValue::from_str(&host) {
                // Without a port, which is not the stand-in's.
                request.headers_mut().insert(HOST, host);
            }
            let request = request.map(|body| self.watched(body, &key, None, |traffic| &mut traffic.sent));
            let Upstream { ecr, public } = self.upstream;
            let to = public.filter(|_| !is_ecr(&host)).unwrap_or(ecr);
            forward(&self.forwarder, to, request).await
        } else {
            return unauthorized(&host);
        };
        response.map(|body| self.watched(body, &key, harm, |traffic| &mut traffic.received))
    }

    fn stand_in(&self, host: &str) -> Option<StandIn> {
        lock(&self.stand_ins).iter().find(|(hosts, _)| hosts.matches(host)).map(|(_, answer)| Arc::clone(answer))
    }

    fn admits(&self, host: &str, login: Option<&HeaderValue>) -> bool {
        match lock(&self.logins).iter().find(|(hosts, _)| hosts.matches(host)) {
            Some((_, known)) => login.zip(known.as_ref()).is_some_and(|(login, known)| login == known),
            None => true,
        }
    }

    fn strike(&self, host: &str, method: &Method, path: &str) -> Option<(Action, Injected)> {
        let faults = lock(&self.faults);
        let mut faults = faults.iter().filter(|(fault, _)| fault.pattern.matches(host, method, path));
        let (fault, injected) = faults.find(|(fault, injected)| injected.strikes(fault.times))?;
        Some((fault.action.clone(), injected.clone()))
    }

    fn count(&self, key: &Key, add: impl FnOnce(&mut Traffic)) {
        add(lock(&self.traffic).entry(key.clone()).or_default());
    }

    /// A body whose bytes are counted, and to which a fault may happen.
    fn watched(self: &Arc<Self>, body: Body, key: &Key, harm: Option<Action>, counter: Counter) -> Body {
        let (shared, key) = (Arc::clone(self), key.clone());
        let count = move |bytes| shared.count(&key, |traffic| *counter(traffic) += bytes);
        BoxBody::new(Watched { body, harm, count }).into()
    }
}

struct Watched<C> {
    body: Body,
    harm: Option<Action>,
    count: C,
}

impl<C: Fn(u64) + Unpin> HttpBody for Watched<C> {
    type Data = Bytes;
    type Error = hudsucker::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if matches!(self.harm, Some(Action::Truncate(0))) {
            return Poll::Ready(Some(Err(cut())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map_ok(|frame| {
            frame.map_data(|mut data| {
                match &mut self.harm {
                    Some(Action::Truncate(left)) => {
                        data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                        *left -= data.len() as u64;
                    }
                    Some(Action::Corrupt) if !data.is_empty() => {
                        data = [&[!data[0]], &data[1..]].concat().into();
                        self.harm = None;
                    }
                    _ => {}
                }
                (self.count)(data.len() as u64);
                data
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a host is an ECR registry.
pub fn is_ecr(host: &str) -> bool {
    pattern(ECR_HOSTS).matches(host)
}

#[derive(Clone)]
struct Interceptor(Arc<Shared>);

impl HttpHandler for Interceptor {
    async fn handle_request(&mut self, _: &HttpContext, request: Request<Body>) -> RequestOrResponse {
        if request.method() != Method::CONNECT {
            return self.0.serve(request).await.into();
        }
        let host = request.uri().host().unwrap_or_default();
        // A URL has IPv6 addresses in brackets.
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_err() {
            return request.into();
        }
        // A registry must not lead to real addresses, for example to this machine's metadata.
        let key = (host.to_owned(), Method::CONNECT, Kind::Other);
        self.0.count(&key, |traffic| traffic.requests += 1);
        answer(StatusCode::BAD_GATEWAY, [], "").into()
    }

    async fn should_intercept_connect(&mut self, _: &HttpContext, request: &Request<Body>) -> bool {
        let is_ours = |host: &str| is_ecr(host) || self.0.stand_in(host).is_some();
        self.0.upstream.public.is_some() || request.uri().host().is_some_and(is_ours)
    }
}

/// The answer of ECR, and of other registries with users of their own, to a missing or wrong login.
fn unauthorized(host: &str) -> Response<Body> {
    let service = if is_ecr(host) { "ecr.amazonaws.com" } else { host };
    let realm = HeaderValue::try_from(format!("Basic realm=\"https://{host}/\",service=\"{service}\"")).ok();
    answer(StatusCode::UNAUTHORIZED, realm.map(|realm| (WWW_AUTHENTICATE, realm)), "Not Authorized\n")
}

fn cut() -> hudsucker::Error {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}

/// A certificate authority for this machine alone, whose key is never written to disk; its certificate, in PEM; and the
/// certificate that it has issued for the loopback address.
fn certificate_authority() -> Result<(RcgenAuthority, String, Arc<ServerConfig>)> {
    const HOSTS: u64 = 1_000;
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.distinguished_name.push(DnType::CommonName, "ecr-transfer, local AWS");
    let certificate = parameters.self_signed(&key)?.pem();
    let issuer = Issuer::new(parameters, key);

    let key = KeyPair::generate()?;
    let loopback = CertificateParams::new(vec![Ipv4Addr::LOCALHOST.to_string()])?.signed_by(&key, &issuer)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let identity = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![loopback.der().clone()], key)?;
    let authority = RcgenAuthority::new(issuer, HOSTS, aws_lc_rs::default_provider());
    Ok((authority, certificate, Arc::new(identity)))
}
