//! A client of the local registries, to fill them and to look into them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION};
use http::{Method, StatusCode};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::aws::{Aws, code, http_client};
use crate::images::{self, Blob, Image, Manifest};

/// How many uploads run at a time.
const UPLOADS: usize = 8;
/// All media types of manifests.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// An image with its tags; without any, it is pushed by its digest alone.
pub type Tagged<'a> = (&'a Image, &'a [String]);

/// The images of ECR repositories: tags with their digests, and the digests of images without a tag. By repository.
pub type Contents = BTreeMap<String, BTreeSet<(Option<String>, String)>>;

/// What ECR lists in the repositories whose names start with `prefix`.
pub async fn contents(aws: &Aws, prefix: &str) -> Result<Contents> {
    let target = |action: &str| format!("AmazonEC2ContainerRegistry_V20150921.{action}");
    let mut contents = Contents::new();
    let repositories = aws.pages("ecr", &target("DescribeRepositories"), json!({}), "repositories").await?;
    let names = repositories.iter().filter_map(|repository| repository["repositoryName"].as_str());
    for name in names.filter(|name| name.starts_with(prefix)) {
        let request = json!({ "repositoryName": name });
        let images = match aws.pages("ecr", &target("DescribeImages"), request, "imageDetails").await {
            // It has just been deleted.
            Err(error) if code(&error) == Some("RepositoryNotFoundException") => continue,
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
pub struct Registry {
    http: reqwest::Client,
    endpoint: String,
    host: String,
}

impl Registry {
    /// The registry with the name `host`, served by `endpoint`.
    pub fn new(endpoint: &str, host: &str) -> Result<Self> {
        Ok(Self { http: http_client()?, endpoint: endpoint.to_owned(), host: host.to_owned() })
    }

    /// Its name in image references.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Pushes images into one repository, each with its tags. Shared blobs are pushed once.
    pub async fn push(&self, repository: &str, images: &[Tagged<'_>]) -> Result<()> {
        let blobs = images.iter().flat_map(|(image, _)| &image.blobs).map(|blob| (&blob.digest, &**blob));
        stream::iter(blobs.collect::<BTreeMap<_, _>>().into_values())
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
        let started = self.send(self.request(Method::POST, repository, "blobs", "uploads/")).await?;
        let location = started.headers().get(LOCATION).context("the upload has no location")?;
        let mut upload = started.url().join(location.to_str()?)?;
        upload.query_pairs_mut().append_pair("digest", &blob.digest);
        self.send(self.http.put(upload).body(blob.bytes.clone())).await.map(drop)
    }

    async fn push_manifest(&self, repository: &str, reference: &str, manifest: &Manifest) -> Result<()> {
        self.put_manifest(repository, reference, manifest.media_type, manifest.bytes.clone()).await
    }

    async fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: Vec<u8>) -> Result<()> {
        let request = self.request(Method::PUT, repository, "manifests", reference);
        self.send(request.header(CONTENT_TYPE, media_type).body(bytes)).await.map(drop)
    }

    /// The digest of a tag (or of a digest), if it is there.
    pub async fn digest(&self, repository: &str, reference: &str) -> Result<Option<String>> {
        let request = self.request(Method::HEAD, repository, "manifests", reference).header(ACCEPT, MANIFESTS);
        let Some(answer) = self.find(request).await? else { return Ok(None) };
        let digest = answer.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        Ok(digest.map(str::to_owned))
    }

    /// The tags that it lists in a repository, with their digests.
    pub async fn tags(&self, repository: &str) -> Result<BTreeMap<String, String>> {
        let list: Value = self.send(self.request(Method::GET, repository, "tags", "list")).await?.json().await?;
        let mut tags = BTreeMap::new();
        for tag in list["tags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            // A tag that has just been deleted has no digest.
            if let Some(digest) = self.digest(repository, tag).await? {
                tags.insert(tag.to_owned(), digest);
            }
        }
        Ok(tags)
    }

    /// Adds a tag to an image of a repository, or moves it there from another one.
    pub async fn tag(&self, repository: &str, digest: &str, tag: &str) -> Result<()> {
        let bytes = self.manifest(repository, digest).await?;
        let manifest: Value = serde_json::from_slice(&bytes)?;
        self.put_manifest(repository, tag, manifest["mediaType"].as_str().unwrap_or_default(), bytes).await
    }

    /// Deletes a tag. The image stays, with its other tags or without any.
    ///
    /// Neither of the local registries deletes a tag alone, so the tag moves to an empty index, which is deleted.
    pub async fn untag(&self, repository: &str, tag: &str) -> Result<()> {
        let empty = images::empty_index();
        self.push_manifest(repository, tag, &empty).await?;
        self.send(self.request(Method::DELETE, repository, "manifests", &empty.digest)).await.map(drop)
    }

    /// The content of a manifest, by tag or digest.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<Vec<u8>> {
        let request = self.request(Method::GET, repository, "manifests", reference).header(ACCEPT, MANIFESTS);
        Ok(self.send(request).await?.bytes().await?.to_vec())
    }

    /// The blobs of an image, of all its platforms, with their sizes in bytes.
    pub async fn blobs(&self, repository: &str, reference: &str) -> Result<BTreeMap<String, u64>> {
        let mut manifests = vec![reference.to_owned()];
        let mut blobs = BTreeMap::new();
        while let Some(reference) = manifests.pop() {
            let manifest: Value = serde_json::from_slice(&self.manifest(repository, &reference).await?)?;
            let listed = |name: &str| manifest[name].as_array().into_iter().flatten();
            manifests.extend(listed("manifests").filter_map(|it| it["digest"].as_str()).map(str::to_owned));
            for blob in listed("layers").chain(manifest.get("config")) {
                let digest = blob["digest"].as_str().context("a blob has no digest")?;
                blobs.insert(digest.to_owned(), blob["size"].as_u64().context("a blob has no size")?);
            }
        }
        Ok(blobs)
    }

    /// Whether a repository has a blob.
    pub async fn has_blob(&self, repository: &str, digest: &str) -> Result<bool> {
        Ok(self.find(self.request(Method::HEAD, repository, "blobs", digest)).await?.is_some())
    }

    /// A request for a part of a repository.
    fn request(&self, method: Method, repository: &str, kind: &str, reference: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/v2/{repository}/{kind}/{reference}", self.endpoint))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        self.find(request).await?.with_context(|| format!("{}: not found", self.host))
    }

    /// Sends a request for something that may be missing.
    async fn find(&self, request: RequestBuilder) -> Result<Option<Response>> {
        let request = request.header(HOST, &self.host).build()?;
        let what = format!("{} {} of {}", request.method(), request.url(), self.host);
        let answer = self.http.execute(request).await.with_context(|| what.clone())?;
        let status = answer.status();
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            bail!("{what}: HTTP {status}: {}", answer.text().await?);
        }
        Ok(Some(answer))
    }
}
