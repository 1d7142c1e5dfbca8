//! Where the tools are compared: the local AWS with the deployed stack, and a source registry with images.

use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use local::{
    aws::{Aws, code},
    corpus::{Corpus, Seeded},
    images::{self, Format, ImageSpec, LayerSpec},
    machine::{ACCOUNT, Machine, Options, REGION},
    process::Program,
    proxy::{Kind, is_ecr},
    registry::Registry,
    stack::Stack,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Arguments, Set, tools::Tool};

/// The name of the source registry.
pub const SOURCE: &str = "docker.io";

const ECR: &str = "AmazonEC2ContainerRegistry_V20150921";

/// Tools do not run as root: its skopeo remembers layers outside of its home.
const USER: u32 = 1000;

pub struct Site {
    machine: Machine,
    stack: Stack,
    aws: Aws,
    destination: Registry,
    /// The login to it, as a file of Docker's.
    auth: String,
    /// What the tools of a round may write.
    homes: TempDir,
    /// The digest of each repository's tag.
    images: BTreeMap<(String, String), String>,
    changes: usize,
}

/// What went over the network: numbers of requests, and bytes.
pub struct Traffic {
    /// For manifests, and for all else.
    pub source: (u64, u64),
    /// For manifests, blobs and uploads.
    pub destination: (u64, u64, u64),
    /// Of ECR's API.
    pub calls: u64,
    /// From the source.
    pub bytes: u64,
}

impl Traffic {
    pub fn requests(&self) -> u64 {
        let (manifests, blobs, uploads) = self.destination;
        self.source.0 + self.source.1 + manifests + blobs + uploads + self.calls
    }
}

impl Site {
    pub async fn start(arguments: &Arguments, directory: &Path) -> Result<Self> {
        let machine = Machine::start(Options::new(directory)).await?;
        let corpus = match arguments.set {
            Set::Large => Corpus::large(SOURCE),
            Set::Small => Corpus::small(SOURCE),
        };
        let list: Vec<_> = corpus.repositories(SOURCE).iter().map(|name| format!("{name}:ALL_TAGS")).collect();
        let seeded = machine.seed(corpus).await?.into_iter();
        let images: BTreeMap<_, _> = seeded
            .map(|Seeded { repository, tag, digest, .. }| ((repository, tag.unwrap_or_default()), digest))
            .collect();
        let list = list.join(",");
        let mut parameters = vec![
            ("sourceType", "Public"),
            ("srcList", "SELECTED"),
            ("srcImageList", &list),
            ("destPrefix", "ecr-transfer"),
            // The others look for no signatures.
            ("includeUntagged", "false"),
            // The local registry has no quota, and the others keep none.
            ("putImageRate", "10000"),
        ];
        parameters.extend(arguments.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let stack = Stack::deploy(&machine, "ecr-transfer", &parameters).await?;
        let aws = machine.home()?;
        let destination = machine.ecr(ACCOUNT, REGION).await?;
        let answer = aws.json("ecr", &format!("{ECR}.GetAuthorizationToken"), json!({})).await?;
        let token = &answer["authorizationData"][0]["authorizationToken"];
        let auth = json!({ "auths": { destination.host(): { "auth": token } } }).to_string();
        let homes = tempfile::tempdir()?;
        Ok(Self { machine, stack, aws, destination, auth, homes, images, changes: 0 })
    }

    pub async fn stop(self) {
        self.machine.stop().await;
    }

    /// The destination's host.
    pub fn host(&self) -> &str {
        self.destination.host()
    }

    /// The images at the source: repository and tag.
    pub fn images(&self) -> impl Iterator<Item = (&str, &str)> {
        self.images.keys().map(|(repository, tag)| (repository.as_str(), tag.as_str()))
    }

    pub async fn execute(&self) -> Result<()> {
        let outcome = self.stack.start(&json!({})).await?.wait().await?;
        ensure!(outcome.succeeded(), "the execution failed: {outcome:?}");
        Ok(())
    }

    /// Delays each request to a registry.
    pub fn set_latency(&self, latency: Duration) {
        self.machine.proxy().set_latency(latency);
    }

    /// A program in an empty home, which holds the login to the destination.
    pub fn program(&self, name: &str, config: Option<&Value>) -> Result<(Program, PathBuf)> {
        let home = tempfile::tempdir_in(&self.homes)?.keep();
        let auth_file = home.join("config.json");
        std::fs::write(&auth_file, &self.auth)?;
        if let Some(config) = config {
            // JSON is YAML.
            std::fs::write(home.join("config.yaml"), config.to_string())?;
        }
        let mut program = Program::new(name, "install it")?
            .envs(self.machine.env().iter().cloned())
            .envs(["HOME", "TMPDIR", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"].map(|name| (name, &home)))
            .envs([("REGISTRY_AUTH_FILE", &auth_file)])
            .directory(&home);
        if std::fs::metadata(&home)?.uid() == 0 {
            for path in [self.homes.path(), &home, &auth_file] {
                chown(path, Some(USER), Some(USER))?;
            }
            program = program.user(USER, USER);
        }
        Ok((program, home))
    }

    /// Empties a tool's part of the destination, and its homes. Only ecr-transfer creates repositories by itself.
    pub async fn clear(&mut self, tool: Tool) -> Result<()> {
        self.homes = tempfile::tempdir()?;
        let ecr = async |action: &str, request: Value| self.aws.json("ecr", &format!("{ECR}.{action}"), request).await;
        let mut names: Vec<_> =
            self.images().map(|(repository, _)| format!("{}/{repository}", tool.prefix())).collect();
        names.dedup();
        for name in names {
            match ecr("DeleteRepository", json!({ "repositoryName": name, "force": true })).await {
                Err(error) if code(&error) == Some("RepositoryNotFoundException") => {}
                deleted => drop(deleted?),
            }
            if tool != Tool::EcrTransfer {
                ecr("CreateRepository", json!({ "repositoryName": name })).await?;
            }
        }
        Ok(())
    }

    /// Gives the first tag of the source another image.
    pub async fn change_one(&mut self) -> Result<()> {
        self.changes += 1;
        let layers = vec![LayerSpec { name: format!("changed/{}", self.changes), size: 1_000_000 }];
        let made = images::make(&[ImageSpec { format: Format::Oci, architectures: vec!["amd64"], layers }])?;
        if let (Some(((repository, tag), _)), Some(image)) = (self.images.first_key_value(), made.first()) {
            self.source()?.push(repository, &[(image, std::slice::from_ref(tag))]).await?;
            self.images.insert((repository.clone(), tag.clone()), image.manifest.digest.clone());
        }
        Ok(())
    }

    fn source(&self) -> Result<&Registry> {
        self.machine.public().context("nothing stands in for the source")
    }

    /// The bytes of all different layers and configurations at the source.
    pub async fn unique_bytes(&self) -> Result<u64> {
        let mut blobs = BTreeMap::new();
        for ((repository, _), digest) in &self.images {
            blobs.extend(self.source()?.blobs(repository, digest).await?);
        }
        Ok(blobs.values().sum())
    }

    /// Checks that a tool has copied every image, with its digest.
    pub async fn check(&self, tool: Tool) -> Result<()> {
        for ((repository, tag), digest) in &self.images {
            let name = format!("{}/{repository}", tool.prefix());
            let there = self.destination.digest(&name, tag).await?;
            ensure!(there.as_ref() == Some(digest), "{name}:{tag} is {there:?} instead of {digest}");
        }
        Ok(())
    }

    /// Tasks that were started so far.
    pub fn tasks(&self) -> u64 {
        self.machine.fargate().count() as u64
    }

    /// Calls of ECR's API so far.
    pub fn calls(&self) -> u64 {
        let calls = self.machine.calls();
        calls.iter().filter(|(call, _)| call.action.starts_with("ecr:")).map(|(_, times)| times.called).sum()
    }

    pub fn reset_traffic(&self) {
        self.machine.proxy().reset_traffic();
    }

    /// The traffic since it was reset, when there had been so many calls.
    pub fn traffic(&self, calls: u64) -> Traffic {
        let of = |ecr: bool, kinds: &[Kind]| {
            self.machine.proxy().traffic(|host, _, kind| is_ecr(host) == ecr && kinds.contains(&kind))
        };
        let (source_manifests, source_else) = (of(false, &[Kind::Manifest]), of(false, &[Kind::Blob, Kind::Other]));
        Traffic {
            source: (source_manifests.requests, source_else.requests),
            destination: (
                of(true, &[Kind::Manifest, Kind::Other]).requests,
                of(true, &[Kind::Blob]).requests,
                of(true, &[Kind::Upload]).requests,
            ),
            calls: self.calls() - calls,
            bytes: source_manifests.received + source_else.received,
        }
    }
}
