//! An AWS on one machine.
//!
//! ministack stands in for AWS, Debian's docker-registry for the public registries; Fargate and the network between them are
//! made here. The project's template is deployed to it by `sam deploy` as to AWS, and the Lambdas and skopeo that run on
//! it are those that would run there.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for"))]
#![allow(missing_docs, reason = "only this project's commands and tests use it: a name that says it all needs no more")]

pub mod aws;
pub mod corpus;
pub mod fargate;
mod forward;
pub mod gateway;
pub mod hostile;
pub mod images;
pub mod machine;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod stack;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use anyhow::{Error, Result};
pub use machine::{Machine, Options};

/// Locks; a panic elsewhere leaves nothing half done behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
