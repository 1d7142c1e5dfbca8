//! Lists the images of an ECR repository.

use std::collections::{BTreeSet, HashMap, HashSet};

use shared::Result;
use shared::ecr::{Image, ImageId, Registry};
use shared::manifest::Manifest;
use shared::reference::{Digest, Tag};
use shared::selection::NamedImage;
use shared::tags::{ALL_TAGS, Available, subject};

use super::{Listing, ListingFailure, Options, RepositoryRequest, SourceImage, choose, on_platform};

/// Lists the selected images of a repository.
pub async fn list(registry: &Registry, request: &RepositoryRequest, options: &Options) -> Result<Listing> {
    let images = registry.images(&request.repository.name).await?;
    let mut listing = listed(images.as_deref(), request, options);
    if options.platform.is_some() {
        resolve(registry, request, options, images.as_deref().unwrap_or_default(), &mut listing).await?;
    }
    Ok(listing)
}

/// Removes untagged images that belong to a listed index, because they are copied with it, and adds the number of images of
/// each index.
pub async fn with_indexes(
    registry: &Registry,
    request: &RepositoryRequest,
    mut missing: Vec<SourceImage>,
) -> Result<Vec<SourceImage>> {
    let indexes = indexes(registry, request, &missing).await?;
    let children = children(&indexes);
    missing.retain(|image| image.tag.is_some() || !children.contains(&image.digest));
    for image in &mut missing {
        image.images =
            indexes.get(&image.digest).map_or(0, |index| index.manifests.len().try_into().unwrap_or(u32::MAX));
    }
    Ok(missing)
}

/// Replaces each index by its image for the platform, and removes its other images.
async fn resolve(
    registry: &Registry,
    request: &RepositoryRequest,
    options: &Options,
    images: &[Image],
    listing: &mut Listing,
) -> Result<()> {
    let Some(platform) = &options.platform else { return Ok(()) };
    let manifests = indexes(registry, request, &listing.images).await?;
    let children = children(&manifests);
    let bytes: HashMap<Digest, u64> = images.iter().map(|image| (image.digest, image.bytes)).collect();
    listing.images.retain(|image| image.tag.is_some() || !children.contains(&image.digest));
    for mut image in std::mem::take(&mut listing.images) {
        match manifests.get(&image.digest).map(|index| on_platform(index, platform)) {
            None => {}
            Some(Ok(child)) => {
                image.bytes = bytes.get(&child.digest).copied().unwrap_or_default();
                image.digest = child.digest;
                image.is_index = false;
            }
            Some(Err(error)) => {
                listing.failures.push(image.failed(&error));
                continue;
            }
        }
        listing.images.push(image);
    }
    Ok(())
}

/// The manifests of the listed indexes.
async fn indexes(
    registry: &Registry,
    request: &RepositoryRequest,
    listed: &[SourceImage],
) -> Result<HashMap<Digest, Manifest>> {
    let indexes = listed.iter().filter(|image| image.is_index);
    let ids: Vec<_> = indexes.map(|image| ImageId::Digest(image.digest)).collect();
    let found = registry.find(&request.repository.name, &ids).await?.unwrap_or_default();
    Ok(found.into_values().map(|found| (found.digest, found.manifest)).collect())
}

fn children(indexes: &HashMap<Digest, Manifest>) -> HashSet<Digest> {
    indexes.values().flat_map(|index| &index.manifests).map(|child| child.digest).collect()
}

fn listed(images: Option<&[Image]>, request: &RepositoryRequest, options: &Options) -> Listing {
    let Some(images) = images else {
        let mut listing = Listing::default();
        if !request.wanted.patterns.is_empty() {
            listing.failures.push(ListingFailure::new(ALL_TAGS, NO_REPOSITORY));
        }
        let named = request.wanted.images.iter();
        listing.failures.extend(named.map(|image| ListingFailure::of(image.tag.as_ref(), image.digest, NO_REPOSITORY)));
        return listing;
    };
    let tagged: HashMap<&Tag, &Image> =
        images.iter().flat_map(|image| image.tags.iter().map(move |tag| (tag, image))).collect();
    let mut available: Vec<_> =
        tagged.iter().map(|(&tag, image)| Available { tag, pushed_at: image.pushed_at }).collect();
    available.sort_by_key(|it| it.tag);
    let archived: BTreeSet<&Tag> =
        images.iter().filter(|image| image.is_archived).flat_map(|image| &image.tags).collect();
    let (chosen, mut listing) = choose(&request.wanted, &available, &archived, &options.rules);
    let by_digest: HashMap<Digest, &Image> = images.iter().map(|image| (image.digest, image)).collect();
    for NamedImage { tag, digest } in chosen {
        let image = match &digest {
            Some(digest) => by_digest.get(digest),
            None => tag.as_ref().and_then(|tag| tagged.get(tag)),
        };
        match image {
            Some(image) => listing.images.push(source_image(tag, image)),
            None => listing.failures.push(ListingFailure::of(tag.as_ref(), digest, NO_IMAGE)),
        }
    }
    if options.include_untagged {
        if request.wanted.is_everything() {
            let untagged = images.iter().filter(|image| image.tags.is_empty() && !image.is_archived);
            listing.images.extend(untagged.map(|image| source_image(None, image)));
        } else {
            add_referrers(images, options, &mut listing);
        }
    }
    listing
}

pub const CANNOT_PULL: &str =
    "The image is archived at the source, and cannot be pulled. To copy it, restore it there.";

const NO_REPOSITORY: &str = "The repository does not exist at the source (name unknown).";

const NO_IMAGE: &str = "The image does not exist at the source (manifest unknown).";

/// Adds referrers of the listed images, such as signatures, SBOMs and attestations, and referrers of these.
fn add_referrers(images: &[Image], options: &Options, listing: &mut Listing) {
    let mut known: BTreeSet<Digest> = listing.images.iter().map(|image| image.digest).collect();
    let mut listed: BTreeSet<(Option<Tag>, Digest)> =
        listing.images.iter().map(|image| (image.tag.clone(), image.digest)).collect();
    loop {
        let before = listing.images.len();
        for image in images.iter().filter(|image| !image.is_archived) {
            let tags = image.tags.iter().filter(|tag| subject(tag).is_some_and(|digest| known.contains(&digest)));
            let mut names: Vec<_> =
                tags.filter(|tag| options.rules.excluding_tag(tag).is_none()).map(|tag| Some(tag.clone())).collect();
            if image.tags.is_empty() && image.subject.is_some_and(|digest| known.contains(&digest)) {
                names.push(None);
            }
            for tag in names {
                if listed.insert((tag.clone(), image.digest)) {
                    listing.images.push(source_image(tag, image));
                    known.insert(image.digest);
                }
            }
        }
        if listing.images.len() == before {
            return;
        }
    }
}

fn source_image(tag: Option<Tag>, image: &Image) -> SourceImage {
    let Image { bytes, is_index, is_archived, .. } = *image;
    SourceImage { bytes, is_index, is_archived, ..SourceImage::new(tag, image.digest) }
}

#[cfg(test)]
mod tests {
    use shared::reference::Repository;
    use shared::selection::{self, Wanted};

    use super::*;
    use crate::rules::Rules;

    fn digest(content: &str) -> Digest {
        Digest::of(content.as_bytes())
    }

    fn image(content: &str, tags: &[&str]) -> Image {
        Image {
            digest: digest(content),
            tags: tags.iter().map(|tag| tag.parse().expect(tag)).collect(),
            bytes: 9,
            is_index: false,
            pushed_at: 0,
            is_archived: false,
            subject: None,
        }
    }

    /// The tags, or `-`, and digests of the listed images, and the names of failures.
    fn names(
        images: Option<&[Image]>,
        list: Option<&str>,
        include_untagged: bool,
    ) -> (Vec<(String, Digest)>, Vec<String>) {
        let repository: Repository = "host.example/app".parse().expect("it is a repository");
        let wanted = list.map_or_else(Wanted::everything, |list| {
            let selection = selection::parse([("the list", list)], Some(&repository.registry)).expect("it is a list");
            selection.into_values().next().expect("it names one repository")
        });
        let name = repository.name.clone();
        let request = RepositoryRequest { repository, destination: name.clone(), name, wanted };
        let options = Options { include_untagged, platform: None, rules: Rules::default() };
        let listing = listed(images, &request, &options);
        let tag = |tag: Option<Tag>| tag.map_or_else(|| "-".to_owned(), String::from);
        let listed = listing.images.into_iter().map(|image| (tag(image.tag), image.digest)).collect();
        (listed, listing.failures.into_iter().map(|failed| failed.name.to_string()).collect())
    }

    fn pairs(names: &[(&str, Digest)]) -> Vec<(String, Digest)> {
        names.iter().map(|&(tag, digest)| (tag.to_owned(), digest)).collect()
    }

    #[test]
    fn all_images_are_every_tag_and_optionally_untagged_images() {
        let images = [image("1", &["1", "latest"]), image("2", &[])];
        let expected = pairs(&[("1", digest("1")), ("latest", digest("1")), ("-", digest("2"))]);
        assert_eq!(names(Some(&images), None, true), (expected, vec![]));
        assert_eq!(names(Some(&images), None, false).0.len(), 2);
    }

    #[test]
    fn a_selected_image_that_does_not_exist_does_not_affect_others() {
        let images = [image("1", &["1"])];
        let missing = digest("missing").to_string();
        let (listed, failed) = names(Some(&images), Some(&format!("app:1,app:2,app@{missing}")), true);
        assert_eq!((listed, failed), (pairs(&[("1", digest("1"))]), vec![missing, "2".to_owned()]));
    }

    #[test]
    fn a_digest_is_listed_with_the_tag_in_its_entry() {
        let images = [image("1", &["old"])];
        let list = |entry: &str| names(Some(&images), Some(&format!("app{entry}@{}", digest("1"))), true).0;
        assert_eq!(list(":new"), pairs(&[("new", digest("1"))]));
        assert_eq!(list(""), pairs(&[("-", digest("1"))]));
    }

    #[test]
    fn archived_images_are_excluded_unless_the_list_names_them() {
        let archived = |content: &str, tags: &[&str]| Image { is_archived: true, ..image(content, tags) };
        let images = [image("1", &["1"]), archived("2", &["2"]), archived("3", &[])];
        let of_1 = pairs(&[("1", digest("1"))]);
        assert_eq!(names(Some(&images), None, true), (of_1.clone(), vec![]));
        assert_eq!(names(Some(&images), Some("app:ALL_TAGS newest 1"), true), (of_1.clone(), vec![]));
        let named = pairs(&[("1", digest("1")), ("2", digest("2"))]);
        assert_eq!(names(Some(&images), Some("app:ALL_TAGS,app:2"), true), (named, vec![]));
    }

    #[test]
    fn a_repository_that_does_not_exist_is_a_failure_for_each_entry() {
        assert_eq!(names(None, Some("app:ALL_TAGS,app:1"), true), (vec![], vec!["ALL_TAGS".into(), "1".into()]));
    }

    #[test]
    fn referrers_of_a_selected_image_are_listed_and_other_images_are_not() {
        let companion = |of: &str| format!("sha256-{}.sig", digest(of).hex());
        let refers_to = |image: Image, subject: &str| Image { subject: Some(digest(subject)), ..image };
        let images = [
            refers_to(image("signature of SBOM", &[]), "SBOM"),
            image("1", &["1"]),
            image("2", &["2"]),
            image("signature 1", &[&companion("1")]),
            image("signature 2", &[&companion("2")]),
            refers_to(image("SBOM", &[]), "1"),
            image("other", &[]),
        ];
        let expected = [
            ("1", digest("1")),
            (&companion("1"), digest("signature 1")),
            ("-", digest("SBOM")),
            ("-", digest("signature of SBOM")),
        ];
        assert_eq!(names(Some(&images), Some("app:1"), true).0, pairs(&expected));
        assert_eq!(names(Some(&images), Some("app:1"), false).0, pairs(&expected[..1]));
    }
}
