//! Starts the task for a batch.

use std::collections::BTreeMap;

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
use shared::ecr::{Found, ImageId, Registry};
use shared::logins::SourceLogins;
use shared::naming::has_prefix;
use shared::plan::{Batch, Image, RepositoryCopy};
use shared::reference::{RegistryHost, RepositoryName};
use shared::task::{self, BATCH, COPIES, COPIES_LIMIT, PACE, REFUSALS, Refusal, TASK_TOKEN};
use shared::text::Excerpt;
use shared::{Error, Result};

use crate::config::{Config, TaskConfig};
use crate::logins::{self, ConfigHash};
use crate::stop;

/// How many repositories of a batch are checked or created at once.
const CONCURRENCY: usize = 10;

/// The state machine's request.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// The execution's name.
    pub execution: String,
    pub batch: Batch,
    /// The task token of the state.
    pub token: String,
    /// The number of earlier launches that failed.
    #[serde(default)]
    pub retries: u32,
}

pub struct Clients {
    pub ecs: aws_sdk_ecs::Client,
    pub stores: Stores,
}

impl Clients {
    pub fn new(aws: &SdkConfig) -> Self {
        Self { ecs: aws_sdk_ecs::Client::new(aws), stores: Stores::new(aws) }
    }
}

#[derive(Debug)]
pub enum Launched {
    /// The ARN of the started task.
    Task(String),
    /// No task was started: the destination has all images, except in repositories that cannot be written.
    Nothing(Vec<Refusal>),
}

/// Starts a task for the images of the batch that the destination does not have yet.
pub async fn launch(config: &Config, aws: &SdkConfig, clients: &Clients, request: &Request) -> Result<Launched> {
    let started_by = task::started_by(&config.state_machine, &request.execution);
    if request.retries > 0 {
        stop::for_batch(&clients.ecs, &config.task.cluster, &started_by, request.batch.id.as_str()).await?;
    }
    let destination = Registry::connect(aws, &clients.stores, &config.destination).await?;
    let login = destination.login().await?;
    check(config, &login.host, &request.batch.repositories)?;
    let source_registry = match &config.source {
        SourceConfig::Ecr(source) if config.repositories.copies_source() => {
            Some(Registry::connect(aws, &clients.stores, source).await?)
        }
        _ => None,
    };
    let Missing { copies, refusals } = missing(&destination, &request.batch.repositories, async |copy| {
        let settings = config.repositories.settings(&clients.stores.ssm, source_registry.as_ref(), copy).await?;
        destination.create(&copy.destination.name, &copy.source, &settings).await
    })
    .await?;
    for Refusal { repository, error } in &refusals {
        tracing::error!(%repository, %error, "the repository cannot be written");
    }
    if copies.is_empty() {
        return Ok(Launched::Nothing(refusals));
    }
    let sources = SourceLogins::connect(aws, &clients.stores, &config.source).await?;
    let configs = [ConfigHash::source(config), ConfigHash::destination(config)];
    let source_hosts = copies.iter().map(|copy| (&copy.source.registry, &configs[0]));
    // If a registry is copied into itself, its login must be able to write. So the destination comes last.
    let hosts: BTreeMap<&RegistryHost, &ConfigHash> = source_hosts.chain([(&login.host, &configs[1])]).collect();
    logins::keep_fresh(
        &clients.stores.secrets,
        &config.registry_auth_secret,
        &hosts,
        &configs,
        config.task_timeout_seconds,
        async |host| if *host == login.host { Ok(Some(login.clone())) } else { sources.to(host).await },
    )
    .await?;
    run(&clients.ecs, &config.task, request, &started_by, &copies, &refusals).await.map(Launched::Task)
}

/// Checks that the stack allows the copies of a plan. Otherwise, a person who can write to the plan's bucket could copy images
/// from and to any repository.
fn check(config: &Config, host: &RegistryHost, copies: &[RepositoryCopy]) -> Result<()> {
    for RepositoryCopy { source, destination, .. } in copies {
        let problem = if destination.registry != *host {
            Err(format!("the destination registry is {host}."))
        } else if !has_prefix(config.prefix.as_ref(), &destination.name) {
            Err("the destination does not begin with destPrefix.".to_owned())
        } else {
            config.allowed.check(source)
        };
        let subject = || format!("{source} to {destination}");
        problem.map_err(|problem| Error::NotAllowed { subject: subject(), problem })?;
    }
    Ok(())
}

#[derive(Debug)]
struct Missing {
    /// Repositories with the images that the destination does not have.
    copies: Vec<RepositoryCopy>,
    /// Repositories that cannot be written. A retry would not help.
    refusals: Vec<Refusal>,
}

/// Finds the images of `copies` that the destination does not have. Missing repositories are created by `create`, which returns
/// `false` if the repository already exists. The images of an existing repository must come from the same source.
async fn missing(
    destination: &Registry,
    copies: &[RepositoryCopy],
    create: impl AsyncFn(&RepositoryCopy) -> Result<bool>,
) -> Result<Missing> {
    let incomplete: Vec<Option<(RepositoryCopy, bool)>> = stream::iter(copies)
        .map(async |copy| {
            let ids: Vec<ImageId> = copy.images.iter().map(Image::id).collect();
            let found = destination.find(&copy.destination.name, &ids).await?;
            let exists = found.is_some();
            let found = found.unwrap_or_default();
            let is_missing = |image: &&Image| found.get(&image.id()).map(|it: &Found| it.digest) != Some(image.digest);
            let images: Vec<Image> = copy.images.iter().filter(is_missing).cloned().collect();
            let is_complete = images.is_empty();
            Ok::<_, Error>((!is_complete).then(|| (RepositoryCopy { images, ..copy.clone() }, exists)))
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let incomplete: Vec<(RepositoryCopy, bool)> = incomplete.into_iter().flatten().collect();
    let existing: Vec<RepositoryName> =
        incomplete.iter().filter(|(_, exists)| *exists).map(|(copy, _)| copy.destination.name.clone()).collect();
    let arns = destination.arns(&existing).await?;
    let prepared: Vec<Result<RepositoryCopy, Refusal>> = stream::iter(incomplete)
        .map(async |(copy, exists)| {
            let name = &copy.destination.name;
            let prepare = async {
                if !exists && create(&copy).await? {
                    return Ok(());
                }
                // If it was created in the meantime, its ARN is not known yet.
                let arn = match arns.get(name) {
                    Some(arn) => arn.clone(),
                    None => destination.arns(std::slice::from_ref(name)).await?.remove(name).unwrap_or_default(),
                };
                destination.check_origin(&arn, &copy.source).await
            };
            match prepare.await {
                Ok(()) => Ok(Ok(copy)),
                Err(error) if error.kind().is_transient() => Err(error),
                Err(error) => {
                    let error = Excerpt::new(&format!("The repository cannot be written: {}: {error}", error.name()));
                    Ok(Err(Refusal { repository: copy.destination, error }))
                }
            }
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let mut all = Missing { copies: Vec::new(), refusals: Vec::new() };
    for repository in prepared {
        match repository {
            Ok(copy) => all.copies.push(copy),
            Err(refusal) => all.refusals.push(refusal),
        }
    }
    Ok(all)
}

async fn run(
    ecs: &aws_sdk_ecs::Client,
    config: &TaskConfig,
    request: &Request,
    started_by: &str,
    copies: &[RepositoryCopy],
    refusals: &[Refusal],
) -> Result<String> {
    let encoded = task::encode(copies);
    let room = COPIES_LIMIT.saturating_sub(encoded.len());
    let variable = |name: &str, value: String| KeyValuePair::builder().name(name).value(value).build();
    let mut overrides = ContainerOverride::builder()
        .name(&config.container)
        .environment(variable(COPIES, encoded))
        .environment(variable(TASK_TOKEN, request.token.clone()))
        .environment(variable(PACE, request.batch.pace.to_string()))
        .environment(variable(BATCH, request.batch.id.to_string()));
    if !refusals.is_empty() {
        overrides = overrides.environment(variable(REFUSALS, task::encode_refusals(refusals, room)));
    }
    let overrides = overrides.build();
    let network = AwsVpcConfiguration::builder()
        .set_subnets(Some(config.subnets.clone()))
        .set_security_groups(Some(config.security_groups.clone()))
        .assign_public_ip(if config.public_ip { AssignPublicIp::Enabled } else { AssignPublicIp::Disabled })
        .build()
        .map_err(|error| Error::TaskRejected(Excerpt::new(&error.to_string())))?;
    let request_task = ecs.run_task();
    let request_task = if config.spot && request.retries == 0 {
        let spot = CapacityProviderStrategyItem::builder().capacity_provider("FARGATE_SPOT").weight(1).build();
        request_task
            .capacity_provider_strategy(spot.map_err(|error| Error::TaskRejected(Excerpt::new(&error.to_string())))?)
    } else {
        // Spot capacity can be missing or reclaimed, so a retry does not use it.
        request_task.launch_type(LaunchType::Fargate)
    };
    let answer = request_task
        .cluster(&config.cluster)
        .task_definition(&config.definition)
        .client_token(hex::encode(Sha256::digest(&request.token)))
        .started_by(started_by)
        .network_configuration(NetworkConfiguration::builder().awsvpc_configuration(network).build())
        .overrides(TaskOverride::builder().container_overrides(overrides).build())
        .send()
        .await
        .map_err(Error::aws("ecs:RunTask", &config.definition))?;
    match answer.tasks().first().and_then(|task| task.task_arn()) {
        Some(arn) => {
            tracing::info!(
                task = arn,
                execution = request.execution,
                batch = %request.batch.id,
                images = copies.iter().map(|copy| copy.images.len()).sum::<usize>(),
                "task started"
            );
            Ok(arn.to_owned())
        }
        // RunTask can succeed without starting a task.
        None => {
            let reasons: Vec<_> = answer.failures().iter().filter_map(|failure| failure.reason()).collect();
            let reasons = if reasons.is_empty() { "no reason was given".into() } else { reasons.join(", ") };
            // "The requested CPU configuration is above your limit": a single task exceeds the account's quota.
            let is_rejected = reasons.contains("above your limit");
            let reasons = Excerpt::new(&reasons);
            Err(if is_rejected { Error::TaskRejected(reasons) } else { Error::NoCapacity(reasons) })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use aws_sdk_ecr::operation::batch_get_image::{BatchGetImageError, BatchGetImageOutput};
    use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesOutput;
    use aws_sdk_ecr::operation::list_tags_for_resource::ListTagsForResourceOutput;
    use aws_sdk_ecr::types::error::RepositoryNotFoundException;
    use aws_sdk_ecr::types::{Image as EcrImage, ImageIdentifier, Repository, Tag};
    use aws_sdk_ecs::operation::run_task::RunTaskOutput;
    use aws_sdk_ecs::types::{Failure, Task};
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use shared::Kind;
    use shared::plan::Reason;

    use super::*;

    fn image(tag: &str) -> Image {
        let digest = shared::reference::Digest::of(tag.as_bytes());
        Image { digest, tag: Some(tag.parse().expect(tag)), bytes: 1, manifests: 1, reason: Reason::New }
    }

    fn copy(name: &str, tags: &[&str]) -> RepositoryCopy {
        let repository = |host: &str| format!("{host}/{name}").parse().expect(name);
        RepositoryCopy {
            source: repository("source.example"),
            destination: repository(HOST),
            image: name.parse().expect(name),
            images: tags.iter().map(|tag| image(tag)).collect(),
        }
    }

    const HOST: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

    fn request(repositories: &[RepositoryCopy]) -> Request {
        let batch = serde_json::json!({ "id": "1", "bytes": 1, "pace": 100, "repositories": repositories });
        let batch = serde_json::from_value(batch).expect("it is valid");
        Request { execution: "run 1".into(), batch, token: "t0ken".into(), retries: 0 }
    }

    async fn start(ecs: &aws_sdk_ecs::Client, config: &TaskConfig, request: &Request) -> Result<String> {
        run(ecs, config, request, "run-1", &[copy("app", &["1"])], &[]).await
    }

    /// A registry with the tag `1` in all repositories, except that those whose names begin with `new` do not exist. The images
    /// of the repository `taken` come from `source_of_taken`.
    fn destination(source_of_taken: &'static str) -> Registry {
        let found = mock!(aws_sdk_ecr::Client::batch_get_image)
            .match_requests(|request| !request.repository_name().unwrap_or_default().starts_with("new"))
            .then_output(|| {
                let unchanged =
                    ImageIdentifier::builder().image_tag("1").image_digest(image("1").digest.to_string()).build();
                let moved =
                    ImageIdentifier::builder().image_tag("2").image_digest(image("1").digest.to_string()).build();
                let image = |id| EcrImage::builder().image_id(id).build();
                BatchGetImageOutput::builder().images(image(unchanged)).images(image(moved)).build()
            });
        let absent = mock!(aws_sdk_ecr::Client::batch_get_image).then_error(|| {
            BatchGetImageError::RepositoryNotFoundException(RepositoryNotFoundException::builder().build())
        });
        let described = mock!(aws_sdk_ecr::Client::describe_repositories).then_compute_output(|request| {
            let repository = |name: &String| {
                Repository::builder().repository_name(name).repository_arn(format!("arn:repository/{name}")).build()
            };
            let all = request.repository_names().iter().map(repository).collect();
            DescribeRepositoriesOutput::builder().set_repositories(Some(all)).build()
        });
        let origin = mock!(aws_sdk_ecr::Client::list_tags_for_resource).then_compute_output(move |request| {
            let name = request.resource_arn().unwrap_or_default().trim_start_matches("arn:repository/");
            let source = if name == "taken" { source_of_taken.to_owned() } else { format!("source.example/{name}") };
            let tag = Tag::builder().key("ecr-transfer:source").value(source).build().expect("it is complete");
            ListTagsForResourceOutput::builder().tags(tag).build()
        });
        Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&found, &absent, &described, &origin]), None)
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
    async fn missing_images_and_moved_tags_are_copied() {
        let wanted = [copy("app", &["1", "2", "3"]), copy("complete", &["1"])];
        let create = async |_: &RepositoryCopy| unreachable!("the repositories exist");
        let missing = missing(&destination(""), &wanted, create).await.expect("ECR answers");
        assert_eq!(missing.copies, [copy("app", &["2", "3"])]);
        assert_eq!(missing.refusals, []);
    }

    #[tokio::test]
    async fn a_missing_repository_is_created_once() {
        let created = RefCell::new(Vec::new());
        let missing = missing(&destination(""), &[copy("new", &["1", "2"])], async |copy| {
            created.borrow_mut().push(copy.destination.name.to_string());
            Ok(true)
        })
        .await
        .expect("ECR answers");
        assert_eq!((missing.copies, created.into_inner()), (vec![copy("new", &["1", "2"])], vec!["new".to_owned()]));
    }

    #[tokio::test]
    async fn a_repository_with_images_of_another_source_is_not_written_and_others_are() {
        let wanted = [copy("taken", &["2"]), copy("app", &["2"])];
        let create = async |_: &RepositoryCopy| unreachable!("the repositories exist");
        let missing = missing(&destination("quay.io/other/app"), &wanted, create).await.expect("ECR answers");
        assert_eq!(missing.copies, [copy("app", &["2"])]);
        let [refusal] = &missing.refusals[..] else { panic!("one is taken: {missing:?}") };
        assert_eq!(refusal.repository, wanted[0].destination);
        assert!(refusal.error.as_str().contains("takes images of quay.io/other/app only"), "{}", refusal.error);
    }

    #[tokio::test]
    async fn a_repository_that_was_just_created_must_have_the_same_source() {
        let create = async |_: &RepositoryCopy| Ok(false);
        let missing = missing(&destination(""), &[copy("new", &["1"])], create).await.expect("ECR answers");
        assert_eq!(missing.copies, [copy("new", &["1"])]);
    }

    #[tokio::test]
    async fn a_repository_that_cannot_be_created_does_not_affect_others_and_a_transient_error_is_retried() {
        let wanted = [copy("new/closed", &["1"]), copy("new/open", &["1"])];
        let failing = async |kind: Kind| {
            missing(&destination(""), &wanted, async |copy| match copy.destination.name.as_str() {
                "new/closed" => Err(Error::Aws {
                    action: "ecr:CreateRepository",
                    subject: "new/closed".into(),
                    kind,
                    message: "no".into(),
                    source: "no".into(),
                }),
                _ => Ok(true),
            })
            .await
        };
        let missing = failing(Kind::Denied).await.expect("the other one is created");
        assert_eq!(missing.copies, [wanted[1].clone()]);
        let [refusal] = &missing.refusals[..] else { panic!("one is closed: {missing:?}") };
        assert_eq!(refusal.repository, wanted[0].destination);
        assert!(
            refusal.error.as_str().starts_with("The repository cannot be written: AccessDenied: "),
            "{}",
            refusal.error
        );
        let error = failing(Kind::Throttled).await.expect_err("the batch is retried");
        assert_eq!(error.name(), "ServiceUnavailable");
    }

    #[test]
    fn a_plan_that_the_stack_does_not_allow_is_refused() {
        let environment = [
            ("SOURCE_TYPE", "Public"),
            ("DEST_PREFIX", "to"),
            ("ALLOWED_SOURCES", "source.example,111111111111.*"),
            ("CLUSTER", "c"),
            ("TASK_DEFINITION", "d"),
            ("CONTAINER", "skopeo"),
            ("SUBNETS", "s"),
            ("SECURITY_GROUPS", "g"),
            ("REGISTRY_AUTH_SECRET", "a"),
            ("LOG_GROUP", "l"),
            ("LOG_STREAM_PREFIX", "p"),
            ("STATE_MACHINE", "m"),
        ];
        let config = Config::read(&environment.into_iter().collect()).expect("it is complete");
        let host = HOST.parse().expect("it is a host");
        let planned = |source: &str, destination: &str| {
            let [source, destination] = [source, destination].map(|text| text.parse().expect(text));
            check(&config, &host, &[RepositoryCopy { source, destination, ..copy("app", &["1"]) }])
        };
        planned("source.example/app", &format!("{HOST}/to/app")).expect("it is allowed");
        for (source, destination, problem) in [
            ("source.example/app", "evil.example/to/app".to_owned(), "the destination registry is 111111111111"),
            (
                "source.example/app",
                "111111111111.dkr.ecr.us-east-2.amazonaws.com/to/app".to_owned(),
                "the destination registry is",
            ),
            ("source.example/app", format!("{HOST}/prod/payments"), "does not begin with destPrefix"),
            ("source.example/app", format!("{HOST}/to"), "does not begin with destPrefix"),
            ("evil.example/app", format!("{HOST}/to/app"), "allowedSources does not allow evil.example/app"),
            ("111111111111.dkr.ecr.us-east-1.amazonaws.com/secret", format!("{HOST}/to/app"), "srcEcrAccounts"),
        ] {
            let error = planned(source, &destination).expect_err(&destination);
            assert_eq!(error.name(), "NotAllowed");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[tokio::test]
    async fn the_task_gets_copies_and_token_and_a_repeated_launch_has_the_same_client_token() {
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
                let copies = task::encode(&[copy("app", &["1"])]);
                environment == [("COPIES", copies.as_str()), ("TASK_TOKEN", "t0ken"), ("PACE", "100"), ("BATCH", "1")]
                    && request.client_token().is_some_and(|token| token == hex::encode(Sha256::digest("t0ken")))
                    && request.started_by() == Some("run-1")
            })
            .then_output(|| RunTaskOutput::builder().tasks(Task::builder().task_arn("arn:task").build()).build());
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&rule]);
        for _ in 0..2 {
            let arn = start(&ecs, &task_config(), &request(&[])).await.expect("it starts");
            assert_eq!(arn, "arn:task");
        }
    }

    #[tokio::test]
    async fn refusals_are_passed_to_the_task_within_the_limit_of_its_overrides() {
        let refusal = |number: usize| Refusal {
            repository: format!("{HOST}/closed/{number}").parse().expect("it is valid"),
            error: "\"no\" ".repeat(200).as_str().into(),
        };
        let rule = mock!(aws_sdk_ecs::Client::run_task)
            .match_requests(|request| {
                let container = request.overrides().and_then(|overrides| overrides.container_overrides().first());
                let environment = container.map(ContainerOverride::environment).unwrap_or_default();
                let value = |name| environment.iter().find(|it| it.name() == Some(name)).and_then(KeyValuePair::value);
                let refusals: Vec<Refusal> =
                    serde_json::from_str(value(REFUSALS).unwrap_or_default()).unwrap_or_default();
                let length = |name| serde_json::to_string(&value(name)).map_or(usize::MAX, |json| json.len());
                refusals.len() == 20 && length(COPIES) + length(REFUSALS) <= COPIES_LIMIT + 100
            })
            .then_output(|| RunTaskOutput::builder().tasks(Task::builder().task_arn("arn:task").build()).build());
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&rule]);
        let refusals: Vec<_> = (0..20).map(refusal).collect();
        let copies = [copy("app", &["1"])];
        run(&ecs, &task_config(), &request(&[]), "run-1", &copies, &refusals).await.expect("it starts");
    }

    #[tokio::test]
    async fn fargate_spot_is_used_for_the_first_attempt_only() {
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
            let request = Request { retries, ..request(&[]) };
            start(&ecs, &config, &request).await.expect("it starts");
        }
        assert_eq!((spot.num_calls(), on_demand.num_calls()), (1, 1));
    }

    #[tokio::test]
    async fn a_launch_that_starts_no_task_is_an_error_with_the_reason_of_ecs() {
        for (reason, name, text) in [
            (
                "You've reached the limit on the number of vCPUs",
                "NoCapacity",
                "ECS did not start the task: You've reached",
            ),
            ("Capacity is unavailable at this time", "NoCapacity", "ECS did not start the task: Capacity"),
            ("The requested CPU configuration is above your limit", "RequestRefused", "ECS rejected the task: The"),
        ] {
            let rule = mock!(aws_sdk_ecs::Client::run_task).then_output(move || {
                RunTaskOutput::builder().failures(Failure::builder().reason(reason).build()).build()
            });
            let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&rule]);
            let error = start(&ecs, &task_config(), &request(&[])).await.expect_err(reason);
            assert_eq!(error.name(), name);
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }

    #[tokio::test]
    async fn the_first_try_is_the_one_on_spare_capacity() {
        let spot = mock!(aws_sdk_ecs::Client::run_task)
            .match_requests(|request| !request.capacity_provider_strategy().is_empty())
            .then_output(|| RunTaskOutput::builder().tasks(Task::builder().task_arn("arn:task").build()).build());
        let ecs = mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&spot]);
        let config = TaskConfig { spot: true, ..task_config() };
        start(&ecs, &config, &Request { retries: 0, ..request(&[]) }).await.expect("it starts");
    }
}
