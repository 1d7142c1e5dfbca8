//! What a run would do with each image, and why: the report of a dry run.

use serde::Serialize;
use shared::plan::{Copy, Reason};

use crate::selection::Repository;
use crate::source::{Excluded, Listed, Wish};

/// What a run would do with an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `new` and `changed` images are copied; `unchanged` and `excluded` ones are not; `failed` ones cannot be.
    reason: &'static str,
    /// `registry/repository@sha256:…`, or with a `:tag` where the digest is not known.
    source: String,
    /// `registry/repository:tag`, or with a digest for an image without a tag; absent where it is of no matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    /// The rule that excludes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// Why it cannot be copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Decision {
    /// Of a repository that a rule leaves out.
    #[must_use]
    pub fn left_out(repository: &Repository, rule: String) -> Self {
        Self { reason: "excluded", source: repository.to_string(), rule: Some(rule), ..Self::default() }
    }

    /// Of a tag that a rule leaves out.
    #[must_use]
    pub fn excluded(wish: &Wish, excluded: &Excluded) -> Self {
        let source = format!("{}:{}", wish.repository, excluded.tag);
        Self { reason: "excluded", source, rule: Some(excluded.rule.clone()), ..Self::default() }
    }

    /// Of an image that the destination has.
    #[must_use]
    pub fn unchanged(wish: &Wish, host: &str, image: &Listed) -> Self {
        let copy = crate::difference::copy(wish, host, image);
        Self { reason: "unchanged", ..Self::copy(&copy) }
    }

    /// Of an image that would be copied.
    #[must_use]
    pub fn copy(copy: &Copy) -> Self {
        Self {
            reason: match (&copy.error, copy.reason) {
                (Some(_), _) => "failed",
                (None, Reason::New) => "new",
                (None, Reason::Changed) => "changed",
            },
            source: copy.source.clone(),
            destination: Some(copy.destination.clone()),
            rule: None,
            error: copy.error.clone(),
        }
    }
}

/// All decisions, in the order of their sources.
#[must_use]
pub fn report(mut decisions: Vec<Decision>) -> Vec<Decision> {
    decisions.sort_by(|a, b| (&a.source, &a.destination).cmp(&(&b.source, &b.destination)));
    decisions
}
