//! The inventory that the webhook uses: the last good one of an object in S3, or of a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use aws_sdk_s3::operation::get_object::GetObjectError;
use fs_err::tokio as fs;
use shared::Error;
use shared::inventory::{Inventory, KEY};
use shared::reference::Digest;
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;

use super::metrics::Metrics;

/// An inventory of 100,000 images has about 15 MB.
const LIMIT: i64 = 256 << 20;

/// Where the inventory is.
pub enum Source {
    /// The object [`KEY`] of a bucket.
    Bucket(aws_sdk_s3::Client, String),
    /// A file.
    File(PathBuf),
}

/// Reads the inventory again and again.
pub struct Feed {
    source: Source,
    /// The ETag of the inventory in use, or the digest of the file.
    version: Mutex<Option<String>>,
    latest: watch::Sender<Option<Arc<Inventory>>>,
}

struct Content {
    version: String,
    written_at: SystemTime,
    json: Vec<u8>,
}

impl Feed {
    /// A feed that has not read anything yet.
    pub fn new(source: Source) -> Self {
        Self { source, version: Mutex::default(), latest: watch::Sender::default() }
    }

    /// The inventory in use; `None` until the first one was read.
    pub fn latest(&self) -> Option<Arc<Inventory>> {
        self.latest.borrow().clone()
    }

    /// Uses the inventory of the source if there is another one.
    ///
    /// # Errors
    /// If it cannot be read. The one in use stays.
    pub async fn refresh(&self, metrics: &Metrics) -> Result<()> {
        let result = self.read(metrics).await;
        metrics.inventory_read(result.is_ok());
        result
    }

    async fn read(&self, metrics: &Metrics) -> Result<()> {
        let mut version = self.version.lock().await;
        let content = match &self.source {
            Source::Bucket(client, bucket) => of_bucket(client, bucket, version.as_deref()).await?,
            Source::File(file) => of_file(file, version.as_deref()).await?,
        };
        let Some(content) = content else { return Ok(()) };
        // Parsing a large inventory takes a second of one core, and the requests of that second must be answered.
        let parsed = spawn_blocking(move || {
            let inventory = Inventory::parse(&content.json)?;
            let (repositories, images) = inventory.count();
            anyhow::Ok((inventory, repositories, images))
        });
        let (inventory, repositories, images) = parsed.await?.with_context(|| self.source.name())?;
        metrics.inventory_replaced(content.written_at, repositories, images);
        tracing::info!(repositories, images, "A new inventory is in use");
        self.latest.send_replace(Some(Arc::new(inventory)));
        *version = Some(content.version);
        Ok(())
    }
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Bucket(_, bucket) => format!("s3://{bucket}/{KEY}"),
            Self::File(file) => file.display().to_string(),
        }
    }
}

/// `None` if it has this version.
async fn of_bucket(client: &aws_sdk_s3::Client, bucket: &str, version: Option<&str>) -> Result<Option<Content>> {
    let answer = client.get_object().bucket(bucket).key(KEY).set_if_none_match(version.map(Into::into)).send().await;
    let object = match answer {
        Ok(object) => object,
        Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 304) => return Ok(None),
        Err(error) if error.as_service_error().is_some_and(GetObjectError::is_no_such_key) => anyhow::bail!(
            "The bucket {bucket} has no inventory yet. The next run that is neither a dry run nor a run of other images writes it."
        ),
        Err(error) => return Err(Error::aws("s3:GetObject", format!("{bucket}/{KEY}"))(error).into()),
    };
    let length = object.content_length.unwrap_or_default();
    ensure!(length <= LIMIT, "s3://{bucket}/{KEY} has {length} bytes, more than {LIMIT}");
    let written_at = object.last_modified.and_then(|time| time.try_into().ok()).unwrap_or_else(SystemTime::now);
    let version = object.e_tag.unwrap_or_default();
    let json = object.body.collect().await.with_context(|| format!("Reading s3://{bucket}/{KEY}"))?.to_vec();
    Ok(Some(Content { version, written_at, json }))
}

/// `None` if it has this version.
async fn of_file(file: &PathBuf, version: Option<&str>) -> Result<Option<Content>> {
    let json = fs::read(file).await?;
    let digest = Digest::of(&json).to_string();
    if version == Some(&digest) {
        return Ok(None);
    }
    let written_at = fs::metadata(file).await?.modified()?;
    Ok(Some(Content { version: digest, written_at, json }))
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::Client;
    use aws_sdk_s3::operation::get_object::GetObjectOutput;
    use aws_sdk_s3::primitives::ByteStream;
    use aws_sdk_s3::types::error::NoSuchKey;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};
    use shared::inventory::Writer;

    use super::*;

    fn object(etag: &'static str, host: &str) -> Rule {
        let json = Writer::new(&host.parse().expect("it is a host")).finish();
        mock!(Client::get_object).match_requests(|request| request.key() == Some(KEY)).then_output(move || {
            let length = json.len() as i64;
            GetObjectOutput::builder().e_tag(etag).content_length(length).body(ByteStream::from(json.clone())).build()
        })
    }

    fn registry(feed: &Feed) -> Option<String> {
        feed.latest().map(|inventory| inventory.registry().to_string())
    }

    #[tokio::test]
    async fn an_object_is_read_again_only_if_it_changed_and_a_failure_changes_nothing() {
        let missing =
            || mock!(Client::get_object).then_error(|| GetObjectError::NoSuchKey(NoSuchKey::builder().build()));
        let unchanged = || {
            let conditional = mock!(Client::get_object).match_requests(|request| request.if_none_match() == Some("1"));
            conditional.sequence().http_status(304, None).build()
        };
        let huge = mock!(Client::get_object)
            .then_output(|| GetObjectOutput::builder().e_tag("2").content_length(LIMIT + 1).build());
        let (first, second) = (object("1", "first.example"), object("3", "second.example"));
        let rules = [missing(), first, unchanged(), missing(), huge, unchanged(), second];
        let client = mock_client!(aws_sdk_s3, RuleMode::Sequential, rules.each_ref());
        let (feed, metrics) = (Feed::new(Source::Bucket(client, "plans".into())), Metrics::new());

        let error = feed.refresh(&metrics).await.expect_err("there is none yet");
        assert!(error.to_string().starts_with("The bucket plans has no inventory yet."), "{error:#}");
        assert_eq!(registry(&feed), None);
        for (problem, host) in [
            (None, "first.example"),
            (None, "first.example"),
            (Some("no inventory"), "first.example"),
            (Some("has 268435457 bytes, more than 268435456"), "first.example"),
            (None, "first.example"),
            (None, "second.example"),
        ] {
            let result = feed.refresh(&metrics).await.map_err(|error| format!("{error:#}"));
            match problem {
                Some(problem) => assert!(result.as_ref().is_err_and(|error| error.contains(problem)), "{result:?}"),
                None => assert_eq!(result, Ok(())),
            }
            assert_eq!(registry(&feed).as_deref(), Some(host));
        }
    }
}
