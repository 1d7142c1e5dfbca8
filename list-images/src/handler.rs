//! Lists the source for one execution, compares it with the destination, and writes the plan.

use aws_config::SdkConfig;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::future;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::config::{Environment, RegistryConfig, SourceConfig};
use shared::credentials::Stores;
use shared::ecr::Registry;
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
#[derive(Debug, Deserialize)]
pub struct Request {
    /// The execution's name.
    pub execution: String,
    /// The execution's input.
    #[serde(default)]
    pub input: Value,
}

/// The clients of AWS's services.
pub struct Clients {
    s3: aws_sdk_s3::Client,
    dynamodb: aws_sdk_dynamodb::Client,
    sfn: aws_sdk_sfn::Client,
    stores: Stores,
}

impl Clients {
    /// Clients with the Lambda's role.
    pub fn new(aws: &SdkConfig) -> Self {
        Self {
            s3: aws_sdk_s3::Client::new(aws),
            dynamodb: aws_sdk_dynamodb::Client::new(aws),
            sfn: aws_sdk_sfn::Client::new(aws),
            stores: Stores::new(aws),
        }
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
    match whose_turn(config, clients, request, &input).await? {
        Turn::Now => {}
        Turn::LeftTo(execution) => {
            tracing::info!(execution, "a waiting execution copies the same images");
            return Ok(Summary { left_to: Some(execution), ..Summary::default() });
        }
        Turn::Wait(wait) => {
            tracing::info!(execution = wait.execution, "waiting for an active execution");
            return Ok(Summary { wait: Some(wait), ..Summary::default() });
        }
    }
    let (failing_rows, source, (destination, host)) = future::try_join3(
        read_failing_rows(config, clients, &input),
        connect_source(config, aws, clients),
        connect(&config.destination, aws, clients),
    )
    .await?;
    let selection = input::select(config, &input, &clients.stores.ssm, source.host()).await?;
    let (source, destination, explain) = (&source, &destination, input.dry_run);
    let comparison = Comparison { config, source, destination, host: &host, failing_rows: &failing_rows, explain };
    let mut diff = comparison.run(selection).await?;
    let mut summary = std::mem::take(&mut diff.summary);
    if summary.listed < config.min_images {
        return Err(Error::TooFewImages { listed: summary.listed, minimum: config.min_images });
    }

    let bucket = &config.plan_bucket;
    if input.dry_run {
        let key = format!("dry-runs/{}.json", request.execution);
        summary.dry_run = Some(write(&clients.s3, bucket, &key, dry_run::report(diff.decisions)).await?);
    } else {
        check_size(config, &summary)?;
        let batches = batches::pack(diff.into_work(&host), &config.packing);
        summary.batches = batches.len();
        if summary.batches > 0 {
            let key = format!("plans/{}.json", request.execution);
            summary.plan = Some(write(&clients.s3, bucket, &key, batches).await?);
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

/// Emits the counts of a run as metrics, unless it is a dry run or waits for another execution.
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

async fn whose_turn(config: &Config, clients: &Clients, request: &Request, input: &Input) -> Result<Turn> {
    match &config.state_machine {
        Some(state_machine) => turn::take(&clients.sfn, state_machine, &request.execution, input).await,
        None => Ok(Turn::Now),
    }
}

/// A run of other images cannot decide which rows are outdated, so it reads none.
async fn read_failing_rows(config: &Config, clients: &Clients, input: &Input) -> Result<FailingRows> {
    match &config.image_table {
        Some(table) if !input.dry_run && input.src_image_list.is_none() => {
            FailingRows::read(&clients.dynamodb, table).await
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

async fn write(
    s3: &aws_sdk_s3::Client,
    bucket: &str,
    key: &str,
    items: impl IntoIterator<Item: Serialize>,
) -> Result<Object> {
    let written = s3
        .put_object()
        .bucket(bucket)
        .key(key)
        .content_type("application/json")
        .body(ByteStream::from(json_array(items)))
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
    use aws_sdk_s3::operation::put_object::PutObjectOutput;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};

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
        let object = write(&s3, "bucket", "plans/run.json", [1, 2]).await.expect("it is written");
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
}
