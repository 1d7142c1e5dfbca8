//! A task: what it is, what it does, and what a person does with it.

use axum::Form;
use axum::extract::Path;
use axum::response::Response;
use futures_util::future::join;
use maud::{Markup, html};
use serde::Deserialize;

use super::Place;
use super::chart::chart;
use super::overview::{duration_bars, summary};
use super::page::{Frame, address, duration, state as state_of, task_head};
use super::run::status;
use crate::tasks::{Error, Event, Run, Task};

/// Runs and events that the page shows.
const RUNS: usize = 15;
const EVENTS: usize = 15;

/// The page of a task.
pub async fn show(frame: Frame, Path((place, task)): Path<(String, String)>) -> Response {
    let content = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let base = address(place, &task.name);
        let runs = async {
            if task.outputs.is_empty() {
                Ok(Vec::new())
            } else {
                place.account.runs(&task, RUNS, None).await.map(|it| it.items)
            }
        };
        let (runs, live) = join(runs, live(&frame, place, &task)).await;
        Ok(html! {
            (task_head(&frame, place, &task, "", &actions(&frame, &base, &task)))
            (live)
            @if task.is_complete() { (start_form(&frame, &base)) }
            section.card {
                h2 { (frame.t("Runs")) }
                @match &runs {
                    Err(error) => (frame.error(error)),
                    Ok(runs) if runs.is_empty() => p.quiet { (frame.t("No run yet")) },
                    Ok(runs) => (run_table(&frame, &base, runs)),
                }
            }
            (parameters(&frame, &base, &task))
        })
    };
    frame.page(&task, content).await
}

fn actions(frame: &Frame, base: &str, task: &Task) -> Markup {
    html! {
        @if task.is_complete() {
            @match task.paused {
                Some(true) => (frame.button(&format!("{base}/resume"), frame.t("Resume"), "")),
                Some(false) => (frame.button(&format!("{base}/pause"), frame.t("Pause"), "")),
                None => {}
            }
            @if !frame.app.guard.is_read_only() {
                a.button href=(format!("{base}/edit")) { (frame.t("Edit")) }
                a.button href=(format!("{base}/clone")) { (frame.t("Clone")) }
            }
        }
        @if !frame.app.guard.is_read_only() { a.button href=(format!("{base}/delete")) { (frame.t("Delete")) } }
    }
}

fn start_form(frame: &Frame, base: &str) -> Markup {
    let is_read_only = frame.app.guard.is_read_only();
    html! {
        section.card {
            h2 { (frame.t("Start a run")) }
            form method="post" action=(format!("{base}/start")) {
                fieldset disabled[is_read_only] {
                    div.field {
                        label for="images" { (frame.t("Other images")) }
                        p.help #images-help { (frame.t("Leave it blank to copy what the task selects. Otherwise a list as for srcImageList.")) }
                        input #images name="images" aria-describedby="images-help" placeholder="nginx:1.27,quay.io/coreos/etcd:v3.5.16";
                    }
                    div.actions {
                        button.main { (frame.t("Start")) }
                        button name="dry_run" value="1" { (frame.t("Dry run: what would it copy?")) }
                    }
                }
            }
        }
    }
}

fn run_table(frame: &Frame, base: &str, runs: &[Run]) -> Markup {
    let [run_label, state, started, took, copied, failed] = [
        frame.t("Run"),
        frame.t("State"),
        frame.t("Started"),
        frame.t("Duration"),
        frame.t("Copied"),
        frame.t("Failed"),
    ];
    let longest = runs.iter().filter_map(Run::seconds).max().unwrap_or_default();
    html! {
        @if runs.len() > 1 { (chart(&duration_bars(frame, runs), &duration(longest), [frame.t("Earlier"), frame.t("Now")], &summary(frame, runs))) }
        div.scroll { table.rows {
            thead { tr { th { (run_label) } th { (state) } th { (started) } th.right { (took) } th.right { (copied) } th.right { (failed) } } }
            tbody { @for run in runs { tr {
                td data-label=(run_label) { a href=(format!("{base}/runs/{}", run.name)) { code { (run.name) } } }
                td data-label=(state) { (status(frame, run)) }
                td data-label=(started) { (frame.time(run.started_at)) }
                td.right data-label=(took) { (run.seconds().map_or_else(|| "–".into(), duration)) }
                td.right data-label=(copied) { (run.counts.map_or_else(|| "–".into(), |it| it.done.to_string())) }
                td.right data-label=(failed) { (run.counts.map_or_else(|| "–".into(), |it| it.failed.to_string())) }
            } } }
        } }
    }
}

fn parameters(frame: &Frame, base: &str, task: &Task) -> Markup {
    html! {
        section.card {
            h2 { (frame.t("Parameters")) }
            dl.columns {
                @for (name, value) in task.parameters.iter().filter(|(_, value)| !value.is_empty()) {
                    div { dt { (name) } dd { code { (value) } } }
                }
            }
            @if !frame.app.guard.is_read_only() && task.is_complete() { p { a href=(format!("{base}/edit")) { (frame.t("Edit")) } } }
        }
    }
}

/// The part of the page that changes while CloudFormation works.
pub async fn state(frame: Frame, Path((place, task)): Path<(String, String)>) -> Response {
    let content = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        Ok(live(&frame, place, &task).await)
    };
    frame.part(content).await
}

async fn live(frame: &Frame, place: &Place, task: &Task) -> Markup {
    let base = address(place, &task.name);
    let is_changing = task.status.ends_with("_IN_PROGRESS");
    let address = format!("{base}/state");
    let events = if task.is_complete() { Ok(Vec::new()) } else { place.account.events(task, EVENTS).await };
    html! {
        div #state hx-get=[is_changing.then_some(&address)] hx-trigger=[is_changing.then_some("every 2s")] hx-swap=[is_changing.then_some("outerHTML")] {
            @if let Some(problem) = frame.app.problem(&base) { div.note.bad role="alert" { p { (problem) } } }
            section.card {
                dl.pairs {
                    dt { (frame.t("Source")) } dd { (task.source) }
                    dt { (frame.t("Destination")) } dd { (task.destination) }
                    dt { (frame.t("Schedule")) } dd { code { (task.schedule) } }
                    dt { (frame.t("State")) } dd { (state_of(frame, task)) " " code.quiet { (task.status) } }
                    @if let Some(reason) = &task.status_reason { dt { (frame.t("Why")) } dd { (reason) } }
                    dt { (frame.t("Changed")) } dd { (frame.time(task.updated_at.or(task.created_at))) }
                }
            }
            @match &events {
                Err(error) => (frame.error(error)),
                Ok(events) if events.is_empty() => {}
                Ok(events) => (event_list(frame, events)),
            }
        }
    }
}

fn event_list(frame: &Frame, events: &[Event]) -> Markup {
    html! {
        section.card {
            h2 { (frame.t("What CloudFormation does")) }
            ul aria-live="polite" { @for event in events { li {
                (frame.time(event.time)) " " strong { (event.resource) } " " code { (event.status) }
                @if let Some(reason) = &event.reason { " " (reason) }
            } } }
        }
    }
}

/// Pauses a task.
pub async fn pause(frame: Frame, path: Path<(String, String)>) -> Response {
    set_paused(&frame, path, true).await
}

/// Resumes a task.
pub async fn resume(frame: Frame, path: Path<(String, String)>) -> Response {
    set_paused(&frame, path, false).await
}

async fn set_paused(frame: &Frame, Path((place, task)): Path<(String, String)>, paused: bool) -> Response {
    let action = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        place.account.set_paused(&task, paused).await?;
        Ok(address(place, &task.name))
    };
    frame.then(&task, action).await
}

/// The name of the task, which a person types to delete it.
#[derive(Deserialize)]
pub struct Confirmation {
    name: String,
}

/// Asks whether a task is to be deleted.
pub async fn confirm_deletion(frame: Frame, Path((place, task)): Path<(String, String)>) -> Response {
    let content = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let base = address(place, &task.name);
        Ok(html! {
            (task_head(&frame, place, &task, "/delete", &html! {}))
            section.card {
                h2 { (frame.t("Delete this task?")) }
                p { (frame.t("Running executions are stopped first. The stack and its functions are deleted. The copied images stay in ECR, and so do the tables, the logs and the bucket, unless the parameters say otherwise.")) }
                form method="post" action=(format!("{base}/delete")) {
                    fieldset disabled[frame.app.guard.is_read_only()] {
                        div.field {
                            label for="name" { (frame.t("Type the name of the task to delete it:")) " " code { (task.name) } }
                            input #name name="name" autocomplete="off" required pattern=(task.name);
                        }
                        div.actions { button.danger { (frame.t("Delete")) } a.button href=(base) { (frame.t("Cancel")) } }
                    }
                }
            }
        })
    };
    frame.page(frame.t("Delete"), content).await
}

/// Deletes a task. Its page shows how.
pub async fn delete(
    frame: Frame,
    Path((place, name)): Path<(String, String)>,
    Form(form): Form<Confirmation>,
) -> Response {
    let action = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&name).await?;
        if form.name != task.name {
            return Err(Error::Rejected(frame.t("The name is not that of the task. Nothing was deleted.").into()));
        }
        let base = address(place, &task.name);
        let account = place.account.clone();
        frame.app.work(base.clone(), async move { account.delete(&task, |_| {}).await.map(drop) });
        Ok(base)
    };
    frame.then(frame.t("Delete"), action).await
}
