//! What of a listing the destination does not have yet.

use std::collections::{HashMap, HashSet};

use shared::ecr::{Image, Immutable};
use shared::plan::{self, Reason};
use shared::reference::{Digest, Tag};

use crate::source::{ListingFailure, SourceImage};

/// A listing, compared with the destination.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What the destination has already, tag and digest alike.
    pub unchanged: Vec<SourceImage>,
    /// What it lacks, or has another image for.
    pub missing: Vec<SourceImage>,
}

/// Compares a listing with what the destination's repository holds; a repository that does not exist holds nothing.
pub fn compare(listed: Vec<SourceImage>, destination: &[Image]) -> Difference {
    let digests: HashSet<Digest> = destination.iter().map(|image| image.digest).collect();
    let tags: HashMap<&Tag, Digest> =
        destination.iter().flat_map(|image| image.tags.iter().map(|tag| (tag, image.digest))).collect();
    let mut difference = Difference::default();
    for mut image in listed {
        let there = match &image.tag {
            Some(tag) => tags.get(tag).copied(),
            None => digests.get(&image.digest).copied(),
        };
        if there == Some(image.digest) {
            difference.unchanged.push(image);
        } else {
            image.replaces = there;
            difference.missing.push(image);
        }
    }
    difference
}

/// The failure of an image whose tag would have to be moved, and cannot.
pub fn refuse_immutable(image: &SourceImage, immutable: &Immutable) -> Option<ListingFailure> {
    let (Some(tag), Some(there)) = (&image.tag, image.replaces) else { return None };
    let hint = "delete it there to have it copied";
    let error = || format!("the tag is immutable at the destination, and leads to {there} there; {hint}");
    immutable.contains(tag).then(|| image.failed(&error()))
}

/// An image of the plan.
pub fn planned(image: &SourceImage) -> plan::Image {
    plan::Image {
        digest: image.digest,
        tag: image.tag.clone(),
        bytes: image.bytes,
        manifests: image.manifests(),
        reason: if image.replaces.is_some() { Reason::Changed } else { Reason::New },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(content: &str) -> Digest {
        Digest::of(content.as_bytes())
    }

    fn listed(tag: Option<&str>, content: &str) -> SourceImage {
        SourceImage::new(tag.map(|tag| tag.parse().expect(tag)), digest(content))
    }

    fn there(content: &str, tags: &[&str]) -> Image {
        Image {
            digest: digest(content),
            tags: tags.iter().map(|tag| tag.parse().expect(tag)).collect(),
            bytes: 1,
            is_index: false,
            pushed_at: 0,
            is_archived: false,
            subject: None,
        }
    }

    #[test]
    fn an_image_that_is_archived_at_the_destination_is_there() {
        let archived = Image { is_archived: true, ..there("1", &["1"]) };
        let difference = compare(vec![listed(Some("1"), "1")], &[archived]);
        assert_eq!(difference, Difference { unchanged: vec![listed(Some("1"), "1")], missing: vec![] });
    }

    #[test]
    fn unchanged_means_that_the_tag_leads_to_the_digest() {
        let destination = [there("1", &["1", "latest"]), there("3", &[])];
        let difference = compare(
            vec![
                listed(Some("1"), "1"),
                listed(Some("latest"), "2"),
                listed(Some("new"), "3"),
                listed(None, "3"),
                listed(None, "4"),
            ],
            &destination,
        );
        assert_eq!(
            difference,
            Difference {
                unchanged: vec![listed(Some("1"), "1"), listed(None, "3")],
                missing: vec![
                    SourceImage { replaces: Some(digest("1")), ..listed(Some("latest"), "2") },
                    listed(Some("new"), "3"),
                    listed(None, "4"),
                ],
            }
        );
    }
}
