//! Registries that speak the OCI distribution API: Docker Hub, Quay, and all the others.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use oci_client::client::{Client, ClientConfig};
use oci_client::errors::{OciDistributionError, Result};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use shared::manifest::Manifest;

use crate::selection::{Repository, Wanted};
use crate::source::{Listed, unlistable};

/// Tags asked for at once in one repository; registries limit how fast one client may ask.
const CONCURRENCY: usize = 10;

/// The tags asked for in one page.
const PAGE: usize = 1_000;

/// On Docker Hub a GET of a manifest counts as a pull, of which there are few; a HEAD does not.
const COUNTS_PULLS: &str = "docker.io";

/// A client for all of them; it remembers the tokens that they hand out.
pub struct Registries {
    client: Client,
}

impl Registries {
    /// A client that asks anonymously.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self { client: Client::new(config) }
    }

    /// What is wanted of a repository, with the digests that the registry names. What it does not name is left to
    /// skopeo, which says why in its own words.
    pub async fn list(&self, repository: &Repository, wanted: &Wanted) -> Vec<Listed> {
        let mut references = wanted.images.clone();
        let mut listed = Vec::new();
        if wanted.all_tags {
            match self.tags(repository).await {
                Ok(tags) => {
                    let all = tags
                        .into_iter()
                        .map(|tag| Reference::with_tag(repository.registry.clone(), repository.name.clone(), tag));
                    references.extend(all.filter(|reference| !wanted.images.contains(reference)));
                }
                Err(error) => listed.push(unlistable(&error)),
            }
        }
        let mut images: Vec<Listed> = stream::iter(&references)
            .map(async |reference| {
                let digest = match reference.digest() {
                    Some(digest) => Some(digest.to_owned()),
                    None => self
                        .client
                        .fetch_manifest_digest(reference, &RegistryAuth::Anonymous)
                        .await
                        .inspect_err(|error| tracing::warn!(%reference, %error, "the source names no digest"))
                        .ok(),
                };
                let tag = reference.tag().map(str::to_owned);
                Listed { tag, digest, bytes: 0, is_index: false, error: None }
            })
            .buffered(CONCURRENCY)
            .collect()
            .await;
        listed.append(&mut images);
        listed
    }

    /// The bytes of an image; of an index, those of all its images. 0 where the registry does not tell, or where asking
    /// would cost a pull.
    pub async fn bytes(&self, repository: &Repository, digest: &str) -> u64 {
        if repository.registry == COUNTS_PULLS {
            return 0;
        }
        let Ok(manifest) = self.manifest(repository, digest).await else { return 0 };
        let images: Vec<Manifest> = stream::iter(&manifest.manifests)
            .map(async |image| self.manifest(repository, &image.digest).await.unwrap_or_default())
            .buffered(CONCURRENCY)
            .collect()
            .await;
        Manifest::blob_bytes(images.iter().chain([&manifest]))
    }

    async fn manifest(&self, repository: &Repository, digest: &str) -> Result<Manifest> {
        const ACCEPTED: [&str; 4] = [
            OCI_IMAGE_INDEX_MEDIA_TYPE,
            OCI_IMAGE_MEDIA_TYPE,
            IMAGE_MANIFEST_LIST_MEDIA_TYPE,
            IMAGE_MANIFEST_MEDIA_TYPE,
        ];
        let reference = Reference::with_digest(repository.registry.clone(), repository.name.clone(), digest.to_owned());
        let (text, _) = self.client.pull_manifest_raw(&reference, &RegistryAuth::Anonymous, &ACCEPTED).await?;
        Ok(Manifest::parse(&String::from_utf8_lossy(&text)))
    }

    /// All tags of a repository, page by page.
    async fn tags(&self, repository: &Repository) -> Result<BTreeSet<String>> {
        let reference = Reference::with_tag(repository.registry.clone(), repository.name.clone(), "latest".into());
        let anonymous = RegistryAuth::Anonymous;
        // Listing tags does not fetch a token by itself.
        self.client.auth(&reference, &anonymous, RegistryOperation::Pull).await?;
        let mut tags = BTreeSet::new();
        let mut last: Option<String> = None;
        loop {
            let page = self.client.list_tags(&reference, &anonymous, Some(PAGE), last.as_deref()).await?.tags;
            let next = page.last().cloned();
            let known = tags.len();
            tags.extend(page);
            // A registry that ignores `last` answers with the same page for ever; one that ignores `n` may choose
            // shorter pages. So the end is a page without news.
            if tags.len() == known || next.is_none() {
                return if tags.is_empty() { Err(no_tags()) } else { Ok(tags) };
            }
            last = next;
        }
    }
}

fn no_tags() -> OciDistributionError {
    OciDistributionError::GenericError(Some("the repository has no tags".into()))
}
