//! Starts the task for a batch.

use std::collections::{BTreeMap, BTreeSet};

use aws_config::SdkConfig;
use aws_sdk_ecs::types::{
    AssignPublicIp, AwsVpcConfiguration, CapacityProviderStrategyItem, ContainerOverride, KeyValuePair, LaunchType,
    NetworkConfiguration, TaskOverride,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use shared::config::SourceConfig;
use shared::credentials::Stores;
use shared::ecr::{ImageId, Registry};
use shared::logins::SourceLogins;
use shared::plan::{Batch, Copy};
use shared::task::{self, COPIES, PACE, TASK_TOKEN};

use crate::config::{Config, TaskConfig};
use crate::error::{Error, Result};
use crate::logins;
use crate::stop::{self, BATCH};

/// How many of a batch's repositories are looked at, or created, at once.
const CONCURRENCY: usize = 10;

/// What the state machine sends.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// The execution's name.
    pub execution: String,
    /// What to copy.
    pub batch: Batch,
    /// By which the state is answered.
    pub token: String,
    /// How often the batch was launched before, without success.
    #[serde(default)]
    pub retries: u32,
}

/// The clients of AWS's services, made once.
pub struct Clients {
    /// For the task.
    pub ecs: aws_sdk_ecs::Client,
    /// For credentials, and for the logins that the task gets.
    pub stores: Stores,
}

impl Clients {
    /// Makes them all.
    #[must_use]
    pub fn new(aws: &SdkConfig) -> Self {
        Self { ecs: aws_sdk_ecs::Client::new(aws), stores: Stores::new(aws) }
    }
}

/// Starts a task for what the destination still lacks of the batch, and gives its ARN; `None` where it lacks nothing.
///
/// # Errors
/// When the destination, a repository in it, a login or the task cannot be had.
pub async fn launch(config: &Config, aws: &SdkConfig, clients: &Clients, request: &Request) -> Result<Option<String>> {
    if request.retries > 0 {
        stop::for_batch(&clients.ecs, &config.task.cluster, &request.execution, &request.batch.id).await?;
    }
    let destination = Registry::connect(aws, &clients.stores, &config.destination).await?;
    let model = match &config.source {
        SourceConfig::Ecr(source) if config.repositories.copies_source() => {
            Some(Registry::connect(aws, &clients.stores, source).await?)
        }
        _ => None,
    };
    let Missing { copies: missing, mut refusals } = missing(&destination, &request.batch.copies, async |name, copy| {
        let settings = config.repositories.settings(&clients.stores.ssm, model.as_ref(), copy).await?;
        destination.create(name, &settings).await
    })
    .await?;
    if missing.is_empty() {
        // Nothing could be started, or nothing need be.
        return refusals.pop().map_or(Ok(None), |(_, error)| Err(error.into()));
    }
    let sources = SourceLogins::connect(aws, &clients.stores, &config.source).await?;
    let hosts: BTreeSet<&str> =
        missing.iter().flat_map(|copy| [copy.source_registry(), copy.destination_registry()]).collect();
    logins::keep_fresh(
        &clients.stores.secrets,
        &config.registry_auth_secret,
        &hosts,
        config.task_timeout_seconds,
        async |host| {
            if missing.iter().any(|copy| copy.destination_registry() == host) {
                destination.login().await.map(Some)
            } else {
                sources.to(host).await
            }
        },
    )
    .await?;
    let refusals: String = refusals
        .iter()
        .map(|(repository, error)| {
            tracing::error!(error = error as &dyn std::error::Error, repository, "cannot create the repository");
            task::refusal(repository, &format!("{}: {error}", error.name()))
        })
        .collect();
    run(&clients.ecs, &config.task, request, &missing, &refusals).await.map(Some)
}

/// What the destination lacks.
struct Missing {
    copies: Vec<Copy>,
    /// Repositories that cannot be created, and why: a failure that would come again, and costs no other repository.
    refusals: Vec<(String, shared::Error)>,
}

/// What the destination lacks of `copies`. A repository that it lacks is created on the way: `create` gets its name, and a
/// copy that goes there.
///
/// # Errors
/// When the destination cannot tell, or a repository cannot be created.
async fn missing(
    destination: &Registry,
    copies: &[Copy],
    create: impl AsyncFn(&str, &Copy) -> shared::Result<()>,
) -> Result<Missing> {
    let mut repositories: BTreeMap<&str, Vec<&Copy>> = BTreeMap::new();
    for copy in copies.iter().filter(|copy| copy.error.is_none()) {
        repositories.entry(copy.destination_name()).or_default().push(copy);
    }
    let missing: Vec<Result<Vec<Copy>, (String, shared::Error)>> = stream::iter(repositories)
        .map(async |(name, copies)| {
            // Without a digest to compare with, a copy is attempted whatever the destination holds.
            let known = |copy: &&Copy| !copy.digest.is_empty();
            let ids: Vec<ImageId> = copies.iter().copied().filter(known).map(id).collect();
            let found = destination.find(name, &ids).await?;
            if (found.is_none() || ids.is_empty())
                && let Err(error) = create(name, copies[0]).await
            {
                return match error.name() {
                    "ServiceUnavailable" => Err(error),
                    _ => Ok(Err((copies[0].destination_repository().to_owned(), error))),
                };
            }
            let found = found.unwrap_or_default();
            Ok(Ok(copies.into_iter().filter(|copy| !found.contains_key(&id(copy))).cloned().collect()))
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let mut all = Missing { copies: Vec::new(), refusals: Vec::new() };
    for repository in missing {
        match repository {
            Ok(copies) => all.copies.extend(copies),
            Err(refusal) => all.refusals.push(refusal),
        }
    }
    Ok(all)
}

fn id(copy: &Copy) -> ImageId {
    ImageId { tag: copy.destination_tag().map(str::to_owned), digest: Some(copy.digest.clone()) }
}

/// Calls RunTask. The client token is made from the state's token: invoked twice for one attempt, it starts one task.
async fn run(
    ecs: &aws_sdk_ecs::Client,
    config: &TaskConfig,
    request: &Request,
    copies: &[Copy],
    refusals: &str,
) -> Result<String> {
    let variable = |name: &str, value: String| KeyValuePair::builder().name(name).value(value).build();
    let overrides = ContainerOverride::builder()
        .name(&config.container)
        .environment(variable(COPIES, task::encode(copies) + refusals))
        .environment(variable(TASK_TOKEN, request.token.clone()))
        .environment(variable(PACE, request.batch.pace.to_string()))
        .environment(variable(BATCH, request.batch.id.clone()))
        .build();
    let network = AwsVpcConfiguration::builder()
        .set_subnets(Some(config.subnets.clone()))
        .set_security_groups(Some(config.security_groups.clone()))
        .assign_public_ip(if config.public_ip { AssignPublicIp::Enabled } else { AssignPublicIp::Disabled })
        .build()
        .map_err(|error| Error::Refused(error.to_string()))?;
    let request_task = ecs.run_task();
    let request_task = if config.spot && request.retries == 0 {
        let spot = CapacityProviderStrategyItem::builder().capacity_provider("FARGATE_SPOT").weight(1).build();
        request_task.capacity_provider_strategy(spot.map_err(|error| Error::Refused(error.to_string()))?)
    } else {
        // There may be no spare capacity, and what there is may be reclaimed: another try does not depend on it.
        request_task.launch_type(LaunchType::Fargate)
    };
    let answer = request_task
        .cluster(&config.cluster)
        .task_definition(&config.definition)
        .client_token(hex::encode(Sha256::digest(&request.token)))
        .started_by(stop::started_by(&request.execution))
        .network_configuration(NetworkConfiguration::builder().awsvpc_configuration(network).build())
        .overrides(TaskOverride::builder().container_overrides(overrides).build())
        .send()
        .await
        .map_err(shared::Error::aws("ecs:RunTask", &config.definition))?;
    match answer.tasks().first().and_then(|task| task.task_arn()) {
        Some(arn) => {
            tracing::info!(
                task = arn,
                execution = request.execution,
                batch = request.batch.id,
                images = copies.len(),
                "started"
            );
            Ok(arn.to_owned())
        }
        // RunTask can succeed and still start nothing.
        None => {
            let reasons: Vec<_> = answer.failures().iter().filter_map(|failure| failure.reason()).collect();
            let reasons = if reasons.is_empty() { "it gave no reason".into() } else { reasons.join(", ") };
            // "The requested CPU configuration is above your limit": of the account, even with no other task.
            Err(if reasons.contains("above your limit") { Error::Refused(reasons) } else { Error::NoCapacity(reasons) })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use aws_sdk_ecr::operation::batch_get_image::{BatchGetImageError, BatchGetImageOutput};
    use aws_sdk_ecr::types::error::RepositoryNotFoundException;
    use aws_sdk_ecr::types::{Image, ImageFailure, ImageIdentifier};
    use aws_sdk_ecs::operation::run_task::RunTaskOutput;
    use aws_sdk_ecs::types::{Failure, Task};
    use aws_smithy_mocks::{RuleMode, mock, mock_client};

    use super::*;

    fn copy(repository: &str, tag: &str) -> Copy {
        Copy {
            source: format!("source/{repository}@sha256:{tag}"),
            destination: format!("destination/{repository}:{tag}"),
            digest: format!("sha256:{tag}"),
            image: repository.into(),
            tag: tag.into(),
            bytes: 1,
            ..Copy::default()
        }
    }

    fn request(copies: Vec<Copy>) -> Request {
        let batch = Batch { id: "1".into(), bytes: 1, pace: 100, copies };
        Request { execution: "run 1".into(), batch, token: "t0ken".into(), retries: 0 }
    }

    fn task_config() -> TaskConfig {
        TaskConfig {
            cluster: "cluster".into(),
            definition: "definition".into(),
            container: "skopeo".into(),
            subnets: vec!["subnet-1".into()],
            security_groups: vec!["sg-1".into()],
            public_ip: true,
            spot: false,
        }
    }

    #[tokio::test]
    async fn only_what_the_destination_lacks_is_copied_and_a_failed_copy_is_not_tried() {
        let rule = mock!(aws_sdk_ecr::Client::batch_get_image).then_output(|| {
            let there = ImageIdentifier::builder().image_tag("1").image_digest("sha256:1").build();
            let lacking = ImageIdentifier::builder().image_tag("2").image_digest("sha256:2").build();
            BatchGetImageOutput::builder()
                .images(Image::builder().image_id(there).build())
                .failures(ImageFailure::builder().image_id(lacking).build())
                .build()
        });
        let ecr = mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&rule]);
        let failed = Copy { error: Some("cannot be listed".into()), ..copy("app", "3") };
        let destination = Registry::new(ecr, None);
        let missing = missing(&destination, &[copy("app", "1"), copy("app", "2"), failed], async |_, _| {
            unreachable!("the repository is there")
        })
        .await
        .expect("ECR answers");
        assert_eq!(missing.copies, [copy("app", "2")]);
    }

    #[tokio::test]
    async fn a_repository_that_the_destination_lacks_is_created_once() {
        let find = mock!(aws_sdk_ecr::Client::batch_get_image).then_error(|| {
            BatchGetImageError::RepositoryNotFoundException(RepositoryNotFoundException::builder().build())
        });
        let destination = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&find]), None);
        let created = RefCell::new(Vec::new());
        let missing = missing(&destination, &[copy("app", "1"), copy("app", "2")], async |name, copy| {
            created.borrow_mut().push((name.to_owned(), copy.source_name().to_owned()));
            Ok(())
        })
        .await
        .expect("ECR answers");
        assert_eq!((missing.copies.len(), created.into_inner()), (2, vec![("app".into(), "app".into())]));
    }

    #[tokio::test]
    async fn a_repository_that_cannot_be_created_costs_no_other_one_unless_it_may_be_created_later() {
        let find = mock!(aws_sdk_ecr::Client::batch_get_image).then_error(|| {
            BatchGetImageError::RepositoryNotFoundException(RepositoryNotFoundException::builder().build())
        });
        let destination = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&find]), None);
        let copies = [copy("closed", "1"), copy("open", "1")];
        let failing = async |code: &'static str| {
            missing(&destination, &copies, async |name, _| match name {
                "closed" => Err(shared::Error::Aws {
                    action: "ecr:CreateRepository",
                    subject: name.into(),
                    code: code.into(),
                    message: code.into(),
                    source: code.into(),
                }),
                _ => Ok(()),
            })
            .await
        };
        let missing = failing("AccessDeniedException").await.expect("the other one is there");
        assert_eq!(missing.copies, [copy("open", "1")]);
        let refused: Vec<_> = missing.refusals.iter().map(|(name, error)| (name.as_str(), error.name())).collect();
        assert_eq!(refused, [("destination/closed", "AccessDenied")]);
        let error = failing("ThrottlingException").await.err().expect("the batch is tried again");
        assert_eq!(error.name(), "ServiceUnavailable");
    }

    #[tokio::test]
    async fn the_task_gets_the_copies_and_the_token_and_a_repeated_launch_the_same_client_token() {
        let rule = mock!(aws_sdk_ecs::Client::run_task)
            .match_requests(|request| {
                let overrides = request.overrides().and_then(|overrides| overrides.container_overrides().first());
                let environment: Vec<_> = overrides
                    .map(|container| {
                        container
                            .environment()
                            .iter()
                            .map(|v| (v.name().unwrap_or(""), v.value().unwrap_or("")))
                            .collect()
                    })
                    .unwrap_or_default();
                let copies = ("COPIES", "> source/app destination/app\nsha256:1 1\n");
                environment == [copies, ("TASK_TOKEN", "t0ken"), ("PACE", "100"), ("BATCH", "1")]
                    && request.client_token().is_some_and(|token| token == hex::encode(Sha256::digest("t0ken")))
                    && request.started_by() == Some("run-1")
            })
            .then_output(|| RunTaskOutput::builder().tasks(Task::builder().task_arn("arn:task").build()).build());
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&rule]);
        for _ in 0..2 {
            let arn = run(&ecs, &task_config(), &request(vec![]), &[copy("app", "1")], "").await.expect("it starts");
            assert_eq!(arn, "arn:task");
        }
    }

    #[tokio::test]
    async fn spare_capacity_is_used_for_the_first_try_only() {
        let started = || RunTaskOutput::builder().tasks(Task::builder().task_arn("arn:task").build()).build();
        let spot = mock!(aws_sdk_ecs::Client::run_task)
            .match_requests(|request| {
                let strategy =
                    request.capacity_provider_strategy().iter().map(CapacityProviderStrategyItem::capacity_provider);
                strategy.eq(["FARGATE_SPOT"]) && request.launch_type().is_none()
            })
            .then_output(started);
        let on_demand = mock!(aws_sdk_ecs::Client::run_task)
            .match_requests(|request| request.launch_type() == Some(&LaunchType::Fargate))
            .then_output(started);
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&spot, &on_demand]);
        let config = TaskConfig { spot: true, ..task_config() };
        for retries in [0, 1] {
            let request = Request { retries, ..request(vec![]) };
            run(&ecs, &config, &request, &[copy("app", "1")], "").await.expect("it starts");
        }
        assert_eq!((spot.num_calls(), on_demand.num_calls()), (1, 1));
    }

    #[tokio::test]
    async fn a_launch_that_starts_nothing_is_an_error_with_ecss_reason() {
        for (reason, name, text) in [
            ("You've reached the limit on the number of vCPUs", "NoCapacity", "ECS started no task: You've reached"),
            ("Capacity is unavailable at this time", "NoCapacity", "ECS started no task: Capacity is unavailable"),
            ("The requested CPU configuration is above your limit", "RequestRefused", "ECS starts no such task: The"),
        ] {
            let rule = mock!(aws_sdk_ecs::Client::run_task).then_output(move || {
                RunTaskOutput::builder().failures(Failure::builder().reason(reason).build()).build()
            });
            let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&rule]);
            let error = run(&ecs, &task_config(), &request(vec![]), &[copy("app", "1")], "").await.expect_err(reason);
            assert_eq!(error.name(), name);
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }
}
