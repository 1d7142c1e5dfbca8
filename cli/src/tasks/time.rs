//! Times, as AWS has them.

use std::fmt;
use std::time::SystemTime;

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde::{Serialize, Serializer};

/// A time in milliseconds. It is printed and serialised in UTC and seconds: `2026-11-22T02:41:56Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i64);

impl Time {
    /// Milliseconds since 1970.
    pub fn from_millis(milliseconds: i64) -> Self {
        Self(milliseconds)
    }

    /// Milliseconds since 1970.
    pub fn millis(self) -> i64 {
        self.0
    }

    /// The present.
    pub fn now() -> Self {
        DateTime::from(SystemTime::now()).into()
    }

    /// A time as our functions write it into the tables; `None` if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        DateTime::from_str(text, DateTimeFormat::DateTime).ok().map(Self::from)
    }

    /// The seconds since `earlier`, or 0.
    pub fn seconds_since(self, earlier: Self) -> u64 {
        u64::try_from((self.0 - earlier.0) / 1_000).unwrap_or_default()
    }
}

impl From<DateTime> for Time {
    fn from(time: DateTime) -> Self {
        // Times of AWS are far from the ends of what an i64 holds.
        Self(time.to_millis().unwrap_or_default())
    }
}

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = DateTime::from_secs(self.0.div_euclid(1_000));
        formatter.pad(&seconds.fmt(DateTimeFormat::DateTime).unwrap_or_default())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_printed_in_utc_and_in_seconds() {
        let time = Time::parse("2026-11-22T02:41:56.789Z").expect("it is a time");
        assert_eq!(time.to_string(), "2026-11-22T02:41:56Z");
        assert_eq!(serde_json::to_value(time).expect("it is JSON"), "2026-11-22T02:41:56Z");
        assert_eq!(time.seconds_since(Time::from_millis(time.millis() - 2_500)), 2);
        assert_eq!(Time::from_millis(0).seconds_since(time), 0);
        assert_eq!(Time::parse("yesterday"), None);
    }
}
