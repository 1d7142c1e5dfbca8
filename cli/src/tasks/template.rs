//! Templates whose code is in S3, which CloudFormation can deploy.

use std::path::Path;
use std::time::Duration;

use aws_sdk_cloudformation::types::{Capability, TemplateStage};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use fs_err as fs;
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use shared::Error as AwsError;

use super::{Account, Error, Result, Task, Template};

/// [CloudFormation's quota](https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html) for a
/// template in S3. One in the request has at most 51,200 bytes, which is too little for this project's.
const MAX_BYTES: usize = 1_000_000;

/// A template whose code is in S3.
#[derive(Clone, Debug)]
pub struct Package {
    template: Template,
    body: String,
    /// Where the code of one of its functions is.
    code: Object,
    /// Where the template is, if it is in S3 already.
    url: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    bucket: String,
    key: String,
}

impl Package {
    /// Parses a template.
    ///
    /// # Errors
    /// If it is not a template, or its code is not in S3.
    fn parse(body: String) -> Result<Self> {
        let template = Template::parse(&body)?;
        let code = code(template.document())?;
        Ok(Self { template, body, code, url: None })
    }

    /// What it says about parameters.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// What a person who deploys the template must acknowledge: it has roles without names of their own, and transforms.
    /// <https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_CreateStack.html>
    pub(super) fn capabilities(&self) -> Vec<Capability> {
        let has_transform = !self.template.document()["Transform"].is_null();
        let expand = has_transform.then_some(Capability::CapabilityAutoExpand);
        [Capability::CapabilityIam].into_iter().chain(expand).collect()
    }
}

/// Where the code of the functions is.
fn code(template: &Json) -> Result<Object> {
    let mut found = None;
    for (name, resource) in template["Resources"].as_object().into_iter().flatten() {
        let properties = &resource["Properties"];
        let object = match resource["Type"].as_str() {
            Some("AWS::Serverless::Function") => match &properties["CodeUri"] {
                Json::String(url) => object_of_url(url),
                code => object(&code["Bucket"], &code["Key"]),
            },
            Some("AWS::Lambda::Function") => object(&properties["Code"]["S3Bucket"], &properties["Code"]["S3Key"]),
            _ => continue,
        };
        let Some(object) = object else {
            return Err(Error::Rejected(format!(
                "The code of {name} in the template is not in S3. `make publish BUCKET=name` uploads it, and prints a URL for \
                 --template."
            )));
        };
        found = Some(object);
    }
    found.ok_or_else(|| Error::Rejected("The template has no functions, so it is not one of ecr-transfer.".into()))
}

fn object(bucket: &Json, key: &Json) -> Option<Object> {
    Some(Object { bucket: bucket.as_str()?.to_owned(), key: key.as_str()?.to_owned() })
}

/// The object of an `s3://` URL, or of one with the bucket in its host or path:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html>
fn object_of_url(url: &str) -> Option<Object> {
    let (scheme, rest) = url.split_once("://")?;
    let (host, path) = rest.split_once('/')?;
    let (bucket, key) = match (scheme, host.split_once(".s3.").or_else(|| host.split_once(".s3-"))) {
        ("s3", _) => (host, path),
        ("https", Some((bucket, _))) => (bucket, path),
        ("https", None) => path.split_once('/')?,
        _ => return None,
    };
    (!bucket.is_empty() && !key.is_empty()).then(|| Object { bucket: bucket.into(), key: key.into() })
}

impl Account {
    /// The template at a URL in S3 (`https://…`, as `make publish` prints it, or `s3://…`), or in a file.
    ///
    /// # Errors
    /// If it cannot be read, or its code is not in S3.
    pub async fn package(&self, location: &str) -> Result<Package> {
        if !location.contains("://") {
            let body = fs::read_to_string(Path::new(location)).map_err(|error| Error::Rejected(error.to_string()))?;
            return Package::parse(body);
        }
        let object = object_of_url(location).ok_or_else(|| {
            Error::Rejected(format!(
                "{location:?} is not the URL of a template in S3, such as https://s3.us-east-1.amazonaws.com/bucket/key."
            ))
        })?;
        let package = Package::parse(self.read_template(&object).await?)?;
        let url = if location.starts_with("https:") { location.to_owned() } else { self.url(&object).await? };
        Ok(Package { url: Some(url), ..package })
    }

    async fn read_template(&self, object: &Object) -> Result<String> {
        let Object { bucket, key } = object;
        let failed =
            |problem: String| Error::Rejected(format!("The template s3://{bucket}/{key} cannot be read: {problem}"));
        let answer = self.s3.get_object().bucket(bucket).key(key).send().await;
        let answer = answer.map_err(AwsError::aws("s3:GetObject", format!("{bucket}/{key}")))?;
        if answer.content_length.is_none_or(|length| usize::try_from(length).is_ok_and(|it| it > MAX_BYTES)) {
            return Err(failed(format!("it has more than {MAX_BYTES} bytes.")));
        }
        let body = answer.body.collect().await.map_err(|error| failed(error.to_string()))?;
        String::from_utf8(body.to_vec()).map_err(|error| failed(error.to_string()))
    }

    /// The template of a task, as it was deployed.
    ///
    /// # Errors
    /// If a permission is missing.
    pub async fn package_of(&self, task: &Task) -> Result<Package> {
        let request = self.cloudformation.get_template().stack_name(&task.id).template_stage(TemplateStage::Original);
        let answer = request.send().await.map_err(AwsError::aws("cloudformation:GetTemplate", &task.name))?;
        Package::parse(answer.template_body.unwrap_or_default())
    }

    /// The template of the task that was changed last.
    ///
    /// # Errors
    /// If there is no task in this region.
    pub async fn latest_package(&self) -> Result<Package> {
        let tasks = self.tasks().await?;
        let latest =
            tasks.iter().filter(|task| task.is_complete()).max_by_key(|task| task.updated_at.or(task.created_at));
        match latest {
            Some(task) => self.package_of(task).await,
            None => Err(Error::Rejected(format!(
                "There is no task in {} whose template could be used. Name one with --template: `make publish BUCKET=name` in \
                 a clone of ecr-transfer uploads it to a bucket in {}, and prints its URL.",
                self.region, self.region
            ))),
        }
    }

    /// The URL of a package's template. If it is not in S3, it is uploaded beside its code.
    pub(super) async fn upload(&self, package: &Package) -> Result<String> {
        if let Some(url) = &package.url {
            return Ok(url.clone());
        }
        if package.body.len() > MAX_BYTES {
            return Err(Error::Rejected(format!("The template has more than {MAX_BYTES} bytes.")));
        }
        let directory =
            package.code.key.rsplit_once('/').map(|(directory, _)| format!("{directory}/")).unwrap_or_default();
        let key = format!("{directory}{}.template", hex::encode(Sha256::digest(&package.body)));
        let object = Object { bucket: package.code.bucket.clone(), key };
        let body = ByteStream::from(package.body.clone().into_bytes());
        let put = self.s3.put_object().bucket(&object.bucket).key(&object.key).body(body);
        put.send().await.map_err(AwsError::aws("s3:PutObject", format!("{}/{}", object.bucket, object.key)))?;
        self.url(&object).await
    }

    /// The URL of an object, whose host depends on the partition. Only the SDK knows it, for its own requests.
    async fn url(&self, object: &Object) -> Result<String> {
        let failed = |error: &dyn std::fmt::Display| Error::Rejected(format!("The template has no URL: {error}"));
        let config = PresigningConfig::expires_in(Duration::from_secs(60)).map_err(|error| failed(&error))?;
        let request = self.s3.get_object().bucket(&object.bucket).key(&object.key).presigned(config).await;
        let request = request.map_err(AwsError::aws("s3:GetObject", format!("{}/{}", object.bucket, object.key)))?;
        Ok(request.uri().split('?').next().unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use aws_sdk_s3::operation::get_object::GetObjectOutput;
    use aws_sdk_s3::operation::put_object::PutObjectOutput;
    use aws_smithy_mocks::mock;

    use super::super::account::tests::account;
    use super::*;

    /// The smallest template: its parameters and one function.
    pub const SMALL: &str = r#"{"Transform": "AWS::Serverless-2016-10-31",
        "Parameters": {"srcList": {"Type": "String", "Default": "ALL"}, "paused": {"Type": "String", "Default": "false"}},
        "Resources": {"F": {"Type": "AWS::Serverless::Function", "Properties": {"CodeUri": "s3://code/some/key"}}}}"#;

    fn code_of(properties: &str, kind: &str) -> Result<Object> {
        let template =
            format!("Resources: {{F: {{Type: 'AWS::{kind}::Function', Properties: {properties}}}}}\nParameters: {{}}");
        Ok(Package::parse(template)?.code)
    }

    #[test]
    fn the_code_is_where_sam_or_the_published_template_says() {
        let expected = Object { bucket: "b".into(), key: "p/k".into() };
        for (properties, kind) in [
            ("{CodeUri: 's3://b/p/k'}", "Serverless"),
            ("{CodeUri: {Bucket: b, Key: p/k}}", "Serverless"),
            ("{Code: {S3Bucket: b, S3Key: p/k}}", "Lambda"),
        ] {
            assert_eq!(code_of(properties, kind).expect("it is in S3"), expected, "{properties}");
        }
        let error = code_of("{CodeUri: .}", "Serverless").expect_err("it is not in S3").to_string();
        assert!(error.starts_with("The code of F in the template is not in S3. `make publish"), "{error}");
        assert!(code_of("{}", "Other").is_err());
    }

    #[test]
    fn a_url_names_a_bucket_in_its_host_or_path() {
        for url in [
            "s3://b/p/k",
            "https://s3.us-east-1.amazonaws.com/b/p/k",
            "https://b.s3.cn-north-1.amazonaws.com.cn/p/k",
            "https://b.s3-us-west-2.amazonaws.com/p/k",
            "https://127.0.0.1:4566/b/p/k",
        ] {
            assert_eq!(object_of_url(url), Some(Object { bucket: "b".into(), key: "p/k".into() }), "{url}");
        }
        for url in ["https://s3.amazonaws.com/b", "ftp://b/k", "s3://b", "s3:///k", "template.yaml"] {
            assert_eq!(object_of_url(url), None, "{url}");
        }
    }

    #[tokio::test]
    async fn a_template_of_a_file_is_uploaded_beside_its_code_and_one_in_s3_is_not() {
        let put = mock!(aws_sdk_s3::Client::put_object)
            .match_requests(|request| {
                request.bucket() == Some("code")
                    && request.key().is_some_and(|key| key.starts_with("some/") && key.len() == 5 + 64 + 9)
            })
            .then_output(|| PutObjectOutput::builder().build());
        let get = mock!(aws_sdk_s3::Client::get_object).then_output(|| GetObjectOutput::builder().build());
        let account = account(&[&put, &get]);
        let directory = tempfile::tempdir().expect("it can be made");
        let file = directory.path().join("template.json");
        fs::write(&file, SMALL).expect("it can be written");
        let package = account.package(&file.display().to_string()).await.expect("it is a package");
        assert_eq!(package.capabilities(), [Capability::CapabilityIam, Capability::CapabilityAutoExpand]);
        let url = account.upload(&package).await.expect("it is uploaded");
        assert!(url.starts_with("https://") && url.ends_with(".template") && url.contains("/some/"), "{url}");
        assert_eq!(put.num_calls(), 1);

        let there = Package { url: Some("https://there".into()), ..package };
        assert_eq!(account.upload(&there).await.expect("it is there"), "https://there");
        assert_eq!(put.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_template_in_s3_is_read_unless_it_is_too_large() {
        let get = |length: i64| {
            mock!(aws_sdk_s3::Client::get_object)
                .match_requests(|request| (request.bucket(), request.key()) == (Some("b"), Some("k")))
                .then_output(move || {
                    GetObjectOutput::builder()
                        .content_length(length)
                        .body(ByteStream::from_static(SMALL.as_bytes()))
                        .build()
                })
        };
        let url = "https://s3.us-east-1.amazonaws.com/b/k";
        let small = get(100);
        let package = account(&[&small]).package(url).await.expect("it is a package");
        assert_eq!(package.url.as_deref(), Some(url));
        let large = get(1_000_001);
        let error = account(&[&large]).package(url).await.expect_err("it is too large").to_string();
        assert_eq!(error, "The template s3://b/k cannot be read: it has more than 1000000 bytes.");
        assert!(account(&[]).package("ftp://x/y").await.is_err());
    }
}
