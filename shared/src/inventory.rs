//! The inventory: the images that the destination has. list-images writes it, and `ecr-transfer mirror` finds images with it.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::reference::{Digest, ImageReference, RegistryHost, Repository, Tag};
use crate::text::Excerpt;

/// The key of the latest inventory in the plan bucket.
pub const KEY: &str = "inventory/latest.json";

/// The version of the format.
const VERSION: u32 = 1;

/// The tag of a reference with neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// A repository that is mirrored, with the images that the destination has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirroredRepository {
    /// The repository that is copied.
    pub source: Repository,
    /// Its copy.
    pub destination: Repository,
    /// The images of the copy.
    pub images: Vec<MirroredImage>,
}

/// A tag or an untagged image of a repository at the destination. An image with several tags occurs once for each of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirroredImage {
    /// `None` for an untagged image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// The digest at the destination.
    pub digest: Digest,
}

/// Writes an inventory as JSON: `{"version": 1, "registry": "<destination host>", "repositories": [MirroredRepository, …]}`.
/// Repositories are serialised one by one, because all of them and the JSON together need too much memory.
pub struct Writer {
    json: Vec<u8>,
    is_empty: bool,
}

impl Writer {
    /// An inventory of the destination `registry`.
    pub fn new(registry: &RegistryHost) -> Self {
        Self {
            json: format!(r#"{{"version":{VERSION},"registry":"{registry}","repositories":["#).into_bytes(),
            is_empty: true,
        }
    }

    /// Adds a repository.
    pub fn add(&mut self, repository: &MirroredRepository) {
        if !std::mem::take(&mut self.is_empty) {
            self.json.push(b',');
        }
        serde_json::to_writer(&mut self.json, repository).expect("it has string keys only, and memory does not fail");
    }

    /// The JSON.
    pub fn finish(mut self) -> Vec<u8> {
        self.json.extend(b"]}");
        self.json
    }
}

/// The inventory, by source.
#[derive(Clone, Debug)]
pub struct Inventory {
    registry: RegistryHost,
    repositories: HashMap<Repository, Images>,
}

/// The images of a repository at the destination.
#[derive(Clone, Debug)]
struct Images {
    destination: Repository,
    tags: HashMap<Tag, Digest>,
    digests: HashSet<Digest>,
}

/// Why an inventory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// A newer format.
    #[error("the inventory has version {0}, but this program reads version {VERSION}. Update ecr-transfer")]
    Version(u32),
    /// Other JSON, or none.
    #[error("this is not an inventory of ecr-transfer")]
    Json(#[from] serde_json::Error),
    /// A source that occurs twice.
    #[error("the inventory has the repository {0} twice")]
    Twice(Repository),
    /// A repository at another destination.
    #[error("the inventory is of {1}, but it also has {0}")]
    Registry(Repository, RegistryHost),
}

/// What a reference must have in common with the inventory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Match {
    /// The destination has the image.
    #[default]
    Image,
    /// The destination has the repository. The image may be missing, for example because it is not copied yet.
    Repository,
}

/// What to use instead of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The image at the destination.
    Mirrored(ImageReference),
    /// The reference already is one of the destination.
    AlreadyMirrored,
}

/// Why an image has no name at the destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMirrored {
    /// The text is not an image reference.
    #[error("{0} is not an image reference")]
    Invalid(Excerpt),
    /// The repository is not copied.
    #[error("the repository {0} is not mirrored")]
    Repository(Repository),
    /// The destination does not have the tag.
    #[error("the mirror of {0} does not have the tag {1}")]
    Tag(Repository, Tag),
    /// The destination does not have the digest.
    #[error("the mirror of {0} does not have the digest {1}")]
    Digest(Repository, Digest),
}

impl Inventory {
    /// An inventory without repositories.
    pub fn new(registry: RegistryHost) -> Self {
        Self { registry, repositories: HashMap::new() }
    }

    /// Parses what [`Writer`] wrote.
    ///
    /// # Errors
    /// If the JSON is not an inventory, or has a name that is not valid.
    pub fn parse(json: &[u8]) -> Result<Self, ParseError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        #[derive(Deserialize)]
        struct Content {
            registry: RegistryHost,
            repositories: Vec<MirroredRepository>,
        }
        let Version { version } = serde_json::from_slice(json)?;
        if version != VERSION {
            return Err(ParseError::Version(version));
        }
        let Content { registry, repositories } = serde_json::from_slice(json)?;
        let mut inventory = Self::new(registry);
        for repository in repositories {
            if inventory.repositories.contains_key(&repository.source) {
                return Err(ParseError::Twice(repository.source));
            }
            if repository.destination.registry != inventory.registry {
                return Err(ParseError::Registry(repository.destination, inventory.registry));
            }
            inventory.add(repository);
        }
        Ok(inventory)
    }

    /// Adds a repository, or images to a repository. A known tag points to the added image from now on. A source has one
    /// destination: images at another one are left out.
    pub fn add(&mut self, MirroredRepository { source, destination, images }: MirroredRepository) {
        let new = || Images { destination: destination.clone(), tags: HashMap::new(), digests: HashSet::new() };
        let known = self.repositories.entry(source).or_insert_with(new);
        if known.destination != destination {
            return;
        }
        for MirroredImage { tag, digest } in images {
            known.digests.insert(digest);
            if let Some(tag) = tag {
                known.tags.insert(tag, digest);
            }
        }
    }

    /// The host of the destination.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// How many repositories and images it has. A tag is an image, as in [`MirroredImage`].
    pub fn count(&self) -> (usize, usize) {
        let images = self.repositories.values().map(|images| images.tags.len() + images.untagged().count());
        (self.repositories.len(), images.sum())
    }

    /// The repositories, sorted by source. Their images are sorted by tag; untagged images are last.
    pub fn repositories(&self) -> impl Iterator<Item = MirroredRepository> {
        let mut repositories: Vec<_> = self.repositories.iter().collect();
        repositories.sort_by_key(|&(source, _)| source);
        repositories.into_iter().map(|(source, images)| MirroredRepository {
            source: source.clone(),
            destination: images.destination.clone(),
            images: images.sorted(),
        })
    }

    /// The name at the destination of an image as people write it: `nginx`, `docker.io/library/nginx:latest` and
    /// `index.docker.io/nginx` are the same image. A reference without tag and digest is the tag `latest`. The digest of a
    /// reference decides which image it is, as it does for Docker and Kubernetes; a tag next to it may have moved.
    ///
    /// # Errors
    /// If the text is not an image reference, or the destination does not have the image.
    pub fn resolve(&self, text: &str, matching: Match) -> Result<Resolved, NotMirrored> {
        let image: ImageReference = text.parse().map_err(|_| NotMirrored::Invalid(Excerpt::new(text)))?;
        let ImageReference { repository, tag, digest } = image;
        let Some(images) = self.repositories.get(&repository) else {
            return if repository.registry == self.registry {
                Ok(Resolved::AlreadyMirrored)
            } else {
                Err(NotMirrored::Repository(repository))
            };
        };
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.parse().expect("it is a tag")),
            (tag, _) => tag,
        };
        if matching == Match::Image {
            match (&tag, digest) {
                (_, Some(digest)) if !images.digests.contains(&digest) => {
                    return Err(NotMirrored::Digest(repository, digest));
                }
                (Some(tag), None) if !images.tags.contains_key(tag) => {
                    return Err(NotMirrored::Tag(repository, tag.clone()));
                }
                _ => {}
            }
        }
        Ok(Resolved::Mirrored(ImageReference { repository: images.destination.clone(), tag, digest }))
    }
}

impl Images {
    fn untagged(&self) -> impl Iterator<Item = Digest> {
        let with_tag: HashSet<_> = self.tags.values().collect();
        self.digests.iter().filter(move |digest| !with_tag.contains(digest)).copied()
    }

    fn sorted(&self) -> Vec<MirroredImage> {
        let mut tagged: Vec<_> =
            self.tags.iter().map(|(tag, digest)| MirroredImage { tag: Some(tag.clone()), digest: *digest }).collect();
        tagged.sort_by(|a, b| a.tag.cmp(&b.tag));
        let mut untagged: Vec<_> = self.untagged().map(|digest| MirroredImage { tag: None, digest }).collect();
        untagged.sort_by_key(|image| image.digest);
        tagged.append(&mut untagged);
        tagged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

    fn repository(text: &str) -> Repository {
        text.parse().expect(text)
    }

    fn mirrored(source: &str, name: &str, tags: &[(&str, &str)], untagged: &[&str]) -> MirroredRepository {
        let tagged = tags.iter().map(|(tag, content)| (Some(tag.parse().expect(tag)), content));
        let images = tagged.chain(untagged.iter().map(|content| (None, content)));
        MirroredRepository {
            source: repository(source),
            destination: repository(&format!("{HOST}/{name}")),
            images: images
                .map(|(tag, content)| MirroredImage { tag, digest: Digest::of(content.as_bytes()) })
                .collect(),
        }
    }

    fn written(repositories: &[MirroredRepository]) -> Vec<u8> {
        let mut writer = Writer::new(&HOST.parse().expect("it is a host"));
        repositories.iter().for_each(|repository| writer.add(repository));
        writer.finish()
    }

    fn inventory() -> Inventory {
        Inventory::parse(&written(&[
            mirrored("docker.io/library/nginx", "hub/nginx", &[("1.27", "a"), ("latest", "b")], &["c"]),
            mirrored("quay.io/coreos/etcd", "quay/etcd", &[("v3", "d")], &[]),
            mirrored("ghcr.io/o/empty", "ghcr/o/empty", &[], &[]),
            mirrored(&format!("{HOST}/app"), "copy/app", &[("1", "e")], &[]),
        ]))
        .expect("it was written")
    }

    /// The mirror's name without its host, or the reason.
    fn resolved(image: &str, matching: Match) -> String {
        match inventory().resolve(image, matching) {
            Ok(Resolved::Mirrored(mirror)) => mirror.to_string().replace(HOST, "…"),
            Ok(Resolved::AlreadyMirrored) => "already mirrored".into(),
            Err(reason) => reason.to_string(),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = [
            mirrored("docker.io/library/nginx", "nginx", &[("1", "a"), ("2", "a")], &["b"]),
            mirrored("quay.io/coreos/etcd", "etcd", &[], &[]),
        ];
        let json = written(&all);
        let text = String::from_utf8(json.clone()).expect("it is text");
        assert!(text.starts_with(&format!(
            r#"{{"version":1,"registry":"{HOST}","repositories":[{{"source":"docker.io/library/nginx","destination":"{HOST}/nginx","images":[{{"tag":"1","digest":"sha256:"#
        )), "{text}");
        let inventory = Inventory::parse(&json).expect("it was written");
        assert_eq!(inventory.repositories().collect::<Vec<_>>(), all);
        assert_eq!(inventory.registry().as_str(), HOST);
        assert_eq!(inventory.count(), (2, 3));
        assert_eq!(Inventory::parse(&written(&[])).expect("it was written").count(), (0, 0));
    }

    #[test]
    fn what_is_not_an_inventory_is_refused() {
        let newer = r#"{"version": 2, "future": true}"#;
        let error = Inventory::parse(newer.as_bytes()).expect_err("it is newer").to_string();
        assert_eq!(error, "the inventory has version 2, but this program reads version 1. Update ecr-transfer");
        let valid =
            String::from_utf8(written(&[mirrored("quay.io/a/b", "b", &[("1", "a")], &[])])).expect("it is text");
        assert!(Inventory::parse(valid.as_bytes()).is_ok());
        let elsewhere = valid.replace(&format!("{HOST}/b"), "evil.example/b");
        let error = Inventory::parse(elsewhere.as_bytes()).expect_err("it leads elsewhere").to_string();
        assert_eq!(error, format!("the inventory is of {HOST}, but it also has evil.example/b"));
        for (from, to) in [
            ("quay.io/a/b", "quay.io/A"),
            (r#""tag":"1""#, r#""tag":"$(id)""#),
            ("sha256:", "sha512:"),
            (HOST, "x y"),
            ("]", ""),
        ] {
            assert!(Inventory::parse(valid.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn all_spellings_of_an_image_are_found() {
        let (a, c) = (Digest::of(b"a"), Digest::of(b"c"));
        for (image, expected) in [
            ("nginx".to_owned(), "…/hub/nginx:latest".to_owned()),
            ("docker.io/nginx:1.27".into(), "…/hub/nginx:1.27".into()),
            ("index.docker.io/library/nginx:latest".into(), "…/hub/nginx:latest".into()),
            ("quay.io/coreos/etcd:v3".into(), "…/quay/etcd:v3".into()),
            (format!("nginx@{c}"), format!("…/hub/nginx@{c}")),
            (format!("nginx:1.27@{a}"), format!("…/hub/nginx:1.27@{a}")),
            // The tag has moved, or was deleted.
            (format!("nginx:latest@{a}"), format!("…/hub/nginx:latest@{a}")),
            (format!("nginx:1.26@{c}"), format!("…/hub/nginx:1.26@{c}")),
            // The mirror is a source itself.
            (format!("{HOST}/app:1"), "…/copy/app:1".into()),
            (format!("{HOST}/copy/app:1"), "already mirrored".into()),
            (format!("{HOST}/hub/nginx:none"), "already mirrored".into()),
        ] {
            assert_eq!(resolved(&image, Match::Image), expected, "{image}");
        }
    }

    #[test]
    fn an_image_that_the_mirror_lacks_is_not_renamed() {
        let (a, none) = (Digest::of(b"a"), Digest::of(b"none"));
        for (image, reason) in [
            ("nginx:1.28".to_owned(), "the mirror of docker.io/library/nginx does not have the tag 1.28".to_owned()),
            (
                format!("nginx:1.27@{none}"),
                format!("the mirror of docker.io/library/nginx does not have the digest {none}"),
            ),
            (
                format!("quay.io/coreos/etcd@{a}"),
                format!("the mirror of quay.io/coreos/etcd does not have the digest {a}"),
            ),
            ("ghcr.io/o/empty".into(), "the mirror of ghcr.io/o/empty does not have the tag latest".into()),
            ("redis".into(), "the repository docker.io/library/redis is not mirrored".into()),
            ("localhost:5000/nginx".into(), "the repository localhost:5000/nginx is not mirrored".into()),
            ("localhost/nginx".into(), "the repository localhost/nginx is not mirrored".into()),
            ("{{ .Values.image }}".into(), "{{ .Values.image }} is not an image reference".into()),
            ("nginx\n".into(), r"nginx\n is not an image reference".into()),
        ] {
            assert_eq!(resolved(&image, Match::Image), reason, "{image}");
        }
    }

    #[test]
    fn a_mirrored_repository_is_enough_if_the_caller_says_so() {
        let none = Digest::of(b"none");
        for (image, expected) in [
            ("nginx:1.28".to_owned(), "…/hub/nginx:1.28".to_owned()),
            (format!("nginx@{none}"), format!("…/hub/nginx@{none}")),
            ("ghcr.io/o/empty".into(), "…/ghcr/o/empty:latest".into()),
            ("redis".into(), "the repository docker.io/library/redis is not mirrored".into()),
        ] {
            assert_eq!(resolved(&image, Match::Repository), expected, "{image}");
        }
    }

    #[test]
    fn a_source_has_one_destination() {
        let two = [mirrored("quay.io/a/b", "b", &[("1", "a")], &[]), mirrored("quay.io/a/b", "c", &[("2", "b")], &[])];
        let error = Inventory::parse(&written(&two)).expect_err("it is ambiguous").to_string();
        assert_eq!(error, "the inventory has the repository quay.io/a/b twice");
        let mut inventory = inventory();
        inventory.add(mirrored("docker.io/library/nginx", "moved/nginx", &[("2", "x")], &[]));
        assert!(inventory.resolve("nginx:2", Match::Image).is_err());
        assert!(inventory.resolve("nginx:1.27", Match::Image).is_ok());
    }

    #[test]
    fn a_later_image_moves_its_tag_and_keeps_the_old_digest() {
        let mut inventory = inventory();
        inventory.add(mirrored("docker.io/library/nginx", "hub/nginx", &[("1.27", "new")], &[]));
        for content in ["a", "new"] {
            let image = format!("nginx@{}", Digest::of(content.as_bytes()));
            assert!(inventory.resolve(&image, Match::Image).is_ok(), "{content}");
        }
        let nginx = inventory.repositories().find(|it| it.source.name.as_str() == "library/nginx");
        let images = nginx.expect("it is there").images;
        assert_eq!(images[0].digest, Digest::of(b"new"));
        assert_eq!(images.iter().filter(|image| image.tag.is_none()).count(), 2);
    }
}
