//! What repositories are called at the destination.

use crate::ecr::EcrHost;
use crate::reference::{Repository, RepositoryName};
use crate::{Error, Result};

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
        let short =
            if repository.registry.is_docker_hub() { name.strip_prefix("library/").unwrap_or(name) } else { name };
        match self {
            Self::Plain if repository.registry.is_docker_hub() => short.to_owned(),
            Self::Plain => format!("{}/{short}", host(registry)),
            Self::Registry if EcrHost::of(&repository.registry).is_some() => format!("{SHORT_ECR}/{short}"),
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
            Self::Plain => repository.name.to_string(),
            Self::Registry => self.name(repository),
        }
    }
}

/// A host as a folder: a repository's name has no colon.
fn host(registry: &str) -> String {
    registry.replace(':', "-")
}

/// The name at the destination of what is called `name` there, behind `prefix`, by ECR's
/// [rules for repository names](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html).
///
/// # Errors
/// When ECR does not allow it.
pub fn destination_name(prefix: Option<&RepositoryName>, name: &str) -> Result<RepositoryName> {
    let full = prefix.map_or_else(|| name.to_owned(), |prefix| format!("{prefix}/{name}"));
    // Of the separators that the specification allows, ECR takes one at a time.
    let has_single_separators = !full.contains("__") && !full.contains("--");
    match full.parse() {
        Ok(name) if has_single_separators && full.len() >= 2 => Ok(name),
        _ => {
            let problem =
                "ECR does not allow this as a repository name: 2 to 255 characters, components of lowercase letters \
                           and digits with single . _ - between them, separated by slashes"
                    .into();
            Err(Error::Selection { entry: full.as_str().into(), place: None, problem })
        }
    }
}

/// Whether a repository at the destination lies behind the prefix, where there is one.
#[must_use]
pub fn is_behind(prefix: Option<&RepositoryName>, name: &RepositoryName) -> bool {
    let rest =
        |prefix: &RepositoryName| name.as_str().strip_prefix(prefix.as_str()).is_some_and(|it| it.starts_with('/'));
    prefix.is_none_or(rest)
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
        let prefix = "mirror".parse().expect("it is a name");
        let named = destination_name(Some(&prefix), "a/b_c.d").expect("it is allowed");
        assert_eq!(named.as_str(), "mirror/a/b_c.d");
        for name in ["a", "a__b", "a--b", "-a/b", "Upper", "a//b"] {
            assert!(destination_name(None, name).is_err(), "{name}");
        }
        assert!(destination_name(Some(&prefix), &"a".repeat(255)).is_err());
    }

    #[test]
    fn a_name_that_only_begins_like_the_prefix_is_not_behind_it() {
        let name = |text: &str| text.parse::<RepositoryName>().expect(text);
        let prefix = name("to/mirror");
        assert!(is_behind(Some(&prefix), &name("to/mirror/app")) && is_behind(None, &name("app")));
        for other in ["to/mirror", "to/mirrored/app", "app", "to/mirror-2/app"] {
            assert!(!is_behind(Some(&prefix), &name(other)), "{other}");
        }
    }
}
