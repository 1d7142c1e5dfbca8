//! What a run would do with each image, and why: the report of a dry run.

use serde::Serialize;
use shared::plan::{Image, Reason};
use shared::reference::{RegistryHost, Repository};
use shared::text::Excerpt;

use crate::difference;
use crate::source::{Excluded, ListingFailure, RepositoryRequest, SourceImage};

/// What a run would do with an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `new` and `changed` images are copied; `unchanged` and `excluded` ones are not; `failed` ones cannot be.
    reason: &'static str,
    /// `registry/repository@sha256:…`; with a tag or a pattern behind a `:` where it is not copied.
    source: String,
    /// `registry/repository:tag`, or with a digest for an image without a tag; absent where nothing goes there.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    /// The rule that excludes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// Why it cannot be copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Excerpt>,
}

impl Decision {
    /// Of a repository that a rule leaves out.
    pub fn left_out(repository: &Repository, rule: String) -> Self {
        Self { reason: "excluded", source: repository.to_string(), rule: Some(rule), ..Self::default() }
    }

    /// Of a tag that a rule leaves out.
    pub fn excluded(request: &RepositoryRequest, excluded: &Excluded) -> Self {
        let source = format!("{}:{}", request.repository, excluded.tag);
        Self { reason: "excluded", source, rule: Some(excluded.rule.clone()), ..Self::default() }
    }

    /// Of something that cannot be copied.
    pub fn failed(request: &RepositoryRequest, failed: &ListingFailure) -> Self {
        let separator = if failed.name.as_str().starts_with("sha256:") { '@' } else { ':' };
        let source = format!("{}{separator}{}", request.repository, failed.name);
        Self { reason: "failed", source, error: Some(failed.error.clone()), ..Self::default() }
    }

    /// Of an image that the destination has.
    pub fn unchanged(request: &RepositoryRequest, host: &RegistryHost, image: &SourceImage) -> Self {
        Self { reason: "unchanged", ..Self::copy(request, host, image) }
    }

    /// Of an image that would be copied.
    pub fn copy(request: &RepositoryRequest, host: &RegistryHost, image: &SourceImage) -> Self {
        let image: Image = difference::planned(image);
        let destination = Repository { registry: host.clone(), name: request.destination.clone() };
        Self {
            reason: match image.reason {
                Reason::New => "new",
                Reason::Changed => "changed",
            },
            source: image.by_digest(&request.repository).to_string(),
            destination: Some(image.at(&destination).to_string()),
            rule: None,
            error: None,
        }
    }
}

/// All decisions, in the order of their sources.
pub fn report(mut decisions: Vec<Decision>) -> Vec<Decision> {
    decisions.sort_by(|a, b| (&a.source, &a.destination).cmp(&(&b.source, &b.destination)));
    decisions
}
