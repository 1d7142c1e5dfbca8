//! Pushes an image with just this command to ECR, without Docker.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aws_sdk_ecr::operation::create_repository::CreateRepositoryError;
use fs_err as fs;
use shared::Error;
use shared::ecr::{Login, Registry};
use shared::reference::{Digest, ImageReference, RepositoryName, Tag};

use super::image::{INDEX, Image, MANIFEST, index};
use super::registry::Repository;
use crate::Outcome;
use crate::output::{note, print};

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
    let mut aws = super::aws(arguments.region.as_ref());
    if let Some(profile) = &arguments.profile {
        aws = aws.profile_name(profile);
    }
    let ecr = aws_sdk_ecr::Client::new(&aws.load().await);
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
        let image = |file: &PathBuf| Image::new(&fs::read(file)?).with_context(|| file.display().to_string());
        binaries.iter().map(image).collect()
    }
}

/// Logs in, and creates the repository if it does not exist.
async fn ready(ecr: &aws_sdk_ecr::Client, repository: &RepositoryName) -> Result<Login> {
    let registry = Registry::new(ecr.clone(), None);
    let login = registry.login().await?;
    if registry.immutable(std::slice::from_ref(repository)).await?.is_empty() {
        match ecr.create_repository().repository_name(repository.as_str()).send().await {
            Ok(_) => note(format_args!("Created the repository {repository}.")),
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(CreateRepositoryError::is_repository_already_exists_exception) => {}
            Err(error) => return Err(Error::aws("ecr:CreateRepository", repository.as_str())(error).into()),
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
