//! What all pages have: the frame, and the pieces that they are made of.

use std::future::Future;

use axum::extract::{FromRequestParts, Path};
use axum::http::header::{ACCEPT_LANGUAGE, COOKIE, LOCATION, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use cookie::{Cookie, SameSite};
use maud::{DOCTYPE, Markup, html};

use super::language::Language;
use super::{App, Place};
use crate::tasks::{Error, Result, Task, Time};

const LANGUAGE: &str = "ecr-transfer-language";

/// No code in attributes, no styles of its own, no other host, and nothing kept when the page is left.
const HTMX: &str = r#"{"allowEval":false,"includeIndicatorStyles":false,"selfRequestsOnly":true,"historyCacheSize":0}"#;

/// A request for a page: the console, and the person's language.
pub struct Frame {
    /// The console.
    pub app: App,
    /// The person's language.
    pub language: Language,
}

impl FromRequestParts<App> for Frame {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        Ok(Self { app: app.clone(), language: language(&parts.headers) })
    }
}

fn language(headers: &HeaderMap) -> Language {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let chosen = Cookie::split_parse(text(COOKIE)).flatten().find(|cookie| cookie.name() == LANGUAGE);
    let chosen = chosen.and_then(|cookie| Language::of_code(cookie.value()));
    chosen.unwrap_or_else(|| Language::accepted(text(ACCEPT_LANGUAGE)))
}

impl Frame {
    /// A text in the person's language.
    pub fn t(&self, english: &'static str) -> &'static str {
        self.language.t(english)
    }

    /// The place of an address.
    ///
    /// # Errors
    /// If the console was not started for it.
    pub fn place(&self, id: &str) -> Result<&Place> {
        let place = self.app.places.iter().find(|place| place.id == id);
        place.ok_or_else(|| Error::Rejected(self.t("The console was not started for this profile and region.").into()))
    }

    /// A whole page, or the page of its error.
    pub async fn page(&self, title: &str, content: impl Future<Output = Result<Markup>>) -> Response {
        match content.await {
            Ok(content) => self.around(title, &content).into_response(),
            Err(error) => (StatusCode::BAD_GATEWAY, self.around(title, &self.error(&error))).into_response(),
        }
    }

    /// A part of a page, or its error.
    pub async fn part(&self, content: impl Future<Output = Result<Markup>>) -> Response {
        // htmx ignores what does not succeed.
        content.await.unwrap_or_else(|error| self.error(&error)).into_response()
    }

    /// Another page after an action, or the page of its error.
    pub async fn then(&self, title: &str, action: impl Future<Output = Result<String>>) -> Response {
        match action.await {
            Ok(address) => (StatusCode::SEE_OTHER, [(LOCATION, address)]).into_response(),
            Err(error) => (StatusCode::BAD_REQUEST, self.around(title, &self.error(&error))).into_response(),
        }
    }

    /// An error, with what to do.
    pub fn error(&self, error: &Error) -> Markup {
        html! {
            div.note.bad role="alert" {
                @match error {
                    Error::Parameters(problems) => {
                        p { strong { (self.t("Some values are not valid.")) } }
                        ul { @for problem in problems { li { (problem) } } }
                    }
                    _ => p { (error) }
                }
                @if let Some(action) = error.denied_action() {
                    p { (self.t("Your credentials need this permission:")) " " code { (action) } }
                }
            }
        }
    }

    /// The frame around a page.
    pub fn around(&self, title: &str, content: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang=(self.language.code()) {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="htmx-config" content=(HTMX);
                    title { (title) " · ecr-transfer" }
                    link rel="stylesheet" href="/style.css";
                    link rel="icon" href="/icon.svg" type="image/svg+xml";
                    script src="/htmx.js" defer {}
                }
                body {
                    a.skip href="#content" { (self.t("Skip to the content")) }
                    header.top {
                        div {
                            a.name href="/" { "ecr-transfer" }
                            nav aria-label=(self.t("Main")) { a href="/" { (self.t("Tasks")) } }
                            div.end {
                                @if self.app.guard.is_read_only() { span.state { (self.t("Read-only")) } }
                                @match self.language {
                                    Language::English => a href="/language/zh" lang="zh-CN" { "中文" },
                                    Language::Chinese => a href="/language/en" lang="en" { "English" },
                                }
                            }
                        }
                    }
                    main #content { (content) }
                }
            }
        }
    }

    /// A button that does something. `address` is where it is posted to.
    pub fn button(&self, address: &str, label: &str, class: &str) -> Markup {
        let is_read_only = self.app.guard.is_read_only();
        let reason = is_read_only.then(|| self.t("The console was started with --read-only."));
        html! {
            form.inline method="post" action=(address) {
                button class=(class) disabled[is_read_only] title=[reason] { (label) }
            }
        }
    }

    /// A time, as the person reads it, with its distance.
    pub fn time(&self, time: Option<Time>) -> Markup {
        html! {
            @if let Some(time) = time {
                time.nowrap datetime=(time) title=(time) { (self.ago(time)) }
            } @else { "–" }
        }
    }

    fn ago(&self, time: Time) -> String {
        let seconds = Time::now().seconds_since(time);
        let (number, unit) = match seconds {
            0..60 => return self.t("just now").to_owned(),
            60..3_600 => (seconds / 60, self.t("min ago")),
            3_600..172_800 => (seconds / 3_600, self.t("h ago")),
            _ => (seconds / 86_400, self.t("days ago")),
        };
        format!("{number} {unit}")
    }
}

/// The title of a page about a task, with the way back and its tabs.
pub fn task_head(frame: &Frame, place: &Place, task: &Task, current: &str, actions: &Markup) -> Markup {
    let base = address(place, &task.name);
    let tabs = [("", frame.t("Overview")), ("/images", frame.t("Images")), ("/logs", frame.t("Logs"))];
    html! {
        nav.crumbs aria-label=(frame.t("Path")) { a href="/" { (frame.t("Tasks")) } " / " (task.name) " · " (place.label()) }
        div.head {
            h1 { (task.name) }
            (state(frame, task))
            div.actions { (actions) }
        }
        nav.tabs aria-label=(frame.t("Parts of the task")) {
            @for (path, label) in tabs {
                a href=(format!("{base}{path}")) aria-current=[(path == current).then_some("page")] { (label) }
            }
        }
    }
}

/// The state of a task: CloudFormation's, and whether it is paused.
pub fn state(frame: &Frame, task: &Task) -> Markup {
    let (class, text) = match task.status.as_str() {
        _ if task.is_complete() && task.paused == Some(true) => ("", frame.t("Paused")),
        _ if task.is_complete() => ("good", frame.t("Ready")),
        status if status.ends_with("_IN_PROGRESS") => ("wait", frame.t("Changing")),
        _ => ("bad", frame.t("Failed")),
    };
    html! { span class=(format!("state {class}")) title=(task.status) { (text) } }
}

/// The address of a task.
pub fn address(place: &Place, task: &str) -> String {
    format!("/tasks/{}/{task}", place.id)
}

impl Place {
    /// The profile and the region, for people.
    pub fn label(&self) -> String {
        let region = self.account.region();
        self.profile.as_ref().map_or_else(|| region.to_owned(), |profile| format!("{profile}, {region}"))
    }
}

/// Bytes in the unit that fits.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{} kB", count.div_ceil(1_000)),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

/// Seconds in the units that fit.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

/// Keeps the language, and goes back to the tasks.
pub async fn choose_language(Path(code): Path<String>) -> Response {
    let Some(language) = Language::of_code(&code) else { return StatusCode::NOT_FOUND.into_response() };
    let cookie =
        Cookie::build((LANGUAGE, language.code())).path("/").http_only(true).same_site(SameSite::Strict).permanent();
    (StatusCode::SEE_OTHER, [(SET_COOKIE, cookie.build().to_string()), (LOCATION, "/".to_owned())]).into_response()
}

/// The page of an address that the console does not have.
pub async fn not_found(frame: Frame) -> Response {
    let content = html! {
        h1 { (frame.t("There is no such page")) }
        p { a href="/" { (frame.t("All tasks")) } }
    };
    (StatusCode::NOT_FOUND, frame.around(frame.t("There is no such page"), &content)).into_response()
}
