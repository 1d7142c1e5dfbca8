//! An ECR registry: what it holds, the login to it, and the repositories that it still lacks.

use std::collections::{HashMap, HashSet};
use std::fmt;

use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ecr::operation::batch_get_image::BatchGetImageError;
use aws_sdk_ecr::operation::create_repository::CreateRepositoryError;
use aws_sdk_ecr::operation::describe_images::DescribeImagesError;
use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesError;
use aws_sdk_ecr::operation::get_lifecycle_policy::GetLifecyclePolicyError;
use aws_sdk_ecr::operation::get_repository_policy::GetRepositoryPolicyError;
pub use aws_sdk_ecr::types::ImageTagMutability;
use aws_sdk_ecr::types::{
    EncryptionConfiguration, EncryptionType, ImageFailure, ImageIdentifier, ImageScanningConfiguration,
    ImageTagMutabilityExclusionFilter, Repository, Tag,
};
use aws_sdk_ecr::{Client, config};

use crate::config::{CredentialConfig, RegistryConfig};
use crate::credentials::{Identity, Stores};
use crate::manifest::{self, Manifest};
use crate::{Error, Result};

/// The most that a listing call returns at once; ECR's own default is 100.
const PAGE: i32 = 1_000;

/// The most images that BatchGetImage takes, and the most names that DescribeRepositories takes.
const BATCH: usize = 100;

/// A registry in one account and region.
#[derive(Clone, Debug)]
pub struct Registry {
    client: Client,
    id: Option<String>,
}

/// The login to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The registry's host name, for example `123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn`.
    pub host: String,
    /// User and password as a docker auth file has them: base64 of `user:password`.
    pub token: String,
    /// In seconds since 1970. ECR's logins live 12 hours; `None` for a user's own password.
    pub expires_at: Option<i64>,
}

// The token is a password: it must not get into a log by way of a Debug.
impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Login")
            .field("host", &self.host)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// An image in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…`
    pub digest: String,
    /// Empty for an untagged image.
    pub tags: Vec<String>,
    /// The compressed size; of an index, that of its largest image.
    pub bytes: u64,
    /// Whether it is an index, and its images are images of the repository, too.
    pub is_index: bool,
    /// When it was pushed, in seconds since 1970.
    pub pushed_at: i64,
    /// The digest of the image that it refers to: it is a signature of it, say.
    pub subject: Option<String>,
}

/// Names an image in a repository by tag, by digest, or by both at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageId {
    /// The tag.
    pub tag: Option<String>,
    /// The digest; together with a tag, what the tag must lead to.
    pub digest: Option<String>,
}

/// An image that was looked for and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `sha256:…`
    pub digest: String,
    /// What it refers to.
    pub manifest: Manifest,
}

impl Registry {
    /// The registry that `registry` describes.
    ///
    /// # Errors
    /// When its credential cannot be used.
    pub async fn connect(base: &SdkConfig, stores: &Stores, registry: &RegistryConfig) -> Result<Self> {
        let credential = registry.credential.as_ref();
        let provider = match stores.identity(credential).await? {
            Identity::Itself => None,
            Identity::Aws(provider) => Some(provider),
            Identity::Users(_) => {
                return Err(Error::Credential {
                    name: credential.map(CredentialConfig::name).unwrap_or_default(),
                    problem: "ECR needs an access key or a role, and this is a user and a password".into(),
                    source: None,
                });
            }
        };
        Ok(Self::of(base, provider, registry.region.clone(), registry.account.clone()))
    }

    /// The registry of `account` in `region`, reached as `provider`, or as `base` where there is none.
    pub(crate) fn of(
        base: &SdkConfig,
        provider: Option<SharedCredentialsProvider>,
        region: Option<String>,
        account: Option<String>,
    ) -> Self {
        let mut config = config::Builder::from(base);
        if let Some(region) = region {
            config.set_region(Some(Region::new(region)));
        }
        if let Some(provider) = provider {
            config.set_credentials_provider(Some(provider));
        }
        Self::new(Client::from_conf(config.build()), account)
    }

    /// The registry `id` (an account; `None` for the client's own), reached through `client`.
    #[must_use]
    pub fn new(client: Client, id: Option<String>) -> Self {
        Self { client, id }
    }

    /// Logs in.
    ///
    /// # Errors
    /// When ECR does not hand out a token.
    pub async fn login(&self) -> Result<Login> {
        const ACTION: &str = "ecr:GetAuthorizationToken";
        let subject = self.id.clone().unwrap_or_else(|| "the registry".into());
        // Deprecated, since one token opens every registry that its owner may use; but it alone makes ECR answer with
        // the host name of a registry in another account.
        #[allow(deprecated)]
        let request = self.client.get_authorization_token().set_registry_ids(self.id.clone().map(|id| vec![id]));
        let answer = request.send().await.map_err(Error::aws(ACTION, &subject))?;
        answer
            .authorization_data()
            .iter()
            .find_map(|data| {
                let host = data.proxy_endpoint()?.trim_start_matches("https://").to_owned();
                let token = data.authorization_token()?.to_owned();
                Some(Login { host, token, expires_at: Some(data.expires_at()?.secs()) })
            })
            .ok_or_else(|| Error::Aws {
                action: ACTION,
                subject,
                code: String::new(),
                message: "the answer holds no token".into(),
                source: "no authorizationData".into(),
            })
    }

    /// The names of all repositories.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn repositories(&self) -> Result<Vec<String>> {
        let mut pages = self
            .client
            .describe_repositories()
            .set_registry_id(self.id.clone())
            .max_results(PAGE)
            .into_paginator()
            .send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(Error::aws("ecr:DescribeRepositories", "the registry"))?;
            names.extend(
                page.repositories().iter().filter_map(|repository| repository.repository_name()).map(str::to_owned),
            );
        }
        Ok(names)
    }

    /// Which tags of these repositories cannot be moved, by repository. Those that do not exist are not in the answer.
    ///
    /// # Errors
    /// When ECR cannot tell.
    pub async fn immutable(&self, repositories: &[String]) -> Result<HashMap<String, Immutable>> {
        let mut immutable = HashMap::new();
        for names in repositories.chunks(BATCH) {
            let answer = self
                .client
                .describe_repositories()
                .set_registry_id(self.id.clone())
                .set_repository_names(Some(names.to_vec()))
                .send()
                .await;
            match answer {
                Ok(answer) => immutable.extend(answer.repositories().iter().filter_map(|repository| {
                    Some((repository.repository_name()?.to_owned(), Immutable::of(repository)))
                })),
                // One of them has just been deleted, and ECR tells of none: then no tag is known to be immutable.
                Err(error)
                    if error
                        .as_service_error()
                        .is_some_and(DescribeRepositoriesError::is_repository_not_found_exception) => {}
                Err(error) => return Err(Error::aws("ecr:DescribeRepositories", names.join(", "))(error)),
            }
        }
        Ok(immutable)
    }

    /// All images of a repository; `None` where there is no such repository.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn images(&self, repository: &str) -> Result<Option<Vec<Image>>> {
        let mut pages = self
            .client
            .describe_images()
            .set_registry_id(self.id.clone())
            .repository_name(repository)
            .max_results(PAGE)
            .into_paginator()
            .send();
        let mut images = Vec::new();
        while let Some(page) = pages.next().await {
            let page = match page {
                Ok(page) => page,
                Err(error)
                    if error.as_service_error().is_some_and(DescribeImagesError::is_repository_not_found_exception) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(Error::aws("ecr:DescribeImages", repository)(error)),
            };
            images.extend(page.image_details.unwrap_or_default().into_iter().filter_map(|image| {
                Some(Image {
                    digest: image.image_digest?,
                    tags: image.image_tags.unwrap_or_default(),
                    bytes: image.image_size_in_bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or_default(),
                    is_index: image.image_manifest_media_type.as_deref().is_some_and(manifest::is_index),
                    pushed_at: image.image_pushed_at.map(|time| time.secs()).unwrap_or_default(),
                    subject: image.subject_manifest_digest,
                })
            }));
        }
        Ok(Some(images))
    }

    /// Looks for images of one repository; what it lacks is not in the answer. `None` where there is no such repository.
    ///
    /// # Errors
    /// When ECR cannot tell.
    pub async fn find(&self, repository: &str, wanted: &[ImageId]) -> Result<Option<HashMap<ImageId, Found>>> {
        let unique: Vec<&ImageId> = wanted.iter().collect::<HashSet<_>>().into_iter().collect();
        let mut found = HashMap::new();
        for ids in unique.chunks(BATCH) {
            let answer = self
                .client
                .batch_get_image()
                .set_registry_id(self.id.clone())
                .repository_name(repository)
                .set_image_ids(Some(ids.iter().map(|id| identifier(id)).collect()))
                .send()
                .await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error)
                    if error.as_service_error().is_some_and(BatchGetImageError::is_repository_not_found_exception) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(Error::aws("ecr:BatchGetImage", repository)(error)),
            };
            for id in ids.iter().filter(|id| !answer.failures().iter().any(|failure| is_about(failure, id))) {
                let image = answer.images().iter().find(|image| {
                    let answered = image.image_id();
                    match &id.digest {
                        Some(digest) => answered.and_then(ImageIdentifier::image_digest) == Some(digest),
                        None => answered.and_then(ImageIdentifier::image_tag) == id.tag.as_deref(),
                    }
                });
                if let Some(image) = image
                    && let Some(digest) = image.image_id().and_then(ImageIdentifier::image_digest)
                {
                    let manifest = Manifest::parse(image.image_manifest().unwrap_or_default());
                    found.insert((*id).clone(), Found { digest: digest.to_owned(), manifest });
                }
            }
        }
        Ok(Some(found))
    }

    /// Creates a repository with these settings. That somebody else has just created it is no error.
    ///
    /// # Errors
    /// When ECR refuses: access denied, quota, a bad name, a policy that it does not understand.
    pub async fn create(&self, repository: &str, settings: &RepositorySettings) -> Result<()> {
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
            .set_tags(Some(settings.tags.clone()).filter(|tags| !tags.is_empty()));
        match request.send().await {
            Ok(_) => {}
            // Who created it also sets its policies.
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(CreateRepositoryError::is_repository_already_exists_exception) =>
            {
                return Ok(());
            }
            Err(error) => return Err(Error::aws("ecr:CreateRepository", repository)(error)),
        }
        if let Some(policy) = &settings.lifecycle_policy {
            let request = self.client.put_lifecycle_policy().set_registry_id(self.id.clone());
            let request = request.repository_name(repository).lifecycle_policy_text(policy);
            request.send().await.map_err(Error::aws("ecr:PutLifecyclePolicy", repository))?;
        }
        if let Some(policy) = &settings.policy {
            let request = self.client.set_repository_policy().set_registry_id(self.id.clone());
            let request = request.repository_name(repository).policy_text(policy);
            request.send().await.map_err(Error::aws("ecr:SetRepositoryPolicy", repository))?;
        }
        Ok(())
    }

    /// The settings of a repository, to create another one like it; its key is left out, since that belongs to its region
    /// and account. `None` where there is no such repository.
    ///
    /// # Errors
    /// When ECR cannot tell.
    pub async fn settings(&self, repository: &str) -> Result<Option<RepositorySettings>> {
        let described = self.client.describe_repositories().set_registry_id(self.id.clone());
        let described = match described.repository_names(repository).send().await {
            Ok(described) => described,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(DescribeRepositoriesError::is_repository_not_found_exception) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(Error::aws("ecr:DescribeRepositories", repository)(error)),
        };
        let Some(described) = described.repositories().first() else { return Ok(None) };

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
            Err(error) => return Err(Error::aws("ecr:GetLifecyclePolicy", repository)(error)),
        };
        let policy = self.client.get_repository_policy().set_registry_id(self.id.clone());
        let policy = match policy.repository_name(repository).send().await {
            Ok(answer) => answer.policy_text,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(GetRepositoryPolicyError::is_repository_policy_not_found_exception) =>
            {
                None
            }
            Err(error) => return Err(Error::aws("ecr:GetRepositoryPolicy", repository)(error)),
        };
        let arn = described.repository_arn().unwrap_or_default();
        let tags = self.client.list_tags_for_resource().resource_arn(arn).send().await;
        let tags = tags.map_err(Error::aws("ecr:ListTagsForResource", repository))?.tags.unwrap_or_default();
        Ok(Some(RepositorySettings {
            mutability: described.image_tag_mutability().cloned().unwrap_or(ImageTagMutability::Mutable),
            mutability_exceptions: described.image_tag_mutability_exclusion_filters().to_vec(),
            scan_on_push: described
                .image_scanning_configuration()
                .is_some_and(ImageScanningConfiguration::scan_on_push),
            kms_key: None,
            // AWS's own tags cannot be set.
            tags: tags.into_iter().filter(|tag| !tag.key().starts_with("aws:")).collect(),
            lifecycle_policy,
            policy,
        }))
    }
}

/// How a repository is created.
#[derive(Clone, Debug, PartialEq)]
pub struct RepositorySettings {
    /// Whether its tags can be moved.
    pub mutability: ImageTagMutability,
    /// Tags for which it is the other way round.
    pub mutability_exceptions: Vec<ImageTagMutabilityExclusionFilter>,
    /// Whether images are scanned when they arrive.
    pub scan_on_push: bool,
    /// The ARN of the key that images are encrypted with; `None` for ECR's own.
    pub kms_key: Option<String>,
    /// Its tags, in the sense of AWS's resources.
    pub tags: Vec<Tag>,
    /// Its lifecycle policy, as JSON.
    pub lifecycle_policy: Option<String>,
    /// Its policy, which lets other accounts pull, say; as JSON.
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
    /// Adds a tag.
    #[must_use]
    pub fn with_tag(mut self, key: &str, value: &str) -> Self {
        // A builder fails only where one of them was not given.
        self.tags.extend(Tag::builder().key(key).value(value).build());
        self
    }

    fn encryption(&self) -> Option<EncryptionConfiguration> {
        let key = self.kms_key.as_ref()?;
        EncryptionConfiguration::builder().encryption_type(EncryptionType::Kms).kms_key(key).build().ok()
    }
}

/// Which tags of a repository cannot be moved to another image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Immutable {
    all: bool,
    /// Tags for which it is the other way round; `*` stands for any text.
    exceptions: Vec<glob::Pattern>,
}

impl Immutable {
    fn of(repository: &Repository) -> Self {
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

    /// Whether `tag` is one of them.
    #[must_use]
    pub fn contains(&self, tag: &str) -> bool {
        self.all != self.exceptions.iter().any(|exception| exception.matches(tag))
    }
}

/// Account and region of the ECR registry at `host`, if it is one.
///
/// See [ECR's endpoints](https://docs.aws.amazon.com/general/latest/gr/ecr.html): `account.dkr.ecr.region.suffix`, with
/// `ecr-fips` for `ecr`, and `account.dkr-ecr.region.suffix` for IPv6.
#[must_use]
pub fn account_and_region(host: &str) -> Option<(&str, &str)> {
    let labels: Vec<_> = host.split('.').collect();
    let (account, region) = match labels[..] {
        [account, "dkr", "ecr" | "ecr-fips", region, _, _, ..] => (account, region),
        [account, "dkr-ecr" | "dkr-ecr-fips", region, _, _, ..] => (account, region),
        _ => return None,
    };
    (account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit())).then_some((account, region))
}

fn identifier(id: &ImageId) -> ImageIdentifier {
    ImageIdentifier::builder().set_image_tag(id.tag.clone()).set_image_digest(id.digest.clone()).build()
}

fn is_about(failure: &ImageFailure, id: &ImageId) -> bool {
    failure.image_id().is_some_and(|failed| match &id.tag {
        Some(tag) => failed.image_tag() == Some(tag),
        None => failed.image_digest() == id.digest.as_deref(),
    })
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::operation::batch_get_image::BatchGetImageOutput;
    use aws_sdk_ecr::operation::create_repository::CreateRepositoryOutput;
    use aws_sdk_ecr::operation::describe_images::DescribeImagesOutput;
    use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesOutput;
    use aws_sdk_ecr::operation::get_authorization_token::GetAuthorizationTokenOutput;
    use aws_sdk_ecr::operation::get_lifecycle_policy::GetLifecyclePolicyOutput;
    use aws_sdk_ecr::operation::list_tags_for_resource::ListTagsForResourceOutput;
    use aws_sdk_ecr::operation::put_lifecycle_policy::PutLifecyclePolicyOutput;
    use aws_sdk_ecr::primitives::DateTime;
    use aws_sdk_ecr::types::error::{
        RepositoryAlreadyExistsException, RepositoryNotFoundException, RepositoryPolicyNotFoundException,
    };
    use aws_sdk_ecr::types::{
        AuthorizationData, Image as EcrImage, ImageDetail, ImageFailureCode, ImageTagMutabilityExclusionFilterType,
    };
    use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};

    use super::*;

    fn detail(digest: &str) -> ImageDetail {
        ImageDetail::builder().image_digest(digest).image_tags("1").image_size_in_bytes(5).build()
    }

    #[tokio::test]
    async fn every_page_of_a_repository_is_listed_at_full_size_and_with_the_registry_id() {
        let first = mock!(Client::describe_images)
            .match_requests(|request| {
                request.next_token().is_none()
                    && request.max_results() == Some(1_000)
                    && request.registry_id() == Some("222222222222")
            })
            .then_output(|| {
                DescribeImagesOutput::builder().image_details(detail("sha256:1")).next_token("more").build()
            });
        let second = mock!(Client::describe_images)
            .match_requests(|request| {
                request.next_token() == Some("more") && request.registry_id() == Some("222222222222")
            })
            .then_output(|| DescribeImagesOutput::builder().image_details(detail("sha256:2")).build());
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&first, &second]);

        let registry = Registry::new(client, Some("222222222222".into()));
        let images = registry.images("app").await.expect("it can be listed").expect("it exists");

        let digests: Vec<_> = images.iter().map(|image| image.digest.as_str()).collect();
        assert_eq!(digests, ["sha256:1", "sha256:2"]);
        assert_eq!(first.num_calls() + second.num_calls(), 2);
    }

    #[tokio::test]
    async fn a_repository_that_does_not_exist_is_not_an_error() {
        let rule = mock!(Client::describe_images).then_error(|| {
            DescribeImagesError::RepositoryNotFoundException(RepositoryNotFoundException::builder().build())
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        assert_eq!(Registry::new(client, None).images("app").await.expect("it is an answer"), None);
    }

    #[tokio::test]
    async fn an_image_is_found_only_if_its_tag_leads_to_the_digest() {
        let rule = mock!(Client::batch_get_image).then_output(|| {
            let found = ImageIdentifier::builder().image_tag("1").image_digest("sha256:1").build();
            let moved = ImageIdentifier::builder().image_tag("2").image_digest("sha256:2").build();
            BatchGetImageOutput::builder()
                .images(EcrImage::builder().image_id(found).image_manifest(r#"{"layers": []}"#).build())
                .failures(
                    ImageFailure::builder()
                        .image_id(moved)
                        .failure_code(ImageFailureCode::ImageTagDoesNotMatchDigest)
                        .build(),
                )
                .build()
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let id = |tag: &str| ImageId { tag: Some(tag.into()), digest: Some(format!("sha256:{tag}")) };

        let found = Registry::new(client, None)
            .find("app", &[id("1"), id("2")])
            .await
            .expect("ECR answers")
            .expect("it exists");

        assert_eq!(found.keys().collect::<Vec<_>>(), [&id("1")]);
    }

    #[tokio::test]
    async fn more_images_than_one_call_takes_are_looked_for_in_several() {
        let rule = mock!(Client::batch_get_image)
            .match_requests(|request| request.image_ids().len() <= 100)
            .then_output(|| BatchGetImageOutput::builder().build());
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let ids: Vec<_> = (0..101).map(|n| ImageId { tag: Some(n.to_string()), digest: None }).collect();

        Registry::new(client, None).find("app", &ids).await.expect("ECR answers");

        assert_eq!(rule.num_calls(), 2);
    }

    #[tokio::test]
    async fn a_repository_that_was_created_meanwhile_is_not_an_error_but_a_refusal_is() {
        let exists = mock!(Client::create_repository).then_error(|| {
            CreateRepositoryError::RepositoryAlreadyExistsException(RepositoryAlreadyExistsException::builder().build())
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&exists]);
        let settings = RepositorySettings { policy: Some("{}".into()), ..RepositorySettings::default() };
        Registry::new(client, None).create("app", &settings).await.expect("somebody else was faster");

        let denied = mock!(Client::create_repository).then_error(|| {
            CreateRepositoryError::generic(
                aws_sdk_ecr::error::ErrorMetadata::builder().code("AccessDeniedException").message("no").build(),
            )
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&denied]);
        let error = Registry::new(client, None).create("app", &settings).await.expect_err("we may not");
        assert_eq!(error.name(), "AccessDenied");
        assert_eq!(error.to_string(), "ecr:CreateRepository on app failed: AccessDeniedException: no");
    }

    #[tokio::test]
    async fn a_repository_is_created_as_the_other_one_is() {
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
                ListTagsForResourceOutput::builder().tags(tag("team")).tags(tag("aws:stack")).build()
            });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&described, &lifecycle, &policy, &tags]);
        let settings = Registry::new(client, None).settings("app").await.expect("ECR answers").expect("it exists");

        let created = mock!(Client::create_repository)
            .match_requests(|request| {
                request.repository_name() == Some("copy")
                    && request.image_tag_mutability() == Some(&ImageTagMutability::Immutable)
                    && request.image_scanning_configuration().is_some_and(ImageScanningConfiguration::scan_on_push)
                    && request.tags().iter().map(Tag::key).eq(["team"])
                    && request.encryption_configuration().is_none()
            })
            .then_output(|| CreateRepositoryOutput::builder().build());
        let put = mock!(Client::put_lifecycle_policy)
            .match_requests(|request| request.lifecycle_policy_text() == Some("lifecycle"))
            .then_output(|| PutLifecyclePolicyOutput::builder().build());
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&created, &put]);
        Registry::new(client, None).create("copy", &settings).await.expect("it is created");
        assert_eq!((created.num_calls(), put.num_calls()), (1, 1));
    }

    #[test]
    fn a_host_of_ecr_tells_account_and_region() {
        let known = |region| Some(("222222222222", region));
        for (host, expected) in [
            ("222222222222.dkr.ecr.us-west-2.amazonaws.com", known("us-west-2")),
            ("222222222222.dkr.ecr.cn-north-1.amazonaws.com.cn", known("cn-north-1")),
            ("222222222222.dkr.ecr-fips.us-gov-west-1.amazonaws.com", known("us-gov-west-1")),
            ("222222222222.dkr.ecr.eusc-de-east-1.amazonaws.eu", known("eusc-de-east-1")),
            ("222222222222.dkr-ecr.eu-west-1.on.aws", known("eu-west-1")),
            ("public.ecr.aws", None),
            ("22.dkr.ecr.us-west-2.amazonaws.com", None),
            ("docker.io", None),
        ] {
            assert_eq!(account_and_region(host), expected, "{host}");
        }
    }

    #[tokio::test]
    async fn immutable_tags_are_told_apart_with_their_exceptions_a_hundred_repositories_at_a_time() {
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
        let names: Vec<_> = (0..101).map(|number| format!("r{number}")).collect();
        let immutable = Registry::new(client, None).immutable(&names).await.expect("ECR answers");
        assert_eq!(rule.num_calls(), 2);
        for (repository, expected) in [
            ("fixed", [true, true]),
            ("free", [false, false]),
            ("mostly-fixed", [true, false]),
            ("mostly-free", [false, true]),
        ] {
            assert_eq!(["1.0", "latest-1"].map(|tag| immutable[repository].contains(tag)), expected, "{repository}");
        }
    }

    #[tokio::test]
    async fn a_user_of_another_registry_is_none_of_ecr() {
        let rule = mock!(aws_sdk_secretsmanager::Client::get_secret_value).then_output(|| {
            GetSecretValueOutput::builder().secret_string(r#"{"username": "me", "password": "hush"}"#).build()
        });
        let stores = Stores {
            secrets: mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, [&rule]),
            ssm: mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&rule]),
            sts: mock_client!(aws_sdk_sts, RuleMode::MatchAny, [&rule]),
        };
        let credential = Some(CredentialConfig::Secret("hub".into()));
        let registry = RegistryConfig { region: None, account: None, credential };
        let base = SdkConfig::builder().build();
        let error = Registry::connect(&base, &stores, &registry).await.expect_err("ECR has no such users");
        assert!(error.to_string().starts_with(r#"the credential "hub" cannot be used: ECR needs"#), "{error}");
    }

    #[tokio::test]
    async fn a_login_shows_everything_but_the_token() {
        let rule = mock!(Client::get_authorization_token).then_output(|| {
            GetAuthorizationTokenOutput::builder()
                .authorization_data(
                    AuthorizationData::builder()
                        .proxy_endpoint("https://1.dkr.ecr.cn-north-1.amazonaws.com.cn")
                        .authorization_token("aHVzaA==")
                        .expires_at(DateTime::from_secs(1_000))
                        .build(),
                )
                .build()
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let login = Registry::new(client, None).login().await.expect("there is a token");
        assert_eq!(login.host, "1.dkr.ecr.cn-north-1.amazonaws.com.cn");
        assert_eq!(login.token, "aHVzaA==");
        assert!(!format!("{login:?}").contains("aHVzaA=="));
    }
}
