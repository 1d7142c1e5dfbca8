//! A client for the local AWS: signed requests in the three protocols that its services speak.
//!
//! The SDK has a crate for each service, and each takes longer to compile than all of this crate. What is asked here is
//! little, and answers are looked at as they come, so JSON values and XML text do.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use http::{HeaderName, HeaderValue, Method, Request};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// A client with one identity in one region.
#[derive(Clone, Debug)]
pub struct Aws {
    http: reqwest::Client,
    endpoint: String,
    credentials: Credentials,
    region: String,
}

impl Aws {
    /// A client for `endpoint`. An access key id of twelve digits is the root of that account, whatever the secret.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn new(endpoint: &str, access_key_id: &str, secret: &str, region: &str) -> Result<Self> {
        Ok(Self {
            http: http_client()?,
            endpoint: endpoint.to_owned(),
            credentials: Credentials::new(access_key_id, secret, None, None, "local"),
            region: region.to_owned(),
        })
    }

    /// The region that requests go to.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Calls a service that speaks AWS JSON: `target` is its `X-Amz-Target`, such as
    /// `AmazonEC2ContainerServiceV20141113.ListTasks`.
    ///
    /// # Errors
    /// [`Error::Aws`] with the service's own code and message.
    pub async fn json(&self, service: &str, target: &str, body: Value) -> Result<Value> {
        let operation = format!("{service}:{}", target.rsplit('.').next().unwrap_or(target));
        let version = if matches!(service, "dynamodb" | "states") { "1.0" } else { "1.1" };
        let headers =
            [("content-type", format!("application/x-amz-json-{version}")), ("x-amz-target", target.to_owned())];
        let answer = self.send(service, &operation, Method::POST, "/", &headers, body.to_string().into()).await?;
        parse_json(&operation, &answer.body)
    }

    /// Calls a service that speaks JSON, and answers in pages that end with a `nextToken`: all that the pages have in the
    /// list `field`.
    ///
    /// # Errors
    /// [`Error::Aws`] with the service's own code and message.
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
    ///
    /// # Errors
    /// [`Error::Aws`] with the service's own code and message.
    pub async fn query(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let version = match service {
            "cloudformation" => "2010-05-15",
            "ec2" => "2016-11-15",
            "monitoring" => "2010-08-01",
            "iam" => "2010-05-08",
            "sns" => "2010-03-31",
            "sts" => "2011-06-15",
            _ => return Err(Error::Unexpected(format!("{service} does not speak the Query protocol"))),
        };
        let mut form = reqwest::Url::parse("form:").map_err(|error| Error::Unexpected(error.to_string()))?;
        form.query_pairs_mut().append_pair("Action", action).append_pair("Version", version).extend_pairs(parameters);
        let body = form.query().unwrap_or_default().as_bytes().to_vec();
        let headers = [("content-type", "application/x-www-form-urlencoded".to_owned())];
        let operation = format!("{service}:{action}");
        let answer = self.send(service, &operation, Method::POST, "/", &headers, body).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Invokes a Lambda function, by name or ARN, and waits for its answer.
    ///
    /// # Errors
    /// [`Error::Function`] if the function itself fails.
    pub async fn invoke(&self, function: &str, payload: &Value) -> Result<Value> {
        self.invoke_as("RequestResponse", function, payload).await
    }

    /// Hands an event to a Lambda function without waiting for what it makes of it, as EventBridge does.
    ///
    /// # Errors
    /// If the event is not accepted.
    pub async fn invoke_async(&self, function: &str, payload: &Value) -> Result<()> {
        self.invoke_as("Event", function, payload).await.map(drop)
    }

    async fn invoke_as(&self, kind: &str, function: &str, payload: &Value) -> Result<Value> {
        let name = function.split(":function:").last().unwrap_or(function);
        let path = format!("/2015-03-31/functions/{name}/invocations");
        let headers = [("x-amz-invocation-type", kind.to_owned())];
        let answer =
            self.send("lambda", "lambda:Invoke", Method::POST, &path, &headers, payload.to_string().into()).await?;
        if answer.function_error {
            let payload = String::from_utf8_lossy(&answer.body).into_owned();
            return Err(Error::Function { function: name.to_owned(), payload });
        }
        parse_json("lambda:Invoke", &answer.body)
    }

    /// Creates an S3 bucket; one that exists already is fine.
    ///
    /// # Errors
    /// [`Error::Aws`] with the service's own code and message.
    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        self.send("s3", "s3:CreateBucket", Method::PUT, &format!("/{name}"), &[], Vec::new()).await.map(drop)
    }

    /// The content of an object in S3, as text.
    ///
    /// # Errors
    /// [`Error::Aws`] with the service's own code and message.
    pub async fn object(&self, bucket: &str, key: &str) -> Result<String> {
        let answer = self.send("s3", "s3:GetObject", Method::GET, &format!("/{bucket}/{key}"), &[], Vec::new()).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    async fn send(
        &self,
        service: &str,
        operation: &str,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        let unusable = |error: &dyn std::error::Error| Error::Unexpected(format!("{operation}: {error}"));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint))
            .body(body)
            .map_err(|error| unusable(&error))?;
        // It comes from behind the gateway, by a way that nobody else can see.
        request.headers_mut().insert("x-forwarded-proto", HeaderValue::from_static("https"));
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|error| unusable(&error))?;
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }

        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(service)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| unusable(&error))?
            .into();
        let signable = SignableRequest::new(
            request.method().as_str(),
            request.uri().to_string(),
            request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))),
            SignableBody::Bytes(request.body()),
        )
        .map_err(|error| unusable(&error))?;
        let (instructions, _) = sign(signable, &parameters).map_err(|error| unusable(&error))?.into_parts();
        instructions.apply_to_request_http1x(&mut request);

        let no_answer = |source| Error::Http { what: operation.to_owned(), source };
        let response = self.http.execute(request.try_into().map_err(no_answer)?).await.map_err(no_answer)?;
        let status = response.status();
        let function_error = response.headers().contains_key("x-amz-function-error");
        let body = response.bytes().await.map_err(no_answer)?.to_vec();
        if status.is_success() {
            return Ok(Answer { function_error, body });
        }
        let (code, message) = refusal(&String::from_utf8_lossy(&body));
        Err(Error::Aws { operation: operation.to_owned(), code, message, status: status.as_u16() })
    }
}

struct Answer {
    function_error: bool,
    body: Vec<u8>,
}

/// An HTTP client that talks to this machine directly, whatever proxy the environment asks for.
pub(crate) fn http_client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .map_err(|source| Error::Http { what: "the HTTP client".into(), source })
}

/// The text of the first element of that name, wherever it is.
#[must_use]
pub fn xml_text(document: &str, element: &str) -> Option<String> {
    xml_texts(document, element).into_iter().next()
}

/// The texts of all elements of that name, in the document's order.
#[must_use]
pub fn xml_texts(document: &str, element: &str) -> Vec<String> {
    let Ok(document) = roxmltree::Document::parse(document) else { return Vec::new() };
    document
        .descendants()
        .filter(|node| node.tag_name().name() == element)
        .filter_map(|node| node.text().map(str::to_owned))
        .collect()
}

fn parse_json(operation: &str, body: &[u8]) -> Result<Value> {
    if body.is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(body).map_err(|error| Error::Unexpected(format!("{operation} answered no JSON: {error}")))
}

/// The code and the message of an error answer, in whichever protocol it came.
fn refusal(body: &str) -> (String, String) {
    if let Ok(answer) = serde_json::from_str::<Value>(body) {
        let text = |names: &[&str]| names.iter().find_map(|name| answer[name].as_str()).unwrap_or_default().to_owned();
        let code = text(&["__type", "code", "Code", "Type"]);
        let code = code.rsplit('#').next().unwrap_or_default().to_owned();
        return (code, text(&["message", "Message", "errorMessage"]));
    }
    match (xml_text(body, "Code"), xml_text(body, "Message")) {
        (None, None) => ("Unknown".into(), body.chars().take(500).collect()),
        (code, message) => (code.unwrap_or_default(), message.unwrap_or_default()),
    }
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
