//! Logins to the registries that images come from. Each login is sent to its own registry only.

use aws_config::SdkConfig;

use crate::config::{CredentialConfig, PublicConfig, SourceConfig};
use crate::credentials::{Identity, Stores, Users};
use crate::ecr::{EcrHost, Login, Registry, is_same_registry};
use crate::reference::RegistryHost;
use crate::selection;
use crate::{Error, Result};

/// The logins to the source's registries.
pub struct SourceLogins<'a> {
    base: &'a SdkConfig,
    source: Source,
}

enum Source {
    Ecr(Registry),
    Public(Identity, Option<CredentialConfig>),
}

impl<'a> SourceLogins<'a> {
    /// Reads the source's credential.
    ///
    /// # Errors
    /// If it cannot be used, or does not name its registry where the image list has several.
    pub async fn connect(base: &'a SdkConfig, stores: &Stores, source: &SourceConfig) -> Result<Self> {
        let source = match source {
            SourceConfig::Ecr(registry) => Source::Ecr(Registry::connect(base, stores, registry).await?),
            SourceConfig::Public(config) => Source::Public(identity(stores, config).await?, config.credential.clone()),
        };
        Ok(Self { base, source })
    }

    /// The login to the registry at `host`; `None` for anonymous requests. Private ECR registries always require a login: it is
    /// that of the access key or role of the credential, otherwise that of the Lambda's role.
    ///
    /// # Errors
    /// If ECR returns no token, or one for another registry.
    pub async fn to(&self, host: &RegistryHost) -> Result<Option<Login>> {
        match &self.source {
            Source::Ecr(registry) => token_for(registry, host).await.map(Some),
            Source::Public(identity, credential) => {
                if let Identity::Users(users) = identity
                    && let Some(login) = users.login(host)
                {
                    return Ok(Some(login));
                }
                let Some(EcrHost { account, region, .. }) = EcrHost::of(host) else { return Ok(None) };
                let (provider, credential) = match identity {
                    Identity::Aws(provider) => (Some(provider.clone()), credential.as_ref()),
                    _ => (None, None),
                };
                let registry = Registry::of(self.base, provider, Some(region.to_owned()), Some(account.to_owned()))
                    .with_stored(credential);
                token_for(&registry, host).await.map(Some)
            }
        }
    }
}

/// The identity for registries other than ECR. A user without a registry is assigned to the only registry of the *deployed*
/// list, so the input of an execution cannot choose who gets the password.
async fn identity(stores: &Stores, config: &PublicConfig) -> Result<Identity> {
    let identity = stores.identity(config.credential.as_ref()).await?;
    let (Identity::Users(users @ Users::WithoutRegistry(_)), Some(list)) = (&identity, &config.list) else {
        return Ok(identity);
    };
    let parts = selection::read(&stores.ssm, list).await?;
    let selection = selection::parse(parts.iter().map(|(name, list)| (name.as_str(), list.as_str())), None)?;
    let hosts = selection.into_keys().map(|repository| repository.registry).filter(|host| EcrHost::of(host).is_none());
    users.clone().assign_to(hosts).map(Identity::Users).map_err(|problem| Error::Credential {
        name: config.credential.as_ref().map(CredentialConfig::name).unwrap_or_default(),
        problem,
        source: None,
    })
}

/// ECR's token for the registry at `host`, which may be another name of the host in ECR's answer.
async fn token_for(registry: &Registry, host: &RegistryHost) -> Result<Login> {
    let login = registry.login().await?;
    if is_same_registry(&login.host, host) {
        return Ok(Login { host: host.clone(), ..login });
    }
    let problem = format!("ECR returned a token for {}.", login.host);
    Err(Error::NotAllowed { subject: host.to_string(), problem })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use aws_config::{BehaviorVersion, Region};
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use aws_sdk_ecr::operation::get_authorization_token::GetAuthorizationTokenOutput;
    use aws_sdk_ecr::primitives::DateTime;
    use aws_sdk_ecr::types::AuthorizationData;
    use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
    use aws_sdk_ssm::operation::get_parameter::{GetParameterError, GetParameterOutput};
    use aws_sdk_ssm::types::Parameter;
    use aws_sdk_ssm::types::error::ParameterNotFound;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    fn host(text: &str) -> RegistryHost {
        text.parse().expect(text)
    }

    fn stores(secret: &'static str, list: Option<&'static str>) -> Stores {
        let secret = mock!(aws_sdk_secretsmanager::Client::get_secret_value)
            .then_output(move || GetSecretValueOutput::builder().secret_string(secret).build());
        let list = match list {
            Some(list) => mock!(aws_sdk_ssm::Client::get_parameter).then_output(move || {
                GetParameterOutput::builder().parameter(Parameter::builder().value(list).build()).build()
            }),
            None => mock!(aws_sdk_ssm::Client::get_parameter)
                .then_error(|| GetParameterError::ParameterNotFound(ParameterNotFound::builder().build())),
        };
        Stores {
            secrets: mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&secret]),
            ssm: mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&list]),
            sts: mock_client!(aws_sdk_sts, RuleMode::MatchAny, []),
        }
    }

    fn public() -> SourceConfig {
        let credential = Some(CredentialConfig::Secret("hub".into()));
        SourceConfig::Public(PublicConfig { credential, list: Some("list".into()) })
    }

    /// Those of `hosts` that get a login.
    async fn trusted(secret: &'static str, list: Option<&'static str>, hosts: &[&str]) -> Result<Vec<String>> {
        let base = SdkConfig::builder().build();
        let logins = SourceLogins::connect(&base, &stores(secret, list), &public()).await?;
        let mut trusted = Vec::new();
        for name in hosts {
            trusted.extend(logins.to(&host(name)).await?.map(|login| login.host.to_string()));
        }
        Ok(trusted)
    }

    const UNNAMED: &str = r#"{"username": "me", "password": "hush"}"#;
    const HOSTS: [&str; 3] = ["docker.io", "quay.io", "evil.example"];

    #[tokio::test]
    async fn a_password_is_sent_only_to_the_registry_that_its_secret_names() {
        let named = r#"{"username": "me", "password": "hush", "registry": "quay.io"}"#;
        assert_eq!(trusted(named, None, &HOSTS).await.expect("no list is needed"), ["quay.io"]);
    }

    #[tokio::test]
    async fn a_password_without_a_registry_is_sent_only_to_the_single_registry_of_the_deployed_list() {
        let ecr = "602401143452.dkr.ecr.us-west-2.amazonaws.com/app:1";
        let list: &'static str = Box::leak(format!("nginx:1,bitnami/redis:7.*,{ecr}").into_boxed_str());
        assert_eq!(trusted(UNNAMED, Some(list), &HOSTS).await.expect("it is Docker Hub's"), ["docker.io"]);
        let error = trusted(UNNAMED, Some("nginx:1,quay.io/a/b:1"), &[]).await.expect_err("it may belong to either");
        assert_eq!(error.name(), "InvalidCredential");
        assert!(error.to_string().contains("the image list has several: docker.io, quay.io"), "{error}");
        assert!(trusted(UNNAMED, None, &[]).await.is_err(), "its registry is unknown");
    }

    fn token_of(endpoint: &'static str) -> Rule {
        mock!(aws_sdk_ecr::Client::get_authorization_token).then_output(move || {
            let data = AuthorizationData::builder().proxy_endpoint(endpoint).authorization_token("dDprZW4=");
            GetAuthorizationTokenOutput::builder()
                .authorization_data(data.expires_at(DateTime::from_secs(1_000)).build())
                .build()
        })
    }

    #[tokio::test]
    async fn an_ecr_token_is_sent_only_to_the_registry_in_ecrs_answer_by_any_of_its_names() {
        let rule = token_of("https://222222222222.dkr.ecr.us-west-2.amazonaws.com");
        let registry = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]), None);
        for name in ["222222222222.dkr.ecr.us-west-2.amazonaws.com", "222222222222.dkr-ecr.us-west-2.on.aws"] {
            assert_eq!(token_for(&registry, &host(name)).await.expect(name).host, host(name));
        }
        for name in [
            "222222222222.dkr.ecr.us-west-2.evil.example",
            "222222222222.dkr.ecr.us-east-1.amazonaws.com",
            "333333333333.dkr.ecr.us-west-2.amazonaws.com",
            "quay.io",
        ] {
            let error = token_for(&registry, &host(name)).await.expect_err(name);
            assert_eq!(error.name(), "NotAllowed", "{error}");
        }
    }

    #[tokio::test]
    async fn a_host_that_only_looks_like_ecr_gets_no_login() {
        let key = r#"{"access_key_id": "AKIA", "secret_access_key": "hush"}"#;
        let hosts = ["111111111111.dkr.ecr.us-east-1.evil.example", "docker.io"];
        assert!(trusted(key, None, &hosts).await.expect("it needs no token").is_empty());
    }

    const REGISTRY: &str = "222222222222.dkr.ecr.us-west-2.amazonaws.com";

    /// An ECR that gives one token for [`REGISTRY`], and says what it was asked: the headers and the body.
    fn ecr() -> (SdkConfig, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("it is asked");
            let mut reader = BufReader::new(stream.try_clone().expect("it can be read"));
            let (mut asked, mut length) = (String::new(), 0);
            while !asked.ends_with("\r\n\r\n") {
                let start = asked.len();
                reader.read_line(&mut asked).expect("it has a header");
                if let Some((name, value)) = asked[start..].split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().expect("it is a length");
                }
            }
            reader.take(length).read_to_string(&mut asked).expect("it has a body");
            let answer = format!(
                r#"{{"authorizationData": [{{"proxyEndpoint": "https://{REGISTRY}", "authorizationToken": "dDprZW4=", "expiresAt": 1000}}]}}"#
            );
            let length = answer.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}")
                .expect("it is answered");
            asked
        });
        let lambda = Credentials::new("LAMBDA", "hush", None, None, "test");
        let base = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(SharedCredentialsProvider::new(lambda))
            .region(Region::new("eu-west-1"))
            .endpoint_url(url)
            .build();
        (base, asked)
    }

    #[tokio::test]
    async fn a_registry_of_ecr_in_a_list_is_asked_in_its_region_with_the_access_key_or_else_as_the_lambda() {
        let key = r#"{"access_key_id": "AKIA", "secret_access_key": "hush"}"#;
        let user = r#"{"username": "me", "password": "hush", "registry": "quay.io"}"#;
        for (secret, id) in [(key, "AKIA"), (user, "LAMBDA")] {
            let (base, asked) = ecr();
            let logins = SourceLogins::connect(&base, &stores(secret, None), &public()).await.expect("it can be used");
            let login = logins.to(&host(REGISTRY)).await.expect("ECR gives a token").expect("it needs a login");
            assert_eq!((login.host, login.token.as_str()), (host(REGISTRY), "dDprZW4="));
            let asked = asked.join().expect("it was asked");
            assert!(asked.contains(&format!("Credential={id}/")) && asked.contains("/us-west-2/ecr/"), "{asked}");
            assert!(asked.ends_with(r#"{"registryIds":["222222222222"]}"#), "{asked}");
        }
    }

    #[tokio::test]
    async fn a_stored_login_to_a_registry_of_ecr_is_used_without_asking_ecr() {
        let auths: &'static str = Box::leak(format!(r#"{{"auths": {{"{REGISTRY}": {{"auth": "dDprZW4="}}}}}}"#).into());
        assert_eq!(trusted(auths, None, &[REGISTRY, "quay.io"]).await.expect("there is nothing to ask"), [REGISTRY]);
    }
}
