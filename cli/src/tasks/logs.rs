//! Logs of a task: of an image, of Fargate tasks, and of the functions.

use std::collections::HashMap;

use aws_sdk_cloudwatchlogs::error::ProvideErrorMetadata;
use serde::Serialize;
use shared::Error as AwsError;
use shared::text::Excerpt;

use super::{Account, Error, Image, Result, RunDetails, Task, Time};

/// The most characters of a line. Lines have up to 1 MB.
const LINE: usize = 4_000;

/// The streams of Fargate tasks begin with this: prefix and container of the template.
const STREAMS: &str = "copy/skopeo/";

/// How late a line may come, in milliseconds: a run's lines after its end, and lines of another stream when a log is followed.
const LATE: i64 = 60_000;

/// Part of a task's logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    group: String,
    /// `None` for all streams of the group.
    stream: Option<String>,
    /// Only lines with this text.
    only: Option<String>,
    from: Option<Time>,
    to: Option<Time>,
}

/// A function of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Function {
    /// Lists source and destination, and writes the plan.
    ListImages,
    /// Starts Fargate tasks.
    LaunchTask,
    /// Checks the copies, and writes the tables.
    RecordStatus,
}

impl Function {
    /// All functions.
    pub const ALL: [Self; 3] = [Self::ListImages, Self::LaunchTask, Self::RecordStatus];

    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ListImages => "list-images",
            Self::LaunchTask => "launch-task",
            Self::RecordStatus => "record-status",
        }
    }

    /// Its log group's name in the template.
    fn log_group(self) -> &'static str {
        match self {
            Self::ListImages => "ListImagesFunctionLog",
            Self::LaunchTask => "LaunchTaskFunctionLog",
            Self::RecordStatus => "RecordStatusFunctionLog",
        }
    }
}

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When it was written.
    pub time: Option<Time>,
    /// The stream, if the log has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<Excerpt>,
    /// Its text, with the characters escaped that control a terminal.
    pub message: Excerpt,
}

/// A place in a log.
#[derive(Clone, Debug)]
pub struct Reader {
    log: Log,
    token: Option<String>,
    is_at_end: bool,
    /// The ids of lines that may come again, with their times.
    seen: HashMap<String, i64>,
}

impl Log {
    fn of_group(group: &str) -> Self {
        Self { group: group.to_owned(), stream: None, only: None, from: None, to: None }
    }

    /// All Fargate tasks of a task.
    ///
    /// # Errors
    /// If the task is not complete.
    pub fn of_tasks(task: &Task) -> Result<Self> {
        Ok(Self::of_group(task.output("ContainerLogGroup")?))
    }

    /// A Fargate task, by its [id](super::FargateTask::id).
    ///
    /// # Errors
    /// If the task is not complete.
    pub fn of_fargate_task(task: &Task, id: &str) -> Result<Self> {
        Ok(Self { stream: Some(format!("{STREAMS}{id}")), ..Self::of_tasks(task)? })
    }

    /// The lines about an image in the log of the Fargate task that copied it last.
    ///
    /// # Errors
    /// If no Fargate task has tried to copy it.
    pub fn of_image(task: &Task, image: &Image) -> Result<Self> {
        let (Some(stream), Some(destination)) = (&image.log_stream, &image.destination) else {
            let error = image.error.as_ref().map(|error| format!(" Its error: {error}")).unwrap_or_default();
            return Err(Error::Rejected(format!(
                "No Fargate task has tried to copy {}, so it has no log.{error}",
                image.name()
            )));
        };
        // As the script prints it, between tabs. Otherwise app:1 would also have the lines of app:12.
        Ok(Self { stream: Some(stream.clone()), only: Some(format!("\t{destination}\t")), ..Self::of_tasks(task)? })
    }

    /// Only what was written during a run. One run of a task copies at a time.
    #[must_use]
    pub fn during(self, run: &RunDetails) -> Self {
        let to = run.run.stopped_at.map(|time| Time::from_millis(time.millis() + LATE));
        Self { from: run.run.started_at, to, ..self }
    }

    /// Reads it from its beginning.
    pub fn reader(self) -> Reader {
        Reader { log: self, token: None, is_at_end: false, seen: HashMap::new() }
    }
}

impl Reader {
    /// Whether there was no more when it was last read. More may be written.
    pub fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    fn line(&self, time: Option<i64>, stream: Option<&str>, message: Option<&str>) -> Option<Line> {
        let message = message.unwrap_or_default().trim_end();
        let is_wanted = self.log.only.as_ref().is_none_or(|only| message.contains(only.as_str()));
        is_wanted.then(|| Line {
            time: time.map(Time::from_millis),
            stream: stream.map(Excerpt::from),
            message: Excerpt::within(message, LINE),
        })
    }
}

impl Account {
    /// The log of a function.
    ///
    /// # Errors
    /// If the task has no such function yet.
    pub async fn function_log(&self, task: &Task, function: Function) -> Result<Log> {
        let resources = self.resources(task).await?;
        let group = resources.get(function.log_group());
        let group =
            group.ok_or_else(|| Error::Rejected(format!("{} is {}, and has no logs.", task.name, task.status)))?;
        Ok(Log::of_group(group))
    }

    /// The next lines of a log: none if there are no more, and sometimes although there are. See [`Reader::is_at_end`].
    ///
    /// # Errors
    /// If a permission is missing.
    pub async fn read(&self, reader: &mut Reader) -> Result<Vec<Line>> {
        match reader.log.stream.clone() {
            Some(stream) => self.read_stream(reader, &stream).await,
            None => self.read_group(reader).await,
        }
    }

    async fn read_stream(&self, reader: &mut Reader, stream: &str) -> Result<Vec<Line>> {
        let log = &reader.log;
        let get = self.logs.get_log_events().log_group_name(&log.group).log_stream_name(stream).start_from_head(true);
        let get = get.set_start_time(log.from.map(Time::millis)).set_end_time(log.to.map(Time::millis));
        let answer = match get.set_next_token(reader.token.clone()).send().await {
            Err(error) if is_not_there(error.code()) => {
                reader.is_at_end = true;
                return Ok(Vec::new());
            }
            other => other.map_err(AwsError::aws("logs:GetLogEvents", stream))?,
        };
        let lines = answer.events().iter().filter_map(|event| reader.line(event.timestamp(), None, event.message()));
        let lines = lines.collect();
        // A repeated token is the end of the log. An empty page is not.
        // https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html
        reader.is_at_end = answer.next_forward_token == reader.token;
        reader.token = answer.next_forward_token;
        Ok(lines)
    }

    async fn read_group(&self, reader: &mut Reader) -> Result<Vec<Line>> {
        let log = &reader.log;
        let filter = self.logs.filter_log_events().log_group_name(&log.group).set_end_time(log.to.map(Time::millis));
        let filter = filter.set_start_time(log.from.map(Time::millis)).set_next_token(reader.token.clone());
        let answer = match filter.send().await {
            Err(error) if is_not_there(error.code()) => {
                reader.is_at_end = true;
                return Ok(Vec::new());
            }
            other => other.map_err(AwsError::aws("logs:FilterLogEvents", &log.group))?,
        };
        let mut lines = Vec::new();
        for event in answer.events() {
            let (id, time) = (event.event_id().unwrap_or_default(), event.timestamp().unwrap_or_default());
            if reader.seen.insert(id.to_owned(), time).is_none() {
                lines.extend(reader.line(event.timestamp(), event.log_stream_name(), event.message()));
            }
        }
        // Without a token, all pages were read, also empty ones:
        // https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_FilterLogEvents.html
        reader.is_at_end = answer.next_token.is_none();
        reader.token = answer.next_token;
        if reader.is_at_end {
            // The next look begins a little earlier, because streams are not written at the same time.
            if let Some(latest) = reader.seen.values().max().map(|latest| latest - LATE) {
                reader.seen.retain(|_, time| *time >= latest);
                reader.log.from = reader.log.from.max(Some(Time::from_millis(latest)));
            }
        }
        Ok(lines)
    }
}

/// Whether a log is not written yet, or gone.
fn is_not_there(code: Option<&str>) -> bool {
    code == Some("ResourceNotFoundException")
}

#[cfg(test)]
mod tests {
    use aws_sdk_cloudwatchlogs::operation::filter_log_events::FilterLogEventsOutput;
    use aws_sdk_cloudwatchlogs::operation::get_log_events::{GetLogEventsError, GetLogEventsOutput};
    use aws_sdk_cloudwatchlogs::types::error::ResourceNotFoundException;
    use aws_sdk_cloudwatchlogs::types::{FilteredLogEvent, OutputLogEvent};
    use aws_smithy_mocks::{Rule, mock};

    use super::super::account::tests::account;
    use super::super::stack::tests::task;
    use super::*;

    fn messages(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.message.as_str()).collect()
    }

    /// A page of a stream: what it is asked with, its lines, and the token that it answers.
    fn page(asked: Option<&'static str>, lines: &'static [&'static str], token: &'static str) -> Rule {
        mock!(aws_sdk_cloudwatchlogs::Client::get_log_events)
            .match_requests(move |request| request.next_token() == asked && request.start_from_head() == Some(true))
            .then_output(move || {
                let events = lines.iter().map(|line| OutputLogEvent::builder().timestamp(1_000).message(*line).build());
                GetLogEventsOutput::builder().set_events(Some(events.collect())).next_forward_token(token).build()
            })
    }

    #[tokio::test]
    async fn only_a_repeated_token_is_the_end_of_a_stream_and_it_can_be_read_on() {
        let pages = [page(None, &["one\n"], "a"), page(Some("a"), &[], "b"), page(Some("b"), &["two\u{1b}[2J"], "c")];
        let end = page(Some("c"), &[], "c");
        let account = account(&[&pages[0], &pages[1], &pages[2], &end]);
        let mut reader = Log::of_fargate_task(&task(), "id").expect("it is complete").reader();
        let mut lines = Vec::new();
        while !reader.is_at_end() {
            lines.extend(account.read(&mut reader).await.expect("it can be read"));
        }
        assert_eq!(messages(&lines), ["one", r"two\u{1b}[2J"]);
        assert_eq!(account.read(&mut reader).await.expect("it can be read"), []);
        assert_eq!(end.num_calls(), 2);
    }

    #[tokio::test]
    async fn a_stream_that_does_not_exist_yet_has_no_lines() {
        let missing = mock!(aws_sdk_cloudwatchlogs::Client::get_log_events).then_error(|| {
            GetLogEventsError::ResourceNotFoundException(
                ResourceNotFoundException::builder()
                    .meta(
                        aws_sdk_cloudwatchlogs::error::ErrorMetadata::builder()
                            .code("ResourceNotFoundException")
                            .build(),
                    )
                    .build(),
            )
        });
        let mut reader = Log::of_fargate_task(&task(), "id").expect("it is complete").reader();
        assert_eq!(account(&[&missing]).read(&mut reader).await.expect("it is not an error"), []);
        assert!(reader.is_at_end());
    }

    #[tokio::test]
    async fn the_log_of_an_image_has_its_lines_only() {
        let lines =
            page(None, &["Done\thost/app:1\t3", "Error\thost/app:12\t3\tno", "Error\thost/other:1\t1\tno"], "a");
        let image = |stream: Option<&str>| {
            let mut image = super::super::images::tests::image("app", "1", false);
            image.log_stream = stream.map(str::to_owned);
            image
        };
        let log = Log::of_image(&task(), &image(Some("copy/skopeo/id"))).expect("it has one");
        assert_eq!((log.group.as_str(), log.stream.as_deref()), ("container-logs", Some("copy/skopeo/id")));
        let read = account(&[&lines]).read(&mut log.reader()).await.expect("it can be read");
        assert_eq!(messages(&read), [r"Done\thost/app:1\t3"]);
        let error = Log::of_image(&task(), &image(None)).expect_err("it has none").to_string();
        assert!(error.starts_with("No Fargate task has tried to copy app:1"), "{error}");
    }

    fn found(
        from: Option<i64>,
        asked: Option<&'static str>,
        events: &'static [(&'static str, i64)],
        token: Option<&'static str>,
    ) -> Rule {
        mock!(aws_sdk_cloudwatchlogs::Client::filter_log_events)
            .match_requests(move |request| (request.start_time(), request.next_token()) == (from, asked))
            .then_output(move || {
                let events = events.iter().map(|(id, time)| {
                    FilteredLogEvent::builder().event_id(*id).timestamp(*time).log_stream_name("s").message(*id).build()
                });
                let answer = FilterLogEventsOutput::builder().set_events(Some(events.collect()));
                answer.set_next_token(token.map(str::to_owned)).build()
            })
    }

    #[tokio::test]
    async fn a_group_is_read_on_from_a_little_earlier_without_repeating_lines() {
        let first = found(None, None, &[("a", 100_000)], Some("t"));
        let second = found(None, Some("t"), &[("b", 200_000)], None);
        let third = found(Some(140_000), None, &[("late", 150_000), ("b", 200_000), ("c", 210_000)], None);
        let account = account(&[&first, &second, &third]);
        let mut reader = Log::of_tasks(&task()).expect("it is complete").reader();
        let mut read = async || account.read(&mut reader).await.expect("it can be read");
        assert_eq!(messages(&read().await), ["a"]);
        assert_eq!(messages(&read().await), ["b"]);
        assert_eq!(messages(&read().await), ["late", "c"]);
        assert!(reader.is_at_end());
    }

    #[test]
    fn the_streams_and_the_groups_are_those_of_the_template() {
        let template = include_str!("../../../template.yaml");
        assert!(template.contains("awslogs-stream-prefix: copy\n") && template.contains("- Name: skopeo\n"));
        for function in Function::ALL {
            assert!(template.contains(&format!("\n  {}:\n", function.log_group())), "{function:?}");
        }
    }
}
