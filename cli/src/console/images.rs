//! The images of a task: the result of each one's last copy.

use axum::extract::{Path, Query};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::page::{Frame, address, bytes, task_head};
use crate::tasks::{self, Image};

/// Images of a page.
const PAGE: usize = 100;

/// What the person looks for.
#[derive(Deserialize)]
pub struct Search {
    #[serde(default)]
    search: String,
    #[serde(default)]
    failed: Option<String>,
    #[serde(default)]
    from: Option<String>,
}

impl Search {
    fn text(&self) -> Option<&str> {
        Some(self.search.trim()).filter(|text| !text.is_empty())
    }
}

/// The page of images.
pub async fn show(frame: Frame, Path((place, task)): Path<(String, String)>, Query(query): Query<Search>) -> Response {
    let content = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let failed = query.failed.is_some();
        let images = place.account.images(&task, query.text(), failed, PAGE, query.from.as_deref()).await?;
        let base = address(place, &task.name);
        let parameters = |from: Option<&str>| {
            let mut pairs = form_urlencoded::Serializer::new(String::new());
            pairs.append_pair("search", &query.search);
            if failed {
                pairs.append_pair("failed", "1");
            }
            if let Some(from) = from {
                pairs.append_pair("from", from);
            }
            pairs.finish()
        };
        Ok(html! {
            (task_head(&frame, place, &task, "/images", &html! {}))
            form.filter method="get" {
                div { label for="search" { (frame.t("Search")) } input #search name="search" type="search" value=(query.search) placeholder="team/app:1."; }
                div { label { input name="failed" type="checkbox" value="1" checked[failed]; " " (frame.t("Only those that fail")) } }
                button.main { (frame.t("Show")) }
                a.button href=(format!("{base}/images.csv?{}", parameters(None))) { "CSV" }
            }
            @if images.items.is_empty() {
                div.card.empty {
                    @if failed { h2 { (frame.t("No image fails")) } } @else { h2 { (frame.t("There are no such images")) } }
                    p { (frame.t("Images appear here when a run has copied them, or tried to.")) }
                }
            } @else { (table(&frame, &base, &images.items)) }
            @if let Some(next) = &images.next { p { a.button href=(format!("{base}/images?{}", parameters(Some(next)))) { (frame.t("More")) } } }
        })
    };
    frame.page(frame.t("Images"), content).await
}

fn table(frame: &Frame, base: &str, images: &[Image]) -> Markup {
    let [name, state, size, tries, when] =
        [frame.t("Image"), frame.t("State"), frame.t("Bytes"), frame.t("Attempts"), frame.t("Last copy")];
    html! {
        section.card { div.scroll { table.rows {
            thead { tr { th { (name) } th { (state) } th.right { (size) } th.right { (tries) } th { (when) } } }
            tbody { @for image in images { tr {
                td data-label=(name) { div {
                    strong { (image.name()) }
                    @if let Some(error) = &image.error { p.quiet { (error) } }
                    details {
                        summary { (frame.t("Details")) }
                        dl.pairs {
                            @for (label, value) in [
                                (frame.t("Source"), &image.source), (frame.t("Destination"), &image.destination),
                                (frame.t("Digest"), &image.digest), (frame.t("Platforms"), &image.platforms), (frame.t("Run"), &image.run),
                            ] { @if let Some(value) = value { dt { (label) } dd { code { (value) } } } }
                        }
                        @if image.log_stream.is_some() { a href=(log_address(base, image)) { (frame.t("Log")) } }
                    }
                } }
                td data-label=(state) {
                    @if image.is_done { span.state.good { (frame.t("Copied")) } } @else { span.state.bad { (frame.t("Failed")) } }
                }
                td.right data-label=(size) { (image.bytes.map_or_else(|| "–".into(), bytes)) }
                td.right data-label=(tries) { (image.attempts.map_or_else(|| "–".into(), |count| count.to_string())) }
                td data-label=(when) { (frame.time(image.last_done_at)) }
            } } }
        } } }
    }
}

fn log_address(base: &str, image: &Image) -> String {
    let mut query = form_urlencoded::Serializer::new(format!("{base}/logs?"));
    query.append_pair("image", &image.name());
    query.finish()
}

/// The same images as CSV, all of them.
pub async fn csv(frame: Frame, Path((place, task)): Path<(String, String)>, Query(query): Query<Search>) -> Response {
    let content = async {
        let place = frame.place(&place)?;
        let task = place.account.task(&task).await?;
        let (mut images, mut from) = (Vec::new(), None);
        loop {
            let page =
                place.account.images(&task, query.text(), query.failed.is_some(), 1_000, from.as_deref()).await?;
            images.extend(page.items);
            from = page.next;
            if from.is_none() {
                break tasks::Result::Ok((task.name, tasks::csv(&images)));
            }
        }
    };
    match content.await {
        Ok((name, csv)) => {
            let disposition = format!("attachment; filename=\"{name}-images.csv\"");
            ([(CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()), (CONTENT_DISPOSITION, disposition)], csv)
                .into_response()
        }
        Err(error) => frame.page(frame.t("Images"), async { Err(error) }).await,
    }
}
