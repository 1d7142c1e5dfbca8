//! The console as a browser sees it: requests to its router, with AWS's answers made up.

use std::net::Ipv4Addr;

use aws_sdk_cloudformation::operation::describe_stacks::DescribeStacksOutput;
use aws_sdk_cloudformation::operation::get_template::GetTemplateOutput;
use aws_sdk_cloudformation::types::{Output, Parameter, Stack, StackStatus};
use aws_sdk_dynamodb::operation::scan::ScanOutput;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sfn::operation::list_executions::{ListExecutionsError, ListExecutionsOutput};
use aws_smithy_mocks::{Rule, mock};
use axum::body::{Body, to_bytes};
use axum::http::header::{ACCEPT_LANGUAGE, COOKIE, HOST, LOCATION, ORIGIN, SET_COOKIE};
use axum::http::{Method, Request, StatusCode};
use tower::ServiceExt as _;

use super::*;
use crate::tasks::account_for_tests;

const ADDRESS: &str = "127.0.0.1:8600";
const TASK: &str = "/tasks/default.us-east-1/images";

/// A console, with what a browser knows after the link was opened.
struct Browser {
    router: Router,
    link: String,
    cookie: String,
}

impl Browser {
    async fn open(read_only: bool, rules: &[&Rule]) -> Self {
        let (guard, link) =
            Guard::new((Ipv4Addr::LOCALHOST, 8600).into(), read_only).expect("there are random numbers");
        let place = Place { id: "default.us-east-1".into(), profile: None, account: account_for_tests(rules) };
        let router = router(App::new(guard, vec![place], None));
        let mut browser = Self { router, link, cookie: String::new() };
        let answer = browser.send(browser.request(Method::GET, &browser.path_of_link())).await;
        let cookie = answer.headers()[SET_COOKIE].to_str().expect("it is text");
        assert!(cookie.contains("; SameSite=Strict") && cookie.contains("; HttpOnly"), "{cookie}");
        browser.cookie = cookie.split(';').next().unwrap_or_default().to_owned();
        browser
    }

    fn path_of_link(&self) -> String {
        self.link.strip_prefix(&format!("http://{ADDRESS}")).expect("it is the link of this console").to_owned()
    }

    fn request(&self, method: Method, path: &str) -> Request<Body> {
        let request = Request::builder().method(method).uri(path).header(HOST, ADDRESS).header(COOKIE, &self.cookie);
        let request = request.header(ORIGIN, format!("http://{ADDRESS}"));
        request.header("content-type", "application/x-www-form-urlencoded").body(Body::empty()).expect("it is complete")
    }

    async fn send(&self, request: Request<Body>) -> axum::response::Response {
        self.router.clone().oneshot(request).await.expect("a router does not fail")
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        read(self.send(self.request(Method::GET, path)).await).await
    }
}

async fn read(answer: axum::response::Response) -> (StatusCode, String) {
    let status = answer.status();
    let body = to_bytes(answer.into_body(), usize::MAX).await.expect("it is complete");
    (status, String::from_utf8(body.to_vec()).expect("it is text"))
}

/// A stack of ours, named `images`.
fn stack() -> Rule {
    mock!(aws_sdk_cloudformation::Client::describe_stacks).then_output(|| {
        let output = |(key, value): (&str, &str)| Output::builder().output_key(key).output_value(value).build();
        let outputs =
            [("ImageTable", "images-table"), ("ExecutionTable", "runs-table"), ("StateMachineArn", "arn:machine")];
        let parameter = Parameter::builder().parameter_key("destPrefix").parameter_value("<i>mirror</i>").build();
        let stack =
            Stack::builder().stack_name("images").stack_status(StackStatus::CreateComplete).parameters(parameter);
        let stack = stack.description("ecr-transfer: replicates container images from any registry");
        let stack = stack.creation_time(aws_sdk_cloudformation::primitives::DateTime::from_secs(1_700_000_000));
        let stack = stack.set_outputs(Some(outputs.map(output).to_vec())).build();
        DescribeStacksOutput::builder().stacks(stack).build()
    })
}

fn no_runs() -> Rule {
    mock!(aws_sdk_sfn::Client::list_executions).then_output(|| {
        ListExecutionsOutput::builder().set_executions(Some(Vec::new())).build().expect("it is complete")
    })
}

#[tokio::test]
async fn the_link_opens_the_console_once() {
    let browser = Browser::open(false, &[]).await;
    let again = browser.send(browser.request(Method::GET, &browser.path_of_link())).await;
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED);
    let guessed = browser.send(browser.request(Method::GET, "/login?0000")).await;
    assert_eq!(guessed.status(), StatusCode::UNAUTHORIZED);
    assert!(guessed.headers().get(SET_COOKIE).is_none());
}

#[tokio::test]
async fn another_host_origin_session_or_method_is_refused() {
    let browser = Browser::open(false, &[]).await;
    let changed = async |method: Method, name: &'static str, value: &str| {
        let mut request = browser.request(method, "/style.css");
        request.headers_mut().insert(name, value.parse().expect("it is a value"));
        browser.send(request).await.status()
    };
    assert_eq!(changed(Method::GET, "accept", "*/*").await, StatusCode::OK);
    assert_eq!(changed(Method::GET, "host", "evil.example:8600").await, StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(changed(Method::GET, "host", "127.0.0.1:8601").await, StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(changed(Method::GET, "cookie", "ecr-transfer-8600=guess").await, StatusCode::UNAUTHORIZED);
    assert_eq!(changed(Method::GET, "sec-fetch-site", "cross-site").await, StatusCode::FORBIDDEN);
    assert_eq!(changed(Method::GET, "sec-fetch-site", "same-site").await, StatusCode::FORBIDDEN);
    assert_eq!(changed(Method::POST, "origin", "http://127.0.0.1:9999").await, StatusCode::FORBIDDEN);
    assert_eq!(changed(Method::POST, "origin", "null").await, StatusCode::FORBIDDEN);
    for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
        assert_eq!(changed(method, "accept", "*/*").await, StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test]
async fn each_answer_forbids_scripts_and_frames_of_others() {
    let browser = Browser::open(false, &[]).await;
    let mut refused = browser.request(Method::GET, "/");
    refused.headers_mut().insert(HOST, "evil.example".parse().expect("it is a value"));
    for request in [browser.request(Method::GET, "/style.css"), refused] {
        let answer = browser.send(request).await;
        let policy = answer.headers()["content-security-policy"].to_str().expect("it is text");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    }
}

#[tokio::test]
async fn a_read_only_console_changes_nothing() {
    let browser = Browser::open(true, &[]).await;
    for path in ["start", "pause", "resume", "delete", "edit", "clone"] {
        let answer = browser.send(browser.request(Method::POST, &format!("{TASK}/{path}"))).await;
        assert_eq!(
            read(answer).await,
            (StatusCode::FORBIDDEN, "The console was started with --read-only.".into()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn tasks_are_listed_and_their_text_stays_text() {
    let browser = Browser::open(false, &[&stack(), &no_runs()]).await;
    let (status, page) = browser.get("/").await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert!(page.contains(r#"href="/tasks/default.us-east-1/images""#), "{page}");
    assert!(page.contains("&lt;i&gt;mirror&lt;/i&gt;/") && !page.contains("<i>"), "{page}");
    assert!(page.contains("No run yet"), "{page}");
}

#[tokio::test]
async fn a_missing_permission_is_named_and_the_rest_of_the_page_is_there() {
    let denied = mock!(aws_sdk_sfn::Client::list_executions).then_error(|| {
        ListExecutionsError::generic(
            aws_sdk_sfn::error::ErrorMetadata::builder().code("AccessDeniedException").message("no").build(),
        )
    });
    let browser = Browser::open(false, &[&stack(), &denied]).await;
    let (status, page) = browser.get(TASK).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert!(page.contains("<code>states:ListExecutions</code>") && page.contains("destPrefix"), "{page}");
}

#[tokio::test]
async fn the_words_of_registries_stay_text() {
    let rows = mock!(aws_sdk_dynamodb::Client::scan).then_output(|| {
        let columns =
            [("Image", "app"), ("Tag", "1"), ("Status", "Error"), ("ErrorMessage", "<script>alert(1)</script>")];
        let item = columns.map(|(name, value)| (name.to_owned(), AttributeValue::S(value.to_owned()))).into();
        ScanOutput::builder().items(item).build()
    });
    let browser = Browser::open(false, &[&stack(), &rows]).await;
    let (status, page) = browser.get(&format!("{TASK}/images")).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script>alert"), "{page}");
    let (_, csv) = browser.get(&format!("{TASK}/images.csv")).await;
    assert!(csv.starts_with("image,tag,status,"), "{csv}");
}

/// A template with one parameter in a group.
fn template() -> Rule {
    const TEMPLATE: &str = r#"
Metadata: { AWS::CloudFormation::Interface: { ParameterGroups: [{ Label: { default: Limits }, Parameters: [maxImages] }] } }
Parameters:
  maxImages: { Type: Number, Default: 7, MinValue: 0, Description: "At most <this> many. `0`: no limit." }
Resources:
  Function: { Type: AWS::Serverless::Function, Properties: { CodeUri: s3://bucket/code } }
"#;
    mock!(aws_sdk_cloudformation::Client::get_template)
        .then_output(|| GetTemplateOutput::builder().template_body(TEMPLATE).build())
}

#[tokio::test]
async fn a_form_is_made_of_the_templates_parameters_and_keeps_what_was_typed() {
    let browser = Browser::open(false, &[&stack(), &template()]).await;
    let (status, page) = browser.get("/create/default.us-east-1").await;
    assert_eq!(status, StatusCode::OK, "{page}");
    for part in [
        "<h2>Limits</h2>",
        r#"<label for="maxImages">maxImages</label>"#,
        "At most &lt;this&gt; many. <code>0</code>: no limit.",
        r#"name="maxImages" value="7""#,
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for (fields, problem) in [
        ("-name=new&maxImages=many", "maxImages is &quot;many&quot;"),
        ("-name=two+words&maxImages=many", "is not a name for a task"),
    ] {
        let mut request = browser.request(Method::POST, "/create/default.us-east-1");
        *request.body_mut() = fields.into();
        let (status, page) = read(browser.send(request).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{page}");
        assert!(page.contains(problem) && page.contains(r#"value="many""#), "{problem}: {page}");
    }
}

#[tokio::test]
async fn a_task_is_deleted_only_if_its_name_is_typed() {
    let browser = Browser::open(false, &[&stack()]).await;
    let mut request = browser.request(Method::POST, &format!("{TASK}/delete"));
    *request.body_mut() = "name=other".into();
    let (status, page) = read(browser.send(request).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(page.contains("Nothing was deleted."), "{page}");
}

#[tokio::test]
async fn the_language_is_the_browsers_until_another_one_is_chosen() {
    let browser = Browser::open(false, &[&stack(), &no_runs()]).await;
    let mut request = browser.request(Method::GET, "/");
    request.headers_mut().insert(ACCEPT_LANGUAGE, "zh-CN,zh;q=0.9".parse().expect("it is a value"));
    let (_, page) = read(browser.send(request).await).await;
    assert!(page.contains(r#"<html lang="zh-CN">"#) && page.contains("创建任务"), "{page}");
    let chosen = browser.send(browser.request(Method::GET, "/language/zh")).await;
    assert_eq!(
        (chosen.status(), &chosen.headers()[LOCATION]),
        (StatusCode::SEE_OTHER, &"/".parse().expect("it is a value"))
    );
    let cookie = chosen.headers()[SET_COOKIE].to_str().expect("it is text");
    assert!(cookie.starts_with("ecr-transfer-language=zh-CN;"), "{cookie}");
}
