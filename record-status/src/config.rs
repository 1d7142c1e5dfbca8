//! What the stack's parameters ask for.

use shared::Result;
use shared::config::{Environment, RegistryConfig};

/// The configuration of record-status.
#[derive(Debug)]
pub struct Config {
    /// The registry that images go to.
    pub destination: RegistryConfig,
    /// Which platforms of an image are copied, as the rows say it.
    pub platforms: String,
    /// The table with a row for each image.
    pub image_table: String,
    /// The table with an item for each execution.
    pub execution_table: String,
}

/// What a notification is made of. It is read by itself: a parameter that fails a run must not fail the message about that run.
#[derive(Debug)]
pub struct NoticeConfig {
    /// The stack's name.
    pub stack: String,
    /// The region that it is deployed in.
    pub region: String,
    /// Where the AWS console of its partition is: `https://console.aws.amazon.com`.
    pub console: String,
    /// The ARN of the topic that takes notifications.
    pub topic: String,
    /// The table with an item for each execution.
    pub execution_table: String,
    /// The log group of list-images.
    pub list_log: String,
    /// The log group of the tasks.
    pub task_log: String,
}

impl NoticeConfig {
    /// Reads the configuration.
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
    /// Reads the configuration.
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
    fn a_parameter_that_fails_a_run_does_not_fail_the_message_about_it() {
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
