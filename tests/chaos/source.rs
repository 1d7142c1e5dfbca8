//! The source, whose tags change.

use std::collections::{BTreeMap, BTreeSet};

use local::corpus::Seeded;
use local::images;
use local::registry::Registry;
use serde_json::Value;

use crate::{Result, TAGS};

/// A repository and a tag.
pub type Tag = (String, String);

/// What the source lists, and what it has listed.
pub struct Source<'a> {
    registry: &'a Registry,
    random: fastrand::Rng,
    /// The digests of the images of each repository.
    images: BTreeMap<String, Vec<String>>,
    /// Those of all images, and of the images of each platform.
    known: BTreeSet<String>,
    /// What each tag leads to.
    tags: BTreeMap<Tag, String>,
    /// What each tag has led to since the run began; `None` where it was not there.
    during: BTreeMap<Tag, BTreeSet<Option<String>>>,
    /// What each tag has ever led to.
    ever: BTreeMap<Tag, BTreeSet<String>>,
    changes: BTreeMap<&'static str, usize>,
}

impl<'a> Source<'a> {
    pub async fn new(registry: &'a Registry, seeded: &[Seeded], seed: u64) -> Result<Self> {
        let mut source = Self {
            registry,
            random: fastrand::Rng::with_seed(seed),
            images: BTreeMap::new(),
            known: BTreeSet::from([images::empty_index().digest]),
            tags: BTreeMap::new(),
            during: BTreeMap::new(),
            ever: BTreeMap::new(),
            changes: BTreeMap::new(),
        };
        for Seeded { repository, tag, digest, .. } in seeded {
            let manifest: Value = serde_json::from_slice(&registry.manifest(repository, digest).await?)?;
            let platforms = manifest["manifests"].as_array().into_iter().flatten();
            source.known.extend(platforms.filter_map(|it| it["digest"].as_str()).map(str::to_owned));
            source.known.insert(digest.clone());
            source.images.entry(repository.clone()).or_default().push(digest.clone());
            source.leads((repository.clone(), tag.clone().unwrap_or_default()), Some(digest));
        }
        Ok(source)
    }

    /// A run begins.
    pub fn begin(&mut self) {
        let now = self.tags.iter().map(|(tag, digest)| (tag.clone(), BTreeSet::from([Some(digest.clone())])));
        self.during = now.collect();
    }

    /// Changes some tags of one repository, most of them to the same image.
    pub async fn change(&mut self) -> Result {
        let names: Vec<_> = self.images.keys().cloned().collect();
        let Some(name) = self.random.choice(names) else { return Ok(()) };
        let Some(image) = self.random.choice(self.images[&name].clone()) else { return Ok(()) };
        for _ in 0..self.random.usize(1..5) {
            let mut tags: Vec<Tag> = self.tags.keys().filter(|tag| tag.0 == name).cloned().collect();
            self.random.shuffle(&mut tags);
            let [one, other, ..] = tags.as_slice() else { return Ok(()) };
            let change = match self.random.u32(0..4) {
                0 => {
                    let tag = format!("added-{}", self.ever.len());
                    self.lead((name.clone(), tag), &image).await?;
                    "added"
                }
                1 => {
                    self.lead(one.clone(), &image).await?;
                    "moved"
                }
                2 => {
                    let (first, second) = (self.tags[one].clone(), self.tags[other].clone());
                    self.lead(one.clone(), &second).await?;
                    self.lead(other.clone(), &first).await?;
                    "swapped"
                }
                // A repository keeps about as many tags as it began with.
                _ if tags.len() > TAGS => {
                    self.delete(one.clone()).await?;
                    "deleted"
                }
                _ => continue,
            };
            *self.changes.entry(change).or_default() += 1;
        }
        Ok(())
    }

    async fn lead(&mut self, tag: Tag, digest: &str) -> Result {
        self.registry.tag(&tag.0, digest, &tag.1).await?;
        self.leads(tag, Some(digest));
        Ok(())
    }

    async fn delete(&mut self, tag: Tag) -> Result {
        self.registry.untag(&tag.0, &tag.1).await?;
        // Where it leads for a moment.
        self.leads(tag.clone(), Some(&images::empty_index().digest));
        self.leads(tag, None);
        Ok(())
    }

    /// Notes where a tag leads now.
    fn leads(&mut self, tag: Tag, digest: Option<&str>) {
        let before = self.tags.get(&tag).cloned();
        let during = self.during.entry(tag.clone()).or_insert_with(|| BTreeSet::from([before]));
        during.insert(digest.map(str::to_owned));
        match digest {
            Some(digest) => {
                self.ever.entry(tag.clone()).or_default().insert(digest.to_owned());
                self.tags.insert(tag, digest.to_owned());
            }
            None => drop(self.tags.remove(&tag)),
        }
    }

    /// The tags that it lists.
    pub fn tags(&self) -> &BTreeMap<Tag, String> {
        &self.tags
    }

    /// The tags that have not changed since the run began.
    pub fn steady(&self) -> impl Iterator<Item = (&Tag, &String)> {
        self.tags.iter().filter(|(tag, _)| self.during.get(*tag).is_none_or(|during| during.len() == 1))
    }

    /// Whether a tag has led there since the run began.
    pub fn had(&self, tag: &Tag, digest: Option<&str>) -> bool {
        let digest = digest.map(str::to_owned);
        digest.is_some() && self.during.get(tag).is_some_and(|during| during.contains(&digest))
    }

    /// Whether a tag has ever led there.
    pub fn ever_had(&self, tag: &Tag, digest: &str) -> bool {
        self.ever.get(tag).is_some_and(|ever| ever.contains(digest))
    }

    /// Whether it is an image of the source, or one platform's.
    pub fn knows(&self, digest: &str) -> bool {
        self.known.contains(digest)
    }

    pub fn summary(&self) -> String {
        let changes: Vec<_> = self.changes.iter().map(|(name, count)| format!("{count} × {name}")).collect();
        format!("tags so far: {}", changes.join(", "))
    }
}
