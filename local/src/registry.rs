//! A registry as the machine itself uses it: to seed it, and to look what is in it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::{
    aws::{Aws, http_client},
    error::{Error, Result},
    images::{self, Blob, Image, Manifest},
};

/// How many uploads run at a time.
const UPLOADS: usize = 8;
/// All that a manifest may be.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// An image, and the tags that it goes by; without any, it goes by its digest alone.
pub type Tagged<'a> = (&'a Image, &'a [String]);

/// The images of ECR repositories: tags with their digests, and the digests of images without a tag. By repository.
pub type Contents = BTreeMap<String, BTreeSet<(Option<String>, String)>>;

/// What ECR lists in the repositories whose names start with `prefix`.
///
/// # Errors
/// [`Error::Aws`] if ECR refuses.
pub async fn contents(aws: &Aws, prefix: &str) -> Result<Contents> {
    let target = |action: &str| format!("AmazonEC2ContainerRegistry_V20150921.{action}");
    let mut contents = Contents::new();
    let repositories = aws.pages("ecr", &target("DescribeRepositories"), json!({}), "repositories").await?;
    let names = repositories.iter().filter_map(|repository| repository["repositoryName"].as_str());
    for name in names.filter(|name| name.starts_with(prefix)) {
        let request = json!({ "repositoryName": name });
        let images = match aws.pages("ecr", &target("DescribeImages"), request, "imageDetails").await {
            // It was deleted in the meantime.
            Err(error) if error.code() == Some("RepositoryNotFoundException") => continue,
            images => images?,
        };
        let images = images.iter().flat_map(|image| {
            let digest = image["imageDigest"].as_str().unwrap_or_default();
            let tags: Vec<_> = image["imageTags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let tags = if tags.is_empty() { vec![None] } else { tags.into_iter().map(Some).collect() };
            tags.into_iter().map(|tag| (tag.map(str::to_owned), digest.to_owned()))
        });
        contents.insert(name.to_owned(), images.collect());
    }
    Ok(contents)
}

/// A registry on this machine, reached without the proxy.
#[derive(Debug)]
pub struct Registry {
    http: reqwest::Client,
    endpoint: String,
    host: String,
}

impl Registry {
    /// The registry of name `host` that `endpoint` serves.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn new(endpoint: &str, host: &str) -> Result<Self> {
        Ok(Self { http: http_client()?, endpoint: endpoint.to_owned(), host: host.to_owned() })
    }

    /// Its name, as image references have it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Pushes images into one repository, each under its tags. Blobs that several of them have go once.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry refuses a part of it.
    pub async fn push(&self, repository: &str, images: &[Tagged<'_>]) -> Result<()> {
        let blobs: BTreeMap<&str, &Blob> =
            images.iter().flat_map(|(image, _)| &image.blobs).map(|blob| (&*blob.digest, &**blob)).collect();
        stream::iter(blobs.into_values())
            .map(|blob| self.push_blob(repository, blob))
            .buffer_unordered(UPLOADS)
            .try_collect::<()>()
            .await?;
        for (image, tags) in images {
            for manifest in &image.platforms {
                self.push_manifest(repository, &manifest.digest, manifest).await?;
            }
            let by_digest = [image.manifest.digest.clone()];
            for reference in if tags.is_empty() { &by_digest } else { *tags } {
                self.push_manifest(repository, reference, &image.manifest).await?;
            }
        }
        Ok(())
    }

    async fn push_blob(&self, repository: &str, blob: &Blob) -> Result<()> {
        let url = format!("{}/v2/{repository}/blobs/uploads/", self.endpoint);
        let started = self.send("POST", &url, self.http.post(&url)).await?;
        let location = started
            .headers()
            .get(LOCATION)
            .and_then(|location| started.url().join(location.to_str().ok()?).ok())
            .ok_or_else(|| Error::Unexpected(format!("POST {url} led nowhere")))?;
        let mut upload = location;
        upload.query_pairs_mut().append_pair("digest", &blob.digest);
        let url = upload.to_string();
        self.send("PUT", &url, self.http.put(upload).body(blob.bytes.clone())).await.map(drop)
    }

    async fn push_manifest(&self, repository: &str, reference: &str, manifest: &Manifest) -> Result<()> {
        self.put_manifest(repository, reference, manifest.media_type, manifest.bytes.clone()).await
    }

    async fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: Vec<u8>) -> Result<()> {
        let url = self.manifest_url(repository, reference);
        self.send("PUT", &url, self.http.put(&url).header(CONTENT_TYPE, media_type).body(bytes)).await.map(drop)
    }

    /// The digest that a tag (or a digest) has there, if it is there.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry says anything else.
    pub async fn digest(&self, repository: &str, reference: &str) -> Result<Option<String>> {
        let url = self.manifest_url(repository, reference);
        let answer = match self.send("HEAD", &url, self.http.head(&url).header(ACCEPT, MANIFESTS)).await {
            Err(Error::Registry { status: 404, .. }) => return Ok(None),
            answer => answer?,
        };
        let digest = answer.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        Ok(digest.map(str::to_owned))
    }

    /// The tags that it lists in a repository, with their digests.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry refuses.
    pub async fn tags(&self, repository: &str) -> Result<BTreeMap<String, String>> {
        let url = format!("{}/v2/{repository}/tags/list", self.endpoint);
        let answer = self.send("GET", &url, self.http.get(&url)).await?;
        let list: Value = answer.json().await.map_err(|source| Error::Http { what: url, source })?;
        let mut tags = BTreeMap::new();
        for tag in list["tags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            // One that was deleted in the meantime has no digest.
            if let Some(digest) = self.digest(repository, tag).await? {
                tags.insert(tag.to_owned(), digest);
            }
        }
        Ok(tags)
    }

    /// Adds a tag to an image of a repository, or moves it there from another one.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry refuses.
    pub async fn tag(&self, repository: &str, digest: &str, tag: &str) -> Result<()> {
        let bytes = self.manifest(repository, digest).await?;
        let manifest: Value =
            serde_json::from_slice(&bytes).map_err(|error| Error::Unexpected(format!("{repository}: {error}")))?;
        let media_type = manifest["mediaType"].as_str().unwrap_or_default();
        self.put_manifest(repository, tag, media_type, bytes).await
    }

    /// Deletes a tag. The image stays, with its other tags or without any.
    ///
    /// Neither of the local registries deletes a tag alone, so the tag moves to an empty index, which is deleted.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry refuses.
    pub async fn untag(&self, repository: &str, tag: &str) -> Result<()> {
        let empty = images::empty_index();
        self.push_manifest(repository, tag, &empty).await?;
        let url = self.manifest_url(repository, &empty.digest);
        self.send("DELETE", &url, self.http.delete(&url)).await.map(drop)
    }

    /// The content of a manifest, by tag or digest.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry refuses.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<Vec<u8>> {
        let url = self.manifest_url(repository, reference);
        let answer = self.send("GET", &url, self.http.get(&url).header(ACCEPT, MANIFESTS)).await?;
        let body = answer.bytes().await.map_err(|source| Error::Http { what: url, source })?;
        Ok(body.to_vec())
    }

    /// The blobs of an image, of all its platforms, with their sizes in bytes.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry refuses, [`Error::Unexpected`] if a manifest is none.
    pub async fn blobs(&self, repository: &str, reference: &str) -> Result<BTreeMap<String, u64>> {
        let none = |what: &str| Error::Unexpected(format!("{repository}: {what}"));
        let mut manifests = vec![reference.to_owned()];
        let mut blobs = BTreeMap::new();
        while let Some(reference) = manifests.pop() {
            let manifest: Value = serde_json::from_slice(&self.manifest(repository, &reference).await?)
                .map_err(|error| none(&error.to_string()))?;
            let listed = |name: &str| manifest[name].as_array().into_iter().flatten();
            manifests.extend(listed("manifests").filter_map(|it| it["digest"].as_str()).map(str::to_owned));
            for blob in listed("layers").chain(manifest.get("config")) {
                let digest = blob["digest"].as_str().ok_or_else(|| none("a blob has no digest"))?;
                blobs.insert(digest.to_owned(), blob["size"].as_u64().ok_or_else(|| none("a blob has no size"))?);
            }
        }
        Ok(blobs)
    }

    /// Whether a repository has a blob.
    ///
    /// # Errors
    /// [`Error::Registry`] if the registry says anything else.
    pub async fn has_blob(&self, repository: &str, digest: &str) -> Result<bool> {
        let url = format!("{}/v2/{repository}/blobs/{digest}", self.endpoint);
        match self.send("HEAD", &url, self.http.head(&url)).await {
            Err(Error::Registry { status: 404, .. }) => Ok(false),
            answer => answer.map(|_| true),
        }
    }

    fn manifest_url(&self, repository: &str, reference: &str) -> String {
        format!("{}/v2/{repository}/manifests/{reference}", self.endpoint)
    }

    async fn send(&self, method: &'static str, url: &str, request: RequestBuilder) -> Result<Response> {
        let no_answer = |source| Error::Http { what: format!("{} for {method} {url}", self.host), source };
        let answer = request.header(HOST, &self.host).send().await.map_err(no_answer)?;
        let status = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(answer);
        }
        let body = answer.text().await.unwrap_or_default();
        Err(Error::Registry { method, url: url.to_owned(), status, body })
    }
}
