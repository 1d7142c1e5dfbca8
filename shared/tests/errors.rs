//! Recorded errors of AWS's services, parsed by the SDK's clients.

use aws_smithy_mocks::{RuleMode, mock, mock_client};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::Error;

/// An error as it came over the network.
#[derive(Debug, Deserialize)]
struct Recorded {
    operation: String,
    status: u16,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    body: Option<String>,
    kind: String,
    seen: String,
}

impl Recorded {
    /// The body in the service's protocol.
    fn body(&self) -> String {
        let Self { operation, code, message, .. } = self;
        let xml = || format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        self.body.clone().unwrap_or_else(|| match operation.split(':').next() {
            Some("s3") => xml(),
            Some("sts") => format!("<ErrorResponse>{}</ErrorResponse>", xml()),
            _ => json!({ "__type": code, "message": message }).to_string(),
        })
    }
}

/// The error of an operation with the recorded HTTP response.
macro_rules! error {
    ($recorded:ident, $sdk:ident, $operation:ident, |$request:ident| $filled:expr) => {{
        let rule = mock!($sdk::Client::$operation).sequence().http_status($recorded.status, Some($recorded.body()));
        let rule = rule.build();
        let client = mock_client!($sdk, RuleMode::Sequential, [&rule], |builder| {
            builder.retry_config($sdk::config::retry::RetryConfig::disabled())
        });
        let $request = client.$operation();
        let action = $recorded.operation.clone().leak();
        $filled.send().await.map(drop).map_err(Error::aws(action, "it"))
    }};
}

async fn answered(recorded: &Recorded) -> Result<(), Error> {
    match recorded.operation.as_str() {
        "dynamodb:UpdateItem" => error!(recorded, aws_sdk_dynamodb, update_item, |it| it.table_name("table")),
        "ecr:CreateRepository" => error!(recorded, aws_sdk_ecr, create_repository, |it| it.repository_name("app")),
        "ecr:DescribeImages" => error!(recorded, aws_sdk_ecr, describe_images, |it| it.repository_name("app")),
        "ecr:GetAuthorizationToken" => error!(recorded, aws_sdk_ecr, get_authorization_token, |it| it),
        "ecr:GetDownloadUrlForLayer" => {
            error!(recorded, aws_sdk_ecr, get_download_url_for_layer, |it| it.repository_name("app").layer_digest("d"))
        }
        "ecs:DescribeTasks" => error!(recorded, aws_sdk_ecs, describe_tasks, |it| it.tasks("task")),
        "ecs:RunTask" => error!(recorded, aws_sdk_ecs, run_task, |it| it.task_definition("task")),
        "logs:GetLogEvents" => {
            error!(recorded, aws_sdk_cloudwatchlogs, get_log_events, |it| it.log_stream_name("stream"))
        }
        "s3:PutObject" => error!(recorded, aws_sdk_s3, put_object, |it| it.bucket("bucket").key("key")),
        "secretsmanager:GetSecretValue" => {
            error!(recorded, aws_sdk_secretsmanager, get_secret_value, |it| it.secret_id("secret"))
        }
        "secretsmanager:PutSecretValue" => {
            error!(recorded, aws_sdk_secretsmanager, put_secret_value, |it| it.secret_id("secret"))
        }
        "ssm:GetParameter" => error!(recorded, aws_sdk_ssm, get_parameter, |it| it.name("name")),
        "states:SendTaskFailure" => error!(recorded, aws_sdk_sfn, send_task_failure, |it| it.task_token("t")),
        "states:SendTaskSuccess" => {
            error!(recorded, aws_sdk_sfn, send_task_success, |it| it.task_token("t").output(""))
        }
        "sts:AssumeRole" => {
            error!(recorded, aws_sdk_sts, assume_role, |it| it.role_arn("role").role_session_name("session"))
        }
        other => panic!("{other} is not called"),
    }
}

#[tokio::test]
async fn each_recorded_error_of_aws_has_its_kind() {
    let mut file: Value = serde_json::from_str(include_str!("data/errors.json")).expect("it is JSON");
    let all: Vec<Recorded> = serde_json::from_value(file["aws"].take()).expect("they are errors");
    let mut wrong = Vec::new();
    for recorded in &all {
        let error = answered(recorded).await.expect_err(&recorded.seen);
        let kind = format!("{:?}", error.kind());
        if kind != recorded.kind {
            wrong.push(format!("{kind} and not {}: {error} ({})", recorded.kind, recorded.seen));
        }
        assert!(error.to_string().contains(&recorded.code), "{error}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
