//! The inventory that the webhook uses: the last good one of an object in S3, or of a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use fs_err as fs;
use shared::inventory::Inventory;
use shared::reference::Digest;
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;

use super::metrics::Metrics;
use crate::mirror::files::read_regular;
use crate::mirror::inventory::{MAX_BYTES, Stored, object_name, of_bucket};

/// Where the inventory is.
pub enum Source {
    /// The object [`KEY`](shared::inventory::KEY) of a bucket.
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
        let stored = match &self.source {
            Source::Bucket(client, bucket) => of_bucket(client, bucket, version.as_deref()).await?,
            Source::File(file) => {
                let (file, version) = (file.clone(), version.clone());
                spawn_blocking(move || of_file(&file, version.as_deref())).await?.with_context(|| self.source.name())?
            }
        };
        let Some(Stored { json, version: new, written_at }) = stored else { return Ok(()) };
        // Parsing a large inventory takes a second of one core, and the requests of that second must be answered.
        let parsed = spawn_blocking(move || {
            let inventory = Inventory::parse(&json)?;
            let (repositories, images) = inventory.count();
            anyhow::Ok((inventory, repositories, images))
        });
        let (inventory, repositories, images) = parsed.await?.with_context(|| self.source.name())?;
        let written_at = written_at.and_then(|time| time.try_into().ok()).unwrap_or_else(SystemTime::now);
        metrics.inventory_replaced(written_at, repositories, images);
        tracing::info!(repositories, images, "A new inventory is in use");
        self.latest.send_replace(Some(Arc::new(inventory)));
        *version = Some(new);
        Ok(())
    }
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Bucket(_, bucket) => object_name(bucket),
            Self::File(file) => file.display().to_string(),
        }
    }
}

/// `None` if it has this version.
fn of_file(file: &Path, version: Option<&str>) -> Result<Option<Stored>> {
    let json = read_regular(file, MAX_BYTES)?;
    let digest = Digest::of(&json).to_string();
    if version == Some(&digest) {
        return Ok(None);
    }
    let written_at = fs::metadata(file)?.modified()?;
    Ok(Some(Stored { json, version: digest, written_at: Some(written_at.into()) }))
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::Client;
    use aws_sdk_s3::error::ErrorMetadata;
    use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
    use aws_sdk_s3::primitives::ByteStream;
    use aws_sdk_s3::types::error::NoSuchKey;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};
    use shared::inventory::{KEY, Writer};

    use super::*;

    fn object(etag: &'static str, host: &str) -> Rule {
        let json = Writer::new(&host.parse().expect("it is a host")).finish();
        mock!(Client::get_object)
            .match_requests(|request| request.key() == Some(KEY))
            .then_output(move || GetObjectOutput::builder().e_tag(etag).body(ByteStream::from(json.clone())).build())
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
        let broken = mock!(Client::get_object)
            .then_output(|| GetObjectOutput::builder().e_tag("2").body(ByteStream::from_static(b"{")).build());
        let denied = mock!(Client::get_object).then_error(|| {
            GetObjectError::generic(ErrorMetadata::builder().code("AccessDenied").message("because").build())
        });
        let (first, second) = (object("1", "first.example"), object("3", "second.example"));
        let rules = [missing(), first, unchanged(), missing(), broken, denied, unchanged(), second];
        let client = mock_client!(aws_sdk_s3, RuleMode::Sequential, rules.each_ref());
        let (feed, metrics) = (Feed::new(Source::Bucket(client, "plans".into())), Metrics::new());

        let error = feed.refresh(&metrics).await.expect_err("there is none yet");
        assert!(error.to_string().starts_with("The bucket plans has no inventory yet."), "{error:#}");
        assert_eq!(registry(&feed), None);
        for (problem, host) in [
            (None, "first.example"),
            (None, "first.example"),
            (Some("no inventory"), "first.example"),
            (Some("s3://plans/inventory/latest.json: this is not an inventory"), "first.example"),
            (
                Some("no inventory yet: s3:GetObject on plans/inventory/latest.json failed: AccessDenied: because"),
                "first.example",
            ),
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

    #[tokio::test]
    async fn a_file_that_never_ends_is_refused() {
        let (feed, metrics) = (Feed::new(Source::File("/dev/zero".into())), Metrics::new());
        let error = feed.refresh(&metrics).await.expect_err("it is a device");
        assert_eq!(format!("{error:#}"), "/dev/zero: It is not a regular file");
    }
}
