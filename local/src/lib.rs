//! An AWS on one machine.
//!
//! ministack stands in for AWS, Debian's docker-registry for the public registries; Fargate and the network between them are
//! made here. `sam deploy` deploys the project's template to it as to AWS, and the same Lambdas and skopeo run on it.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for"))]
#![allow(missing_docs, reason = "only this project uses it, and most names need no explanation")]

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

/// Locks, also after a panic: no change behind these locks can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
