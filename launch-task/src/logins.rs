//! The registries' logins, kept fresh in the secret that ECS hands to the task.

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

/// How often the secret is looked at again after another launch has changed it.
const ATTEMPTS: usize = 5;

/// How long it waits before that.
const PAUSE: Duration = Duration::from_millis(300);

/// How long a user's own password stays in the secret, in seconds: as long as a token of ECR lives. After that it is not
/// there unless it is still needed.
const PASSWORD_STAYS: i64 = 12 * 60 * 60;

/// What a login was got with: the configuration of one side, as a hash. A login that was got with anything else than what is
/// configured now belongs to nobody.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Side(String);

impl Side {
    /// The registries that images come from.
    #[must_use]
    pub fn source(config: &Config) -> Self {
        Self::of(&format!("source {:?} {:?}", config.source, config.allowed))
    }

    /// The registry that they go to.
    #[must_use]
    pub fn destination(config: &Config) -> Self {
        Self::of(&format!("destination {:?}", config.destination))
    }

    fn of(text: &str) -> Self {
        Self(hex::encode(&Sha256::digest(text)[..16]))
    }
}

/// The secret's content: a docker auth file, which skopeo reads as it is, and what it passes over.
#[derive(Debug, Default, PartialEq, Eq, Clone, Deserialize, Serialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<RegistryHost, Auth>,
    #[serde(default)]
    held: BTreeMap<RegistryHost, Held>,
}

/// What is known of a login.
#[derive(Debug, PartialEq, Eq, Clone, Deserialize, Serialize)]
struct Held {
    /// Until when it stays, in seconds since 1970.
    until: i64,
    /// Whether that is how long it lives: it is a token of ECR, and not a password.
    is_token: bool,
    /// What it was got with.
    side: Side,
}

impl Held {
    /// Whether it stays for another `seconds`.
    fn stays(&self, seconds: i64) -> bool {
        // Nothing is kept for longer, whatever the secret says.
        (now().saturating_add(seconds)..=now() + PASSWORD_STAYS + 3_600).contains(&self.until)
    }
}

#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
struct Auth {
    auth: String,
}

// A login is a password: it must not get into a log by way of a Debug.
impl std::fmt::Debug for Auth {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Auth")
    }
}

impl AuthFile {
    /// Whether there is a token for `host`, got with `side`, that lives for another `seconds`.
    fn has_token(&self, host: &RegistryHost, side: &Side, seconds: i64) -> bool {
        self.held.get(host).is_some_and(|held| held.is_token && held.side == *side && held.stays(seconds))
    }

    fn set(&mut self, host: &RegistryHost, side: &Side, login: Option<Login>) {
        let Some(Login { token, expires_at, .. }) = login else {
            self.auths.remove(host);
            self.held.remove(host);
            return;
        };
        let auth = Auth { auth: token };
        let is_known = self.held.get(host).is_some_and(|held| !held.is_token && held.stays(PASSWORD_STAYS / 2));
        if is_known && self.auths.get(host) == Some(&auth) {
            return;
        }
        let until = expires_at.unwrap_or_else(|| now() + PASSWORD_STAYS);
        self.auths.insert(host.clone(), auth);
        self.held.insert(host.clone(), Held { until, is_token: expires_at.is_some(), side: side.clone() });
    }

    /// Drops the logins that have not been needed for long, and those that were got with something else than one of `sides`.
    fn clean(&mut self, sides: &[Side]) {
        self.held.retain(|_, held| held.stays(0) && sides.contains(&held.side));
        self.auths.retain(|host, _| self.held.contains_key(host));
    }
}

/// Sees to it that the secret holds logins to `hosts` that live for another `seconds`, each got with its side's credential,
/// and no others than those that batches of the same stack have needed of late. `log_in` gets the login to one, or none where
/// it is asked anonymously. It is not asked for a token that lives long enough.
///
/// Launches that run side by side find the same old version and write the same next one, under a token that is made from
/// the old one's id: Secrets Manager takes the first, and the others look again. So the secret changes once in about
/// eight hours, however many tasks there are.
///
/// # Errors
/// When the secret cannot be read or written, or `log_in` fails.
pub async fn keep_fresh(
    secrets: &Client,
    secret: &str,
    hosts: &BTreeMap<&RegistryHost, &Side>,
    sides: &[Side],
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
        // What the template puts there holds no login: at first, and again when a stack update changes the secret. Neither does
        // what anybody else has put there.
        let held: AuthFile = serde_json::from_str(current.secret_string().unwrap_or_default()).unwrap_or_default();
        let mut wanted = held.clone();
        wanted.clean(sides);
        for (&host, &side) in hosts {
            // A token says by itself how long it lives; a password may have changed.
            if wanted.has_token(host, side, seconds) {
                continue;
            }
            if !logins.contains_key(host) {
                logins.insert(host, log_in(host).await?);
            }
            wanted.set(host, side, logins[host].clone());
        }
        if wanted == held {
            return Ok(());
        }
        let text = serde_json::to_string(&wanted).expect("a map with string keys is JSON");
        let successor = hex::encode(Sha256::digest(current.version_id().unwrap_or_default()));
        let put = secrets.put_secret_value().secret_id(secret).client_request_token(successor).secret_string(text);
        match put.send().await {
            Ok(_) => return Ok(()),
            // The version exists, with other content: another launch was faster. What it wrote may not be seen at once.
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

    fn side() -> Side {
        Side::of("source")
    }

    /// A secret that holds logins, each as `(host, token, seconds that it stays, whether it is a token)`.
    fn file(logins: &[(&str, &str, i64, bool)], side: &Side) -> Value {
        let mut file = json!({ "auths": {}, "held": {} });
        for (host, auth, seconds, is_token) in logins {
            file["auths"][host] = json!({ "auth": auth });
            file["held"][host] = json!({ "until": now() + seconds, "is_token": is_token, "side": side });
        }
        file
    }

    /// Keeps the logins to `hosts` fresh, and gives those that were asked for anew. `a` and `b` are of ECR, `c` has a user.
    async fn asked_for(rules: &[&Rule], hosts: &[&str]) -> Vec<String> {
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, rules);
        let asked = RefCell::new(Vec::new());
        let hosts: Vec<RegistryHost> = hosts.iter().map(|host| host.parse().expect(host)).collect();
        let side = side();
        let wanted = hosts.iter().map(|host| (host, &side)).collect();
        keep_fresh(&secrets, "auth", &wanted, std::slice::from_ref(&side), SECONDS, async |host| {
            asked.borrow_mut().push(host.to_string());
            let login = |token: &str, expires_at| Login { host: host.clone(), token: token.into(), expires_at };
            Ok(match host.as_str() {
                "a.example" | "b.example" => Some(login("bmV3", Some(now() + 43_200))),
                "c.example" => Some(login("dXNlcg==", None)),
                _ => None,
            })
        })
        .await
        .expect("they are kept fresh");
        asked.into_inner()
    }

    const A: &str = "a.example";
    const B: &str = "b.example";
    const C: &str = "c.example";
    const ANONYMOUS: &str = "anonymous.example";

    #[tokio::test]
    async fn tokens_that_live_long_enough_are_left_alone() {
        let get = held(file(&[(A, "x", 20_000, true)], &side()));
        assert!(asked_for(&[&get], &[A]).await.is_empty());
    }

    #[tokio::test]
    async fn logins_that_expire_too_soon_or_are_not_there_are_replaced_and_the_others_kept() {
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
            let (get, put) = (held(file(&soon.collect::<Vec<_>>(), &side())), taken(expected.clone()));
            asked_for(&[&get, &put], hosts).await;
            assert_eq!(put.num_calls(), 1, "{expected}");
        }
    }

    #[tokio::test]
    async fn a_password_that_has_not_changed_is_asked_for_and_not_written_again() {
        let get = held(file(&[(C, "dXNlcg==", 40_000, false)], &side()));
        assert_eq!(asked_for(&[&get], &[C, ANONYMOUS]).await, [ANONYMOUS, C]);
    }

    #[tokio::test]
    async fn logins_that_are_no_longer_used_or_were_got_with_another_credential_leave_the_secret() {
        let (get, put) = (held(file(&[(C, "x", -1, false)], &side())), taken(json!({ A: { "auth": "bmV3" } })));
        asked_for(&[&get, &put], &[A]).await;
        assert_eq!(put.num_calls(), 1, "a password that nobody has needed for long");

        let other = Side::of("another credential");
        let (get, put) = (
            held(file(&[(A, "x", 20_000, true), (B, "x", 20_000, true)], &other)),
            taken(json!({ A: { "auth": "bmV3" } })),
        );
        assert_eq!(asked_for(&[&get, &put], &[A]).await, [A], "a token that lives long enough, of another identity");
        assert_eq!(put.num_calls(), 1);

        // As earlier versions have written it.
        let old = json!({ "auths": { A: { "auth": "x" } }, "expires": { A: now() + 20_000 } });
        let (get, put) = (held(old), taken(json!({ A: { "auth": "bmV3" } })));
        asked_for(&[&get, &put], &[A]).await;
        assert_eq!(put.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_secret_whose_value_was_replaced_is_filled_again() {
        for text in [Some("{}"), Some(""), Some("not JSON"), Some("[]"), Some(r#"{"auths": 7}"#), None] {
            let get = mock!(Client::get_secret_value).then_output(move || {
                GetSecretValueOutput::builder().version_id("v1").set_secret_string(text.map(str::to_owned)).build()
            });
            let put = taken(json!({ A: { "auth": "bmV3" }, C: { "auth": "dXNlcg==" } }));
            for _ in 0..2 {
                assert_eq!(asked_for(&[&get, &put], &[A, C]).await, [A, C], "{text:?}");
            }
            assert_eq!(put.num_calls(), 2, "{text:?}: nothing is remembered from one launch to the next");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_launch_that_was_slower_adds_what_the_faster_one_did_not_write() {
        let get = mock!(Client::get_secret_value)
            .sequence()
            .output(|| GetSecretValueOutput::builder().version_id("v1").secret_string("{}").build())
            .output(|| {
                let file = file(&[(B, "x", 20_000, true)], &side()).to_string();
                GetSecretValueOutput::builder().version_id("v2").secret_string(file).build()
            })
            .build();
        let put = mock!(Client::put_secret_value)
            .sequence()
            .error(|| PutSecretValueError::ResourceExistsException(ResourceExistsException::builder().build()))
            .output(|| PutSecretValueOutput::builder().build())
            .build();
        assert_eq!(asked_for(&[&get, &put], &[A, B]).await, [A, B], "each login is got once");
        assert_eq!((get.num_calls(), put.num_calls()), (2, 2));
    }

    #[tokio::test]
    async fn a_login_that_has_expired_long_ago_or_stays_for_longer_than_any_does_is_not_kept() {
        let mut old = file(&[(A, "x", 0, true), (B, "x", 1_000_000_000, true)], &side());
        old["held"][A]["until"] = json!(20_000);
        let (get, put) = (held(old), taken(json!({ A: { "auth": "bmV3" } })));
        assert_eq!(asked_for(&[&get, &put], &[A]).await, [A]);
        assert_eq!(put.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_password_stays_for_twelve_hours() {
        let get = held(file(&[], &side()));
        let put = mock!(Client::put_secret_value)
            .match_requests(|request| {
                let file: Value =
                    serde_json::from_str(request.secret_string().unwrap_or_default()).expect("it is JSON");
                let hours = file["held"][C]["until"].as_i64().map(|until| (until - now() + 1_800) / 3_600);
                hours == Some(12)
            })
            .then_output(|| PutSecretValueOutput::builder().build());
        asked_for(&[&get, &put], &[C]).await;
        assert_eq!(put.num_calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_others_change_all_the_time_is_an_error_in_the_end_and_one_that_refuses_at_once() {
        let errors: [(fn() -> PutSecretValueError, usize); 2] = [
            (|| PutSecretValueError::ResourceExistsException(ResourceExistsException::builder().build()), ATTEMPTS),
            (|| PutSecretValueError::generic(ErrorMetadata::builder().code("AccessDeniedException").build()), 1),
        ];
        for (error, attempts) in errors {
            let (get, put) = (held(file(&[], &side())), mock!(Client::put_secret_value).then_error(error));
            let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&get, &put]);
            let (host, side) = (A.parse().expect(A), side());
            let login = Login { host, token: "bmV3".into(), expires_at: Some(now() + 43_200) };
            let wanted = BTreeMap::from([(&login.host, &side)]);
            let log_in = async |_: &RegistryHost| Ok(Some(login.clone()));
            let kept = keep_fresh(&secrets, "auth", &wanted, std::slice::from_ref(&side), SECONDS, log_in).await;
            assert!(kept.is_err());
            assert_eq!(put.num_calls(), attempts);
        }
    }
}
