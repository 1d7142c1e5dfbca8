//! The plan: what a run copies, in batches that one task each takes on.
//!
//! list-images writes it to S3 as a JSON array of [`Batch`]; the state machine hands each batch to launch-task and then
//! to record-status.

use serde::{Deserialize, Serialize};

/// The work of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Unique within the plan.
    pub id: String,
    /// The sum of the copies' bytes.
    pub bytes: u64,
    /// How many milliseconds each manifest takes, so that all tasks together stay below the destination's quota.
    #[serde(default)]
    pub pace: u64,
    /// What to copy, one repository's images next to each other.
    pub copies: Vec<Copy>,
}

/// One image and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copy {
    /// `registry/repository@sha256:…`; with a `:tag` instead where the source named no digest for it, so that skopeo
    /// finds out, and says, what is wrong with it.
    pub source: String,
    /// `registry/repository:tag`, or `registry/repository@sha256:…` for an untagged image.
    pub destination: String,
    /// What the destination must answer afterwards; empty where the source named none.
    #[serde(default)]
    pub digest: String,
    /// The image's name in the table: its repository, with the registry in front where that is neither ECR nor Docker Hub.
    pub image: String,
    /// The tag; the digest for an untagged image.
    pub tag: String,
    /// The compressed size; 0 where the source does not tell.
    #[serde(default)]
    pub bytes: u64,
    /// How many manifests the destination gets: an index comes with one for each of its images. 0 counts as 1.
    #[serde(default)]
    pub manifests: u64,
    /// Why it is copied.
    #[serde(default)]
    pub reason: Reason,
    /// Why there is nothing to copy, where that was clear before any task started. It is recorded, not launched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why an image is copied.
#[derive(Clone, std::marker::Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The destination does not have it.
    #[default]
    New,
    /// The destination's tag leads to another image.
    Changed,
}

impl Copy {
    /// The destination without tag or digest.
    #[must_use]
    pub fn destination_repository(&self) -> &str {
        split(&self.destination).0
    }

    /// The destination repository's name, as ECR knows it.
    #[must_use]
    pub fn destination_name(&self) -> &str {
        name(self.destination_repository())
    }

    /// The source repository's name, as its registry knows it.
    #[must_use]
    pub fn source_name(&self) -> &str {
        name(self.source_repository())
    }

    /// The destination's tag, unless the image goes there untagged.
    #[must_use]
    pub fn destination_tag(&self) -> Option<&str> {
        let (_, tail) = split(&self.destination);
        tail.strip_prefix(':')
    }

    /// The source without tag or digest.
    #[must_use]
    pub fn source_repository(&self) -> &str {
        split(&self.source).0
    }

    /// The source's registry host.
    #[must_use]
    pub fn source_registry(&self) -> &str {
        registry(&self.source)
    }

    /// The destination's registry host.
    #[must_use]
    pub fn destination_registry(&self) -> &str {
        registry(&self.destination)
    }
}

fn name(repository: &str) -> &str {
    repository.split_once('/').map_or(repository, |(_registry, name)| name)
}

fn registry(reference: &str) -> &str {
    reference.split('/').next().unwrap_or_default()
}

/// Splits `registry/repository` from the `:tag` or `@digest` behind it. A port's colon comes before the last slash.
pub(crate) fn split(reference: &str) -> (&str, &str) {
    let name = reference.rfind('/').map_or(0, |slash| slash + 1);
    let end = reference[name..].find([':', '@']).map_or(reference.len(), |at| name + at);
    reference.split_at(end)
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
    /// How many batches the plan has.
    pub batches: usize,
    /// Images that the source has, or that were asked for: those unchanged, excluded, and to be copied.
    pub listed: usize,
    /// Images that the destination already has.
    pub unchanged: usize,
    /// Images that a rule left out.
    pub excluded: usize,
    /// Images in the plan.
    pub to_copy: usize,
    /// The plan's bytes.
    pub bytes: u64,
}

/// An object in S3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// The bucket's name.
    pub bucket: String,
    /// The object's key.
    pub key: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(source: &str, destination: &str) -> Copy {
        Copy {
            source: source.into(),
            destination: destination.into(),
            digest: "sha256:0a".into(),
            image: "team/app".into(),
            tag: "1.0".into(),
            bytes: 7,
            ..Copy::default()
        }
    }

    #[test]
    fn a_reference_splits_at_its_tag_or_digest_and_not_at_the_port() {
        let copy = copy("host:5000/team/app@sha256:0a", "1.dkr.ecr.eu-west-1.amazonaws.com/team/app:1.0");
        assert_eq!(copy.source_repository(), "host:5000/team/app");
        assert_eq!(copy.source_registry(), "host:5000");
        assert_eq!(copy.destination_name(), "team/app");
        assert_eq!(copy.destination_tag(), Some("1.0"));
    }

    #[test]
    fn an_untagged_destination_has_no_tag() {
        let copy = copy("h/a@sha256:0a", "h/a@sha256:0a");
        assert_eq!(copy.destination_tag(), None);
        assert_eq!(copy.destination_repository(), "h/a");
    }

    #[test]
    fn the_json_of_a_batch_is_the_contract() {
        let batch = Batch { id: "1".into(), bytes: 7, pace: 250, copies: vec![copy("h/a@sha256:0a", "d/a:1.0")] };
        let json = serde_json::to_value(&batch).expect("a batch is JSON");
        assert_eq!(
            json,
            serde_json::json!({"id": "1", "bytes": 7, "pace": 250, "copies": [{
                "source": "h/a@sha256:0a", "destination": "d/a:1.0", "digest": "sha256:0a",
                "image": "team/app", "tag": "1.0", "bytes": 7, "manifests": 0, "reason": "new"
            }]})
        );
        assert_eq!(serde_json::from_value::<Batch>(json).expect("and back"), batch);
    }

    #[test]
    fn a_summary_without_work_has_no_plan() {
        assert_eq!(
            serde_json::to_value(Summary { listed: 3, unchanged: 3, ..Summary::default() }).expect("a summary is JSON"),
            serde_json::json!({"batches": 0, "listed": 3, "unchanged": 3, "excluded": 0, "toCopy": 0, "bytes": 0})
        );
    }
}
