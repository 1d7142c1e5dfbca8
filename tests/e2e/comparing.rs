//! What a destination lists after a run, compared with what the source lists.
//!
//! Neither the table nor the plan is looked at: what the destination must hold follows from the stack's parameters and the
//! source's own answers.

use std::collections::{BTreeMap, BTreeSet};

use local::machine::{ACCOUNT, Machine, REGION};
use local::registry::{Contents, Registry, contents};
use local::stack::{ImageRow, Stack};
use serde_json::Value;

use crate::world::Result;

/// The digests of tags, by repository and tag.
pub type Tags = BTreeMap<(String, String), String>;

/// A deployed stack, and where it copies from and to.
#[derive(Clone)]
pub struct Deployed {
    pub stack: Stack,
    parameters: BTreeMap<String, String>,
}

impl Deployed {
    pub fn new(stack: &Stack, parameters: &[(&str, &str)]) -> Self {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { stack: stack.clone(), parameters }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The account and the region that it copies to.
    fn destination(&self) -> (&str, &str) {
        (self.parameter("destAccountId").unwrap_or(ACCOUNT), self.parameter("destRegion").unwrap_or(REGION))
    }

    /// What the destination lists below the stack's prefix.
    pub async fn there(&self, machine: &Machine) -> Result<Contents> {
        let (account, region) = self.destination();
        Ok(contents(&machine.aws(account, region)?, &format!("{}/", self.stack.name())).await?)
    }

    /// What a run with `input` must bring: the source's images that the list names, with cosign's signatures of them.
    ///
    /// Only what most tests deploy is understood: entries with a tag, its beginning or `ALL_TAGS`, and plain names.
    pub async fn wanted(&self, machine: &Machine, input: &Value) -> Result<Contents> {
        let mut wanted = Contents::new();
        if input["dryRun"] == true {
            return Ok(wanted);
        }
        let place = |name: &str| format!("{}/{name}", self.stack.name());
        let source = match self.parameter("sourceType") {
            Some("Public") => None,
            _ => {
                let account = self.parameter("srcAccountId").unwrap_or(ACCOUNT);
                let region = self.parameter("srcRegion").unwrap_or(REGION);
                Some(contents(&machine.aws(account, region)?, "").await?)
            }
        };
        if let (Some(source), None | Some("ALL")) = (&source, self.parameter("srcList")) {
            return Ok(source.iter().map(|(name, images)| (place(name), images.clone())).collect());
        }
        let list = input["srcImageList"].as_str().or(self.parameter("srcImageList")).unwrap_or_default();
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (repository, wish) = entry.rsplit_once(':').ok_or(format!("{entry} names no tag"))?;
            let (name, tags) = match &source {
                Some(source) => (repository.to_owned(), tags_of(source, repository)),
                None => {
                    let public = machine.public().ok_or("the public registries are stand-ins")?;
                    let (path, name) = public_names(repository);
                    (name, public.tags(&path).await?)
                }
            };
            let signature = tags.get(wish).map(|digest| format!("{}.sig", digest.replace(':', "-")));
            let begins = |tag: &str| wish.strip_suffix('*').is_some_and(|prefix| tag.starts_with(prefix));
            let is_wanted =
                |tag: &str| wish == "ALL_TAGS" || tag == wish || begins(tag) || Some(tag) == signature.as_deref();
            let images = tags.into_iter().filter(|(tag, _)| is_wanted(tag)).map(|(tag, digest)| (Some(tag), digest));
            wanted.entry(place(&name)).or_default().extend(images);
        }
        Ok(wanted)
    }

    /// Checks that the destination has got what is `wanted`, has lost nothing of what it had `before`, and has nothing else.
    pub async fn compare(&self, machine: &Machine, before: &Contents, wanted: &Contents, there: &Contents) -> Result {
        // A tag that the source no longer has stays: nothing is ever deleted.
        let mut expected = tags(before);
        expected.extend(tags(wanted));
        let listed = tags(there);
        if listed != expected {
            let differ = |some: &Tags, others: &Tags| {
                let differ = some.iter().filter(|(tag, digest)| others.get(*tag) != Some(*digest));
                differ.map(|(tag, digest)| format!("{}:{} {digest}", tag.0, tag.1)).collect::<Vec<_>>()
            };
            let (missing, other) = (differ(&expected, &listed), differ(&listed, &expected));
            return Err(format!("the destination lacks the tags {missing:?} and has {other:?}").into());
        }
        let (account, region) = self.destination();
        let (mut expected, listed) = (digests(wanted), digests(there));
        expected.extend(children(&machine.ecr(account, region).await?, expected.intersection(&listed)).await?);
        expected.extend(digests(before));
        if listed != expected {
            let missing: Vec<_> = expected.difference(&listed).collect();
            let other: Vec<_> = listed.difference(&expected).collect();
            return Err(format!("the destination lacks the images {missing:?} and has {other:?}").into());
        }
        Ok(())
    }

    /// Checks that each image that a row says is `Done` is at the destination under that tag.
    pub fn check_done<'a>(&self, rows: impl Iterator<Item = &'a ImageRow>, there: &Contents) -> Result {
        let (tags, digests) = (tags(there), digests(there));
        for row in rows.filter(|row| row.status == "Done") {
            let name = format!("{}/{}", self.stack.name(), row.image);
            let digest = row.digest.clone().unwrap_or_default();
            let is_there = match row.tag.starts_with("sha256:") {
                true => row.tag == digest && digests.contains(&(name, digest)),
                false => tags.get(&(name, row.tag.clone())) == Some(&digest),
            };
            if !is_there {
                return Err(format!("it is not at the destination: {row:?}").into());
            }
        }
        Ok(())
    }
}

/// All tags.
pub fn tags(contents: &Contents) -> Tags {
    let all = contents.iter().flat_map(|(name, images)| images.iter().map(move |image| (name, image)));
    all.filter_map(|(name, (tag, digest))| Some(((name.clone(), tag.clone()?), digest.clone()))).collect()
}

fn tags_of(contents: &Contents, repository: &str) -> BTreeMap<String, String> {
    let images = contents.get(repository).into_iter().flatten();
    images.filter_map(|(tag, digest)| Some((tag.clone()?, digest.clone()))).collect()
}

/// All digests, with and without a tag, with their repositories.
fn digests(contents: &Contents) -> BTreeSet<(String, String)> {
    let all = contents.iter().flat_map(|(name, images)| images.iter().map(move |(_, digest)| (name, digest)));
    all.map(|(name, digest)| (name.clone(), digest.clone())).collect()
}

/// The images that indexes list. ECR lists them, too.
async fn children(
    registry: &Registry,
    images: impl Iterator<Item = &(String, String)>,
) -> Result<BTreeSet<(String, String)>> {
    let mut children = BTreeSet::new();
    for (name, digest) in images {
        let manifest: Value = serde_json::from_slice(&registry.manifest(name, digest).await?)?;
        let listed = manifest["manifests"].as_array().into_iter().flatten();
        let listed = listed.filter_map(|child| child["digest"].as_str());
        children.extend(listed.map(|digest| (name.clone(), digest.to_owned())));
    }
    Ok(children)
}

/// What the stand-in calls a public repository, and what the destination does.
fn public_names(repository: &str) -> (String, String) {
    match repository.split_once('/') {
        Some((host, path)) if host.contains('.') && host != "docker.io" => {
            (path.to_owned(), format!("{}/{path}", host.replace(':', "-")))
        }
        _ => {
            let name = repository.trim_start_matches("docker.io/").trim_start_matches("library/");
            let path = if name.contains('/') { name.to_owned() } else { format!("library/{name}") };
            (path, name.to_owned())
        }
    }
}
