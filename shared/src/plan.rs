//! The plan of a run. list-images writes it to S3 as a JSON array of [`Batch`]. The state machine passes each batch to
//! launch-task, and then to record-status.

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
    /// The minimum of milliseconds per manifest. It keeps all tasks together below the destination's quota.
    #[serde(default)]
    pub pace: u64,
    /// The images to copy. Each repository of the destination occurs once.
    pub repositories: Vec<RepositoryCopy>,
    /// What failed when the run was planned. No task is started for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
    /// Images whose rows say `Error`, although the destination has them. Their rows are corrected. They do not count as copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub present: Vec<RepositoryCopy>,
    /// Rows that say `Error` for images that are no longer selected. They are deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obsolete: Vec<Row>,
}

/// Images of one repository, with their source and destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryCopy {
    /// The repository to copy from.
    pub source: Repository,
    /// The repository to copy to.
    pub destination: Repository,
    /// The repository's name in the table: its name at the destination, without the prefix.
    pub image: RepositoryName,
    /// The images to copy.
    pub images: Vec<Image>,
}

/// An image to copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The digest at the source, and at the destination after the copy.
    pub digest: Digest,
    /// The tag at the destination; `None` to copy the image without a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// The compressed size; 0 if it is unknown.
    #[serde(default)]
    pub bytes: u64,
    /// The number of manifests: an index has its own and one for each of its images. 0 counts as 1.
    #[serde(default)]
    pub manifests: u32,
    /// Why it is copied.
    #[serde(default)]
    pub reason: Reason,
}

/// A selected image or pattern that cannot be copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The repository's name in the table.
    pub image: RepositoryName,
    /// The tag, the digest or the pattern.
    pub tag: Excerpt,
    /// The repository at the source.
    pub source: Repository,
    /// Why it cannot be copied.
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
    /// The destination's tag points to another image.
    Changed,
}

impl Image {
    /// Its tag in the table; the digest for an untagged image.
    pub fn name(&self) -> String {
        self.tag.as_ref().map_or_else(|| self.digest.to_string(), ToString::to_string)
    }

    /// Its id in a repository of ECR: the tag, or the digest of an untagged image.
    pub fn id(&self) -> ImageId {
        self.tag.clone().map_or(ImageId::Digest(self.digest), ImageId::Tag)
    }

    /// Its reference in `repository`: by tag, or by digest if it has no tag.
    pub fn at(&self, repository: &Repository) -> ImageReference {
        let digest = self.tag.is_none().then_some(self.digest);
        ImageReference { repository: repository.clone(), tag: self.tag.clone(), digest }
    }

    /// Its reference in `repository` by digest.
    pub fn by_digest(&self, repository: &Repository) -> ImageReference {
        ImageReference { repository: repository.clone(), tag: None, digest: Some(self.digest) }
    }
}

/// The result of list-images: the plan and its counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The plan; `None` if there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Object>,
    /// The report of a dry run, which writes no plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<Object>,
    /// The ARN of a waiting execution that copies everything that this one would copy. This one ends without listing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_to: Option<String>,
    /// The execution must wait. It has not listed yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
    /// The plan's batches.
    pub batches: usize,
    /// The sum of `unchanged`, `excluded` and `to_copy`.
    pub listed: usize,
    /// Images that the destination already has.
    pub unchanged: usize,
    /// Images that a rule excludes.
    pub excluded: usize,
    /// The plan's images and failures.
    pub to_copy: usize,
    /// The plan's bytes.
    pub bytes: u64,
}

/// Why and for how long an execution waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The ARN of the active execution that was started earlier.
    pub execution: String,
    /// The pause until the next check.
    pub seconds: i64,
}

/// An object in S3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// The bucket's name.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The version that this run wrote. The state machine reads this version, even if somebody writes another one. It is
    /// [`null`](https://docs.aws.amazon.com/AmazonS3/latest/userguide/AddingObjectstoVersionSuspendedBuckets.html) if the
    /// bucket keeps no versions, as in the first minutes of a new bucket.
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
    fn the_json_of_a_batch_is_stable() {
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
    fn the_json_of_a_summary_without_a_plan_has_only_counts() {
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
