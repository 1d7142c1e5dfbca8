//! A run: starts it, shows it while it lasts, and stops it.

use axum::Form;
use axum::extract::Path;
use axum::response::Response;
use futures_util::future::join;
use maud::{Markup, html};
use serde::Deserialize;

use super::Place;
use super::page::{Frame, address, bytes, duration, task_head};
use crate::tasks::{Batch, Counts, Decision, Input, Result, Run, RunDetails, Status, Task};

/// The batches and decisions that a page shows.
const ROWS: usize = 200;

/// What a person asks for when starting a run.
#[derive(Deserialize)]
pub struct Start {
    #[serde(default)]
    dry_run: Option<String>,
    #[serde(default)]
    images: String,
}

/// The status of a run.
pub fn status(frame: &Frame, run: &Run) -> Markup {
    let (class, text) = match run.status {
        Status::Running => ("wait", frame.t("Running")),
        Status::Succeeded => ("good", frame.t("Succeeded")),
        Status::Failed => ("bad", frame.t("Failed")),
        Status::TimedOut => ("bad", frame.t("Timed out")),
        Status::Aborted => ("", frame.t("Stopped")),
    };
    html! { span class=(format!("state {class}")) { (text) } }
}

/// Starts a run, and shows it.
pub async fn start(frame: Frame, Path((place, task)): Path<(String, String)>, Form(form): Form<Start>) -> Response {
    let action = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let images = form.images.trim();
        let src_image_list = (!images.is_empty()).then(|| images.to_owned());
        let run = place.account.start(&task, &Input { dry_run: form.dry_run.is_some(), src_image_list }).await?;
        Ok(format!("{}/runs/{run}", address(place, &task.name)))
    };
    frame.then(frame.t("Start a run"), action).await
}

/// Stops a run. Its page shows how its Fargate tasks end.
pub async fn stop(frame: Frame, Path((place, task, run)): Path<(String, String, String)>) -> Response {
    let action = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let base = address(place, &task.name);
        let page = format!("{base}/runs/{run}");
        let account = place.account.clone();
        frame.app.work(base, async move { account.stop(&task, Some(&run), |_| {}).await.map(drop) });
        Ok(page)
    };
    frame.then(frame.t("Stop"), action).await
}

/// The page of a run.
pub async fn show(frame: Frame, Path((place, task, run)): Path<(String, String, String)>) -> Response {
    let content = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let details = place.account.run(&task, &run).await?;
        let live = content(&frame, place, &task, &details).await?;
        Ok(
            html! { (task_head(&frame, place, &task, "/runs", &html! {})) h2 { (frame.t("Run")) " " code { (run) } } (live) },
        )
    };
    frame.page(&run, content).await
}

/// The part of the page that changes.
pub async fn live(frame: Frame, Path((place, task, run)): Path<(String, String, String)>) -> Response {
    let content = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let details = place.account.run(&task, &run).await?;
        content(&frame, place, &task, &details).await
    };
    frame.part(content).await
}

async fn content(frame: &Frame, place: &Place, task: &Task, details: &RunDetails) -> Result<Markup> {
    let (batches, report) = join(
        async {
            if details.run.counts.is_some() { place.account.batches(task, details).await } else { Ok(Vec::new()) }
        },
        async { if details.report.is_some() { place.account.report(task, details).await } else { Ok(Vec::new()) } },
    )
    .await;
    let base = address(place, &task.name);
    let live = format!("{base}/runs/{}/live", details.run.name);
    let is_live = !details.run.status.is_final();
    Ok(html! {
        // Without these attributes, htmx asks no more.
        div #live hx-get=[is_live.then_some(&live)] hx-trigger=[is_live.then_some("every 2s")] hx-swap=[is_live.then_some("outerHTML")] {
            div.actions.head {
                (status(frame, &details.run))
                span.quiet { (frame.time(details.run.started_at)) @if let Some(seconds) = details.run.seconds() { " · " (duration(seconds)) } }
                @if details.input.dry_run { span.state { (frame.t("Dry run")) } }
                div.actions {
                    @if is_live { (frame.button(&format!("{base}/runs/{}/stop", details.run.name), frame.t("Stop"), "danger")) }
                    @else if details.run.counts.is_some_and(|counts| counts.failed > 0) {
                        (frame.button(&format!("{base}/start"), frame.t("Copy the failed ones again"), "main"))
                    }
                }
            }
            @if let Some(problem) = frame.app.problem(&base) { div.note.bad role="alert" { p { (problem) } } }
            @if let Some(list) = &details.input.src_image_list { p { (frame.t("Only these images:")) " " code { (list) } } }
            @if let Some(error) = &details.error {
                div.note.bad role="alert" { p { strong { (error) } } @if let Some(cause) = &details.cause { p { (cause) } } }
            }
            @if let Some(counts) = &details.run.counts { (numbers(frame, details, counts)) }
            @if !details.failures.is_empty() {
                section.card {
                    h2 { (frame.t("Failures")) }
                    ul { @for failure in &details.failures { li { (failure) } } }
                    p { a href=(format!("{base}/images?failed=1")) { (frame.t("All images that fail")) } }
                }
            }
            @match &batches {
                Err(error) => (frame.error(error)),
                Ok(batches) if batches.is_empty() => {}
                Ok(batches) => (batch_table(frame, &base, batches)),
            }
            @match &report {
                Err(error) => (frame.error(error)),
                Ok(report) if report.is_empty() => {}
                Ok(report) => (decisions(frame, report)),
            }
        }
    })
}

fn numbers(frame: &Frame, details: &RunDetails, counts: &Counts) -> Markup {
    let mut all = vec![
        (frame.t("At the source"), counts.listed.to_string()),
        (frame.t("Unchanged"), counts.unchanged.to_string()),
        (frame.t("Excluded"), counts.excluded.to_string()),
        (frame.t("To copy"), counts.to_copy.to_string()),
    ];
    if !details.input.dry_run {
        all.push((frame.t("Copied"), counts.done.to_string()));
        all.push((frame.t("Failed"), counts.failed.to_string()));
        all.push((frame.t("Left"), details.left.to_string()));
    }
    if details.input.dry_run {
        all.push((frame.t("Bytes"), bytes(counts.bytes)));
    } else {
        all.push((frame.t("Bytes copied"), bytes(counts.bytes_done)));
        all.push((frame.t("Bytes planned"), bytes(counts.bytes)));
    }
    if let Some(rate) = details.bytes_per_second.filter(|&rate| rate > 0) {
        all.push((frame.t("Rate"), format!("{}/s", bytes(rate))));
    }
    html! {
        dl.numbers { @for (label, value) in all { div { dt { (label) } dd { (value) } } } }
        @if !details.run.status.is_final() && counts.to_copy > 0 {
            progress max=(counts.to_copy) value=(counts.done + counts.failed) aria-label=(frame.t("Copied")) {}
        }
    }
}

fn batch_table(frame: &Frame, base: &str, batches: &[Batch]) -> Markup {
    let [batch, images, size, state, log] =
        [frame.t("Batch"), frame.t("Images"), frame.t("Bytes"), frame.t("Fargate task"), frame.t("Log")];
    html! {
        section.card {
            h2 { (frame.t("Batches")) }
            div.scroll { table.rows {
                thead { tr { th { (batch) } th.right { (images) } th.right { (size) } th { (state) } th { (log) } } }
                tbody { @for it in batches.iter().take(ROWS) { tr {
                    td data-label=(batch) { (it.id) }
                    td.right data-label=(images) { (it.images) }
                    td.right data-label=(size) { (bytes(it.bytes)) }
                    td data-label=(state) { div { (batch_state(frame, it)) } }
                    td data-label=(log) {
                        @if let Some(task) = &it.task { a href=(format!("{base}/logs?fargate={}", task.id)) { (frame.t("Log")) } } @else { "–" }
                    }
                } } }
            } }
            @if batches.len() > ROWS { p.quiet { (ROWS) " / " (batches.len()) } }
        }
    }
}

fn batch_state(frame: &Frame, batch: &Batch) -> Markup {
    html! {
        @if batch.is_recorded { span.state.good { (frame.t("Ended")) } }
        @else if let Some(task) = &batch.task {
            span.state.wait { (task.status) }
            @if let Some(reason) = &task.stopped_reason { " " (reason) }
        } @else { span.state { (frame.t("Waiting")) } }
    }
}

fn decisions(frame: &Frame, report: &[Decision]) -> Markup {
    let [source, destination, reason] = [frame.t("Source"), frame.t("Destination"), frame.t("Why")];
    html! {
        section.card {
            h2 { (frame.t("What a run would do")) }
            div.scroll { table.rows {
                thead { tr { th { (source) } th { (destination) } th { (reason) } } }
                tbody { @for it in report.iter().take(ROWS) { tr {
                    td data-label=(source) { (it.source) }
                    td data-label=(destination) { @if let Some(destination) = &it.destination { (destination) } @else { "–" } }
                    td data-label=(reason) { div {
                        (it.reason)
                        @if let Some(rule) = &it.rule { ": " code { (rule) } }
                        @if let Some(error) = &it.error { ": " (error) }
                    } }
                } } }
            } }
            @if report.len() > ROWS { p.quiet { (ROWS) " / " (report.len()) } }
        }
    }
}
