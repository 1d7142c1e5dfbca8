//! What can go wrong, and the short name under which the state machine knows it.

use shared::Kind;

/// The task never ran, for want of its image, say.
pub const TASK_NOT_STARTED: &str = "TaskNotStarted";

/// No task could be started, and one may be, later.
pub const NO_CAPACITY: &str = "NoCapacity";

/// The task failed, or copied only some of its images: another try may do better.
pub const TASK_FAILED: &str = "TaskFailed";

/// Every image that the task could not copy would fail again.
pub const IMAGES_REFUSED: &str = "ImagesRefused";

/// Why a batch could not be launched, or a task not be answered for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A registry, a credential or the configuration.
    #[error(transparent)]
    Shared(#[from] shared::Error),
    /// ECS started no task, and may start one later: there is no capacity, or the account's quota is used up.
    #[error("ECS started no task: {0}")]
    NoCapacity(String),
    /// ECS will never start such a task.
    #[error("ECS starts no such task: {0}")]
    Refused(String),
}

impl Error {
    /// The name that the state machine's Retry and Catch match on: short and stable.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Shared(error) => error.name(),
            Self::NoCapacity(_) => NO_CAPACITY,
            Self::Refused(_) => Kind::Invalid.name(),
        }
    }
}

/// A `Result` whose error is this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    const FAILURES: [&str; 4] = [NO_CAPACITY, TASK_NOT_STARTED, TASK_FAILED, IMAGES_REFUSED];

    /// The state machine's definition, with a 1 for each reference to something else.
    fn definition() -> Value {
        let template = include_str!("../../template.yaml");
        let (_, behind) = template.split_once("DefinitionString: !Sub |\n").expect("the template has a definition");
        let lines = behind.lines().take_while(|line| line.is_empty() || line.starts_with("        "));
        let mut text = lines.collect::<String>();
        while let Some(start) = text.find("${") {
            let end = start + text[start..].find('}').expect("a reference ends");
            text.replace_range(start..=end, "1");
        }
        serde_json::from_str(&text).expect("the definition is JSON")
    }

    /// The error names in a state's Retry, but for those of AWS's own.
    fn retried(state: &Value) -> BTreeSet<String> {
        let retriers = state["Retry"].as_array().expect("the state has a Retry");
        let names = retriers.iter().flat_map(|retrier| retrier["ErrorEquals"].as_array().into_iter().flatten());
        names.filter_map(Value::as_str).filter(|name| !name.contains('.')).map(str::to_owned).collect()
    }

    #[test]
    fn the_state_machine_retries_exactly_the_failures_that_may_pass_by_themselves() {
        let definition = definition();
        let copying = &definition["States"]["CopyImages"]["ItemProcessor"]["States"];
        let transient = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(
            retried(&copying["CopyBatch"]),
            transient(&["NoCapacity", "ServiceUnavailable", "TaskFailed", "TaskNotStarted"])
        );
        assert_eq!(retried(&copying["RecordStatus"]), transient(&["ServiceUnavailable"]));
        assert_eq!(retried(&definition["States"]["ListImages"]), transient(&["ServiceUnavailable"]));
    }

    #[test]
    fn every_name_that_is_retried_is_one_that_a_lambda_gives() {
        let definition = definition();
        let copying = &definition["States"]["CopyImages"]["ItemProcessor"]["States"];
        let given: BTreeSet<_> = Kind::ALL.map(Kind::name).into_iter().chain(FAILURES).collect();
        for state in [&copying["CopyBatch"], &copying["RecordStatus"], &definition["States"]["ListImages"]] {
            for name in retried(state) {
                assert!(given.contains(name.as_str()), "{name}");
            }
        }
    }
}
