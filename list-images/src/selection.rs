//! The list of selected images: references separated by commas or newlines, with `#` comments.

use std::collections::BTreeMap;

use oci_client::Reference;
use shared::{Error, Result};

/// In place of a tag: all tags of the repository.
pub const ALL_TAGS: &str = "ALL_TAGS";

/// The repositories that a list names, in order, and what it wants of each.
pub type Selection = BTreeMap<Repository, Wanted>;

/// A repository in a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repository {
    /// The registry's host, with its port if it has one; `docker.io` for Docker Hub.
    pub registry: String,
    /// The repository's full name; `library/nginx` for Docker Hub's official nginx.
    pub name: String,
}

impl Repository {
    /// How it is called at the destination and in the table: Docker Hub's short names stay short, ECR repositories keep
    /// their name, and other registries come first in the name, as in `quay.io/coreos/etcd`.
    #[must_use]
    pub fn plain_name(&self) -> String {
        match self.registry.as_str() {
            "docker.io" => self.name.strip_prefix("library/").unwrap_or(&self.name).to_owned(),
            // A repository's name has no colon.
            registry => format!("{}/{}", registry.replace(':', "-"), self.name),
        }
    }
}

/// What is wanted of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// All tags.
    pub all_tags: bool,
    /// These, each once.
    pub images: Vec<Reference>,
}

/// Parses a list. References without a registry are Docker Hub's, or those of `registry` where the source is that one.
///
/// # Errors
/// When an entry is no reference, naming it and its position; when there is none at all.
pub fn parse(list: &str, registry: Option<&str>) -> Result<Selection> {
    let entries = list
        .lines()
        .map(|line| line.split_once('#').map_or(line, |(entries, _comment)| entries))
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let mut selection = Selection::new();
    for (index, entry) in entries.enumerate() {
        let invalid = |problem: String| Error::Selection { entry: entry.into(), position: Some(index + 1), problem };
        let qualified = match registry {
            Some(host) if !entry.starts_with(&format!("{host}/")) => format!("{host}/{entry}"),
            _ => entry.to_owned(),
        };
        let reference: Reference = qualified.parse().map_err(|error| {
            invalid(format!("{error}; expected [registry[:port]/]repository[:tag][@digest], or {ALL_TAGS} as the tag"))
        })?;
        if registry.is_some_and(|host| reference.registry() != host) {
            return Err(invalid("it is in another registry than the source".into()));
        }
        let repository =
            Repository { registry: reference.registry().to_owned(), name: reference.repository().to_owned() };
        let wanted = selection.entry(repository).or_default();
        if reference.tag() == Some(ALL_TAGS) {
            wanted.all_tags = true;
        } else if !wanted.images.contains(&reference) {
            wanted.images.push(reference);
        }
    }
    if selection.is_empty() {
        let problem = "the list of selected images is empty; name at least one, for example nginx:1.27".into();
        return Err(Error::Selection { entry: String::new(), position: None, problem });
    }
    Ok(selection)
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
    Err(Error::Selection { entry: full, position: None, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<String> {
        let selection = parse(list, None).expect("it is a list");
        selection.values().flat_map(|wanted| &wanted.images).map(ToString::to_string).collect()
    }

    #[test]
    fn three_spellings_of_one_image_are_one_image() {
        assert_eq!(names("nginx,docker.io/nginx:latest,docker.io/library/nginx"), ["docker.io/library/nginx:latest"]);
    }

    #[test]
    fn commas_newlines_blanks_and_comments_separate_and_a_trailing_comma_is_harmless() {
        assert_eq!(
            names(" a/b:1 ,\t a/c:2 # the last\n#nothing, here\r\n\nquay.io/a/d:3,\n,"),
            ["docker.io/a/b:1", "docker.io/a/c:2", "quay.io/a/d:3"]
        );
    }

    #[test]
    fn ports_tags_and_digests_are_told_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let list = format!("host:5000/foo:1.2,u@{digest},host:5000/foo");
        assert_eq!(
            names(&list),
            [format!("docker.io/library/u@{digest}"), "host:5000/foo:1.2".into(), "host:5000/foo:latest".into()]
        );
    }

    #[test]
    fn a_wrong_entry_is_named_with_its_position() {
        let error = parse("nginx, UPPER:1", None).expect_err("names are lowercase");
        assert!(error.to_string().starts_with(r#""UPPER:1" (entry 2 of the image list): "#), "{error}");
        assert!(parse("repo:", None).is_err());
    }

    #[test]
    fn an_empty_list_is_an_error() {
        let error = parse(" , # nothing\n", None).expect_err("nothing would be copied");
        assert_eq!(error.name(), "InvalidImageList");
    }

    #[test]
    fn an_ecr_entry_may_be_a_name_or_a_full_uri() {
        let host = "222222222222.dkr.ecr.us-west-2.amazonaws.com";
        let selection = parse(&format!("app:1,{host}/app:1,team/app:ALL_TAGS"), Some(host)).expect("it is a list");
        let repositories: Vec<_> = selection.keys().map(|repository| repository.name.as_str()).collect();
        assert_eq!(repositories, ["app", "team/app"]);
        let wanted: Vec<_> = selection.values().collect();
        assert_eq!(wanted[0].images.len(), 1);
        assert!(wanted[1].all_tags && wanted[1].images.is_empty());
    }

    #[test]
    fn names_at_the_destination_are_plain() {
        for (reference, name) in [
            ("nginx", "nginx"),
            ("bitnami/redis", "bitnami/redis"),
            ("quay.io/coreos/etcd", "quay.io/coreos/etcd"),
            ("host:5000/foo", "host-5000/foo"),
        ] {
            let selection = parse(reference, None).expect("it is a list");
            assert_eq!(selection.keys().next().map(Repository::plain_name).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_name_that_ecr_would_refuse_is_refused_before() {
        assert_eq!(destination_name("mirror", "a/b_c.d").expect("it is allowed"), "mirror/a/b_c.d");
        for name in ["a", "a__b", "-a/b", "Upper", "a//b"] {
            assert!(destination_name("", name).is_err(), "{name}");
        }
    }
}
