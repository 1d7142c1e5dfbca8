//! The report of a dry run: what a run would do with each image, and why.

use serde::Serialize;
use shared::plan::{Image, Reason};
use shared::reference::{RegistryHost, Repository};
use shared::text::Excerpt;

use crate::difference;
use crate::source::{Excluded, ListingFailure, RepositoryRequest, SourceImage};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `new` and `changed` images are copied. `unchanged` and `excluded` ones are not copied. `failed` ones cannot be copied.
    reason: &'static str,
    /// `registry/repository@sha256:…`. For `excluded` and `failed`, it can be a tag, a pattern or a repository instead.
    source: String,
    /// `registry/repository:tag`, or the digest for an untagged image; `None` for `excluded` and `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    /// For `excluded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// For `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Excerpt>,
}

impl Decision {
    pub fn excluded_repository(repository: &Repository, rule: String) -> Self {
        Self { reason: "excluded", source: repository.to_string(), rule: Some(rule), ..Self::default() }
    }

    pub fn excluded(request: &RepositoryRequest, excluded: &Excluded) -> Self {
        let source = format!("{}:{}", request.repository, excluded.tag);
        Self { reason: "excluded", source, rule: Some(excluded.rule.clone()), ..Self::default() }
    }

    pub fn failed(request: &RepositoryRequest, failed: &ListingFailure) -> Self {
        let separator = if failed.name.as_str().starts_with("sha256:") { '@' } else { ':' };
        let source = format!("{}{separator}{}", request.repository, failed.name);
        Self { reason: "failed", source, error: Some(failed.error.clone()), ..Self::default() }
    }

    pub fn unchanged(request: &RepositoryRequest, host: &RegistryHost, image: &SourceImage) -> Self {
        Self { reason: "unchanged", ..Self::copy(request, host, image) }
    }

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

/// The decisions in the order of their sources.
pub fn report(mut decisions: Vec<Decision>) -> Vec<Decision> {
    decisions.sort_by(|a, b| (&a.source, &a.destination).cmp(&(&b.source, &b.destination)));
    decisions
}
