//! One execution's listing: source − destination = plan.

use aws_config::SdkConfig;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::future;
use oci_client::client::ClientConfig;
use serde::Deserialize;
use shared::ecr::Registry;
use shared::plan::{Batch, Copy, Object, Summary};
use shared::{Error, Result};

use crate::config::{self, Choice, Config};
use crate::public::Registries;
use crate::selection::{self, Selection};
use crate::source::{Source, Wish, for_each, unlistable};
use crate::{batches, difference};

/// What the state machine sends.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// The execution's name.
    pub execution: String,
}

/// The clients of AWS's services, made once.
pub struct Clients {
    /// For the plan.
    pub s3: aws_sdk_s3::Client,
    /// For credentials.
    pub secrets: aws_sdk_secretsmanager::Client,
    /// For the list of selected images.
    pub ssm: aws_sdk_ssm::Client,
}

impl Clients {
    /// Makes them all.
    #[must_use]
    pub fn new(aws: &SdkConfig) -> Self {
        Self {
            s3: aws_sdk_s3::Client::new(aws),
            secrets: aws_sdk_secretsmanager::Client::new(aws),
            ssm: aws_sdk_ssm::Client::new(aws),
        }
    }
}

/// Lists the source, compares it with the destination, and writes the plan.
///
/// # Errors
/// When the source or the destination cannot be listed, a credential or an entry of the list cannot be used, or the plan
/// cannot be written. A single repository that cannot be listed is no error: it becomes a copy that has failed.
pub async fn list(config: &Config, aws: &SdkConfig, clients: &Clients, request: &Request) -> Result<Summary> {
    let source = async {
        Ok(match &config.source {
            config::Source::Ecr(registry) => {
                let registry = Registry::connect(aws, &clients.secrets, registry).await?;
                let host = registry.login().await?.host;
                Source::Ecr(registry, host)
            }
            config::Source::Public => Source::Public(Registries::new(ClientConfig::default())),
        })
    };
    let destination = async {
        let registry = Registry::connect(aws, &clients.secrets, &config.destination).await?;
        let host = registry.login().await?.host;
        Ok::<_, Error>((registry, host))
    };
    let (source, (destination, host)) = future::try_join(source, destination).await?;
    let selection = select(config, &clients.ssm, &source).await?;
    let (copies, mut summary) = compare(config, &source, selection, &destination, &host).await?;

    summary.to_copy = copies.len();
    summary.bytes = copies.iter().map(|copy| copy.bytes).sum();
    let batches = batches::pack(copies, config.concurrency);
    summary.batches = batches.len();
    if !batches.is_empty() {
        summary.plan = Some(write(&clients.s3, &config.plan_bucket, &request.execution, &batches).await?);
    }
    tracing::info!(
        batches = summary.batches,
        listed = summary.listed,
        unchanged = summary.unchanged,
        to_copy = summary.to_copy,
        bytes = summary.bytes,
        "listed"
    );
    Ok(summary)
}

/// The list of selected images, or `None` for all.
async fn select(config: &Config, ssm: &aws_sdk_ssm::Client, source: &Source) -> Result<Option<Selection>> {
    let Choice::Selected(parameter) = &config.choice else { return Ok(None) };
    let answer = ssm.get_parameter().name(parameter).send().await.map_err(Error::aws("ssm:GetParameter", parameter))?;
    let list = answer.parameter().and_then(|parameter| parameter.value()).unwrap_or_default();
    let registry = match source {
        Source::Ecr(_, host) => Some(host.as_str()),
        Source::Public(_) => None,
    };
    selection::parse(list, registry).map(Some)
}

/// Compares source and destination, repository by repository.
async fn compare(
    config: &Config,
    source: &Source,
    selection: Option<Selection>,
    destination: &Registry,
    host: &str,
) -> Result<(Vec<Copy>, Summary)> {
    let mut repositories = source.repositories(selection).await?;
    if !config.prefix.is_empty() {
        // Where a registry is copied into itself, its copies are no sources: each run would copy them one level deeper.
        let copies = format!("{host}/{}/", config.prefix);
        repositories.retain(|wish| !wish.source.starts_with(&copies));
    }
    let compared = for_each(repositories, async |wish: Wish| {
        let name = selection::destination_name(&config.prefix, &wish.name)?;
        let (listed, there) =
            future::join(source.list(&wish, config.include_untagged), destination.images(&name)).await;
        let difference = difference::compare(listed, &there?.unwrap_or_default());
        let missing = match source.without_children(&wish, difference.missing).await {
            Ok(missing) => source.with_sizes(&wish, missing).await,
            Err(error) => vec![unlistable(&error)],
        };
        let mut copies: Vec<_> =
            missing.into_iter().map(|image| difference::copy(&wish, &format!("{host}/{name}"), image)).collect();
        copies.sort_by(|a, b| a.destination.cmp(&b.destination));
        Ok((difference.unchanged, copies))
    })
    .await?;

    let mut summary = Summary::default();
    let mut copies = Vec::new();
    for (unchanged, missing) in compared {
        summary.listed += unchanged + missing.len();
        summary.unchanged += unchanged;
        copies.push(missing);
    }
    // The repositories come in the order in which their listings ended; a plan should not depend on that.
    copies.sort_by(|a, b| a.first().map(|copy| &copy.destination).cmp(&b.first().map(|copy| &copy.destination)));
    Ok((copies.concat(), summary))
}

async fn write(s3: &aws_sdk_s3::Client, bucket: &str, execution: &str, batches: &[Batch]) -> Result<Object> {
    let key = format!("plans/{execution}.json");
    let body = serde_json::to_vec(batches).expect("a plan has string keys only, so it is JSON");
    s3.put_object()
        .bucket(bucket)
        .key(&key)
        .content_type("application/json")
        .body(ByteStream::from(body))
        .send()
        .await
        .map_err(Error::aws("s3:PutObject", format!("{bucket}/{key}")))?;
    Ok(Object { bucket: bucket.to_owned(), key })
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::operation::batch_get_image::BatchGetImageOutput;
    use aws_sdk_ecr::operation::describe_images::{DescribeImagesError, DescribeImagesOutput};
    use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesOutput;
    use aws_sdk_ecr::types::error::RepositoryNotFoundException;
    use aws_sdk_ecr::types::{Image, ImageDetail, ImageIdentifier, Repository};
    use aws_sdk_s3::operation::put_object::PutObjectOutput;
    use aws_sdk_ssm::operation::get_parameter::GetParameterOutput;
    use aws_sdk_ssm::types::Parameter;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn config() -> Config {
        let environment =
            [("SOURCE_TYPE", "Amazon_ECR"), ("SRC_LIST", "ALL"), ("PLAN_BUCKET", "bucket"), ("DEST_PREFIX", "to")];
        Config::read(&environment.into_iter().collect()).expect("it is complete")
    }

    fn repositories(names: &'static [&str]) -> Rule {
        mock!(aws_sdk_ecr::Client::describe_repositories).then_output(|| {
            let all = names.iter().map(|&name| Repository::builder().repository_name(name).build()).collect();
            DescribeRepositoriesOutput::builder().set_repositories(Some(all)).build()
        })
    }

    fn images(repository: &'static str, images: Vec<ImageDetail>) -> Rule {
        mock!(aws_sdk_ecr::Client::describe_images)
            .match_requests(move |request| request.repository_name() == Some(repository))
            .then_output(move || DescribeImagesOutput::builder().set_image_details(Some(images.clone())).build())
    }

    fn no_repository() -> Rule {
        mock!(aws_sdk_ecr::Client::describe_images).then_error(|| {
            DescribeImagesError::RepositoryNotFoundException(RepositoryNotFoundException::builder().build())
        })
    }

    fn image(digest: &str, tag: Option<&str>) -> ImageDetail {
        ImageDetail::builder()
            .image_digest(digest)
            .set_image_tags(tag.map(|tag| vec![tag.to_owned()]))
            .image_size_in_bytes(5)
            .build()
    }

    fn source(rules: &[&Rule]) -> Source {
        let registry = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, rules), None);
        Source::Ecr(registry, "source.example".into())
    }

    async fn compared(source: &Source, destination: &[&Rule]) -> (Vec<Copy>, Summary) {
        let destination = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, destination), None);
        compare(&config(), source, None, &destination, "destination.example").await.expect("both can be listed")
    }

    #[tokio::test]
    async fn what_the_destination_lacks_is_copied_by_digest_to_the_prefix() {
        let (repositories, there) = (repositories(&["app"]), no_repository());
        let images = images("app", vec![image("sha256:1", Some("1"))]);
        let (copies, summary) = compared(&source(&[&repositories, &images]), &[&there]).await;
        assert_eq!(
            copies,
            [Copy {
                source: "source.example/app@sha256:1".into(),
                destination: "destination.example/to/app:1".into(),
                digest: "sha256:1".into(),
                image: "app".into(),
                tag: "1".into(),
                bytes: 5,
                error: None,
            }]
        );
        assert_eq!((summary.listed, summary.unchanged), (1, 0));
    }

    #[tokio::test]
    async fn a_registry_that_is_copied_into_itself_does_not_copy_its_copies() {
        let repositories = repositories(&["app", "to/app", "tools"]);
        let images = mock!(aws_sdk_ecr::Client::describe_images)
            .then_output(|| DescribeImagesOutput::builder().image_details(image("sha256:1", Some("1"))).build());
        let source = Source::Ecr(
            Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&repositories, &images]), None),
            "destination.example".into(),
        );
        let there = no_repository();
        let (copies, _) = compared(&source, &[&there]).await;
        let names: Vec<_> = copies.iter().map(|copy| copy.image.as_str()).collect();
        assert_eq!(names, ["app", "tools"]);
    }

    #[tokio::test]
    async fn a_repository_that_cannot_be_listed_costs_no_other_one() {
        let repositories = repositories(&["closed", "open"]);
        let closed = mock!(aws_sdk_ecr::Client::describe_images)
            .match_requests(|request| request.repository_name() == Some("closed"))
            .then_error(|| {
                let denied = aws_sdk_ecr::error::ErrorMetadata::builder().code("AccessDeniedException").build();
                DescribeImagesError::generic(denied)
            });
        let open = images("open", vec![image("sha256:1", Some("1"))]);
        let there = no_repository();
        let (copies, _) = compared(&source(&[&repositories, &closed, &open]), &[&there]).await;
        assert_eq!(copies.len(), 2);
        assert!(
            copies[0]
                .error
                .as_deref()
                .is_some_and(|error| error.contains("ecr:DescribeImages on closed failed: AccessDenied"))
        );
        assert_eq!((copies[1].image.as_str(), &copies[1].error), ("open", &None));
    }

    #[tokio::test]
    async fn an_untagged_image_is_copied_by_itself_unless_it_comes_with_an_index() {
        let repositories = repositories(&["app"]);
        let mut index = image("sha256:index", Some("1"));
        index.image_manifest_media_type = Some(INDEX.into());
        let images = images("app", vec![index, image("sha256:child", None), image("sha256:alone", None)]);
        let manifest = mock!(aws_sdk_ecr::Client::batch_get_image).then_output(|| {
            let id = ImageIdentifier::builder().image_digest("sha256:index").build();
            let manifest = r#"{"manifests": [{"digest": "sha256:child"}]}"#;
            BatchGetImageOutput::builder()
                .images(Image::builder().image_id(id).image_manifest(manifest).build())
                .build()
        });
        let there = no_repository();
        let (copies, _) = compared(&source(&[&repositories, &images, &manifest]), &[&there]).await;
        let destinations: Vec<_> = copies.iter().map(|copy| copy.destination.as_str()).collect();
        assert_eq!(destinations, ["destination.example/to/app:1", "destination.example/to/app@sha256:alone"]);
        assert_eq!(copies[1].tag, "sha256:alone");
    }

    #[tokio::test]
    async fn where_nothing_changed_there_is_one_call_for_each_side_and_repository_and_no_copy() {
        let repositories = repositories(&["app"]);
        let all = || vec![image("sha256:1", Some("1")), image("sha256:2", None)];
        let (here, there) = (images("app", all()), images("to/app", all()));
        let (copies, summary) = compared(&source(&[&repositories, &here]), &[&there]).await;
        assert_eq!(copies, []);
        assert_eq!((summary.listed, summary.unchanged), (2, 2));
        assert_eq!((repositories.num_calls(), here.num_calls(), there.num_calls()), (1, 1, 1));
    }

    #[tokio::test]
    async fn a_selection_is_read_from_the_parameter_and_understood_as_the_sources() {
        let rule = mock!(aws_sdk_ssm::Client::get_parameter)
            .match_requests(|request| request.name() == Some("/stack/images"))
            .then_output(|| {
                GetParameterOutput::builder().parameter(Parameter::builder().value("app:1").build()).build()
            });
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&rule]);
        let config = Config { choice: Choice::Selected("/stack/images".into()), ..config() };
        let selection = select(&config, &ssm, &source(&[])).await.expect("it is a list").expect("it is selected");
        let repositories: Vec<_> = selection.keys().map(|it| (it.registry.as_str(), it.name.as_str())).collect();
        assert_eq!(repositories, [("source.example", "app")]);
    }

    #[tokio::test]
    async fn the_plan_is_an_array_of_batches_under_the_executions_name() {
        let rule = mock!(aws_sdk_s3::Client::put_object)
            .match_requests(|request| request.bucket() == Some("bucket") && request.key() == Some("plans/run.json"))
            .then_output(|| PutObjectOutput::builder().build());
        let s3 = mock_client!(aws_sdk_s3, RuleMode::MatchAny, [&rule]);
        let object = write(&s3, "bucket", "run", &[]).await.expect("it is written");
        assert_eq!(object, Object { bucket: "bucket".into(), key: "plans/run.json".into() });
        assert_eq!(rule.num_calls(), 1);
    }
}
