//! The protocol of the copying task. Its script, in the template's task definition, reads the variable [`COPIES`], and logs one
//! line for each image.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::plan::{Image, RepositoryCopy};
use crate::reference::{ImageReference, Repository};
use crate::text::Excerpt;

/// The status of a copied image, in the script's log and in the table.
pub const DONE: &str = "Done";

/// The status of a failed image, in the script's log and in the table.
pub const ERROR: &str = "Error";

/// The variable with the images to copy, written by [`encode`].
pub const COPIES: &str = "COPIES";

/// The variable with the task token of the state. launch-task reads it when the task has stopped.
pub const TASK_TOKEN: &str = "TASK_TOKEN";

/// The variable with the minimum of milliseconds per manifest: [`Batch::pace`](crate::plan::Batch::pace).
pub const PACE: &str = "PACE";

/// The variable with the batch's id.
pub const BATCH: &str = "BATCH";

/// The variable with the batch's repositories that cannot be written: a JSON array of [`Refusal`]. launch-task reads it when
/// the task has stopped. The script ignores it.
pub const REFUSALS: &str = "REFUSALS";

/// The characters that [`COPIES`] and [`REFUSALS`] can use in the JSON of RunTask's overrides.
///
/// The overrides have [at most 8,192](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_TaskOverride.html). The
/// token uses [up to 2,048](https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskSuccess.html) of these,
/// and the JSON around them fewer than 300.
pub const COPIES_LIMIT: usize = 5_800;

/// Stands for the tag of an untagged image. No tag begins with it.
const NO_TAG: &str = "-";

/// A line at which the script waits until all copies above it have ended.
const BARRIER: &str = "=\n";

/// The most manifests of a line.
const MANIFESTS: u32 = 9_999;

/// The line of a repository: `> source-repository destination-repository`. Lines of images refer to it by its number, from 1.
fn header(copy: &RepositoryCopy) -> String {
    format!("> {} {}\n", copy.source, copy.destination)
}

/// The line of an image: `repository digest tag manifests`, with the repository's number and the digest's hexadecimal digits.
fn line(repository: usize, image: &Image) -> String {
    let tag = image.tag.as_ref().map_or(NO_TAG, |tag| tag.as_str());
    format!("{repository} {} {tag} {}\n", image.digest.hex(), image.manifests.clamp(1, MANIFESTS))
}

/// The length of a repository's line in JSON, in characters.
pub fn header_length(copy: &RepositoryCopy) -> usize {
    json_length(&header(copy))
}

/// The maximum length of an image's line in JSON, in characters.
pub fn line_length(image: &Image) -> usize {
    // The limit is reached before a repository's number has four digits.
    json_length(&line(100, image))
}

/// The length of a line in JSON, where a newline has two characters.
fn json_length(line: &str) -> usize {
    line.len() + 1
}

/// The value of [`COPIES`]. The first image of each repository is copied before the others, so that layers that they share are
/// uploaded once.
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

/// The characters in JSON that [`encode`] adds to the lines of repositories and images.
pub const BARRIER_LENGTH: usize = BARRIER.len() + 1;

/// The `startedBy` of an execution's tasks: its name in
/// [characters that ECS allows](https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RunTask.html), and a hash,
/// because two state machines with a common cluster can have executions of the same name.
pub fn started_by(state_machine: &str, execution: &str) -> String {
    let is_allowed = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    let name: String = execution.chars().map(|c| if is_allowed(&c) { c } else { '-' }).take(80).collect();
    let hash = hex::encode(Sha256::digest(format!("{state_machine} {execution}")));
    format!("{name}-{}", &hash[..40])
}

/// A repository at the destination that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The repository.
    pub repository: Repository,
    /// Why it cannot be written.
    pub error: Excerpt,
}

/// The value of [`REFUSALS`]. Errors are shortened until it has at most `limit` characters in JSON.
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

/// launch-task's report on a task that has stopped or was not started: the result of its state, or the cause of its failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// The task's ARN; `None` if no task was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The container's exit code; `None` if it never ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// ECS's reason why the task stopped, or our reason why no task was started.
    pub reason: Excerpt,
    /// The task's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// The images in the task's log.
    pub copies: Vec<CopyReport>,
    /// Repositories that cannot be written.
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

/// The result of one copy, from the task's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// The image at the destination, by tag, or by digest if it has no tag.
    pub destination: ImageReference,
    /// The duration of the copy.
    pub seconds: u64,
    /// skopeo's error, if the copy failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Excerpt>,
}

impl CopyReport {
    /// Parses a line of the script: `Done`, the destination and the seconds; or `Error`, the same, and skopeo's output. They
    /// are separated by tabs. `None` if the line begins with neither.
    ///
    /// # Errors
    /// The line, if the rest of it is invalid.
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
            let error = failed.then(|| Excerpt::new(&last_message(fields.next().unwrap_or_default())));
            Some(Self { destination, seconds, error })
        };
        Some(read().ok_or_else(|| Excerpt::new(line)))
    }

    /// Whether a retry would fail again, for example because the image does not exist.
    pub fn is_permanent(&self) -> bool {
        // Registries' error codes and messages, as skopeo prints them.
        const PERMANENT: [&str; 11] = [
            // Docker Hub: it lasts for hours.
            "pull rate limit",
            "manifest unknown",
            "name unknown",
            "repository name not known",
            "requested access to the resource is denied",
            "not authorized to perform",
            "tag is immutable",
            "unsupported manifest",
            // ECR, with 405: it does not support this manifest, for example of some signatures and SBOMs.
            "invalid parameter at 'imagemanifest'",
            // The signature policy.
            "source image rejected",
            "is rejected by policy",
        ];
        self.error.as_ref().is_some_and(|error| {
            let error = error.as_str().to_lowercase();
            PERMANENT.iter().any(|words| error.contains(words))
        })
    }
}

/// The message of the last line of skopeo's log, without time and level.
fn last_message(text: &str) -> String {
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
    fn the_first_image_of_each_repository_is_copied_before_the_others() {
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
        assert!(!encode(&copies[1..]).contains('='), "a barrier is not needed");
    }

    #[test]
    fn refusals_are_shortened_to_the_limit() {
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
    fn the_error_of_a_failed_copy_is_skopeos_last_message() {
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
    fn a_line_that_is_not_about_an_image_is_ignored() {
        for line in ["", "Getting image source signatures", "Fine\td.example/a:1\t3"] {
            assert_eq!(CopyReport::parse(line), None, "{line:?}");
        }
        let destination = "d.example/a:1".parse().expect("it is an image");
        assert_eq!(report("Done\td.example/a:1\t0\n"), CopyReport { destination, seconds: 0, error: None });
    }

    #[test]
    fn an_invalid_line_about_an_image_is_an_error_with_the_line() {
        for line in ["Done", "Done\td.example/a:1", "Done\td.example/a b\t3", "Error\td.example/a:1\tsoon"] {
            assert_eq!(CopyReport::parse(line), Some(Err(line.into())), "{line:?}");
        }
    }

    #[test]
    fn docker_hubs_pull_limit_is_not_retried() {
        let line = "Error\td.example/a:1\t3\ttime=\"2026-11-20T10:00:01Z\" level=fatal msg=\"initializing source docker://nginx:1: \
                    reading manifest 1 in docker.io/library/nginx: toomanyrequests: You have reached your unauthenticated pull \
                    rate limit. https://www.docker.com/increase-rate-limit\"";
        assert!(report(line).is_permanent());
    }

    #[test]
    fn a_manifest_that_ecr_does_not_support_is_not_retried() {
        let line = "Error\td.example/a:1\t3\ttime=\"2026-11-20T10:00:01Z\" level=fatal msg=\"writing manifest: uploading manifest \
                    sha256:08c1 to d.example/a: unsupported: Invalid parameter at 'ImageManifest' failed to satisfy constraint: \
                    'Invalid JSON syntax'\"";
        assert!(report(line).is_permanent());
    }

    #[test]
    fn a_network_error_is_retried() {
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

    #[test]
    fn started_by_has_only_characters_that_ecs_allows_and_is_unique_to_a_state_machine() {
        let of = |machine: &str| started_by(machine, "Täglich 08:00_x");
        assert!(of("arn:a").starts_with("T-glich-08-00_x-"));
        assert_ne!(of("arn:a"), of("arn:b"), "two stacks with a common cluster have executions of the same name");
        assert_ne!(started_by("arn:a", &"x".repeat(200)), started_by("arn:a", &"x".repeat(201)));
        assert!(started_by("arn:a", &"x".repeat(200)).len() <= 128);
    }
}
