//! Tasks as stacks: lists, creates, clones and changes them.

use std::collections::{BTreeMap, HashSet};

use aws_sdk_cloudformation::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_cloudformation::operation::create_stack::CreateStackError;
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
        let tags: Vec<_> = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let create = self.cloudformation.create_stack().stack_name(name).template_url(url).client_request_token(&token);
        let create = create.set_capabilities(Some(package.capabilities())).set_parameters(Some(parameters));
        match create.set_tags((!tags.is_empty()).then_some(tags)).send().await {
            Err(error) if error.as_service_error().is_some_and(CreateStackError::is_already_exists_exception) => {
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

    /// Starts to change parameters of a task, and its template if one is given. Other parameters keep their values. Returns
    /// `None` if there is nothing to change.
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
        // "When using templates with the AWS::LanguageExtensions transform, provide the template instead of using
        // UsePreviousTemplate": https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_UpdateStack.html
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

/// [CloudFormation's rule](https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_CreateStack.html), and the
/// template's limit of 63 characters.
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

/// A new token for a request, in
/// [its characters](https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_CreateStack.html).
fn token() -> String {
    format!("ecr-transfer-{:016x}", fastrand::u64(..))
}

fn has_message<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>, words: &str) -> bool {
    let service = error.as_service_error();
    service.and_then(ProvideErrorMetadata::message).is_some_and(|message| message.contains(words))
}

#[cfg(test)]
pub(super) mod tests {
    use aws_sdk_cloudformation::error::ErrorMetadata;
    use aws_sdk_cloudformation::operation::create_stack::CreateStackOutput;
    use aws_sdk_cloudformation::operation::describe_stack_events::DescribeStackEventsOutput;
    use aws_sdk_cloudformation::operation::describe_stacks::DescribeStacksOutput;
    use aws_sdk_cloudformation::operation::get_template::GetTemplateOutput;
    use aws_sdk_cloudformation::operation::update_stack::{UpdateStackError, UpdateStackOutput};
    use aws_sdk_cloudformation::primitives::DateTime;
    use aws_sdk_cloudformation::types::error::AlreadyExistsException;
    use aws_sdk_cloudformation::types::{Output, ResourceStatus, StackStatus};
    use aws_sdk_s3::operation::get_object::GetObjectOutput;
    use aws_sdk_s3::operation::put_object::PutObjectOutput;
    use aws_smithy_mocks::{Rule, mock};

    use super::super::account::tests::account;
    use super::super::template::tests::SMALL;
    use super::*;

    pub const ID: &str = "arn:aws:cloudformation:us-east-1:111111111111:stack/copies/1";
    pub const MACHINE: &str = "arn:aws:states:us-east-1:111111111111:stateMachine:copies-ECRReplicationSM";

    fn described(name: &str, description: &str, parameters: &[(&str, &str)]) -> Stack {
        let parameters = parameters.iter().map(|(name, value)| given_value(name, value));
        let outputs = [
            ("StateMachineArn", MACHINE),
            ("ImageTable", "images"),
            ("ExecutionTable", "executions"),
            ("PlanBucket", "plans"),
            ("ContainerLogGroup", "container-logs"),
        ];
        let outputs = outputs.map(|(key, value)| Output::builder().output_key(key).output_value(value).build());
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
        Stack::builder()
            .stack_name(name)
            .stack_id(ID)
            .description(description)
            .creation_time(DateTime::from_secs(0))
            .stack_status(StackStatus::CreateComplete)
            .set_parameters(Some(parameters.collect()))
            .set_outputs(Some(outputs.into()))
            .tags(tag("team", "a"))
            .tags(tag("aws:x", "b"))
            .build()
    }

    /// A complete task.
    pub fn task() -> Task {
        let parameters = [("srcList", "ALL"), ("paused", "false")];
        Task::of(&described("copies", "ecr-transfer: replicates container images.", &parameters), "us-east-1")
            .expect("it is a task")
    }

    fn stacks(name: Option<&'static str>, stacks: fn() -> Vec<Stack>) -> Rule {
        mock!(aws_sdk_cloudformation::Client::describe_stacks)
            .match_requests(move |request| request.stack_name() == name)
            .then_output(move || DescribeStacksOutput::builder().set_stacks(Some(stacks())).build())
    }

    #[tokio::test]
    async fn the_tasks_are_the_stacks_of_this_template_by_name() {
        let all = stacks(None, || {
            let ours = "ecr-transfer: replicates container images from any registry";
            vec![described("b", ours, &[]), described("x", "Another template", &[]), described("a", ours, &[])]
        });
        let tasks = account(&[&all]).tasks().await.expect("they are listed");
        assert_eq!(tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(include_str!("../../../template.yaml").contains(&format!("Description: >-\n  {DESCRIPTION}")));
    }

    #[tokio::test]
    async fn a_stack_of_somebody_else_and_one_that_does_not_exist_are_different_errors() {
        let theirs = stacks(Some("theirs"), || vec![described("theirs", "Another template", &[])]);
        let missing = mock!(aws_sdk_cloudformation::Client::describe_stacks).then_error(|| {
            DescribeStacksError::generic(
                ErrorMetadata::builder().code("ValidationError").message("does not exist").build(),
            )
        });
        let account = account(&[&theirs, &missing]);
        let error = account.task("theirs").await.expect_err("it is not ours");
        assert_eq!(error.to_string(), "theirs is not a stack of ecr-transfer.");
        let error = account.task("none").await.expect_err("it does not exist");
        assert_eq!(
            error.to_string(),
            "CloudFormation has no stack none in us-east-1. Check the name, --region and --profile."
        );
    }

    #[tokio::test]
    async fn a_missing_permission_is_named() {
        let denied = mock!(aws_sdk_cloudformation::Client::describe_stacks).then_error(|| {
            DescribeStacksError::generic(ErrorMetadata::builder().code("AccessDenied").message("no").build())
        });
        let error = account(&[&denied]).tasks().await.expect_err("we may not");
        assert_eq!(error.denied_action(), Some("cloudformation:DescribeStacks"));
        assert_eq!(Error::Rejected("no".into()).denied_action(), None);
    }

    #[test]
    fn source_and_destination_are_told_in_a_few_words() {
        for (parameters, source_words, destination_words) in [
            (&[][..], "ECR 1 eu-west-1", "ECR 1 eu-west-1"),
            (
                &[("srcAccountId", "2"), ("srcRegion", "us-east-1"), ("destPrefix", "m")],
                "ECR 2 us-east-1",
                "ECR 1 eu-west-1 m/",
            ),
            (
                &[("srcList", "SELECTED"), ("srcImageList", "a, b,c\nd")],
                "ECR 1 eu-west-1: a and 3 more",
                "ECR 1 eu-west-1",
            ),
            (&[("sourceType", "Public"), ("srcImageList", "nginx"), ("destRegion", "x")], "nginx", "ECR 1 x"),
            (&[("sourceType", "Public"), ("srcImageList", "\u{1b}[2J")], r"\u{1b}[2J", "ECR 1 eu-west-1"),
        ] {
            let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(source(&parameters, "1", "eu-west-1"), source_words);
            assert_eq!(destination(&parameters, "1", "eu-west-1"), destination_words);
        }
    }

    /// What uploads the template that a task has.
    fn upload() -> [Rule; 3] {
        [
            mock!(aws_sdk_cloudformation::Client::get_template)
                .then_output(|| GetTemplateOutput::builder().template_body(SMALL).build()),
            mock!(aws_sdk_s3::Client::put_object).then_output(|| PutObjectOutput::builder().build()),
            mock!(aws_sdk_s3::Client::get_object).then_output(|| GetObjectOutput::builder().build()),
        ]
    }

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[tokio::test]
    async fn a_task_is_created_from_checked_values_and_an_existing_name_is_refused() {
        let created = mock!(aws_sdk_cloudformation::Client::create_stack)
            .match_requests(|request| {
                request.stack_name() == Some("new")
                    && request.template_url().is_some_and(|url| url.ends_with(".template"))
                    && request.parameters() == [given_value("srcList", "SELECTED")]
                    && request.capabilities().len() == 2
                    && request.client_request_token().is_some()
            })
            .then_output(|| CreateStackOutput::builder().stack_id("arn:new").build());
        let exists = mock!(aws_sdk_cloudformation::Client::create_stack)
            .then_error(|| CreateStackError::AlreadyExistsException(AlreadyExistsException::builder().build()));
        let [template, put, get] = upload();
        let account = account(&[&created, &exists, &template, &put, &get]);
        let package = account.package_of(&task()).await.expect("it is a package");
        let change = account.create("new", &package, &values(&[("srcList", "SELECTED")])).await.expect("it begins");
        assert_eq!((change.action(), change.id()), (Action::Create, "arn:new"));
        let error = account.create("old", &package, &Values::new()).await.expect_err("it exists").to_string();
        assert!(error.starts_with("There is a stack old in us-east-1 already."), "{error}");

        for name in ["", "1a", "a_b", "a b", &"a".repeat(64)] {
            let error = account.create(name, &package, &Values::new()).await.expect_err(name).to_string();
            assert!(error.contains("is not a name for a task"), "{error}");
        }
        assert!(account.create("new", &package, &values(&[("unknown", "x")])).await.is_err());
        assert_eq!((created.num_calls(), exists.num_calls()), (1, 1));
    }

    #[tokio::test]
    async fn an_update_keeps_the_values_that_are_not_named() {
        let previous = Parameter::builder().parameter_key("srcList").use_previous_value(true).build();
        let updated = mock!(aws_sdk_cloudformation::Client::update_stack)
            .match_requests(move |request| {
                request.parameters() == [previous.clone(), given_value("paused", "true")]
                    && request.template_url().is_some()
                    && request.use_previous_template().is_none()
            })
            .then_output(|| UpdateStackOutput::builder().build());
        let [template, put, get] = upload();
        let account = account(&[&updated, &template, &put, &get]);
        let change = account.set_paused(&task(), true).await.expect("it begins").expect("it is a change");
        assert_eq!((change.action(), change.name()), (Action::Update, "copies"));
        assert!(account.set_paused(&task(), false).await.expect("it is so already").is_none());
        let old = Task { paused: None, ..task() };
        let error = account.set_paused(&old, true).await.expect_err("it is too old").to_string();
        assert!(error.starts_with("The template of copies is older than pausing. Update it: "), "{error}");
    }

    #[tokio::test]
    async fn an_update_without_a_change_is_no_error_and_one_at_a_wrong_time_says_so() {
        let answer = async |message: &'static str| {
            let refused = mock!(aws_sdk_cloudformation::Client::update_stack).then_error(move || {
                UpdateStackError::generic(ErrorMetadata::builder().code("ValidationError").message(message).build())
            });
            let [template, put, get] = upload();
            account(&[&refused, &template, &put, &get]).update(&task(), None, &Values::new()).await
        };
        assert!(answer("No updates are to be performed.").await.expect("it is so already").is_none());
        let error = answer("Stack:x is in UPDATE_IN_PROGRESS state and cannot be updated.").await;
        let error = error.expect_err("it cannot be updated").to_string();
        assert!(error.starts_with("copies is CREATE_COMPLETE, and cannot be updated now."), "{error}");
        assert!(matches!(answer("other").await, Err(Error::Aws(_))));
    }

    #[tokio::test]
    async fn a_clone_has_the_values_of_its_original_but_is_not_paused() {
        let [template, ..] = upload();
        let account = account(&[&template]);
        let mut original = task();
        original.parameters.extend(values(&[("paused", "true"), ("destPrefix", "m"), ("old", "x")]));
        original.destination = destination(&original.parameters, "111111111111", "us-east-1");
        let package = account.package_of(&original).await.expect("it is a package");
        let clone = account.plan_clone(&original, &package, &values(&[("srcList", "SELECTED")]));
        assert_eq!(clone.parameters, values(&[("srcList", "SELECTED")]));
        assert_eq!(clone.dropped, ["destPrefix", "old"], "the small template does not have them");
        assert!(!clone.shares_destination, "{}", clone.destination);
        assert_eq!(original.tags, values(&[("team", "a")]));
    }

    fn change() -> Change {
        Change { action: Action::Create, name: "copies".into(), id: ID.into(), token: "ours".into() }
    }

    /// An event: its id, token, resource, status and reason.
    type Told = (&'static str, &'static str, &'static str, &'static str, &'static str);

    fn events(told: &'static [Told]) -> Vec<StackEvent> {
        let event = |(id, token, resource, status, reason): &Told| {
            let physical = if *resource == "copies" { ID } else { "physical" };
            StackEvent::builder()
                .stack_id(ID)
                .stack_name("copies")
                .timestamp(DateTime::from_secs(0))
                .event_id(*id)
                .client_request_token(*token)
                .logical_resource_id(*resource)
                .physical_resource_id(physical)
                .resource_type("AWS::SNS::Topic")
                .resource_status(ResourceStatus::from(*status))
                .resource_status_reason(*reason)
                .build()
        };
        told.iter().map(event).collect()
    }

    /// Answers with these lists of events, one after the other.
    pub fn told(first: &'static [Told], second: &'static [Told]) -> Rule {
        let answer = |told| move || DescribeStackEventsOutput::builder().set_stack_events(Some(events(told))).build();
        mock!(aws_sdk_cloudformation::Client::describe_stack_events)
            .sequence()
            .output(answer(first))
            .output(answer(second))
            .build()
    }

    #[tokio::test]
    async fn a_change_is_followed_by_its_own_events_until_the_stack_ends() {
        let rule = told(
            &[("2", "ours", "Topic", "CREATE_IN_PROGRESS", ""), ("1", "ours", "copies", "CREATE_IN_PROGRESS", "")],
            &[
                ("4", "ours", "copies", "CREATE_COMPLETE", ""),
                ("3", "ours", "Topic", "CREATE_COMPLETE", ""),
                ("2", "ours", "Topic", "CREATE_IN_PROGRESS", ""),
                ("1", "ours", "copies", "CREATE_IN_PROGRESS", ""),
                ("0", "theirs", "copies", "DELETE_FAILED", ""),
            ],
        );
        let mut ids = Vec::new();
        account(&[&rule]).follow(&change(), |event| ids.push(event.id.clone())).await.expect("it is complete");
        assert_eq!(ids, ["1", "2", "3", "4"]);
    }

    #[tokio::test]
    async fn a_failed_change_says_which_resource_failed_first_and_why() {
        let rule = told(
            &[
                ("3", "ours", "Table", "CREATE_FAILED", "Resource creation cancelled"),
                ("2", "ours", "Topic", "CREATE_FAILED", "Not \u{1b}allowed"),
                ("1", "ours", "copies", "CREATE_IN_PROGRESS", ""),
            ],
            &[
                ("4", "ours", "copies", "ROLLBACK_COMPLETE", ""),
                ("3", "ours", "Table", "CREATE_FAILED", "Resource creation cancelled"),
            ],
        );
        let error = account(&[&rule]).follow(&change(), |_| ()).await.expect_err("it failed").to_string();
        assert_eq!(error, r"copies is ROLLBACK_COMPLETE. Topic failed first: Not \u{1b}allowed");
    }
}
