//! The form of a task: drawn from the parameters of its template, so that it cannot drift from them.

use axum::Form;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use maud::{Markup, html};

use super::Place;
use super::page::{Frame, address};
use crate::tasks::{Error, Package, Parameter, Problem, Result, Task, Values};

/// The field of the task's name. No parameter has this name, because theirs are letters and digits.
const NAME: &str = "-name";

/// What a form is for.
enum Purpose {
    Create,
    Edit(Task),
    Clone(Task),
}

/// A form with its values, and what is wrong with them.
struct Draft<'a> {
    frame: &'a Frame,
    place: &'a Place,
    purpose: Purpose,
    package: Package,
    name: String,
    values: Values,
}

/// The form of a new task.
pub async fn create(frame: Frame, Path(place): Path<String>) -> Response {
    let content = async { Ok(Draft::create(&frame, &place).await?.show(None)) };
    frame.page(frame.t("Create a task"), content).await
}

/// Creates a task.
pub async fn submit_create(
    frame: Frame,
    Path(place): Path<String>,
    Form(fields): Form<Vec<(String, String)>>,
) -> Response {
    submit(&frame, Draft::create(&frame, &place).await, fields).await
}

/// The form of a task that exists.
pub async fn edit(frame: Frame, Path((place, task)): Path<(String, String)>) -> Response {
    let content = async { Ok(Draft::of_task(&frame, &place, &task, Purpose::Edit).await?.show(None)) };
    frame.page(frame.t("Edit"), content).await
}

/// Changes a task.
pub async fn submit_edit(
    frame: Frame,
    Path((place, task)): Path<(String, String)>,
    Form(fields): Form<Vec<(String, String)>>,
) -> Response {
    submit(&frame, Draft::of_task(&frame, &place, &task, Purpose::Edit).await, fields).await
}

/// The form of a task like another one.
pub async fn clone(frame: Frame, Path((place, task)): Path<(String, String)>) -> Response {
    let content = async { Ok(Draft::of_task(&frame, &place, &task, Purpose::Clone).await?.show(None)) };
    frame.page(frame.t("Clone"), content).await
}

/// Creates the clone of a task.
pub async fn submit_clone(
    frame: Frame,
    Path((place, task)): Path<(String, String)>,
    Form(fields): Form<Vec<(String, String)>>,
) -> Response {
    submit(&frame, Draft::of_task(&frame, &place, &task, Purpose::Clone).await, fields).await
}

async fn submit(frame: &Frame, draft: Result<Draft<'_>>, fields: Vec<(String, String)>) -> Response {
    let mut draft = match draft {
        Ok(draft) => draft,
        Err(error) => return frame.then(frame.t("Tasks"), async { Err(error) }).await,
    };
    draft.fill(fields);
    match draft.submit().await {
        Ok(name) => frame.then(&name, async { Ok(address(draft.place, &name)) }).await,
        // The form again, with everything that was typed.
        Err(error) => (StatusCode::BAD_REQUEST, frame.around(draft.title(), &draft.show(Some(&error)))).into_response(),
    }
}

impl<'a> Draft<'a> {
    async fn create(frame: &'a Frame, place: &str) -> Result<Self> {
        let place = frame.place(place)?;
        let package = match &frame.app.template {
            Some(template) => place.account.package(template).await?,
            None => place.account.latest_package().await?,
        };
        Ok(Self { frame, place, purpose: Purpose::Create, package, name: String::new(), values: Values::new() })
    }

    async fn of_task(frame: &'a Frame, place: &str, task: &str, purpose: fn(Task) -> Purpose) -> Result<Self> {
        let place = frame.place(place)?;
        let task = place.account.task(task).await?;
        let package = place.account.package_of(&task).await?;
        let values = task.parameters.clone();
        Ok(Self { frame, place, purpose: purpose(task), package, name: String::new(), values })
    }

    fn fill(&mut self, fields: Vec<(String, String)>) {
        for (name, value) in fields {
            if name == NAME {
                self.name = value.trim().to_owned();
            } else if self.package.template().parameter(&name).is_some() {
                // A text area sends the line breaks of Windows.
                self.values.insert(name, value.replace("\r\n", "\n"));
            }
        }
    }

    /// Does what the form is for, and returns the name of the task.
    async fn submit(&self) -> Result<String> {
        let account = &self.place.account;
        match &self.purpose {
            Purpose::Create => {
                // What has the default is not named, so that a later default counts.
                let template = self.package.template();
                let is_default = |name: &str, value: &String| {
                    template.parameter(name).is_some_and(|it| it.default.as_ref() == Some(value))
                };
                let values = self.values.iter().filter(|(name, value)| !is_default(name, value));
                let values = values.map(|(name, value)| (name.clone(), value.clone())).collect();
                account.create(&self.name, &self.package, &values).await?;
                Ok(self.name.clone())
            }
            Purpose::Edit(task) => {
                let changed = self.values.iter().filter(|(name, value)| task.parameters.get(*name) != Some(value));
                let changed = changed.map(|(name, value)| (name.clone(), value.clone())).collect();
                account.update(task, None, &changed).await?;
                Ok(task.name.clone())
            }
            Purpose::Clone(task) => {
                let plan = account.plan_clone(task, &self.package, &self.values);
                account.clone_task(task, &self.name, &self.package, &plan).await?;
                Ok(self.name.clone())
            }
        }
    }

    fn title(&self) -> &'static str {
        match self.purpose {
            Purpose::Create => self.frame.t("Create a task"),
            Purpose::Edit(_) => self.frame.t("Edit"),
            Purpose::Clone(_) => self.frame.t("Clone"),
        }
    }

    fn show(&self, error: Option<&Error>) -> Markup {
        let frame = self.frame;
        let problems: &[Problem] = match error {
            Some(Error::Parameters(problems)) => problems,
            _ => &[],
        };
        let of = |parameter: &str| problems.iter().find(|it| it.parameter.as_deref() == Some(parameter));
        html! {
            nav.crumbs aria-label=(frame.t("Path")) {
                a href="/" { (frame.t("Tasks")) } " / "
                @if let Purpose::Edit(task) | Purpose::Clone(task) = &self.purpose { a href=(address(self.place, &task.name)) { (task.name) } " / " }
                (self.place.label())
            }
            div.head { h1 { (self.title()) } }
            @if let Some(error) = error { (frame.error(error)) }
            form method="post" {
                fieldset disabled[frame.app.guard.is_read_only()] {
                    @if !matches!(self.purpose, Purpose::Edit(_)) {
                        section.card { div.field {
                            label for=(NAME) { (frame.t("Name")) }
                            p.help #name-help { (frame.t("The name of the stack: letters, digits and dashes, at most 63.")) }
                            input id=(NAME) name=(NAME) value=(self.name) required pattern="[A-Za-z][A-Za-z0-9\\-]{0,62}" autocomplete="off" aria-describedby="name-help";
                        } }
                    }
                    @for (index, group) in self.package.template().groups().iter().enumerate() {
                        @let is_open = index < 2 || group.label == "Destination" || group.parameters.iter().any(|it| of(&it.name).is_some());
                        section.card {
                            details open[is_open] {
                                summary { h2 { (group.label) } }
                                @for parameter in &group.parameters { (self.field(parameter, of(&parameter.name))) }
                            }
                        }
                    }
                    div.actions { button.main { (self.title()) } a.button href="/" { (frame.t("Cancel")) } }
                }
            }
        }
    }

    fn field(&self, parameter: &Parameter, problem: Option<&Problem>) -> Markup {
        let name = &parameter.name;
        let default = parameter.default.as_deref().unwrap_or_default();
        let value = self.values.get(name).map_or(default, String::as_str);
        let help = format!("{name}-help");
        let is_long = parameter.max_length.is_none_or(|length| length > 400) && !parameter.is_number;
        html! {
            div.field {
                label for=(name) { (name) }
                p.help id=(help) { (description(&parameter.description)) }
                @if !parameter.allowed_values.is_empty() {
                    select id=(name) name=(name) aria-describedby=(help) aria-invalid=[problem.map(|_| "true")] {
                        @for allowed in &parameter.allowed_values { option value=(allowed) selected[allowed == value] { (allowed) } }
                    }
                } @else if is_long && default.is_empty() {
                    textarea id=(name) name=(name) aria-describedby=(help) aria-invalid=[problem.map(|_| "true")] { "\n" (value) }
                } @else {
                    input id=(name) name=(name) value=(value) maxlength=[parameter.max_length] inputmode=[parameter.is_number.then_some("numeric")]
                        aria-describedby=(help) aria-invalid=[problem.map(|_| "true")];
                }
                @if let Some(problem) = problem { p.error { (problem) } }
            }
        }
    }
}

/// A description with its code: `like this`.
fn description(text: &str) -> Markup {
    html! { @for (index, part) in text.split('`').enumerate() { @if index % 2 == 1 { code { (part) } } @else { (part) } } }
}
