//! What a person does with tasks. A task is a CloudFormation stack of this project's template.
//!
//! The commands and the web console call this library and nothing else. It returns data, and prints nothing.

mod account;
mod delete;
mod images;
mod logs;
mod parameters;
mod run;
mod stack;
mod template;
mod time;

use std::fmt;

use serde::Serialize;
use shared::Kind;
use shared::text::Excerpt;

pub use self::time::Time;
pub use account::Account;
#[cfg(test)]
pub use account::tests::account as account_for_tests;
pub use delete::{Deleting, Remains};
pub use images::{Image, Images, csv};
pub use logs::{Function, Line, Log, Reader};
pub use parameters::{Group, Parameter, Problem, Template, Values, read_values};
pub use run::{Batch, Counts, Decision, FargateTask, Input, Run, RunDetails, Runs, Status, Stopping};
pub use stack::{Action, Change, ClonePlan, Event, Failure, Task};
pub use template::Package;

/// The result of an action.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// AWS cannot be called.
    #[error(transparent)]
    Unusable(#[from] crate::aws::Unusable),
    /// The account has no such stack in this region.
    #[error("CloudFormation has no stack {name} in {region}. Check the name, --region and --profile.")]
    NoTask {
        /// The name that was asked for.
        name: String,
        /// The account's region.
        region: String,
    },
    /// The stack is somebody else's.
    #[error("{name} is not a stack of ecr-transfer.")]
    NotATask {
        /// The stack's name.
        name: String,
    },
    /// Values of parameters are not allowed.
    #[error("{}", Lines(.0))]
    Parameters(Vec<Problem>),
    /// What was asked for is not possible. The text says why, and what to do.
    #[error("{0}")]
    Rejected(String),
    /// CloudFormation did not do what it was asked for.
    #[error("{name} is {status}.{}", Reasons(.failures))]
    Failed {
        /// The stack's name.
        name: String,
        /// The stack's status.
        status: String,
        /// The resources that failed, the first one first.
        failures: Vec<Failure>,
    },
    /// A call of AWS's API failed.
    #[error(transparent)]
    Aws(#[from] shared::Error),
}

impl Error {
    /// The IAM action that is not allowed, if that is the reason.
    pub fn denied_action(&self) -> Option<&'static str> {
        match self {
            Self::Aws(shared::Error::Aws { action, kind: Kind::Denied, .. }) => Some(action),
            _ => None,
        }
    }
}

/// Problems, one in each line.
struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        formatter.write_str(&lines.join(" "))
    }
}

struct Reasons<'a>(&'a [Failure]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Failure { resource, reason }) in self.0.iter().enumerate() {
            write!(formatter, " {resource} failed{}: {reason}", if at == 0 { " first" } else { "" })?;
        }
        Ok(())
    }
}

/// A page of a list.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins; `None` for the last one. It is opaque.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Text of AWS or a registry, safe to print.
fn excerpt(text: Option<&str>) -> Option<Excerpt> {
    text.filter(|text| !text.is_empty()).map(Excerpt::from)
}
