//! An ECR registry: what it holds, the login to it, and the repositories that it still lacks.

mod host;

use std::collections::{HashMap, HashSet};
use std::error::Error as StdError;
use std::fmt;

use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::operation::batch_get_image::BatchGetImageError;
use aws_sdk_ecr::operation::create_repository::CreateRepositoryError;
use aws_sdk_ecr::operation::describe_images::DescribeImagesError;
use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesError;
use aws_sdk_ecr::operation::get_lifecycle_policy::GetLifecyclePolicyError;
use aws_sdk_ecr::operation::get_repository_policy::GetRepositoryPolicyError;
pub use aws_sdk_ecr::types::ImageTagMutability;
use aws_sdk_ecr::types::{
    DescribeImagesFilter, EncryptionConfiguration, EncryptionType, ImageDetail, ImageIdentifier,
    ImageScanningConfiguration, ImageStatus, ImageStatusFilter, ImageTagMutabilityExclusionFilter, Repository, Tag,
};
use aws_sdk_ecr::{Client, config};

use crate::config::{CredentialConfig, RegistryConfig};
use crate::credentials::{Identity, Stores};
use crate::manifest::{self, Manifest};
use crate::reference::{Digest, Invalid, RegistryHost, Repository as Origin, RepositoryName, Tag as ImageTag};
use crate::text::Excerpt;
use crate::{Error, Kind, Result};

pub use self::host::{EcrHost, is_account, is_same_registry};

/// The most that a listing call returns at once; ECR's own default is 100.
const PAGE: i32 = 1_000;

/// The most images that BatchGetImage takes, and the most names that DescribeRepositories takes.
const BATCH: usize = 100;

/// A registry in one account and region.
#[derive(Clone, Debug)]
pub struct Registry {
    client: Client,
    id: Option<String>,
    /// The name of the secret or parameter with the access key; `None` for a role.
    stored: Option<String>,
}

/// The login to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The registry's host, for example `123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn`.
    pub host: RegistryHost,
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
    /// Its digest.
    pub digest: Digest,
    /// Empty for an untagged image.
    pub tags: Vec<ImageTag>,
    /// The compressed size; of an index, that of its largest image.
    pub bytes: u64,
    /// Whether it is an index, and its images are images of the repository, too.
    pub is_index: bool,
    /// When it was pushed, in seconds since 1970.
    pub pushed_at: i64,
    /// Whether it is archived: it is there, and
    /// [cannot be pulled](https://docs.aws.amazon.com/AmazonECR/latest/userguide/archive-image.html) until it is restored.
    pub is_archived: bool,
    /// The digest of the image that it refers to: it is a signature of it, say.
    pub subject: Option<Digest>,
}

/// Names an image in a repository. ECR takes
/// [a tag or a digest](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchGetImage.html); what both at once
/// would mean is documented nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageId {
    /// Whatever the tag leads to.
    Tag(ImageTag),
    /// The image of this digest, whatever its tags.
    Digest(Digest),
}

/// An image that was looked for and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its digest.
    pub digest: Digest,
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
        let connected = Self::of(base, provider, registry.region.clone(), registry.account.clone());
        Ok(connected.with_stored(credential))
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
        Self { client, id, stored: None }
    }

    /// Says in errors that it was `credential` that has expired, if it can.
    pub(crate) fn with_stored(mut self, credential: Option<&CredentialConfig>) -> Self {
        // A role is assumed anew by each invocation.
        self.stored = credential.filter(|it| !matches!(it, CredentialConfig::Role { .. })).map(CredentialConfig::name);
        self
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
        let answer = request.send().await.map_err(self.error(ACTION, &subject))?;
        answer
            .authorization_data()
            .iter()
            .find_map(|data| {
                let host = data.proxy_endpoint()?.trim_start_matches("https://").parse().ok()?;
                let token = data.authorization_token()?.to_owned();
                Some(Login { host, token, expires_at: Some(data.expires_at()?.secs()) })
            })
            .ok_or_else(|| Error::Aws {
                action: ACTION,
                subject,
                kind: Kind::Unavailable,
                message: "the answer holds no token".into(),
                source: "no authorizationData".into(),
            })
    }

    /// The names of all repositories.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn repositories(&self) -> Result<Vec<RepositoryName>> {
        let mut pages = self
            .client
            .describe_repositories()
            .set_registry_id(self.id.clone())
            .max_results(PAGE)
            .into_paginator()
            .send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(self.error("ecr:DescribeRepositories", "the registry"))?;
            let all = page.repositories().iter().filter_map(|repository| repository.repository_name());
            for name in all {
                names.push(
                    name.parse().map_err(|error| undocumented("ecr:DescribeRepositories", "the registry", &error))?,
                );
            }
        }
        Ok(names)
    }

    /// Which tags of these repositories cannot be moved, by repository. Those that do not exist are not in the answer.
    ///
    /// # Errors
    /// When ECR cannot tell.
    pub async fn immutable(&self, repositories: &[RepositoryName]) -> Result<HashMap<RepositoryName, Immutable>> {
        let mut immutable = HashMap::new();
        for names in repositories.chunks(BATCH) {
            match self.describe_repositories(names).await {
                Ok(answer) => immutable.extend(answer.iter().filter_map(|repository| {
                    Some((repository.repository_name()?.parse().ok()?, Immutable::of(repository)))
                })),
                // One of them has just been deleted, and ECR tells of none: then no tag is known to be immutable.
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(self.in_repositories(names)(error)),
            }
        }
        Ok(immutable)
    }

    /// All images of a repository, archived ones too; `None` where there is no such repository.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn images(&self, repository: &RepositoryName) -> Result<Option<Vec<Image>>> {
        let mut pages = self
            .client
            .describe_images()
            .set_registry_id(self.id.clone())
            .repository_name(repository.as_str())
            // Without it, [only active ones](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeImagesFilter.html).
            .filter(DescribeImagesFilter::builder().image_status(ImageStatusFilter::Any).build())
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
                Err(error) => return Err(self.error("ecr:DescribeImages", repository.as_str())(error)),
            };
            for image in page.image_details.unwrap_or_default() {
                let image = Image::of(image)
                    .map_err(|error| undocumented("ecr:DescribeImages", repository.as_str(), &error))?;
                images.push(image);
            }
        }
        Ok(Some(images))
    }

    /// Looks for images of one repository; what it lacks is not in the answer. `None` where there is no such repository.
    ///
    /// # Errors
    /// When ECR cannot tell.
    pub async fn find(
        &self,
        repository: &RepositoryName,
        wanted: &[ImageId],
    ) -> Result<Option<HashMap<ImageId, Found>>> {
        let unique: Vec<&ImageId> = wanted.iter().collect::<HashSet<_>>().into_iter().collect();
        let mut found = HashMap::new();
        for ids in unique.chunks(BATCH) {
            let answer = self
                .client
                .batch_get_image()
                .set_registry_id(self.id.clone())
                .repository_name(repository.as_str())
                .set_image_ids(Some(ids.iter().map(|id| id.identifier()).collect()))
                .send()
                .await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error)
                    if error.as_service_error().is_some_and(BatchGetImageError::is_repository_not_found_exception) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(self.error("ecr:BatchGetImage", repository.as_str())(error)),
            };
            for image in answer.images() {
                let Some(answered) = image.image_id() else { continue };
                let digest: Option<Digest> = answered.image_digest().and_then(|digest| digest.parse().ok());
                let Some(digest) = digest else { continue };
                let tag = answered.image_tag().and_then(|tag| tag.parse().ok()).map(ImageId::Tag);
                let is_wanted = |id: &ImageId| ids.contains(&id);
                for id in tag.into_iter().chain([ImageId::Digest(digest)]).filter(is_wanted) {
                    // ECR has checked what it holds; what is not a manifest refers to nothing.
                    let manifest = Manifest::parse(image.image_manifest().unwrap_or_default().as_bytes());
                    found.insert(id, Found { digest, manifest: manifest.unwrap_or_default() });
                }
            }
        }
        Ok(Some(found))
    }

    /// Checks that the images of the repository with this ARN come from `source`. One that does not say where they come from
    /// says so from now on.
    ///
    /// # Errors
    /// When they come from somewhere else, or ECR cannot tell.
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
            "the repository takes images of {} only, as its tag {ORIGIN} says; change the tag if {source} is to replace it",
            Excerpt::new(origin)
        );
        Err(Error::NotAllowed { subject: arn.to_owned(), problem })
    }

    /// The ARNs of repositories.
    ///
    /// # Errors
    /// When one of them does not exist, or ECR cannot tell.
    pub async fn arns(&self, repositories: &[RepositoryName]) -> Result<HashMap<RepositoryName, String>> {
        let mut arns = HashMap::new();
        for names in repositories.chunks(BATCH) {
            let answer = self.describe_repositories(names).await.map_err(self.in_repositories(names))?;
            let arn = |it: Repository| Some((it.repository_name?.try_into().ok()?, it.repository_arn?));
            arns.extend(answer.into_iter().filter_map(arn));
        }
        Ok(arns)
    }

    async fn describe_repositories(
        &self,
        names: &[RepositoryName],
    ) -> Result<Vec<Repository>, SdkError<DescribeRepositoriesError>> {
        let request = self.client.describe_repositories().set_registry_id(self.id.clone());
        let request = request.set_repository_names(Some(names.iter().map(ToString::to_string).collect()));
        Ok(request.send().await?.repositories.unwrap_or_default())
    }

    fn in_repositories(&self, names: &[RepositoryName]) -> impl FnOnce(SdkError<DescribeRepositoriesError>) -> Error {
        let names: Vec<_> = names.iter().map(RepositoryName::as_str).collect();
        self.error("ecr:DescribeRepositories", names.join(", "))
    }

    /// Wraps the error of a call; for `map_err`. It says which stored session has expired.
    fn error<E>(&self, action: &'static str, subject: impl Into<String>) -> impl FnOnce(SdkError<E>) -> Error
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let (stored, wrap) = (self.stored.clone(), Error::aws(action, subject));
        move |error| match (wrap(error), stored) {
            (error, Some(name)) if error.kind() == Kind::Expired => {
                let problem =
                    "its session_token has expired; store a new one, or give the ARN of a role instead".into();
                Error::Credential { name, problem, source: Some(Box::new(error)) }
            }
            (error, _) => error,
        }
    }

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

    /// Creates a repository for the images of `source` with these settings, and says whether it did: somebody else may just
    /// have created it.
    ///
    /// # Errors
    /// When ECR refuses: access denied, quota, a bad name, a policy that it does not understand.
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
            // Who created it also sets its policies.
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

    /// The settings of a repository, to create another one like it, with its policy where that is asked for; its key is left
    /// out, since that belongs to its region and account. `None` where there is no such repository.
    ///
    /// # Errors
    /// When ECR cannot tell.
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
            // AWS's own tags cannot be set, and ours says where the images of that repository come from.
            tags: tags.into_iter().filter(|tag| !tag.key().starts_with("aws:") && tag.key() != ORIGIN).collect(),
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
    pub fn contains(&self, tag: &ImageTag) -> bool {
        self.all != self.exceptions.iter().any(|exception| exception.matches(tag.as_str()))
    }
}

impl Image {
    fn of(image: ImageDetail) -> Result<Self, Invalid> {
        let tags = image.image_tags.unwrap_or_default().into_iter().map(TryInto::try_into);
        Ok(Self {
            digest: image.image_digest.unwrap_or_default().parse()?,
            tags: tags.collect::<Result<_, _>>()?,
            bytes: image.image_size_in_bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or_default(),
            is_index: image.image_manifest_media_type.as_deref().is_some_and(manifest::is_index),
            pushed_at: image.image_pushed_at.map(|time| time.secs()).unwrap_or_default(),
            // Until it is restored, it is ACTIVATING.
            is_archived: matches!(image.image_status, Some(ImageStatus::Archived | ImageStatus::Activating)),
            subject: image.subject_manifest_digest.map(|digest| digest.parse()).transpose()?,
        })
    }
}

impl ImageId {
    fn identifier(&self) -> ImageIdentifier {
        match self {
            Self::Tag(tag) => ImageIdentifier::builder().image_tag(tag.as_str()).build(),
            Self::Digest(digest) => ImageIdentifier::builder().image_digest(digest.to_string()).build(),
        }
    }
}

/// The key of the tag that says where the images of a repository come from.
const ORIGIN: &str = "ecr-transfer:source";

/// The most characters of
/// [a tag's value](https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-using-tags.html).
const TAG_VALUE: usize = 256;

fn origin_tag(origin: &Origin) -> Tag {
    Tag::builder().key(ORIGIN).value(origin_value(origin)).build().expect("it has a key and a value")
}

/// The repository; of one whose name is too long for a tag, the digest of its name.
fn origin_value(origin: &Origin) -> String {
    let text = origin.to_string();
    if text.len() <= TAG_VALUE { text } else { Digest::of(text.as_bytes()).to_string() }
}

/// Whether what a repository's tag says is `source`, by any name of its registry.
fn is_origin(value: &str, source: &Origin) -> bool {
    let is_alias = |it: Origin| it.name == source.name && is_same_registry(&it.registry, &source.registry);
    value == origin_value(source) || value.parse().is_ok_and(is_alias)
}

fn is_missing(error: &SdkError<DescribeRepositoriesError>) -> bool {
    error.as_service_error().is_some_and(DescribeRepositoriesError::is_repository_not_found_exception)
}

/// The error of an answer of AWS's that is not as documented.
fn undocumented(action: &'static str, subject: &str, error: &Invalid) -> Error {
    let (message, kind) = (Excerpt::new(&error.to_string()), Kind::Unavailable);
    Error::Aws { action, subject: subject.to_owned(), kind, message, source: error.to_string().into() }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::error::ErrorMetadata;
    use aws_sdk_ecr::operation::batch_get_image::BatchGetImageOutput;
    use aws_sdk_ecr::operation::create_repository::CreateRepositoryOutput;
    use aws_sdk_ecr::operation::describe_images::DescribeImagesOutput;
    use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesOutput;
    use aws_sdk_ecr::operation::get_authorization_token::GetAuthorizationTokenOutput;
    use aws_sdk_ecr::operation::get_lifecycle_policy::GetLifecyclePolicyOutput;
    use aws_sdk_ecr::operation::list_tags_for_resource::ListTagsForResourceOutput;
    use aws_sdk_ecr::operation::put_lifecycle_policy::PutLifecyclePolicyOutput;
    use aws_sdk_ecr::operation::tag_resource::TagResourceOutput;
    use aws_sdk_ecr::primitives::DateTime;
    use aws_sdk_ecr::types::error::{
        RepositoryAlreadyExistsException, RepositoryNotFoundException, RepositoryPolicyNotFoundException,
    };
    use aws_sdk_ecr::types::{AuthorizationData, Image as EcrImage, ImageTagMutabilityExclusionFilterType};
    use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};

    use super::*;

    fn digest(content: &str) -> Digest {
        Digest::of(content.as_bytes())
    }

    fn detail(content: &str) -> ImageDetail {
        ImageDetail::builder().image_digest(digest(content).to_string()).image_tags("1").image_size_in_bytes(5).build()
    }

    fn name(text: &str) -> RepositoryName {
        text.parse().expect(text)
    }

    fn source() -> Origin {
        "222222222222.dkr.ecr.us-west-2.amazonaws.com/app".parse().expect("it is a repository")
    }

    #[tokio::test]
    async fn every_page_of_a_repository_is_listed_at_full_size_and_with_the_registry_id() {
        let first = mock!(Client::describe_images)
            .match_requests(|request| {
                request.next_token().is_none()
                    && request.max_results() == Some(1_000)
                    && request.registry_id() == Some("222222222222")
            })
            .then_output(|| DescribeImagesOutput::builder().image_details(detail("1")).next_token("more").build());
        let second = mock!(Client::describe_images)
            .match_requests(|request| {
                request.next_token() == Some("more") && request.registry_id() == Some("222222222222")
            })
            .then_output(|| DescribeImagesOutput::builder().image_details(detail("2")).build());
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&first, &second]);

        let registry = Registry::new(client, Some("222222222222".into()));
        let images = registry.images(&name("app")).await.expect("it can be listed").expect("it exists");

        let digests: Vec<_> = images.iter().map(|image| image.digest).collect();
        assert_eq!(digests, [digest("1"), digest("2")]);
        assert_eq!(first.num_calls() + second.num_calls(), 2);
    }

    #[tokio::test]
    async fn a_stored_session_that_has_expired_is_named_and_that_of_a_role_is_worth_another_try() {
        let role = CredentialConfig::Role { arn: "arn:aws:iam::222222222222:role/reader".into(), external_id: None };
        let named = "the credential \"team/key\" cannot be used: its session_token has expired";
        for (credential, name, text) in [
            (Some(CredentialConfig::Secret("team/key".into())), "InvalidCredential", named),
            (Some(role), "ServiceUnavailable", "ecr:DescribeImages on app failed: ExpiredTokenException"),
            (None, "ServiceUnavailable", "ecr:DescribeImages on app failed: ExpiredTokenException"),
        ] {
            let expired = mock!(Client::describe_images).then_error(|| {
                DescribeImagesError::generic(ErrorMetadata::builder().code("ExpiredTokenException").build())
            });
            let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&expired]);
            let registry = Registry::new(client, None).with_stored(credential.as_ref());
            let error = registry.images(&self::name("app")).await.expect_err("it has expired");
            assert_eq!(error.name(), name);
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }

    #[tokio::test]
    async fn a_repository_that_does_not_exist_is_not_an_error() {
        let rule = mock!(Client::describe_images).then_error(|| {
            DescribeImagesError::RepositoryNotFoundException(RepositoryNotFoundException::builder().build())
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        assert_eq!(Registry::new(client, None).images(&name("app")).await.expect("it is an answer"), None);
    }

    #[tokio::test]
    async fn archived_images_are_asked_for_and_told_apart() {
        let all = [ImageStatus::Active, ImageStatus::Archived, ImageStatus::Activating].map(|status| {
            let mut image = detail(status.as_str());
            image.image_status = Some(status);
            image
        });
        let rule = mock!(Client::describe_images)
            .match_requests(|request| {
                request.filter().and_then(DescribeImagesFilter::image_status) == Some(&ImageStatusFilter::Any)
            })
            .then_output(move || DescribeImagesOutput::builder().set_image_details(Some(all.to_vec())).build());
        let registry = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]), None);
        let images = registry.images(&name("app")).await.expect("it can be listed").expect("it exists");
        let archived: Vec<_> = images.iter().map(|image| image.is_archived).collect();
        assert_eq!(archived, [false, true, true]);
    }

    #[tokio::test]
    async fn an_image_is_looked_for_by_its_tag_or_by_its_digest_and_never_by_both() {
        let rule = mock!(Client::batch_get_image)
            .match_requests(|request| {
                let is_one = |id: &ImageIdentifier| id.image_tag().is_some() != id.image_digest().is_some();
                request.image_ids().iter().all(is_one)
            })
            .then_output(|| {
                let image = |tag: Option<&str>, content: &str| {
                    let id = ImageIdentifier::builder().set_image_tag(tag.map(Into::into));
                    let id = id.image_digest(digest(content).to_string()).build();
                    EcrImage::builder().image_id(id).image_manifest(r#"{"layers": []}"#).build()
                };
                // `moved` leads to an image that is there by its digest, too.
                let answer = BatchGetImageOutput::builder().images(image(Some("1"), "1"));
                answer.images(image(Some("moved"), "2")).images(image(None, "2")).build()
            });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let tag = |tag: &str| ImageId::Tag(tag.parse().expect(tag));
        let wanted =
            [tag("1"), tag("moved"), tag("missing"), ImageId::Digest(digest("2")), ImageId::Digest(digest("3"))];

        let found =
            Registry::new(client, None).find(&name("app"), &wanted).await.expect("ECR answers").expect("it exists");

        let digests = wanted.map(|id| found.get(&id).map(|image| image.digest));
        assert_eq!(digests, [Some(digest("1")), Some(digest("2")), None, Some(digest("2")), None]);
    }

    #[tokio::test]
    async fn more_images_than_one_call_takes_are_looked_for_in_several() {
        let rule = mock!(Client::batch_get_image)
            .match_requests(|request| request.image_ids().len() <= 100)
            .then_output(|| BatchGetImageOutput::builder().build());
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let ids: Vec<_> = (0..101).map(|n| ImageId::Tag(n.to_string().parse().expect("it is a tag"))).collect();

        Registry::new(client, None).find(&name("app"), &ids).await.expect("ECR answers");

        assert_eq!(rule.num_calls(), 2);
    }

    #[tokio::test]
    async fn a_repository_remembers_where_its_images_come_from_and_refuses_another_origin() {
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
        assert_eq!(check(None).await, (Ok(()), 1), "one that was there before is accepted");
        assert_eq!(check(Some("222222222222.dkr.ecr.us-west-2.amazonaws.com/app")).await, (Ok(()), 0));
        assert_eq!(check(Some("222222222222.dkr-ecr.us-west-2.on.aws/app")).await, (Ok(()), 0), "another of its names");
        for other in ["quay.io/team/app", "333333333333.dkr.ecr.us-west-2.amazonaws.com/app", "", "\u{1b}[31m"] {
            let (checked, calls) = check(Some(other)).await;
            let error = checked.expect_err(other);
            assert!(error.contains("change the tag if 222222222222") && !error.contains('\u{1b}'), "{error}");
            assert_eq!(calls, 0, "{other}");
        }
    }

    #[test]
    fn an_origin_that_is_too_long_for_a_tag_is_remembered_by_its_digest() {
        let long: Origin =
            format!("{}.example/{}", "h".repeat(60), "a".repeat(250)).parse().expect("it is a repository");
        assert!(origin_value(&long).starts_with("sha256:") && is_origin(&origin_value(&long), &long));
        assert!(!is_origin(&origin_value(&long), &source()));
    }

    #[tokio::test]
    async fn a_repository_that_was_created_meanwhile_is_not_an_error_but_a_refusal_is() {
        let exists = mock!(Client::create_repository).then_error(|| {
            CreateRepositoryError::RepositoryAlreadyExistsException(RepositoryAlreadyExistsException::builder().build())
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&exists]);
        let settings = RepositorySettings { policy: Some("{}".into()), ..RepositorySettings::default() };
        let created = Registry::new(client, None).create(&name("app"), &source(), &settings).await;
        assert!(!created.expect("somebody else was faster"));

        let denied = mock!(Client::create_repository).then_error(|| {
            CreateRepositoryError::generic(ErrorMetadata::builder().code("AccessDeniedException").message("no").build())
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&denied]);
        let error =
            Registry::new(client, None).create(&name("app"), &source(), &settings).await.expect_err("we may not");
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
                        .proxy_endpoint("https://111111111111.dkr.ecr.cn-north-1.amazonaws.com.cn")
                        .authorization_token("aHVzaA==")
                        .expires_at(DateTime::from_secs(1_000))
                        .build(),
                )
                .build()
        });
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let login = Registry::new(client, None).login().await.expect("there is a token");
        assert_eq!(login.host.as_str(), "111111111111.dkr.ecr.cn-north-1.amazonaws.com.cn");
        assert_eq!(login.token, "aHVzaA==");
        assert!(!format!("{login:?}").contains("aHVzaA=="));
    }
}
