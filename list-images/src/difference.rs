//! What of a listing the destination does not have yet.

use std::collections::{HashMap, HashSet};

use shared::ecr::Image;
use shared::plan::Copy;

use crate::source::{Listed, Wish};

/// A listing, compared with the destination.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// How many images the destination has already, tag and digest alike.
    pub unchanged: usize,
    /// What it lacks.
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
    let total = listed.len();
    let missing: Vec<_> = listed
        .into_iter()
        .filter(|image| {
            let is_there = match (&image.tag, &image.digest) {
                (Some(tag), Some(digest)) => tags.get(tag.as_str()) == Some(&digest.as_str()),
                (None, Some(digest)) => digests.contains(digest.as_str()),
                (_, None) => false,
            };
            !is_there
        })
        .collect();
    Difference { unchanged: total - missing.len(), missing }
}

/// The copy that brings `image` of `wish` to the repository `destination` (`registry/repository`).
#[must_use]
pub fn copy(wish: &Wish, destination: &str, image: Listed) -> Copy {
    let digest = image.digest.unwrap_or_default();
    let tag = image.tag.clone().unwrap_or_else(|| digest.clone());
    Copy {
        source: if digest.is_empty() { format!("{}:{tag}", wish.source) } else { format!("{}@{digest}", wish.source) },
        destination: match &image.tag {
            Some(tag) => format!("{destination}:{tag}"),
            None => format!("{destination}@{digest}"),
        },
        digest,
        image: wish.name.clone(),
        tag,
        bytes: image.bytes,
        error: image.error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(tag: Option<&str>, digest: Option<&str>) -> Listed {
        Listed { tag: tag.map(Into::into), digest: digest.map(Into::into), bytes: 1, is_index: false, error: None }
    }

    fn there(digest: &str, tags: &[&str]) -> Image {
        Image { digest: digest.into(), tags: tags.iter().map(|&tag| tag.into()).collect(), bytes: 1, is_index: false }
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
                listed(Some("unknown"), None),
            ],
            &destination,
        );
        assert_eq!(difference.unchanged, 2);
        let missing: Vec<_> =
            difference.missing.iter().map(|image| (image.tag.as_deref(), image.digest.as_deref())).collect();
        assert_eq!(
            missing,
            [
                (Some("latest"), Some("sha256:2")),
                (Some("new"), Some("sha256:3")),
                (None, Some("sha256:4")),
                (Some("unknown"), None),
            ]
        );
    }
}
