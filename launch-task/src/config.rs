//! The parameters of launch-task.

use shared::Result;
use shared::allowed::Allowed;
use shared::config::{self, Environment, RegistryConfig, SourceConfig};
use shared::reference::RepositoryName;

use crate::repositories;

#[derive(Clone, Debug)]
pub struct Config {
    pub source: SourceConfig,
    pub allowed: Allowed,
    pub destination: RegistryConfig,
    /// The prefix of all repositories at the destination.
    pub prefix: Option<RepositoryName>,
    pub repositories: repositories::Config,
    pub task: TaskConfig,
    /// The secret with the registries' logins, which ECS passes to the task.
    pub registry_auth_secret: String,
    /// A login must be valid for this time.
    pub task_timeout_seconds: i64,
    pub log: LogConfig,
    /// The state machine's ARN.
    pub state_machine: String,
}

/// The tasks' log. The awslogs driver names streams `prefix/container/task`.
#[derive(Clone, Debug)]
pub struct LogConfig {
    pub group: String,
    pub prefix: String,
}

#[derive(Clone, Debug)]
pub struct TaskConfig {
    pub cluster: String,
    /// The task definition's ARN.
    pub definition: String,
    /// The name of skopeo's container in the task definition.
    pub container: String,
    pub subnets: Vec<String>,
    pub security_groups: Vec<String>,
    /// Whether tasks get a public IP address.
    pub public_ip: bool,
    /// Whether the first task of a batch uses Fargate Spot.
    pub spot: bool,
}

impl Config {
    pub fn read(environment: &Environment) -> Result<Self> {
        let list = |variable: &str| -> Result<Vec<String>> {
            Ok(environment.required(variable)?.split(',').map(|item| item.trim().to_owned()).collect())
        };
        let source = SourceConfig::read(environment)?;
        Ok(Self {
            allowed: Allowed::read(environment, &source)?,
            source,
            destination: RegistryConfig::destination(environment)?,
            prefix: config::prefix(environment)?,
            repositories: repositories::Config::read(environment)?,
            task: TaskConfig {
                cluster: environment.required("CLUSTER")?,
                definition: environment.required("TASK_DEFINITION")?,
                container: environment.required("CONTAINER")?,
                subnets: list("SUBNETS")?,
                security_groups: list("SECURITY_GROUPS")?,
                public_ip: environment.flag("ASSIGN_PUBLIC_IP", true)?,
                spot: environment.flag("FARGATE_SPOT", false)?,
            },
            registry_auth_secret: environment.required("REGISTRY_AUTH_SECRET")?,
            task_timeout_seconds: environment.count("TASK_TIMEOUT_SECONDS", 14_400)?.try_into().unwrap_or(i64::MAX),
            log: LogConfig {
                group: environment.required("LOG_GROUP")?,
                prefix: environment.required("LOG_STREAM_PREFIX")?,
            },
            state_machine: environment.required("STATE_MACHINE")?,
        })
    }
}
