//! What became of each image of a batch: what the destination answers counts, and not what the task says.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use shared::Result;
use shared::ecr::{Found, ImageId, Registry};
use shared::manifest::Manifest;
use shared::plan::{Batch, Copy};
use shared::task::Report;

/// How many of a batch's repositories are looked at at once.
const CONCURRENCY: usize = 10;

/// The most characters of an error message that are kept.
const MESSAGE_LIMIT: usize = 1_000;

/// What the state machine sends: the batch, and how its copying ended.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// The execution's name.
    pub execution: String,
    /// What was to be copied.
    pub batch: Batch,
    /// launch-task's report, where the task succeeded.
    pub result: Option<Value>,
    /// What the state machine caught, where it did not.
    pub failure: Option<Failure>,
}

/// An error as Step Functions catches it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Failure {
    /// The error's name.
    pub error: String,
    /// launch-task's report, or what else there is to say.
    #[serde(default)]
    pub cause: String,
}

impl Request {
    /// What launch-task reported; of a failure that it did not report itself, the cause is the reason.
    #[must_use]
    pub fn report(&self) -> Report {
        let Some(failure) = &self.failure else {
            return self
                .result
                .as_ref()
                .and_then(|result| serde_json::from_value(result.clone()).ok())
                .unwrap_or_default();
        };
        let mut report: Report = serde_json::from_str(&failure.cause).unwrap_or_default();
        if report.reason.is_empty() {
            let cause: Value = serde_json::from_str(&failure.cause).unwrap_or_default();
            // A Lambda's own error.
            report.reason = cause["errorMessage"].as_str().unwrap_or(&failure.cause).to_owned();
        }
        report.reason = format!("{}: {}", failure.error, report.reason);
        report
    }
}

/// What became of one image.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// As planned.
    pub copy: Copy,
    /// The digest at the destination, or why the image is not there.
    pub status: Result<Done, String>,
    /// How long skopeo took, where the task's log tells.
    pub seconds: Option<u64>,
}

/// An image that is at the destination.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// `sha256:…`
    pub digest: String,
    /// The compressed size; of an index, that of all its images.
    pub bytes: u64,
}

/// Looks at the destination for each image of the batch.
///
/// # Errors
/// When the destination cannot tell: then nothing is known, and nothing is to be recorded.
pub async fn of_batch(destination: &Registry, request: &Request) -> Result<Vec<Outcome>> {
    let report = request.report();
    let mut repositories: BTreeMap<&str, Vec<&Copy>> = BTreeMap::new();
    for copy in &request.batch.copies {
        repositories.entry(copy.destination_name()).or_default().push(copy);
    }
    let outcomes: Vec<Vec<Outcome>> = stream::iter(repositories)
        .map(async |(name, copies)| {
            let (found, sizes) = look(destination, name, &copies).await?;
            Ok::<_, shared::Error>(copies.iter().map(|copy| outcome(copy, &found, &sizes, &report)).collect())
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    Ok(outcomes.into_iter().flatten().collect())
}

/// What of `copies` the repository holds, and the bytes of each image by digest.
async fn look(
    destination: &Registry,
    repository: &str,
    copies: &[&Copy],
) -> Result<(HashMap<ImageId, Found>, HashMap<String, u64>)> {
    let ids: Vec<_> = copies.iter().filter(|copy| copy.error.is_none()).map(|copy| id(copy)).collect();
    let found = destination.find(repository, &ids).await?.unwrap_or_default();
    let children: Vec<_> = found
        .values()
        .flat_map(|image| &image.manifest.manifests)
        .map(|child| ImageId { tag: None, digest: Some(child.digest.clone()) })
        .collect();
    let children: HashMap<String, Manifest> = destination
        .find(repository, &children)
        .await?
        .unwrap_or_default()
        .into_values()
        .map(|image| (image.digest, image.manifest))
        .collect();
    let sizes = found
        .values()
        .map(|image| {
            let of_index = image.manifest.manifests.iter().filter_map(|child| children.get(&child.digest));
            (image.digest.clone(), Manifest::blob_bytes(of_index.chain([&image.manifest])))
        })
        .collect();
    Ok((found, sizes))
}

fn id(copy: &Copy) -> ImageId {
    ImageId {
        tag: copy.destination_tag().map(str::to_owned),
        digest: Some(copy.digest.clone()).filter(|digest| !digest.is_empty()),
    }
}

fn outcome(copy: &Copy, found: &HashMap<ImageId, Found>, sizes: &HashMap<String, u64>, report: &Report) -> Outcome {
    let reported = report.copies.iter().find(|reported| reported.is_about(copy));
    let status = match (&copy.error, found.get(&id(copy))) {
        (Some(error), _) => Err(error.clone()),
        // Without a digest to expect, an image that is there may be an older one: here the task must vouch for it.
        (None, Some(_)) if copy.digest.is_empty() && reported.is_none_or(|reported| reported.error.is_some()) => {
            Err(reason(copy, reported.and_then(|reported| reported.error.as_deref()), report))
        }
        (None, Some(image)) => {
            Ok(Done { digest: image.digest.clone(), bytes: sizes.get(&image.digest).copied().unwrap_or(copy.bytes) })
        }
        (None, None) => Err(match reported {
            Some(reported) if reported.error.is_none() => {
                format!("skopeo reported success, but {} does not have {}", copy.destination, copy.digest)
            }
            reported => reason(copy, reported.and_then(|reported| reported.error.as_deref()), report),
        }),
    };
    Outcome {
        copy: copy.clone(),
        status: status.map_err(|mut error| {
            error.truncate(error.floor_char_boundary(MESSAGE_LIMIT));
            error
        }),
        seconds: reported.map(|reported| reported.seconds),
    }
}

/// skopeo's own words where there are any; otherwise why the task ended without a word about this image.
fn reason(copy: &Copy, words: Option<&str>, report: &Report) -> String {
    match (words, report.exit_code) {
        (Some(words), _) => words.to_owned(),
        (None, Some(code)) => format!("{} (exit code {code})", report.reason),
        (None, None) if report.reason.is_empty() => format!("{} is not there, and nobody said why", copy.destination),
        (None, None) => report.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::operation::batch_get_image::BatchGetImageOutput;
    use aws_sdk_ecr::types::{Image, ImageFailure, ImageIdentifier};
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use serde_json::json;

    use super::*;

    const INDEX: &str = r#"{"manifests": [{"digest": "sha256:arm"}, {"digest": "sha256:amd"}]}"#;
    const ARM: &str =
        r#"{"config": {"digest": "sha256:c1", "size": 1}, "layers": [{"digest": "sha256:base", "size": 100}]}"#;
    const AMD: &str =
        r#"{"config": {"digest": "sha256:c2", "size": 2}, "layers": [{"digest": "sha256:base", "size": 100}]}"#;

    /// A destination that has `app:1` as an index of two images, and nothing else.
    fn destination() -> Registry {
        let rule = mock!(aws_sdk_ecr::Client::batch_get_image).then_compute_output(|request| {
            let mut answer = BatchGetImageOutput::builder();
            for id in request.image_ids() {
                let manifest = match id.image_digest() {
                    Some("sha256:1") if id.image_tag() == Some("1") => INDEX,
                    Some("sha256:arm") => ARM,
                    Some("sha256:amd") => AMD,
                    _ => {
                        answer = answer.failures(ImageFailure::builder().image_id(id.clone()).build());
                        continue;
                    }
                };
                answer = answer.images(Image::builder().image_id(id.clone()).image_manifest(manifest).build());
            }
            answer.build()
        });
        Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]), None)
    }

    fn request(rest: &Value) -> Request {
        let copy = |tag: &str| {
            json!({"source": format!("s/app@sha256:{tag}"), "destination": format!("d/app:{tag}"),
                   "digest": format!("sha256:{tag}"), "image": "app", "tag": tag, "bytes": 5})
        };
        let mut request =
            json!({"execution": "run", "batch": {"id": "1", "bytes": 10, "copies": [copy("1"), copy("2")]}});
        request
            .as_object_mut()
            .zip(rest.as_object())
            .map(|(request, rest)| request.extend(rest.clone()))
            .expect("objects");
        serde_json::from_value(request).expect("it is a request")
    }

    async fn statuses(rest: Value) -> Vec<Result<Done, String>> {
        let outcomes = of_batch(&destination(), &request(&rest)).await.expect("ECR answers");
        outcomes.into_iter().map(|outcome| outcome.status).collect()
    }

    #[tokio::test]
    async fn what_the_destination_has_is_done_whatever_the_task_says_with_the_bytes_of_all_platforms() {
        let cause = json!({"exitCode": 1, "reason": "r", "copies": [
            {"destination": "d/app:1", "seconds": 1, "error": "timeout"},
            {"destination": "d/app:2", "seconds": 2, "error": "manifest unknown"}
        ]});
        let statuses = statuses(json!({"failure": {"Error": "TaskFailed", "Cause": cause.to_string()}})).await;
        assert_eq!(statuses[0], Ok(Done { digest: "sha256:1".into(), bytes: 103 }));
        assert_eq!(statuses[1], Err("manifest unknown".into()));
    }

    #[tokio::test]
    async fn what_the_destination_lacks_is_an_error_whatever_the_task_says() {
        let result = json!({"exitCode": 0, "copies": [{"destination": "d/app:2", "seconds": 2}]});
        let statuses = statuses(json!({"result": result})).await;
        assert_eq!(statuses[1], Err("skopeo reported success, but d/app:2 does not have sha256:2".into()));
    }

    #[tokio::test]
    async fn a_task_that_ended_without_a_word_gives_its_own_reason() {
        let killed = json!({"exitCode": 137, "reason": "OutOfMemoryError"}).to_string();
        let lambda =
            json!({"errorType": "AccessDenied", "errorMessage": "ecr:CreateRepository on app failed"}).to_string();
        for (error, cause, message) in [
            ("TaskFailed", killed.as_str(), "TaskFailed: OutOfMemoryError (exit code 137)"),
            ("AccessDenied", &lambda, "AccessDenied: ecr:CreateRepository on app failed"),
            ("States.Timeout", "", "States.Timeout: "),
        ] {
            let statuses = statuses(json!({"failure": {"Error": error, "Cause": cause}})).await;
            assert_eq!(statuses[1], Err(message.into()));
        }
    }

    #[tokio::test]
    async fn a_copy_that_failed_in_the_plan_keeps_its_reason() {
        let mut request = request(&json!({"result": {}}));
        request.batch.copies[0].error = Some("its images cannot be listed".into());
        let outcomes = of_batch(&destination(), &request).await.expect("ECR answers");
        assert_eq!(outcomes[0].status, Err("its images cannot be listed".into()));
    }

    #[tokio::test]
    async fn an_image_of_unknown_digest_is_done_only_if_the_task_copied_it() {
        let rule = mock!(aws_sdk_ecr::Client::batch_get_image).then_compute_output(|request| {
            let ids = request.image_ids().iter();
            let images = ids.map(|id| {
                let id =
                    ImageIdentifier::builder().set_image_tag(id.image_tag.clone()).image_digest("sha256:old").build();
                Image::builder().image_id(id).image_manifest("{}").build()
            });
            BatchGetImageOutput::builder().set_images(Some(images.collect())).build()
        });
        let destination = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]), None);
        let report = json!({"copies": [{"destination": "d/app:1", "seconds": 1}]});
        let mut request = request(&json!({"result": report}));
        for copy in &mut request.batch.copies {
            copy.digest.clear();
        }
        let outcomes = of_batch(&destination, &request).await.expect("ECR answers");
        assert!(outcomes[0].status.is_ok());
        assert!(outcomes[1].status.is_err());
    }
}
