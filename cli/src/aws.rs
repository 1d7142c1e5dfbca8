//! AWS's configuration, and the errors of its calls.

use std::error::Error as StdError;

use anyhow::anyhow;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use shared::Error;

/// Why AWS cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Neither an option, nor the environment, nor the profile names one.
    #[error("No region is set. Use --region, or the variable AWS_REGION.")]
    NoRegion,
    /// None are configured, or they have expired.
    #[error(
        "There are no credentials for AWS: {0}. Run `aws configure` or `aws sso login`, or name a profile with --profile."
    )]
    NoCredentials(String),
}

/// As for the AWS CLI, except for what the options `--region` and `--profile` give.
pub fn configuration(region: Option<&String>, profile: Option<&String>) -> ConfigLoader {
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if let Some(region) = region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = profile {
        loader = loader.profile_name(profile);
    }
    loader
}

/// Loads the [`configuration`], and checks that it has a region and credentials: a call without them fails with words that do
/// not say what to do.
pub async fn connect(region: Option<&String>, profile: Option<&String>) -> Result<SdkConfig, Unusable> {
    let aws = configuration(region, profile).load().await;
    if aws.region().is_none() {
        return Err(Unusable::NoRegion);
    }
    let Some(credentials) = aws.credentials_provider() else {
        return Err(Unusable::NoCredentials("none are configured".into()));
    };
    match credentials.provide_credentials().await {
        Ok(_) => Ok(aws),
        Err(error) => Err(Unusable::NoCredentials(shared::root_cause(&error).to_string())),
    }
}

/// The error of an AWS call; for `map_err`. Its message has its cause already.
pub fn failed<E>(action: &'static str, subject: &str) -> impl FnOnce(SdkError<E>) -> anyhow::Error
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    let failed = Error::aws(action, subject);
    |error| anyhow!("{}", failed(error))
}
