//! The plan: what a run copies, in batches that one task each takes on.
//!
//! list-images writes it to S3 as a JSON array of [`Batch`]; the state machine hands each batch to launch-task and then
//! to record-status.

use serde::{Deserialize, Serialize};

use crate::ecr::ImageId;
use crate::reference::{BatchId, Digest, ImageReference, Repository, RepositoryName, Tag};
use crate::text::Excerpt;

/// The work of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Unique within the plan.
    pub id: BatchId,
    /// The sum of the images' bytes.
    pub bytes: u64,
    /// How many milliseconds each manifest takes, so that all tasks together stay below the destination's quota.
    #[serde(default)]
    pub pace: u64,
    /// What to copy; no two have the same destination.
    pub repositories: Vec<RepositoryCopy>,
    /// What cannot be copied, as was clear before any task started: it is recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
    /// Images that the destination has, although their rows say `Error`: what is there is recorded, and counts as nothing done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub present: Vec<RepositoryCopy>,
    /// Rows that say `Error` of what is no longer wanted: they are deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obsolete: Vec<Row>,
}

/// Images of one repository, and where they go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryCopy {
    /// Where they are.
    pub source: Repository,
    /// Where they go.
    pub destination: Repository,
    /// The repository's name in the table: its name at the destination, without the prefix.
    pub image: RepositoryName,
    /// Which of them.
    pub images: Vec<Image>,
}

/// An image that is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// What is copied, and what the destination must answer afterwards.
    pub digest: Digest,
    /// The tag that it gets; without one it goes by its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// The compressed size; 0 where the source does not tell.
    #[serde(default)]
    pub bytes: u64,
    /// How many manifests the destination gets: an index comes with one for each of its images. 0 counts as 1.
    #[serde(default)]
    pub manifests: u32,
    /// Why it is copied.
    #[serde(default)]
    pub reason: Reason,
}

/// Something that was wanted and cannot be copied: an image, or whatever a pattern stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The repository's name in the table.
    pub image: RepositoryName,
    /// The tag, the digest or the pattern.
    pub tag: Excerpt,
    /// Where it was looked for.
    pub source: Repository,
    /// What is wrong.
    pub error: Excerpt,
}

/// The key of a row in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The repository's name in the table.
    pub image: RepositoryName,
    /// The tag, the digest or the pattern.
    pub tag: Excerpt,
}

/// Why an image is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The destination does not have it.
    #[default]
    New,
    /// The destination's tag leads to another image.
    Changed,
}

impl Image {
    /// Its tag in the table; the digest for an untagged image.
    #[must_use]
    pub fn name(&self) -> String {
        self.tag.as_ref().map_or_else(|| self.digest.to_string(), ToString::to_string)
    }

    /// By what the destination is asked for it.
    #[must_use]
    pub fn id(&self) -> ImageId {
        self.tag.clone().map_or(ImageId::Digest(self.digest), ImageId::Tag)
    }

    /// Its name in `repository`: by tag, or by digest where it has none.
    #[must_use]
    pub fn at(&self, repository: &Repository) -> ImageReference {
        let digest = self.tag.is_none().then_some(self.digest);
        ImageReference { repository: repository.clone(), tag: self.tag.clone(), digest }
    }

    /// Its name in `repository` by digest.
    #[must_use]
    pub fn by_digest(&self, repository: &Repository) -> ImageReference {
        ImageReference { repository: repository.clone(), tag: None, digest: Some(self.digest) }
    }
}

/// What list-images answers: where the plan is, and what it comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The plan's object, unless there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Object>,
    /// In a dry run, the object with what a run would do, and why, instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<Object>,
    /// Instead of all else, the ARN of the execution that waits for its turn and copies all that this one would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_to: Option<String>,
    /// Instead of all else, what the execution waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
    /// How many batches the plan has.
    pub batches: usize,
    /// Images that the source has, or that were asked for: those unchanged, excluded, and to be copied.
    pub listed: usize,
    /// Images that the destination already has.
    pub unchanged: usize,
    /// Images that a rule left out.
    pub excluded: usize,
    /// Images in the plan, and its failures.
    pub to_copy: usize,
    /// The plan's bytes.
    pub bytes: u64,
}

/// Why and for how long an execution waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The ARN of the earlier execution, which is active.
    pub execution: String,
    /// After how many seconds it asks again.
    pub seconds: i64,
}

/// An object in S3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// The bucket's name.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The version that was written: what somebody else writes there is not read. It is
    /// [`null`](https://docs.aws.amazon.com/AmazonS3/latest/userguide/AddingObjectstoVersionSuspendedBuckets.html) where the bucket
    /// keeps no versions, as a new one may for some minutes.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn batch() -> Value {
        let digest = Digest::of(b"image").to_string();
        json!({"id": "1", "bytes": 7, "pace": 250, "repositories": [{
            "source": "quay.io/team/app", "destination": "111111111111.dkr.ecr.eu-west-1.amazonaws.com/to/app", "image": "app",
            "images": [
                { "digest": digest, "tag": "1.0", "bytes": 7, "manifests": 3, "reason": "changed" },
                { "digest": digest, "bytes": 0, "manifests": 0, "reason": "new" },
            ],
        }], "failures": [{ "image": "app", "tag": "9.*", "source": "quay.io/team/app", "error": "no tag of 1 matches" }],
        "present": [{
            "source": "quay.io/team/tool", "destination": "111111111111.dkr.ecr.eu-west-1.amazonaws.com/to/tool",
            "image": "tool", "images": [{ "digest": digest, "tag": "2", "bytes": 0, "manifests": 1, "reason": "new" }],
        }], "obsolete": [{ "image": "app", "tag": "8.*" }]})
    }

    #[test]
    fn the_json_of_a_batch_is_the_contract() {
        let parsed: Batch = serde_json::from_value(batch()).expect("it is a batch");
        let repository = &parsed.repositories[0];
        assert_eq!(repository.images[0].at(&repository.source).to_string(), "quay.io/team/app:1.0");
        assert_eq!(repository.images[1].at(&repository.source), repository.images[1].by_digest(&repository.source));
        assert_eq!(serde_json::to_value(parsed).expect("a batch is JSON"), batch());
    }

    #[test]
    fn a_batch_that_was_tampered_with_does_not_parse() {
        for (pointer, text) in [
            ("/id", "1\n2"),
            ("/repositories/0/source", "quay.io/team/app x"),
            ("/repositories/0/destination", "d.example/a\n> evil.example/backdoor d.example/prod"),
            ("/repositories/0/image", "../app"),
            ("/repositories/0/images/0/tag", "s due[$(id)]"),
            ("/repositories/0/images/0/digest", "sha256:$(id)"),
        ] {
            let mut tampered = batch();
            *tampered.pointer_mut(pointer).expect(pointer) = text.into();
            assert!(serde_json::from_value::<Batch>(tampered).is_err(), "{pointer}");
        }
        let mut tampered = batch();
        *tampered.pointer_mut("/failures/0/error").expect("it has one") = "\u{1b}[31m".into();
        let parsed: Batch = serde_json::from_value(tampered).expect("a message is any text");
        assert_eq!(parsed.failures[0].error.as_str(), r"\u{1b}[31m");
    }

    #[test]
    fn a_summary_without_work_has_no_plan() {
        assert_eq!(
            serde_json::to_value(Summary { listed: 3, unchanged: 3, ..Summary::default() }).expect("a summary is JSON"),
            json!({"batches": 0, "listed": 3, "unchanged": 3, "excluded": 0, "toCopy": 0, "bytes": 0})
        );
    }

    #[test]
    fn an_image_is_called_by_its_tag_and_an_untagged_one_by_its_digest() {
        let parsed: Batch = serde_json::from_value(batch()).expect("it is a batch");
        let names: Vec<_> = parsed.repositories[0].images.iter().map(Image::name).collect();
        assert_eq!(names, ["1.0".to_owned(), Digest::of(b"image").to_string()]);
    }
}
