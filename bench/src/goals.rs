//! What list-images must achieve, and whether it does.

use std::time::Duration;

use crate::{
    error::Result,
    measure::Measurement,
    scenario::{Destination, LARGE, Scenario},
};

/// The longest that a large registry may take.
pub const TIME: Duration = Duration::from_secs(8);

/// The most memory that a large registry may take, in MiB.
pub const MEMORY: f64 = 128.0;

/// The most memory that a large registry may take in which nothing changed, in MiB.
const MEMORY_UNCHANGED: f64 = 64.0;

/// How much more calls than the fewest there may be, in percent.
const CALLS: f64 = 5.0;

/// The longest that reading a list of references may take.
const REFERENCES: Duration = Duration::from_millis(500);

/// A scenario, and what measuring it came to.
pub struct Row {
    /// The scenario.
    pub scenario: Scenario,
    /// The median of its runs.
    pub result: Result<Measurement>,
}

/// A goal.
pub struct Goal {
    /// What there is a limit for.
    pub what: String,
    /// The limit.
    pub limit: String,
    /// The worst of what was measured; `None` if that could not be measured.
    pub measured: Option<String>,
    /// Whether it is within the limit.
    pub met: bool,
}

impl Row {
    /// By how many percent there were more calls than the fewest possible.
    #[must_use]
    pub fn calls_over(&self) -> Option<f64> {
        let calls = self.result.as_ref().ok()?.all_calls() as f64;
        let fewest = self.scenario.fewest_calls()? as f64;
        Some((calls / fewest - 1.0) * 100.0)
    }

    fn time(&self) -> Option<f64> {
        self.result.as_ref().ok().map(|run| run.time.as_secs_f64())
    }

    fn memory(&self) -> Option<f64> {
        self.result.as_ref().ok().map(|run| mebibytes(run.peak_memory))
    }

    fn is_large(&self) -> bool {
        self.scenario.selected.is_none() && self.scenario.expected().listed == LARGE
    }

    fn is_large_and_unchanged(&self) -> bool {
        self.is_large() && self.scenario.destination == Destination::Same
    }

    fn is_list(&self) -> bool {
        self.scenario.selected.is_some()
    }
}

/// Bytes in MiB.
#[must_use]
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Holds the rows against all goals.
#[must_use]
pub fn goals(rows: &[Row]) -> Vec<Goal> {
    let of = |which: fn(&Row) -> bool, number: fn(&Row) -> Option<f64>| {
        rows.iter().filter(|row| which(row)).map(number).collect::<Vec<_>>()
    };
    let seconds = |number: f64| format!("{number:.2} s");
    let mebibytes = |number: f64| format!("{number:.0} MiB");
    let percent = |number: f64| format!("{number:.1} %");
    vec![
        goal("Time for 100,000 images", &of(Row::is_large, Row::time), TIME.as_secs_f64(), seconds),
        goal("Peak memory for 100,000 images", &of(Row::is_large, Row::memory), MEMORY, mebibytes),
        goal(
            "Peak memory for 100,000 images, nothing changed",
            &of(Row::is_large_and_unchanged, Row::memory),
            MEMORY_UNCHANGED,
            mebibytes,
        ),
        goal("Calls over the fewest possible, 100,000 images", &of(Row::is_large, Row::calls_over), CALLS, percent),
        goal("Reading 75,000 references", &of(Row::is_list, Row::time), REFERENCES.as_secs_f64(), seconds),
    ]
}

fn goal(what: &str, measured: &[Option<f64>], limit: f64, text: impl Fn(f64) -> String) -> Goal {
    let worst = worst(measured);
    Goal {
        what: what.into(),
        limit: format!("at most {}", text(limit)),
        measured: worst.map(&text),
        met: worst.is_some_and(|worst| worst <= limit),
    }
}

/// The largest number; none if one of them is missing, or all are.
fn worst(numbers: &[Option<f64>]) -> Option<f64> {
    numbers.iter().copied().reduce(|a, b| Some(a?.max(b?))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_measured_meets_no_goal() {
        let met = |measured: &[Option<f64>]| goal("", measured, 2.0, |number| number.to_string()).met;
        assert!(met(&[Some(1.0), Some(2.0)]));
        assert!(!met(&[Some(1.0), Some(2.1)]));
        assert!(!met(&[Some(1.0), None]));
        assert!(!met(&[]));
    }
}
