//! CloudWatch metrics as lines in a function's log, in the
//! [embedded metric format](https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html):
//! this needs no call and no permission.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::config::Environment;

/// The namespace of all metrics.
pub const NAMESPACE: &str = "ecr-transfer";

/// The variable with the stack's name, the dimension of each metric.
const STACK: &str = "STACK_NAME";

/// Emits metrics, each with name, unit and value. Without a stack's name it does nothing.
#[allow(clippy::print_stdout)] // The output of a Lambda is its log.
pub fn emit(environment: &Environment, metrics: &[(&str, Unit, u64)]) {
    if let Some(stack) = environment.optional(STACK) {
        println!("{}", line(stack, SystemTime::now(), metrics));
    }
}

/// The unit of a metric.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Images.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

fn line(stack: &str, now: SystemTime, metrics: &[(&str, Unit, u64)]) -> Value {
    let milliseconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let definitions: Vec<_> =
        metrics.iter().map(|(name, unit, _)| json!({ "Name": name, "Unit": format!("{unit:?}") })).collect();
    let mut line: Map<String, Value> =
        metrics.iter().map(|(name, _, value)| ((*name).to_owned(), json!(value))).collect();
    line.insert("Stack".into(), json!(stack));
    line.insert(
        "_aws".into(),
        json!({
            "Timestamp": u64::try_from(milliseconds).unwrap_or(u64::MAX),
            "CloudWatchMetrics": [{ "Namespace": NAMESPACE, "Dimensions": [["Stack"]], "Metrics": definitions }],
        }),
    );
    line.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_is_in_the_embedded_metric_format() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let line = line("stack", time, &[("ImagesCopied", Unit::Count, 3), ("BytesCopied", Unit::Bytes, 7)]);
        assert_eq!(
            line,
            json!({
                "_aws": {
                    "Timestamp": 1_500,
                    "CloudWatchMetrics": [{
                        "Namespace": "ecr-transfer",
                        "Dimensions": [["Stack"]],
                        "Metrics": [
                            { "Name": "ImagesCopied", "Unit": "Count" },
                            { "Name": "BytesCopied", "Unit": "Bytes" },
                        ],
                    }],
                },
                "Stack": "stack",
                "ImagesCopied": 3,
                "BytesCopied": 7,
            })
        );
    }
}
