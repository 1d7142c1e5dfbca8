//! AWS's configuration, and the errors of its calls.

use std::error::Error as StdError;

use anyhow::anyhow;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use shared::Error;

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

/// The error of an AWS call; for `map_err`. Its message has its cause already.
pub fn failed<E>(action: &'static str, subject: &str) -> impl FnOnce(SdkError<E>) -> anyhow::Error
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    let failed = Error::aws(action, subject);
    |error| anyhow!("{}", failed(error))
}
