//! The parameters of record-status.

use shared::Result;
use shared::config::{Environment, RegistryConfig};

/// To record the result of a batch.
#[derive(Debug)]
pub struct Config {
    pub destination: RegistryConfig,
    /// The platforms that are copied, for the rows.
    pub platforms: String,
    pub image_table: String,
    pub execution_table: String,
}

/// To send a notification. It is separate from [`Config`], so that a parameter that fails a run does not also fail the
/// notification.
#[derive(Debug)]
pub struct NoticeConfig {
    pub stack: String,
    pub region: String,
    /// `https://console.aws.amazon.com`, or that of another partition.
    pub console: String,
    /// The topic's ARN.
    pub topic: String,
    pub execution_table: String,
    /// The log group of list-images.
    pub list_log: String,
    /// The log group of the tasks.
    pub task_log: String,
}

impl NoticeConfig {
    pub fn read(environment: &Environment) -> Result<Self> {
        Ok(Self {
            stack: environment.required("STACK_NAME")?,
            region: environment.required("AWS_REGION")?,
            console: environment.required("CONSOLE")?,
            topic: environment.required("TOPIC")?,
            execution_table: environment.required("EXECUTION_TABLE")?,
            list_log: environment.required("LIST_IMAGES_LOG")?,
            task_log: environment.required("TASK_LOG")?,
        })
    }
}

impl Config {
    pub fn read(environment: &Environment) -> Result<Self> {
        Ok(Self {
            destination: RegistryConfig::destination(environment)?,
            platforms: environment.optional("PLATFORMS").unwrap_or("all").to_owned(),
            image_table: environment.required("IMAGE_TABLE")?,
            execution_table: environment.required("EXECUTION_TABLE")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_fails_a_run_does_not_fail_its_notification() {
        let environment = [
            ("DEST_ACCOUNT_ID", "12345"),
            ("STACK_NAME", "hub"),
            ("AWS_REGION", "us-east-1"),
            ("CONSOLE", "https://console.aws.amazon.com"),
            ("TOPIC", "arn:topic"),
            ("IMAGE_TABLE", "images"),
            ("EXECUTION_TABLE", "executions"),
            ("LIST_IMAGES_LOG", "list"),
            ("TASK_LOG", "tasks"),
        ];
        let environment = environment.into_iter().collect();
        Config::read(&environment).expect_err("an account has 12 digits");
        NoticeConfig::read(&environment).expect("it does not need the account");
    }
}
