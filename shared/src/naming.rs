//! The names of repositories at the destination.

use crate::ecr::EcrHost;
use crate::reference::{Repository, RepositoryName};
use crate::{Error, Result};

/// How repositories are named at the destination, after the prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// Repositories of Docker Hub keep their names, and others begin with their host: `nginx`, `quay.io/coreos/etcd`.
    #[default]
    Plain,
    /// All names begin with a short name of the registry: `dockerhub/nginx`, `quay/coreos/etcd`.
    Registry,
}

/// The short names of registries.
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

/// The short name of all private ECR registries.
const SHORT_ECR: &str = "amazonecr";

impl Naming {
    /// The name in the table, and at the destination after the prefix, of a repository in any registry.
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

    /// The same for a repository of an ECR source.
    pub fn name_in_source(self, repository: &Repository) -> String {
        match self {
            Self::Plain => repository.name.to_string(),
            Self::Registry => self.name(repository),
        }
    }
}

/// The host as a part of a repository's name, which cannot have a colon.
fn host(registry: &str) -> String {
    registry.replace(':', "-")
}

/// The full name of a repository at the destination: the prefix and `name`.
///
/// # Errors
/// If it violates ECR's
/// [rules for repository names](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html).
pub fn destination_name(prefix: Option<&RepositoryName>, name: &str) -> Result<RepositoryName> {
    let full = prefix.map_or_else(|| name.to_owned(), |prefix| format!("{prefix}/{name}"));
    // The OCI specification also allows `__` and `--`.
    let has_single_separators = !full.contains("__") && !full.contains("--");
    match full.parse() {
        Ok(name) if has_single_separators && full.len() >= 2 => Ok(name),
        _ => {
            let problem = "ECR does not allow this repository name. It requires 2 to 255 lowercase letters and digits, with \
                           single . _ - or / between them.";
            Err(Error::Selection { entry: full.as_str().into(), place: None, problem: problem.into() })
        }
    }
}

/// Whether the name of a repository at the destination begins with the prefix, if there is one.
pub fn has_prefix(prefix: Option<&RepositoryName>, name: &RepositoryName) -> bool {
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
    fn names_are_plain_or_begin_with_the_short_name_of_their_registry() {
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
            // Names that only look like a registry's.
            ("quayiofoo/bar", "quayiofoo/bar", "dockerhub/quayiofoo/bar"),
            ("gcr.ioevil.com/x", "gcr.ioevil.com/x", "gcr.ioevil.com/x"),
        ] {
            let repository = repository(reference);
            assert_eq!(Naming::Plain.name(&repository), plain);
            assert_eq!(Naming::Registry.name(&repository), registry);
        }
    }

    #[test]
    fn the_guides_table_of_names_is_right() {
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
    fn a_name_that_ecr_does_not_allow_is_an_error() {
        let prefix = "mirror".parse().expect("it is a name");
        let named = destination_name(Some(&prefix), "a/b_c.d").expect("it is allowed");
        assert_eq!(named.as_str(), "mirror/a/b_c.d");
        for name in ["a", "a__b", "a--b", "-a/b", "Upper", "a//b"] {
            assert!(destination_name(None, name).is_err(), "{name}");
        }
        assert!(destination_name(Some(&prefix), &"a".repeat(255)).is_err());
    }

    #[test]
    fn a_prefix_consists_of_whole_parts_of_a_name() {
        let name = |text: &str| text.parse::<RepositoryName>().expect(text);
        let prefix = name("to/mirror");
        assert!(has_prefix(Some(&prefix), &name("to/mirror/app")) && has_prefix(None, &name("app")));
        for other in ["to/mirror", "to/mirrored/app", "app", "to/mirror-2/app"] {
            assert!(!has_prefix(Some(&prefix), &name(other)), "{other}");
        }
    }
}
