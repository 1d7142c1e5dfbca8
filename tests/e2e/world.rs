//! The local AWS that the tests share, and what more than one of them needs of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::Method;
use local::aws::{Aws, xml_text};
use local::corpus::{Corpus, Seeded};
use local::fargate::Task;
use local::images;
use local::machine::{Machine, Options, SOURCE_ACCOUNT, SOURCE_CREDENTIAL, SOURCE_REGION};
use local::proxy::{Action, Fault, Injected, Pattern};
use local::registry::Contents;
use local::stack::{Execution, ImageRow, Outcome, Stack};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::comparing::Deployed;
use crate::secrets::CommandLines;

/// A registry that knows its own users.
pub const PRIVATE_REGISTRY: &str = "harbor.example.com:5000";

/// One of them: `robot:correct-horse`.
pub const PRIVATE_LOGIN: &str = "cm9ib3Q6Y29ycmVjdC1ob3JzZQ==";

/// What a test comes to; its error says what is wrong.
pub type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The local AWS, with images at the sources.
pub struct World {
    machine: Machine,
    seeded: Vec<Seeded>,
    command_lines: CommandLines,
    private: OnceCell<Run>,
    published: OnceCell<String>,
    stacks: Mutex<Vec<Deployed>>,
    /// What the destinations of stacks listed after their last runs.
    listed: Mutex<BTreeMap<String, Contents>>,
    // Logs and state, removed after everything else.
    _directory: TempDir,
}

/// A stack and an execution of it that has ended.
pub struct Run {
    /// The stack.
    pub stack: Stack,
    /// The execution.
    pub execution: Execution,
    /// How it ended.
    pub outcome: Outcome,
}

impl World {
    /// Starts it, and pushes images to the source account and the public registries.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let machine = Machine::start(Options::new(directory.path())).await?;
        machine.gateway().begin_logs_with_an_empty_page();
        let corpus = machine.private_corpus().await?.and(Corpus::public()).with(PRIVATE_REGISTRY, "team/tool", "1.0");
        let mut seeded = machine.seed(corpus).await?;
        add_companions(&machine, &mut seeded).await?;
        let host = PRIVATE_REGISTRY.split(':').next().unwrap_or_default();
        machine.proxy().require_login(host, PRIVATE_LOGIN);
        let secrets = crate::secrets::known(&machine).await?;
        Ok(Self {
            machine,
            seeded,
            command_lines: CommandLines::watch(secrets),
            private: OnceCell::new(),
            published: OnceCell::new(),
            stacks: Mutex::default(),
            listed: Mutex::default(),
            _directory: directory,
        })
    }

    /// Stops it.
    pub async fn stop(self) {
        self.machine.stop().await;
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The command lines that were seen to hold a credential.
    pub fn command_lines(&self) -> &CommandLines {
        &self.command_lines
    }

    /// The images at the sources for which `select` holds, by registry and repository.
    pub fn seeded(&self, select: impl Fn(&str, &str) -> bool) -> Vec<&Seeded> {
        self.seeded.iter().filter(|image| select(&image.registry, &image.repository)).collect()
    }

    /// Deploys a stack that copies below the prefix `name`.
    pub async fn deploy(&self, name: &str, parameters: &[(&str, &str)]) -> Result<Stack> {
        let parameters: Vec<_> = parameters.iter().copied().chain([("destPrefix", name)]).collect();
        let stack = Stack::deploy(&self.machine, name, &parameters).await?;
        self.deployed(&stack, &parameters);
        Ok(stack)
    }

    /// Remembers a stack.
    pub fn deployed(&self, stack: &Stack, parameters: &[(&str, &str)]) {
        lock(&self.stacks).push(Deployed::new(stack, parameters));
    }

    /// All stacks so far.
    pub fn stacks(&self) -> Vec<Stack> {
        lock(&self.stacks).iter().map(|deployed| deployed.stack.clone()).collect()
    }

    /// The URL of the template that needs no transform; the first test that needs it publishes it.
    pub async fn published_template(&self) -> Result<&str> {
        Ok(self.published.get_or_try_init(|| Stack::publish(&self.machine)).await?)
    }

    /// Deploys a stack that copies selected images of public registries.
    pub async fn deploy_public(&self, name: &str, images: &str) -> Result<Stack> {
        self.deploy(name, &[("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", images)]).await
    }

    /// The run that copies all of the source account's registry; the first test that needs it starts it.
    pub async fn private_run(&self) -> Result<&Run> {
        self.private
            .get_or_try_init(|| async {
                let source = [
                    ("sourceType", "Amazon_ECR"),
                    ("srcList", "ALL"),
                    ("srcRegion", SOURCE_REGION),
                    ("srcAccountId", SOURCE_ACCOUNT),
                    ("srcCredential", SOURCE_CREDENTIAL),
                ];
                let stack = self.deploy("private", &source).await?;
                self.run(stack).await
            })
            .await
    }

    /// Starts an execution of `stack`, waits for its end, and compares the destination with the source.
    pub async fn run(&self, stack: Stack) -> Result<Run> {
        self.run_with(stack, &json!({})).await
    }

    /// The same, with an input.
    pub async fn run_with(&self, stack: Stack, input: &Value) -> Result<Run> {
        let execution = stack.start(input).await?;
        self.finish(stack, execution, input).await
    }

    /// Waits for the end of an execution, and compares the destination with the source.
    pub async fn finish(&self, stack: Stack, execution: Execution, input: &Value) -> Result<Run> {
        let outcome = execution.wait().await?;
        let wanted = match outcome.succeeded() {
            true => Some(self.latest(&stack)?.wanted(&self.machine, input).await?),
            false => None,
        };
        self.ended(Run { stack, execution, outcome }, wanted).await
    }

    /// Starts an execution of `stack` that must succeed, and bring what is `wanted`.
    pub async fn run_for(&self, stack: Stack, input: &Value, wanted: Contents) -> Result<Run> {
        let execution = stack.start(input).await?;
        let outcome = execution.wait().await?;
        if !outcome.succeeded() {
            return Err(format!("{outcome:?} {:?}", rows(&stack).await?).into());
        }
        self.ended(Run { stack, execution, outcome }, Some(wanted)).await
    }

    /// Checks that a run's rows are true, and, if it succeeded, that the destination has what is wanted and nothing else.
    async fn ended(&self, run: Run, wanted: Option<Contents>) -> Result<Run> {
        let deployed = self.latest(&run.stack)?;
        let there = deployed.there(&self.machine).await?;
        let rows = run.stack.image_rows().await?;
        let own = rows.iter().filter(|row| row.execution == run.execution.name());
        deployed.check_done(own, &there)?;
        let before = lock(&self.listed).insert(run.stack.name().to_owned(), there.clone()).unwrap_or_default();
        if let Some(wanted) = wanted {
            deployed.compare(&self.machine, &before, &wanted, &there).await?;
        }
        Ok(run)
    }

    /// A stack as it was last deployed.
    fn latest(&self, stack: &Stack) -> Result<Deployed> {
        let deployed = lock(&self.stacks).iter().rfind(|it| it.stack.name() == stack.name()).cloned();
        Ok(deployed.ok_or("it was not deployed here")?)
    }

    /// Checks that the destination has what the source lists, and nothing else, outside of a run.
    pub async fn check_copied(&self, stack: &Stack) -> Result {
        let deployed = self.latest(stack)?;
        let wanted = deployed.wanted(&self.machine, &json!({})).await?;
        let there = deployed.there(&self.machine).await?;
        deployed.compare(&self.machine, &Contents::new(), &wanted, &there).await
    }

    /// The tasks that a stack has started so far.
    pub fn tasks(&self, stack: &Stack) -> Vec<Task> {
        let family = format!("{}-copy", stack.name());
        self.machine.fargate().tasks().into_iter().filter(|task| task.family == family).collect()
    }

    /// All that is in the log groups whose name contains `name`.
    pub async fn logs(&self, name: &str) -> Result<Value> {
        let aws = self.machine.home()?;
        let logs = |action: &str, request: Value| {
            let target = format!("Logs_20140328.{action}");
            let aws = &aws;
            async move { aws.json("logs", &target, request).await }
        };
        let mut events = Vec::new();
        let groups = aws.pages("logs", "Logs_20140328.DescribeLogGroups", json!({}), "logGroups").await?;
        let groups = groups.iter().filter_map(|group| group["logGroupName"].as_str());
        for group in groups.filter(|group| group.contains(name)) {
            let streams = logs("DescribeLogStreams", json!({ "logGroupName": group })).await?;
            for stream in streams["logStreams"].as_array().into_iter().flatten() {
                let request =
                    json!({ "logGroupName": group, "logStreamName": stream["logStreamName"], "startFromHead": true });
                events.push(logs("GetLogEvents", request).await?);
            }
        }
        Ok(json!(events))
    }

    /// Subscribes a queue to a stack's topic.
    pub async fn notifications(&self, stack: &Stack) -> Result<Notifications> {
        Notifications::of(self.machine.home()?, stack).await
    }
}

/// Signs an image in a public registry, as cosign does, and lets an SBOM refer to one in the source account.
async fn add_companions(machine: &Machine, seeded: &mut Vec<Seeded>) -> Result {
    let find = |repository: &str, tag: &str| {
        let image = seeded.iter().find(|image| image.repository == repository && image.tag.as_deref() == Some(tag));
        image.cloned().ok_or_else(|| format!("{repository}:{tag} is not seeded"))
    };
    let (etcd, api) = (find("coreos/etcd", "v3.5.16")?, find("platform/api", "1.1.0")?);

    let signature = images::artifact("application/vnd.dev.cosign.simplesigning.v1+json", &etcd.digest, None);
    let tag = format!("{}.sig", etcd.digest.replace(':', "-"));
    if let Some(public) = machine.public() {
        public.push(&etcd.repository, &[(&signature, std::slice::from_ref(&tag))]).await?;
    }
    seeded.push(Seeded { tag: Some(tag), digest: signature.manifest.digest.clone(), ..etcd });

    let sbom = images::artifact("application/spdx+json", "{}", Some(&api.digest));
    machine.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?.push(&api.repository, &[(&sbom, &[])]).await?;
    seeded.push(Seeded { tag: None, digest: sbom.manifest.digest.clone(), ..api });
    Ok(())
}

/// Starts an execution of `stack`, and holds the upload of the first layer to `repository` until the fault is lifted.
pub async fn start_stalled(world: &World, stack: &Stack, repository: &str) -> Result<(Execution, Injected)> {
    start_stalled_with(world, stack, repository, &json!({})).await
}

/// The same, with an input.
pub async fn start_stalled_with(
    world: &World,
    stack: &Stack,
    repository: &str,
    input: &Value,
) -> Result<(Execution, Injected)> {
    let uploads = format!("/v2/{}/{repository}/blobs/uploads/*", stack.name());
    let uploads = Pattern::new("*", &uploads).method(Method::POST);
    let stalled = world.machine().proxy().inject(Fault::new(uploads, Action::Stall).always());
    let execution = stack.start(input).await?;
    until_hit(&stalled, &execution).await?;
    Ok((execution, stalled))
}

/// Waits until a fault has hit. An execution that ends before will never meet it.
async fn until_hit(fault: &Injected, execution: &Execution) -> Result {
    tokio::select! {
        () = fault.hit(1) => Ok(()),
        outcome = execution.wait() => Err(format!("it ended before: {:?}", outcome?).into()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stack's rows, by image and tag.
pub async fn rows(stack: &Stack) -> Result<BTreeMap<(String, String), ImageRow>> {
    let rows = stack.image_rows().await?;
    Ok(rows.into_iter().map(|row| ((row.image.clone(), row.tag.clone()), row)).collect())
}

/// What a stack's topic has published since it was subscribed to.
pub struct Notifications {
    aws: Aws,
    queue: String,
}

impl Notifications {
    async fn of(aws: Aws, stack: &Stack) -> Result<Self> {
        let created = aws.json("sqs", "AmazonSQS.CreateQueue", json!({ "QueueName": stack.name() })).await?;
        let queue = created["QueueUrl"].as_str().unwrap_or_default().to_owned();
        let request = json!({ "QueueUrl": queue, "AttributeNames": ["QueueArn"] });
        let attributes = aws.json("sqs", "AmazonSQS.GetQueueAttributes", request).await?;
        let arn = attributes["Attributes"]["QueueArn"].as_str().unwrap_or_default().to_owned();
        let topic = stack.output("TopicArn")?;
        let policy = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": { "Service": "sns.amazonaws.com" }, "Action": "sqs:SendMessage",
            "Resource": arn, "Condition": { "ArnEquals": { "aws:SourceArn": topic } }
        }] });
        let request = json!({ "QueueUrl": queue, "Attributes": { "Policy": policy.to_string() } });
        aws.json("sqs", "AmazonSQS.SetQueueAttributes", request).await?;
        let parameters = [("TopicArn", topic), ("Protocol", "sqs"), ("Endpoint", arn.as_str())];
        let subscribed = aws.query("sns", "Subscribe", &parameters).await?;
        xml_text(&subscribed, "SubscriptionArn").ok_or("the topic cannot be subscribed to")?;
        Ok(Self { aws, queue })
    }

    /// Waits for messages, and returns the subjects and texts of all that have come since the last call.
    pub async fn received(&self) -> Result<Vec<(String, String)>> {
        let request = json!({ "QueueUrl": self.queue, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 20 });
        let answer = self.aws.json("sqs", "AmazonSQS.ReceiveMessage", request).await?;
        let messages = answer["Messages"].as_array().cloned().unwrap_or_default();
        let text = |body: &Value, name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let bodies = messages.iter().map(|message| serde_json::from_str(message["Body"].as_str().unwrap_or_default()));
        bodies
            .map(|body| body.map(|body: Value| (text(&body, "Subject"), text(&body, "Message"))).map_err(Into::into))
            .collect()
    }
}
