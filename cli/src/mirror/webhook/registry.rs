//! Uploads an image to a repository of a registry.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use shared::ecr::Login;
use shared::reference::{Digest, RepositoryName};
use shared::text::Excerpt;

use super::image::Blob;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a connection on which nothing arrives. ECR needs seconds to accept a layer.
const READ_TIMEOUT: Duration = Duration::from_mins(2);

/// A repository to upload to.
pub struct Repository {
    client: Client,
    /// It ends with a slash.
    base: Url,
    authorization: HeaderValue,
}

impl Repository {
    /// The repository `name` of the registry of `login`. `scheme` is `https`; tests use `http`.
    ///
    /// # Errors
    /// If the login is invalid.
    pub fn new(scheme: &str, login: &Login, name: &RepositoryName) -> Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("ecr-transfer/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()?;
        let mut authorization: HeaderValue = format!("Basic {}", login.token).parse()?;
        authorization.set_sensitive(true);
        Ok(Self { client, base: Url::parse(&format!("{scheme}://{}/v2/{name}/", login.host))?, authorization })
    }

    /// Uploads a blob that the repository does not have. Returns whether it was uploaded.
    ///
    /// # Errors
    /// If the registry rejects it.
    pub async fn upload(&self, blob: &Blob) -> Result<bool> {
        let head = self.client.head(self.base.join(&format!("blobs/{}", blob.digest))?);
        let answer = self.send(head).await?;
        if !is_missing(&answer) {
            accepted(answer).await?;
            return Ok(false);
        }
        let started = accepted(self.send(self.client.post(self.base.join("blobs/uploads/")?)).await?).await?;
        let location = started.headers().get(LOCATION).context("The registry accepts an upload without a Location")?;
        let mut location = started.url().join(location.to_str()?)?;
        ensure!(location.origin() == self.base.origin(), "The registry wants the upload on another host: {location}");
        location.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        // In one piece: ECR does not accept pieces as the specification describes them.
        let put = self.client.put(location).header(CONTENT_TYPE, "application/octet-stream").body(blob.content.clone());
        accepted(self.send(put).await?).await?;
        Ok(true)
    }

    /// Uploads a manifest, unless `reference`, a tag or a digest, points to it. Returns whether it was uploaded.
    ///
    /// # Errors
    /// If the registry rejects it.
    pub async fn put(&self, manifest: &Blob, media_type: &str, reference: &str) -> Result<bool> {
        let url = self.base.join("manifests/")?.join(&format!("./{reference}"))?;
        let answer = self.send(self.client.head(url.clone()).header(ACCEPT, media_type)).await?;
        if !is_missing(&answer) {
            let digest = accepted(answer).await?.headers().get("docker-content-digest").cloned();
            let digest: Option<Digest> = digest.and_then(|digest| digest.to_str().ok()?.parse().ok());
            if digest == Some(manifest.digest) {
                return Ok(false);
            }
        }
        let put = self.client.put(url).header(CONTENT_TYPE, media_type).body(manifest.content.clone());
        accepted(self.send(put).await?).await?;
        Ok(true)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        Ok(request.header(AUTHORIZATION, self.authorization.clone()).send().await?)
    }
}

fn is_missing(answer: &Response) -> bool {
    answer.status() == StatusCode::NOT_FOUND
}

/// A redirect is fine, too: the content is there, on another host.
async fn accepted(answer: Response) -> Result<Response> {
    let (status, url) = (answer.status(), answer.url().clone());
    if status.is_success() || status.is_redirection() {
        return Ok(answer);
    }
    let text = answer.text().await.unwrap_or_default();
    bail!("{} returned {status}: {}", url.as_str(), Excerpt::new(&text))
}
