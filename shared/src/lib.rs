//! What the Lambdas of ecr-transfer agree on.
//!
//! Everything that two of them must understand alike lives here, and nothing else: how the stack is configured
//! ([`config`]), which sources may be read ([`allowed`]), the list of selected images ([`selection`], [`tags`]) and what they are called at the destination ([`naming`]), who they are
//! towards a registry ([`credentials`]), how they log in where images come from ([`logins`]), how they talk to ECR ([`ecr`]),
//! the plan that one writes and the others follow ([`plan`]), what a manifest refers to ([`manifest`]), [`metrics`], and the
//! protocol of the task that copies ([`task`]). What comes from outside is parsed into the types of [`reference`](mod@reference),
//! or shown as a [`text::Excerpt`].

pub mod allowed;
pub mod config;
pub mod credentials;
pub mod ecr;
mod error;
#[cfg(test)]
mod guide;
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

pub use error::Error;
pub use kind::Kind;

/// A `Result` whose error is this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
