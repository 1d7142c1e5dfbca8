//! The registries' logins, kept fresh in the secret that ECS hands to the task.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::operation::put_secret_value::PutSecretValueError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared::ecr::Login;
use shared::{Error, Result};

/// How often the secret is looked at again after another launch has changed it.
const ATTEMPTS: usize = 5;

/// How long it waits before that.
const PAUSE: Duration = Duration::from_millis(300);

/// The secret's content: a docker auth file, which skopeo reads as it is, and when its logins expire.
#[derive(Debug, Default, PartialEq, Eq, Clone, Deserialize, Serialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    /// In seconds since 1970, by registry; a user's own password does not. skopeo passes over it.
    #[serde(default)]
    expires: BTreeMap<String, i64>,
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
    fn forget(&mut self, host: &str) {
        self.auths.remove(host);
        self.expires.remove(host);
    }

    fn set(&mut self, host: &str, login: Option<Login>) {
        self.forget(host);
        let Some(login) = login else { return };
        self.auths.insert(host.to_owned(), Auth { auth: login.token });
        if let Some(at) = login.expires_at {
            self.expires.insert(host.to_owned(), at);
        }
    }
}

/// Sees to it that the secret holds logins to `hosts` that live for another `seconds`. `log_in` gets the login to one, or
/// none where it is asked anonymously. It is not asked for one that lives long enough.
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
    hosts: &BTreeSet<&str>,
    seconds: i64,
    log_in: impl AsyncFn(&str) -> Result<Option<Login>>,
) -> Result<()> {
    let mut logins: BTreeMap<&str, Option<Login>> = BTreeMap::new();
    for attempt in 1..=ATTEMPTS {
        let current = secrets
            .get_secret_value()
            .secret_id(secret)
            .send()
            .await
            .map_err(Error::aws("secretsmanager:GetSecretValue", secret))?;
        // What the template puts there at first holds no login.
        let held: AuthFile = serde_json::from_str(current.secret_string().unwrap_or_default()).unwrap_or_default();
        let mut wanted = held.clone();
        for &host in hosts {
            let lives = |at: &i64| *at > now() + seconds;
            if held.auths.contains_key(host) && held.expires.get(host).is_some_and(lives) {
                continue;
            }
            if !logins.contains_key(host) {
                logins.insert(host, log_in(host).await?);
            }
            wanted.set(host, logins[host].clone());
        }
        if wanted == held {
            return Ok(());
        }
        // Those of hosts that no batch needs any more.
        let expired: Vec<_> =
            wanted.expires.iter().filter(|(_, at)| **at < now()).map(|(host, _)| host.clone()).collect();
        for host in &expired {
            wanted.forget(host);
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

    fn soon() -> i64 {
        now() + 10_000
    }

    fn later() -> i64 {
        now() + 20_000
    }

    /// Keeps the logins to `hosts` fresh, and gives those that were asked for anew. `a` and `b` are of ECR, `c` has a user.
    async fn asked_for(rules: &[&Rule], hosts: &[&str]) -> Vec<String> {
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, rules);
        let asked = RefCell::new(Vec::new());
        keep_fresh(&secrets, "auth", &hosts.iter().copied().collect(), SECONDS, async |host| {
            asked.borrow_mut().push(host.to_owned());
            let login = |token: &str, expires_at| Login { host: host.into(), token: token.into(), expires_at };
            Ok(match host {
                "a" | "b" => Some(login("bmV3", Some(now() + 43_200))),
                "c" => Some(login("dXNlcg==", None)),
                _ => None,
            })
        })
        .await
        .expect("they are kept fresh");
        asked.into_inner()
    }

    #[tokio::test]
    async fn logins_that_live_long_enough_are_left_alone() {
        let get = held(json!({ "auths": { "a": { "auth": "x" } }, "expires": { "a": later() } }));
        assert!(asked_for(&[&get], &["a"]).await.is_empty());
    }

    #[tokio::test]
    async fn logins_that_expire_too_soon_or_are_not_there_are_replaced_and_the_others_kept() {
        let old = json!({ "auth": "x" });
        let new = json!({ "auth": "bmV3" });
        let user = json!({ "auth": "dXNlcg==" });
        for (hosts, content, expected) in [
            (&["a"][..], json!({ "auths": { "a": old }, "expires": { "a": soon() } }), json!({ "a": new })),
            (&["a", "b"], json!({ "auths": { "a": old }, "expires": { "a": later() } }), json!({ "a": old, "b": new })),
            (&["b"], json!({ "auths": { "a": old }, "expires": { "a": later() } }), json!({ "a": old, "b": new })),
            (&["b"], json!({ "auths": { "a": old }, "expires": { "a": now() - 1 } }), json!({ "b": new })),
            (&["a", "c"], json!({}), json!({ "a": new, "c": user })),
            (&["c"], json!({ "auths": { "c": old } }), json!({ "c": user })),
            (&["anonymous"], json!({ "auths": { "anonymous": old } }), json!({})),
        ] {
            let (get, put) = (held(content), taken(expected.clone()));
            asked_for(&[&get, &put], hosts).await;
            assert_eq!(put.num_calls(), 1, "{expected}");
        }
    }

    #[tokio::test]
    async fn a_password_that_has_not_changed_is_not_written_again() {
        let get = held(json!({ "auths": { "c": { "auth": "dXNlcg==" } } }));
        assert_eq!(asked_for(&[&get], &["c", "anonymous"]).await, ["anonymous", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_launch_that_was_slower_adds_what_the_faster_one_did_not_write() {
        let get = mock!(Client::get_secret_value)
            .sequence()
            .output(|| GetSecretValueOutput::builder().version_id("v1").secret_string("{}").build())
            .output(|| {
                let file = json!({ "auths": { "b": { "auth": "x" } }, "expires": { "b": later() } }).to_string();
                GetSecretValueOutput::builder().version_id("v2").secret_string(file).build()
            })
            .build();
        let put = mock!(Client::put_secret_value)
            .sequence()
            .error(|| PutSecretValueError::ResourceExistsException(ResourceExistsException::builder().build()))
            .output(|| PutSecretValueOutput::builder().build())
            .build();
        assert_eq!(asked_for(&[&get, &put], &["a", "b"]).await, ["a", "b"], "each login is got once");
        assert_eq!((get.num_calls(), put.num_calls()), (2, 2));
    }
}
