//! Compares the listing of a repository with the destination.

use std::collections::{HashMap, HashSet};

use shared::ecr::{Image, Immutable};
use shared::plan::{self, Reason};
use shared::reference::{Digest, Tag};

use crate::source::{ListingFailure, SourceImage};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// The destination has the same digest for the tag.
    pub unchanged: Vec<SourceImage>,
    /// The destination does not have the tag, or has another digest for it.
    pub missing: Vec<SourceImage>,
}

/// `destination` are the images of the repository at the destination: none if it does not exist.
pub fn compare(listed: Vec<SourceImage>, destination: &[Image]) -> Difference {
    let digests: HashSet<Digest> = destination.iter().map(|image| image.digest).collect();
    let tags: HashMap<&Tag, Digest> =
        destination.iter().flat_map(|image| image.tags.iter().map(|tag| (tag, image.digest))).collect();
    let mut difference = Difference::default();
    for mut image in listed {
        let existing = match &image.tag {
            Some(tag) => tags.get(tag).copied(),
            None => digests.get(&image.digest).copied(),
        };
        if existing == Some(image.digest) {
            difference.unchanged.push(image);
        } else {
            image.replaces = existing;
            difference.missing.push(image);
        }
    }
    difference
}

/// The failure of an image whose tag exists at the destination, and is immutable.
pub fn refuse_immutable(image: &SourceImage, immutable: &Immutable) -> Option<ListingFailure> {
    let (Some(tag), Some(existing)) = (&image.tag, image.replaces) else { return None };
    immutable.contains(tag).then(|| {
        image.failed(&format!(
            "The tag is immutable at the destination, and points to {existing}. To copy the image, delete the tag there."
        ))
    })
}

/// The image in the plan.
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

    fn existing(content: &str, tags: &[&str]) -> Image {
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
    fn an_image_that_is_archived_at_the_destination_is_unchanged() {
        let archived = Image { is_archived: true, ..existing("1", &["1"]) };
        let difference = compare(vec![listed(Some("1"), "1")], &[archived]);
        assert_eq!(difference, Difference { unchanged: vec![listed(Some("1"), "1")], missing: vec![] });
    }

    #[test]
    fn an_image_is_unchanged_if_its_tag_points_to_its_digest() {
        let destination = [existing("1", &["1", "latest"]), existing("3", &[])];
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
