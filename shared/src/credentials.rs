//! Identities for registries: the Lambda's role, an access key, an assumed role, or user names and passwords.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueError;
use aws_sdk_ssm::operation::get_parameter::GetParameterError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::config::CredentialConfig;
use crate::ecr::Login;
use crate::reference::RegistryHost;
use crate::{Error, Result};

/// The session name of assumed roles, shown in CloudTrail.
const SESSION: &str = "ecr-transfer";

/// The services that credentials come from.
pub struct Stores {
    /// For secrets.
    pub secrets: aws_sdk_secretsmanager::Client,
    /// For parameters of the Parameter Store.
    pub ssm: aws_sdk_ssm::Client,
    /// For roles.
    pub sts: aws_sdk_sts::Client,
}

impl Stores {
    /// Clients with the Lambda's role.
    pub fn new(aws: &SdkConfig) -> Self {
        Self {
            secrets: aws_sdk_secretsmanager::Client::new(aws),
            ssm: aws_sdk_ssm::Client::new(aws),
            sts: aws_sdk_sts::Client::new(aws),
        }
    }

    /// The identity that `credential` stands for; without one, the Lambda's role.
    ///
    /// # Errors
    /// If the credential is missing or invalid. Another identity is never used instead.
    pub async fn identity(&self, credential: Option<&CredentialConfig>) -> Result<Identity> {
        let Some(credential) = credential else { return Ok(Identity::LambdaRole) };
        match credential {
            CredentialConfig::Role { arn, external_id } => self.assume(arn, external_id.clone()).await,
            CredentialConfig::Secret(name) => parse(credential, &self.secret(name).await?),
            CredentialConfig::Parameter(name) => parse(credential, &self.parameter(name).await?),
        }
    }

    async fn secret(&self, name: &str) -> Result<Vec<u8>> {
        let secret = self.secrets.get_secret_value().secret_id(name).send().await.map_err(|error| {
            if error.as_service_error().is_some_and(GetSecretValueError::is_resource_not_found_exception) {
                missing(name, "Secrets Manager does not have this secret in this account and region.", error)
            } else {
                Error::aws("secretsmanager:GetSecretValue", name)(error)
            }
        })?;
        Ok(match (secret.secret_string, secret.secret_binary) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(binary)) => binary.into_inner(),
            (None, None) => Vec::new(),
        })
    }

    async fn parameter(&self, name: &str) -> Result<Vec<u8>> {
        let answer = self.ssm.get_parameter().name(name).with_decryption(true).send().await.map_err(|error| {
            if error.as_service_error().is_some_and(GetParameterError::is_parameter_not_found) {
                let problem = "the Parameter Store does not have this parameter in this account and region.";
                missing(&format!("ssm:{name}"), problem, error)
            } else {
                Error::aws("ssm:GetParameter", name)(error)
            }
        })?;
        Ok(answer.parameter.and_then(|parameter| parameter.value).unwrap_or_default().into_bytes())
    }

    async fn assume(&self, arn: &str, external_id: Option<String>) -> Result<Identity> {
        let answer = self
            .sts
            .assume_role()
            .role_arn(arn)
            .role_session_name(SESSION)
            .set_external_id(external_id)
            .send()
            .await
            .map_err(Error::aws("sts:AssumeRole", arn))?;
        let session = answer.credentials.ok_or_else(|| unusable(arn, "STS returned no credentials."))?;
        Ok(Identity::aws(Credentials::new(
            session.access_key_id,
            session.secret_access_key,
            Some(session.session_token),
            session.expiration.try_into().ok(),
            SESSION,
        )))
    }
}

/// An identity for a registry.
#[derive(Clone, Debug)]
pub enum Identity {
    /// The Lambda's role.
    LambdaRole,
    /// An access key or an assumed role.
    Aws(SharedCredentialsProvider),
    /// Users of registries other than ECR.
    Users(Users),
}

impl Identity {
    fn aws(credentials: Credentials) -> Self {
        Self::Aws(SharedCredentialsProvider::new(credentials))
    }
}

/// Users of registries other than ECR: base64 of `user:password`. Each is sent to its own registry only.
#[derive(Clone)]
pub enum Users {
    /// A user without the name of its registry, as in Data Transfer Hub's secrets.
    WithoutRegistry(String),
    /// Users by registry.
    ByRegistry(BTreeMap<RegistryHost, String>),
}

// Passwords must not appear in logs.
impl fmt::Debug for Users {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WithoutRegistry(_) => formatter.write_str("WithoutRegistry"),
            Self::ByRegistry(tokens) => {
                formatter.debug_tuple("ByRegistry").field(&tokens.keys().collect::<Vec<_>>()).finish()
            }
        }
    }
}

impl Users {
    /// The login to the registry at `host`, if there is one.
    pub fn login(&self, host: &RegistryHost) -> Option<Login> {
        match self {
            Self::WithoutRegistry(_) => None,
            Self::ByRegistry(tokens) => {
                Some(Login { host: host.clone(), token: tokens.get(host)?.clone(), expires_at: None })
            }
        }
    }

    /// Assigns a user without a registry to the only one of `hosts`, the registries of the deployed image list.
    ///
    /// # Errors
    /// A message with the registries if there are several.
    pub fn assign_to(self, hosts: impl IntoIterator<Item = RegistryHost>) -> Result<Self, String> {
        let Self::WithoutRegistry(token) = self else { return Ok(self) };
        let hosts: BTreeMap<RegistryHost, String> = hosts.into_iter().map(|host| (host, token.clone())).collect();
        if hosts.len() < 2 {
            return Ok(Self::ByRegistry(hosts));
        }
        let names: Vec<_> = hosts.keys().map(RegistryHost::as_str).collect();
        Err(format!(
            r#"it does not name its registry, and the image list has several: {}. Add "registry", or use {{"auths": …}}."#,
            names.join(", ")
        ))
    }
}

/// The content of a secret or a parameter: an access key, a user of one registry, or a docker auth file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Content {
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
    username: Option<String>,
    password: Option<String>,
    /// The host of the registry that `username` belongs to.
    registry: Option<String>,
    auths: Option<BTreeMap<String, Auth>>,
}

/// A login in a docker auth file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

fn parse(credential: &CredentialConfig, text: &[u8]) -> Result<Identity> {
    const EXPECTED: &str = r#"expected JSON like {"access_key_id": "…", "secret_access_key": "…"}, {"username": "…", "password": "…"} or {"auths": {"registry": {"auth": "…"}}}."#;
    let name = &credential.name();
    // serde's message can quote the secret, so it is left out.
    let content: Content = serde_json::from_slice(text).map_err(|_| unusable(name, EXPECTED))?;
    let pair = |first: Option<String>, first_name: &str, second: Option<String>, second_name: &str| match (
        first.filter(|value| !value.trim().is_empty()),
        second.filter(|value| !value.trim().is_empty()),
    ) {
        (Some(first), Some(second)) => Ok((first, second)),
        (None, _) => Err(unusable(name, &format!("{first_name} is missing or empty."))),
        (_, None) => Err(unusable(name, &format!("{second_name} is missing or empty."))),
    };
    let is_key = content.access_key_id.is_some() || content.secret_access_key.is_some();
    let is_user = content.username.is_some() || content.password.is_some();
    match (is_key, is_user, content.auths) {
        (true, false, None) => {
            let (id, secret) =
                pair(content.access_key_id, "access_key_id", content.secret_access_key, "secret_access_key")?;
            let session = content.session_token.filter(|token| !token.trim().is_empty());
            Ok(Identity::aws(Credentials::new(id.trim(), secret.trim(), session, None, SESSION)))
        }
        (false, true, None) => {
            let (user, password) = pair(content.username, "username", content.password, "password")?;
            let token = STANDARD.encode(format!("{user}:{password}"));
            Ok(Identity::Users(match content.registry {
                None => Users::WithoutRegistry(token),
                Some(registry) => Users::ByRegistry(BTreeMap::from([(registry_host(name, &registry)?, token)])),
            }))
        }
        (false, false, Some(auths)) if !auths.is_empty() => {
            let tokens = auths.into_iter().map(|(registry, auth)| {
                let token = match auth.auth.filter(|token| !token.is_empty()) {
                    Some(token) => {
                        let decoded = STANDARD.decode(token.trim()).ok().and_then(|text| String::from_utf8(text).ok());
                        if !decoded.is_some_and(|text| text.contains(':')) {
                            let problem = format!("auth of {registry:?} is not base64 of user:password.");
                            return Err(unusable(name, &problem));
                        }
                        token.trim().to_owned()
                    }
                    None => {
                        let (user, password) =
                            pair(auth.username, "username", auth.password, "password").map_err(|_| {
                                unusable(name, &format!("{registry:?} has neither auth nor username and password."))
                            })?;
                        STANDARD.encode(format!("{user}:{password}"))
                    }
                };
                Ok((registry_host(name, &registry)?, token))
            });
            Ok(Identity::Users(Users::ByRegistry(tokens.collect::<Result<_>>()?)))
        }
        (false, false, _) => Err(unusable(name, EXPECTED)),
        _ => Err(unusable(name, "it has more than one of access_key_id, username and auths.")),
    }
}

/// The host of a registry. docker writes Docker Hub as `https://index.docker.io/v1/`.
fn registry_host(name: &str, registry: &str) -> Result<RegistryHost> {
    let (host, path) = match registry.trim().split_once("://") {
        Some((_scheme, rest)) => (rest.split('/').next().unwrap_or_default(), ""),
        None => registry.trim().split_once('/').unwrap_or((registry.trim(), "")),
    };
    match RegistryHost::parse(host) {
        Ok(host) if path.trim_matches('/').is_empty() => Ok(host),
        _ => {
            Err(unusable(name, &format!("{registry:?} is not a registry host, such as quay.io or host.example:5000.")))
        }
    }
}

fn unusable(name: &str, problem: &str) -> Error {
    Error::Credential { name: name.to_owned(), problem: problem.to_owned(), source: None }
}

fn missing(name: &str, problem: &str, source: impl StdError + Send + Sync + 'static) -> Error {
    Error::Credential { name: name.to_owned(), problem: problem.to_owned(), source: Some(Box::new(source)) }
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::ProvideCredentials;
    use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
    use aws_sdk_secretsmanager::primitives::Blob;
    use aws_sdk_secretsmanager::types::error::ResourceNotFoundException;
    use aws_sdk_ssm::operation::get_parameter::GetParameterOutput;
    use aws_sdk_ssm::types::Parameter;
    use aws_sdk_ssm::types::error::ParameterNotFound;
    use aws_sdk_sts::operation::assume_role::{AssumeRoleError, AssumeRoleOutput};
    use aws_sdk_sts::primitives::DateTime;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    fn stores(rules: &[&Rule]) -> Stores {
        Stores {
            secrets: mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, rules),
            ssm: mock_client!(aws_sdk_ssm, RuleMode::MatchAny, rules),
            sts: mock_client!(aws_sdk_sts, RuleMode::MatchAny, rules),
        }
    }

    fn secret() -> CredentialConfig {
        CredentialConfig::Secret("source".into())
    }

    fn role() -> CredentialConfig {
        CredentialConfig::Role { arn: "arn:aws:iam::3:role/r".into(), external_id: Some("partner".into()) }
    }

    async fn held(text: &str) -> Result<Identity> {
        let text = text.to_owned();
        let rule = mock!(aws_sdk_secretsmanager::Client::get_secret_value)
            .match_requests(|request| request.secret_id() == Some("source"))
            .then_output(move || GetSecretValueOutput::builder().secret_string(&text).build());
        stores(&[&rule]).identity(Some(&secret())).await
    }

    async fn key(identity: Identity) -> (String, String, Option<String>) {
        let Identity::Aws(provider) = identity else { panic!("it is an access key: {identity:?}") };
        let key = provider.provide_credentials().await.expect("it is static");
        (key.access_key_id().into(), key.secret_access_key().into(), key.session_token().map(Into::into))
    }

    fn token(identity: Identity, host: &str) -> Option<String> {
        let Identity::Users(users) = identity else { panic!("it is a user: {identity:?}") };
        let token = STANDARD.decode(users.login(&host.parse().expect(host))?.token).expect("it is base64");
        Some(String::from_utf8(token).expect("it is text"))
    }

    const KEY: &str = r#"{"access_key_id": "AKIA", "secret_access_key": "hush", "session_token": "short"}"#;

    #[tokio::test]
    async fn without_a_credential_the_role_of_the_lambda_is_used() {
        assert!(matches!(stores(&[]).identity(None).await.expect("it needs no call"), Identity::LambdaRole));
    }

    #[tokio::test]
    async fn an_access_key_is_read_from_text_and_from_binary() {
        let expected = ("AKIA".to_owned(), "hush".to_owned(), Some("short".to_owned()));
        assert_eq!(key(held(KEY).await.expect("the secret is good")).await, expected);
        let rule = mock!(aws_sdk_secretsmanager::Client::get_secret_value)
            .then_output(|| GetSecretValueOutput::builder().secret_binary(Blob::new(KEY)).build());
        assert_eq!(key(stores(&[&rule]).identity(Some(&secret())).await.expect("so is this")).await, expected);
    }

    #[tokio::test]
    async fn a_parameter_is_read_decrypted() {
        let rule = mock!(aws_sdk_ssm::Client::get_parameter)
            .match_requests(|request| request.name() == Some("key") && request.with_decryption() == Some(true))
            .then_output(|| GetParameterOutput::builder().parameter(Parameter::builder().value(KEY).build()).build());
        let credential = CredentialConfig::Parameter("key".into());
        let identity = stores(&[&rule]).identity(Some(&credential)).await.expect("the parameter is good");
        assert_eq!(key(identity).await.0, "AKIA");
    }

    #[tokio::test]
    async fn a_role_is_assumed_with_its_external_id() {
        let rule = mock!(aws_sdk_sts::Client::assume_role)
            .match_requests(|request| {
                request.role_arn() == Some("arn:aws:iam::3:role/r") && request.external_id() == Some("partner")
            })
            .then_output(|| {
                let session = aws_sdk_sts::types::Credentials::builder()
                    .access_key_id("ASIA")
                    .secret_access_key("hush")
                    .session_token("session")
                    .expiration(DateTime::from_secs(4_000_000_000));
                AssumeRoleOutput::builder().credentials(session.build().expect("it is complete")).build()
            });
        let identity = stores(&[&rule]).identity(Some(&role())).await.expect("it may be assumed");
        assert_eq!(key(identity).await, ("ASIA".into(), "hush".into(), Some("session".into())));
    }

    #[tokio::test]
    async fn a_role_that_cannot_be_assumed_is_an_error_with_its_arn() {
        let rule = mock!(aws_sdk_sts::Client::assume_role).then_error(|| {
            let denied = aws_sdk_sts::error::ErrorMetadata::builder().code("AccessDenied").message("no").build();
            AssumeRoleError::generic(denied)
        });
        let error = stores(&[&rule]).identity(Some(&role())).await.expect_err("access is denied");
        assert_eq!(error.name(), "AccessDenied");
        assert_eq!(error.to_string(), "sts:AssumeRole on arn:aws:iam::3:role/r failed: AccessDenied: no");
    }

    #[tokio::test]
    async fn a_user_without_a_registry_is_assigned_to_the_only_registry_of_the_deployed_list() {
        let user = held(r#"{"username": "me", "password": "hush:hush"}"#).await.expect("it is complete");
        assert_eq!(token(user.clone(), "quay.io"), None);
        let Identity::Users(users) = user else { panic!("it is a user: {user:?}") };
        let host = |text: &str| text.parse::<RegistryHost>().expect(text);
        let deployed = Identity::Users(users.clone().assign_to([host("quay.io")]).expect("there is one"));
        assert_eq!(token(deployed.clone(), "quay.io").as_deref(), Some("me:hush:hush"));
        assert_eq!(token(deployed, "docker.io"), None);
        let error = users.assign_to([host("quay.io"), host("docker.io")]).expect_err("there are two");
        assert!(error.contains("docker.io, quay.io"), "{error}");
    }

    #[tokio::test]
    async fn a_login_belongs_only_to_the_registry_that_it_names() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6aHVzaA=="},
            "host:5000": {"username": "you", "password": "hush"}
        }}"#;
        for (host, user) in [("docker.io", Some("me:hush")), ("host:5000", Some("you:hush")), ("quay.io", None)] {
            assert_eq!(token(held(text).await.expect("they are complete"), host).as_deref(), user, "{host}");
        }
        let named = r#"{"username": "me", "password": "hush", "registry": "quay.io"}"#;
        for (host, user) in [("quay.io", Some("me:hush")), ("docker.io", None)] {
            assert_eq!(token(held(named).await.expect("it is complete"), host).as_deref(), user, "{host}");
        }
    }

    #[tokio::test]
    async fn the_guides_examples_are_valid_credentials() {
        let guide = include_str!("../../docs/credentials.md");
        let examples: Vec<_> = guide.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(examples.len(), 4);
        for example in examples {
            held(example).await.expect(example);
        }
    }

    #[tokio::test]
    async fn the_error_of_an_invalid_secret_has_its_name_and_not_its_content() {
        for text in [
            "hush",
            "",
            "{}",
            r#"["hush"]"#,
            r#"{"access_key_id": "hush"}"#,
            r#"{"access_key_id": "hush", "secret_access_key": " "}"#,
            r#"{"username": "hush"}"#,
            r#"{"username": "hush", "password": "hush", "access_key_id": "hush"}"#,
            r#"{"auths": {}}"#,
            r#"{"auths": {"quay.io": {}}}"#,
            r#"{"auths": {"quay.io": {"auth": "hush"}}}"#,
            r#"{"auths": {"quay.io/team": {"username": "hush", "password": "hush"}}}"#,
        ] {
            let error = held(text).await.expect_err("it is invalid");
            assert_eq!(error.name(), "InvalidCredential");
            assert!(error.to_string().contains(r#"The credential "source""#), "{error}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_credential_is_an_error_with_its_name() {
        let secrets = mock!(aws_sdk_secretsmanager::Client::get_secret_value).then_error(|| {
            GetSecretValueError::ResourceNotFoundException(ResourceNotFoundException::builder().build())
        });
        let parameters = mock!(aws_sdk_ssm::Client::get_parameter)
            .then_error(|| GetParameterError::ParameterNotFound(ParameterNotFound::builder().build()));
        let stores = stores(&[&secrets, &parameters]);
        for (credential, name) in [(secret(), "source"), (CredentialConfig::Parameter("key".into()), "ssm:key")] {
            let error = stores.identity(Some(&credential)).await.expect_err("it is missing");
            assert_eq!(error.name(), "InvalidCredential");
            assert!(error.to_string().starts_with(&format!("The credential {name:?} cannot be used: ")), "{error}");
        }
    }

    #[tokio::test]
    async fn an_error_names_the_field_that_is_missing() {
        for (text, field) in [
            (r#"{"access_key_id": "AKIA"}"#, "secret_access_key"),
            (r#"{"secret_access_key": "hush"}"#, "access_key_id"),
            (r#"{"username": "me"}"#, "password"),
            (r#"{"password": "hush"}"#, "username"),
        ] {
            let error = held(text).await.expect_err(text).to_string();
            let fields = ["access_key_id", "secret_access_key", "username", "password"];
            let named: Vec<_> = fields.into_iter().filter(|name| error.contains(name)).collect();
            assert_eq!(named, [field], "{error}");
        }
        let error = held("{}").await.expect_err("it holds nothing").to_string();
        assert!(error.contains("secret_access_key") && error.contains("password"), "{error}");
    }
}
