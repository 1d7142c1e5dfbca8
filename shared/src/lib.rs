//! What the Lambdas share.
//!
//! - [`reference`](mod@reference): the names of registries, repositories and images
//! - [`selection`], [`tags`], [`allowed`], [`naming`]: which images are copied, and their names at the destination
//! - [`ecr`], [`manifest`]: ECR's registries, and the content of manifests
//! - [`credentials`], [`logins`]: identities, and logins to registries
//! - [`plan`], [`task`]: what list-images, launch-task, the copying task and record-status exchange
//! - [`inventory`]: what the destination has, for those who use it
//! - [`config`], [`lambda`], [`metrics`], [`text`]: parameters, invocations, metrics, and text that can be shown

pub mod allowed;
pub mod config;
pub mod credentials;
pub mod ecr;
mod error;
#[cfg(test)]
mod guide;
pub mod inventory;
mod kind;
pub mod lambda;
pub mod logins;
pub mod manifest;
pub mod metrics;
pub mod naming;
pub mod plan;
pub mod reference;
pub mod selection;
pub mod tags;
pub mod task;
pub mod text;

pub use error::{Error, root_cause};
pub use kind::Kind;

/// A `Result` whose error is this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
