//! A client for the local AWS, in the protocols of its services: AWS JSON, Query, and a few REST calls.
//!
//! The SDK has a crate for each service, and this workspace has none of half of the services that are called here. Callers
//! read a few fields of each answer, which is JSON or XML.

use anyhow::{Context as _, Error, Result, bail};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{RequestBuilder, Response, Url};
use serde_json::{Value, json};

/// A client for an account's root in one region.
#[derive(Clone, Debug)]
pub struct Aws {
    http: reqwest::Client,
    endpoint: String,
    account: String,
    region: String,
}

/// The error of a service that refused a request.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {code}: {message} (HTTP {status})")]
struct Refused {
    operation: String,
    code: String,
    message: String,
    status: u16,
}

/// The service's name for an error, if a service refused a request.
pub fn code(error: &Error) -> Option<&str> {
    Some(&error.downcast_ref::<Refused>()?.code)
}

impl Aws {
    pub fn new(endpoint: &str, account: &str, region: &str) -> Result<Self> {
        let [endpoint, account, region] = [endpoint, account, region].map(str::to_owned);
        Ok(Self { http: http_client()?, endpoint, account, region })
    }

    /// Calls a service that speaks AWS JSON: `target` is its `X-Amz-Target`, such as
    /// `AmazonEC2ContainerServiceV20141113.ListTasks`.
    pub async fn json(&self, service: &str, target: &str, body: Value) -> Result<Value> {
        let operation = format!("{service}:{}", target.rsplit('.').next().unwrap_or(target));
        let request = self.http.post(&self.endpoint).header(CONTENT_TYPE, "application/x-amz-json-1.1");
        let request = request.header("x-amz-target", target).body(body.to_string());
        parse(&self.send(service, &operation, request).await?.bytes().await?).context(operation)
    }

    /// Calls a service that answers in pages, and returns the list `field` of all pages.
    pub async fn pages(&self, service: &str, target: &str, mut request: Value, field: &str) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        loop {
            let mut page = self.json(service, target, request.clone()).await?;
            all.extend(page[field].as_array_mut().map(std::mem::take).into_iter().flatten());
            match page["nextToken"].take() {
                Value::Null => return Ok(all),
                token => request["nextToken"] = token,
            }
        }
    }

    /// Calls a service that speaks the Query protocol (IAM, STS, SNS, CloudFormation, EC2). The answer is XML.
    pub async fn query(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let form = Url::parse_with_params("form:", [("Action", action)].iter().chain(parameters))?;
        let request = self.http.post(&self.endpoint).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let request = request.body(form.query().unwrap_or_default().to_owned());
        Ok(self.send(service, &format!("{service}:{action}"), request).await?.text().await?)
    }

    /// Calls a service that speaks REST: gets what is at a path.
    pub async fn get(&self, service: &str, path: &str) -> Result<Value> {
        let operation = format!("{service}: {path}");
        let answer = self.send(service, &operation, self.http.get(format!("{}{path}", self.endpoint))).await?;
        parse(&answer.bytes().await?).context(operation)
    }

    /// Invokes a Lambda function, and waits for its answer.
    pub async fn invoke(&self, function: &str, payload: &Value) -> Result<Value> {
        let url = format!("{}/2015-03-31/functions/{function}/invocations", self.endpoint);
        let answer = self.send("lambda", "lambda:Invoke", self.http.post(url).body(payload.to_string())).await?;
        let has_failed = answer.headers().contains_key("x-amz-function-error");
        let answer = answer.text().await?;
        if has_failed {
            bail!("function {function} failed: {answer}");
        }
        parse(answer.as_bytes()).context("lambda:Invoke")
    }

    pub(crate) async fn create_bucket(&self, name: &str) -> Result<()> {
        let request = self.http.put(format!("{}/{name}", self.endpoint));
        self.send("s3", "s3:CreateBucket", request).await.map(drop)
    }

    /// The content of an object in S3, as text.
    pub async fn object(&self, bucket: &str, key: &str) -> Result<String> {
        let request = self.http.get(format!("{}/{bucket}/{key}", self.endpoint));
        Ok(self.send("s3", "s3:GetObject", request).await?.text().await?)
    }

    async fn send(&self, service: &str, operation: &str, request: RequestBuilder) -> Result<Response> {
        // ministack does not check the signature of an account's root. It only reads the scope.
        let scope = format!("{}/20260101/{}/{service}/aws4_request", self.account, self.region);
        let request = request
            .header(AUTHORIZATION, format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"))
            // The gateway, which this client does not use, adds it, too.
            .header("x-forwarded-proto", "https");
        let response = request.send().await.with_context(|| operation.to_owned())?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let (code, message) = refusal(&response.text().await?);
        Err(Refused { operation: operation.to_owned(), code, message, status: status.as_u16() }.into())
    }
}

/// An HTTP client that talks to this machine directly, even if the environment names a proxy.
pub(crate) fn http_client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().build()
}

/// The text of the first element of that name, at any depth.
pub fn xml_text(document: &str, element: &str) -> Option<String> {
    xml_texts(document, element).into_iter().next()
}

/// The texts of all elements of that name, in the document's order.
pub fn xml_texts(document: &str, element: &str) -> Vec<String> {
    let Ok(document) = roxmltree::Document::parse(document) else { return Vec::new() };
    let elements = document.descendants().filter(|node| node.tag_name().name() == element);
    elements.filter_map(|node| node.text().map(str::to_owned)).collect()
}

/// JSON. Some answers are empty.
fn parse(body: &[u8]) -> serde_json::Result<Value> {
    if body.is_empty() { Ok(json!({})) } else { serde_json::from_slice(body) }
}

/// The code and the message of an error, in either protocol.
fn refusal(body: &str) -> (String, String) {
    if let Ok(answer) = serde_json::from_str::<Value>(body) {
        let text = |names: &[&str]| names.iter().find_map(|name| answer[name].as_str()).unwrap_or_default().to_owned();
        let code = text(&["__type", "code", "Code", "Type"]);
        let code = code.rsplit('#').next().unwrap_or_default().to_owned();
        return (code, text(&["message", "Message", "errorMessage"]));
    }
    let code = xml_text(body, "Code").unwrap_or_else(|| "Unknown".to_owned());
    (code, xml_text(body, "Message").unwrap_or_else(|| body.chars().take(500).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_in_both_protocols() {
        let json = r#"{"__type":"com.amazonaws#AccessDeniedException","message":"no"}"#;
        assert_eq!(refusal(json), ("AccessDeniedException".into(), "no".into()));
        let xml = r#"<ErrorResponse xmlns="x"><Error><Code>NoSuchEntity</Code><Message>none</Message></Error></ErrorResponse>"#;
        assert_eq!(refusal(xml), ("NoSuchEntity".into(), "none".into()));
        assert_eq!(refusal("Bad Gateway").1, "Bad Gateway");
    }
}
