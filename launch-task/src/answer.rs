//! Answers the state that waits with its task token: after a launch that started no task, and after EventBridge's event of a
//! stopped task. The token is in the overrides of the task.

use aws_config::SdkConfig;
use aws_sdk_cloudwatchlogs::operation::get_log_events::GetLogEventsError;
use aws_sdk_cloudwatchlogs::types::OutputLogEvent;
use aws_sdk_ecs::types::Task;
use serde_json::{Value, json};
use shared::lambda::TaskStateChange;
use shared::task::{CopyReport, Log, REFUSALS, Refusal, Report, TASK_TOKEN};
use shared::text::Excerpt;
use shared::{Error, Kind, Result};

use crate::config::LogConfig;
use crate::launch::Launched;

/// The longest [cause](https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskFailure.html).
const CAUSE_LIMIT: usize = 32_768;

/// The state's output also contains the batch. It has
/// [at most 256 KiB](https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html) in total.
const OUTPUT_LIMIT: usize = 65_536;

/// The most copies of a report. A task has fewer images.
const REPORTS: usize = 500;

pub struct Clients {
    pub ecs: aws_sdk_ecs::Client,
    pub logs: aws_sdk_cloudwatchlogs::Client,
    pub sfn: aws_sdk_sfn::Client,
}

impl Clients {
    pub fn new(aws: &SdkConfig) -> Self {
        Self {
            ecs: aws_sdk_ecs::Client::new(aws),
            logs: aws_sdk_cloudwatchlogs::Client::new(aws),
            sfn: aws_sdk_sfn::Client::new(aws),
        }
    }
}

/// Answers the state if no task was started. A started task is answered when it stops, by [`for_task`].
pub async fn for_launch(sfn: &aws_sdk_sfn::Client, token: &str, launched: Result<Launched>) -> Result<Value> {
    match launched {
        Ok(Launched::Task(task)) => Ok(json!({ "task": task })),
        Ok(Launched::Nothing(refusals)) if refusals.is_empty() => {
            succeed(sfn, token, &Report { reason: "Nothing was left to copy.".into(), ..Report::default() }).await?;
            Ok(json!({}))
        }
        Ok(Launched::Nothing(refusals)) => {
            let report = Report { reason: "No repository can be written.".into(), refusals, ..Report::default() };
            fail(sfn, token, Kind::ImagesRefused, &report).await?;
            Ok(json!({}))
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "no task was started");
            let report = Report { reason: Excerpt::new(&error.to_string()), ..Report::default() };
            fail(sfn, token, error.kind(), &report).await?;
            Err(error)
        }
    }
}

/// Answers the state of a stopped task. An event that arrives twice, or after the end of the execution, has no effect.
pub async fn for_task(clients: &Clients, config: &LogConfig, detail: &TaskStateChange) -> Result<Value> {
    if detail.last_status != "STOPPED" {
        return Ok(json!({}));
    }
    let described = clients
        .ecs
        .describe_tasks()
        .cluster(&detail.cluster_arn)
        .tasks(&detail.task_arn)
        .send()
        .await
        .map_err(Error::aws("ecs:DescribeTasks", &detail.task_arn))?;
    let Some(Variables { token, refusals, container }) = described.tasks().first().and_then(variables) else {
        tracing::warn!(
            task = detail.task_arn,
            "no task token: it is not a task of this stack, or stopped too long ago"
        );
        return Ok(json!({}));
    };
    let report = Report { refusals, ..report(&clients.logs, config, detail, &container).await };
    match failure(&report) {
        None => succeed(&clients.sfn, &token, &report).await?,
        Some(kind) => fail(&clients.sfn, &token, kind, &report).await?,
    }
    Ok(json!({ "task": detail.task_arn }))
}

/// The variables that launch-task set in the overrides of a task.
struct Variables {
    token: String,
    refusals: Vec<Refusal>,
    /// The name of the container with these variables.
    container: String,
}

fn variables(task: &Task) -> Option<Variables> {
    task.overrides()?.container_overrides().iter().find_map(|container| {
        let variable = |name| container.environment().iter().find(|variable| variable.name() == Some(name))?.value();
        let token = variable(TASK_TOKEN)?.to_owned();
        let refusals = variable(REFUSALS).map(serde_json::from_str).transpose().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot parse the task's {REFUSALS}");
            None
        });
        Some(Variables { token, refusals: refusals.unwrap_or_default(), container: container.name()?.to_owned() })
    })
}

/// The report on a stopped task. If its log cannot be read, the state is answered without it.
async fn report(
    logs: &aws_sdk_cloudwatchlogs::Client,
    config: &LogConfig,
    detail: &TaskStateChange,
    container: &str,
) -> Report {
    let stopped = detail.containers.iter().find(|stopped| stopped.name == container);
    let task = detail.task_arn.rsplit('/').next().unwrap_or_default();
    let log = Log { group: config.group.clone(), stream: format!("{}/{container}/{task}", config.prefix) };
    let copies = read(logs, &log).await.unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot read the task's log");
        Vec::new()
    });
    Report {
        task: Some(detail.task_arn.clone()),
        exit_code: stopped.and_then(|container| container.exit_code),
        reason: Excerpt::new(stopped.and_then(|it| it.reason.as_deref()).unwrap_or(&detail.stopped_reason)),
        log: Some(log),
        copies,
        refusals: Vec::new(),
    }
}

/// The log's lines about images. A task that never ran has no log.
async fn read(logs: &aws_sdk_cloudwatchlogs::Client, log: &Log) -> Result<Vec<CopyReport>> {
    let mut copies = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let page = logs
            .get_log_events()
            .log_group_name(&log.group)
            .log_stream_name(&log.stream)
            .start_from_head(true)
            .set_next_token(token.clone())
            .send()
            .await;
        let page = match page {
            Ok(page) => page,
            Err(error) if error.as_service_error().is_some_and(GetLogEventsError::is_resource_not_found_exception) => {
                return Ok(copies);
            }
            Err(error) => return Err(Error::aws("logs:GetLogEvents", &log.stream)(error)),
        };
        for line in page.events().iter().filter_map(OutputLogEvent::message) {
            match CopyReport::parse(line) {
                Some(Ok(report)) => copies.push(report),
                Some(Err(line)) => tracing::error!(%line, "cannot parse a line of the task's log"),
                None => {}
            }
        }
        // A repeated token is the end of the log. An empty page is not.
        // https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html
        if copies.len() >= REPORTS || page.next_forward_token() == token.as_deref() {
            return Ok(copies);
        }
        token = page.next_forward_token;
    }
}

fn failure(report: &Report) -> Option<Kind> {
    let mut failed = report.copies.iter().filter(|copy| copy.error.is_some()).peekable();
    match report.exit_code {
        Some(0) => None,
        // The script's exit code for failed images. All of them would fail again.
        Some(1) if failed.peek().is_some() && failed.all(CopyReport::is_permanent) => Some(Kind::ImagesRefused),
        Some(_) => Some(Kind::TaskFailed),
        None => Some(Kind::TaskNotStarted),
    }
}

async fn succeed(sfn: &aws_sdk_sfn::Client, token: &str, report: &Report) -> Result<()> {
    match sfn.send_task_success().task_token(token).output(json(report, OUTPUT_LIMIT)).send().await {
        Ok(_) => Ok(()),
        Err(error) if error.as_service_error().is_some_and(|e| e.is_task_timed_out() || e.is_task_does_not_exist()) => {
            already_answered(report)
        }
        Err(error) => Err(Error::aws("states:SendTaskSuccess", "the task token")(error)),
    }
}

async fn fail(sfn: &aws_sdk_sfn::Client, token: &str, kind: Kind, report: &Report) -> Result<()> {
    match sfn.send_task_failure().task_token(token).error(kind.name()).cause(json(report, CAUSE_LIMIT)).send().await {
        Ok(_) => Ok(()),
        Err(error) if error.as_service_error().is_some_and(|e| e.is_task_timed_out() || e.is_task_does_not_exist()) => {
            already_answered(report)
        }
        Err(error) => Err(Error::aws("states:SendTaskFailure", "the task token")(error)),
    }
}

#[allow(clippy::unnecessary_wraps)] // The value of two match arms that are results.
fn already_answered(report: &Report) -> Result<()> {
    tracing::info!(task = report.task, "the state is already answered, or its execution has ended");
    Ok(())
}

/// The report as JSON. Errors are shortened until it has at most `limit` bytes.
fn json(report: &Report, limit: usize) -> String {
    let mut report = report.clone();
    report.copies.truncate(REPORTS);
    let mut length = Excerpt::LIMIT;
    loop {
        let text = serde_json::to_string(&report).expect("a report has string keys only, so it is JSON");
        if text.len() <= limit {
            return text;
        }
        if length == 0 {
            // record-status checks the destination, so it does not need all copies.
            report.copies.truncate(report.copies.len() / 2);
            report.refusals.truncate(report.refusals.len() / 2);
            continue;
        }
        length /= 2;
        let errors = report.copies.iter_mut().filter_map(|copy| copy.error.as_mut());
        for error in errors.chain(report.refusals.iter_mut().map(|refusal| &mut refusal.error)) {
            *error = error.cut(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_cloudwatchlogs::error::ErrorMetadata as LogErrorMetadata;
    use aws_sdk_cloudwatchlogs::operation::get_log_events::GetLogEventsOutput;
    use aws_sdk_cloudwatchlogs::types::OutputLogEvent;
    use aws_sdk_cloudwatchlogs::types::error::ResourceNotFoundException as LogNotFound;
    use aws_sdk_ecs::operation::describe_tasks::DescribeTasksOutput;
    use aws_sdk_ecs::types::{ContainerOverride, KeyValuePair, TaskOverride};
    use aws_sdk_sfn::error::ErrorMetadata;
    use aws_sdk_sfn::operation::send_task_failure::{SendTaskFailureError, SendTaskFailureOutput};
    use aws_sdk_sfn::operation::send_task_success::{SendTaskSuccessError, SendTaskSuccessOutput};
    use aws_sdk_sfn::types::error::{TaskDoesNotExist, TaskTimedOut};
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use super::*;

    fn event(containers: &Value) -> TaskStateChange {
        serde_json::from_value(json!({
            "taskArn": "arn:aws:ecs:us-east-1:111111111111:task/cluster/0123", "clusterArn": "arn:cluster",
            "lastStatus": "STOPPED", "stoppedReason": "Essential container in task exited", "containers": containers
        }))
        .expect("it is an event")
    }

    fn clients(lines: &'static [&str], answers: &[&Rule]) -> Clients {
        let described = mock!(aws_sdk_ecs::Client::describe_tasks).then_output(|| {
            let variable = |name: &str, value: &str| KeyValuePair::builder().name(name).value(value).build();
            let refusals = r#"[{"repository": "d.example/closed", "error": "no"}]"#;
            let container = ContainerOverride::builder().name("skopeo").environment(variable(TASK_TOKEN, "t0ken"));
            let container = container.environment(variable(REFUSALS, refusals)).build();
            let overrides = TaskOverride::builder().container_overrides(container).build();
            DescribeTasksOutput::builder().tasks(Task::builder().overrides(overrides).build()).build()
        });
        let log = mock!(aws_sdk_cloudwatchlogs::Client::get_log_events)
            .match_requests(|request| request.log_stream_name() == Some("copy/skopeo/0123"))
            .then_output(|| {
                let events = lines.iter().map(|&line| OutputLogEvent::builder().message(line).build()).collect();
                GetLogEventsOutput::builder().set_events(Some(events)).build()
            });
        Clients {
            ecs: mock_client!(aws_sdk_ecs, RuleMode::MatchAny, [&described]),
            logs: mock_client!(aws_sdk_cloudwatchlogs, RuleMode::MatchAny, [&log]),
            sfn: mock_client!(aws_sdk_sfn, RuleMode::MatchAny, answers),
        }
    }

    fn log_config() -> LogConfig {
        LogConfig { group: "group".into(), prefix: "copy".into() }
    }

    fn failed_with(name: &'static str, cause: &'static str) -> Rule {
        mock!(aws_sdk_sfn::Client::send_task_failure)
            .match_requests(move |request| {
                request.task_token() == Some("t0ken")
                    && request.error() == Some(name)
                    && request.cause().is_some_and(|text| text.contains(cause))
            })
            .then_output(|| SendTaskFailureOutput::builder().build())
    }

    #[tokio::test]
    async fn a_task_that_copied_all_images_succeeds_with_the_copies_in_its_log() {
        let success = mock!(aws_sdk_sfn::Client::send_task_success)
            .match_requests(|request| {
                request.task_token() == Some("t0ken")
                    && request.output().is_some_and(|text| {
                        text.contains(r#"{"destination":"d.example/a:1","seconds":4}"#)
                            && text.contains(r#""refusals":[{"repository":"d.example/closed","error":"no"}]"#)
                    })
            })
            .then_output(|| SendTaskSuccessOutput::builder().build());
        let clients = clients(&["Done\td.example/a:1\t4"], &[&success]);
        let event = event(&json!([{"name": "skopeo", "exitCode": 0}]));
        for_task(&clients, &log_config(), &event).await.expect("it is answered");
        assert_eq!(success.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_failed_task_is_not_retried_if_all_its_failures_are_permanent() {
        const GONE: &str = "Error\td.example/a:1\t1\tmanifest unknown";
        const RESET: &str = "Error\td.example/a:2\t1\tconnection reset by peer";
        for (exit_code, lines, name, cause) in [
            (Some(1), &[GONE][..], "ImagesRefused", "manifest unknown"),
            (Some(1), &[GONE, RESET][..], "TaskFailed", "connection reset"),
            (Some(1), &[][..], "TaskFailed", "Essential container"),
            (Some(137), &[GONE][..], "TaskFailed", "OutOfMemoryError"),
            (None, &[][..], "TaskNotStarted", "CannotPullContainerError"),
        ] {
            let answer = failed_with(name, cause);
            let reason = match exit_code {
                Some(137) => json!("OutOfMemoryError: Container killed due to memory usage"),
                None => json!("CannotPullContainerError: not found"),
                Some(_) => Value::Null,
            };
            let event = event(&json!([{"name": "skopeo", "exitCode": exit_code, "reason": reason}]));
            for_task(&clients(lines, &[&answer]), &log_config(), &event).await.expect("the state is answered");
            assert_eq!(answer.num_calls(), 1, "{name}");
        }
    }

    #[tokio::test]
    async fn an_empty_page_of_a_log_is_not_its_end() {
        let pages = [
            (None, "1", None),
            (Some("1"), "2", Some("Done\td.example/a:1\t4")),
            (Some("2"), "3", None),
            (Some("3"), "4", Some("Done\td.example/a:2\t4")),
            (Some("4"), "4", None),
        ];
        let pages = pages.map(|(token, next, line)| {
            mock!(aws_sdk_cloudwatchlogs::Client::get_log_events)
                .match_requests(move |request| request.next_token() == token)
                .then_output(move || {
                    let events = line.map(|line| OutputLogEvent::builder().message(line).build());
                    let page = GetLogEventsOutput::builder().set_events(Some(events.into_iter().collect()));
                    page.next_forward_token(next).build()
                })
        });
        let logs = mock_client!(aws_sdk_cloudwatchlogs, RuleMode::MatchAny, pages.iter().collect::<Vec<_>>());
        let log = Log { group: "group".into(), stream: "stream".into() };
        let copies = read(&logs, &log).await.expect("the log can be read");
        let images: Vec<_> = copies.iter().map(|copy| copy.destination.to_string()).collect();
        assert_eq!(images, ["d.example/a:1", "d.example/a:2"]);
        assert!(pages.iter().all(|page| page.num_calls() == 1), "the log ends when the token no longer changes");
    }

    #[tokio::test]
    async fn an_event_that_arrives_twice_or_late_has_no_effect() {
        let late = mock!(aws_sdk_sfn::Client::send_task_failure)
            .then_error(|| SendTaskFailureError::TaskTimedOut(TaskTimedOut::builder().build()));
        let event = event(&json!([{"name": "skopeo", "exitCode": 2}]));
        for_task(&clients(&[], &[&late]), &log_config(), &event).await.expect("it changes nothing");
    }

    #[tokio::test]
    async fn a_failed_launch_answers_the_state_and_is_an_error() {
        let answer = failed_with("NoCapacity", "RESOURCE:MEMORY");
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&answer]);
        let error =
            for_launch(&sfn, "t0ken", Err(Error::NoCapacity("RESOURCE:MEMORY".into()))).await.expect_err("it failed");
        assert_eq!((error.name(), answer.num_calls()), ("NoCapacity", 1));
    }

    #[tokio::test]
    async fn a_batch_without_writable_repositories_is_not_retried_and_reports_each_repository() {
        let answer = failed_with("ImagesRefused", r#"{"repository":"d.example/closed","error":"no"}"#);
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&answer]);
        let refusal = Refusal { repository: "d.example/closed".parse().expect("it is valid"), error: "no".into() };
        for_launch(&sfn, "t0ken", Ok(Launched::Nothing(vec![refusal]))).await.expect("it is answered");
        assert_eq!(answer.num_calls(), 1);
    }

    #[tokio::test]
    async fn a_launch_with_nothing_left_to_copy_succeeds_immediately() {
        let success = mock!(aws_sdk_sfn::Client::send_task_success)
            .match_requests(|request| request.task_token() == Some("t0ken"))
            .then_output(|| SendTaskSuccessOutput::builder().build());
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&success]);
        for_launch(&sfn, "t0ken", Ok(Launched::Nothing(Vec::new()))).await.expect("it is answered");
        assert_eq!(success.num_calls(), 1);
    }

    #[test]
    fn a_report_is_shortened_to_the_limit() {
        let destination = "d.example/a:1".parse().expect("it is an image");
        let error = Excerpt::new(&"ü".repeat(5_000));
        let refusal = Refusal { repository: "d.example/b".parse().expect("it is a repository"), error: error.clone() };
        let copy = CopyReport { destination, seconds: 1, error: Some(error) };
        let report = Report { copies: vec![copy; 60], refusals: vec![refusal; 10], ..Report::default() };
        for limit in [CAUSE_LIMIT, OUTPUT_LIMIT] {
            assert!((limit / 4..=limit).contains(&json(&report, limit).len()));
        }
        let forged = Report { copies: vec![report.copies[0].clone(); 10_000], ..Report::default() };
        for limit in [CAUSE_LIMIT, OUTPUT_LIMIT] {
            assert!(json(&forged, limit).len() <= limit);
        }
    }

    fn reason(report: Option<&str>) -> String {
        let report: Report = serde_json::from_str(report.unwrap_or_default()).expect("it is a report");
        report.reason.as_str().to_owned()
    }

    #[tokio::test]
    async fn a_launch_that_starts_no_task_says_why() {
        let success = mock!(aws_sdk_sfn::Client::send_task_success)
            .match_requests(|request| !reason(request.output()).is_empty())
            .then_output(|| SendTaskSuccessOutput::builder().build());
        let failure = mock!(aws_sdk_sfn::Client::send_task_failure)
            .match_requests(|request| !reason(request.cause()).is_empty())
            .then_output(|| SendTaskFailureOutput::builder().build());
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&success, &failure]);
        let refusal = Refusal { repository: "d.example/closed".parse().expect("it is one"), error: "no".into() };
        for refusals in [vec![], vec![refusal]] {
            for_launch(&sfn, "t0ken", Ok(Launched::Nothing(refusals))).await.expect("it is answered");
        }
        assert_eq!((success.num_calls(), failure.num_calls()), (1, 1));
    }

    #[tokio::test]
    async fn a_task_without_a_log_has_copied_nothing_and_a_log_that_must_not_be_read_is_an_error() {
        let log = Log { group: "group".into(), stream: "stream".into() };
        let answer = async |error: fn() -> GetLogEventsError| {
            let page = mock!(aws_sdk_cloudwatchlogs::Client::get_log_events).then_error(error);
            read(&mock_client!(aws_sdk_cloudwatchlogs, RuleMode::MatchAny, [&page]), &log).await
        };
        let missing = answer(|| GetLogEventsError::ResourceNotFoundException(LogNotFound::builder().build()));
        assert_eq!(missing.await.expect("it never ran"), []);
        let denied =
            answer(|| GetLogEventsError::generic(LogErrorMetadata::builder().code("AccessDeniedException").build()));
        assert_eq!(denied.await.expect_err("we may not").name(), "AccessDenied");
    }

    /// The answers to a state whose token is answered with these errors: of a success and of a failure.
    async fn answered(
        success: fn() -> SendTaskSuccessError,
        failure: fn() -> SendTaskFailureError,
    ) -> (Result<()>, Result<()>) {
        let success = mock!(aws_sdk_sfn::Client::send_task_success).then_error(success);
        let failure = mock!(aws_sdk_sfn::Client::send_task_failure).then_error(failure);
        let sfn = mock_client!(aws_sdk_sfn, RuleMode::MatchAny, [&success, &failure]);
        let report = Report::default();
        (succeed(&sfn, "t0ken", &report).await, fail(&sfn, "t0ken", Kind::TaskFailed, &report).await)
    }

    #[tokio::test]
    async fn a_state_that_no_longer_waits_needs_no_answer() {
        let late = answered(
            || SendTaskSuccessError::TaskTimedOut(TaskTimedOut::builder().build()),
            || SendTaskFailureError::TaskTimedOut(TaskTimedOut::builder().build()),
        );
        assert!(matches!(late.await, (Ok(()), Ok(()))));
        let gone = answered(
            || SendTaskSuccessError::TaskDoesNotExist(TaskDoesNotExist::builder().build()),
            || SendTaskFailureError::TaskDoesNotExist(TaskDoesNotExist::builder().build()),
        );
        assert!(matches!(gone.await, (Ok(()), Ok(()))));
    }

    #[tokio::test]
    async fn a_state_that_cannot_be_answered_is_an_error() {
        fn denied() -> ErrorMetadata {
            ErrorMetadata::builder().code("AccessDeniedException").build()
        }
        let (success, failure) =
            answered(|| SendTaskSuccessError::generic(denied()), || SendTaskFailureError::generic(denied())).await;
        for answer in [success, failure] {
            assert_eq!(answer.expect_err("it is denied").name(), "AccessDenied");
        }
    }

    #[test]
    fn an_answer_that_is_too_long_loses_the_ends_of_its_errors_first_and_then_as_few_images_as_it_must() {
        let report = |count: usize| {
            let error = Excerpt::new(&"x".repeat(Excerpt::LIMIT));
            let repository = "d.example/b".parse().expect("it is a repository");
            let refusal = Refusal { repository, error: error.clone() };
            let destination = "d.example/a:1".parse().expect("it is an image");
            let copy = CopyReport { destination, seconds: 1, error: Some(error) };
            Report { copies: vec![copy; count], refusals: vec![refusal; count], ..Report::default() }
        };
        let shortened =
            |count, limit| -> Report { serde_json::from_str(&json(&report(count), limit)).expect("it is a report") };
        let with_short_errors = shortened(60, CAUSE_LIMIT);
        assert_eq!((with_short_errors.copies.len(), with_short_errors.refusals.len()), (60, 60));
        assert!(with_short_errors.refusals.iter().all(|refusal| !refusal.error.as_str().is_empty()));
        let with_fewer_images = shortened(REPORTS, 10_000);
        assert!(with_fewer_images.copies.len() > 50 && with_fewer_images.refusals.len() > 50);
    }
}
