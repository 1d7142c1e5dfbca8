//! The image list: entries separated by commas or newlines, with `#` comments.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ssm::Client;
use aws_sdk_ssm::operation::get_parameter::GetParameterError;

use crate::ecr::{EcrHost, is_same_registry};
use crate::reference::{Digest, ImageReference, RegistryHost, Repository, Tag};
use crate::tags::{ALL_TAGS, Tags};
use crate::{Error, Result};

/// The form of an entry, for errors.
const EXPECTED: &str = "Expected [registry[:port]/]repository[:tag][@digest]. Instead of a tag, it can have ALL_TAGS, a glob \
                        such as 1.27.*, or a version range such as ^1.27 or >=1.20 <2, and each of these can end in newest N.";

/// The selected repositories.
pub type Selection = BTreeMap<Repository, Wanted>;

/// The selected images of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Images by pattern.
    pub patterns: Vec<Tags>,
    /// Images by tag or digest.
    pub images: BTreeSet<NamedImage>,
}

/// An image that the list names. It has a tag, a digest, or both: then the image with the digest gets the tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedImage {
    /// The tag.
    pub tag: Option<Tag>,
    /// The digest.
    pub digest: Option<Digest>,
}

impl Wanted {
    /// All images of a repository.
    pub fn everything() -> Self {
        Self { patterns: vec![Tags::all()], images: BTreeSet::new() }
    }

    /// Whether all images are selected.
    pub fn is_everything(&self) -> bool {
        self.patterns.iter().any(Tags::is_everything)
    }

    fn add(&mut self, other: Self) {
        for pattern in other.patterns {
            if !self.patterns.contains(&pattern) {
                self.patterns.push(pattern);
            }
        }
        self.images.extend(other.images);
    }
}

/// Parses an image list in parts, each with its name for errors. References without a registry belong to `source` if it is the
/// only registry, otherwise to Docker Hub.
///
/// # Errors
/// If an entry is invalid, or the list is empty.
pub fn parse<'a>(
    parts: impl IntoIterator<Item = (&'a str, &'a str)>,
    source: Option<&RegistryHost>,
) -> Result<Selection> {
    let mut selection = Selection::new();
    let mut first_name = None;
    for (name, list) in parts {
        add(&mut selection, list, name, source)?;
        first_name.get_or_insert(name);
    }
    if selection.is_empty() {
        let entry = first_name.unwrap_or_default().into();
        let problem = "the image list is empty. Add at least one image, for example nginx:1.27.".into();
        return Err(Error::Selection { entry, place: None, problem });
    }
    Ok(selection)
}

fn add(selection: &mut Selection, list: &str, list_name: &str, source: Option<&RegistryHost>) -> Result<()> {
    let entries = list
        .lines()
        .map(|line| line.split_once('#').map_or(line, |(entries, _comment)| entries))
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    for (index, entry) in entries.enumerate() {
        let (repository, wanted) = parse_entry(entry, source).map_err(|problem| Error::Selection {
            entry: entry.into(),
            place: Some(format!("entry {} of {list_name}", index + 1)),
            problem,
        })?;
        selection.entry(repository).or_default().add(wanted);
    }
    Ok(())
}

fn parse_entry(entry: &str, source: Option<&RegistryHost>) -> Result<(Repository, Wanted), String> {
    let mut words = entry.split_whitespace();
    let reference = words.next().unwrap_or_default();
    let (name, tag) = split(reference);
    if name.contains(['*', '?', '[']) {
        return Err("a repository cannot be a glob. To select repositories by glob, set srcList to ALL, and use \
                    includeRepositories."
            .into());
    }
    let is_pattern = |tag: &&str| Tags::is_pattern(tag.split('@').next().unwrap_or_default());
    let Some(pattern) = tag.filter(is_pattern) else {
        if let Some(word) = words.next() {
            return Err(format!("unexpected {word:?}. Separate entries by commas or newlines."));
        }
        let (repository, named) = parse_reference(reference, source)?;
        return Ok((repository, Wanted { images: BTreeSet::from([named]), ..Wanted::default() }));
    };
    if pattern.contains('@') {
        return Err(format!("a digest cannot be combined with {ALL_TAGS} or a pattern."));
    }
    let patterns = vec![Tags::parse(pattern, words)?];
    let (repository, _latest) = parse_reference(name, source)?;
    Ok((repository, Wanted { patterns, ..Wanted::default() }))
}

/// Splits an entry into the name and the tag or pattern. A colon before the last slash belongs to a port, and one after an `@`
/// to a digest.
fn split(reference: &str) -> (&str, Option<&str>) {
    let last = reference.rfind('/').unwrap_or_default();
    match reference[last..].split_once([':', '@']) {
        Some((name, tag)) if reference[last + name.len()..].starts_with(':') => {
            (&reference[..last + name.len()], Some(tag))
        }
        Some((name, _digest)) => (&reference[..last + name.len()], None),
        None => (reference, None),
    }
}

/// Parses a reference without patterns.
fn parse_reference(text: &str, source: Option<&RegistryHost>) -> Result<(Repository, NamedImage), String> {
    let parse = |text: &str| text.parse::<ImageReference>().map_err(|error| format!("{error}. {EXPECTED}"));
    let ImageReference { repository, tag, digest } = match source {
        None => parse(text)?,
        Some(source) => parse(&format!("{source}/{}", without_host(text, source)?))?,
    };
    let latest = || (digest.is_none()).then(|| "latest".parse().expect("it is a tag"));
    Ok((repository, NamedImage { tag: tag.or_else(latest), digest }))
}

/// Removes the host of the registry `source`, which is optional in its references.
fn without_host<'a>(text: &'a str, source: &RegistryHost) -> Result<&'a str, String> {
    let Some((first, rest)) = text.split_once('/') else { return Ok(text) };
    match RegistryHost::parse(first) {
        Ok(host) if is_same_registry(&host, source) => Ok(rest),
        Ok(host) if EcrHost::of(&host).is_some() => Err(format!("it is not in the source registry, {source}.")),
        _ => Ok(text),
    }
}

/// Reads the parts of an image list, each with its name: the parameter of the Parameter Store, and all parameters below its
/// path. A parameter has at most 4 KB.
///
/// # Errors
/// If there are none, or they cannot be read.
pub async fn read(ssm: &Client, parameter: &str) -> Result<Vec<(String, String)>> {
    let mut parts = Vec::new();
    match ssm.get_parameter().name(parameter).send().await {
        Ok(answer) => {
            let list = answer.parameter.and_then(|parameter| parameter.value).unwrap_or_default();
            parts.push((parameter.to_owned(), list));
        }
        // It can be only a path.
        Err(error) if error.as_service_error().is_some_and(GetParameterError::is_parameter_not_found) => {}
        Err(error) => return Err(Error::aws("ssm:GetParameter", parameter)(error)),
    }
    // Only a name that begins with a slash is a path.
    if parameter.starts_with('/') {
        let mut pages = ssm.get_parameters_by_path().path(parameter).recursive(true).into_paginator().send();
        let first = parts.len();
        while let Some(page) = pages.next().await {
            let page = page.map_err(Error::aws("ssm:GetParametersByPath", parameter))?;
            let lists = page.parameters.unwrap_or_default().into_iter();
            parts.extend(lists.filter_map(|list| Some((list.name?, list.value.unwrap_or_default()))));
        }
        parts[first..].sort_by(|a, b| alphanumeric_sort::compare_str(&a.0, &b.0));
    }
    if parts.is_empty() {
        return Err(Error::Selection {
            entry: parameter.into(),
            place: None,
            problem:
                "the Parameter Store has no parameter with this name or below this path in this account and region."
                    .into(),
        });
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use aws_sdk_ssm::error::ErrorMetadata;
    use aws_sdk_ssm::operation::get_parameters_by_path::GetParametersByPathOutput;
    use aws_sdk_ssm::types::Parameter;
    use aws_sdk_ssm::types::error::ParameterNotFound;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use proptest::prelude::*;

    use super::*;

    fn parsed(list: &str) -> Selection {
        parse([("the list", list)], None).expect("it is a list")
    }

    fn names(list: &str) -> Vec<String> {
        let print = |repository: &Repository, image: &NamedImage| {
            ImageReference { repository: repository.clone(), tag: image.tag.clone(), digest: image.digest }.to_string()
        };
        let selection = parsed(list);
        selection.iter().flat_map(|(it, wanted)| wanted.images.iter().map(move |image| print(it, image))).collect()
    }

    #[test]
    fn three_spellings_of_one_image_are_one_image() {
        assert_eq!(names("nginx,docker.io/nginx:latest,docker.io/library/nginx"), ["docker.io/library/nginx:latest"]);
    }

    #[test]
    fn entries_are_separated_by_commas_and_newlines_and_blanks_and_comments_are_ignored() {
        assert_eq!(
            names(" a/b:1 ,\t a/c:2 # the last\n#nothing, here\r\n\nquay.io/a/d:3,\n,"),
            ["docker.io/a/b:1", "docker.io/a/c:2", "quay.io/a/d:3"]
        );
    }

    #[test]
    fn ports_tags_and_digests_are_distinguished() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(
            names(&format!("host.example:5000/foo:1.2,u@{digest},host.example:5000/foo,localhost/x:1@{digest}")),
            [
                format!("docker.io/library/u@{digest}"),
                "host.example:5000/foo:1.2".into(),
                "host.example:5000/foo:latest".into(),
                format!("localhost/x:1@{digest}"),
            ]
        );
    }

    #[test]
    fn an_entry_can_have_a_pattern_instead_of_a_tag() {
        let selection = parsed(
            "host.example:5000/foo:1.2*, nginx:^1.27 newest 3\nnginx:>=1.20  <2 ,nginx:ALL_TAGS newest 5,nginx:1",
        );
        let patterns: Vec<_> = selection
            .iter()
            .map(|(repository, wanted)| {
                (repository.to_string(), wanted.patterns.iter().map(Tags::as_str).collect(), wanted.images.len())
            })
            .collect::<Vec<(String, Vec<_>, usize)>>();
        assert_eq!(
            patterns,
            [
                ("docker.io/library/nginx".into(), vec!["^1.27 newest 3", ">=1.20 <2", "ALL_TAGS newest 5"], 1),
                ("host.example:5000/foo".into(), vec!["1.2*"], 0),
            ]
        );
        assert!(parsed("nginx:1,nginx:ALL_TAGS").values().all(Wanted::is_everything));
    }

    #[test]
    fn the_error_of_an_invalid_entry_has_its_position_and_what_is_expected() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (entry, problem) in [
            ("UPPER:1", "is not a repository name: lowercase letters and digits"),
            ("repo:", "is not a tag"),
            ("u@sha256:abc", "is not a digest"),
            ("a b:1", "unexpected \"b:1\""),
            ("team-*/app:1", "a repository cannot be a glob"),
            ("app:1.[", "invalid glob"),
            ("app:^x", "invalid version range"),
            ("app:1 newest 3", "unexpected \"newest\""),
            (&*format!("app:ALL_TAGS@{digest}"), "a digest cannot be combined"),
        ] {
            let error = parse([("the list", &*format!("nginx, {entry}"))], None).expect_err(entry);
            let start = format!("{entry:?} (entry 2 of the list): ");
            assert!(error.to_string().starts_with(&start) && error.to_string().contains(problem), "{error}");
            assert_eq!(error.name(), "InvalidImageList");
        }
    }

    #[test]
    fn an_empty_list_is_an_error() {
        let error = parse([("the list", " , # nothing\n")], None).expect_err("nothing would be copied");
        let expected = r#""the list": the image list is empty. Add at least one image, for example nginx:1.27."#;
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_list_in_parts_is_one_list_and_errors_have_the_name_of_the_part() {
        let selection = parse([("a", "nginx:1"), ("b", ""), ("c", "nginx:2")], None).expect("they are lists");
        assert_eq!(selection.values().map(|wanted| wanted.images.len()).collect::<Vec<_>>(), [2]);
        let error = parse([("a", "nginx:1"), ("b", "alpine,UPPER")], None).expect_err("one is wrong");
        assert!(error.to_string().contains("(entry 2 of b)"), "{error}");
        assert!(parse([("a", "")], None).is_err());
    }

    #[test]
    fn an_entry_for_an_ecr_source_is_a_name_or_a_full_uri() {
        let host = "222222222222.dkr.ecr.us-west-2.amazonaws.com";
        let list =
            format!("app:1,{host}/app:1,222222222222.dkr-ecr.us-west-2.on.aws/app:1,team/app:ALL_TAGS,quay.io/x:1");
        let source: RegistryHost = host.parse().expect(host);
        let selection = parse([("the list", list.as_str())], Some(&source)).expect("it is a list");
        let repositories: Vec<_> = selection.keys().map(|it| (it.registry.as_str(), it.name.as_str())).collect();
        assert_eq!(repositories, [(host, "app"), (host, "quay.io/x"), (host, "team/app")]);
        assert!(selection.values().next().is_some_and(|wanted| wanted.images.len() == 1));
        assert!(selection.values().last().is_some_and(Wanted::is_everything));
        let other = parse([("the list", "333333333333.dkr.ecr.us-west-2.amazonaws.com/app:1")], Some(&source));
        assert!(other.expect_err("it is not the source").to_string().contains("not in the source registry"));
    }

    #[test]
    fn the_guides_list_is_valid() {
        let list = crate::guide::blocks("images").concat();
        let selection = parsed(&list);
        assert_eq!(selection.len(), 10);
        let wanted = &selection[&"docker.io/library/nginx".parse().expect("it is a repository")];
        assert!(wanted.is_everything() && wanted.images.len() == 1);
    }

    proptest! {
        #[test]
        fn a_reference_made_of_parts_is_parsed_into_these_parts(
            registry in prop_oneof![
                Just(None),
                "[a-z0-9]{1,8}(-[a-z0-9]{1,4})?\\.[a-z]{2,5}(:[1-9][0-9]{0,3})?".prop_map(Some),
                "[a-z]{1,9}:[1-9][0-9]{0,3}".prop_map(Some),
                Just(Some("localhost".to_owned())),
            ],
            name in "[a-z0-9]{1,6}((\\.|_|__|-{1,2})[a-z0-9]{1,5})?(/[a-z0-9]{1,6}([._-][a-z0-9]{1,5})?){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in proptest::option::of("sha256:[0-9a-f]{64}"),
        ) {
            prop_assume!(tag.as_deref() != Some(ALL_TAGS));
            // Without a registry, a first part like a host's name would be one.
            let first = name.split('/').next().unwrap_or_default();
            prop_assume!(registry.is_some() || !name.contains('/') || !(first.contains('.') || first == "localhost"));
            let mut text = registry.as_ref().map(|registry| format!("{registry}/")).unwrap_or_default() + &name;
            text.extend(tag.iter().map(|tag| format!(":{tag}")));
            text.extend(digest.iter().map(|digest| format!("@{digest}")));

            let selection = parse([("the list", text.as_str())], None).expect(&text);
            let (repository, wanted) = selection.iter().next().expect("it names one");
            let hub = registry.is_none();
            let official = hub && !name.contains('/');
            prop_assert_eq!(repository.registry.as_str(), registry.as_deref().unwrap_or("docker.io"));
            prop_assert_eq!(repository.name.as_str(), if official { format!("library/{name}") } else { name });
            let image = wanted.images.iter().next().expect("it names one image");
            prop_assert_eq!(image.digest.map(|it| it.to_string()), digest.clone());
            let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
            prop_assert_eq!(image.tag.as_ref().map(Tag::as_str), tag.as_deref());
        }
    }

    #[test]
    fn everything_is_more_than_one_image_and_than_nothing() {
        assert!(Wanted::everything().is_everything());
        assert!(!Wanted::default().is_everything());
        assert!(!parsed("nginx:1,nginx:1.*").values().any(Wanted::is_everything));
    }

    #[test]
    fn what_stands_behind_an_at_sign_is_a_digest_and_no_pattern() {
        assert!(parse([("the list", "nginx@^1.27")], None).is_err());
    }

    fn parameter(name: &str, list: &str) -> Parameter {
        Parameter::builder().name(name).value(list).build()
    }

    #[tokio::test]
    async fn a_list_is_in_a_parameter_or_below_its_path_in_the_order_of_numbers() {
        let missing = mock!(Client::get_parameter)
            .then_error(|| GetParameterError::ParameterNotFound(ParameterNotFound::builder().build()));
        let below = mock!(Client::get_parameters_by_path)
            .match_requests(|request| request.path() == Some("/images") && request.recursive() == Some(true))
            .then_output(|| {
                let page = GetParametersByPathOutput::builder().parameters(parameter("/images/10", "b"));
                page.parameters(parameter("/images/9", "a")).build()
            });
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&missing, &below]);
        let parts = read(&ssm, "/images").await.expect("there are two");
        assert_eq!(parts, [("/images/9".into(), "a".into()), ("/images/10".into(), "b".into())]);
        let error = read(&ssm, "images").await.expect_err("it is no path, and there is no such parameter");
        assert_eq!(error.name(), "InvalidImageList");
    }

    #[tokio::test]
    async fn a_list_that_must_not_be_read_is_an_error_even_if_there_are_others_below_its_path() {
        let denied = mock!(Client::get_parameter)
            .then_error(|| GetParameterError::generic(ErrorMetadata::builder().code("AccessDeniedException").build()));
        let below = mock!(Client::get_parameters_by_path)
            .then_output(|| GetParametersByPathOutput::builder().parameters(parameter("/images/1", "a")).build());
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&denied, &below]);
        assert_eq!(read(&ssm, "/images").await.expect_err("we may not").name(), "AccessDenied");
    }
}
