//! What the source holds of what the run wants: repositories, and the images listed in each.

use futures_util::{StreamExt, TryStreamExt, stream};
use shared::ecr::{Image, ImageId, Registry};
use shared::{Error, Result};

use crate::public::Registries;
use crate::selection::{ALL_TAGS, Repository, Selection, Wanted};

/// How many repositories are listed at once.
pub const CONCURRENCY: usize = 32;

/// A repository that the run copies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `registry/repository`
    pub source: String,
    /// Its name in the table, and at the destination behind the prefix.
    pub name: String,
    /// Its name in the source's own API.
    repository: Repository,
    /// What of it; `None` for everything.
    wanted: Option<Wanted>,
}

/// An image that is to be at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The tag; `None` for an untagged image.
    pub tag: Option<String>,
    /// The digest; `None` where the source would not name it.
    pub digest: Option<String>,
    /// The compressed size; 0 where it is not known.
    pub bytes: u64,
    /// Whether it is an index.
    pub is_index: bool,
    /// Why it cannot be copied, where that is clear already.
    pub error: Option<String>,
}

/// The registries that images come from.
pub enum Source {
    /// One ECR registry, and its host name.
    Ecr(Registry, String),
    /// Any others.
    Public(Registries),
}

impl Source {
    /// The repositories to copy from: those that the selection names, or all that there are.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn repositories(&self, selection: Option<Selection>) -> Result<Vec<Wish>> {
        match (self, selection) {
            (Self::Ecr(registry, host), None) => {
                let names = registry.repositories().await?;
                Ok(names
                    .into_iter()
                    .map(|name| wish(Repository { registry: host.clone(), name }, true, None))
                    .collect())
            }
            (_, Some(selection)) => {
                let is_ecr = matches!(self, Self::Ecr(..));
                Ok(selection.into_iter().map(|(repository, wanted)| wish(repository, is_ecr, Some(wanted))).collect())
            }
            (Self::Public(_), None) => Ok(Vec::new()),
        }
    }

    /// The images of one repository that the run wants. What is wrong with one of them, or with the repository, is told
    /// in its place: it costs no other image.
    pub async fn list(&self, wish: &Wish, include_untagged: bool) -> Vec<Listed> {
        match self {
            Self::Ecr(registry, _) => match registry.images(&wish.repository.name).await {
                Ok(images) => listed(images, wish, include_untagged),
                Err(error) => vec![unlistable(&error)],
            },
            Self::Public(registries) => {
                let wanted = wish.wanted.clone().unwrap_or_default();
                registries.list(&wish.repository, &wanted).await
            }
        }
    }

    /// Takes out untagged images that belong to an index which is copied anyway, and come along with it.
    ///
    /// # Errors
    /// When the source does not show its indexes.
    pub async fn without_children(&self, wish: &Wish, images: Vec<Listed>) -> Result<Vec<Listed>> {
        let Self::Ecr(registry, _) = self else { return Ok(images) };
        if images.iter().all(|image| image.tag.is_some()) {
            return Ok(images);
        }
        let indexes: Vec<ImageId> = images
            .iter()
            .filter(|image| image.is_index)
            .map(|image| ImageId { tag: None, digest: image.digest.clone() })
            .collect();
        let found = registry.find(&wish.repository.name, &indexes).await?.unwrap_or_default();
        let is_child = |image: &Listed| {
            image.tag.is_none()
                && found
                    .values()
                    .flat_map(|index| &index.manifest.manifests)
                    .any(|child| Some(&child.digest) == image.digest.as_ref())
        };
        Ok(images.into_iter().filter(|image| !is_child(image)).collect())
    }

    /// Fills in the sizes that listing did not tell.
    pub async fn with_sizes(&self, wish: &Wish, images: Vec<Listed>) -> Vec<Listed> {
        let Self::Public(registries) = self else { return images };
        stream::iter(images)
            .map(async |image| match &image.digest {
                Some(digest) => {
                    let bytes = registries.bytes(&wish.repository, digest).await;
                    Listed { bytes, ..image }
                }
                None => image,
            })
            .buffered(CONCURRENCY)
            .collect()
            .await
    }
}

/// Runs `work` for each of `repositories`, [`CONCURRENCY`] at a time.
///
/// # Errors
/// With the first error of `work`.
pub async fn for_each<T, W>(repositories: Vec<Wish>, work: impl Fn(Wish) -> W) -> Result<Vec<T>>
where
    W: Future<Output = Result<T, Error>>,
{
    stream::iter(repositories).map(work).buffer_unordered(CONCURRENCY).try_collect().await
}

fn wish(repository: Repository, is_ecr: bool, wanted: Option<Wanted>) -> Wish {
    let name = if is_ecr { repository.name.clone() } else { repository.plain_name() };
    Wish { source: format!("{}/{}", repository.registry, repository.name), name, repository, wanted }
}

/// Stands for a repository whose images could not be listed.
pub fn unlistable(error: &dyn std::error::Error) -> Listed {
    let error = Some(format!("its images cannot be listed: {error}"));
    Listed { tag: Some(ALL_TAGS.into()), digest: None, bytes: 0, is_index: false, error }
}

fn listed(images: Option<Vec<Image>>, wish: &Wish, include_untagged: bool) -> Vec<Listed> {
    let exists = images.is_some();
    let images = images.unwrap_or_default();
    let all = wish.wanted.as_ref().is_none_or(|wanted| wanted.all_tags);
    let one = |image: &Image, tag: Option<&String>| Listed {
        tag: tag.cloned(),
        digest: Some(image.digest.clone()),
        bytes: image.bytes,
        is_index: image.is_index,
        error: None,
    };
    let mut listed = Vec::new();
    if all {
        for image in &images {
            listed.extend(image.tags.iter().map(|tag| one(image, Some(tag))));
            if image.tags.is_empty() && include_untagged {
                listed.push(one(image, None));
            }
        }
        if !exists {
            listed.push(unlistable(&std::io::Error::other("the source has no such repository")));
        }
    }
    for reference in wish.wanted.iter().flat_map(|wanted| &wanted.images) {
        let (tag, digest) = (reference.tag(), reference.digest());
        if all && (tag.is_some() && listed.iter().any(|image| image.tag.as_deref() == tag)) {
            continue;
        }
        let image = images.iter().find(|image| {
            digest.map_or_else(
                || tag.is_some_and(|tag| image.tags.iter().any(|t| t == tag)),
                |digest| image.digest == digest,
            )
        });
        listed.push(image.map_or_else(
            || Listed {
                tag: tag.map(str::to_owned),
                digest: digest.map(str::to_owned),
                bytes: 0,
                is_index: false,
                error: None,
            },
            |image| Listed { tag: tag.map(str::to_owned), ..one(image, None) },
        ));
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection;

    fn image(digest: &str, tags: &[&str]) -> Image {
        Image { digest: digest.into(), tags: tags.iter().map(|&tag| tag.into()).collect(), bytes: 9, is_index: false }
    }

    fn wish_for(list: Option<&str>) -> Wish {
        let wanted = list.map(|list| {
            let selection = selection::parse(list, Some("host.example")).expect("it is a list");
            selection.into_values().next().expect("it names one repository")
        });
        wish(Repository { registry: "host.example".into(), name: "app".into() }, true, wanted)
    }

    fn names(listed: &[Listed]) -> Vec<(&str, &str)> {
        listed
            .iter()
            .map(|image| (image.tag.as_deref().unwrap_or("-"), image.digest.as_deref().unwrap_or("?")))
            .collect()
    }

    #[test]
    fn all_lists_every_tag_and_untagged_images_where_they_are_included() {
        let images = vec![image("sha256:1", &["1", "latest"]), image("sha256:2", &[])];
        assert_eq!(
            names(&listed(Some(images.clone()), &wish_for(None), true)),
            [("1", "sha256:1"), ("latest", "sha256:1"), ("-", "sha256:2")]
        );
        assert_eq!(listed(Some(images), &wish_for(None), false).len(), 2);
    }

    #[test]
    fn a_selected_tag_that_the_source_lacks_is_listed_without_a_digest() {
        let images = vec![image("sha256:1", &["1"])];
        assert_eq!(names(&listed(Some(images), &wish_for(Some("app:1,app:2")), true)), [("1", "sha256:1"), ("2", "?")]);
    }

    #[test]
    fn a_tag_that_all_tags_lists_already_is_listed_once() {
        let images = vec![image("sha256:1", &["1"])];
        assert_eq!(names(&listed(Some(images), &wish_for(Some("app:ALL_TAGS,app:1")), false)), [("1", "sha256:1")]);
    }

    #[test]
    fn all_tags_of_a_repository_that_does_not_exist_is_an_error_of_that_repository() {
        let listed = listed(None, &wish_for(Some("app:ALL_TAGS")), true);
        assert_eq!(names(&listed), [(ALL_TAGS, "?")]);
        assert!(listed[0].error.as_deref().is_some_and(|error| error.contains("no such repository")));
    }
}
