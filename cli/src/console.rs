//! `ecr-transfer console`: the tasks in a browser, with the person's own credentials.
//!
//! Each page is made of what the library [`crate::tasks`] returns, and each button calls one of its functions.

mod chart;
mod form;
mod images;
mod language;
mod logs;
mod overview;
mod page;
mod run;
mod security;
mod task;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;

use crate::Outcome;
use crate::output::{note, print};
use crate::tasks::{self, Account};
use security::Guard;

/// The command line after `console`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The port on 127.0.0.1; default: a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Show everything, and change nothing
    #[arg(long)]
    read_only: bool,
    /// A region with tasks; may be repeated; default: as for the AWS CLI
    #[arg(long = "region", value_name = "REGION")]
    regions: Vec<String>,
    /// A profile with credentials; may be repeated; default: as for the AWS CLI
    #[arg(long = "profile", value_name = "PROFILE")]
    profiles: Vec<String>,
    /// The template of new tasks: a URL that `make publish` printed, or a file whose code is in S3; default: that of the task that was
    /// changed last
    #[arg(long, value_name = "URL|FILE")]
    template: Option<String>,
}

/// What the pages share.
#[derive(Clone)]
pub struct App(Arc<State>);

/// The state of the console.
pub struct State {
    guard: Guard,
    places: Vec<Place>,
    /// The template of new tasks.
    template: Option<String>,
    /// Why the last long action of a task failed, by the task's address.
    problems: Mutex<HashMap<String, String>>,
}

/// Where tasks are: a profile and a region.
pub struct Place {
    /// `profile.region`, in addresses.
    id: String,
    /// The profile's name, or nothing for the default.
    profile: Option<String>,
    account: Account,
}

impl std::ops::Deref for App {
    type Target = State;
    fn deref(&self) -> &State {
        &self.0
    }
}

impl App {
    /// The console of these places.
    fn new(guard: Guard, places: Vec<Place>, template: Option<String>) -> Self {
        Self(Arc::new(State { guard, places, template, problems: Mutex::default() }))
    }

    /// Does what takes minutes. The page of its task at `address` shows the progress, and why it failed.
    fn work(&self, address: String, action: impl Future<Output = tasks::Result<()>> + Send + 'static) {
        let app = self.clone();
        app.with_problems(|problems| problems.remove(&address));
        tokio::spawn(async move {
            if let Err(error) = action.await {
                app.with_problems(|problems| problems.insert(address, error.to_string()));
            }
        });
    }

    fn problem(&self, address: &str) -> Option<String> {
        self.with_problems(|problems| problems.get(address).cloned())
    }

    fn with_problems<T>(&self, with: impl FnOnce(&mut HashMap<String, String>) -> T) -> T {
        with(&mut self.problems.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves the console until the person ends it.
///
/// # Errors
/// If there are no credentials, or the port is used.
pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let places = places(arguments).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.port)).await;
    let listener = listener.with_context(|| format!("The port {} cannot be used", arguments.port))?;
    let (guard, link) = Guard::new(listener.local_addr()?, arguments.read_only)?;
    note("Open this link. It works once, and only on this machine. Ctrl-C ends the console.");
    print(format_args!("{link}\n"))?;
    let app = App::new(guard, places, arguments.template.clone());
    let end = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    axum::serve(listener, router(app)).with_graceful_shutdown(end).await?;
    Ok(Outcome::Success)
}

async fn places(arguments: &Arguments) -> Result<Vec<Place>> {
    fn each(given: &[String]) -> Vec<Option<&String>> {
        if given.is_empty() { vec![None] } else { given.iter().map(Some).collect() }
    }
    let mut places = Vec::new();
    for profile in each(&arguments.profiles) {
        for region in each(&arguments.regions) {
            let account = Account::connect(region, profile).await?;
            let id = format!("{}.{}", profile.map_or("default", String::as_str), account.region());
            places.push(Place { id, profile: profile.cloned(), account });
        }
    }
    Ok(places)
}

fn router(app: App) -> Router {
    let asset = |kind: &'static str, content: &'static str| {
        get(move || async move { ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "private, max-age=86400")], content) })
    };
    Router::new()
        .route("/", get(overview::tasks))
        .route("/style.css", asset("text/css; charset=utf-8", include_str!("console/assets/style.css")))
        .route("/htmx.js", asset("text/javascript; charset=utf-8", include_str!("console/assets/htmx.min.js")))
        .route("/icon.svg", asset("image/svg+xml", include_str!("console/assets/icon.svg")))
        .route("/language/{code}", get(page::choose_language))
        .route("/create/{place}", get(form::create).post(form::submit_create))
        .route("/tasks/{place}/{task}", get(task::show))
        .route("/tasks/{place}/{task}/state", get(task::state))
        .route("/tasks/{place}/{task}/edit", get(form::edit).post(form::submit_edit))
        .route("/tasks/{place}/{task}/clone", get(form::clone).post(form::submit_clone))
        .route("/tasks/{place}/{task}/pause", post(task::pause))
        .route("/tasks/{place}/{task}/resume", post(task::resume))
        .route("/tasks/{place}/{task}/delete", get(task::confirm_deletion).post(task::delete))
        .route("/tasks/{place}/{task}/start", post(run::start))
        .route("/tasks/{place}/{task}/runs/{run}", get(run::show))
        .route("/tasks/{place}/{task}/runs/{run}/live", get(run::live))
        .route("/tasks/{place}/{task}/runs/{run}/stop", post(run::stop))
        .route("/tasks/{place}/{task}/images", get(images::show))
        .route("/tasks/{place}/{task}/images.csv", get(images::csv))
        .route("/tasks/{place}/{task}/logs", get(logs::show))
        .fallback(page::not_found)
        .layer(from_fn_with_state(app.clone(), security::protect))
        .with_state(app)
}

#[cfg(test)]
mod tests;
