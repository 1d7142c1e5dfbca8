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
    let repositories = source.repositories(selection).await?;
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
