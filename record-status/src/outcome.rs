//! The outcome of each image of a batch. It depends on what the destination has, and not on the task's report.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use shared::Result;
use shared::ecr::{Found, ImageId, Registry};
use shared::manifest::{Blobs, Manifest};
use shared::plan::{Batch, Image, RepositoryCopy};
use shared::reference::Digest;
use shared::task::Report;
use shared::text::Excerpt;

/// How many repositories of a batch are checked at once.
const CONCURRENCY: usize = 10;

/// The state machine's request.
#[derive(Debug, Deserialize)]
#[serde(from = "Payload")]
pub struct Request {
    /// The execution's name.
    pub execution: String,
    pub batch: Batch,
    /// launch-task's report. Without one, its reason is the error that the state machine caught.
    pub report: Report,
}

#[derive(Deserialize)]
struct Payload {
    execution: String,
    batch: Batch,
    /// launch-task's report, if the task succeeded.
    result: Option<Value>,
    /// The error that the state machine caught otherwise.
    failure: Option<Caught>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Caught {
    error: String,
    /// launch-task's report, a Lambda's own error, or text.
    #[serde(default)]
    cause: String,
}

/// [The error of a Lambda](https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html#runtimes-api-invokeerror).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LambdaError {
    error_message: String,
}

impl From<Payload> for Request {
    fn from(Payload { execution, batch, result, failure }: Payload) -> Self {
        let report = match failure {
            Some(caught) => caught.report(),
            None => result.map(report).unwrap_or_default(),
        };
        Self { execution, batch, report }
    }
}

impl Caught {
    fn report(self) -> Report {
        let report = match serde_json::from_str(&self.cause) {
            Ok(cause @ Value::Object(_)) => match LambdaError::deserialize(&cause) {
                Ok(LambdaError { error_message }) => Report { reason: error_message.into(), ..Report::default() },
                Err(_) => report(cause),
            },
            _ => Report { reason: self.cause.into(), ..Report::default() },
        };
        let reason = Excerpt::new(&format!("{}: {}", self.error, report.reason));
        Report { reason, ..report }
    }
}

/// Parses launch-task's report. The destination is checked in any case, so an invalid report is not fatal: it is logged, and
/// becomes the error of each image that the destination does not have.
fn report(report: Value) -> Report {
    serde_json::from_value(report).unwrap_or_else(|error| {
        tracing::error!(%error, "cannot parse the report of launch-task");
        let reason = format!("The report of launch-task cannot be read: {error}");
        Report { reason: reason.into(), ..Report::default() }
    })
}

/// The outcomes of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Of the batch's images and failures.
    pub counted: Vec<Outcome>,
    /// Of images that the destination already had, although their rows say `Error`.
    pub present: Vec<Outcome>,
}

/// The outcome of an image, or of a pattern that failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The repository's name in the table.
    pub image: String,
    /// The tag, the digest or the pattern.
    pub tag: String,
    pub source: String,
    /// `None` for a failure of the plan.
    pub destination: Option<String>,
    /// The image at the destination, or why it is not there.
    pub status: Result<Done, Excerpt>,
    /// The duration of the copy, if the task's log has it.
    pub seconds: Option<u64>,
}

/// An image at the destination.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    pub digest: Digest,
    /// The compressed size; for an index, that of all its images.
    pub bytes: u64,
}

/// Checks each image of the batch at the destination.
pub async fn of_batch(destination: &Registry, request: &Request) -> Result<Outcomes> {
    let Batch { repositories, failures, present, .. } = &request.batch;
    let mut counted = of_copies(destination, repositories, &request.report).await?;
    counted.extend(failures.iter().map(|failure| Outcome {
        image: failure.image.to_string(),
        tag: failure.tag.to_string(),
        source: failure.source.to_string(),
        destination: None,
        status: Err(failure.error.clone()),
        seconds: None,
    }));
    let mut present = of_copies(destination, present, &Report::default()).await?;
    // If an image is gone again, the next run copies it.
    present.retain(|outcome| outcome.status.is_ok());
    Ok(Outcomes { counted, present })
}

async fn of_copies(destination: &Registry, copies: &[RepositoryCopy], report: &Report) -> Result<Vec<Outcome>> {
    let outcomes: Vec<Vec<Outcome>> = stream::iter(copies)
        .map(async |copy| {
            let (found, sizes) = find(destination, copy).await?;
            Ok::<_, shared::Error>(
                copy.images.iter().map(|image| outcome(copy, image, &found, &sizes, report)).collect(),
            )
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    Ok(outcomes.into_iter().flatten().collect())
}

/// The images of a repository that the destination has, and their bytes by digest.
async fn find(
    destination: &Registry,
    copy: &RepositoryCopy,
) -> Result<(HashMap<ImageId, Found>, HashMap<Digest, u64>)> {
    let repository = &copy.destination.name;
    let ids: Vec<_> = copy.images.iter().map(Image::id).collect();
    let found = destination.find(repository, &ids).await?.unwrap_or_default();
    let children = found.values().flat_map(|image| &image.manifest.manifests);
    let children: Vec<_> = children.map(|child| ImageId::Digest(child.digest)).collect();
    let children: HashMap<Digest, Manifest> = destination
        .find(repository, &children)
        .await?
        .unwrap_or_default()
        .into_values()
        .map(|image| (image.digest, image.manifest))
        .collect();
    let sizes = found
        .values()
        .map(|image| {
            let mut blobs = Blobs::default();
            blobs.add(&image.manifest);
            let platforms = image.manifest.manifests.iter().filter_map(|child| children.get(&child.digest));
            platforms.for_each(|platform| blobs.add(platform));
            (image.digest, blobs.bytes())
        })
        .collect();
    Ok((found, sizes))
}

fn outcome(
    copy: &RepositoryCopy,
    image: &Image,
    found: &HashMap<ImageId, Found>,
    sizes: &HashMap<Digest, u64>,
    report: &Report,
) -> Outcome {
    let destination = image.at(&copy.destination);
    let reported = report.copies.iter().find(|reported| reported.destination == destination);
    let refusal = report.refusals.iter().find(|refusal| refusal.repository == copy.destination);
    let current = found.get(&image.id()).map(|image| image.digest);
    let status = if current == Some(image.digest) {
        Ok(Done { digest: image.digest, bytes: sizes.get(&image.digest).copied().unwrap_or(image.bytes) })
    } else {
        let state = match current {
            Some(digest) => format!("{destination} has the digest {digest}"),
            None => format!("{destination} does not exist"),
        };
        Err(match (reported, refusal) {
            (Some(reported), _) => reported.error.clone().unwrap_or_else(|| {
                Excerpt::new(&format!("skopeo reported success for {}, but {state}.", image.digest))
            }),
            (None, Some(refusal)) => refusal.error.clone(),
            (None, None) => reason(report, &format!("{state}, and the task reported no reason.")),
        })
    };
    Outcome {
        image: copy.image.to_string(),
        tag: image.name(),
        source: image.by_digest(&copy.source).to_string(),
        destination: Some(destination.to_string()),
        status,
        seconds: reported.map(|reported| reported.seconds),
    }
}

/// Why an image was not copied that the task did not report.
fn reason(report: &Report, default: &str) -> Excerpt {
    match report.exit_code {
        Some(code) => Excerpt::new(&format!("{} (exit code {code})", report.reason)),
        None if report.reason == Excerpt::default() => Excerpt::new(default),
        None => report.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::operation::batch_get_image::BatchGetImageOutput;
    use aws_sdk_ecr::types::{Image as EcrImage, ImageIdentifier};
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use serde_json::json;

    use super::*;

    fn index() -> Value {
        json!({ "manifests": [{ "digest": of(&platform("arm").to_string()) }, { "digest": of(&platform("amd").to_string()) }] })
    }

    fn platform(name: &str) -> Value {
        let layer = json!({ "digest": of("base"), "size": 100 });
        json!({ "config": { "digest": of(name), "size": 1 }, "layers": [layer] })
    }

    fn of(content: &str) -> Digest {
        Digest::of(content.as_bytes())
    }

    /// A destination whose tags `app:1` and `app:moved` point to an index of two images.
    fn destination() -> Registry {
        let rule = mock!(aws_sdk_ecr::Client::batch_get_image).then_compute_output(|request| {
            let manifests = [index().to_string(), platform("arm").to_string(), platform("amd").to_string()];
            let mut answer = BatchGetImageOutput::builder();
            for id in request.image_ids() {
                let manifest = match (id.image_tag(), id.image_digest()) {
                    (Some("1" | "moved"), _) => Some(&manifests[0]),
                    (_, Some(digest)) => manifests.iter().find(|manifest| of(manifest).to_string() == digest),
                    _ => None,
                };
                if let Some(manifest) = manifest {
                    let found = ImageIdentifier::builder().set_image_tag(id.image_tag.clone());
                    let found = found.image_digest(of(manifest).to_string()).build();
                    answer = answer.images(EcrImage::builder().image_id(found).image_manifest(manifest).build());
                }
            }
            answer.build()
        });
        Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]), None)
    }

    /// A batch with `app:1`, which is at the destination, and `app:2` and `app:moved`, which are not.
    fn request(rest: &Value) -> Request {
        let image = |tag: &str, content: &str| json!({ "digest": of(content), "tag": tag, "bytes": 5 });
        let mut request = json!({ "execution": "run", "batch": { "id": "1", "bytes": 10, "repositories": [{
            "source": "s.example/app", "destination": "d.example/app", "image": "app",
            "images": [image("1", &index().to_string()), image("2", "2"), image("moved", "moved")],
        }] } });
        request
            .as_object_mut()
            .zip(rest.as_object())
            .map(|(request, rest)| request.extend(rest.clone()))
            .expect("objects");
        serde_json::from_value(request).expect("it is a request")
    }

    async fn statuses(rest: Value) -> Vec<Result<Done, String>> {
        let outcomes = of_batch(&destination(), &request(&rest)).await.expect("ECR answers");
        outcomes.counted.into_iter().map(|outcome| outcome.status.map_err(String::from)).collect()
    }

    #[tokio::test]
    async fn an_image_at_the_destination_is_done_even_if_the_task_reports_an_error() {
        let cause = json!({"exitCode": 1, "reason": "r", "copies": [
            {"destination": "d.example/app:1", "seconds": 1, "error": "timeout"},
            {"destination": "d.example/app:2", "seconds": 2, "error": "manifest unknown"}
        ]});
        let statuses = statuses(json!({"failure": {"Error": "TaskFailed", "Cause": cause.to_string()}})).await;
        assert_eq!(statuses[0], Ok(Done { digest: of(&index().to_string()), bytes: 102 }));
        assert_eq!(statuses[1], Err("manifest unknown".into()));
    }

    #[tokio::test]
    async fn an_image_that_is_not_at_the_destination_is_an_error_even_if_the_task_reports_success() {
        let done = |tag: &str| json!({"destination": format!("d.example/app:{tag}"), "seconds": 2});
        let statuses = statuses(json!({"result": {"exitCode": 0, "copies": [done("2"), done("moved")]}})).await;
        let error = |tag: &str, state: &str| {
            Err(format!("skopeo reported success for {}, but d.example/app:{tag} {state}.", of(tag)))
        };
        assert_eq!(statuses[1], error("2", "does not exist"));
        assert_eq!(statuses[2], error("moved", &format!("has the digest {}", of(&index().to_string()))));
    }

    #[tokio::test]
    async fn an_image_that_the_task_does_not_report_has_the_tasks_reason() {
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
        let statuses = statuses(json!({"result": {}})).await;
        assert_eq!(statuses[1], Err("d.example/app:2 does not exist, and the task reported no reason.".into()));
    }

    #[tokio::test]
    async fn an_invalid_report_is_the_error_of_images_that_are_not_at_the_destination() {
        let broken = json!({ "copies": [{ "destination": "d.example/app:1" }] });
        for (rest, name) in [
            (json!({ "result": broken }), ""),
            (json!({ "failure": { "Error": "TaskFailed", "Cause": broken.to_string() } }), "TaskFailed: "),
        ] {
            let statuses = statuses(rest).await;
            assert!(statuses[0].is_ok(), "it is at the destination");
            let error = statuses[1].as_ref().expect_err("it is not at the destination");
            assert!(
                error.starts_with(&format!("{name}The report of launch-task cannot be read: missing field")),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn images_of_a_repository_that_cannot_be_written_have_its_error() {
        let refusal = json!({"repository": "d.example/app", "error": "AccessDenied: no"});
        let statuses = statuses(json!({"result": {"exitCode": 0, "refusals": [refusal]}})).await;
        assert_eq!(statuses[1], Err("AccessDenied: no".into()));
        assert!(statuses[0].is_ok(), "it is at the destination");
    }

    #[tokio::test]
    async fn a_failure_of_the_plan_keeps_its_error_escaped() {
        let mut request = serde_json::to_value(json!({
            "execution": "run",
            "batch": { "id": "1", "bytes": 0, "repositories": [], "failures": [{
                "image": "app", "tag": "9.*", "source": "s.example/app", "error": "\u{1b}[31mno tag matches"
            }] },
        }))
        .expect("it is JSON");
        request["result"] = json!({});
        let request: Request = serde_json::from_value(request).expect("it is a request");
        let outcomes = of_batch(&destination(), &request).await.expect("ECR is not asked");
        let expected = Outcome {
            image: "app".into(),
            tag: "9.*".into(),
            source: "s.example/app".into(),
            destination: None,
            status: Err(r"\u{1b}[31mno tag matches".into()),
            seconds: None,
        };
        assert_eq!(outcomes.counted, [expected]);
    }

    #[tokio::test]
    async fn a_row_is_corrected_only_if_the_image_is_at_the_destination() {
        let mut request = request(&json!({ "result": {} }));
        request.batch.present = std::mem::take(&mut request.batch.repositories);
        let outcomes = of_batch(&destination(), &request).await.expect("ECR answers");
        assert!(outcomes.counted.is_empty());
        assert_eq!(outcomes.present.iter().map(|outcome| outcome.tag.as_str()).collect::<Vec<_>>(), ["1"]);
    }

    #[tokio::test]
    async fn a_cause_that_is_no_report_is_the_reason_as_it_is() {
        let failure = json!({"failure": {"Error": "States.Runtime", "Cause": "the payload is too large"}});
        assert_eq!(statuses(failure).await[1], Err("States.Runtime: the payload is too large".into()));
    }
}
