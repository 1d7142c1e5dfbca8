//! All tasks of the chosen profiles and regions.

use axum::response::Response;
use futures_util::future::join_all;
use maud::{Markup, html};

use super::Place;
use super::chart::{Bar, sparkline};
use super::page::{Frame, address, duration, state};
use super::run::status;
use crate::tasks::{Result, Run, Status, Task};

/// Runs that the list knows of each task.
const RUNS: usize = 20;

/// A task, with its last runs as far as they can be read.
struct Row<'a> {
    place: &'a Place,
    task: Task,
    runs: Vec<Run>,
}

/// The list of tasks.
pub async fn tasks(frame: Frame) -> Response {
    frame.page(frame.t("Tasks"), async { Ok(list(&frame).await) }).await
}

async fn list(frame: &Frame) -> Markup {
    let places = join_all(frame.app.places.iter().map(async |place| (place, rows(place).await))).await;
    let is_empty = places.iter().all(|(_, rows)| rows.as_ref().is_ok_and(Vec::is_empty));
    html! {
        div.head {
            h1 { (frame.t("Tasks")) }
            div.actions {
                @for place in &frame.app.places {
                    a.button.main href=(format!("/create/{}", place.id)) {
                        (frame.t("Create a task")) @if frame.app.places.len() > 1 { " · " (place.label()) }
                    }
                }
            }
        }
        @if is_empty {
            div.card.empty {
                h2 { (frame.t("There are no tasks here yet")) }
                p { (frame.t("A task copies images from one source to one ECR registry. Create the first one, or start the console with another --profile or --region.")) }
            }
        }
        @for (place, rows) in &places {
            @match rows {
                Err(error) => { h2 { (place.label()) } (frame.error(error)) }
                Ok(rows) if rows.is_empty() => {}
                Ok(rows) => (table(frame, place, rows)),
            }
        }
    }
}

async fn rows(place: &Place) -> Result<Vec<Row<'_>>> {
    let tasks = place.account.tasks().await?;
    Ok(join_all(tasks.into_iter().map(async |task| {
        // A task that is being created has none. Without the permission, the list has no runs.
        let runs = place.account.runs(&task, RUNS, None).await.map(|page| page.items).unwrap_or_default();
        Row { place, task, runs }
    }))
    .await)
}

fn table(frame: &Frame, place: &Place, rows: &[Row]) -> Markup {
    let [task, source, destination, state_label, last, runs] = [
        frame.t("Task"),
        frame.t("Source"),
        frame.t("Destination"),
        frame.t("State"),
        frame.t("Last run"),
        frame.t("Last runs"),
    ];
    html! {
        section.card {
            h2 { (place.label()) }
            div.scroll { table.rows {
                thead { tr { th { (task) } th { (source) } th { (destination) } th { (state_label) } th { (last) } th { (runs) } } }
                tbody { @for row in rows { tr {
                    td data-label=(task) { a href=(address(row.place, &row.task.name)) { strong { (row.task.name) } } }
                    td data-label=(source) { (row.task.source) }
                    td data-label=(destination) { (row.task.destination) }
                    td data-label=(state_label) { (state(frame, &row.task)) }
                    td data-label=(last) { div { (last_run(frame, row)) } }
                    td data-label=(runs) { (spark(frame, &row.runs)) }
                } } }
            } }
        }
    }
}

fn last_run(frame: &Frame, row: &Row) -> Markup {
    html! {
        @if let Some(run) = row.runs.first() {
            a href=(format!("{}/runs/{}", address(row.place, &row.task.name), run.name)) { (status(frame, run)) }
            " " (frame.time(run.started_at))
            @if let Some(counts) = run.counts.filter(|counts| counts.failed > 0) {
                " " span.nowrap { (counts.failed) " " (frame.t("failed")) }
            }
        } @else { span.quiet { (frame.t("No run yet")) } }
    }
}

fn spark(frame: &Frame, runs: &[Run]) -> Markup {
    html! { @if !runs.is_empty() { (sparkline(&duration_bars(frame, runs), &summary(frame, runs))) } }
}

/// The durations of runs, the oldest first.
pub fn duration_bars(frame: &Frame, runs: &[Run]) -> Vec<Bar> {
    let bar = |run: &Run| {
        let seconds = run.seconds().unwrap_or_default();
        let failed = run.counts.map_or(0, |counts| counts.failed);
        let label = format!("{}: {}, {failed} {}", run.name, duration(seconds), frame.t("failed"));
        Bar { value: seconds as f64, is_bad: has_failed(run), label }
    };
    runs.iter().rev().map(bar).collect()
}

/// What a picture of runs shows, in words.
pub fn summary(frame: &Frame, runs: &[Run]) -> String {
    let failed = runs.iter().filter(|run| has_failed(run)).count();
    format!("{} {}, {failed} {}", runs.len(), frame.t("runs"), frame.t("failed"))
}

fn has_failed(run: &Run) -> bool {
    run.counts.is_some_and(|counts| counts.failed > 0) || matches!(run.status, Status::Failed | Status::TimedOut)
}
