//! What repositories are called at the destination.

use shared::{Error, Result};

use crate::selection::Repository;

/// How a repository of another registry is called at the destination, behind the prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// Docker Hub's names stay as they are, short ones short, and those of other registries come behind their host:
    /// `nginx`, `quay.io/coreos/etcd`.
    #[default]
    Plain,
    /// Behind a short name for the registry: `dockerhub/nginx`, `quay/coreos/etcd`.
    Registry,
}

/// The short names of registries, the first folder of a repository's name.
const SHORT: &[(&str, &str)] = &[
    ("docker.io", "dockerhub"),
    ("quay.io", "quay"),
    ("gcr.io", "gcr"),
    ("asia.gcr.io", "gcr"),
    ("eu.gcr.io", "gcr"),
    ("us.gcr.io", "gcr"),
    ("k8s.gcr.io", "gcr/google_containers"),
    ("registry.k8s.io", "k8s"),
    ("ghcr.io", "ghcr"),
    ("mcr.microsoft.com", "mcr"),
    ("nvcr.io", "nvcr"),
    ("public.ecr.aws", "ecrpublic"),
];

/// What it is for private registries of ECR, whatever account and region.
const SHORT_ECR: &str = "amazonecr";

impl Naming {
    /// The repository's name in the table, and at the destination behind the prefix.
    #[must_use]
    pub fn name(self, repository: &Repository) -> String {
        let (registry, name) = (repository.registry.as_str(), repository.name.as_str());
        let short = if registry == "docker.io" { name.strip_prefix("library/").unwrap_or(name) } else { name };
        match self {
            Self::Plain if registry == "docker.io" => short.to_owned(),
            Self::Plain => format!("{}/{short}", host(registry)),
            Self::Registry if shared::ecr::account_and_region(registry).is_some() => format!("{SHORT_ECR}/{short}"),
            Self::Registry => match SHORT.iter().find(|(host, _)| *host == registry) {
                Some((_, folder)) => format!("{folder}/{short}"),
                None => format!("{}/{short}", host(registry)),
            },
        }
    }

    /// The same for a repository of the one ECR registry that is the source.
    #[must_use]
    pub fn name_in_source(self, repository: &Repository) -> String {
        match self {
            Self::Plain => repository.name.clone(),
            Self::Registry => self.name(repository),
        }
    }
}

/// A host as a folder: a repository's name has no colon, and no capital letters.
fn host(registry: &str) -> String {
    registry.replace(':', "-").to_lowercase()
}

/// Puts `prefix` in front of `name`, and checks the result against ECR's
/// [rules for repository names](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html).
///
/// # Errors
/// When ECR would refuse the name.
pub fn destination_name(prefix: &str, name: &str) -> Result<String> {
    let full = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
    let is_component = |component: &str| {
        component
            .split(['.', '_', '-'])
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
    };
    if (2..=256).contains(&full.len()) && full.split('/').all(is_component) {
        return Ok(full);
    }
    let problem = "ECR does not allow this as a repository name: 2 to 256 characters, components of lowercase letters \
                   and digits with single . _ - between them, separated by slashes"
        .into();
    Err(Error::Selection { entry: full, place: None, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(reference: &str) -> Repository {
        crate::selection::parse([("the list", reference)], None)
            .expect("it is a list")
            .into_keys()
            .next()
            .expect("it names one repository")
    }

    #[test]
    fn names_are_plain_or_behind_their_registrys_short_name() {
        for (reference, plain, registry) in [
            ("nginx", "nginx", "dockerhub/nginx"),
            ("docker.io/library/nginx", "nginx", "dockerhub/nginx"),
            ("bitnami/redis", "bitnami/redis", "dockerhub/bitnami/redis"),
            ("quay.io/coreos/etcd", "quay.io/coreos/etcd", "quay/coreos/etcd"),
            ("gcr.io/heptio-images/velero", "gcr.io/heptio-images/velero", "gcr/heptio-images/velero"),
            ("eu.gcr.io/p/app", "eu.gcr.io/p/app", "gcr/p/app"),
            ("k8s.gcr.io/pause", "k8s.gcr.io/pause", "gcr/google_containers/pause"),
            ("registry.k8s.io/pause", "registry.k8s.io/pause", "k8s/pause"),
            ("ghcr.io/o/app", "ghcr.io/o/app", "ghcr/o/app"),
            ("public.ecr.aws/lambda/python", "public.ecr.aws/lambda/python", "ecrpublic/lambda/python"),
            (
                "602401143452.dkr.ecr.us-west-2.amazonaws.com/amazon-k8s-cni",
                "602401143452.dkr.ecr.us-west-2.amazonaws.com/amazon-k8s-cni",
                "amazonecr/amazon-k8s-cni",
            ),
            ("host:5000/foo", "host-5000/foo", "host-5000/foo"),
            // Names that only begin like a registry's.
            ("quayiofoo/bar", "quayiofoo/bar", "dockerhub/quayiofoo/bar"),
            ("gcr.ioevil.com/x", "gcr.ioevil.com/x", "gcr.ioevil.com/x"),
        ] {
            let repository = repository(reference);
            assert_eq!(Naming::Plain.name(&repository), plain);
            assert_eq!(Naming::Registry.name(&repository), registry);
        }
    }

    #[test]
    fn the_guides_names_are_the_names() {
        let rows = crate::guide::rows("| Image | `plain` | `registry` |");
        assert_eq!(rows.len(), 13);
        for row in rows {
            let repository = repository(&row[0][0]);
            assert_eq!(
                [Naming::Plain.name(&repository), Naming::Registry.name(&repository)],
                [&*row[1][0], &*row[2][0]]
            );
        }
    }

    #[test]
    fn repositories_of_an_ecr_source_keep_their_names() {
        let repository = repository("602401143452.dkr.ecr.us-west-2.amazonaws.com/team/app");
        assert_eq!(Naming::Plain.name_in_source(&repository), "team/app");
        assert_eq!(Naming::Registry.name_in_source(&repository), "amazonecr/team/app");
    }

    #[test]
    fn a_name_that_ecr_would_refuse_is_refused_before() {
        assert_eq!(destination_name("mirror", "a/b_c.d").expect("it is allowed"), "mirror/a/b_c.d");
        for name in ["a", "a__b", "-a/b", "Upper", "a//b"] {
            assert!(destination_name("", name).is_err(), "{name}");
        }
        assert!(destination_name("p", &"a".repeat(255)).is_err());
    }
}
