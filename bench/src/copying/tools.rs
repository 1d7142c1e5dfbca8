//! How each tool is called, and configured.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use clap::ValueEnum;
use futures_util::{TryStreamExt as _, stream};
use local::process::find;
use serde_json::{Value, json};

use super::site::{SOURCE, Site};

/// How many images are copied at once where the tool leaves that to us: as many tasks as Data Transfer Hub runs.
const AT_ONCE: usize = 10;

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
pub enum Tool {
    /// The deployed stack.
    EcrTransfer,
    /// `skopeo sync` of a list of images.
    SkopeoSync,
    /// `skopeo copy`, a process with an empty cache for each image.
    SkopeoCopy,
    /// `crane copy`, a process for each image.
    Crane,
    /// `regsync once`.
    Regsync,
    /// `ocync sync`.
    Ocync,
}

impl Tool {
    fn program(self) -> &'static str {
        match self {
            Self::EcrTransfer | Self::SkopeoSync | Self::SkopeoCopy => "skopeo",
            Self::Crane => "crane",
            Self::Regsync => "regsync",
            Self::Ocync => "ocync",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::EcrTransfer => "ecr-transfer",
            Self::SkopeoSync => "skopeo sync",
            Self::SkopeoCopy => "skopeo copy, a task for each image",
            Self::Crane => "crane copy, 10 at once",
            Self::Regsync => "regsync, 10 at once",
            Self::Ocync => "ocync",
        }
    }

    /// What its repositories at the destination begin with.
    pub fn prefix(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub fn is_here(self) -> bool {
        find(Path::new(self.program()), "").is_ok()
    }

    /// Whether the comparison goes on without it where it is missing, or fails.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Crane | Self::Regsync | Self::Ocync)
    }

    /// How many tasks it would take on Fargate; `None` for ecr-transfer, which starts them.
    pub fn tasks(self, site: &Site) -> Option<u64> {
        match self {
            Self::EcrTransfer => None,
            Self::SkopeoCopy => Some(site.images().count() as u64),
            _ => Some(1),
        }
    }

    /// Copies everything that the source has.
    pub async fn run(self, site: &Site) -> Result<()> {
        match self {
            Self::EcrTransfer => site.execute().await,
            Self::SkopeoSync => {
                // It appends the last part of each name to the destination.
                let destination = format!("{}/{}/bench", site.host(), self.prefix());
                let source = ["--src", "yaml", "--dest", "docker", "config.yaml", &destination];
                let options = ["sync", "--all", "--preserve-digests", "--retry-times", "3"];
                let config = json!({ SOURCE: { "images": tags(site) } });
                self.call(site, &[&options[..], &source].concat(), Some(&config)).await
            }
            Self::SkopeoCopy => {
                self.each(site, async |source, destination| {
                    let (source, destination) = (format!("docker://{source}"), format!("docker://{destination}"));
                    let options =
                        ["copy", "--quiet", "--multi-arch", "all", "--preserve-digests", "--retry-times", "3"];
                    self.call(site, &[&options[..], &[&source, &destination]].concat(), None).await
                })
                .await
            }
            Self::Crane => {
                let copy = async |source: String, destination: String| {
                    self.call(site, &["copy", &source, &destination], None).await
                };
                self.each(site, copy).await
            }
            Self::Regsync => self.call(site, &["once", "-c", "config.yaml"], Some(&self.regsync(site))).await,
            Self::Ocync => self.call(site, &["--quiet", "sync", "-c", "config.yaml"], Some(&self.ocync(site))).await,
        }
    }

    /// Runs its program once, in a home of its own.
    async fn call(self, site: &Site, arguments: &[&str], config: Option<&Value>) -> Result<()> {
        let (program, home) = site.program(self.program(), config)?;
        program.args(arguments).run(home.join("log")).await
    }

    /// Copies each image by itself, from a source to a destination.
    async fn each(self, site: &Site, copy: impl AsyncFn(String, String) -> Result<()>) -> Result<()> {
        stream::iter(self.pairs(site).map(Ok))
            .try_for_each_concurrent(AT_ONCE, async |(source, destination)| copy(source, destination).await)
            .await
    }

    fn pairs(self, site: &Site) -> impl Iterator<Item = (String, String)> {
        site.images().map(move |(repository, tag)| {
            (format!("{SOURCE}/{repository}:{tag}"), format!("{}/{}/{repository}:{tag}", site.host(), self.prefix()))
        })
    }

    fn regsync(self, site: &Site) -> Value {
        let sync = |(source, target)| json!({ "source": source, "target": target, "type": "image" });
        let sync: Vec<_> = self.pairs(site).map(sync).collect();
        json!({ "version": 1, "defaults": { "parallel": AT_ONCE }, "sync": sync })
    }

    fn ocync(self, site: &Site) -> Value {
        let prefix = self.prefix();
        let mappings: Vec<_> = tags(site)
            .into_iter()
            .map(|(name, tags)| json!({ "from": name, "to": format!("{prefix}/{name}"), "tags": { "glob": tags } }))
            .collect();
        json!({
            "registries": {
                "source": { "url": SOURCE, "auth_type": "anonymous" },
                // It gets its login from the AWS of the environment.
                "destination": { "url": site.host(), "auth_type": "ecr" },
            },
            // The others look for no signatures.
            "defaults": { "source": "source", "targets": ["destination"], "artifacts": { "enabled": false } },
            "mappings": mappings,
        })
    }
}

/// The tags of each repository of the source.
fn tags(site: &Site) -> BTreeMap<&str, Vec<&str>> {
    let mut tags: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (repository, tag) in site.images() {
        tags.entry(repository).or_default().push(tag);
    }
    tags
}
