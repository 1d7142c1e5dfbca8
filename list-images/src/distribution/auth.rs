//! Authentication, as the registry requires it: none, a password, or a
//! [token](https://distribution.github.io/distribution/spec/auth/token/).

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use shared::ecr::Login;

use super::http::{Failure, host_and_path};
use super::{Session, address};

/// The most bytes of a token.
const TOKEN: usize = 64 << 10;

/// The minimum lifetime of a token. A request that is denied earlier is not retried with a new token.
const TOKEN_LIVES: Duration = Duration::from_secs(60);

/// The authentication that a registry requires.
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

    /// Sets the header that authorizes requests.
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
                let token: Token = serde_json::from_slice(&answer.body).map_err(|error| {
                    let message = format!("{} returned an invalid token: {error}", host_and_path(&url));
                    Failure::new(StatusCode::OK, &message)
                })?;
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
            // Some registries do not have this page. If they require a login, the next request fails.
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
                // It gets the password.
                Ok(url) if address::is_allowed(self.client.scheme, &url) => {
                    Ok(Challenge::Bearer { realm: url, service: parameter(bearer, "service") })
                }
                _ => {
                    let scheme = self.client.scheme;
                    let message = format!("its token URL {realm:?} is not a public {scheme} URL.");
                    Err(Failure::new(StatusCode::MISDIRECTED_REQUEST, &message))
                }
            };
        }
        let is_basic = challenges.iter().any(|challenge| challenge.scheme.eq_ignore_ascii_case("Basic"));
        Ok(if is_basic { Challenge::Basic } else { Challenge::None })
    }
}

fn authorization(scheme: &str, token: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("{scheme} {token}")).map_err(|_| {
        Failure::new(StatusCode::UNAUTHORIZED, "its token has characters that are invalid in a header.")
    })?;
    value.set_sensitive(true);
    Ok(value)
}
