//! Stacks of the project's template on a machine, and their executions.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fs_err as fs;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::aws::{Aws, xml_text};
use crate::corpus::Corpus;
use crate::machine::{ARTIFACTS, CLUSTER, Machine, REGION, tool, tools_directory};
use crate::process::Program;

const POLL: Duration = Duration::from_millis(200);

/// The policy of a role with the permissions that only ministack requires.
pub const LOCAL_POLICY: &str = "LocalAws";

/// Actions for which AWS requires a permission on a path, a task or a stream, and ministack on `*`.
const LOCAL_ACTIONS: [(&str, &[&str]); 2] = [
    ("ListImagesFunctionRole", &["ssm:GetParametersByPath"]),
    (
        "LaunchTaskFunctionRole",
        &[
            "ecs:DescribeTasks",
            "ecs:ListTasks",
            "ecs:RunTask",
            "ecs:StopTask",
            "logs:GetLogEvents",
            "ssm:GetParametersByPath",
        ],
    ),
];

/// The user's own accounts must stay out of reach.
const NO_CONFIGURATION: [(&str, &str); 2] =
    [("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")];

/// A deployed stack.
#[derive(Clone, Debug)]
pub struct Stack {
    aws: Aws,
    name: String,
    outputs: BTreeMap<String, String>,
}

/// The project's directory.
pub fn project() -> &'static Path {
    let this_crate = Path::new(env!("CARGO_MANIFEST_DIR"));
    this_crate.parent().unwrap_or(this_crate)
}

impl Stack {
    /// Deploys the output of `sam build`, or updates the stack of that name. Parameters that describe the machine may be left
    /// out.
    pub async fn deploy(machine: &Machine, name: &str, parameters: &[(&str, &str)]) -> Result<Self> {
        let template = machine.build().join("template.yaml");
        ensure!(template.is_file(), "{} is missing: run `make build` first", template.display());
        let known = known_parameters(machine);
        // To sam and to the template, an empty value is a missing one.
        let overrides = known
            .iter()
            .filter(|(known, _)| parameters.iter().all(|(given, _)| given != known))
            .chain(parameters)
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={}", Value::from(*value)));
        client(machine, "sam")?
            // An existing bucket: stacks that are deployed at the same time would both create sam's own.
            .args(["deploy", "--stack-name", name, "--no-resolve-s3", "--s3-bucket", ARTIFACTS, "--s3-prefix", name])
            .args(["--capabilities", "CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"])
            .args(["--no-confirm-changeset", "--no-fail-on-empty-changeset", "--no-progressbar", "--region", REGION])
            .args(["--template-file".as_ref(), template.as_os_str()])
            .args(["--parameter-overrides".to_owned()].into_iter().chain(overrides))
            .run(machine.directory().join(format!("deploy-{name}.log")))
            .await?;
        let stack = Self::find(machine.home()?, name).await?;
        stack.allow_for_ministack().await?;
        Ok(stack)
    }

    /// Adds the permissions that only ministack requires.
    pub async fn allow_for_ministack(&self) -> Result<()> {
        let resources = self.resources().await?;
        for (role, actions) in LOCAL_ACTIONS {
            let Some(role) = resources.get(role) else { continue };
            let policy = json!({ "Version": "2012-10-17", "Statement": [
                { "Effect": "Allow", "Action": actions, "Resource": "*" }
            ] });
            let parameters =
                [("RoleName", role.as_str()), ("PolicyName", LOCAL_POLICY), ("PolicyDocument", &policy.to_string())];
            self.aws.query("iam", "PutRolePolicy", &parameters).await?;
        }
        Ok(())
    }

    /// Publishes the output of `sam build`, as a template without a transform, and returns its URL.
    pub async fn publish(machine: &Machine) -> Result<String> {
        let log = machine.directory().join("publish.log");
        client(machine, "python")?
            .args(["tools/publish.py", ".aws-sam/build/template.yaml", ARTIFACTS, "published"])
            .run(&log)
            .await?;
        Ok(fs::read_to_string(&log)?.lines().last().unwrap_or_default().to_owned())
    }

    /// Creates a stack from a published template, as `aws cloudformation create-stack` does.
    pub async fn create(
        aws: Aws,
        name: &str,
        template_url: &str,
        capabilities: &[&str],
        parameters: &[(&str, &str)],
    ) -> Result<Self> {
        let numbered = |list: &str, at: usize, field: &str| format!("{list}.member.{}{field}", at + 1);
        let mut request = vec![("StackName".to_owned(), name), ("TemplateURL".to_owned(), template_url)];
        request.extend(capabilities.iter().enumerate().map(|(at, it)| (numbered("Capabilities", at, ""), *it)));
        for (at, (name, value)) in parameters.iter().enumerate() {
            request.push((numbered("Parameters", at, ".ParameterKey"), name));
            request.push((numbered("Parameters", at, ".ParameterValue"), value));
        }
        let request: Vec<_> = request.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        aws.query("cloudformation", "CreateStack", &request).await?;
        becomes(&aws, name, "CREATE").await?;
        let stack = Self::find(aws, name).await?;
        stack.allow_for_ministack().await?;
        Ok(stack)
    }

    /// `make check-aws` for this machine, with the command `ecr-transfer`, ready to be run. Makes the images that it copies.
    pub async fn check(machine: &Machine, command: &Path) -> Result<Program> {
        let images = [("busybox", "1.36"), ("alpine", "3.19"), ("alpine", "3.20"), ("hello-world", "linux")];
        let corpus = images.into_iter().fold(Corpus::default(), |corpus, (repository, tag)| {
            corpus.with("public.ecr.aws", &format!("docker/library/{repository}"), tag)
        });
        machine.seed(corpus).await?;
        let actions = Map::from_iter(LOCAL_ACTIONS.map(|(role, actions)| (role.to_owned(), json!(actions))));
        let parameters = known_parameters(machine);
        let parameters = parameters.map(|(name, value)| ["--parameter".to_owned(), format!("{name}={value}")]);
        let program = client(machine, "python")?
            .envs([("SAM_CLI_POLL_DELAY", "0.5")])
            .args(["tools/check_aws.py", "--yes", "--local", &Value::from(actions).to_string()])
            .args(["--command".as_ref(), command.as_os_str()])
            .args(parameters.into_iter().flatten());
        Ok(program)
    }

    /// Deletes it, and waits until it is gone.
    pub async fn delete(self) -> Result<()> {
        let id = self.id().await?;
        self.aws.query("cloudformation", "DeleteStack", &[("StackName", &self.name)]).await?;
        becomes(&self.aws, &id, "DELETE").await
    }

    /// A stack that was deployed before.
    pub async fn find(aws: Aws, name: &str) -> Result<Self> {
        let described = aws.query("cloudformation", "DescribeStacks", &[("StackName", name)]).await?;
        let outputs = members(&described, "Outputs", "OutputKey", "OutputValue");
        Ok(Self { aws, name: name.to_owned(), outputs })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its ARN.
    pub async fn id(&self) -> Result<String> {
        let described = self.aws.query("cloudformation", "DescribeStacks", &[("StackName", &self.name)]).await?;
        xml_text(&described, "StackId").context(described)
    }

    pub fn output(&self, name: &str) -> Result<&str> {
        let value = self.outputs.get(name).map(String::as_str);
        value.with_context(|| format!("stack {} has no output {name}", self.name))
    }

    pub fn state_machine_arn(&self) -> Result<&str> {
        self.output("StateMachineArn")
    }

    /// The physical ids of its resources, by their logical ones.
    pub async fn resources(&self) -> Result<BTreeMap<String, String>> {
        let described =
            self.aws.query("cloudformation", "DescribeStackResources", &[("StackName", &self.name)]).await?;
        Ok(members(&described, "StackResources", "LogicalResourceId", "PhysicalResourceId"))
    }

    /// Starts an execution of the state machine.
    pub async fn start(&self, input: &Value) -> Result<Execution> {
        let request = json!({ "stateMachineArn": self.state_machine_arn()?, "input": input.to_string() });
        let started = self.aws.json("states", "AWSStepFunctions.StartExecution", request).await?;
        Ok(self.execution(&started))
    }

    fn execution(&self, answer: &Value) -> Execution {
        Execution { aws: self.aws.clone(), arn: answer["executionArn"].as_str().unwrap_or_default().to_owned() }
    }

    /// Changes the definition of its state machine.
    pub async fn change_definition(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut request = json!({ "stateMachineArn": self.state_machine_arn()? });
        let described = self.aws.json("states", "AWSStepFunctions.DescribeStateMachine", request.clone()).await?;
        let mut definition = serde_json::from_str(described["definition"].as_str().unwrap_or_default())?;
        change(&mut definition);
        request["definition"] = definition.to_string().into();
        self.aws.json("states", "AWSStepFunctions.UpdateStateMachine", request).await.map(drop)
    }

    /// All executions, the latest first.
    pub async fn executions(&self) -> Result<Vec<Execution>> {
        let request = json!({ "stateMachineArn": self.state_machine_arn()? });
        let listed = self.aws.json("states", "AWSStepFunctions.ListExecutions", request).await?;
        Ok(listed["executions"].as_array().into_iter().flatten().map(|listed| self.execution(listed)).collect())
    }

    /// The rows of all images.
    pub async fn image_rows(&self) -> Result<Vec<ImageRow>> {
        let mut rows = Vec::new();
        let mut request = json!({ "TableName": self.output("ImageTable")?, "ConsistentRead": true });
        loop {
            let page = self.aws.json("dynamodb", "DynamoDB_20120810.Scan", request.clone()).await?;
            for item in page["Items"].as_array().into_iter().flatten() {
                rows.push(from_item(item)?);
            }
            match &page["LastEvaluatedKey"] {
                Value::Null => return Ok(rows),
                key => request["ExclusiveStartKey"] = key.clone(),
            }
        }
    }

    /// The counts of an execution, if anything was counted so far.
    pub async fn execution_row(&self, execution: &str) -> Result<Option<ExecutionRow>> {
        let request = json!({
            "TableName": self.output("ExecutionTable")?,
            "Key": { "Execution": { "S": execution } },
            "ConsistentRead": true,
        });
        let answer = self.aws.json("dynamodb", "DynamoDB_20120810.GetItem", request).await?;
        answer.get("Item").map(from_item).transpose()
    }
}

/// An image's row in the table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageRow {
    /// Its repository, as the table names it.
    pub image: String,
    /// Its tag, or its digest if it has no tag.
    pub tag: String,
    /// `Done` or `Error`.
    pub status: String,
    pub error_message: Option<String>,
    /// The name of the execution that wrote the row.
    pub execution: String,
    /// The platforms that were copied.
    pub multi_arch_option: String,
    pub source: String,
    pub destination: String,
    /// The digest at the destination.
    pub digest: Option<String>,
    /// The compressed size.
    pub bytes: Option<u64>,
    /// How long the copy took.
    pub seconds: Option<f64>,
    pub attempts: Option<u64>,
    pub log_group: Option<String>,
    /// Where in the log group the task's output is.
    pub log_stream: Option<String>,
}

/// An execution's item in the table: numbers of images, and their sizes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct ExecutionRow {
    /// At the source.
    pub listed: u64,
    /// At the destination already.
    pub unchanged: u64,
    /// Not selected.
    pub excluded: u64,
    pub to_copy: u64,
    /// Of those that are to be copied.
    pub bytes: u64,
    pub done: u64,
    pub failed: u64,
    /// Of those that are done.
    pub bytes_done: u64,
}

/// An execution of the state machine.
#[derive(Clone, Debug)]
pub struct Execution {
    aws: Aws,
    arn: String,
}

/// How an execution stands, or ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// `RUNNING`, `SUCCEEDED`, `FAILED`, `TIMED_OUT` or `ABORTED`.
    pub status: String,
    pub error: Option<String>,
    pub cause: Option<String>,
    /// Null unless it succeeded.
    pub output: Value,
}

impl Outcome {
    pub fn succeeded(&self) -> bool {
        self.status == "SUCCEEDED"
    }
}

impl Execution {
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// Its name, which is its key in the table.
    pub fn name(&self) -> &str {
        self.arn.rsplit(':').next().unwrap_or(&self.arn)
    }

    pub async fn describe(&self) -> Result<Outcome> {
        let request = json!({ "executionArn": self.arn });
        let described = self.aws.json("states", "AWSStepFunctions.DescribeExecution", request).await?;
        let mut outcome: Outcome = serde_json::from_value(described)?;
        if let Some(output) = outcome.output.as_str() {
            outcome.output = serde_json::from_str(output)?;
        }
        Ok(outcome)
    }

    /// Stops it, as a person does in the console.
    pub async fn stop(&self) -> Result<()> {
        let request = json!({ "executionArn": self.arn, "cause": "stopped by hand" });
        self.aws.json("states", "AWSStepFunctions.StopExecution", request).await.map(drop)
    }

    /// The states that it has entered so far, in order.
    pub async fn states(&self) -> Result<Vec<String>> {
        let request = json!({ "executionArn": self.arn, "maxResults": 1_000 });
        let events = self.aws.pages("states", "AWSStepFunctions.GetExecutionHistory", request, "events").await?;
        let entered = events.iter().filter_map(|event| event["stateEnteredEventDetails"]["name"].as_str());
        Ok(entered.map(str::to_owned).collect())
    }

    /// Waits until it has entered a state.
    pub async fn enters(&self, state: &str) -> Result<()> {
        while !self.states().await?.iter().any(|entered| entered == state) {
            let outcome = self.describe().await?;
            ensure!(outcome.status == "RUNNING", "the execution ended before {state}: {outcome:?}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Result<Outcome> {
        loop {
            let outcome = self.describe().await?;
            if outcome.status != "RUNNING" {
                return Ok(outcome);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Waits until a stack's `CREATE` or `DELETE` is complete.
async fn becomes(aws: &Aws, stack: &str, what: &str) -> Result<()> {
    loop {
        let described = aws.query("cloudformation", "DescribeStacks", &[("StackName", stack)]).await?;
        let status = xml_text(&described, "StackStatus");
        match status.as_deref().and_then(|status| status.strip_prefix(what)) {
            Some("_COMPLETE") => return Ok(()),
            Some("_IN_PROGRESS") => tokio::time::sleep(POLL).await,
            _ => bail!(described),
        }
    }
}

/// One of the project's tools, which uses this machine instead of the user's accounts.
fn client(machine: &Machine, program: &str) -> Result<Program> {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", tools_directory().join("sam/bin").display());
    let program = Program::new(tool("sam", program), "run `make setup`")?
        .envs(machine.env().iter().cloned())
        .envs(NO_CONFIGURATION)
        .envs([("HOME", machine.directory()), ("TMPDIR", machine.directory())])
        .envs([("PATH", path.as_str()), ("LC_ALL", "C.UTF-8"), ("NO_COLOR", "1")]);
    Ok(program.directory(project()))
}

/// The parameters that describe the machine.
pub fn known_parameters(machine: &Machine) -> [(&'static str, &str); 6] {
    let network = machine.network();
    [
        ("architecture", if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }),
        ("destRegion", REGION),
        ("ecsClusterName", CLUSTER),
        ("ecsVpcId", &network.vpc),
        ("ecsSubnetA", &network.subnets[0]),
        ("ecsSubnetB", &network.subnets[1]),
    ]
}

/// A list of key-value pairs in CloudFormation's answer.
fn members(document: &str, list: &str, key: &str, value: &str) -> BTreeMap<String, String> {
    let Ok(document) = roxmltree::Document::parse(document) else { return BTreeMap::new() };
    let text = |node: roxmltree::Node<'_, '_>, name: &str| {
        node.children().find(|child| child.tag_name().name() == name)?.text().map(str::to_owned)
    };
    let lists = document.descendants().filter(|node| node.tag_name().name() == list);
    let members = lists.flat_map(|list| list.children());
    members.filter_map(|member| Some((text(member, key)?, text(member, value)?))).collect()
}

/// A DynamoDB item as a struct, of its texts and numbers.
fn from_item<T: DeserializeOwned>(item: &Value) -> Result<T> {
    let plain = |value: &Value| match value.as_object()?.iter().next()? {
        (kind, value) if kind == "S" => Some(value.clone()),
        (kind, value) if kind == "N" => value.as_str()?.parse().ok().map(Value::Number),
        _ => None,
    };
    let fields = item.as_object().into_iter().flatten();
    let fields: Map<_, _> = fields.filter_map(|(name, value)| Some((name.clone(), plain(value)?))).collect();
    serde_json::from_value(fields.into()).with_context(|| format!("item {item}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_from_its_item() {
        let item = json!({
            "Image": { "S": "a/b" }, "Tag": { "S": "1" }, "Status": { "S": "Done" }, "Bytes": { "N": "7" }, "Other": { "BOOL": true },
        });
        let row: ImageRow = from_item(&item).unwrap();
        let expected = ImageRow {
            image: "a/b".into(),
            tag: "1".into(),
            status: "Done".into(),
            bytes: Some(7),
            ..ImageRow::default()
        };
        assert_eq!(row, expected);
    }

    #[test]
    fn outputs_are_read_from_the_description() {
        let xml = "<R xmlns='x'><Outputs><member><OutputKey>A</OutputKey><OutputValue>1</OutputValue></member>\
                   <member><OutputKey>B</OutputKey><OutputValue>2</OutputValue></member></Outputs></R>";
        let outputs = members(xml, "Outputs", "OutputKey", "OutputValue");
        assert_eq!(outputs, BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2".into())]));
    }
}
