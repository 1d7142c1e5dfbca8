//! The repositories of a registry: their settings, their immutable tags, and the source of their images.

use aws_sdk_ecr::operation::create_repository::CreateRepositoryError;
use aws_sdk_ecr::operation::get_lifecycle_policy::GetLifecyclePolicyError;
use aws_sdk_ecr::operation::get_repository_policy::GetRepositoryPolicyError;
use aws_sdk_ecr::types::{
    EncryptionConfiguration, EncryptionType, ImageScanningConfiguration, ImageTagMutability,
    ImageTagMutabilityExclusionFilter, Repository, Tag,
};

use super::{Registry, is_missing, is_same_registry};
use crate::reference::{Digest, Repository as Origin, RepositoryName, Tag as ImageTag};
use crate::text::Excerpt;
use crate::{Error, Result};

/// The settings of a new repository.
#[derive(Clone, Debug, PartialEq)]
pub struct RepositorySettings {
    /// Whether its tags are immutable.
    pub mutability: ImageTagMutability,
    /// Tags with the opposite mutability.
    pub mutability_exceptions: Vec<ImageTagMutabilityExclusionFilter>,
    /// Whether ECR scans pushed images.
    pub scan_on_push: bool,
    /// The ARN of the key that encrypts images; `None` for ECR's default.
    pub kms_key: Option<String>,
    /// The tags of the AWS resource.
    pub tags: Vec<Tag>,
    /// JSON.
    pub lifecycle_policy: Option<String>,
    /// The repository policy, as JSON. It can allow other accounts to pull, for example.
    pub policy: Option<String>,
}

impl Default for RepositorySettings {
    fn default() -> Self {
        Self {
            mutability: ImageTagMutability::Mutable,
            mutability_exceptions: Vec::new(),
            scan_on_push: false,
            kms_key: None,
            tags: Vec::new(),
            lifecycle_policy: None,
            policy: None,
        }
    }
}

impl RepositorySettings {
    /// Adds a tag of the AWS resource.
    pub fn with_tag(mut self, key: &str, value: &str) -> Self {
        // The builder fails only without a key or a value.
        self.tags.extend(Tag::builder().key(key).value(value).build());
        self
    }

    fn encryption(&self) -> Option<EncryptionConfiguration> {
        let key = self.kms_key.as_ref()?;
        EncryptionConfiguration::builder().encryption_type(EncryptionType::Kms).kms_key(key).build().ok()
    }
}

/// The immutable tags of a repository: they cannot be moved to another image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Immutable {
    all: bool,
    /// Tags with the opposite mutability. The only wildcard is `*`.
    exceptions: Vec<glob::Pattern>,
}

impl Immutable {
    pub(super) fn of(repository: &Repository) -> Self {
        let all = matches!(
            repository.image_tag_mutability(),
            Some(ImageTagMutability::Immutable | ImageTagMutability::ImmutableWithExclusion)
        );
        let exceptions = repository.image_tag_mutability_exclusion_filters().iter().filter_map(|filter| {
            let literals: Vec<_> = filter.filter().split('*').map(glob::Pattern::escape).collect();
            glob::Pattern::new(&literals.join("*")).ok()
        });
        Self { all, exceptions: exceptions.collect() }
    }

    /// Whether `tag` is immutable.
    pub fn contains(&self, tag: &ImageTag) -> bool {
        self.all != self.exceptions.iter().any(|exception| exception.matches(tag.as_str()))
    }
}

impl Registry {
    async fn policy(&self, repository: &str) -> Result<Option<String>> {
        let request = self.client.get_repository_policy().set_registry_id(self.id.clone());
        match request.repository_name(repository).send().await {
            Ok(answer) => Ok(answer.policy_text),
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(GetRepositoryPolicyError::is_repository_policy_not_found_exception) =>
            {
                Ok(None)
            }
            Err(error) => Err(self.error("ecr:GetRepositoryPolicy", repository)(error)),
        }
    }

    /// Creates a repository for the images of `source`. Returns `false` if the repository already exists.
    ///
    /// # Errors
    /// If ECR rejects it, for example because of a permission, a quota or an invalid policy.
    pub async fn create(
        &self,
        repository: &RepositoryName,
        source: &Origin,
        settings: &RepositorySettings,
    ) -> Result<bool> {
        let repository = repository.as_str();
        let scanning = ImageScanningConfiguration::builder().scan_on_push(settings.scan_on_push).build();
        let request = self
            .client
            .create_repository()
            .set_registry_id(self.id.clone())
            .repository_name(repository)
            .image_tag_mutability(settings.mutability.clone())
            .set_image_tag_mutability_exclusion_filters(
                Some(settings.mutability_exceptions.clone()).filter(|exceptions| !exceptions.is_empty()),
            )
            .image_scanning_configuration(scanning)
            .set_encryption_configuration(settings.encryption())
            .set_tags(Some(settings.tags.clone()))
            .tags(origin_tag(source));
        match request.send().await {
            Ok(_) => {}
            // Another launch has created it, and sets its policies.
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(CreateRepositoryError::is_repository_already_exists_exception) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(self.error("ecr:CreateRepository", repository)(error)),
        }
        if let Some(policy) = &settings.lifecycle_policy {
            let request = self.client.put_lifecycle_policy().set_registry_id(self.id.clone());
            let request = request.repository_name(repository).lifecycle_policy_text(policy);
            request.send().await.map_err(self.error("ecr:PutLifecyclePolicy", repository))?;
        }
        if let Some(policy) = &settings.policy {
            let request = self.client.set_repository_policy().set_registry_id(self.id.clone());
            let request = request.repository_name(repository).policy_text(policy);
            request.send().await.map_err(self.error("ecr:SetRepositoryPolicy", repository))?;
        }
        Ok(true)
    }

    /// The settings of a repository, for another one like it. They have no key, because a key belongs to one region and
    /// account, and the policy only on request. `None` if the repository does not exist.
    ///
    /// # Errors
    /// If the settings cannot be read.
    pub async fn settings(&self, repository: &RepositoryName, with_policy: bool) -> Result<Option<RepositorySettings>> {
        let names = std::slice::from_ref(repository);
        let described = match self.describe_repositories(names).await {
            Ok(described) => described,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(self.in_repositories(names)(error)),
        };
        let Some(described) = described.first() else { return Ok(None) };
        let repository = repository.as_str();

        let lifecycle = self.client.get_lifecycle_policy().set_registry_id(self.id.clone());
        let lifecycle_policy = match lifecycle.repository_name(repository).send().await {
            Ok(answer) => answer.lifecycle_policy_text,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(GetLifecyclePolicyError::is_lifecycle_policy_not_found_exception) =>
            {
                None
            }
            Err(error) => return Err(self.error("ecr:GetLifecyclePolicy", repository)(error)),
        };
        let policy = if with_policy { self.policy(repository).await? } else { None };
        let arn = described.repository_arn().unwrap_or_default();
        let tags = self.client.list_tags_for_resource().resource_arn(arn).send().await;
        let tags = tags.map_err(self.error("ecr:ListTagsForResource", repository))?.tags.unwrap_or_default();
        Ok(Some(RepositorySettings {
            mutability: described.image_tag_mutability().cloned().unwrap_or(ImageTagMutability::Mutable),
            mutability_exceptions: described.image_tag_mutability_exclusion_filters().to_vec(),
            scan_on_push: described
                .image_scanning_configuration()
                .is_some_and(ImageScanningConfiguration::scan_on_push),
            kms_key: None,
            // Tags of AWS cannot be set. The origin is that of the other repository.
            tags: tags.into_iter().filter(|tag| !tag.key().starts_with("aws:") && tag.key() != ORIGIN).collect(),
            lifecycle_policy,
            policy,
        }))
    }

    /// Checks that the images of the repository with this ARN come from `source`. A repository without the tag gets it.
    ///
    /// # Errors
    /// If they come from another source, or the tags cannot be read.
    pub async fn check_origin(&self, arn: &str, source: &Origin) -> Result<()> {
        let tags = self.client.list_tags_for_resource().resource_arn(arn).send().await;
        let tags = tags.map_err(self.error("ecr:ListTagsForResource", arn))?.tags.unwrap_or_default();
        let Some(origin) = tags.iter().find(|tag| tag.key() == ORIGIN).map(Tag::value) else {
            let request = self.client.tag_resource().resource_arn(arn).tags(origin_tag(source));
            return request.send().await.map_err(self.error("ecr:TagResource", arn)).map(drop);
        };
        if is_origin(origin, source) {
            return Ok(());
        }
        let problem = format!(
            "the repository takes images of {} only, because of its tag {ORIGIN}. To copy images of {source}, change the tag.",
            Excerpt::new(origin)
        );
        Err(Error::NotAllowed { subject: arn.to_owned(), problem })
    }
}

/// The key of the tag with the source of a repository's images.
const ORIGIN: &str = "ecr-transfer:source";

/// The longest [value of a tag](https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-using-tags.html).
const TAG_VALUE: usize = 256;

fn origin_tag(origin: &Origin) -> Tag {
    Tag::builder().key(ORIGIN).value(origin_value(origin)).build().expect("it has a key and a value")
}

/// The name of the repository, or the digest of its name if that is too long.
fn origin_value(origin: &Origin) -> String {
    let text = origin.to_string();
    if text.len() <= TAG_VALUE { text } else { Digest::of(text.as_bytes()).to_string() }
}

/// Whether a tag's value stands for `source`, by any host of its registry.
fn is_origin(value: &str, source: &Origin) -> bool {
    let is_alias = |it: Origin| it.name == source.name && is_same_registry(&it.registry, &source.registry);
    value == origin_value(source) || value.parse().is_ok_and(is_alias)
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::Client;
    use aws_sdk_ecr::error::ErrorMetadata;
    use aws_sdk_ecr::operation::create_repository::CreateRepositoryOutput;
    use aws_sdk_ecr::operation::describe_repositories::{DescribeRepositoriesError, DescribeRepositoriesOutput};
    use aws_sdk_ecr::operation::get_lifecycle_policy::GetLifecyclePolicyOutput;
    use aws_sdk_ecr::operation::get_repository_policy::GetRepositoryPolicyOutput;
    use aws_sdk_ecr::operation::list_tags_for_resource::ListTagsForResourceOutput;
    use aws_sdk_ecr::operation::put_lifecycle_policy::PutLifecyclePolicyOutput;
    use aws_sdk_ecr::operation::set_repository_policy::SetRepositoryPolicyOutput;
    use aws_sdk_ecr::operation::tag_resource::TagResourceOutput;
    use aws_sdk_ecr::types::ImageTagMutabilityExclusionFilterType;
    use aws_sdk_ecr::types::error::{
        LifecyclePolicyNotFoundException, RepositoryAlreadyExistsException, RepositoryNotFoundException,
        RepositoryPolicyNotFoundException,
    };
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().expect(text)
    }

    fn source() -> Origin {
        "222222222222.dkr.ecr.us-west-2.amazonaws.com/app".parse().expect("it is a repository")
    }

    #[tokio::test]
    async fn a_repository_takes_images_of_one_source_only() {
        let tagged = |value: Option<&'static str>| {
            mock!(Client::list_tags_for_resource)
                .match_requests(|request| request.resource_arn() == Some("arn:app"))
                .then_output(move || {
                    let tag =
                        |key: &str, value: &str| Tag::builder().key(key).value(value).build().expect("it is complete");
                    let tags = value.map(|value| tag(ORIGIN, value)).into_iter().chain([tag("team", "a")]).collect();
                    ListTagsForResourceOutput::builder().set_tags(Some(tags)).build()
                })
        };
        let check = async |value| {
            let listed = tagged(value);
            let remembered = mock!(Client::tag_resource)
                .match_requests(|request| {
                    request.resource_arn() == Some("arn:app") && request.tags() == [origin_tag(&source())]
                })
                .then_output(|| TagResourceOutput::builder().build());
            let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&listed, &remembered]);
            let checked = Registry::new(client, None).check_origin("arn:app", &source()).await;
            (checked.map_err(|error| error.to_string()), remembered.num_calls())
        };
        assert_eq!(check(None).await, (Ok(()), 1), "a repository without the tag gets it");
        assert_eq!(check(Some("222222222222.dkr.ecr.us-west-2.amazonaws.com/app")).await, (Ok(()), 0));
        assert_eq!(check(Some("222222222222.dkr-ecr.us-west-2.on.aws/app")).await, (Ok(()), 0), "another of its names");
        for other in ["quay.io/team/app", "333333333333.dkr.ecr.us-west-2.amazonaws.com/app", "", "\u{1b}[31m"] {
            let (checked, calls) = check(Some(other)).await;
            let error = checked.expect_err(other);
            assert!(error.contains("To copy images of 222222222222") && !error.contains('\u{1b}'), "{error}");
            assert_eq!(calls, 0, "{other}");
        }
    }

    #[test]
    fn an_origin_that_is_too_long_for_a_tag_is_stored_as_its_digest() {
        let long: Origin =
            format!("{}.example/{}", "h".repeat(60), "a".repeat(250)).parse().expect("it is a repository");
        assert!(origin_value(&long).starts_with("sha256:") && is_origin(&origin_value(&long), &long));
        assert!(!is_origin(&origin_value(&long), &source()));
    }

    #[tokio::test]
    async fn an_existing_repository_is_not_an_error_and_a_denied_creation_is() {
        let exists = mock!(Client::create_repository).then_error(|| {
            CreateRepositoryError::RepositoryAlreadyExistsException(RepositoryAlreadyExistsException::builder().build())
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&exists]);
        let settings = RepositorySettings { policy: Some("{}".into()), ..RepositorySettings::default() };
        let created = Registry::new(client, None).create(&name("app"), &source(), &settings).await;
        assert!(!created.expect("it exists"));

        let denied = mock!(Client::create_repository).then_error(|| {
            CreateRepositoryError::generic(ErrorMetadata::builder().code("AccessDeniedException").message("no").build())
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&denied]);
        let error =
            Registry::new(client, None).create(&name("app"), &source(), &settings).await.expect_err("access is denied");
        assert_eq!(error.name(), "AccessDenied");
        assert_eq!(error.to_string(), "ecr:CreateRepository on app failed: AccessDeniedException: no");
    }

    #[tokio::test]
    async fn a_repository_is_created_with_the_settings_of_another_one() {
        let described = mock!(Client::describe_repositories).then_output(|| {
            let repository = Repository::builder()
                .repository_name("app")
                .repository_arn("arn:app")
                .image_tag_mutability(ImageTagMutability::Immutable)
                .image_scanning_configuration(ImageScanningConfiguration::builder().scan_on_push(true).build());
            DescribeRepositoriesOutput::builder().repositories(repository.build()).build()
        });
        let lifecycle = mock!(Client::get_lifecycle_policy)
            .then_output(|| GetLifecyclePolicyOutput::builder().lifecycle_policy_text("lifecycle").build());
        let policy = mock!(Client::get_repository_policy).then_error(|| {
            GetRepositoryPolicyError::RepositoryPolicyNotFoundException(
                RepositoryPolicyNotFoundException::builder().build(),
            )
        });
        let tags = mock!(Client::list_tags_for_resource)
            .match_requests(|request| request.resource_arn() == Some("arn:app"))
            .then_output(|| {
                let tag = |key: &str| Tag::builder().key(key).value("v").build().expect("it is complete");
                ListTagsForResourceOutput::builder().tags(tag("team")).tags(tag("aws:stack")).tags(tag(ORIGIN)).build()
            });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&described, &lifecycle, &policy, &tags]);
        let settings =
            Registry::new(client, None).settings(&name("app"), true).await.expect("ECR answers").expect("it exists");

        let created = mock!(Client::create_repository)
            .match_requests(|request| {
                request.repository_name() == Some("copy")
                    && request.image_tag_mutability() == Some(&ImageTagMutability::Immutable)
                    && request.image_scanning_configuration().is_some_and(ImageScanningConfiguration::scan_on_push)
                    && request.tags().iter().map(Tag::key).eq(["team", ORIGIN])
                    && request.tags()[1].value() == source().to_string()
                    && request.encryption_configuration().is_none()
            })
            .then_output(|| CreateRepositoryOutput::builder().build());
        let put = mock!(Client::put_lifecycle_policy)
            .match_requests(|request| request.lifecycle_policy_text() == Some("lifecycle"))
            .then_output(|| PutLifecyclePolicyOutput::builder().build());
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&created, &put]);
        Registry::new(client, None).create(&name("copy"), &source(), &settings).await.expect("it is created");
        assert_eq!((created.num_calls(), put.num_calls()), (1, 1));
    }

    #[tokio::test]
    async fn immutable_tags_have_exceptions_and_are_read_for_a_hundred_repositories_per_call() {
        let rule = mock!(Client::describe_repositories)
            .match_requests(|request| (1..=100).contains(&request.repository_names().len()))
            .then_output(|| {
                let exception = ImageTagMutabilityExclusionFilter::builder()
                    .filter_type(ImageTagMutabilityExclusionFilterType::Wildcard)
                    .filter("latest*");
                let repository = |name: &str, mutability: ImageTagMutability| {
                    Repository::builder().repository_name(name).image_tag_mutability(mutability)
                };
                let excepted = |name: &str, mutability| {
                    repository(name, mutability)
                        .image_tag_mutability_exclusion_filters(exception.clone().build().expect("it is complete"))
                };
                DescribeRepositoriesOutput::builder()
                    .repositories(repository("fixed", ImageTagMutability::Immutable).build())
                    .repositories(repository("free", ImageTagMutability::Mutable).build())
                    .repositories(excepted("mostly-fixed", ImageTagMutability::ImmutableWithExclusion).build())
                    .repositories(excepted("mostly-free", ImageTagMutability::MutableWithExclusion).build())
                    .build()
            });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let names: Vec<_> = (0..101).map(|number| name(&format!("r{number}"))).collect();
        let immutable = Registry::new(client, None).immutable(&names).await.expect("ECR answers");
        assert_eq!(rule.num_calls(), 2);
        for (repository, expected) in [
            ("fixed", [true, true]),
            ("free", [false, false]),
            ("mostly-fixed", [true, false]),
            ("mostly-free", [false, true]),
        ] {
            let contains = |tag: &str| immutable[&name(repository)].contains(&tag.parse().expect(tag));
            assert_eq!(["1.0", "latest-1"].map(contains), expected, "{repository}");
        }
    }

    #[tokio::test]
    async fn a_repository_is_created_with_its_key_its_tags_its_exceptions_and_its_policy() {
        let exception = ImageTagMutabilityExclusionFilter::builder()
            .filter_type(ImageTagMutabilityExclusionFilterType::Wildcard)
            .filter("latest*")
            .build()
            .expect("it is complete");
        let settings = RepositorySettings {
            mutability: ImageTagMutability::ImmutableWithExclusion,
            mutability_exceptions: vec![exception],
            kms_key: Some("arn:key".into()),
            policy: Some("policy".into()),
            ..RepositorySettings::default()
        };
        let created = mock!(Client::create_repository)
            .match_requests(|request| {
                let key = request.encryption_configuration();
                let exceptions = request.image_tag_mutability_exclusion_filters().iter();
                key.is_some_and(|it| it.encryption_type() == &EncryptionType::Kms && it.kms_key() == Some("arn:key"))
                    && exceptions.map(ImageTagMutabilityExclusionFilter::filter).eq(["latest*"])
                    && request.tags().iter().map(Tag::key).eq(["team", ORIGIN])
            })
            .then_output(|| CreateRepositoryOutput::builder().build());
        let put = mock!(Client::set_repository_policy)
            .match_requests(|request| request.policy_text() == Some("policy"))
            .then_output(|| SetRepositoryPolicyOutput::builder().build());
        let registry = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&created, &put]), None);
        let settings = settings.with_tag("team", "a");
        assert!(registry.create(&name("app"), &source(), &settings).await.expect("it is created"));
        assert_eq!((created.num_calls(), put.num_calls()), (1, 1));
    }

    /// The settings of a repository whose policies ECR answers with as these do.
    async fn settings_with(lifecycle: Rule, policy: Rule) -> Result<Option<RepositorySettings>> {
        let described = mock!(Client::describe_repositories).then_output(|| {
            let repository = Repository::builder().repository_name("app").repository_arn("arn:app").build();
            DescribeRepositoriesOutput::builder().repositories(repository).build()
        });
        let tags = mock!(Client::list_tags_for_resource).then_output(|| ListTagsForResourceOutput::builder().build());
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&described, &lifecycle, &policy, &tags]);
        Registry::new(client, None).settings(&name("app"), true).await
    }

    #[tokio::test]
    async fn policies_that_a_repository_lacks_are_no_error_and_those_that_cannot_be_read_are() {
        let lifecycle = || {
            mock!(Client::get_lifecycle_policy)
                .then_output(|| GetLifecyclePolicyOutput::builder().lifecycle_policy_text("lifecycle").build())
        };
        let without_lifecycle = mock!(Client::get_lifecycle_policy).then_error(|| {
            let missing = LifecyclePolicyNotFoundException::builder().build();
            GetLifecyclePolicyError::LifecyclePolicyNotFoundException(missing)
        });
        let policy = || {
            mock!(Client::get_repository_policy)
                .then_output(|| GetRepositoryPolicyOutput::builder().policy_text("policy").build())
        };
        let settings = settings_with(without_lifecycle, policy()).await.expect("ECR answers").expect("it exists");
        assert_eq!((settings.lifecycle_policy, settings.policy.as_deref()), (None, Some("policy")));

        let refused = || ErrorMetadata::builder().code("AccessDeniedException").build();
        let no_lifecycle =
            mock!(Client::get_lifecycle_policy).then_error(move || GetLifecyclePolicyError::generic(refused()));
        let no_policy =
            mock!(Client::get_repository_policy).then_error(move || GetRepositoryPolicyError::generic(refused()));
        for (lifecycle, policy) in [(no_lifecycle, policy()), (lifecycle(), no_policy)] {
            assert_eq!(settings_with(lifecycle, policy).await.expect_err("we may not").name(), "AccessDenied");
        }
    }

    #[tokio::test]
    async fn a_repository_that_does_not_exist_has_no_settings_and_one_that_we_may_not_see_is_an_error() {
        let settings = async |error: fn() -> DescribeRepositoriesError| {
            let described = mock!(Client::describe_repositories).then_error(error);
            let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&described]);
            Registry::new(client, None).settings(&name("app"), true).await
        };
        let missing = settings(|| {
            let missing = RepositoryNotFoundException::builder().build();
            DescribeRepositoriesError::RepositoryNotFoundException(missing)
        });
        assert_eq!(missing.await.expect("it is an answer"), None);
        let refused = settings(|| {
            DescribeRepositoriesError::generic(ErrorMetadata::builder().code("AccessDeniedException").build())
        });
        assert_eq!(refused.await.expect_err("we may not").name(), "AccessDenied");
    }
}
