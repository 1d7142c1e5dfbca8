//! Reads the inventory: of a stack, or from a file.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use aws_sdk_cloudformation::error::ProvideErrorMetadata as _;
use aws_sdk_cloudformation::operation::describe_stacks::DescribeStacksError;
use aws_sdk_cloudformation::types::Stack;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat};
use clap::ValueEnum;
use futures_util::future;
use shared::inventory::{Inventory, KEY, Match, MirroredImage, MirroredRepository};
use shared::reference::ImageReference;
use shared::task::DONE;

use super::files;
use crate::aws::{self, failed};

/// The largest inventory: about 2,000,000 images.
pub const MAX_BYTES: u64 = 256 << 20;

/// How many parts of the table are scanned at once.
const SEGMENTS: i32 = 8;

/// Which inventory is used.
#[derive(Clone, Debug, clap::Args)]
pub struct Source {
    /// The stack that copies the images; default: the variable ECR_TRANSFER_STACK
    #[arg(long, conflicts_with = "inventory")]
    stack: Option<String>,
    /// The stack's region; default: as for the AWS CLI
    #[arg(long, conflicts_with = "inventory")]
    region: Option<String>,
    /// The profile with the credentials; default: as for the AWS CLI
    #[arg(long, conflicts_with = "inventory")]
    profile: Option<String>,
    /// Read the inventory from a file, instead of from the stack; default: the variable ECR_TRANSFER_INVENTORY
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
}

const STACK: &str = "ECR_TRANSFER_STACK";
const INVENTORY: &str = "ECR_TRANSFER_INVENTORY";

/// What an image must have in common with the inventory.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Matching {
    /// Which images count as mirrored. `image`: the tags and digests that the mirror has. `repository`: every tag and digest of
    /// a mirrored repository
    #[arg(long = "match", value_enum, default_value_t = MatchArgument::Image)]
    matching: MatchArgument,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MatchArgument {
    Image,
    Repository,
}

impl Matching {
    /// The value.
    pub fn value(self) -> Match {
        match self.matching {
            MatchArgument::Image => Match::Image,
            MatchArgument::Repository => Match::Repository,
        }
    }
}

impl Source {
    /// Reads the inventory. That of a stack is completed with the images that were copied since it was written.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or it is not valid.
    pub async fn load(&self) -> Result<Inventory> {
        // Options come before variables.
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(file) = &self.inventory {
            of_file(file)
        } else if let Some(stack) = &self.stack {
            self.of_stack(stack).await
        } else if let Some(file) = variable(INVENTORY) {
            of_file(file.as_ref())
        } else if let Some(stack) = variable(STACK) {
            self.of_stack(&stack).await
        } else {
            bail!(
                "Name the stack that copies the images: --stack NAME, or the variable {STACK}. Or name a file: --inventory FILE, or the variable {INVENTORY}."
            )
        }
    }

    async fn of_stack(&self, stack: &str) -> Result<Inventory> {
        let aws = aws::connect(self.region.as_ref(), self.profile.as_ref()).await?;
        let clients = Clients {
            cloudformation: aws_sdk_cloudformation::Client::new(&aws),
            s3: aws_sdk_s3::Client::new(&aws),
            dynamodb: aws_sdk_dynamodb::Client::new(&aws),
        };
        clients.inventory(stack).await
    }
}

fn of_file(file: &Path) -> Result<Inventory> {
    let json = files::read(file, MAX_BYTES);
    json.and_then(|json| Ok(Inventory::parse(&json)?)).with_context(|| file.display().to_string())
}

/// An inventory as it is stored.
pub struct Stored {
    /// The inventory.
    pub json: Vec<u8>,
    /// Differs from that of another inventory.
    pub version: String,
    /// When it was written.
    pub written_at: Option<DateTime>,
}

/// Reads the inventory of a bucket; `None` if it still has the version `known`.
///
/// # Errors
/// If there is none, or it cannot be read.
pub async fn of_bucket(s3: &aws_sdk_s3::Client, bucket: &str, known: Option<&str>) -> Result<Option<Stored>> {
    let answer = s3.get_object().bucket(bucket).key(KEY).set_if_none_match(known.map(Into::into)).send().await;
    let object = match answer {
        Ok(object) => object,
        Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 304) => return Ok(None),
        Err(error) if error.as_service_error().is_some_and(GetObjectError::is_no_such_key) => bail!(
            "The bucket {bucket} has no inventory yet. The stack's next run that is neither a dry run nor a run of other images writes it."
        ),
        Err(error) => {
            // Without s3:ListBucket, S3 also returns 403 for an object that does not exist.
            let is_denied = error.code() == Some("AccessDenied");
            let error = failed("s3:GetObject", &format!("{bucket}/{KEY}"))(error);
            return Err(if is_denied {
                error.context("The permission is missing, or the bucket has no inventory yet")
            } else {
                error
            });
        }
    };
    let json = collected(object.body, MAX_BYTES).await.with_context(|| object_name(bucket))?;
    let version = object.e_tag.unwrap_or_default();
    Ok(Some(Stored { json, version, written_at: object.last_modified }))
}

/// How messages name the inventory of a bucket.
pub fn object_name(bucket: &str) -> String {
    format!("s3://{bucket}/{KEY}")
}

/// The bytes that arrive, whatever their number was said to be.
async fn collected(mut body: ByteStream, limit: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    while let Some(bytes) = body.try_next().await? {
        content.extend_from_slice(&bytes);
        ensure!(content.len() as u64 <= limit, "The object has more than {} MiB, which is not supported", limit >> 20);
    }
    Ok(content)
}

struct Clients {
    cloudformation: aws_sdk_cloudformation::Client,
    s3: aws_sdk_s3::Client,
    dynamodb: aws_sdk_dynamodb::Client,
}

impl Clients {
    async fn inventory(&self, stack: &str) -> Result<Inventory> {
        let Outputs { bucket, table } = self.outputs(stack).await?;
        let stored = of_bucket(&self.s3, &bucket, None).await?;
        let Stored { json, written_at, .. } = stored.context("S3 returned no inventory")?;
        let mut inventory = Inventory::parse(&json).with_context(|| object_name(&bucket))?;
        if let Some(written_at) = written_at {
            for copied in self.copied_since(&table, written_at).await? {
                if copied.destination.registry == *inventory.registry() {
                    inventory.add(copied);
                }
            }
        }
        Ok(inventory)
    }

    async fn outputs(&self, stack: &str) -> Result<Outputs> {
        let answer = self.cloudformation.describe_stacks().stack_name(stack).send().await;
        // CloudFormation has no error of its own for a stack that does not exist. Its only parameter is the name.
        let is_missing = |error: &DescribeStacksError| error.code() == Some("ValidationError");
        let answer = match answer {
            Err(error) if error.as_service_error().is_some_and(is_missing) => {
                bail!(
                    "CloudFormation has no stack {stack} in this account and region. Check --stack, --region and --profile."
                )
            }
            other => other.map_err(failed("cloudformation:DescribeStacks", stack))?,
        };
        let stacks = answer.stacks.unwrap_or_default();
        let outputs = stacks.first().map(Stack::outputs).unwrap_or_default();
        let output = |name: &str| {
            let output = outputs.iter().find(|output| output.output_key() == Some(name));
            output.and_then(|output| output.output_value()).map(str::to_owned).with_context(|| {
                format!(
                    "The stack {stack} has no output {name}. It is not a stack of ecr-transfer, or not yet complete."
                )
            })
        };
        Ok(Outputs { bucket: output("PlanBucket")?, table: output("ImageTable")? })
    }

    /// The images that were copied since the inventory was written.
    async fn copied_since(&self, table: &str, time: DateTime) -> Result<Vec<MirroredRepository>> {
        let time = time.fmt(DateTimeFormat::DateTime).context("S3 returned a time before the year 0")?;
        let segments = (0..SEGMENTS).map(async |segment| {
            let scan = self.dynamodb.scan().table_name(table).segment(segment).total_segments(SEGMENTS);
            let scan = scan
                .filter_expression("#Status = :Done AND LastDoneAt >= :time")
                .projection_expression("#Source, Destination, Digest")
                .expression_attribute_names("#Status", "Status")
                .expression_attribute_names("#Source", "Source")
                .expression_attribute_values(":Done", AttributeValue::S(DONE.into()))
                .expression_attribute_values(":time", AttributeValue::S(time.clone()));
            let rows: Result<Vec<_>, _> = scan.into_paginator().items().send().collect().await;
            rows.map_err(failed("dynamodb:Scan", table))
        });
        let rows = future::try_join_all(segments).await?.into_iter().flatten();
        Ok(rows.filter_map(|row| copied(&row)).collect())
    }
}

struct Outputs {
    bucket: String,
    table: String,
}

/// The image of a row. What is not an image is left out.
fn copied(row: &HashMap<String, AttributeValue>) -> Option<MirroredRepository> {
    let text = |name: &str| row.get(name)?.as_s().ok();
    let source: ImageReference = text("Source")?.parse().ok()?;
    let destination: ImageReference = text("Destination")?.parse().ok()?;
    let image = MirroredImage { tag: destination.tag, digest: text("Digest")?.parse().ok()? };
    Some(MirroredRepository { source: source.repository, destination: destination.repository, images: vec![image] })
}

#[cfg(test)]
mod tests {
    use aws_sdk_cloudformation::error::ErrorMetadata;
    use aws_sdk_cloudformation::operation::describe_stacks::DescribeStacksOutput;
    use aws_sdk_cloudformation::types::builders::OutputBuilder;
    use aws_sdk_cloudformation::types::{Output, StackStatus};
    use aws_sdk_dynamodb::operation::scan::ScanOutput;
    use aws_sdk_s3::operation::get_object::GetObjectOutput;
    use aws_sdk_s3::types::error::NoSuchKey;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};
    use shared::inventory::{Resolved, Writer};
    use shared::reference::Digest;

    use super::*;

    const HOST: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

    fn stack(outputs: &'static [(&'static str, &'static str)]) -> Rule {
        mock!(aws_sdk_cloudformation::Client::describe_stacks)
            .match_requests(|request| request.stack_name() == Some("copies"))
            .then_output(move || {
                let outputs =
                    outputs.iter().map(|(key, value)| Output::builder().output_key(*key).output_value(*value));
                let stack = Stack::builder().stack_name("copies").creation_time(DateTime::from_secs(0));
                let stack = stack.stack_status(StackStatus::CreateComplete);
                let stack = stack.set_outputs(Some(outputs.map(OutputBuilder::build).collect())).build();
                DescribeStacksOutput::builder().stacks(stack).build()
            })
    }

    const COMPLETE: &[(&str, &str)] = &[("PlanBucket", "bucket"), ("ImageTable", "images")];

    /// The inventory as it was written in the second 1,000: with the tag `1` of nginx.
    fn object() -> Rule {
        let mut writer = Writer::new(&HOST.parse().expect("it is a host"));
        writer.add(&MirroredRepository {
            source: "docker.io/library/nginx".parse().expect("it is a repository"),
            destination: format!("{HOST}/nginx").parse().expect("it is a repository"),
            images: vec![MirroredImage { tag: Some("1".parse().expect("it is a tag")), digest: Digest::of(b"1") }],
        });
        let json = writer.finish();
        mock!(aws_sdk_s3::Client::get_object)
            .match_requests(|request| request.bucket() == Some("bucket") && request.key() == Some(KEY))
            .then_output(move || {
                let body = ByteStream::from(json.clone());
                GetObjectOutput::builder().body(body).last_modified(DateTime::from_secs(1_000)).build()
            })
    }

    /// Rows of the table: pairs of source and destination.
    fn rows(rows: &'static [(&'static str, &'static str)]) -> Rule {
        mock!(aws_sdk_dynamodb::Client::scan).then_compute_output(move |request| {
            let values = request.expression_attribute_values().expect("the filter has values");
            assert_eq!(values[":time"], AttributeValue::S("1970-01-01T00:16:40Z".into()));
            assert_eq!(values[":Done"], AttributeValue::S("Done".into()));
            let row = |(source, destination): &(&str, &str)| {
                let digest = Digest::of(source.as_bytes()).to_string();
                let columns = [("Source", *source), ("Destination", *destination), ("Digest", &*digest)];
                columns.map(|(name, value)| (name.to_owned(), AttributeValue::S(value.to_owned()))).into()
            };
            let first = request.segment() == Some(0);
            let items = if first { rows.iter().map(row).collect() } else { Vec::new() };
            ScanOutput::builder().set_items(Some(items)).build()
        })
    }

    async fn inventory(stack: &Rule, object: &Rule, rows: &Rule) -> Result<Inventory> {
        let clients = Clients {
            cloudformation: mock_client!(aws_sdk_cloudformation, RuleMode::MatchAny, [stack]),
            s3: mock_client!(aws_sdk_s3, RuleMode::MatchAny, [object]),
            dynamodb: mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [rows]),
        };
        clients.inventory("copies").await
    }

    async fn error(stack: &Rule, object: &Rule) -> String {
        format!("{:#}", inventory(stack, object, &rows(&[])).await.expect_err("it cannot be read"))
    }

    #[tokio::test]
    async fn the_inventory_of_a_stack_has_what_was_copied_since_it_was_written() {
        let rows = rows(&[
            ("docker.io/library/nginx:2", "111111111111.dkr.ecr.us-east-1.amazonaws.com/nginx:2"),
            ("quay.io/new:1", "111111111111.dkr.ecr.us-east-1.amazonaws.com/new:1"),
            // Of a former destination of the stack, and not valid.
            ("quay.io/old:1", "222222222222.dkr.ecr.us-east-1.amazonaws.com/old:1"),
            ("quay.io/$(id)", "111111111111.dkr.ecr.us-east-1.amazonaws.com/new:1"),
        ]);
        let inventory = inventory(&stack(COMPLETE), &object(), &rows).await.expect("it can be read");
        for (image, mirror) in [("nginx:1", "nginx:1"), ("nginx:2", "nginx:2"), ("quay.io/new:1", "new:1")] {
            let mirror = format!("{HOST}/{mirror}").parse().expect("it is a reference");
            assert_eq!(inventory.resolve(image, Match::Image), Ok(Resolved::Mirrored(mirror)));
        }
        assert!(inventory.resolve("quay.io/old:1", Match::Image).is_err());
        assert_eq!(inventory.count(), (2, 3));
    }

    #[tokio::test]
    async fn an_object_is_read_up_to_the_limit() {
        let object = || ByteStream::from(vec![b' '; 2 << 20]);
        assert_eq!(collected(object(), 2 << 20).await.expect("it is small enough").len(), 2 << 20);
        let error = collected(object(), (2 << 20) - 1).await.expect_err("it is larger").to_string();
        assert_eq!(error, "The object has more than 1 MiB, which is not supported");
    }

    #[tokio::test]
    async fn an_error_says_what_to_do() {
        let no_inventory = mock!(aws_sdk_s3::Client::get_object)
            .then_error(|| GetObjectError::NoSuchKey(NoSuchKey::builder().build()));
        let expected = "The bucket bucket has no inventory yet.";
        assert!(error(&stack(COMPLETE), &no_inventory).await.starts_with(expected));

        let denied = mock!(aws_sdk_s3::Client::get_object).then_error(|| {
            let denied = ErrorMetadata::builder().code("AccessDenied").message("no").build();
            GetObjectError::generic(denied)
        });
        let error_of = error(&stack(COMPLETE), &denied).await;
        assert!(
            error_of.starts_with("The permission is missing, or the bucket has no inventory yet: s3:GetObject"),
            "{error_of}"
        );

        let missing = mock!(aws_sdk_cloudformation::Client::describe_stacks).then_error(|| {
            DescribeStacksError::generic(
                ErrorMetadata::builder().code("ValidationError").message("does not exist").build(),
            )
        });
        assert!(error(&missing, &object()).await.starts_with("CloudFormation has no stack copies"));

        let other = error(&stack(&[("Url", "x")]), &object()).await;
        assert_eq!(
            other,
            "The stack copies has no output PlanBucket. It is not a stack of ecr-transfer, or not yet complete."
        );
    }
}
