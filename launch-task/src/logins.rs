//! The logins to registries, in the secret that ECS passes to the task.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::operation::put_secret_value::PutSecretValueError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared::ecr::Login;
use shared::reference::RegistryHost;
use shared::{Error, Result};

use crate::config::Config;

/// How often the secret is read and written when other launches change it at the same time.
const ATTEMPTS: usize = 5;

/// The time between these attempts.
const PAUSE: Duration = Duration::from_millis(300);

/// How long the secret contains a password that is no longer needed, in seconds: as long as a token of ECR is valid.
const PASSWORD_STAYS: i64 = 12 * 60 * 60;

/// A hash of the source's or the destination's configuration. The secret keeps only logins that belong to the current
/// configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct ConfigHash(String);

impl ConfigHash {
    pub fn source(config: &Config) -> Self {
        Self::of(&format!("source {:?} {:?}", config.source, config.allowed))
    }

    pub fn destination(config: &Config) -> Self {
        Self::of(&format!("destination {:?}", config.destination))
    }

    fn of(text: &str) -> Self {
        Self(hex::encode(&Sha256::digest(text)[..16]))
    }
}

/// The content of the secret: a docker auth file with additional information, which skopeo ignores.
#[derive(Debug, Default, PartialEq, Eq, Clone, Deserialize, Serialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<RegistryHost, Auth>,
    #[serde(default, rename = "held")]
    infos: BTreeMap<RegistryHost, LoginInfo>,
}

#[derive(Debug, PartialEq, Eq, Clone, Deserialize, Serialize)]
struct LoginInfo {
    /// When it is removed, in seconds since 1970. A token expires at this time.
    until: i64,
    /// Whether it is a token of ECR, and not a password.
    is_token: bool,
    /// The configuration that it was obtained with.
    #[serde(rename = "side")]
    config: ConfigHash,
}

impl LoginInfo {
    /// Whether the login remains for another `seconds`.
    fn stays(&self, seconds: i64) -> bool {
        // A time that is too far away is not ours.
        (now().saturating_add(seconds)..=now() + PASSWORD_STAYS + 3_600).contains(&self.until)
    }
}

#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
struct Auth {
    auth: String,
}

// Passwords must not appear in logs.
impl std::fmt::Debug for Auth {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Auth")
    }
}

impl AuthFile {
    /// Whether there is a token for `host`, obtained with `config`, that is valid for another `seconds`.
    fn has_token(&self, host: &RegistryHost, config: &ConfigHash, seconds: i64) -> bool {
        self.infos.get(host).is_some_and(|info| info.is_token && info.config == *config && info.stays(seconds))
    }

    fn set(&mut self, host: &RegistryHost, config: &ConfigHash, login: Option<Login>) {
        let Some(Login { token, expires_at, .. }) = login else {
            self.auths.remove(host);
            self.infos.remove(host);
            return;
        };
        let auth = Auth { auth: token };
        let is_fresh = self.infos.get(host).is_some_and(|info| !info.is_token && info.stays(PASSWORD_STAYS / 2));
        if is_fresh && self.auths.get(host) == Some(&auth) {
            return;
        }
        let until = expires_at.unwrap_or_else(|| now() + PASSWORD_STAYS);
        self.auths.insert(host.clone(), auth);
        self.infos.insert(host.clone(), LoginInfo { until, is_token: expires_at.is_some(), config: config.clone() });
    }

    /// Removes outdated logins, and those that were not obtained with one of `configs`.
    fn clean(&mut self, configs: &[ConfigHash]) {
        self.infos.retain(|_, info| info.stays(0) && configs.contains(&info.config));
        self.auths.retain(|host, _| self.infos.contains_key(host));
    }
}

/// Updates the secret, so that it has logins to `hosts`, each obtained with its configuration and valid for another `seconds`.
/// Logins that other batches use remain. `log_in` returns the login to a registry, or `None` for anonymous requests. It is not
/// called for a token that is valid for long enough.
///
/// Launches at the same time read the same version of the secret. The id of the next version is derived from it, so Secrets
/// Manager accepts only one of them, and the other launches read again. The secret changes about once in eight hours, for any
/// number of tasks.
pub async fn keep_fresh(
    secrets: &Client,
    secret: &str,
    hosts: &BTreeMap<&RegistryHost, &ConfigHash>,
    configs: &[ConfigHash],
    seconds: i64,
    log_in: impl AsyncFn(&RegistryHost) -> Result<Option<Login>>,
) -> Result<()> {
    let mut logins: BTreeMap<&RegistryHost, Option<Login>> = BTreeMap::new();
    for attempt in 1..=ATTEMPTS {
        let current = secrets
            .get_secret_value()
            .secret_id(secret)
            .send()
            .await
            .map_err(Error::aws("secretsmanager:GetSecretValue", secret))?;
        // The template's initial value has no logins. A stack update can restore it, and other content counts as empty, too.
        let old: AuthFile = serde_json::from_str(current.secret_string().unwrap_or_default()).unwrap_or_default();
        let mut new = old.clone();
        new.clean(configs);
        for (&host, &config) in hosts {
            // A password can change before it is removed, so it is always read.
            if new.has_token(host, config, seconds) {
                continue;
            }
            if !logins.contains_key(host) {
                logins.insert(host, log_in(host).await?);
            }
            new.set(host, config, logins[host].clone());
        }
        if new == old {
            return Ok(());
        }
        let text = serde_json::to_string(&new).expect("a map with string keys is JSON");
        let next_version = hex::encode(Sha256::digest(current.version_id().unwrap_or_default()));
        let put = secrets.put_secret_value().secret_id(secret).client_request_token(next_version).secret_string(text);
        match put.send().await {
            Ok(_) => return Ok(()),
            // Another launch has written this version. It is not visible immediately.
            Err(error)
                if attempt < ATTEMPTS
                    && error.as_service_error().is_some_and(PutSecretValueError::is_resource_exists_exception) =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(Error::aws("secretsmanager:PutSecretValue", secret)(error)),
        }
    }
    Ok(())
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs().try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use aws_sdk_secretsmanager::error::ErrorMetadata;
    use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
    use aws_sdk_secretsmanager::operation::put_secret_value::PutSecretValueOutput;
    use aws_sdk_secretsmanager::types::error::ResourceExistsException;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};
    use serde_json::{Value, json};

    use super::*;

    const SECONDS: i64 = 14_400;

    fn held(content: Value) -> Rule {
        mock!(Client::get_secret_value).then_output(move || {
            GetSecretValueOutput::builder().version_id("v1").secret_string(content.to_string()).build()
        })
    }

    fn taken(expected: Value) -> Rule {
        mock!(Client::put_secret_value)
            .match_requests(move |request| {
                serde_json::from_str::<Value>(request.secret_string().unwrap_or_default())
                    .is_ok_and(|file| file["auths"] == expected)
                    && request.client_request_token().is_some_and(|token| token.len() == 64)
            })
            .then_output(|| PutSecretValueOutput::builder().build())
    }

    fn config() -> ConfigHash {
        ConfigHash::of("source")
    }

    /// A secret with logins: `(host, token, seconds that it stays, whether it is a token)`.
    fn file(logins: &[(&str, &str, i64, bool)], config: &ConfigHash) -> Value {
        let mut file = json!({ "auths": {}, "held": {} });
        for (host, auth, seconds, is_token) in logins {
            file["auths"][host] = json!({ "auth": auth });
            file["held"][host] = json!({ "until": now() + seconds, "is_token": is_token, "side": config });
        }
        file
    }

    /// Calls `keep_fresh` for `hosts`, and returns those whose login it requests. `a` and `b` belong to ECR, and `c` has a
    /// user.
    async fn requested(rules: &[&Rule], hosts: &[&str]) -> Vec<String> {
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, rules);
        let requested = RefCell::new(Vec::new());
        let hosts: Vec<RegistryHost> = hosts.iter().map(|host| host.parse().expect(host)).collect();
        let config = config();
        let wanted = hosts.iter().map(|host| (host, &config)).collect();
        keep_fresh(&secrets, "auth", &wanted, std::slice::from_ref(&config), SECONDS, async |host| {
            requested.borrow_mut().push(host.to_string());
            let login = |token: &str, expires_at| Login { host: host.clone(), token: token.into(), expires_at };
            Ok(match host.as_str() {
                "a.example" | "b.example" => Some(login("bmV3", Some(now() + 43_200))),
                "c.example" => Some(login("dXNlcg==", None)),
                _ => None,
            })
        })
        .await
        .expect("they are kept fresh");
        requested.into_inner()
    }

    const A: &str = "a.example";
    const B: &str = "b.example";
    const C: &str = "c.example";
    const ANONYMOUS: &str = "anonymous.example";

    #[tokio::test]
    async fn tokens_that_are_valid_for_long_enough_are_not_replaced() {
        let get = held(file(&[(A, "x", 20_000, true)], &config()));
        assert!(requested(&[&get], &[A]).await.is_empty());
    }

    #[tokio::test]
    async fn missing_logins_and_those_that_expire_too_soon_are_replaced_and_others_remain() {
        let [old, new, user] = ["x", "bmV3", "dXNlcg=="].map(|auth| json!({ "auth": auth }));
        for (hosts, logins, expected) in [
            (&[A][..], &[(A, "x", 10_000, true)][..], json!({ A: new })),
            (&[A, B], &[(A, "x", 20_000, true)], json!({ A: old, B: new })),
            (&[B], &[(A, "x", 20_000, true)], json!({ A: old, B: new })),
            (&[B], &[(A, "x", -1, true)], json!({ B: new })),
            (&[A, C], &[], json!({ A: new, C: user })),
            (&[C], &[(C, "x", 40_000, false)], json!({ C: user })),
            (&[C], &[(C, "dXNlcg==", 20_000, false)], json!({ C: user })),
            (&[ANONYMOUS], &[(ANONYMOUS, "x", 20_000, true)], json!({})),
        ] {
            let soon = logins.iter().map(|it| if it.0 == ANONYMOUS { (it.0, it.1, 10_000, it.3) } else { *it });
            let (get, put) = (held(file(&soon.collect::<Vec<_>>(), &config())), taken(expected.clone()));
            requested(&[&get, &put], hosts).await;
            assert_eq!(put.num_calls(), 1, "{expected}");
        }
    }

    #[tokio::test]
    async fn an_unchanged_password_is_requested_and_not_written_again() {
        let get = held(file(&[(C, "dXNlcg==", 40_000, false)], &config()));
        assert_eq!(requested(&[&get], &[C, ANONYMOUS]).await, [ANONYMOUS, C]);
    }

    #[tokio::test]
    async fn unused_logins_and_those_of_another_credential_are_removed() {
        let (get, put) = (held(file(&[(C, "x", -1, false)], &config())), taken(json!({ A: { "auth": "bmV3" } })));
        requested(&[&get, &put], &[A]).await;
        assert_eq!(put.num_calls(), 1, "an unused password");

        let other = ConfigHash::of("another credential");
        let (get, put) = (
            held(file(&[(A, "x", 20_000, true), (B, "x", 20_000, true)], &other)),
            taken(json!({ A: { "auth": "bmV3" } })),
        );
        assert_eq!(requested(&[&get, &put], &[A]).await, [A], "a valid token of another identity");
        assert_eq!(put.num_calls(), 1);

        // The format of earlier versions.
        let old = json!({ "auths": { A: { "auth": "x" } }, "expires": { A: now() + 20_000 } });
        let (get, put) = (held(old), taken(json!({ A: { "auth": "bmV3" } })));
        requested(&[&get, &put], &[A]).await;
        assert_eq!(put.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_secret_that_was_overwritten_is_written_again() {
        for text in [Some("{}"), Some(""), Some("not JSON"), Some("[]"), Some(r#"{"auths": 7}"#), None] {
            let get = mock!(Client::get_secret_value).then_output(move || {
                GetSecretValueOutput::builder().version_id("v1").set_secret_string(text.map(str::to_owned)).build()
            });
            let put = taken(json!({ A: { "auth": "bmV3" }, C: { "auth": "dXNlcg==" } }));
            for _ in 0..2 {
                assert_eq!(requested(&[&get, &put], &[A, C]).await, [A, C], "{text:?}");
            }
            assert_eq!(put.num_calls(), 2, "{text:?}: launches are independent");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_slower_of_two_launches_adds_the_logins_that_are_still_missing() {
        let get = mock!(Client::get_secret_value)
            .sequence()
            .output(|| GetSecretValueOutput::builder().version_id("v1").secret_string("{}").build())
            .output(|| {
                let file = file(&[(B, "x", 20_000, true)], &config()).to_string();
                GetSecretValueOutput::builder().version_id("v2").secret_string(file).build()
            })
            .build();
        let put = mock!(Client::put_secret_value)
            .sequence()
            .error(|| PutSecretValueError::ResourceExistsException(ResourceExistsException::builder().build()))
            .output(|| PutSecretValueOutput::builder().build())
            .build();
        assert_eq!(requested(&[&get, &put], &[A, B]).await, [A, B], "each login is requested once");
        assert_eq!((get.num_calls(), put.num_calls()), (2, 2));
    }

    #[tokio::test]
    async fn a_login_that_has_expired_long_ago_or_stays_for_longer_than_any_does_is_not_kept() {
        let mut old = file(&[(A, "x", 0, true), (B, "x", 1_000_000_000, true)], &config());
        old["held"][A]["until"] = json!(20_000);
        let (get, put) = (held(old), taken(json!({ A: { "auth": "bmV3" } })));
        assert_eq!(requested(&[&get, &put], &[A]).await, [A]);
        assert_eq!(put.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_password_stays_for_twelve_hours() {
        let get = held(file(&[], &config()));
        let put = mock!(Client::put_secret_value)
            .match_requests(|request| {
                let file: Value =
                    serde_json::from_str(request.secret_string().unwrap_or_default()).expect("it is JSON");
                let hours = file["held"][C]["until"].as_i64().map(|until| (until - now() + 1_800) / 3_600);
                hours == Some(12)
            })
            .then_output(|| PutSecretValueOutput::builder().build());
        requested(&[&get, &put], &[C]).await;
        assert_eq!(put.num_calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_others_change_all_the_time_is_an_error_in_the_end_and_one_that_refuses_at_once() {
        let errors: [(fn() -> PutSecretValueError, usize); 2] = [
            (|| PutSecretValueError::ResourceExistsException(ResourceExistsException::builder().build()), ATTEMPTS),
            (|| PutSecretValueError::generic(ErrorMetadata::builder().code("AccessDeniedException").build()), 1),
        ];
        for (error, attempts) in errors {
            let (get, put) = (held(file(&[], &config())), mock!(Client::put_secret_value).then_error(error));
            let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&get, &put]);
            let (host, config) = (A.parse().expect(A), config());
            let login = Login { host, token: "bmV3".into(), expires_at: Some(now() + 43_200) };
            let wanted = BTreeMap::from([(&login.host, &config)]);
            let log_in = async |_: &RegistryHost| Ok(Some(login.clone()));
            let kept = keep_fresh(&secrets, "auth", &wanted, std::slice::from_ref(&config), SECONDS, log_in).await;
            assert!(kept.is_err());
            assert_eq!(put.num_calls(), attempts);
        }
    }
}
