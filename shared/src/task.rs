//! The protocol of the task that copies: what launch-task tells its script, and what the script's log says.
//!
//! The script itself is in the template's task definition. It is told what to copy in the variable `COPIES`, and
//! prints one line for each image.

use serde::{Deserialize, Serialize};

use crate::plan::{Image, RepositoryCopy};
use crate::reference::{ImageReference, Repository};
use crate::text::Excerpt;

/// The status of an image that is at the destination: in the script's log and in the table.
pub const DONE: &str = "Done";

/// The status of an image that is not.
pub const ERROR: &str = "Error";

/// The variable with the batch: [`encode`].
pub const COPIES: &str = "COPIES";

/// The variable with the state machine's task token, by which a stopped task is answered for.
pub const TASK_TOKEN: &str = "TASK_TOKEN";

/// The variable with the milliseconds that each manifest takes at least: [`Batch::pace`](crate::plan::Batch::pace).
pub const PACE: &str = "PACE";

/// The variable with the repositories of the batch that cannot be written, and why: a JSON array of [`Refusal`]. The script
/// does not look at it; it is there for whoever answers for the task.
pub const REFUSALS: &str = "REFUSALS";

/// How many characters [`COPIES`] and [`REFUSALS`] may take inside the JSON of RunTask's overrides.
///
/// The [overrides may have 8,192](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_TaskOverride.html);
/// the [token up to 2,048](https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskSuccess.html)
/// of these, and the JSON around the two less than 300.
pub const COPIES_LIMIT: usize = 5_800;

/// What takes the place of a tag that an image does not have; no tag begins with it.
const NONE: &str = "-";

/// The line at which the script waits until all copies above it have ended.
const BARRIER: &str = "=\n";

/// The most manifests that a line says; each takes the task's pace.
const MANIFESTS: u32 = 9_999;

/// The line that numbers the repositories of the copies behind it, from 1: `> source-repository destination-repository`.
fn header(copy: &RepositoryCopy) -> String {
    format!("> {} {}\n", copy.source, copy.destination)
}

/// The line of one image: `repository digest tag manifests`, with the repository's number and the digest's hexadecimal
/// digits.
fn line(repository: usize, image: &Image) -> String {
    let tag = image.tag.as_ref().map_or(NONE, |tag| tag.as_str());
    format!("{repository} {} {tag} {}\n", image.digest.hex(), image.manifests.clamp(1, MANIFESTS))
}

/// How many characters a repository takes in JSON besides its images.
#[must_use]
pub fn header_length(copy: &RepositoryCopy) -> usize {
    json_length(&header(copy))
}

/// The most characters that an image takes in JSON.
#[must_use]
pub fn line_length(image: &Image) -> usize {
    // More repositories than this do not fit.
    json_length(&line(100, image))
}

/// How many characters a line takes in JSON, where its end is written as two.
fn json_length(line: &str) -> usize {
    line.len() + 1
}

/// The value of [`COPIES`].
///
/// Images of a repository share layers. Copied at the same time, each would bring them: so the first of each repository
/// goes ahead, and the others find there what it has brought.
#[must_use]
pub fn encode(repositories: &[RepositoryCopy]) -> String {
    let mut text: String = repositories.iter().map(header).collect();
    let numbered = || repositories.iter().enumerate().map(|(index, copy)| (index + 1, &copy.images));
    text.extend(numbered().flat_map(|(number, images)| images.first().map(|image| line(number, image))));
    let rest: String =
        numbered().flat_map(|(number, images)| images.iter().skip(1).map(move |it| line(number, it))).collect();
    if !rest.is_empty() {
        text.push_str(BARRIER);
        text.push_str(&rest);
    }
    text
}

/// The characters that [`encode`] adds to those of headers and lines.
pub const BARRIER_LENGTH: usize = BARRIER.len() + 1;

/// A repository at the destination that cannot be written, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The repository.
    pub repository: Repository,
    /// What is wrong.
    pub error: Excerpt,
}

/// The value of [`REFUSALS`], with the errors cut until it takes at most `limit` characters in JSON.
#[must_use]
pub fn encode_refusals(refusals: &[Refusal], limit: usize) -> String {
    let mut length = Excerpt::LIMIT;
    loop {
        let cut = |it: &Refusal| Refusal { repository: it.repository.clone(), error: it.error.cut(length) };
        let text = to_json(&refusals.iter().map(cut).collect::<Vec<_>>());
        if to_json(&text).len() <= limit || length == 0 {
            return text;
        }
        length /= 2;
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it has string keys only, so it is JSON")
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
    pub reason: Excerpt,
    /// Where its log is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// What the log says of each image.
    pub copies: Vec<CopyReport>,
    /// What could not be written at all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
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
    /// The image at the destination, by tag, or by digest where it has none.
    pub destination: ImageReference,
    /// How long skopeo took.
    pub seconds: u64,
    /// skopeo's own last words, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Excerpt>,
}

impl CopyReport {
    /// Reads a line of the script: `Done`, the destination and the seconds, or `Error` and skopeo's words behind them,
    /// separated by tabs. `None` for any other line: it is not about an image.
    ///
    /// # Errors
    /// With the line, if the rest of it does not have this form.
    pub fn parse(line: &str) -> Option<Result<Self, Excerpt>> {
        let mut fields = line.splitn(4, '\t');
        let failed = match fields.next()? {
            DONE => false,
            ERROR => true,
            _ => return None,
        };
        let mut read = || {
            let destination = fields.next()?.parse().ok()?;
            let seconds = fields.next()?.trim().parse().ok()?;
            let error = failed.then(|| Excerpt::new(&last_words(fields.next().unwrap_or_default())));
            Some(Self { destination, seconds, error })
        };
        Some(read().ok_or_else(|| Excerpt::new(line)))
    }

    /// Whether copying this image again would fail again: it does not exist, or we may not have it.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        // Registries' error codes and messages as skopeo prints them; see the distribution specification's error codes.
        const PERMANENT: [&str; 11] = [
            // Docker Hub's: it comes back after hours.
            "pull rate limit",
            "manifest unknown",
            "name unknown",
            "repository name not known",
            "requested access to the resource is denied",
            "not authorized to perform",
            "tag is immutable",
            "unsupported manifest",
            // ECR's, with 405, of a manifest that it does not take, such as some signatures and SBOMs.
            "invalid parameter at 'imagemanifest'",
            // The signature policy's.
            "source image rejected",
            "is rejected by policy",
        ];
        self.error.as_ref().is_some_and(|error| {
            let error = error.as_str().to_lowercase();
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
    use crate::reference::Digest;

    fn image(content: &str, tag: Option<&str>, manifests: u32) -> Image {
        let tag = tag.map(|tag| tag.parse().expect(tag));
        Image { digest: Digest::of(content.as_bytes()), tag, bytes: 0, manifests, reason: Default::default() }
    }

    fn copy(source: &str, destination: &str, images: Vec<Image>) -> RepositoryCopy {
        let [source, destination] = [source, destination].map(|text| text.parse::<Repository>().expect(text));
        RepositoryCopy { source, image: destination.name.clone(), destination, images }
    }

    fn report(line: &str) -> CopyReport {
        CopyReport::parse(line).expect("it is about an image").expect("it can be read")
    }

    #[test]
    fn the_first_image_of_each_repository_goes_ahead_of_the_others() {
        let copies = [
            copy(
                "s.example/a",
                "d.example/a",
                vec![image("1", Some("1"), 0), image("2", Some("2"), 3), image("3", None, 1)],
            ),
            copy("h.example:5000/b/c", "d.example/b/c", vec![image("1", Some("latest"), 20_000)]),
        ];
        let hex = |content: &str| Digest::of(content.as_bytes()).hex();
        let expected = format!(
            "> s.example/a d.example/a\n> h.example:5000/b/c d.example/b/c\n1 {} 1 1\n2 {} latest 9999\n=\n1 {} 2 3\n1 {} - 1\n",
            hex("1"),
            hex("1"),
            hex("2"),
            hex("3"),
        );
        let encoded = encode(&copies);
        assert_eq!(encoded, expected);

        let headers: usize = copies.iter().map(header_length).sum();
        let lines: usize = copies.iter().flat_map(|copy| &copy.images).map(line_length).sum();
        let json = serde_json::to_string(&encoded).expect("a string is JSON");
        assert!(json.len() - 2 <= headers + lines + BARRIER_LENGTH);
        assert!(!encode(&copies[1..]).contains('='), "there is nobody to wait for");
    }

    #[test]
    fn refusals_are_cut_to_what_there_is_room_for() {
        let refusal = |name: &str| Refusal {
            repository: format!("d.example/{name}").parse().expect(name),
            error: Excerpt::new(&"\"no\" ".repeat(300)),
        };
        let refusals = ["a", "b"].map(refusal);
        for limit in [200, 1_000, 10_000] {
            let text = encode_refusals(&refusals, limit);
            assert!(serde_json::to_string(&text).expect("a string is JSON").len() <= limit, "{limit}");
            let back: Vec<Refusal> = serde_json::from_str(&text).expect("it is JSON");
            assert_eq!(
                back.iter().map(|it| &it.repository).collect::<Vec<_>>(),
                [&refusals[0].repository, &refusals[1].repository]
            );
        }
    }

    #[test]
    fn a_failed_copys_line_gives_skopeos_last_words() {
        let line = "Error\td.example/a:1\t3\ttime=\"2026-11-20T10:00:00Z\" level=warning msg=\"try again\" \
                    time=\"2026-11-20T10:00:01Z\" level=fatal msg=\"initializing source docker://s/a:1: reading manifest 1 in s/a: manifest unknown: not \\\"there\\\"\"";
        let report = report(line);
        assert_eq!(
            report.error.as_ref().map(Excerpt::as_str),
            Some("initializing source docker://s/a:1: reading manifest 1 in s/a: manifest unknown: not \"there\"")
        );
        assert_eq!(report.seconds, 3);
        assert!(report.is_permanent());
    }

    #[test]
    fn a_line_that_is_not_about_an_image_is_passed_over() {
        for line in ["", "Getting image source signatures", "Fine\td.example/a:1\t3"] {
            assert_eq!(CopyReport::parse(line), None, "{line:?}");
        }
        let destination = "d.example/a:1".parse().expect("it is an image");
        assert_eq!(report("Done\td.example/a:1\t0\n"), CopyReport { destination, seconds: 0, error: None });
    }

    #[test]
    fn a_line_about_an_image_that_cannot_be_read_is_an_error_with_the_line() {
        for line in ["Done", "Done\td.example/a:1", "Done\td.example/a b\t3", "Error\td.example/a:1\tsoon"] {
            assert_eq!(CopyReport::parse(line), Some(Err(line.into())), "{line:?}");
        }
    }

    #[test]
    fn a_limit_that_lasts_for_hours_is_not_worth_another_try() {
        let line = "Error\td.example/a:1\t3\ttime=\"2026-11-20T10:00:01Z\" level=fatal msg=\"initializing source docker://nginx:1: \
                    reading manifest 1 in docker.io/library/nginx: toomanyrequests: You have reached your unauthenticated pull \
                    rate limit. https://www.docker.com/increase-rate-limit\"";
        assert!(report(line).is_permanent());
    }

    #[test]
    fn a_manifest_that_ecr_does_not_take_is_not_worth_another_try() {
        let line = "Error\td.example/a:1\t3\ttime=\"2026-11-20T10:00:01Z\" level=fatal msg=\"writing manifest: uploading manifest \
                    sha256:08c1 to d.example/a: unsupported: Invalid parameter at 'ImageManifest' failed to satisfy constraint: \
                    'Invalid JSON syntax'\"";
        assert!(report(line).is_permanent());
    }

    #[test]
    fn a_fault_of_the_network_is_not_permanent() {
        let report = report("Error\td.example/a:1\t3\tread: connection reset by peer");
        assert!(!report.is_permanent());
    }

    #[test]
    fn a_header_takes_as_many_characters_in_json_as_is_said() {
        let empty = copy("s.example/a", "d.example/a", Vec::new());
        let json = to_json(&encode(std::slice::from_ref(&empty)));
        assert_eq!(json.len() - r#""""#.len(), header_length(&empty));
    }

    #[test]
    fn refusals_are_cut_no_more_than_they_must_be() {
        let refusal =
            |error: &str| Refusal { repository: "d.example/a".parse().expect("it is one"), error: error.into() };
        let text = "no".repeat(300);
        let errors = |limit| -> Vec<Refusal> {
            serde_json::from_str(&encode_refusals(&[refusal(&text)], limit)).expect("it is JSON")
        };
        assert_eq!(errors(1_000), [refusal(&text)]);
        let cut = errors(500)[0].error.as_str().len();
        assert!((200..600).contains(&cut), "{cut}");
    }
}
