//! The images of an ECR repository.

use std::collections::{BTreeSet, HashMap, HashSet};

use shared::Result;
use shared::ecr::{Image, ImageId, Registry};
use shared::manifest::Manifest;

use super::{Listed, Listing, Options, Wish, choose, on_platform, unlistable};
use crate::selection::Named;
use crate::tags::{Available, subject};

/// Lists what the run wants of a repository.
///
/// # Errors
/// When it cannot be listed.
pub async fn list(registry: &Registry, wish: &Wish, options: &Options) -> Result<Listing> {
    let images = registry.images(&wish.repository.name).await?;
    let mut listing = listed(images.as_deref(), wish, options);
    if options.platform.is_some() {
        resolve(registry, wish, options, images.as_deref().unwrap_or_default(), &mut listing.images).await?;
    }
    Ok(listing)
}

/// Takes out untagged images that belong to an index which is copied anyway, and come along with it; and says how many
/// each index has.
///
/// # Errors
/// When the source does not show its indexes.
pub async fn with_indexes(registry: &Registry, wish: &Wish, mut missing: Vec<Listed>) -> Result<Vec<Listed>> {
    let indexes =
        indexes(registry, wish, missing.iter().filter(|it| it.is_index).filter_map(|it| it.digest.as_deref())).await?;
    let children = children(&indexes);
    missing.retain(|image| image.tag.is_some() || !image.digest.as_ref().is_some_and(|it| children.contains(it)));
    for image in &mut missing {
        let index = image.digest.as_ref().and_then(|digest| indexes.get(digest));
        image.images = index.map_or(0, |index| index.manifests.len() as u64);
    }
    Ok(missing)
}

/// Puts in place of each index its image for the platform. The others of its images are not copied by themselves.
async fn resolve(
    registry: &Registry,
    wish: &Wish,
    options: &Options,
    images: &[Image],
    listed: &mut Vec<Listed>,
) -> Result<()> {
    let Some(platform) = &options.platform else { return Ok(()) };
    let manifests =
        indexes(registry, wish, listed.iter().filter(|it| it.is_index).filter_map(|it| it.digest.as_deref())).await?;
    let children = children(&manifests);
    let bytes: HashMap<&str, u64> = images.iter().map(|image| (image.digest.as_str(), image.bytes)).collect();
    listed.retain(|image| image.tag.is_some() || !image.digest.as_ref().is_some_and(|it| children.contains(it)));
    for image in listed.iter_mut() {
        let Some(index) = image.digest.as_ref().and_then(|digest| manifests.get(digest)) else { continue };
        match on_platform(index, platform) {
            Ok(child) => {
                image.bytes = bytes.get(child.digest.as_str()).copied().unwrap_or_default();
                image.digest = Some(child.digest);
                image.is_index = false;
            }
            Err(error) => image.error = Some(error),
        }
    }
    Ok(())
}

async fn indexes<'a>(
    registry: &Registry,
    wish: &Wish,
    digests: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, Manifest>> {
    let ids: Vec<_> = digests.map(|digest| ImageId { tag: None, digest: Some(digest.to_owned()) }).collect();
    let found = registry.find(&wish.repository.name, &ids).await?.unwrap_or_default();
    Ok(found.into_values().map(|found| (found.digest, found.manifest)).collect())
}

fn children(indexes: &HashMap<String, Manifest>) -> HashSet<String> {
    indexes.values().flat_map(|index| &index.manifests).map(|child| child.digest.clone()).collect()
}

fn listed(images: Option<&[Image]>, wish: &Wish, options: &Options) -> Listing {
    let exists = images.is_some();
    let images = images.unwrap_or_default();
    let tagged: HashMap<&str, &Image> =
        images.iter().flat_map(|image| image.tags.iter().map(move |tag| (tag.as_str(), image))).collect();
    let mut available: Vec<_> =
        tagged.iter().map(|(&tag, image)| Available { tag, pushed_at: image.pushed_at }).collect();
    available.sort_by_key(|it| it.tag);
    if !exists && !wish.wanted.patterns.is_empty() {
        let mut listing = Listing::default();
        listing.images.push(unlistable(&std::io::Error::other("the source has no such repository")));
        listing.images.extend(wish.wanted.images.iter().map(|image| one(image, None)));
        return listing;
    }
    let (chosen, mut listing) = choose(&wish.wanted, &available, &options.rules);
    let by_digest: HashMap<&str, &Image> = images.iter().map(|image| (image.digest.as_str(), image)).collect();
    for named in &chosen {
        let image = match (&named.digest, &named.tag) {
            (Some(digest), _) => by_digest.get(digest.as_str()),
            (None, tag) => tag.as_ref().and_then(|tag| tagged.get(tag.as_str())),
        };
        listing.images.push(one(named, image.copied()));
    }
    if options.include_untagged {
        let untagged = images.iter().filter(|image| image.tags.is_empty());
        if wish.wanted.is_everything() {
            listing.images.extend(untagged.map(|image| one(&Named { tag: None, digest: None }, Some(image))));
        } else {
            companions(images, options, &mut listing);
        }
    }
    listing
}

/// Adds what refers to the listed images: signatures, SBOMs, attestations; and what refers to these.
fn companions(images: &[Image], options: &Options, listing: &mut Listing) {
    let mut known: BTreeSet<String> = listing.images.iter().filter_map(|image| image.digest.clone()).collect();
    let mut listed: BTreeSet<(Option<String>, Option<String>)> =
        listing.images.iter().map(|image| (image.tag.clone(), image.digest.clone())).collect();
    loop {
        let before = listing.images.len();
        for image in images {
            let tags = image.tags.iter().filter(|tag| subject(tag).is_some_and(|digest| known.contains(&digest)));
            let mut names: Vec<_> =
                tags.filter(|tag| options.rules.excluding_tag(tag).is_none()).map(|tag| Some(tag.clone())).collect();
            if image.tags.is_empty() && image.subject.as_ref().is_some_and(|digest| known.contains(digest)) {
                names.push(None);
            }
            for tag in names {
                if listed.insert((tag.clone(), Some(image.digest.clone()))) {
                    listing.images.push(one(&Named { tag, digest: None }, Some(image)));
                    known.insert(image.digest.clone());
                }
            }
        }
        if listing.images.len() == before {
            return;
        }
    }
}

fn one(named: &Named, image: Option<&Image>) -> Listed {
    Listed {
        tag: named.tag.clone(),
        digest: image.map(|image| image.digest.clone()).or_else(|| named.digest.clone()),
        bytes: image.map_or(0, |image| image.bytes),
        is_index: image.is_some_and(|image| image.is_index),
        ..Listed::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;
    use crate::selection::{self, Repository, Wanted};

    fn image(digest: &str, tags: &[&str]) -> Image {
        Image {
            digest: digest.into(),
            tags: tags.iter().map(|&tag| tag.into()).collect(),
            bytes: 9,
            is_index: false,
            pushed_at: 0,
            subject: None,
        }
    }

    fn names(images: Option<&[Image]>, list: Option<&str>, include_untagged: bool) -> Vec<(String, String)> {
        let repository = Repository { registry: "host.example".into(), name: "app".into() };
        let wanted = list.map_or_else(Wanted::everything, |list| {
            let selection = selection::parse([("the list", list)], Some("host.example")).expect("it is a list");
            selection.into_values().next().expect("it names one repository")
        });
        let wish = Wish { repository, name: "app".into(), destination: "app".into(), wanted };
        let options = Options { include_untagged, platform: None, rules: Rules::default() };
        let text = |text: Option<String>, none: &str| text.unwrap_or_else(|| none.to_owned());
        let listing = listed(images, &wish, &options);
        listing.images.into_iter().map(|image| (text(image.tag, "-"), text(image.digest, "?"))).collect()
    }

    fn pairs(names: &[(&str, &str)]) -> Vec<(String, String)> {
        names.iter().map(|&(tag, digest)| (tag.to_owned(), digest.to_owned())).collect()
    }

    #[test]
    fn all_lists_every_tag_and_untagged_images_where_they_are_included() {
        let images = [image("sha256:1", &["1", "latest"]), image("sha256:2", &[])];
        assert_eq!(
            names(Some(&images), None, true),
            pairs(&[("1", "sha256:1"), ("latest", "sha256:1"), ("-", "sha256:2")])
        );
        assert_eq!(names(Some(&images), None, false).len(), 2);
    }

    #[test]
    fn a_selected_tag_that_the_source_lacks_is_listed_without_a_digest() {
        let images = [image("sha256:1", &["1"])];
        assert_eq!(names(Some(&images), Some("app:1,app:2"), true), pairs(&[("1", "sha256:1"), ("2", "?")]));
    }

    #[test]
    fn a_digest_is_listed_with_the_tag_that_it_is_to_have() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let images = [image(&digest, &["old"])];
        assert_eq!(names(Some(&images), Some(&format!("app:new@{digest}")), true), pairs(&[("new", &digest)]));
        assert_eq!(names(Some(&images), Some(&format!("app@{digest}")), true), pairs(&[("-", &digest)]));
    }

    #[test]
    fn a_pattern_of_a_repository_that_does_not_exist_is_an_error_of_that_repository() {
        assert_eq!(names(None, Some("app:ALL_TAGS,app:1"), true), pairs(&[("ALL_TAGS", "?"), ("1", "?")]));
    }

    #[test]
    fn what_refers_to_a_selected_image_comes_along_and_nothing_else() {
        let (one, two) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
        let companion = |of: &str, ending: &str| format!("{}{ending}", of.replace(':', "-"));
        let signature_tag = companion(&one, ".sig");
        let mut sbom = image("sha256:sbom", &[]);
        sbom.subject = Some(one.clone());
        let mut signature_of_sbom = image("sha256:sbom-signature", &[]);
        signature_of_sbom.subject = Some("sha256:sbom".into());
        let images = [
            signature_of_sbom,
            image(&one, &["1"]),
            image(&two, &["2"]),
            image("sha256:sig-1", &[&signature_tag]),
            image("sha256:sig-2", &[&companion(&two, ".sig")]),
            sbom,
            image("sha256:other", &[]),
        ];
        assert_eq!(
            names(Some(&images), Some("app:1"), true),
            pairs(&[
                ("1", &one),
                (&signature_tag, "sha256:sig-1"),
                ("-", "sha256:sbom"),
                ("-", "sha256:sbom-signature")
            ])
        );
        assert_eq!(names(Some(&images), Some("app:1"), false), pairs(&[("1", &one)]));
    }
}
