//! What the Lambdas of ecr-transfer agree on.
//!
//! Everything that two of them must understand alike lives here, and nothing else: how the stack is configured
//! ([`config`]), who they are towards a registry ([`credentials`]), how they log in where
//! images come from ([`logins`]), how they talk to ECR ([`ecr`]), the plan that one
//! writes and the others follow ([`plan`]), what a manifest refers to ([`manifest`]), [`metrics`], and the protocol of the task that copies ([`task`]).

pub mod config;
pub mod credentials;
pub mod ecr;
mod error;
pub mod logins;
pub mod manifest;
pub mod metrics;
pub mod plan;
pub mod task;

pub use error::Error;

/// A `Result` whose error is this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
