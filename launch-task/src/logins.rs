//! The registries' logins, kept fresh in the secret that ECS hands to the task.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::operation::put_secret_value::PutSecretValueError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared::ecr::Login;
use shared::{Error, Result};

/// The secret's content: a docker auth file, which skopeo reads as it is, and when its logins expire.
#[derive(Debug, Default, Deserialize, Serialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    /// In seconds since 1970, by registry. skopeo passes over it.
    #[serde(default)]
    expires: BTreeMap<String, i64>,
}

#[derive(Deserialize, Serialize)]
struct Auth {
    auth: String,
}

// A login is a password: it must not get into a log by way of a Debug.
impl std::fmt::Debug for Auth {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Auth")
    }
}

/// Sees to it that the secret holds logins to `hosts` that live for another `seconds`. Where one does not, `log_in` gets
/// new ones, for all.
///
/// Launches that run side by side find the same old version and write the same next one, under a token that is made from
/// the old one's id: Secrets Manager takes the first, and the others are content with it. So the secret changes once in
/// about eight hours, however many tasks there are.
///
/// # Errors
/// When the secret cannot be read or written, or `log_in` fails.
pub async fn keep_fresh(
    secrets: &Client,
    secret: &str,
    hosts: &[String],
    seconds: i64,
    log_in: impl AsyncFnOnce() -> Result<Vec<Login>>,
) -> Result<()> {
    let current = secrets
        .get_secret_value()
        .secret_id(secret)
        .send()
        .await
        .map_err(Error::aws("secretsmanager:GetSecretValue", secret))?;
    // What the template puts there at first holds no login.
    let file: AuthFile = serde_json::from_str(current.secret_string().unwrap_or_default()).unwrap_or_default();
    let deadline = now() + seconds;
    let is_fresh =
        |host: &String| file.auths.contains_key(host) && file.expires.get(host).is_some_and(|&at| at > deadline);
    if hosts.iter().all(is_fresh) {
        return Ok(());
    }

    let mut file = AuthFile::default();
    for login in log_in().await? {
        file.expires.insert(login.host.clone(), login.expires_at);
        file.auths.insert(login.host, Auth { auth: login.token });
    }
    let text = serde_json::to_string(&file).expect("a map with string keys is JSON");
    let successor = hex::encode(Sha256::digest(current.version_id().unwrap_or_default()));
    let put =
        secrets.put_secret_value().secret_id(secret).client_request_token(successor).secret_string(text).send().await;
    match put {
        Ok(_) => Ok(()),
        // The version exists, with other content: another launch was faster, and its logins are as new as these.
        Err(error) if error.as_service_error().is_some_and(PutSecretValueError::is_resource_exists_exception) => Ok(()),
        Err(error) => Err(Error::aws("secretsmanager:PutSecretValue", secret)(error)),
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs().try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
    use aws_sdk_secretsmanager::operation::put_secret_value::PutSecretValueOutput;
    use aws_sdk_secretsmanager::types::error::ResourceExistsException;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    fn held(content: String) -> Rule {
        mock!(Client::get_secret_value)
            .then_output(move || GetSecretValueOutput::builder().version_id("v1").secret_string(&content).build())
    }

    fn login(host: &str) -> Login {
        Login { host: host.into(), token: "dG9rZW4=".into(), expires_at: now() + 43_200 }
    }

    #[tokio::test]
    async fn logins_that_live_long_enough_are_left_alone() {
        let get = held(format!(r#"{{"auths": {{"a": {{"auth": "x"}}}}, "expires": {{"a": {}}}}}"#, now() + 20_000));
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&get]);
        keep_fresh(&secrets, "auth", &["a".into()], 14_400, async || unreachable!("there is no need to log in"))
            .await
            .expect("nothing is to be done");
    }

    #[tokio::test]
    async fn logins_that_expire_too_soon_or_are_not_there_are_replaced() {
        for (hosts, content) in [
            (vec!["a"], format!(r#"{{"auths": {{"a": {{"auth": "x"}}}}, "expires": {{"a": {}}}}}"#, now() + 10_000)),
            (
                vec!["a", "b"],
                format!(r#"{{"auths": {{"a": {{"auth": "x"}}}}, "expires": {{"a": {}}}}}"#, now() + 20_000),
            ),
            (vec!["a"], "{}".into()),
        ] {
            let get = held(content);
            let put = mock!(Client::put_secret_value)
                .match_requests(|request| {
                    let text = request.secret_string().unwrap_or_default();
                    text.contains(r#""auths":{"a":{"auth":"dG9rZW4="}"#)
                        && request.client_request_token().is_some_and(|token| token.len() == 64)
                })
                .then_output(|| PutSecretValueOutput::builder().build());
            let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&get, &put]);
            let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
            keep_fresh(&secrets, "auth", &hosts, 14_400, async || Ok(hosts.iter().map(|host| login(host)).collect()))
                .await
                .expect("they are replaced");
            assert_eq!(put.num_calls(), 1);
        }
    }

    #[tokio::test]
    async fn a_launch_that_was_slower_is_content_with_what_the_faster_one_wrote() {
        let get = held("{}".into());
        let put = mock!(Client::put_secret_value)
            .then_error(|| PutSecretValueError::ResourceExistsException(ResourceExistsException::builder().build()));
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&get, &put]);
        let logged_in = Cell::new(0);
        keep_fresh(&secrets, "auth", &["a".into()], 14_400, async || {
            logged_in.set(logged_in.get() + 1);
            Ok(vec![login("a")])
        })
        .await
        .expect("it is no error");
        assert_eq!((logged_in.get(), put.num_calls()), (1, 1));
    }
}
