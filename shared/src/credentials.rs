//! Who we are towards a registry: the Lambda's role, or an access key kept in Secrets Manager.

use std::error::Error as StdError;

use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use serde::Deserialize;

use crate::config::RegistryConfig;
use crate::{Error, Result};

/// What a secret must hold.
#[derive(Deserialize)]
struct AccessKey {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

/// The configuration with which ECR's client for `registry` is made: its region, and the credential that it names.
///
/// # Errors
/// When the secret is missing, does not parse, or lacks a field: there is no falling back to another identity.
pub async fn resolve(
    base: &SdkConfig,
    secrets: &aws_sdk_secretsmanager::Client,
    registry: &RegistryConfig,
) -> Result<SdkConfig> {
    let mut config = base.to_builder();
    if let Some(region) = &registry.region {
        config = config.region(Region::new(region.clone()));
    }
    if let Some(name) = &registry.credential {
        let key = access_key(secrets, name).await?;
        config = config.credentials_provider(SharedCredentialsProvider::new(key));
    }
    Ok(config.build())
}

async fn access_key(secrets: &aws_sdk_secretsmanager::Client, name: &str) -> Result<Credentials> {
    let unusable = |problem: String, source: Option<Box<dyn StdError + Send + Sync>>| Error::Credential {
        name: name.to_owned(),
        problem,
        source,
    };
    let secret = secrets.get_secret_value().secret_id(name).send().await.map_err(|error| {
        let service = error.into_service_error();
        unusable(service.to_string(), Some(Box::new(service)))
    })?;
    let text = match (secret.secret_string(), secret.secret_binary()) {
        (Some(text), _) => text.as_bytes(),
        (None, Some(binary)) => binary.as_ref(),
        (None, None) => b"",
    };
    // serde's message can quote what it read, so it does not become part of ours.
    let key: AccessKey = serde_json::from_slice(text)
        .map_err(|_| unusable(r#"expected JSON like {"access_key_id": "…", "secret_access_key": "…"}"#.into(), None))?;
    if key.access_key_id.trim().is_empty() || key.secret_access_key.trim().is_empty() {
        return Err(unusable("access_key_id or secret_access_key is empty".into(), None));
    }
    Ok(Credentials::new(key.access_key_id, key.secret_access_key, key.session_token, None, "ecr-transfer"))
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::ProvideCredentials;
    use aws_sdk_secretsmanager::operation::get_secret_value::{GetSecretValueError, GetSecretValueOutput};
    use aws_sdk_secretsmanager::primitives::Blob;
    use aws_sdk_secretsmanager::types::error::ResourceNotFoundException;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};

    use super::*;

    fn registry() -> RegistryConfig {
        RegistryConfig { region: Some("eu-west-1".into()), account: None, credential: Some("source".into()) }
    }

    async fn resolve_with(output: GetSecretValueOutput) -> Result<SdkConfig> {
        let rule = mock!(aws_sdk_secretsmanager::Client::get_secret_value)
            .match_requests(|request| request.secret_id() == Some("source"))
            .then_output(move || output.clone());
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&rule]);
        resolve(&SdkConfig::builder().build(), &secrets, &registry()).await
    }

    #[tokio::test]
    async fn an_access_key_is_used_in_the_registrys_region() {
        let text = r#"{"access_key_id": "AKIA", "secret_access_key": "hush"}"#;
        for output in [
            GetSecretValueOutput::builder().secret_string(text).build(),
            GetSecretValueOutput::builder().secret_binary(Blob::new(text)).build(),
        ] {
            let config = resolve_with(output).await.expect("the secret is good");
            assert_eq!(config.region().map(ToString::to_string).as_deref(), Some("eu-west-1"));
            let provider = config.credentials_provider().expect("there is one");
            let key = provider.provide_credentials().await.expect("it is static");
            assert_eq!((key.access_key_id(), key.secret_access_key()), ("AKIA", "hush"));
        }
    }

    #[tokio::test]
    async fn a_secret_that_does_not_parse_is_an_error_that_names_it_and_not_its_content() {
        for text in ["hush", r#"{"access_key_id": "hush"}"#, r#"{"access_key_id": "hush", "secret_access_key": " "}"#] {
            let error = resolve_with(GetSecretValueOutput::builder().secret_string(text).build())
                .await
                .expect_err("nothing else is tried");
            assert_eq!(error.name(), "InvalidCredential");
            assert!(error.to_string().contains("source"), "{error}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_secret_that_is_missing_is_an_error_that_names_it() {
        let rule = mock!(aws_sdk_secretsmanager::Client::get_secret_value).then_error(|| {
            GetSecretValueError::ResourceNotFoundException(ResourceNotFoundException::builder().build())
        });
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&rule]);
        let error = resolve(&SdkConfig::builder().build(), &secrets, &registry()).await.expect_err("it is missing");
        assert_eq!(error.name(), "InvalidCredential");
        assert!(error.to_string().contains("ResourceNotFoundException"), "{error}");
    }
}
