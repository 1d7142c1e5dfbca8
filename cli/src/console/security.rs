//! Who may use the console: the browser that opened the printed link, and no other page, host or program.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, ORIGIN,
    REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use cookie::{Cookie, SameSite};
use shared::reference::Digest;

use super::App;

/// The path of the printed link. Its query is the token.
const LOGIN: &str = "/login";

/// Everything comes from the console itself: no inline script or style, no frame, no form to another host.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// What a request must have.
pub struct Guard {
    /// `127.0.0.1:PORT`: a page that resolves its own name to this address names another host.
    host: String,
    /// As the browser sends it with each POST.
    origin: String,
    /// Of the token. Comparing digests takes the same time for each wrong token.
    token: Digest,
    /// The token was used.
    is_used: AtomicBool,
    /// The cookie's name has the port, because cookies of a host are for all of its ports.
    cookie: String,
    session: Digest,
    session_value: String,
    read_only: bool,
}

impl Guard {
    /// A guard for a server on `address`, with the link that opens the console once.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(address: SocketAddr, read_only: bool) -> Result<(Self, String), getrandom::Error> {
        let (token, session_value) = (secret()?, secret()?);
        let link = format!("http://{address}{LOGIN}?{token}");
        let guard = Self {
            host: address.to_string(),
            origin: format!("http://{address}"),
            token: Digest::of(token.as_bytes()),
            is_used: AtomicBool::new(false),
            cookie: format!("ecr-transfer-{}", address.port()),
            session: Digest::of(session_value.as_bytes()),
            session_value,
            read_only,
        };
        Ok((guard, link))
    }

    /// Whether the console shows, but changes nothing.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Why a request is refused, with what to do.
    fn refusal(&self, method: &Method, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
        let is = |name: HeaderName, value: &str| headers.get_all(name).iter().eq([value]);
        if !is(HOST, &self.host) {
            return Some((StatusCode::MISDIRECTED_REQUEST, "This host name is not that of the console."));
        }
        // Other ports of this host are the same site for cookies, but not the same origin.
        let site = headers.get("sec-fetch-site");
        if site.is_some_and(|site| site != "same-origin" && site != "none") {
            return Some((StatusCode::FORBIDDEN, "Another page made this request. Open the console directly."));
        }
        if !self.has_session(headers) {
            return Some((
                StatusCode::UNAUTHORIZED,
                "Open the link that `ecr-transfer console` printed. It works once.",
            ));
        }
        if method == Method::GET || method == Method::HEAD {
            return None;
        }
        if method != Method::POST {
            return Some((StatusCode::METHOD_NOT_ALLOWED, "The console uses GET and POST only."));
        }
        if !is(ORIGIN, &self.origin) {
            return Some((StatusCode::FORBIDDEN, "Another page made this request. Open the console directly."));
        }
        self.read_only.then_some((StatusCode::FORBIDDEN, "The console was started with --read-only."))
    }

    fn has_session(&self, headers: &HeaderMap) -> bool {
        let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = all.flat_map(Cookie::split_parse).flatten();
        cookies.any(|it| it.name() == self.cookie && Digest::of(it.value().as_bytes()) == self.session)
    }

    /// Exchanges the token, once, for the cookie.
    fn log_in(&self, host_is_ours: bool, token: &str) -> Response {
        let is_valid = host_is_ours && Digest::of(token.as_bytes()) == self.token;
        if !is_valid || self.is_used.swap(true, Ordering::Relaxed) {
            let text = "This link is not valid, or was used already. Start `ecr-transfer console` again.";
            return (StatusCode::UNAUTHORIZED, text).into_response();
        }
        let cookie = Cookie::build((self.cookie.as_str(), self.session_value.as_str()));
        let cookie = cookie.path("/").http_only(true).same_site(SameSite::Strict).to_string();
        (StatusCode::SEE_OTHER, [(SET_COOKIE, cookie.as_str()), (LOCATION, "/")]).into_response()
    }
}

/// 256 random bits.
fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Refuses what the [`Guard`] does not let in, and sets the headers of each answer.
pub async fn protect(State(app): State<App>, request: Request, next: Next) -> Response {
    let guard = &app.guard;
    let is_login = request.uri().path() == LOGIN && request.method() == Method::GET;
    let mut response = if is_login {
        let host_is_ours = request.headers().get_all(HOST).iter().eq([guard.host.as_str()]);
        guard.log_in(host_is_ours, request.uri().query().unwrap_or_default())
    } else {
        match guard.refusal(request.method(), request.headers()) {
            Some(refusal) => refusal.into_response(),
            None => next.run(request).await,
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // With `no-referrer`, browsers would send `Origin: null`.
        (REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
