//! Lists the source for one execution, compares it with the destination, and writes the plan.

use std::cell::RefCell;

use aws_config::SdkConfig;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::future;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::config::{Environment, RegistryConfig, SourceConfig};
use shared::credentials::Stores;
use shared::ecr::Registry;
use shared::inventory;
use shared::lambda::ExecutionStatusChange;
use shared::logins::SourceLogins;
use shared::metrics::{self, Unit};
use shared::plan::{Object, Summary};
use shared::reference::RegistryHost;
use shared::{Error, Result};

use crate::comparison::Comparison;
use crate::config::Config;
use crate::distribution::Client;
use crate::failing::FailingRows;
use crate::input::{self, Input};
use crate::source::{Registries, Source};
use crate::turn::{self, Turn};
use crate::{batches, dry_run};

/// The state machine's request.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The execution's name.
    pub execution: String,
    /// The execution's input.
    #[serde(default)]
    pub input: Value,
}

/// The clients that several parts of a run need.
pub struct Clients {
    s3: aws_sdk_s3::Client,
    stores: Stores,
}

impl Clients {
    /// Clients with the Lambda's role.
    pub fn new(aws: &SdkConfig) -> Self {
        Self { s3: aws_sdk_s3::Client::new(aws), stores: Stores::new(aws) }
    }
}

/// Lists the source, compares it with the destination, and writes the plan.
///
/// # Errors
/// If a parameter, a credential or the image list is invalid, if nothing can be listed, or if the plan cannot be written. A
/// single repository that cannot be listed is a failure in the plan.
pub async fn list(config: &Config, aws: &SdkConfig, clients: &Clients, request: &Request) -> Result<Summary> {
    let input = Input::parse(&request.input)?;
    input.check(config)?;
    // Connecting at the same time saves milliseconds of each cold start.
    let (turn, source, (destination, host)) = future::try_join3(
        take_turn(config, aws, request, &input),
        connect_source(config, aws, clients),
        connect(&config.destination, aws, clients),
    )
    .await?;
    let failing_rows = match turn {
        Ok(failing_rows) => failing_rows,
        Err(summary) => return Ok(summary),
    };
    let selection = input::select(config, &input, &clients.stores.ssm, source.host()).await?;
    // Only a run of all images knows everything that is mirrored.
    let inventory =
        (!input.dry_run && input.src_image_list.is_none()).then(|| RefCell::new(inventory::Writer::new(&host)));
    let comparison = Comparison {
        config,
        source: &source,
        destination: &destination,
        host: &host,
        failing_rows: &failing_rows,
        explain: input.dry_run,
        inventory,
    };
    let mut diff = comparison.run(selection).await?;
    let mut summary = std::mem::take(&mut diff.summary);
    if summary.listed < config.min_images {
        return Err(Error::TooFewImages { listed: summary.listed, minimum: config.min_images });
    }

    let bucket = &config.plan_bucket;
    write_inventory(config, clients, comparison.inventory).await?;
    if input.dry_run {
        let key = format!("dry-runs/{}.json", request.execution);
        summary.dry_run = Some(write(&clients.s3, bucket, &key, json_array(dry_run::report(diff.decisions))).await?);
    } else {
        check_size(config, &summary)?;
        let batches = batches::pack(diff.into_work(&host), &config.packing);
        summary.batches = batches.len();
        if summary.batches > 0 {
            let key = format!("plans/{}.json", request.execution);
            summary.plan = Some(write(&clients.s3, bucket, &key, json_array(batches)).await?);
        }
    }
    tracing::info!(
        batches = summary.batches,
        listed = summary.listed,
        unchanged = summary.unchanged,
        excluded = summary.excluded,
        to_copy = summary.to_copy,
        bytes = summary.bytes,
        dry_run = input.dry_run,
        "listed"
    );
    Ok(summary)
}

/// Writes the inventory again after an execution that may have copied images.
///
/// # Errors
/// If a parameter, a credential or the image list is invalid, or if the inventory cannot be written.
pub async fn update_inventory(
    config: &Config,
    aws: &SdkConfig,
    clients: &Clients,
    execution: &ExecutionStatusChange,
) -> Result<()> {
    if !may_have_copied(execution) {
        return Ok(());
    }
    let (source, (destination, host)) =
        future::try_join(connect_source(config, aws, clients), connect(&config.destination, aws, clients)).await?;
    let selection = input::select(config, &Input::default(), &clients.stores.ssm, source.host()).await?;
    let comparison = Comparison {
        config,
        source: &source,
        destination: &destination,
        host: &host,
        failing_rows: &FailingRows::default(),
        explain: false,
        inventory: Some(RefCell::new(inventory::Writer::new(&host))),
    };
    comparison.list_destination(selection).await?;
    write_inventory(config, clients, comparison.inventory).await
}

/// An execution that copied nothing succeeds with the summary of its listing, and one that copied with its outcome, which has
/// `done`. One that did not succeed has no output.
fn may_have_copied(execution: &ExecutionStatusChange) -> bool {
    let Some(output) = &execution.output else { return true };
    serde_json::from_str(output).is_ok_and(|output: Value| output.get("done").is_some())
}

async fn write_inventory(
    config: &Config,
    clients: &Clients,
    inventory: Option<RefCell<inventory::Writer>>,
) -> Result<()> {
    let Some(inventory) = inventory else { return Ok(()) };
    write(&clients.s3, &config.plan_bucket, inventory::KEY, inventory.into_inner().finish()).await.map(drop)
}

/// Emits the counts of a run as metrics, unless it is a dry run, waits for another execution, or did not list the source.
pub fn emit_metrics(environment: &Environment, summary: &Summary) {
    if summary.dry_run.is_some() || summary.left_to.is_some() || summary.wait.is_some() {
        return;
    }
    let metrics = [
        ("ImagesListed", summary.listed),
        ("ImagesUnchanged", summary.unchanged),
        ("ImagesExcluded", summary.excluded),
        ("ImagesToCopy", summary.to_copy),
    ];
    metrics::emit(environment, &metrics.map(|(name, count)| (name, Unit::Count, count as u64)));
}

/// The failing rows if it is the execution's turn, and otherwise the summary that it answers. An earlier execution may write
/// rows, so that they are read after it has ended.
async fn take_turn(
    config: &Config,
    aws: &SdkConfig,
    request: &Request,
    input: &Input,
) -> Result<Result<FailingRows, Summary>> {
    let turn = match &config.state_machine {
        Some(state_machine) => {
            turn::take(&aws_sdk_sfn::Client::new(aws), state_machine, &request.execution, input).await?
        }
        None => Turn::Now,
    };
    Ok(match turn {
        Turn::Now => Ok(read_failing_rows(config, aws, input).await?),
        Turn::LeftTo(execution) => {
            tracing::info!(execution, "a waiting execution copies the same images");
            Err(Summary { left_to: Some(execution), ..Summary::default() })
        }
        Turn::Wait(wait) => {
            tracing::info!(execution = wait.execution, "waiting for an active execution");
            Err(Summary { wait: Some(wait), ..Summary::default() })
        }
    })
}

/// A run of other images cannot decide which rows are outdated, so it reads none.
async fn read_failing_rows(config: &Config, aws: &SdkConfig, input: &Input) -> Result<FailingRows> {
    match &config.image_table {
        Some(table) if !input.dry_run && input.src_image_list.is_none() => {
            FailingRows::read(&aws_sdk_dynamodb::Client::new(aws), table).await
        }
        _ => Ok(FailingRows::default()),
    }
}

async fn connect_source<'a>(config: &Config, aws: &'a SdkConfig, clients: &Clients) -> Result<Source<'a>> {
    match &config.source {
        SourceConfig::Ecr(registry) => {
            let (registry, host) = connect(registry, aws, clients).await?;
            Ok(Source::Ecr(registry, host))
        }
        SourceConfig::Public(_) => {
            let logins = SourceLogins::connect(aws, &clients.stores, &config.source).await?;
            Ok(Source::Public(Box::new(Registries::new(Client::new()?, logins))))
        }
    }
}

/// Connects to an ECR registry, and gets its host.
async fn connect(registry: &RegistryConfig, aws: &SdkConfig, clients: &Clients) -> Result<(Registry, RegistryHost)> {
    let registry = Registry::connect(aws, &clients.stores, registry).await?;
    let host = registry.login().await?.host;
    Ok((registry, host))
}

/// A person who can push to the source decides how much a run copies. `maxImages` and `maxBytes` limit that.
fn check_size(config: &Config, summary: &Summary) -> Result<()> {
    for (unit, found, parameter, limit) in [
        ("images", summary.to_copy as u64, "maxImages", config.max_images),
        ("bytes", summary.bytes, "maxBytes", config.max_bytes),
    ] {
        if let Some(limit) = limit.filter(|&limit| found > limit) {
            return Err(Error::TooMuchToCopy { unit, found, parameter, limit });
        }
    }
    Ok(())
}

async fn write(s3: &aws_sdk_s3::Client, bucket: &str, key: &str, json: Vec<u8>) -> Result<Object> {
    let written = s3
        .put_object()
        .bucket(bucket)
        .key(key)
        .content_type("application/json")
        .body(ByteStream::from(json))
        .send()
        .await
        .map_err(Error::aws("s3:PutObject", format!("{bucket}/{key}")))?;
    let version = written.version_id.unwrap_or_else(|| "null".into());
    Ok(Object { bucket: bucket.to_owned(), key: key.to_owned(), version })
}

/// Serialises a JSON array. Each item is dropped when it is serialised, because all items and the JSON together need too much
/// memory.
fn json_array(items: impl IntoIterator<Item: Serialize>) -> Vec<u8> {
    let mut json = vec![b'['];
    for item in items {
        if json.len() > 1 {
            json.push(b',');
        }
        serde_json::to_writer(&mut json, &item).expect("it has string keys only, and memory does not fail");
    }
    json.push(b']');
    json
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use aws_config::{BehaviorVersion, Region};
    use aws_sdk_ecr::config::{Credentials, SharedCredentialsProvider};
    use aws_sdk_s3::operation::put_object::PutObjectOutput;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use reqwest::StatusCode;
    use serde_json::json;
    use shared::reference::Digest;

    use crate::distribution::tests::{json as answer, serve};

    use super::*;

    fn config(changes: &[(&str, &str)]) -> Config {
        let environment = [("SOURCE_TYPE", "Amazon_ECR"), ("SRC_LIST", "ALL"), ("PLAN_BUCKET", "bucket")];
        Config::read(&environment.iter().chain(changes).copied().collect()).expect("it is complete")
    }

    #[test]
    fn a_run_that_would_exceed_max_images_or_max_bytes_fails() {
        let summary = Summary { to_copy: 3, bytes: 1_000, ..Summary::default() };
        for (variable, value, refused) in [
            ("MAX_IMAGES", "3", false),
            ("MAX_IMAGES", "2", true),
            ("MAX_IMAGES", "0", false),
            ("MAX_BYTES", "1000", false),
            ("MAX_BYTES", "999", true),
        ] {
            let checked = check_size(&config(&[(variable, value)]), &summary);
            assert_eq!(checked.is_err(), refused, "{variable} {value}");
            if let Err(error) = checked {
                assert_eq!(error.name(), "TooMuchToCopy");
                assert!(error.to_string().contains(&format!(" is {value}, but the run would copy ")), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn the_plan_is_an_object_with_the_executions_name() {
        let rule = mock!(aws_sdk_s3::Client::put_object)
            .match_requests(|request| request.bucket() == Some("bucket") && request.key() == Some("plans/run.json"))
            .then_output(|| PutObjectOutput::builder().version_id("v1").build());
        let s3 = mock_client!(aws_sdk_s3, RuleMode::MatchAny, [&rule]);
        let object = write(&s3, "bucket", "plans/run.json", vec![1]).await.expect("it is written");
        let version = "v1".into();
        assert_eq!(object, Object { bucket: "bucket".into(), key: "plans/run.json".into(), version });
        assert_eq!(rule.num_calls(), 1);
    }

    #[test]
    fn a_json_array_is_written_item_by_item() {
        for items in [vec![], vec![1], vec![1, 2]] {
            assert_eq!(json_array(items.clone()), serde_json::to_vec(&items).expect("it is JSON"));
        }
    }

    const HERE: &str = "222222222222.dkr.ecr.us-west-2.amazonaws.com";
    const THERE: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

    /// An AWS with the image `app:1` in us-west-2, and also in us-east-1 if `is_there`, an empty table, and the executions
    /// `running`; with how often the table is read.
    async fn aws(is_there: bool, running: &'static [&'static str]) -> (SdkConfig, Arc<AtomicUsize>) {
        let scans = Arc::new(AtomicUsize::new(0));
        let counted = scans.clone();
        let host = serve(move |request| {
            let header = |name: &str| request.headers()[name].to_str().unwrap_or_default();
            let is_here = header("authorization").contains("/us-west-2/");
            match header("x-amz-target").rsplit('.').next().unwrap_or_default() {
                "GetAuthorizationToken" => {
                    let endpoint = format!("https://{}", if is_here { HERE } else { THERE });
                    let token =
                        json!({ "proxyEndpoint": endpoint, "authorizationToken": "dDprZW4=", "expiresAt": 1_000 });
                    answer(&json!({ "authorizationData": [token] }))
                }
                "DescribeRepositories" => answer(&json!({ "repositories": [{ "repositoryName": "app" }] })),
                "DescribeImages" if is_here || is_there => {
                    let image = json!({ "imageDigest": Digest::of(b"1"), "imageTags": ["1"], "imageSizeInBytes": 5 });
                    answer(&json!({ "imageDetails": [image] }))
                }
                "DescribeImages" => {
                    let mut answer = answer(&json!({ "__type": "RepositoryNotFoundException" }));
                    *answer.status_mut() = StatusCode::BAD_REQUEST;
                    answer
                }
                "Scan" => {
                    counted.fetch_add(1, Ordering::Relaxed);
                    answer(&json!({ "Items": [], "Count": 0, "ScannedCount": 0 }))
                }
                "ListExecutions" => {
                    let execution = |(second, name): (usize, &&str)| {
                        json!({ "executionArn": format!("arn:{name}"), "stateMachineArn": "arn:machine", "name": name,
                            "status": "RUNNING", "startDate": second })
                    };
                    let executions: Vec<_> = running.iter().enumerate().map(execution).collect();
                    answer(&json!({ "executions": executions }))
                }
                "DescribeExecution" => answer(&json!({ "executionArn": "arn", "stateMachineArn": "arn:machine",
                    "status": "RUNNING", "startDate": 0, "input": "{}" })),
                other => unreachable!("{other} is not called"),
            }
        })
        .await;
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("id", "key", None, None, "test")))
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://{host}"))
            .build();
        (config, scans)
    }

    /// Lists as the execution `this`, after the executions `running`; with how often the failing rows were read, and the keys of
    /// the objects that were written.
    async fn listed(
        variables: &[(&str, &str)],
        input: Value,
        is_there: bool,
        running: &'static [&'static str],
    ) -> (Result<Summary>, usize, Vec<String>) {
        let keys = Arc::new(Mutex::new(Vec::new()));
        let seen = keys.clone();
        let put = mock!(aws_sdk_s3::Client::put_object)
            .match_requests(move |request| {
                seen.lock().expect("nothing panics").extend(request.key().map(str::to_owned));
                true
            })
            .then_output(|| PutObjectOutput::builder().build());
        let clients = Clients {
            s3: mock_client!(aws_sdk_s3, RuleMode::MatchAny, [&put]),
            stores: Stores {
                secrets: mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, []),
                ssm: mock_client!(aws_sdk_ssm, RuleMode::MatchAny, []),
                sts: mock_client!(aws_sdk_sts, RuleMode::MatchAny, []),
            },
        };
        let config = config(&[&[("SRC_REGION", "us-west-2")], variables].concat());
        let request = Request { execution: "this".into(), input };
        let (aws, scans) = aws(is_there, running).await;
        let summary = list(&config, &aws, &clients, &request).await;
        let keys = keys.lock().expect("nothing panics").clone();
        (summary, scans.load(Ordering::Relaxed), keys)
    }

    #[tokio::test]
    async fn a_run_of_all_images_writes_the_inventory_and_no_other_run_does() {
        const PLAN: &str = "plans/this.json";
        for (input, is_there, written) in [
            (json!({}), false, vec![inventory::KEY, PLAN]),
            (json!({}), true, vec![inventory::KEY]),
            (json!({ "dryRun": true }), false, vec!["dry-runs/this.json"]),
            (json!({ "srcImageList": "app:1" }), false, vec![PLAN]),
        ] {
            let (summary, _, keys) = listed(&[], input.clone(), is_there, &[]).await;
            summary.expect("both can be listed");
            assert_eq!(keys, written, "{input}");
        }
    }

    #[tokio::test]
    async fn after_a_run_that_may_have_copied_the_inventory_alone_is_written() {
        let put = mock!(aws_sdk_s3::Client::put_object)
            .match_requests(|request| {
                let body = request.body().bytes().and_then(|json| inventory::Inventory::parse(json).ok());
                let image = body.map(|it| it.resolve(&format!("{HERE}/app:1"), inventory::Match::Image));
                request.key() == Some(inventory::KEY) && matches!(image, Some(Ok(inventory::Resolved::Mirrored(_))))
            })
            .then_output(|| PutObjectOutput::builder().build());
        let (aws, scans) = aws(true, &["other", "this"]).await;
        let clients = Clients { s3: mock_client!(aws_sdk_s3, RuleMode::MatchAny, [&put]), stores: Stores::new(&aws) };
        let config = config(&[("SRC_REGION", "us-west-2"), ("IMAGE_TABLE", "t"), ("STATE_MACHINE", "arn:machine")]);
        for (status, output, written) in [
            ("SUCCEEDED", json!(r#"{"done":"1","failed":"0","toCopy":"1"}"#), 1),
            ("SUCCEEDED", json!(r#"{"listed":1,"batches":0}"#), 1),
            ("FAILED", json!(null), 2),
            ("ABORTED", json!(null), 3),
        ] {
            let detail = json!({ "executionArn": "arn:run", "name": "run", "status": status, "output": output });
            let execution = serde_json::from_value(detail).expect("it is an event");
            update_inventory(&config, &aws, &clients, &execution).await.expect("the destination can be listed");
            assert_eq!((put.num_calls(), scans.load(Ordering::Relaxed)), (written, 0), "{status} {output}");
        }
    }

    fn key(object: Option<&Object>) -> Option<&str> {
        object.map(|object| object.key.as_str())
    }

    #[tokio::test]
    async fn a_run_writes_its_plan_a_dry_run_its_report_and_a_run_without_work_nothing() {
        for (input, is_there, plan, report) in [
            (json!({}), false, Some("plans/this.json"), None),
            (json!({ "dryRun": true }), false, None, Some("dry-runs/this.json")),
            (json!({}), true, None, None),
        ] {
            let summary = listed(&[], input.clone(), is_there, &[]).await.0.expect("both can be listed");
            assert_eq!((key(summary.plan.as_ref()), key(summary.dry_run.as_ref())), (plan, report), "{input}");
            assert_eq!((summary.listed, summary.batches), (1, usize::from(plan.is_some())), "{input}");
        }
    }

    #[tokio::test]
    async fn a_source_with_fewer_images_than_it_must_have_fails_the_run() {
        listed(&[("MIN_IMAGES", "1")], json!({}), true, &[]).await.0.expect("it has one");
        let error = listed(&[("MIN_IMAGES", "2")], json!({}), true, &[]).await.0.expect_err("it has one");
        assert_eq!(error.name(), "TooFewImages");
    }

    #[tokio::test]
    async fn failing_rows_are_read_by_a_run_that_may_settle_them_and_by_no_other() {
        let table = [("IMAGE_TABLE", "images")];
        for (input, reads) in [(json!({}), 1), (json!({ "dryRun": true }), 0), (json!({ "srcImageList": "app:1" }), 0)]
        {
            let (summary, scans, _) = listed(&table, input.clone(), true, &[]).await;
            summary.expect("both can be listed");
            assert_eq!(scans, reads, "{input}");
        }
        assert_eq!(listed(&[], json!({}), true, &[]).await.1, 0, "there is no table");
    }

    #[tokio::test]
    async fn an_execution_that_must_wait_lists_nothing_and_says_for_which_one() {
        let machine = [("STATE_MACHINE", "arn:machine")];
        let alone = listed(&machine, json!({}), true, &["this"]).await.0.expect("it runs");
        assert_eq!((alone.listed, alone.left_to, alone.wait), (1, None, None));
        let second = listed(&machine, json!({}), true, &["a", "this"]).await.0.expect("it waits");
        assert_eq!((second.listed, second.wait.map(|wait| wait.execution)), (0, Some("arn:a".into())));
        let third = listed(&machine, json!({}), true, &["a", "b", "this"]).await.0.expect("it ends");
        assert_eq!((third.listed, third.left_to), (0, Some("arn:b".into())));
    }
}
