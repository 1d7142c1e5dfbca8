//! Measures a scenario: a fresh AWS and a fresh process for each run, and the median of the runs.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    fake::{Aws, Conditions, Record, Registries},
    runtime::{self, Invocation},
    scenario::{DESTINATION, Findings, SOURCE, Scenario},
};

/// How it is measured.
pub struct Settings<'a> {
    /// The function's binary.
    pub lambda: &'a Path,
    /// How often each scenario runs; at least once.
    pub runs: usize,
    /// How AWS behaves, where the scenario does not say otherwise.
    pub conditions: Conditions,
}

/// What one run came to.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// From the invocation to the answer; where a list of references is read, to the first call that asks for images.
    pub time: Duration,
    /// The most bytes of memory that the process ever had.
    pub peak_memory: u64,
    /// What the function answered.
    pub answer: Answer,
    /// How often AWS was asked for each action, throttled calls included.
    pub calls: BTreeMap<String, usize>,
    /// How many calls were throttled.
    pub throttled: usize,
    /// The plan's size in bytes.
    pub plan: usize,
}

/// What list-images answers, as far as it matters here.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Answer {
    /// What it found out.
    #[serde(flatten)]
    pub findings: Findings,
    /// The plan's batches.
    pub batches: usize,
}

impl Measurement {
    /// How often AWS was asked for anything.
    #[must_use]
    pub fn all_calls(&self) -> usize {
        self.calls.values().sum()
    }
}

/// Measures a scenario, and calls `after_each` run.
///
/// # Errors
/// If one of the runs fails.
pub async fn measure(settings: &Settings<'_>, scenario: &Scenario, after_each: impl Fn()) -> Result<Measurement> {
    let registries = Arc::new(scenario.registries());
    let mut runs = Vec::new();
    for _ in 0..settings.runs {
        let run = run(settings, scenario, Arc::clone(&registries)).await;
        after_each();
        runs.push(run?);
    }
    median(runs, |run| run.time).ok_or_else(|| Error::Wrong("it never ran".into()))
}

async fn run(settings: &Settings<'_>, scenario: &Scenario, registries: Arc<Registries>) -> Result<Measurement> {
    let aws = Aws::start(registries, scenario.conditions(settings.conditions)).await?;
    let payload = scenario.payload().to_string();
    let invocation = runtime::invoke(&[settings.lambda.to_owned()], &environment(&aws), payload).await?;
    let answer = check(&invocation.answer, scenario.expected())?;
    let record = aws.record();
    Ok(Measurement {
        time: time(scenario, &invocation, &record)?,
        peak_memory: invocation.peak_memory,
        answer,
        throttled: record.throttled,
        plan: record.stored,
        calls: record.calls,
    })
}

/// What the stack's parameters and Lambda put into the function's environment.
#[must_use]
pub fn environment(aws: &Aws) -> [(&'static str, String); 15] {
    [
        ("AWS_ENDPOINT_URL", format!("http://{}", aws.server.address)),
        ("AWS_REGION", DESTINATION.1.into()),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE".into()),
        ("AWS_SECRET_ACCESS_KEY", "hush".into()),
        // Whose metadata service is asked for credentials should be nobody's.
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ("SOURCE_TYPE", "Amazon_ECR".into()),
        ("SRC_LIST", "ALL".into()),
        ("SRC_REGION", SOURCE.1.into()),
        ("SRC_ACCOUNT_ID", SOURCE.0.into()),
        ("DEST_REGION", DESTINATION.1.into()),
        ("DEST_ACCOUNT_ID", DESTINATION.0.into()),
        ("PLAN_BUCKET", "plans".into()),
        ("STATE_MACHINE", "machine".into()),
        ("IMAGE_TABLE", "images".into()),
        ("MAX_CONCURRENCY", "10".into()),
    ]
}

/// A number that was measured on a wrong answer would mean nothing.
fn check(answer: &[u8], expected: Findings) -> Result<Answer> {
    let answer: Answer = serde_json::from_slice(answer)
        .map_err(|error| Error::Wrong(format!("the function answered {}: {error}", String::from_utf8_lossy(answer))))?;
    let found = answer.findings;
    if found == expected {
        Ok(answer)
    } else {
        Err(Error::Wrong(format!("the function found {found}, instead of {expected}")))
    }
}

fn time(scenario: &Scenario, invocation: &Invocation, record: &Record) -> Result<Duration> {
    let ended = match scenario.selected {
        None => invocation.ended,
        Some(_) => record.first_images.ok_or_else(|| Error::Wrong("the function asked for no images".into()))?,
    };
    Ok(ended.duration_since(invocation.began))
}

/// The one in the middle; of an even number, the lower of the two.
pub fn median<T, K: Ord>(mut values: Vec<T>, key: impl Fn(&T) -> K) -> Option<T> {
    values.sort_by_key(|value| key(value));
    let middle = values.len().checked_sub(1)? / 2;
    Some(values.swap_remove(middle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let median = |values: &[u32]| median(values.to_vec(), |&value| value);
        assert_eq!(median(&[3, 1, 2]), Some(2));
        assert_eq!(median(&[4, 3, 1, 2]), Some(2));
        assert_eq!(median(&[7]), Some(7));
        assert_eq!(median(&[]), None);
    }
}
