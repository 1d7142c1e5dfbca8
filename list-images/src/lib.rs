//! Decides what a run copies: it compares the source with the destination, and writes the plan. See [`handler::list`].

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
mod source;
mod turn;

pub use source::SourceImage;
