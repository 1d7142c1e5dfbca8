//! The protocol of the task that copies: what launch-task tells its script, and what the script's log says.
//!
//! The script itself is in the template's task definition. It is told what to copy in the variable `COPIES`, and
//! prints one line for each image.

use serde::{Deserialize, Serialize};

use crate::plan::{Copy, split};

/// The variable with the batch: [`encode`].
pub const COPIES: &str = "COPIES";

/// The variable with the state machine's task token, by which a stopped task is answered for.
pub const TASK_TOKEN: &str = "TASK_TOKEN";

/// The variable with the milliseconds that each manifest takes at least: [`Batch::pace`](crate::plan::Batch::pace).
pub const PACE: &str = "PACE";

/// How many characters [`COPIES`] may take inside the JSON of RunTask's overrides.
///
/// The [overrides may have 8,192](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_TaskOverride.html);
/// the [token up to 2,048](https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskSuccess.html)
/// of these, and the JSON around the two less than 300.
pub const COPIES_LIMIT: usize = 5_800;

/// How a [`refusal`] begins.
const CANNOT_CREATE: &str = "the repository cannot be created";

/// The most characters of why. A refusal takes the place of a header and at least one line, and must not be longer.
const REFUSAL_LIMIT: usize = 120;

/// What takes the place of a tag or a digest that an image does not have; no tag begins with it.
const NONE: &str = "-";

/// The line that names the repositories of the copies behind it: `> source-repository destination-repository`.
#[must_use]
pub fn header(copy: &Copy) -> String {
    format!("> {} {}\n", copy.source_repository(), copy.destination_repository())
}

/// The line of one copy: `digest tag`, and the number of manifests where there is more than one.
#[must_use]
pub fn line(copy: &Copy) -> String {
    let digest = split(&copy.source).1.strip_prefix('@').unwrap_or(NONE);
    let tag = copy.destination_tag().unwrap_or(NONE);
    match copy.manifests {
        0 | 1 => format!("{digest} {tag}\n"),
        manifests => format!("{digest} {tag} {manifests}\n"),
    }
}

/// The line of a repository for which there is nothing to copy, because it cannot be created: `! repository why`. The
/// script only repeats it, so that it is in the log with everything else.
#[must_use]
pub fn refusal(repository: &str, why: &str) -> String {
    let why: String =
        format!("{CANNOT_CREATE}: {why}").replace(['\n', '\t'], " ").chars().take(REFUSAL_LIMIT).collect();
    format!("! {repository} {why}\n")
}

/// How many characters a header or a line takes in JSON, where the line's end is written as two.
#[must_use]
pub fn json_length(line: &str) -> usize {
    line.len() + 1
}

/// The value of [`COPIES`].
#[must_use]
pub fn encode<'a>(copies: impl IntoIterator<Item = &'a Copy>) -> String {
    let mut text = String::new();
    let mut current = String::new();
    for copy in copies {
        let header = header(copy);
        if header != current {
            text.push_str(&header);
            current = header;
        }
        text.push_str(&line(copy));
    }
    text
}

/// What is known of a task that has stopped: the result, or the cause of the failure, that its state ends with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// The task's ARN; absent where nothing had to be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The container's exit code; absent where it never ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why the task stopped, in ECS's words, or why it could not be started, in ours.
    pub reason: String,
    /// Where its log is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// What the log says of each image.
    pub copies: Vec<CopyReport>,
}

/// A log stream in CloudWatch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The log group's name.
    pub group: String,
    /// The stream's name.
    pub stream: String,
}

/// What the log says of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// As in the plan; without a tag or digest it is about all images that go to that repository.
    pub destination: String,
    /// How long skopeo took.
    pub seconds: u64,
    /// skopeo's own last words, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl CopyReport {
    /// Reads a line of the script: `Done`, the destination and the seconds, or `Error` and skopeo's words behind them,
    /// separated by tabs. Any other line is not about an image.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(4, '\t');
        let status = fields.next()?;
        let destination = fields.next()?.to_owned();
        let seconds = fields.next()?.trim().parse().ok()?;
        let error = match status {
            "Done" => None,
            "Error" => Some(last_words(fields.next().unwrap_or_default())),
            _ => return None,
        };
        Some(Self { destination, seconds, error })
    }

    /// Whether this is about `copy`.
    #[must_use]
    pub fn is_about(&self, copy: &Copy) -> bool {
        self.destination == copy.destination || self.destination == copy.destination_repository()
    }

    /// Whether copying this image again would fail again: it does not exist, or we may not have it.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        // Registries' error codes and messages as skopeo prints them; see the distribution specification's error codes.
        const PERMANENT: [&str; 9] = [
            CANNOT_CREATE,
            // Docker Hub's: it comes back after hours.
            "pull rate limit",
            "manifest unknown",
            "name unknown",
            "repository name not known",
            "requested access to the resource is denied",
            "not authorized to perform",
            "tag is immutable",
            "unsupported manifest",
        ];
        self.error.as_deref().is_some_and(|error| {
            let error = error.to_lowercase();
            PERMANENT.iter().any(|words| error.contains(words))
        })
    }
}

/// The message of the last entry that skopeo logged, without time and level.
fn last_words(text: &str) -> String {
    match text.rsplit_once("msg=\"") {
        Some((_, message)) => {
            let message = message.trim_end();
            message.strip_suffix('"').unwrap_or(message).replace("\\\"", "\"")
        }
        None => text.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(source: &str, destination: &str) -> Copy {
        Copy { source: source.into(), destination: destination.into(), ..Copy::default() }
    }

    #[test]
    fn a_batch_names_each_repository_once() {
        let copies = [
            copy("s/a@sha256:01", "d/a:1"),
            Copy { manifests: 3, ..copy("s/a@sha256:02", "d/a:2") },
            copy("s/a@sha256:03", "d/a@sha256:03"),
            copy("h:5000/b/c:latest", "d/b/c:latest"),
        ];
        assert_eq!(
            encode(&copies),
            "> s/a d/a\nsha256:01 1\nsha256:02 2 3\nsha256:03 -\n> h:5000/b/c d/b/c\n- latest\n"
        );
    }

    #[test]
    fn the_length_in_json_is_what_json_makes_of_it() {
        let line = line(&copy("s/a@sha256:01", "d/a:1"));
        let json = serde_json::to_string(&line).expect("a string is JSON");
        assert_eq!(json_length(&line), json.len() - 2);
    }

    #[test]
    fn a_failed_copys_line_gives_skopeos_last_words() {
        let line = "Error\td/a:1\t3\ttime=\"2026-11-20T10:00:00Z\" level=warning msg=\"try again\" \
                    time=\"2026-11-20T10:00:01Z\" level=fatal msg=\"initializing source docker://s/a:1: reading manifest 1 in s/a: manifest unknown: not \\\"there\\\"\"";
        let report = CopyReport::parse(line).expect("it is about an image");
        assert_eq!(
            report.error.as_deref(),
            Some("initializing source docker://s/a:1: reading manifest 1 in s/a: manifest unknown: not \"there\"")
        );
        assert_eq!(report.seconds, 3);
        assert!(report.is_permanent());
    }

    #[test]
    fn a_line_that_is_not_about_an_image_is_passed_over() {
        for line in ["", "Getting image source signatures", "Done", "Done\td/a:1", "Fine\td/a:1\t3"] {
            assert_eq!(CopyReport::parse(line), None, "{line:?}");
        }
        assert_eq!(
            CopyReport::parse("Done\td/a:1\t0\n"),
            Some(CopyReport { destination: "d/a:1".into(), seconds: 0, error: None })
        );
    }

    #[test]
    fn a_refusal_is_about_all_images_of_its_repository_and_not_worth_another_try() {
        let refusal = refusal("d/a", "AccessDenied: ecr:CreateRepository on a failed:\nno");
        assert_eq!(
            refusal,
            "! d/a the repository cannot be created: AccessDenied: ecr:CreateRepository on a failed: no\n"
        );
        let why = refusal.trim_start_matches("! d/a ");
        let report = CopyReport::parse(&format!("Error\td/a\t0\t{why}")).expect("it is about images");
        assert!(report.is_permanent());
        for (destination, expected) in [("d/a:1", true), ("d/a@sha256:01", true), ("d/ab:1", false)] {
            assert_eq!(report.is_about(&copy("s/a@sha256:01", destination)), expected, "{destination}");
        }
    }

    #[test]
    fn a_limit_that_lasts_for_hours_is_not_worth_another_try() {
        let line = "Error\td/a:1\t3\ttime=\"2026-11-20T10:00:01Z\" level=fatal msg=\"initializing source docker://nginx:1: \
                    reading manifest 1 in docker.io/library/nginx: toomanyrequests: You have reached your unauthenticated pull \
                    rate limit. https://www.docker.com/increase-rate-limit\"";
        assert!(CopyReport::parse(line).expect("it is about an image").is_permanent());
    }

    #[test]
    fn a_fault_of_the_network_is_not_permanent() {
        let report =
            CopyReport::parse("Error\td/a:1\t3\tread: connection reset by peer").expect("it is about an image");
        assert!(!report.is_permanent());
    }
}
