//! An AWS account in one region, with the credentials of one profile.

use std::time::Duration;

use aws_config::SdkConfig;

use super::Result;
use crate::aws;

/// The clients of an account in one region.
#[derive(Clone, Debug)]
pub struct Account {
    pub(super) region: String,
    pub(super) cloudformation: aws_sdk_cloudformation::Client,
    pub(super) dynamodb: aws_sdk_dynamodb::Client,
    pub(super) ecs: aws_sdk_ecs::Client,
    pub(super) logs: aws_sdk_cloudwatchlogs::Client,
    pub(super) s3: aws_sdk_s3::Client,
    pub(super) sfn: aws_sdk_sfn::Client,
    /// The pause before something is asked for again.
    pub(super) poll: Duration,
}

impl Account {
    /// The account of a profile, in a region; `None` for what the AWS CLI would use.
    ///
    /// # Errors
    /// If there is no region, or no credentials.
    pub async fn connect(region: Option<&String>, profile: Option<&String>) -> Result<Self> {
        Ok(Self::new(&aws::connect(region, profile).await?))
    }

    fn new(aws: &SdkConfig) -> Self {
        Self {
            region: aws.region().map(ToString::to_string).unwrap_or_default(),
            cloudformation: aws_sdk_cloudformation::Client::new(aws),
            dynamodb: aws_sdk_dynamodb::Client::new(aws),
            ecs: aws_sdk_ecs::Client::new(aws),
            logs: aws_sdk_cloudwatchlogs::Client::new(aws),
            s3: aws_sdk_s3::Client::new(aws),
            sfn: aws_sdk_sfn::Client::new(aws),
            poll: Duration::from_secs(2),
        }
    }

    /// Its region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Waits before something is asked for again.
    pub async fn pause(&self) {
        tokio::time::sleep(self.poll).await;
    }
}

#[cfg(test)]
pub mod tests {
    use aws_smithy_mocks::{Rule, RuleMode, mock_client};

    use super::*;

    /// An account whose services answer by these rules. A call without a rule panics.
    pub fn account(rules: &[&Rule]) -> Account {
        Account {
            region: "us-east-1".into(),
            cloudformation: mock_client!(aws_sdk_cloudformation, RuleMode::MatchAny, rules),
            dynamodb: mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, rules),
            ecs: mock_client!(aws_sdk_ecs, RuleMode::MatchAny, rules),
            logs: mock_client!(aws_sdk_cloudwatchlogs, RuleMode::MatchAny, rules),
            s3: mock_client!(aws_sdk_s3, RuleMode::MatchAny, rules),
            sfn: mock_client!(aws_sdk_sfn, RuleMode::MatchAny, rules),
            poll: Duration::ZERO,
        }
    }
}
