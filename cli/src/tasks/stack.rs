//! Tasks as stacks: lists, creates, clones and changes them.

use std::collections::{BTreeMap, HashSet};

use aws_sdk_cloudformation::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_cloudformation::operation::describe_stacks::DescribeStacksError;
use aws_sdk_cloudformation::types::{Parameter, Stack, StackEvent, Tag};
use serde::Serialize;
use shared::Error as AwsError;
use shared::text::Excerpt;

use super::{Account, Error, Package, Result, Time, Values, excerpt};

/// How the description of the template begins. A stack that is being created has no outputs yet.
const DESCRIPTION: &str = "ecr-transfer: replicates container images";

/// The parameter of a task that starts no runs by itself.
const PAUSED: &str = "paused";

/// A task: a stack of this project's template.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// The stack's name.
    pub name: String,
    /// The stack's ARN. It names the stack even when it is deleted.
    pub id: String,
    /// The stack's region.
    pub region: String,
    /// CloudFormation's: `CREATE_COMPLETE`, for example.
    pub status: String,
    /// Why it has this status.
    pub status_reason: Option<Excerpt>,
    /// What it copies, in a few words.
    pub source: String,
    /// Where to, in a few words.
    pub destination: String,
    /// When runs start: the value of `schedule`.
    pub schedule: String,
    /// Whether nothing starts a run but a person; `None` if its template is older than this.
    pub paused: Option<bool>,
    /// Whether CloudFormation refuses to delete it.
    pub is_protected: bool,
    /// When it was created.
    pub created_at: Option<Time>,
    /// When it was last changed.
    pub updated_at: Option<Time>,
    /// The values of all parameters.
    pub parameters: Values,
    /// The template's outputs. A stack whose creation has not ended has none.
    pub outputs: BTreeMap<String, String>,
    /// The stack's tags, except AWS's own.
    pub tags: BTreeMap<String, String>,
}

/// What CloudFormation is doing with a task.
#[derive(Clone, Debug)]
pub struct Change {
    action: Action,
    name: String,
    id: String,
    /// Marks its [events](https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_StackEvent.html).
    token: String,
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A new stack.
    Create,
    /// Other parameters, or another template.
    Update,
    /// The end of a stack.
    Delete,
}

/// Something that CloudFormation did.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Its unique id.
    pub id: String,
    /// When it happened.
    pub time: Option<Time>,
    /// The resource's name in the template; the stack's name for the stack itself.
    pub resource: String,
    /// The resource's own name or ARN.
    pub physical: String,
    /// `AWS::S3::Bucket`, for example.
    pub kind: String,
    /// `CREATE_COMPLETE`, for example.
    pub status: String,
    /// Why it has this status.
    pub reason: Option<Excerpt>,
    #[serde(skip)]
    token: String,
    #[serde(skip)]
    is_of_stack: bool,
}

/// A resource that CloudFormation could not create, change or delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Its name in the template.
    pub resource: String,
    /// CloudFormation's words.
    pub reason: Excerpt,
}

/// What a clone of a task will be.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClonePlan {
    /// What it copies.
    pub source: String,
    /// Where to.
    pub destination: String,
    /// The values of its parameters.
    pub parameters: Values,
    /// Parameters of the original that it does not have, because its template has no such parameter.
    pub dropped: Vec<String>,
    /// Whether both tasks write to the same repositories. A repository takes images of one source only.
    pub shares_destination: bool,
}

impl Task {
    /// Whether the last change succeeded, so that it has all its resources.
    pub fn is_complete(&self) -> bool {
        matches!(self.status.as_str(), "CREATE_COMPLETE" | "UPDATE_COMPLETE" | "UPDATE_ROLLBACK_COMPLETE")
    }

    /// The value of an output.
    ///
    /// # Errors
    /// If the stack is not complete.
    pub(super) fn output(&self, name: &str) -> Result<&str> {
        self.outputs.get(name).map(String::as_str).ok_or_else(|| {
            Error::Rejected(format!("The stack {} is {} and has no output {name} yet.", self.name, self.status))
        })
    }

    /// `None` if it is not a stack of this project.
    fn of(stack: &Stack, region: &str) -> Option<Self> {
        if !stack.description().unwrap_or_default().starts_with(DESCRIPTION) {
            return None;
        }
        let pairs = stack.parameters().iter().map(|it| Some((it.parameter_key()?, it.parameter_value()?)));
        let parameters: Values = pairs.flatten().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let outputs = stack.outputs().iter().map(|it| Some((it.output_key()?, it.output_value()?)));
        let tags = stack.tags().iter().map(|it| Some((it.key()?, it.value()?)));
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let id = stack.stack_id().unwrap_or_default().to_owned();
        Some(Self {
            name: stack.stack_name().unwrap_or_default().to_owned(),
            region: region.to_owned(),
            status: stack.stack_status().map(|it| it.as_str().to_owned()).unwrap_or_default(),
            status_reason: excerpt(stack.stack_status_reason()),
            source: source(&parameters, account_of(&id), region),
            destination: destination(&parameters, account_of(&id), region),
            schedule: parameters.get("schedule").cloned().unwrap_or_default(),
            paused: parameters.get(PAUSED).map(|value| value == "true"),
            is_protected: stack.enable_termination_protection().unwrap_or_default(),
            created_at: stack.creation_time().copied().map(Time::from),
            updated_at: stack.last_updated_time().copied().map(Time::from),
            outputs: outputs.flatten().map(owned).collect(),
            tags: tags.flatten().filter(|(name, _)| !name.starts_with("aws:")).map(owned).collect(),
            id,
            parameters,
        })
    }
}

/// The account in the ARN of a stack.
fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

fn given<'a>(parameters: &'a Values, name: &str, otherwise: &'a str) -> &'a str {
    parameters.get(name).map(String::as_str).filter(|value| !value.is_empty()).unwrap_or(otherwise)
}

/// What a task copies, in a few words.
fn source(parameters: &Values, account: &str, region: &str) -> String {
    let list = given(parameters, "srcImageList", "").split([',', '\n']).map(str::trim).filter(|it| !it.is_empty());
    let list: Vec<_> = list.collect();
    let images = match list[..] {
        [] => String::new(),
        [image] => image.to_owned(),
        [first, ..] => format!("{first} and {} more", list.len() - 1),
    };
    if given(parameters, "sourceType", "Amazon_ECR") == "Public" {
        return Excerpt::within(&images, 100).to_string();
    }
    let account = given(parameters, "srcAccountId", account);
    let registry = format!("ECR {account} {}", given(parameters, "srcRegion", region));
    let is_all = given(parameters, "srcList", "ALL") == "ALL";
    if is_all { registry } else { Excerpt::within(&format!("{registry}: {images}"), 100).to_string() }
}

/// Where a task copies to, in a few words.
fn destination(parameters: &Values, account: &str, region: &str) -> String {
    let prefix = given(parameters, "destPrefix", "");
    let prefix = if prefix.is_empty() { String::new() } else { format!(" {prefix}/") };
    let account = given(parameters, "destAccountId", account);
    format!("ECR {account} {}{prefix}", given(parameters, "destRegion", region))
}

impl Account {
    /// All tasks in this region, by name. Stacks of other projects are left out.
    ///
    /// # Errors
    /// If a permission is missing.
    pub async fn tasks(&self) -> Result<Vec<Task>> {
        let mut pages = self.cloudformation.describe_stacks().into_paginator().items().send();
        let mut tasks = Vec::new();
        while let Some(stack) = pages.next().await {
            let stack = stack.map_err(AwsError::aws("cloudformation:DescribeStacks", &self.region))?;
            tasks.extend(Task::of(&stack, &self.region));
        }
        tasks.sort_by(|a: &Task, b: &Task| a.name.cmp(&b.name));
        Ok(tasks)
    }

    /// A task by its name, or by its ARN even if it is deleted.
    ///
    /// # Errors
    /// If there is no such stack, or it is one of another project.
    pub async fn task(&self, name: &str) -> Result<Task> {
        let answer = self.cloudformation.describe_stacks().stack_name(name).send().await;
        // CloudFormation has no error of its own for a stack that does not exist. Its only parameter is the name.
        let is_missing = |error: &DescribeStacksError| error.code() == Some("ValidationError");
        let answer = match answer {
            Err(error) if error.as_service_error().is_some_and(is_missing) => {
                return Err(Error::NoTask { name: name.to_owned(), region: self.region.clone() });
            }
            other => other.map_err(AwsError::aws("cloudformation:DescribeStacks", name))?,
        };
        let task = answer.stacks().first().and_then(|stack| Task::of(stack, &self.region));
        task.ok_or_else(|| Error::NotATask { name: name.to_owned() })
    }

    /// Starts to create a task. [`follow`](Self::follow) waits for it.
    ///
    /// # Errors
    /// If a value is not allowed, or there is a stack of that name.
    pub async fn create(&self, name: &str, package: &Package, values: &Values) -> Result<Change> {
        self.create_tagged(name, package, values, &BTreeMap::new()).await
    }

    async fn create_tagged(
        &self,
        name: &str,
        package: &Package,
        values: &Values,
        tags: &BTreeMap<String, String>,
    ) -> Result<Change> {
        check_name(name)?;
        package.template().check(values)?;
        let url = self.upload(package).await?;
        let token = token();
        let parameters = values.iter().map(|(name, value)| given_value(name, value)).collect();
        let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let create = self.cloudformation.create_stack().stack_name(name).template_url(url).client_request_token(&token);
        let create = create.set_capabilities(Some(package.capabilities())).set_parameters(Some(parameters));
        match create.set_tags(Some(tags)).send().await {
            Err(error) if error.as_service_error().is_some_and(|it| it.is_already_exists_exception()) => {
                Err(Error::Rejected(format!(
                    "There is a stack {name} in {} already. Choose another name, or delete it: ecr-transfer delete {name}",
                    self.region
                )))
            }
            other => {
                let answer = other.map_err(AwsError::aws("cloudformation:CreateStack", name))?;
                let id = answer.stack_id.unwrap_or_else(|| name.to_owned());
                Ok(Change { action: Action::Create, name: name.to_owned(), id, token })
            }
        }
    }

    /// What a clone of a task would be, with other values for some parameters. Everything is copied except whether the task is
    /// paused, which is not part of its configuration, and parameters that the template does not have.
    ///
    /// No parameter names what the stack creates, so the clone's resources have names of their own.
    pub fn plan_clone(&self, task: &Task, package: &Package, values: &Values) -> ClonePlan {
        let (kept, dropped): (Vec<_>, Vec<_>) = task
            .parameters
            .iter()
            .filter(|(name, _)| *name != PAUSED && !values.contains_key(*name))
            .partition(|(name, _)| package.template().parameter(name).is_some());
        let kept = kept.into_iter().chain(values).map(|(name, value)| (name.clone(), value.clone()));
        let parameters: Values = kept.collect();
        let account = account_of(&task.id);
        let destination = destination(&parameters, account, &self.region);
        ClonePlan {
            source: source(&parameters, account, &self.region),
            shares_destination: destination == task.destination,
            destination,
            dropped: dropped.into_iter().map(|(name, _)| name.clone()).collect(),
            parameters,
        }
    }

    /// Starts to create the clone of a task, which also has its tags. [`follow`](Self::follow) waits for it.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub async fn clone_task(&self, task: &Task, name: &str, package: &Package, clone: &ClonePlan) -> Result<Change> {
        self.create_tagged(name, package, &clone.parameters, &task.tags).await
    }

    /// Starts to change parameters of a task, and its template if one is given. Other parameters keep their values. Returns `None`
    /// if there is nothing to change.
    ///
    /// # Errors
    /// If a value is not allowed, or the stack cannot be updated now.
    pub async fn update(&self, task: &Task, package: Option<&Package>, values: &Values) -> Result<Option<Change>> {
        let current = match package {
            Some(_) => None,
            None => Some(self.package_of(task).await?),
        };
        let Some(known) = package.or(current.as_ref()) else { return Ok(None) };
        let is_known = |name: &str| known.template().parameter(name).is_some();
        let kept = task.parameters.iter().filter(|(name, _)| is_known(name) && !values.contains_key(*name));
        let all: Values = kept.clone().chain(values).map(|(name, value)| (name.clone(), value.clone())).collect();
        known.template().check(&all)?;
        let kept = kept.map(|(name, _)| Parameter::builder().parameter_key(name).use_previous_value(true).build());
        let parameters = kept.chain(values.iter().map(|(name, value)| given_value(name, value))).collect();
        let token = token();
        let update = self.cloudformation.update_stack().stack_name(&task.id).client_request_token(&token);
        let update = update.set_capabilities(Some(known.capabilities())).set_parameters(Some(parameters));
        // "When using templates with the AWS::LanguageExtensions transform, provide the template instead of using UsePreviousTemplate":
        // https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_UpdateStack.html
        match update.template_url(self.upload(known).await?).send().await {
            Err(error) if has_message(&error, "No updates are to be performed") => Ok(None),
            Err(error) if has_message(&error, "cannot be updated") => Err(Error::Rejected(format!(
                "{} is {}, and cannot be updated now. Wait until it is complete. If its creation failed, delete it: \
                 ecr-transfer delete {}",
                task.name, task.status, task.name
            ))),
            other => {
                other.map_err(AwsError::aws("cloudformation:UpdateStack", &task.name))?;
                let (name, id) = (task.name.clone(), task.id.clone());
                Ok(Some(Change { action: Action::Update, name, id, token }))
            }
        }
    }

    /// Starts to pause a task, so that nothing starts a run but a person, or to resume it. Returns `None` if it is so already.
    ///
    /// # Errors
    /// If the task's template is too old for this.
    pub async fn set_paused(&self, task: &Task, paused: bool) -> Result<Option<Change>> {
        match task.paused {
            Some(current) if current == paused => Ok(None),
            Some(_) => self.update(task, None, &Values::from([(PAUSED.into(), paused.to_string())])).await,
            None => Err(Error::Rejected(format!(
                "The template of {0} is older than pausing. Update it: ecr-transfer update {0} --template URL",
                task.name
            ))),
        }
    }

    /// Asks CloudFormation to delete a stack.
    pub(super) async fn start_deletion(&self, task: &Task) -> Result<Change> {
        let token = token();
        let delete = self.cloudformation.delete_stack().stack_name(&task.id).client_request_token(&token);
        delete.send().await.map_err(AwsError::aws("cloudformation:DeleteStack", &task.name))?;
        Ok(Change { action: Action::Delete, name: task.name.clone(), id: task.id.clone(), token })
    }

    /// Waits for the end of a change, and reports each event. If nobody waits, CloudFormation goes on all the same.
    ///
    /// # Errors
    /// If CloudFormation did not do what it was asked for.
    pub async fn follow(&self, change: &Change, mut report: impl FnMut(&Event)) -> Result<()> {
        let mut seen = HashSet::new();
        let mut failures = Vec::new();
        loop {
            for event in self.events_of(change, &seen).await? {
                report(&event);
                if event.is_failure() {
                    let reason = event.reason.clone().unwrap_or_else(|| "no reason is given".into());
                    failures.push(Failure { resource: event.resource.clone(), reason });
                }
                if event.is_of_stack && event.is_final() {
                    let name = change.name.clone();
                    return if change.action.is_success(&event.status) {
                        Ok(())
                    } else {
                        Err(Error::Failed { name, status: event.status, failures })
                    };
                }
                seen.insert(event.id);
            }
            self.pause().await;
        }
    }

    /// The events of a change that are not among `seen`, the oldest first.
    async fn events_of(&self, change: &Change, seen: &HashSet<String>) -> Result<Vec<Event>> {
        let mut pages = self.cloudformation.describe_stack_events().stack_name(&change.id).into_paginator().send();
        let mut events = Vec::new();
        // The newest come first.
        'pages: while let Some(page) = pages.next().await {
            let page = page.map_err(AwsError::aws("cloudformation:DescribeStackEvents", &change.name))?;
            for event in page.stack_events().iter().map(Event::of) {
                if event.token != change.token || seen.contains(&event.id) {
                    break 'pages;
                }
                events.push(event);
            }
        }
        events.reverse();
        Ok(events)
    }

    /// The latest events of a stack, at most `limit`, the newest first.
    ///
    /// # Errors
    /// If a permission is missing.
    pub async fn events(&self, task: &Task, limit: usize) -> Result<Vec<Event>> {
        let mut pages = self.cloudformation.describe_stack_events().stack_name(&task.id).into_paginator().send();
        let mut events: Vec<Event> = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(AwsError::aws("cloudformation:DescribeStackEvents", &task.name))?;
            events.extend(page.stack_events().iter().map(Event::of));
            if events.len() >= limit {
                break;
            }
        }
        events.truncate(limit);
        Ok(events)
    }

    /// The names and ARNs of a task's resources, by their names in the template.
    pub(super) async fn resources(&self, task: &Task) -> Result<BTreeMap<String, String>> {
        let mut pages = self.cloudformation.list_stack_resources().stack_name(&task.id).into_paginator().items().send();
        let mut resources = BTreeMap::new();
        while let Some(resource) = pages.next().await {
            let resource = resource.map_err(AwsError::aws("cloudformation:ListStackResources", &task.name))?;
            if let (Some(logical), Some(physical)) = (resource.logical_resource_id(), resource.physical_resource_id()) {
                resources.insert(logical.to_owned(), physical.to_owned());
            }
        }
        Ok(resources)
    }
}

impl Change {
    /// What it is.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The stack's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The stack's ARN, for [`Account::task`].
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Action {
    fn is_success(self, status: &str) -> bool {
        match self {
            Self::Create => status == "CREATE_COMPLETE",
            Self::Update => status == "UPDATE_COMPLETE",
            Self::Delete => status == "DELETE_COMPLETE",
        }
    }
}

impl Event {
    fn of(event: &StackEvent) -> Self {
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Self {
            id: text(event.event_id()),
            time: event.timestamp().copied().map(Time::from),
            resource: text(event.logical_resource_id()),
            physical: text(event.physical_resource_id()),
            kind: text(event.resource_type()),
            status: event.resource_status().map(|it| it.as_str().to_owned()).unwrap_or_default(),
            reason: excerpt(event.resource_status_reason()),
            token: text(event.client_request_token()),
            is_of_stack: event.physical_resource_id() == event.stack_id(),
        }
    }

    /// Whether nothing follows it.
    fn is_final(&self) -> bool {
        self.status.ends_with("_COMPLETE") || self.status.ends_with("_FAILED")
    }

    /// Whether a resource failed, and not only because another one did.
    fn is_failure(&self) -> bool {
        let is_cancelled = self.reason.as_ref().is_some_and(|reason| reason.as_str().ends_with("cancelled"));
        self.status.ends_with("_FAILED") && !self.is_of_stack && !is_cancelled
    }
}

/// [CloudFormation's rule](https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_CreateStack.html), and the template's
/// limit of 63 characters.
fn check_name(name: &str) -> Result<()> {
    let is_valid = name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if is_valid {
        return Ok(());
    }
    Err(Error::Rejected(format!(
        "{:?} is not a name for a task. It begins with a letter, and has at most 63 letters, digits and hyphens.",
        Excerpt::within(name, 100)
    )))
}

fn given_value(name: &str, value: &str) -> Parameter {
    Parameter::builder().parameter_key(name).parameter_value(value).build()
}

/// A new token for a request, in [its characters](https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_CreateStack.html).
fn token() -> String {
    format!("ecr-transfer-{:016x}", fastrand::u64(..))
}

fn has_message<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>, words: &str) -> bool {
    let service = error.as_service_error();
    service.and_then(ProvideErrorMetadata::message).is_some_and(|message| message.contains(words))
}
