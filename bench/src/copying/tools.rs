//! Those who copy: ecr-transfer, and what a user would take instead.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use local::process::{Program, find};
use serde_json::json;

use super::site::{SOURCE, Site};
use crate::error::{Error, Result};

/// How many images are copied at once where each is copied by itself: as many tasks as Data Transfer Hub runs.
const AT_ONCE: usize = 10;
/// Who tools run as, where whoever measures may say so: root's skopeo remembers layers across runs.
const USER: u32 = 1000;

/// A tool.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Tool {
    /// The deployed stack.
    EcrTransfer,
    /// `skopeo sync`, of a list of images.
    SkopeoSync,
    /// `skopeo copy`, a process with a cache of its own for each image.
    SkopeoCopy,
    /// `crane copy`, a process for each image.
    Crane,
    /// `regsync once`.
    Regsync,
    /// `ocync sync`.
    Ocync,
}

impl Tool {
    /// The stack's name, and the prefix that it copies to.
    pub const OURS: &'static str = "ecr-transfer";

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_here(self) -> bool {
        self.is_ours() || find(Path::new(self.program()), "").is_ok()
    }

    /// The program that copies.
    fn program(self) -> &'static str {
        match self {
            Self::EcrTransfer | Self::SkopeoSync | Self::SkopeoCopy => "skopeo",
            Self::Crane => "crane",
            Self::Regsync => "regsync",
            Self::Ocync => "ocync",
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EcrTransfer => "ecr-transfer",
            Self::SkopeoSync => "skopeo sync",
            Self::SkopeoCopy => "skopeo copy, a task for each image",
            Self::Crane => "crane copy, 10 at once",
            Self::Regsync => "regsync",
            Self::Ocync => "ocync",
        }
    }

    /// What it copies to.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::EcrTransfer => Self::OURS,
            Self::SkopeoSync => "skopeo-sync",
            Self::SkopeoCopy => "skopeo-copy",
            Self::Crane => "crane",
            Self::Regsync => "regsync",
            Self::Ocync => "ocync",
        }
    }

    /// Whether it is ecr-transfer.
    #[must_use]
    pub fn is_ours(self) -> bool {
        self == Self::EcrTransfer
    }

    /// Whether it is measured only where it is there, and works.
    #[must_use]
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Crane | Self::Regsync | Self::Ocync)
    }

    /// How many tasks it would take on Fargate.
    #[must_use]
    pub fn tasks(self, site: &Site) -> u64 {
        if self == Self::SkopeoCopy { site.images().count() as u64 } else { 1 }
    }

    /// Copies everything that the source has.
    ///
    /// # Errors
    /// If it fails.
    pub async fn run(self, site: &Site) -> Result<()> {
        match self {
            Self::EcrTransfer => site.execute().await,
            Self::SkopeoSync => skopeo_sync(site).await,
            Self::SkopeoCopy => each(site, self, skopeo_copy).await,
            Self::Crane => each(site, self, crane_copy).await,
            Self::Regsync => regsync(site).await,
            Self::Ocync => ocync(site).await,
        }
    }
}

/// The user's name and the password in a login.
#[must_use]
pub fn decoded(token: &str) -> (String, String) {
    let text = STANDARD.decode(token).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.split_once(':').map_or_else(Default::default, |(user, password)| (user.to_owned(), password.to_owned()))
}

/// A program in a home of its own, where nothing is remembered, and the home.
fn program(site: &Site, tool: Tool, number: &str) -> Result<(Program, PathBuf)> {
    let directory = site.scratch.path().join(format!("{}{number}", tool.prefix()));
    // What an earlier run left there.
    let _ = std::fs::remove_dir_all(&directory);
    let failed = |path: &Path| Error::system(path.display().to_string());
    std::fs::create_dir_all(&directory).map_err(failed(&directory))?;
    let mut program = Program::new(tool.program(), "install it")?
        .envs(site.network())
        .envs([("HOME", &directory), ("TMPDIR", &directory), ("XDG_RUNTIME_DIR", &directory)])
        .envs([("REGISTRY_AUTH_FILE", &site.auth)])
        .directory(&directory);
    if std::fs::metadata(&directory).map_err(failed(&directory))?.uid() == 0 {
        for path in [site.scratch.path(), &directory, &site.auth] {
            chown(path, Some(USER), Some(USER)).map_err(failed(path))?;
        }
        program = program.user(USER, USER);
    }
    Ok((program, directory))
}

async fn skopeo_sync(site: &Site) -> Result<()> {
    let (program, home) = program(site, Tool::SkopeoSync, "")?;
    let mut images = format!("{SOURCE}:\n  images:\n");
    let mut last = "";
    for (repository, tag) in site.images() {
        if repository != last {
            let _ = writeln!(images, "    {repository}:");
            last = repository;
        }
        let _ = writeln!(images, "      - \"{tag}\"");
    }
    let list = home.join("images.yaml");
    std::fs::write(&list, images).map_err(Error::system(list.display().to_string()))?;
    // It puts the last part of each name behind the destination.
    let group =
        site.images().next().and_then(|(repository, _)| repository.rsplit_once('/')).map_or("", |(group, _)| group);
    let destination = format!("{}/{}/{group}", site.host(), Tool::SkopeoSync.prefix());
    let log = home.join("log");
    let arguments = ["sync", "--all", "--preserve-digests", "--retry-times", "3", "--src", "yaml", "--dest", "docker"];
    program.args(arguments).args([list]).args([destination]).run(log).await.map_err(Into::into)
}

/// Copies each image by itself.
async fn each<F>(site: &Site, tool: Tool, copy: impl Fn(Program, String, String) -> F) -> Result<()>
where
    F: Future<Output = local::Result<()>>,
{
    stream::iter(site.images().enumerate())
        .map(|(number, (repository, tag))| {
            let program = program(site, tool, &number.to_string());
            let source = format!("{SOURCE}/{repository}:{tag}");
            let destination = format!("{}/{}/{repository}:{tag}", site.host(), tool.prefix());
            let copy = &copy;
            async move {
                let (program, home) = program?;
                let program = match tool {
                    Tool::Crane => {
                        let config = home.join("config.json");
                        std::fs::copy(&site.auth, &config).map_err(Error::system(config.display().to_string()))?;
                        program.envs([("DOCKER_CONFIG", &home)])
                    }
                    _ => program,
                };
                copy(program, source, destination).await.map_err(Error::from)
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn skopeo_copy(program: Program, source: String, destination: String) -> local::Result<()> {
    let arguments = ["copy", "--quiet", "--multi-arch", "all", "--preserve-digests", "--retry-times", "3"];
    let (source, destination) = (format!("docker://{source}"), format!("docker://{destination}"));
    program.args(arguments).args([source, destination]).run("/dev/null").await
}

async fn crane_copy(program: Program, source: String, destination: String) -> local::Result<()> {
    program.args(["copy".to_owned(), source, destination]).run("/dev/null").await
}

async fn regsync(site: &Site) -> Result<()> {
    let (program, home) = program(site, Tool::Regsync, "")?;
    let (user, pass) = &site.login;
    let syncs: Vec<_> = site
        .images()
        .map(|(repository, tag)| {
            json!({
                "source": format!("{SOURCE}/{repository}:{tag}"),
                "target": format!("{}/{}/{repository}:{tag}", site.host(), Tool::Regsync.prefix()),
                "type": "image",
            })
        })
        .collect();
    // YAML takes JSON as it is.
    let config = json!({
        "version": 1, "creds": [{ "registry": site.host(), "user": user, "pass": pass }],
        "defaults": { "parallel": AT_ONCE }, "sync": syncs,
    });
    let path = home.join("regsync.yaml");
    std::fs::write(&path, config.to_string()).map_err(Error::system(path.display().to_string()))?;
    let log = home.join("log");
    program.args(["once", "-c"]).args([path]).run(log).await.map_err(Into::into)
}

async fn ocync(site: &Site) -> Result<()> {
    let (program, home) = program(site, Tool::Ocync, "")?;
    let (username, password) = &site.login;
    let mut tags: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (repository, tag) in site.images() {
        tags.entry(repository).or_default().push(tag);
    }
    let mappings: Vec<_> = tags
        .into_iter()
        .map(|(repository, tags)| {
            json!({
                "from": repository, "to": format!("{}/{repository}", Tool::Ocync.prefix()),
                "tags": { "include": tags, "glob": tags },
            })
        })
        .collect();
    let config = json!({
        "registries": {
            "source": { "url": SOURCE, "auth_type": "anonymous" },
            "destination": {
                "url": site.host(), "auth_type": "basic", "credentials": { "username": username, "password": password },
            },
        },
        // As the others, it is asked for no signatures.
        "defaults": { "source": "source", "targets": ["destination"], "artifacts": { "enabled": false } },
        "mappings": mappings,
    });
    let path = home.join("ocync.yaml");
    std::fs::write(&path, config.to_string()).map_err(Error::system(path.display().to_string()))?;
    let log = home.join("log");
    program.args(["--quiet", "sync", "-c"]).args([path]).run(log).await.map_err(Into::into)
}
