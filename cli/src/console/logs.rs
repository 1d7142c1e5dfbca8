//! Logs: of an image, of a Fargate task, and of the functions.

use axum::extract::{Path, Query};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::Place;
use super::page::{Frame, address, task_head};
use crate::tasks::{Error, Function, Line, Log, Result, Task};

/// The last lines that a page shows.
const LINES: usize = 1_000;
/// Calls that a page makes at most, so that it answers at once. The page itself asks again.
const CALLS: usize = 8;

/// Which log.
#[derive(Deserialize)]
pub struct Choice {
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    fargate: Option<String>,
    #[serde(default)]
    function: Option<String>,
}

/// The page of a log. It is read again every few seconds.
pub async fn show(frame: Frame, Path((place, task)): Path<(String, String)>, Query(choice): Query<Choice>) -> Response {
    let content = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let lines = lines(place, &task, &choice).await;
        let base = address(place, &task.name);
        Ok(html! {
            (task_head(&frame, place, &task, "/logs", &html! {}))
            (choices(&frame, &base, &choice))
            // The browser asks for the page again, and keeps all of it but this part.
            div #log hx-get=(choice.address(&base)) hx-trigger="every 5s" hx-select="#log" hx-swap="outerHTML" {
                @match &lines {
                    Err(error) => (frame.error(error)),
                    Ok(lines) => (block(&frame, lines)),
                }
            }
        })
    };
    frame.page(frame.t("Logs"), content).await
}

impl Choice {
    /// The address of the log, in the task with the address `base`.
    fn address(&self, base: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(format!("{base}/logs?"));
        for (name, value) in [("image", &self.image), ("fargate", &self.fargate), ("function", &self.function)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        query.finish()
    }
}

async fn lines(place: &Place, task: &Task, choice: &Choice) -> Result<Vec<Line>> {
    let account = &place.account;
    let log = if let Some(image) = &choice.image {
        Log::of_image(task, &account.image(task, image).await?)?
    } else if let Some(id) = &choice.fargate {
        Log::of_fargate_task(task, id)?
    } else if let Some(name) = &choice.function {
        let function = Function::ALL.into_iter().find(|function| function.name() == name);
        let function = function.ok_or_else(|| Error::Rejected("There is no such function.".into()))?;
        account.function_log(task, function).await?
    } else {
        Log::of_tasks(task)?
    };
    let (mut reader, mut lines) = (log.reader(), Vec::new());
    for _ in 0..CALLS {
        lines.extend(account.read(&mut reader).await?);
        if reader.is_at_end() {
            break;
        }
    }
    Ok(lines.split_off(lines.len().saturating_sub(LINES)))
}

fn choices(frame: &Frame, base: &str, choice: &Choice) -> Markup {
    let all = choice.image.is_none() && choice.fargate.is_none() && choice.function.is_none();
    html! {
        nav.tabs aria-label=(frame.t("Logs")) {
            a href=(format!("{base}/logs")) aria-current=[all.then_some("true")] { (frame.t("Fargate tasks")) }
            @for function in Function::ALL {
                a href=(format!("{base}/logs?function={}", function.name())) aria-current=[(choice.function.as_deref() == Some(function.name())).then_some("true")] {
                    (function.name())
                }
            }
            @for (label, value) in [(frame.t("Image"), &choice.image), (frame.t("Fargate task"), &choice.fargate)] {
                @if let Some(value) = value { a href="" aria-current="true" { (label) " " code { (value) } } }
            }
        }
    }
}

fn block(frame: &Frame, lines: &[Line]) -> Markup {
    html! {
        @if lines.is_empty() { div.card.empty { h2 { (frame.t("The log is empty")) } } }
        @else {
            pre.log tabindex="0" aria-label=(frame.t("Log")) {
                @for line in lines {
                    span.at { @if let Some(time) = line.time { (time) } }
                    // Tabs separate the fields of a line, and are escaped like all control characters.
                    span.bad[line.message.as_str().starts_with("Error")] { (line.message.as_str().replace(r"\t", "  ")) } "\n"
                }
            }
        }
    }
}
