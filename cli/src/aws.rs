//! AWS's configuration.

use aws_config::{BehaviorVersion, ConfigLoader, Region};

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
