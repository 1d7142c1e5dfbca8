//! What of a listing the destination does not have yet.

use std::collections::{HashMap, HashSet};

use shared::ecr::{Image, Immutable};
use shared::plan::{Copy, Reason};

use crate::source::{Listed, Wish};

/// A listing, compared with the destination.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What the destination has already, tag and digest alike.
    pub unchanged: Vec<Listed>,
    /// What it lacks, or has another image for.
    pub missing: Vec<Listed>,
}

/// Compares a listing with what the destination's repository holds; a repository that does not exist holds nothing.
#[must_use]
pub fn compare(listed: Vec<Listed>, destination: &[Image]) -> Difference {
    let digests: HashSet<&str> = destination.iter().map(|image| image.digest.as_str()).collect();
    let tags: HashMap<&str, &str> = destination
        .iter()
        .flat_map(|image| image.tags.iter().map(|tag| (tag.as_str(), image.digest.as_str())))
        .collect();
    let mut difference = Difference::default();
    for mut image in listed {
        let there = match &image.tag {
            Some(tag) => tags.get(tag.as_str()).copied(),
            None => image.digest.as_deref().filter(|digest| digests.contains(digest)),
        };
        if there.is_some() && there == image.digest.as_deref() && image.error.is_none() {
            difference.unchanged.push(image);
        } else {
            image.replaces = there.map(str::to_owned);
            difference.missing.push(image);
        }
    }
    difference
}

/// Says of a tag that cannot be moved that it cannot: the task would only fail.
pub fn refuse_immutable(image: &mut Listed, immutable: &Immutable) {
    let (Some(tag), Some(there), None) = (&image.tag, &image.replaces, &image.error) else { return };
    if immutable.contains(tag) {
        let hint = "delete it there to have it copied";
        image.error = Some(format!("the tag is immutable at the destination, and leads to {there} there; {hint}"));
    }
}

/// The copy that brings `image` of `wish` to the registry at `host`.
#[must_use]
pub fn copy(wish: &Wish, host: &str, image: &Listed) -> Copy {
    let digest = image.digest.clone().unwrap_or_default();
    let tag = image.tag.clone().unwrap_or_else(|| digest.clone());
    let source = &wish.repository;
    Copy {
        source: if digest.is_empty() { format!("{source}:{tag}") } else { format!("{source}@{digest}") },
        destination: match &image.tag {
            Some(tag) => format!("{host}/{}:{tag}", wish.destination),
            None => format!("{host}/{}@{digest}", wish.destination),
        },
        digest,
        image: wish.name.clone(),
        tag,
        bytes: image.bytes,
        manifests: image.manifests(),
        reason: if image.replaces.is_some() { Reason::Changed } else { Reason::New },
        error: image.error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(tag: Option<&str>, digest: Option<&str>) -> Listed {
        Listed { tag: tag.map(Into::into), digest: digest.map(Into::into), ..Listed::default() }
    }

    fn there(digest: &str, tags: &[&str]) -> Image {
        Image {
            digest: digest.into(),
            tags: tags.iter().map(|&tag| tag.into()).collect(),
            bytes: 1,
            is_index: false,
            pushed_at: 0,
            subject: None,
        }
    }

    #[test]
    fn unchanged_means_that_the_tag_leads_to_the_digest() {
        let destination = [there("sha256:1", &["1", "latest"]), there("sha256:3", &[])];
        let difference = compare(
            vec![
                listed(Some("1"), Some("sha256:1")),
                listed(Some("latest"), Some("sha256:2")),
                listed(Some("new"), Some("sha256:3")),
                listed(None, Some("sha256:3")),
                listed(None, Some("sha256:4")),
                listed(Some("1"), None),
            ],
            &destination,
        );
        let replacing = |image: Listed, there: &str| Listed { replaces: Some(there.into()), ..image };
        assert_eq!(
            difference,
            Difference {
                unchanged: vec![listed(Some("1"), Some("sha256:1")), listed(None, Some("sha256:3"))],
                missing: vec![
                    replacing(listed(Some("latest"), Some("sha256:2")), "sha256:1"),
                    listed(Some("new"), Some("sha256:3")),
                    listed(None, Some("sha256:4")),
                    replacing(listed(Some("1"), None), "sha256:1"),
                ],
            }
        );
    }
}
