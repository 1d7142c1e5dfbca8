//! The images that the registries of the local AWS have before anything is copied.
//!
//! Names and tags look like those of a real company and of real public registries. Sizes are small, so a run takes seconds.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::images::{self, Format, ImageSpec, LayerSpec};
use crate::registry::{Registry, Tagged};

/// Each repository of the source account, its base, and its images: tags separated by spaces; an empty text is an image
/// without a tag.
const PRIVATE: &[(&str, &str, &[&str])] = &[
    ("base/runtime", "debian", &["bookworm", "trixie latest"]),
    ("data/etl/ingest", "python", &["v3", "v4", ""]),
    ("data/etl/report", "python", &["v1"]),
    ("ml/model-server", "debian", &["cpu", "cuda12"]),
    ("platform/api", "distroless", &["1.0.0", "1.1.0", "1.2.0 1.2 latest"]),
    ("platform/scheduler", "distroless", &["0.9.1", "0.9.2"]),
    ("platform/worker", "distroless", &["1.0.0", "1.1.0 stable"]),
    ("tools/migrate", "alpine", &["5.0", "5.1 5"]),
    ("web/frontend", "alpine", &["2024.1", "2024.2", "2024.3 latest"]),
];

/// The same for public registries, the registry's name first.
const PUBLIC: &[(&str, &str, &str, &[&str])] = &[
    ("docker.io", "bitnami/redis", "debian", &["7.2", "7.4"]),
    ("docker.io", "library/alpine", "alpine", &["3.18", "3.19", "3.20 latest"]),
    ("docker.io", "library/busybox", "busybox", &["1.36", "1.37"]),
    ("docker.io", "library/nginx", "debian", &["1.26", "1.27 latest", "1.27-alpine"]),
    ("docker.io", "library/redis", "debian", &["7.2", "7.4 7"]),
    ("quay.io", "coreos/etcd", "distroless", &["v3.5.14", "v3.5.15", "v3.5.16"]),
    ("quay.io", "prometheus/prometheus", "busybox", &["v2.53.0", "v2.54.1"]),
];

const MEGABYTE: usize = 1_000_000;

/// How many repositories are pushed to at a time.
const REPOSITORIES: usize = 4;

/// A set of images to be made and pushed.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    images: Vec<Planned>,
}

#[derive(Clone, Debug)]
struct Planned {
    registry: String,
    repository: String,
    tags: Vec<String>,
    spec: ImageSpec,
}

impl Planned {
    /// An image with tags separated by spaces.
    fn new(registry: &str, repository: &str, tags: &str, spec: ImageSpec) -> Self {
        let tags = tags.split_whitespace().map(str::to_owned).collect();
        Self { registry: registry.to_owned(), repository: repository.to_owned(), tags, spec }
    }
}

/// An image in its registry, once for each of its tags.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Seeded {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: String,
}

impl Corpus {
    /// The private repositories, in the ECR registry of that name.
    pub fn private(registry: &str) -> Self {
        let images = PRIVATE.iter().flat_map(|(repository, base, images)| plan(registry, repository, base, images));
        Self { images: images.collect() }
    }

    pub fn public() -> Self {
        let images =
            PUBLIC.iter().flat_map(|(registry, repository, base, images)| plan(registry, repository, base, images));
        Self { images: images.collect() }
    }

    /// The benchmarks' larger set: 60 images in 40 repositories, half of them for two platforms, with layers of 1 to 30
    /// MB, of which the lower ones are shared; some 1.5 GB of different layers.
    pub fn large(registry: &str) -> Self {
        const BASES: [(&str, usize); 6] = [("a", 30), ("b", 24), ("c", 18), ("d", 12), ("e", 6), ("f", 3)];
        let images = (0..40).flat_map(|repository| {
            let name = format!("bench/app-{repository:02}");
            let tags = if repository < 20 { 2 } else { 1 };
            (0..tags).map(move |tag| {
                let number = repository * 2 + tag;
                let (base, size) = BASES[repository % BASES.len()];
                let layers = vec![
                    LayerSpec { name: format!("bench/base/{base}"), size: size * MEGABYTE },
                    LayerSpec { name: format!("{name}/runtime"), size: (1 + pick(&name, 11)) * MEGABYTE },
                    LayerSpec { name: format!("{name}/{tag}"), size: (1 + (number * 7) % 22) * MEGABYTE },
                ];
                let architectures = if repository % 2 == 0 { vec!["amd64", "arm64"] } else { vec!["amd64"] };
                let format = if repository % 4 < 2 { Format::Oci } else { Format::Docker };
                Planned::new(registry, &name, &format!("1.{tag}"), ImageSpec { format, architectures, layers })
            })
        });
        Self { images: images.collect() }
    }

    /// The benchmarks' other set: 1,000 small images in 100 repositories, on one base.
    pub fn small(registry: &str) -> Self {
        let images = (0..1_000).map(|number| {
            let (name, tag) = (format!("bench/small-{:02}", number / 10), number % 10);
            let layers = vec![
                LayerSpec { name: "bench/base".into(), size: MEGABYTE },
                LayerSpec { name: format!("{name}/{tag}"), size: 20_000 },
            ];
            let spec = ImageSpec { format: Format::Oci, architectures: vec!["amd64"], layers };
            Planned::new(registry, &name, &format!("1.{tag}"), spec)
        });
        Self { images: images.collect() }
    }

    /// Adds an image, whose platforms and layers depend on its name.
    pub fn with(mut self, registry: &str, repository: &str, tag: &str) -> Self {
        self.images.extend(plan(registry, repository, "alpine", &[tag]));
        self
    }

    pub fn and(mut self, other: Self) -> Self {
        self.images.extend(other.images);
        self
    }

    /// The repositories in a registry.
    pub fn repositories(&self, registry: &str) -> Vec<&str> {
        let mut names: Vec<_> =
            self.images.iter().filter(|image| image.registry == registry).map(|image| &*image.repository).collect();
        names.dedup();
        names
    }

    /// Makes the images and pushes them: those of the source's registry to `source`, all others to `public`. Returns them
    /// sorted.
    pub async fn push(self, source: &Registry, public: Option<&Registry>) -> Result<Vec<Seeded>> {
        let specs: Vec<_> = self.images.iter().map(|planned| planned.spec.clone()).collect();
        let made = tokio::task::spawn_blocking(move || images::make(&specs)).await??;
        let mut repositories: BTreeMap<(&str, &str), Vec<Tagged<'_>>> = BTreeMap::new();
        let mut seeded = Vec::new();
        for (Planned { registry, repository, tags, .. }, image) in self.images.iter().zip(&made) {
            repositories.entry((registry, repository)).or_default().push((image, tags));
            let tags = if tags.is_empty() { vec![None] } else { tags.iter().cloned().map(Some).collect() };
            seeded.extend(tags.into_iter().map(|tag| Seeded {
                registry: registry.clone(),
                repository: repository.clone(),
                tag,
                digest: image.manifest.digest.clone(),
            }));
        }
        stream::iter(&repositories)
            .map(|((name, repository), images)| async move {
                let registry = if *name == source.host() { Some(source) } else { public };
                registry.with_context(|| format!("this machine has no registry {name}"))?.push(repository, images).await
            })
            .buffer_unordered(REPOSITORIES)
            .try_collect::<()>()
            .await?;
        seeded.sort();
        Ok(seeded)
    }
}

fn plan(registry: &str, repository: &str, base: &str, images: &[&str]) -> Vec<Planned> {
    let planned = images.iter().map(|tags| {
        let first = tags.split(' ').next().unwrap_or_default();
        let layers = vec![
            layer(&format!("base/{base}")),
            layer(&format!("{repository}/runtime")),
            layer(&format!("{repository}/app/{first}")),
        ];
        let format = if pick(repository, 2) == 0 { Format::Oci } else { Format::Docker };
        let architectures = if pick(repository, 3) == 0 { vec!["amd64"] } else { vec!["amd64", "arm64"] };
        Planned::new(registry, repository, tags, ImageSpec { format, architectures, layers })
    });
    planned.collect()
}

/// A layer of 0.1 to 1.6 MB, the same for the same name.
fn layer(name: &str) -> LayerSpec {
    LayerSpec { name: name.to_owned(), size: 100_000 + pick(name, 1_500_000) }
}

/// A number below `limit` that depends on the name.
fn pick(name: &str, limit: usize) -> usize {
    name.bytes().fold(7, |sum, byte| (sum * 31 + usize::from(byte)) % 1_000_003) * 1_009 % limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(corpus: &Corpus) -> usize {
        corpus.images.iter().map(|image| image.tags.len()).sum()
    }

    #[test]
    fn there_is_enough_of_everything() {
        let (private, public) = (Corpus::private("ecr"), Corpus::public());
        assert!(private.repositories("ecr").len() >= 7 && tags(&private) >= 22);
        assert!(public.repositories("docker.io").len() + public.repositories("quay.io").len() >= 6);
        assert!(tags(&public) >= 20);
        let all = private.and(public).images;
        for format in [Format::Oci, Format::Docker] {
            for platforms in [1, 2] {
                let is = |image: &&Planned| image.spec.format == format && image.spec.architectures.len() == platforms;
                assert!(all.iter().any(|image| is(&image)), "no {format:?} image for {platforms} platforms");
            }
        }
        assert!(all.iter().any(|image| image.tags.is_empty()) && all.iter().any(|image| image.tags.len() > 1));
    }

    #[test]
    fn the_benchmarks_images_have_the_documented_sizes() {
        let (large, small) = (Corpus::large("docker.io"), Corpus::small("docker.io"));
        assert_eq!((tags(&large), large.repositories("docker.io").len()), (60, 40));
        assert_eq!((tags(&small), small.repositories("docker.io").len()), (1_000, 100));
        assert_eq!(large.images.iter().filter(|image| image.spec.architectures.len() == 2).count(), 30);
        let layers: std::collections::BTreeSet<_> =
            large.images.iter().flat_map(|image| image.spec.all_layers()).collect();
        let bytes: usize = layers.iter().map(|layer| layer.size).sum();
        assert!((1_300_000_000..1_700_000_000).contains(&bytes), "{bytes}");
        assert!(layers.iter().all(|layer| (MEGABYTE..=30 * MEGABYTE).contains(&layer.size)));
    }

    #[test]
    fn real_tags_are_there() {
        let public = Corpus::public();
        let has = |repository: &str, tag: &str| {
            let tags =
                public.images.iter().filter(|image| image.repository == repository).flat_map(|image| &image.tags);
            tags.into_iter().any(|it| it == tag)
        };
        assert!(has("library/alpine", "3.20") && has("library/nginx", "1.27") && !has("library/nginx", "0"));
    }
}
