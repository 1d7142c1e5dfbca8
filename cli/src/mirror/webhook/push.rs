//! Pushes an image with just this command to ECR, without Docker.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, ensure};
use aws_sdk_ecr::operation::create_repository::CreateRepositoryError;
use shared::ecr::{Login, Registry};
use shared::reference::{Digest, ImageReference, RepositoryName, Tag};

use super::image::{INDEX, Image, MANIFEST, index};
use super::registry::Repository;
use crate::Outcome;
use crate::aws::{self, failed};
use crate::mirror::files::read_regular;
use crate::output::{note, print};

/// The largest binary. That of a release has 20 MB.
const MAX_BYTES: u64 = 256 << 20;

#[derive(clap::Args)]
pub struct Arguments {
    /// The repository in ECR; it is created if it does not exist
    #[arg(long, default_value = super::NAME)]
    repository: RepositoryName,
    /// The image's tag
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: Tag,
    /// A static Linux binary of ecr-transfer, as in a release. Give one for each processor of the cluster's nodes; default: this
    /// command itself
    #[arg(long = "binary", value_name = "FILE")]
    binaries: Vec<PathBuf>,
    /// ECR's region; default: as for the AWS CLI
    #[arg(long)]
    region: Option<String>,
    /// The profile with the credentials; default: as for the AWS CLI
    #[arg(long)]
    profile: Option<String>,
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let mut images = arguments.images()?;
    let aws = aws::configuration(arguments.region.as_ref(), arguments.profile.as_ref()).load().await;
    let ecr = aws_sdk_ecr::Client::new(&aws);
    let login = ready(&ecr, &arguments.repository).await?;
    let repository = Repository::new("https", &login, &arguments.repository)?;
    let digest = push(&repository, &mut images, &arguments.tag).await?;
    let name = shared::reference::Repository { registry: login.host, name: arguments.repository.clone() };
    print(format_args!("{}\n", ImageReference { repository: name, tag: None, digest: Some(digest) }))?;
    Ok(Outcome::Success)
}

impl Arguments {
    fn images(&self) -> Result<Vec<Image>> {
        let binaries = if self.binaries.is_empty() { vec![std::env::current_exe()?] } else { self.binaries.clone() };
        let image = |file: &PathBuf| {
            let binary = read_regular(file, MAX_BYTES);
            binary.and_then(|binary| Image::new(&binary)).with_context(|| file.display().to_string())
        };
        binaries.iter().map(image).collect()
    }
}

/// Logs in, and creates the repository if it does not exist.
async fn ready(ecr: &aws_sdk_ecr::Client, repository: &RepositoryName) -> Result<Login> {
    let registry = Registry::new(ecr.clone(), None);
    // Their messages have their causes already.
    let login = registry.login().await.map_err(|error| anyhow!("{error}"))?;
    let known = registry.immutable(std::slice::from_ref(repository)).await.map_err(|error| anyhow!("{error}"))?;
    if known.is_empty() {
        match ecr.create_repository().repository_name(repository.as_str()).send().await {
            Ok(_) => note(format_args!("Created the repository {repository}.")),
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(CreateRepositoryError::is_repository_already_exists_exception) => {}
            Err(error) => return Err(failed("ecr:CreateRepository", repository.as_str())(error)),
        }
    }
    Ok(login)
}

/// Uploads what the repository does not have, and returns the digest of the image.
async fn push(repository: &Repository, images: &mut [Image], tag: &Tag) -> Result<Digest> {
    ensure!(!images.is_empty(), "There is no binary.");
    let index = index(images)?;
    for image in images {
        for blob in &image.blobs {
            if repository.upload(blob).await? {
                note(format_args!("linux/{}: uploaded {} KiB", image.architecture, blob.content.len().div_ceil(1024)));
            }
        }
        repository.put(&image.manifest, MANIFEST, &image.manifest.digest.to_string()).await?;
    }
    if !repository.put(&index, INDEX, tag.as_str()).await? {
        note(format_args!("The repository has this image already, as {tag}."));
    }
    Ok(index.digest)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use aws_sdk_ecr::Client;
    use aws_sdk_ecr::operation::create_repository::CreateRepositoryOutput;
    use aws_sdk_ecr::operation::describe_repositories::{DescribeRepositoriesError, DescribeRepositoriesOutput};
    use aws_sdk_ecr::operation::get_authorization_token::GetAuthorizationTokenOutput;
    use aws_sdk_ecr::primitives::DateTime;
    use aws_sdk_ecr::types::error::RepositoryNotFoundException;
    use aws_sdk_ecr::types::{AuthorizationData, Repository as Described};
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::http::{Request, Response};
    use elf::abi::{EM_AARCH64, EM_X86_64};

    use super::super::image::tests::binary;
    use super::*;

    const TOKEN: &str = "QVdTOnRva2Vu";

    /// What a registry has, by path, and how often it was written to.
    #[derive(Default)]
    struct Content {
        blobs: HashMap<String, Vec<u8>>,
        manifests: HashMap<String, (String, Vec<u8>)>,
        writes: usize,
    }

    /// A registry that does what ECR does. Where it sends an upload is the test's choice.
    struct FakeRegistry {
        host: String,
        content: Arc<Mutex<Content>>,
    }

    impl FakeRegistry {
        async fn start(location: &'static str) -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
            let host = listener.local_addr().expect("it is bound").to_string();
            let content = Arc::<Mutex<Content>>::default();
            let state = Arc::clone(&content);
            let router = Router::new().fallback(move |request: Request<Body>| {
                let content = Arc::clone(&state);
                async move {
                    let (parts, body) = request.into_parts();
                    let body = to_bytes(body, usize::MAX).await.expect("it is complete").to_vec();
                    answer(&parts, body, location, &mut content.lock().expect("no test panics"))
                }
            });
            tokio::spawn(async move { axum::serve(listener, router).await });
            Self { host, content }
        }

        fn repository(&self, token: &str) -> Repository {
            let login = Login { host: self.host.parse().expect("it is a host"), token: token.into(), expires_at: None };
            Repository::new("http", &login, &name()).expect("it is a login")
        }

        fn writes(&self) -> usize {
            std::mem::take(&mut self.content.lock().expect("no test panics").writes)
        }
    }

    fn answer(
        request: &axum::http::request::Parts,
        body: Vec<u8>,
        location: &str,
        content: &mut Content,
    ) -> Response<Body> {
        let status = |code: u16| Response::builder().status(code);
        let empty = |code: u16| status(code).body(Body::empty()).expect("it is an answer");
        if request.headers.get("authorization").is_none_or(|it| it != &format!("Basic {TOKEN}")) {
            return status(401).body(Body::from("no\u{1b}[31m")).expect("it is an answer");
        }
        let path = request.uri.path().strip_prefix("/v2/ecr-transfer-webhook/").expect("it is the repository");
        let (kind, reference) = path.split_once('/').expect("it is a blob or a manifest");
        let digest = Digest::of(&body).to_string();
        match (request.method.as_str(), kind) {
            ("HEAD", "blobs") => empty(if content.blobs.contains_key(reference) { 200 } else { 404 }),
            ("POST", "blobs") => status(202).header("location", location).body(Body::empty()).expect("it is an answer"),
            ("PUT", "blobs") => {
                let query = request.uri.query().unwrap_or_default().replace("%3A", ":");
                assert_eq!(query, format!("state=1&digest={digest}"));
                content.writes += 1;
                content.blobs.insert(digest, body);
                empty(201)
            }
            ("HEAD", "manifests") => match content.manifests.get(reference) {
                Some((_, manifest)) => status(200)
                    .header("docker-content-digest", Digest::of(manifest).to_string())
                    .body(Body::empty())
                    .expect("it is an answer"),
                None => empty(404),
            },
            ("PUT", "manifests") => {
                let manifest: serde_json::Value = serde_json::from_slice(&body).expect("it is JSON");
                let media_type = request.headers["content-type"].to_str().expect("it is text").to_owned();
                assert_eq!(manifest["mediaType"], media_type);
                // As ECR, it accepts a manifest only with all that it names.
                let array = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
                for child in array(&manifest["manifests"]) {
                    assert!(content.manifests.contains_key(child["digest"].as_str().expect("it is text")));
                }
                let config = manifest.get("config").cloned();
                for blob in array(&manifest["layers"]).into_iter().chain(config) {
                    let stored = &content.blobs[blob["digest"].as_str().expect("it is text")];
                    assert_eq!(blob["size"], stored.len());
                }
                content.writes += 1;
                content.manifests.insert(digest, (media_type.clone(), body.clone()));
                content.manifests.insert(reference.to_owned(), (media_type, body));
                empty(201)
            }
            other => panic!("{other:?}"),
        }
    }

    fn name() -> RepositoryName {
        crate::mirror::webhook::NAME.parse().expect("it is a name")
    }

    fn tag(text: &str) -> Tag {
        text.parse().expect(text)
    }

    fn images() -> Vec<Image> {
        [EM_X86_64, EM_AARCH64].map(|machine| Image::new(&binary(machine, false)).expect("it is static")).into()
    }

    #[tokio::test]
    async fn an_image_is_pushed_completely_and_pushing_it_again_changes_nothing() {
        let registry = FakeRegistry::start("/v2/ecr-transfer-webhook/blobs/uploads/1?state=1").await;
        let repository = registry.repository(TOKEN);
        let digest = push(&repository, &mut images(), &tag("1")).await.expect("it is accepted");
        {
            let content = registry.content.lock().expect("no test panics");
            assert_eq!(Digest::of(&content.manifests["1"].1), digest);
            assert_eq!(content.manifests["1"].0, INDEX);
        }
        // Two layers, two configurations, two manifests, and the index.
        assert_eq!(registry.writes(), 7);
        assert_eq!(push(&repository, &mut images(), &tag("1")).await.expect("it is there"), digest);
        assert_eq!(registry.writes(), 0);
        assert_eq!(push(&repository, &mut images(), &tag("2")).await.expect("it is accepted"), digest);
        assert_eq!(registry.writes(), 1);
        // A tag moves to another image.
        push(&repository, &mut images()[..1], &tag("1")).await.expect("it is accepted");
        assert_eq!(registry.writes(), 1);
    }

    #[tokio::test]
    async fn the_token_stays_on_its_host() {
        let registry = FakeRegistry::start("http://127.0.0.1:1/v2/ecr-transfer-webhook/blobs/uploads/1?state=1").await;
        let error = push(&registry.repository(TOKEN), &mut images(), &tag("1")).await.expect_err("it is another host");
        assert!(error.to_string().contains("on another host: http://127.0.0.1:1/"), "{error:#}");
    }

    #[tokio::test]
    async fn the_words_of_a_registry_that_refuses_are_shown_and_the_token_is_not() {
        let registry = FakeRegistry::start("/").await;
        let error = push(&registry.repository("d3Jvbmc="), &mut images(), &tag("1")).await.expect_err("it is wrong");
        let text = format!("{error:#} {error:?}");
        assert!(text.contains("returned 401 Unauthorized"), "{text}");
        assert!(!text.contains("d3Jvbmc=") && !text.contains('\u{1b}'), "{text}");
    }

    #[tokio::test]
    async fn a_repository_that_does_not_exist_is_created() {
        for exists in [false, true] {
            let token = mock!(Client::get_authorization_token).then_output(|| {
                let data = AuthorizationData::builder().authorization_token(TOKEN).expires_at(DateTime::from_secs(0));
                let data = data.proxy_endpoint("https://111111111111.dkr.ecr.us-east-1.amazonaws.com").build();
                GetAuthorizationTokenOutput::builder().authorization_data(data).build()
            });
            let described = if exists {
                mock!(Client::describe_repositories).then_output(|| {
                    let repository = Described::builder().repository_name(name().as_str()).build();
                    DescribeRepositoriesOutput::builder().repositories(repository).build()
                })
            } else {
                mock!(Client::describe_repositories).then_error(|| {
                    let missing = RepositoryNotFoundException::builder().build();
                    DescribeRepositoriesError::RepositoryNotFoundException(missing)
                })
            };
            let created = mock!(Client::create_repository)
                .match_requests(|request| request.repository_name() == Some(name().as_str()))
                .then_output(|| CreateRepositoryOutput::builder().build());
            let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&token, &described, &created]);
            let login = ready(&client, &name()).await.expect("ECR answers");
            assert_eq!(login.token, TOKEN);
            assert_eq!(created.num_calls(), usize::from(!exists));
        }
    }
}
