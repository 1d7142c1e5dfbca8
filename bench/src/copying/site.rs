//! Where it is measured: the local AWS with the stack, and the source with its images.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use local::{
    aws::Aws,
    corpus::{Corpus, Seeded},
    images::{self, Format, ImageSpec, LayerSpec},
    machine::{ACCOUNT, Machine, Options, REGION},
    proxy::{Kind, is_ecr},
    registry::Registry,
    stack::Stack,
};
use serde_json::{Value, json};

use super::{Set, Settings, tools::Tool};
use crate::error::{Error, Result};

/// The registry that images come from, as everybody names it.
pub const SOURCE: &str = "docker.io";
const ECR: &str = "AmazonEC2ContainerRegistry_V20150921";

/// The local AWS with everything on it.
pub struct Site {
    machine: Machine,
    stack: Stack,
    aws: Aws,
    registry: Registry,
    /// Where the logins are, for the tools that read them from a file.
    pub auth: PathBuf,
    /// The login to the destination: the user's name and the password.
    pub login: (String, String),
    /// Where tools may write.
    pub scratch: tempfile::TempDir,
    images: BTreeMap<(String, String), String>,
    /// The bytes of all different layers and configurations.
    pub bytes: u64,
    changes: usize,
}

impl Site {
    /// Starts it, and fills the source.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(settings: &Settings<'_>, directory: &Path) -> Result<Self> {
        let machine = Machine::start(Options::new(directory)).await?;
        let corpus = match settings.set {
            Set::Large => Corpus::large(SOURCE),
            Set::Small => Corpus::small(SOURCE),
        };
        let images = machine
            .seed(corpus)
            .await?
            .into_iter()
            .map(|Seeded { repository, tag, digest, .. }| ((repository, tag.unwrap_or_default()), digest));
        let images: BTreeMap<_, _> = images.collect();
        let public = machine.public().ok_or_else(|| Error::Wrong("nothing stands in for the source".into()))?;
        let mut blobs = BTreeMap::new();
        for ((repository, _), digest) in &images {
            blobs.extend(public.blobs(repository, digest).await?);
        }
        let bytes = blobs.values().sum();
        let mut repositories: Vec<_> = images.keys().map(|(repository, _)| repository.clone()).collect();
        repositories.dedup();
        let list: Vec<_> = repositories.iter().map(|repository| format!("{repository}:ALL_TAGS")).collect();
        let list = list.join(",");
        let mut parameters = vec![
            ("sourceType", "Public"),
            ("srcList", "SELECTED"),
            ("srcImageList", &list),
            ("destPrefix", Tool::OURS),
            // The others are asked for none.
            ("includeUntagged", "false"),
            // The local registry has no such limit, and nobody else minds it.
            ("putImageRate", "10000"),
        ];
        parameters.extend(settings.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let stack = Stack::deploy(&machine, Tool::OURS, &parameters).await?;
        let aws = machine.home()?;
        let answer = aws.json("ecr", &format!("{ECR}.GetAuthorizationToken"), json!({})).await?;
        let token = answer["authorizationData"][0]["authorizationToken"].as_str().unwrap_or_default().to_owned();
        let registry = machine.ecr(ACCOUNT, REGION).await?;
        let scratch = tempfile::tempdir().map_err(Error::system("a temporary directory"))?;
        let auth = scratch.path().join("auth.json");
        let auths = json!({ "auths": { registry.host(): { "auth": token } } }).to_string();
        std::fs::write(&auth, auths).map_err(Error::system(auth.display().to_string()))?;
        let login = super::tools::decoded(&token);
        Ok(Self { machine, stack, aws, registry, auth, login, scratch, images, bytes, changes: 0 })
    }

    /// Stops it.
    pub async fn stop(self) {
        self.machine.stop().await;
    }

    /// The network's environment, for a tool.
    pub fn network(&self) -> impl Iterator<Item = (String, String)> {
        const NETWORK: [&str; 3] = ["HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"];
        self.machine.env().iter().filter(|(name, _)| NETWORK.contains(&name.as_str())).cloned()
    }

    /// The destination's host.
    pub fn host(&self) -> &str {
        self.registry.host()
    }

    /// The images at the source: repository and tag.
    pub fn images(&self) -> impl Iterator<Item = (&str, &str)> {
        self.images.keys().map(|(repository, tag)| (repository.as_str(), tag.as_str()))
    }

    /// Runs the stack.
    ///
    /// # Errors
    /// If the execution fails.
    pub async fn execute(&self) -> Result<()> {
        let outcome = self.stack.start(&json!({})).await?.wait().await?;
        if outcome.succeeded() { Ok(()) } else { Err(Error::Wrong(format!("the execution failed: {outcome:?}"))) }
    }

    /// Delays each request to a registry by so much.
    pub fn set_latency(&self, latency: Duration) {
        self.machine.proxy().set_latency(latency);
    }

    /// Empties a tool's part of the destination. All but ours need repositories that are there.
    ///
    /// # Errors
    /// If ECR refuses.
    pub async fn clear(&self, tool: Tool) -> Result<()> {
        let call = async |action: &str, body: Value| self.aws.json("ecr", &format!("{ECR}.{action}"), body).await;
        let described = call("DescribeRepositories", json!({ "maxResults": 1_000 })).await?;
        let prefix = format!("{}/", tool.prefix());
        // Layers would stay there when their repository goes, and be found by the next.
        for (repository, tag) in self.images() {
            let name = format!("{prefix}{repository}");
            if self.registry.digest(&name, tag).await?.is_some() {
                for digest in self.registry.blobs(&name, tag).await?.into_keys() {
                    self.registry.delete_blob(&name, &digest).await?;
                }
            }
        }
        for repository in described["repositories"].as_array().into_iter().flatten() {
            let name = repository["repositoryName"].as_str().unwrap_or_default();
            if name.starts_with(&prefix) {
                call("DeleteRepository", json!({ "repositoryName": name, "force": true })).await?;
            }
        }
        if !tool.is_ours() {
            let mut names: Vec<_> = self.images().map(|(repository, _)| format!("{prefix}{repository}")).collect();
            names.dedup();
            for name in names {
                call("CreateRepository", json!({ "repositoryName": name })).await?;
            }
        }
        Ok(())
    }

    /// Gives the first tag of the source another image.
    ///
    /// # Errors
    /// If the source refuses.
    pub async fn change_one(&mut self) -> Result<()> {
        self.changes += 1;
        let layers = vec![LayerSpec { name: format!("changed/{}", self.changes), size: 1_000_000 }];
        let made = images::make(&[ImageSpec { format: Format::Oci, architectures: vec!["amd64"], layers }])?;
        let public = self.machine.public().ok_or_else(|| Error::Wrong("nothing stands in for the source".into()))?;
        if let (Some(((repository, tag), digest)), Some(image)) = (self.images.iter_mut().next(), made.first()) {
            public.push(repository, &[(image, std::slice::from_ref(tag))]).await?;
            digest.clone_from(&image.manifest.digest);
        }
        Ok(())
    }

    /// Checks that a tool has copied every image, with its digest.
    ///
    /// # Errors
    /// If it has not.
    pub async fn check(&self, tool: Tool) -> Result<()> {
        for ((repository, tag), digest) in &self.images {
            let name = format!("{}/{repository}", tool.prefix());
            let there = self.registry.digest(&name, tag).await?;
            if there.as_ref() != Some(digest) {
                return Err(Error::Wrong(format!("{}: {name}:{tag} is {there:?}, and not {digest}", tool.name())));
            }
        }
        Ok(())
    }

    /// How many tasks were started so far.
    pub fn tasks(&self) -> u64 {
        self.machine.fargate().count() as u64
    }

    /// How often ECR's API was called so far, by the stack.
    pub fn calls(&self) -> u64 {
        let calls = self.machine.calls();
        calls.iter().filter(|(call, _)| call.action.starts_with("ecr:")).map(|(_, times)| times.called).sum()
    }

    /// Starts counting requests anew.
    pub fn reset_traffic(&self) {
        self.machine.proxy().reset_traffic();
    }

    /// What came by since: requests to the source and the destination, and bytes from the source.
    pub fn traffic(&self) -> ((u64, u64), (u64, u64, u64), u64) {
        let of = |ecr: bool, kinds: &[Kind]| {
            self.machine.proxy().traffic(|host, _, kind| is_ecr(host) == ecr && kinds.contains(&kind))
        };
        let source = (of(false, &[Kind::Manifest]).requests, of(false, &[Kind::Blob, Kind::Other]).requests);
        let destination = (
            of(true, &[Kind::Manifest, Kind::Other]).requests,
            of(true, &[Kind::Blob]).requests,
            of(true, &[Kind::Upload]).requests,
        );
        (source, destination, of(false, &[Kind::Manifest, Kind::Blob, Kind::Other]).received)
    }
}
