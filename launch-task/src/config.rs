//! What the stack's parameters ask for.

use shared::Result;
use shared::allowed::Allowed;
use shared::config::{self, Environment, RegistryConfig, SourceConfig};
use shared::reference::RepositoryName;

use crate::repositories;

/// The configuration of launch-task.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where images come from.
    pub source: SourceConfig,
    /// Which sources may be read.
    pub allowed: Allowed,
    /// The registry that they go to.
    pub destination: RegistryConfig,
    /// What is in front of each repository's name there.
    pub prefix: Option<RepositoryName>,
    /// How repositories that it lacks are created.
    pub repositories: repositories::Config,
    /// Where and how tasks run.
    pub task: TaskConfig,
    /// The secret with the registries' logins, which ECS hands to the task.
    pub registry_auth_secret: String,
    /// How long a task may run: a login must live that long.
    pub task_timeout_seconds: i64,
    /// Where tasks log.
    pub log: LogConfig,
    /// The ARN of the state machine: of the executions whose tasks these are, and of those that a pushed image starts.
    pub state_machine: String,
}

/// Where tasks log: the stream is called `prefix/container/task`, as the awslogs driver names it.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The log group's name.
    pub group: String,
    /// The prefix of its streams.
    pub prefix: String,
}

/// Where and how tasks run.
#[derive(Clone, Debug)]
pub struct TaskConfig {
    /// The ECS cluster's name.
    pub cluster: String,
    /// The task definition's ARN.
    pub definition: String,
    /// The container in it.
    pub container: String,
    /// Subnets.
    pub subnets: Vec<String>,
    /// Security groups.
    pub security_groups: Vec<String>,
    /// Whether tasks get a public address; in a private subnet they need none.
    pub public_ip: bool,
    /// Whether a batch's first task runs on spare capacity.
    pub spot: bool,
}

impl Config {
    /// Reads the configuration.
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
