//! Decides what a run must copy, and writes the plan: what the source has, without what the destination has.
//!
//! [`handler::list`] is the work of one execution; `main.rs` runs it as a Lambda.

pub mod batches;
mod comparison;
pub mod config;
mod difference;
mod distribution;
mod dry_run;
mod failing;
pub mod handler;
mod input;
mod rules;
pub mod source;
mod turn;
