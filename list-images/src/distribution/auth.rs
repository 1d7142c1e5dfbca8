//! Logging in, as a registry wants it: not at all, with a password, or with a
//! [token](https://distribution.github.io/distribution/spec/auth/token/) that is got with it.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use shared::ecr::Login;

use super::http::{Failure, place};
use super::{Session, address};

/// The most bytes of a token.
const TOKEN: usize = 64 << 10;

/// A token that is younger has not expired: who is refused with it has no access.
const TOKEN_LIVES: Duration = Duration::from_secs(60);

/// How a registry wants to be logged in to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    None,
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

impl Session<'_> {
    pub(super) fn token_may_have_expired(&self) -> bool {
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        authorization.as_ref().is_some_and(|(_, since)| since.elapsed() > TOKEN_LIVES)
    }

    /// Gets what requests are authorized with, as the registry wants it.
    pub(super) async fn log_in(&self) -> Result<(), Failure> {
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
                        self.client.read(&self.host, request.send().await?, TOKEN).await
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

fn authorization(scheme: &str, token: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("{scheme} {token}"))
        .map_err(|_| Failure::of(StatusCode::UNAUTHORIZED, "its token has characters that a header cannot carry"))?;
    value.set_sensitive(true);
    Ok(value)
}
