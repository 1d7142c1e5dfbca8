//! A private registry of ECR: its login, its repositories and its images.

mod host;
mod repository;

use std::collections::{HashMap, HashSet};
use std::error::Error as StdError;
use std::fmt;

use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::operation::batch_get_image::BatchGetImageError;
use aws_sdk_ecr::operation::describe_images::DescribeImagesError;
use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesError;
pub use aws_sdk_ecr::types::ImageTagMutability;
use aws_sdk_ecr::types::{
    DescribeImagesFilter, ImageDetail, ImageIdentifier, ImageStatus, ImageStatusFilter, Repository,
};
use aws_sdk_ecr::{Client, config};

use crate::config::{CredentialConfig, RegistryConfig};
use crate::credentials::{Identity, Stores};
use crate::manifest::{self, Manifest};
use crate::reference::{Digest, Invalid, RegistryHost, RepositoryName, Tag as ImageTag};
use crate::text::Excerpt;
use crate::{Error, Kind, Result};

pub use self::host::{EcrHost, is_account, is_same_registry};
pub use self::repository::{Immutable, RepositorySettings};

/// The largest page of DescribeRepositories and DescribeImages. ECR's default is 100.
const PAGE: i32 = 1_000;

/// The most images of a BatchGetImage, and the most names of a DescribeRepositories.
const BATCH: usize = 100;

/// The registry of one account and region.
#[derive(Clone, Debug)]
pub struct Registry {
    client: Client,
    id: Option<String>,
    /// The secret or parameter with the access key; `None` for a role.
    stored: Option<String>,
}

/// The login to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// `123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn`, for example.
    pub host: RegistryHost,
    /// Base64 of `user:password`, as in a docker auth file.
    pub token: String,
    /// In seconds since 1970. A token of ECR is valid for 12 hours; `None` for a password.
    pub expires_at: Option<i64>,
}

// The token is a password, which must not appear in logs.
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
    /// The compressed size; for an index, that of its largest image.
    pub bytes: u64,
    /// The images of an index are images of the repository, too.
    pub is_index: bool,
    /// In seconds since 1970.
    pub pushed_at: i64,
    /// An archived image
    /// [cannot be pulled](https://docs.aws.amazon.com/AmazonECR/latest/userguide/archive-image.html) until it is restored.
    pub is_archived: bool,
    /// The image that this one refers to, for example as its signature.
    pub subject: Option<Digest>,
}

/// An image in a repository, by tag or by digest.
/// [BatchGetImage](https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_BatchGetImage.html) does not document
/// an id with both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageId {
    /// The image that the tag points to.
    Tag(ImageTag),
    /// The image with this digest.
    Digest(Digest),
}

/// The answer to an [`ImageId`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its digest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Registry {
    /// The registry that `registry` describes.
    ///
    /// # Errors
    /// If its credential cannot be used.
    pub async fn connect(base: &SdkConfig, stores: &Stores, registry: &RegistryConfig) -> Result<Self> {
        let credential = registry.credential.as_ref();
        let provider = match stores.identity(credential).await? {
            Identity::LambdaRole => None,
            Identity::Aws(provider) => Some(provider),
            Identity::Users(_) => {
                return Err(Error::Credential {
                    name: credential.map(CredentialConfig::name).unwrap_or_default(),
                    problem: "ECR requires an access key or a role, and this is a user name and a password.".into(),
                    source: None,
                });
            }
        };
        let connected = Self::of(base, provider, registry.region.clone(), registry.account.clone());
        Ok(connected.with_stored(credential))
    }

    /// The registry of `account` in `region`. Each argument that is `None` is taken from `base`.
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

    /// The registry of the account `id`; `None` for the account of the client's credentials.
    pub fn new(client: Client, id: Option<String>) -> Self {
        Self { client, id, stored: None }
    }

    /// Sets the credential whose name is in the error when its session has expired.
    pub(crate) fn with_stored(mut self, credential: Option<&CredentialConfig>) -> Self {
        // Each invocation assumes a role again.
        self.stored = credential.filter(|it| !matches!(it, CredentialConfig::Role { .. })).map(CredentialConfig::name);
        self
    }

    /// Gets a token.
    ///
    /// # Errors
    /// If ECR returns none.
    pub async fn login(&self) -> Result<Login> {
        const ACTION: &str = "ecr:GetAuthorizationToken";
        let subject = self.id.clone().unwrap_or_else(|| "the registry".into());
        // registryIds is deprecated, because a token is valid for all registries that its owner can use. But without it,
        // ECR does not return the host of a registry in another account.
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
                message: "the response has no token".into(),
                source: "no authorizationData".into(),
            })
    }

    /// The names of all repositories.
    ///
    /// # Errors
    /// If they cannot be listed.
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

    /// The immutable tags of these repositories. Repositories that do not exist are not in the result.
    ///
    /// # Errors
    /// If the repositories cannot be described.
    pub async fn immutable(&self, repositories: &[RepositoryName]) -> Result<HashMap<RepositoryName, Immutable>> {
        let mut immutable = HashMap::new();
        for names in repositories.chunks(BATCH) {
            match self.describe_repositories(names).await {
                Ok(answer) => immutable.extend(answer.iter().filter_map(|repository| {
                    Some((repository.repository_name()?.parse().ok()?, Immutable::of(repository)))
                })),
                // One of them was just deleted, so ECR describes none of them. Their tags count as mutable.
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(self.in_repositories(names)(error)),
            }
        }
        Ok(immutable)
    }

    /// All images of a repository, also archived ones; `None` if the repository does not exist.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub async fn images(&self, repository: &RepositoryName) -> Result<Option<Vec<Image>>> {
        let mut pages = self
            .client
            .describe_images()
            .set_registry_id(self.id.clone())
            .repository_name(repository.as_str())
            // By default, ECR lists only active ones:
            // https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_DescribeImagesFilter.html
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

    /// Finds images of a repository. Images that do not exist are not in the result. `None` if the repository does not exist.
    ///
    /// # Errors
    /// If they cannot be read.
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
                    // ECR checks manifests when they are pushed. One that does not parse counts as empty.
                    let manifest = Manifest::parse(image.image_manifest().unwrap_or_default().as_bytes());
                    found.insert(id, Found { digest, manifest: manifest.unwrap_or_default() });
                }
            }
        }
        Ok(Some(found))
    }

    /// The ARNs of repositories.
    ///
    /// # Errors
    /// If one of them does not exist or cannot be described.
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

    /// Wraps the error of a call; for `map_err`. If a stored session has expired, the error names its secret.
    fn error<E>(&self, action: &'static str, subject: impl Into<String>) -> impl FnOnce(SdkError<E>) -> Error
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let (stored, wrap) = (self.stored.clone(), Error::aws(action, subject));
        move |error| match (wrap(error), stored) {
            (error, Some(name)) if error.kind() == Kind::Expired => {
                let problem = "its session_token has expired. Store a new one, or use the ARN of a role.".into();
                Error::Credential { name, problem, source: Some(Box::new(error)) }
            }
            (error, _) => error,
        }
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
            // While it is being restored, its status is ACTIVATING.
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

fn is_missing(error: &SdkError<DescribeRepositoriesError>) -> bool {
    error.as_service_error().is_some_and(DescribeRepositoriesError::is_repository_not_found_exception)
}

/// The error of an answer that does not match AWS's documentation.
fn undocumented(action: &'static str, subject: &str, error: &Invalid) -> Error {
    let (message, kind) = (Excerpt::new(&error.to_string()), Kind::Unavailable);
    Error::Aws { action, subject: subject.to_owned(), kind, message, source: error.to_string().into() }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::error::ErrorMetadata;
    use aws_sdk_ecr::operation::batch_get_image::BatchGetImageOutput;
    use aws_sdk_ecr::operation::describe_images::DescribeImagesOutput;
    use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesOutput;
    use aws_sdk_ecr::operation::get_authorization_token::GetAuthorizationTokenOutput;
    use aws_sdk_ecr::primitives::DateTime;
    use aws_sdk_ecr::types::error::RepositoryNotFoundException;
    use aws_sdk_ecr::types::{AuthorizationData, Image as EcrImage};
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
    async fn an_expired_session_in_a_secret_is_named_and_that_of_a_role_is_retried() {
        let role = CredentialConfig::Role { arn: "arn:aws:iam::222222222222:role/reader".into(), external_id: None };
        let named = "The credential \"team/key\" cannot be used: its session_token has expired.";
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
    async fn archived_images_are_listed_and_marked() {
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
    async fn an_image_is_found_by_its_tag_or_by_its_digest_and_never_by_both() {
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
                // `moved` points to an image that is also found by its digest.
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
    async fn a_hundred_images_are_found_in_one_call() {
        let rule = mock!(Client::batch_get_image)
            .match_requests(|request| request.image_ids().len() <= 100)
            .then_output(|| BatchGetImageOutput::builder().build());
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let ids: Vec<_> = (0..101).map(|n| ImageId::Tag(n.to_string().parse().expect("it is a tag"))).collect();

        Registry::new(client, None).find(&name("app"), &ids).await.expect("ECR answers");

        assert_eq!(rule.num_calls(), 2);
    }

    #[tokio::test]
    async fn ecr_rejects_a_user_name_and_a_password() {
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
        let error = Registry::connect(&base, &stores, &registry).await.expect_err("it is not an AWS identity");
        assert!(error.to_string().starts_with(r#"The credential "hub" cannot be used: ECR requires"#), "{error}");
    }

    #[tokio::test]
    async fn the_debug_format_of_a_login_hides_the_token() {
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

    fn refused() -> ErrorMetadata {
        ErrorMetadata::builder().code("AccessDeniedException").message("no").build()
    }

    #[tokio::test]
    async fn every_page_of_a_registry_is_listed() {
        let page = |token: Option<&'static str>, name: &'static str, next: Option<&'static str>| {
            mock!(Client::describe_repositories)
                .match_requests(move |request| request.next_token() == token)
                .then_output(move || {
                    let repository = Repository::builder().repository_name(name).build();
                    let page = DescribeRepositoriesOutput::builder().repositories(repository);
                    page.set_next_token(next.map(Into::into)).build()
                })
        };
        let (first, second) = (page(None, "app", Some("more")), page(Some("more"), "team/tool", None));
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&first, &second]);
        let names = Registry::new(client, None).repositories().await.expect("it can be listed");
        assert_eq!(names, [name("app"), name("team/tool")]);
    }

    #[tokio::test]
    async fn the_arns_of_repositories_are_those_that_ecr_answers_with() {
        let rule = mock!(Client::describe_repositories).then_output(|| {
            let repository =
                |name: &str| Repository::builder().repository_name(name).repository_arn(format!("arn:{name}")).build();
            let answer = DescribeRepositoriesOutput::builder();
            answer.repositories(repository("app")).repositories(repository("tool")).build()
        });
        let registry = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]), None);
        let arns = registry.arns(&[name("app"), name("tool")]).await.expect("ECR answers");
        assert_eq!(arns, HashMap::from([(name("app"), "arn:app".into()), (name("tool"), "arn:tool".into())]));
    }

    #[tokio::test]
    async fn a_repository_that_does_not_exist_has_no_images_and_no_immutable_tags_but_lacks_an_arn() {
        let gone = || RepositoryNotFoundException::builder().build();
        let described = mock!(Client::describe_repositories)
            .then_error(move || DescribeRepositoriesError::RepositoryNotFoundException(gone()));
        let looked_for =
            mock!(Client::batch_get_image).then_error(move || BatchGetImageError::RepositoryNotFoundException(gone()));
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&described, &looked_for]);
        let (registry, names) = (Registry::new(client, None), [name("app")]);
        let wanted = [ImageId::Digest(digest("1"))];
        assert_eq!(registry.find(&names[0], &wanted).await.expect("it is an answer"), None);
        assert!(registry.immutable(&names).await.expect("it is an answer").is_empty());
        assert_eq!(registry.arns(&names).await.expect_err("it must exist").name(), "RequestRefused");
    }

    #[tokio::test]
    async fn a_refusal_is_an_error_and_neither_a_repository_that_does_not_exist_nor_an_expired_session() {
        let described =
            mock!(Client::describe_repositories).then_error(|| DescribeRepositoriesError::generic(refused()));
        let looked_for = mock!(Client::batch_get_image).then_error(|| BatchGetImageError::generic(refused()));
        let listed = mock!(Client::describe_images).then_error(|| DescribeImagesError::generic(refused()));
        let client = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&described, &looked_for, &listed]);
        let stored = CredentialConfig::Secret("team/key".into());
        let (registry, app) = (Registry::new(client, None).with_stored(Some(&stored)), name("app"));
        let errors = [
            registry.repositories().await.map(drop),
            registry.immutable(std::slice::from_ref(&app)).await.map(drop),
            registry.find(&app, &[ImageId::Digest(digest("1"))]).await.map(drop),
            registry.images(&app).await.map(drop),
        ];
        for error in errors {
            assert_eq!(error.expect_err("we may not").kind(), Kind::Denied);
        }
    }
}
