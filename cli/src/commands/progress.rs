//! What a person sees while something takes long. On standard error, and only if that is a terminal.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use shared::text::Excerpt;

use crate::output::note;
use crate::tasks::RunDetails;

/// The most characters of a message, which must fit into a line.
const MESSAGE: usize = 120;

/// A line that changes.
pub struct Progress(ProgressBar);

impl Progress {
    /// A line with a message.
    pub fn start(message: impl Display) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        let progress = Self(bar);
        progress.say(message);
        progress
    }

    /// Changes the message.
    pub fn say(&self, message: impl Display) {
        self.0.set_message(Excerpt::within(&message.to_string(), MESSAGE).to_string());
    }

    /// Shows how a run stands.
    pub fn show(&self, run: &RunDetails) {
        let Some(counts) = run.run.counts.filter(|counts| counts.to_copy > 0) else {
            return self.say("listing images, or waiting for an earlier run");
        };
        if self.0.length().is_none() {
            let style = ProgressStyle::with_template("{spinner} {wide_bar} {pos}/{len} images {msg}");
            self.0.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        self.0.set_length(counts.to_copy);
        self.0.set_position(counts.done + counts.failed);
        let failed = if counts.failed > 0 { format!(", {} failed", counts.failed) } else { String::new() };
        self.say(format_args!("{}{failed}", bytes(Some(counts.bytes_done))));
    }

    /// Prints a line that stays, also if standard error is not a terminal.
    pub fn keep(&self, line: impl Display) {
        self.0.suspend(|| note(line));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Waits for something that goes on if nobody waits.
///
/// # Errors
/// With what goes on, if the person presses Ctrl-C.
pub async fn interruptible<T>(waiting: impl Future<Output = T>, goes_on: impl Display) -> Result<T> {
    tokio::select! {
        result = waiting => Ok(result),
        _ = tokio::signal::ctrl_c() => bail!("Interrupted. {goes_on}"),
    }
}

/// A number of bytes for a person; blank if it is unknown.
pub fn bytes(bytes: Option<u64>) -> String {
    bytes.map(|bytes| indicatif::HumanBytes(bytes).to_string()).unwrap_or_default()
}

/// Seconds for a person; blank if they are unknown.
pub fn duration(seconds: Option<u64>) -> String {
    seconds.map(|seconds| indicatif::FormattedDuration(Duration::from_secs(seconds)).to_string()).unwrap_or_default()
}

/// A value; blank if there is none.
pub fn blank(value: Option<impl Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
