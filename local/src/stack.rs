//! The project's template, deployed to a machine, and what can be done with it there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    aws::{Aws, xml_text},
    corpus::Corpus,
    error::{Error, Result},
    machine::{ARTIFACTS, CLUSTER, Machine, REGION, tool, tools_directory},
    process::Program,
};

/// How often an execution is looked at.
const POLL: Duration = Duration::from_millis(200);

/// The policy of a role with what only ministack asks permission for.
pub const LOCAL_POLICY: &str = "LocalAws";

/// What AWS asks permission for on a repository, a path, a task or a stream, and ministack on something wider.
const LOCAL_ACTIONS: [(&str, &[&str]); 2] = [
    ("ListImagesFunctionRole", &["ecr:DescribeRepositories", "ssm:GetParametersByPath"]),
    (
        "LaunchTaskFunctionRole",
        &[
            "ecr:DescribeRepositories",
            "ecr:ListTagsForResource",
            "ecr:TagResource",
            "ecs:DescribeTasks",
            "ecs:ListTasks",
            "ecs:RunTask",
            "ecs:StopTask",
            "logs:GetLogEvents",
            "ssm:GetParametersByPath",
        ],
    ),
];

/// A deployed stack.
#[derive(Clone, Debug)]
pub struct Stack {
    aws: Aws,
    name: String,
    outputs: BTreeMap<String, String>,
}

/// The directory that the project is in.
#[must_use]
pub fn project() -> &'static Path {
    let this_crate = Path::new(env!("CARGO_MANIFEST_DIR"));
    this_crate.parent().unwrap_or(this_crate)
}

impl Stack {
    /// Deploys what `sam build` has built, or updates the stack of that name to it. What the template wants to know of the
    /// machine need not be among the parameters.
    ///
    /// # Errors
    /// [`Error::Ended`] with what `sam` says, if it fails.
    pub async fn deploy(machine: &Machine, name: &str, parameters: &[(&str, &str)]) -> Result<Self> {
        let template = project().join(".aws-sam/build/template.yaml");
        if !template.is_file() {
            return Err(Error::Unexpected(format!("{} is missing: run `make build` first", template.display())));
        }
        let known = known_parameters(machine);
        // sam takes an empty value for a missing one, and so does the template.
        let overrides = known
            .iter()
            .filter(|(known, _)| parameters.iter().all(|(given, _)| given != known))
            .chain(parameters)
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={}", Value::from(*value)));
        let log: PathBuf = machine.directory().join(format!("deploy-{name}.log"));
        client(machine, "sam")?
            // A bucket that is there already: stacks that are deployed side by side would both create sam's own.
            .args(["deploy", "--stack-name", name, "--no-resolve-s3", "--s3-bucket", ARTIFACTS, "--s3-prefix", name])
            .args(["--capabilities", "CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"])
            .args(["--no-confirm-changeset", "--no-fail-on-empty-changeset", "--no-progressbar", "--region", REGION])
            .args(["--template-file".into(), template])
            .args(["--parameter-overrides".to_owned()].into_iter().chain(overrides))
            .run(log)
            .await?;
        let stack = Self::find(machine.home()?, name).await?;
        stack.allow_for_ministack().await?;
        Ok(stack)
    }

    /// Allows what the template need not, because AWS takes these calls to be about narrower resources than ministack does.
    async fn allow_for_ministack(&self) -> Result<()> {
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

    /// Publishes what `sam build` has built, as a template without any transform, and returns its URL.
    ///
    /// # Errors
    /// [`Error::Ended`] with what the program says, if it fails.
    pub async fn publish(machine: &Machine) -> Result<String> {
        let log = machine.directory().join("publish.log");
        client(machine, "python")?
            .envs([("PATH", tools_path())])
            .args(["tools/publish.py", ".aws-sam/build/template.yaml", ARTIFACTS, "published"])
            .run(&log)
            .await?;
        let printed = std::fs::read_to_string(&log).map_err(Error::file(&log))?;
        Ok(printed.lines().last().unwrap_or_default().to_owned())
    }

    /// Creates a stack from a published template, as `aws cloudformation create-stack` does with these capabilities.
    ///
    /// # Errors
    /// [`Error::Aws`] with what CloudFormation says, if it refuses.
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

    /// `make check-aws` for this machine, ready to be run, with the images that it copies.
    ///
    /// # Errors
    /// If the images cannot be made, or a program is missing.
    pub async fn check(machine: &Machine) -> Result<Program> {
        let images = [("busybox", "1.36"), ("alpine", "3.19"), ("alpine", "3.20"), ("hello-world", "linux")];
        let corpus = images.into_iter().fold(Corpus::default(), |corpus, (repository, tag)| {
            corpus.with("public.ecr.aws", &format!("docker/library/{repository}"), tag)
        });
        machine.seed(corpus).await?;
        let actions = Map::from_iter(LOCAL_ACTIONS.map(|(role, actions)| (role.to_owned(), json!(actions))));
        let parameters = known_parameters(machine);
        let parameters = parameters.map(|(name, value)| ["--parameter".to_owned(), format!("{name}={value}")]);
        let program = client(machine, "python")?
            .envs([("PATH", tools_path().as_str()), ("SAM_CLI_POLL_DELAY", "0.5")])
            .args(["tools/check_aws.py", "--yes", "--local", &Value::from(actions).to_string()])
            .args(parameters.into_iter().flatten());
        Ok(program)
    }

    /// Deletes it as a person does, with `make delete`, and returns what the command says.
    ///
    /// # Errors
    /// [`Error::Ended`] with what the command says, if it fails.
    pub async fn make_delete(self, machine: &Machine) -> Result<String> {
        let log = machine.directory().join(format!("delete-{}.log", self.name));
        let inherited = ["HOME", "CARGO_HOME", "RUSTUP_HOME"].into_iter();
        let inherited = inherited.filter_map(|name| Some((name, std::env::var_os(name)?)));
        let tools = format!("ECR_TRANSFER_TOOLS={}", tools_directory().display());
        Program::new("make", "install the package make")?
            .args(["--no-print-directory", "delete", "YES=1", &tools, &format!("STACK={}", self.name)])
            .envs(machine.env().iter().cloned())
            .envs(NOBODYS_CONFIGURATION)
            .envs(inherited)
            .directory(project())
            .run(&log)
            .await?;
        std::fs::read_to_string(&log).map_err(Error::file(&log))
    }

    /// Deletes it, and waits until it is gone.
    ///
    /// # Errors
    /// If CloudFormation does not answer, or it cannot be deleted.
    pub async fn delete(self) -> Result<()> {
        let id = self.id().await?;
        self.aws.query("cloudformation", "DeleteStack", &[("StackName", &self.name)]).await?;
        becomes(&self.aws, &id, "DELETE").await
    }

    /// A stack that was deployed before.
    ///
    /// # Errors
    /// If there is none of that name.
    pub async fn find(aws: Aws, name: &str) -> Result<Self> {
        let described = aws.query("cloudformation", "DescribeStacks", &[("StackName", name)]).await?;
        let outputs = members(&described, "Outputs", "OutputKey", "OutputValue");
        Ok(Self { aws, name: name.to_owned(), outputs })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its ARN.
    ///
    /// # Errors
    /// If CloudFormation does not know it.
    pub async fn id(&self) -> Result<String> {
        let described = self.aws.query("cloudformation", "DescribeStacks", &[("StackName", &self.name)]).await?;
        xml_text(&described, "StackId").ok_or_else(|| Error::Unexpected(described))
    }

    /// One of its outputs.
    ///
    /// # Errors
    /// If it has none of that name.
    pub fn output(&self, name: &str) -> Result<&str> {
        let missing = || Error::Unexpected(format!("stack {} has no output {name}", self.name));
        self.outputs.get(name).map(String::as_str).ok_or_else(missing)
    }

    /// The ARN of its state machine.
    ///
    /// # Errors
    /// If it has none.
    pub fn state_machine_arn(&self) -> Result<&str> {
        self.output("StateMachineArn")
    }

    /// The physical ids of its resources, by their logical ones.
    ///
    /// # Errors
    /// If CloudFormation does not answer.
    pub async fn resources(&self) -> Result<BTreeMap<String, String>> {
        let described =
            self.aws.query("cloudformation", "DescribeStackResources", &[("StackName", &self.name)]).await?;
        Ok(members(&described, "StackResources", "LogicalResourceId", "PhysicalResourceId"))
    }

    /// Starts an execution of the state machine.
    ///
    /// # Errors
    /// If Step Functions refuses.
    pub async fn start(&self, input: &Value) -> Result<Execution> {
        let request = json!({ "stateMachineArn": self.state_machine_arn()?, "input": input.to_string() });
        let started = self.aws.json("states", "AWSStepFunctions.StartExecution", request).await?;
        let arn = started["executionArn"].as_str().unwrap_or_default().to_owned();
        Ok(Execution { aws: self.aws.clone(), arn })
    }

    /// Changes the definition of its state machine.
    ///
    /// # Errors
    /// If Step Functions refuses.
    pub async fn change_definition(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut request = json!({ "stateMachineArn": self.state_machine_arn()? });
        let described = self.aws.json("states", "AWSStepFunctions.DescribeStateMachine", request.clone()).await?;
        let mut definition =
            described["definition"].as_str().and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default();
        change(&mut definition);
        request["definition"] = definition.to_string().into();
        self.aws.json("states", "AWSStepFunctions.UpdateStateMachine", request).await.map(drop)
    }

    /// The executions that were ever started, the latest first.
    ///
    /// # Errors
    /// If Step Functions does not answer.
    pub async fn executions(&self) -> Result<Vec<Execution>> {
        let request = json!({ "stateMachineArn": self.state_machine_arn()? });
        let listed = self.aws.json("states", "AWSStepFunctions.ListExecutions", request).await?;
        let arns = listed["executions"].as_array().into_iter().flatten();
        let arns = arns.filter_map(|execution| execution["executionArn"].as_str());
        Ok(arns.map(|arn| Execution { aws: self.aws.clone(), arn: arn.to_owned() }).collect())
    }

    /// What the table says of all images.
    ///
    /// # Errors
    /// If the table cannot be read.
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

    /// What is counted of an execution, as soon as anything is.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub async fn execution_row(&self, execution: &str) -> Result<Option<ExecutionRow>> {
        let request = json!({
            "TableName": self.output("ExecutionTable")?,
            "Key": { "Execution": { "S": execution } },
            "ConsistentRead": true,
        });
        let answer = self.aws.json("dynamodb", "DynamoDB_20120810.GetItem", request).await?;
        match &answer["Item"] {
            Value::Null => Ok(None),
            item => from_item(item).map(Some),
        }
    }
}

/// An image's row in the table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageRow {
    /// Its repository, as the table names it.
    pub image: String,
    /// Its tag, or its digest where it has none.
    pub tag: String,
    /// `Done` or `Error`.
    pub status: String,
    /// What is wrong.
    pub error_message: Option<String>,
    /// The name of the execution that wrote the row.
    pub execution: String,
    /// Which platforms were copied.
    pub multi_arch_option: String,
    /// Where it came from.
    pub source: String,
    /// Where it went.
    pub destination: String,
    /// What the destination answers.
    pub digest: Option<String>,
    /// Its compressed size.
    pub bytes: Option<u64>,
    /// How long the copy took.
    pub seconds: Option<f64>,
    /// How many tries it took.
    pub attempts: Option<u64>,
    /// Where the task's output is.
    pub log_group: Option<String>,
    /// Where in it.
    pub log_stream: Option<String>,
}

/// An execution's item in the table.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct ExecutionRow {
    /// Images at the source.
    pub listed: u64,
    /// Images that the destination has.
    pub unchanged: u64,
    /// Images that nobody asked for.
    pub excluded: u64,
    /// Images to copy.
    pub to_copy: u64,
    /// Their size.
    pub bytes: u64,
    /// Images copied.
    pub done: u64,
    /// Images that could not be copied.
    pub failed: u64,
    /// The size of those copied.
    pub bytes_done: u64,
}

/// An execution of the state machine.
#[derive(Clone, Debug)]
pub struct Execution {
    aws: Aws,
    arn: String,
}

/// How an execution stands, or ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// `RUNNING`, `SUCCEEDED`, `FAILED`, `TIMED_OUT` or `ABORTED`.
    pub status: String,
    /// The error's name, if it failed.
    pub error: Option<String>,
    /// What Step Functions says about it.
    pub cause: Option<String>,
    /// Its output, if it succeeded.
    pub output: Value,
}

impl Outcome {
    /// Whether all went well.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.status == "SUCCEEDED"
    }
}

impl Execution {
    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// Its name, which is its key in the table.
    #[must_use]
    pub fn name(&self) -> &str {
        self.arn.rsplit(':').next().unwrap_or(&self.arn)
    }

    /// How it stands.
    ///
    /// # Errors
    /// If Step Functions does not answer.
    pub async fn describe(&self) -> Result<Outcome> {
        let request = json!({ "executionArn": self.arn });
        let described = self.aws.json("states", "AWSStepFunctions.DescribeExecution", request).await?;
        let text = |name: &str| described[name].as_str().map(str::to_owned);
        Ok(Outcome {
            status: text("status").unwrap_or_default(),
            error: text("error"),
            cause: text("cause"),
            output: text("output").and_then(|output| serde_json::from_str(&output).ok()).unwrap_or_default(),
        })
    }

    /// Stops it, as a person would in the console.
    ///
    /// # Errors
    /// If Step Functions does not answer.
    pub async fn stop(&self) -> Result<()> {
        let request = json!({ "executionArn": self.arn, "cause": "stopped by hand" });
        self.aws.json("states", "AWSStepFunctions.StopExecution", request).await.map(drop)
    }

    /// The states that it has entered so far, in their order.
    ///
    /// # Errors
    /// If Step Functions does not answer.
    pub async fn states(&self) -> Result<Vec<String>> {
        let request = json!({ "executionArn": self.arn, "maxResults": 1_000 });
        let events = self.aws.pages("states", "AWSStepFunctions.GetExecutionHistory", request, "events").await?;
        let entered = events.iter().filter_map(|event| event["stateEnteredEventDetails"]["name"].as_str());
        Ok(entered.map(str::to_owned).collect())
    }

    /// Waits until it has entered a state.
    ///
    /// # Errors
    /// If it ends before, or Step Functions does not answer.
    pub async fn enters(&self, state: &str) -> Result<()> {
        loop {
            if self.states().await?.iter().any(|entered| entered == state) {
                return Ok(());
            }
            let outcome = self.describe().await?;
            if outcome.status != "RUNNING" {
                return Err(Error::Unexpected(format!("it ended before {state}: {outcome:?}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If Step Functions does not answer.
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

/// Waits until what is done to a stack, `CREATE` or `DELETE`, is complete.
async fn becomes(aws: &Aws, stack: &str, what: &str) -> Result<()> {
    loop {
        let described = aws.query("cloudformation", "DescribeStacks", &[("StackName", stack)]).await?;
        let status = xml_text(&described, "StackStatus");
        match status.as_deref().and_then(|status| status.strip_prefix(what)) {
            Some("_COMPLETE") => return Ok(()),
            Some("_IN_PROGRESS") => tokio::time::sleep(POLL).await,
            _ => return Err(Error::Unexpected(described)),
        }
    }
}

/// The user's accounts are none of this machine's business.
const NOBODYS_CONFIGURATION: [(&str, &str); 2] =
    [("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")];

/// A tool of the project's that talks to AWS: to this machine's, and not to the user's accounts, whatever is configured for them.
fn client(machine: &Machine, program: &str) -> Result<Program> {
    let program = Program::new(tool("sam", program), "run `make setup`")?
        .envs(machine.env().iter().cloned())
        .envs(NOBODYS_CONFIGURATION)
        .envs([("HOME", machine.directory()), ("TMPDIR", machine.directory())])
        .envs([("LC_ALL", "C.UTF-8"), ("NO_COLOR", "1")]);
    Ok(program.directory(project()))
}

/// `PATH`, with the project's tools in front.
fn tools_path() -> String {
    let tools = tool("sam", "sam");
    let tools = tools.parent().unwrap_or(&tools).display();
    format!("{tools}:{}", std::env::var("PATH").unwrap_or_default())
}

/// The parameters by which the template learns of the machine.
fn known_parameters(machine: &Machine) -> [(&'static str, &str); 6] {
    let network = machine.network();
    [
        ("architecture", architecture()),
        ("destRegion", REGION),
        ("ecsClusterName", CLUSTER),
        ("ecsVpcId", &network.vpc),
        ("ecsSubnetA", &network.subnets[0]),
        ("ecsSubnetB", &network.subnets[1]),
    ]
}

/// What the Lambdas are built for here.
fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }
}

/// A list of key-value pairs in an answer of CloudFormation.
fn members(document: &str, list: &str, key: &str, value: &str) -> BTreeMap<String, String> {
    let Ok(document) = roxmltree::Document::parse(document) else { return BTreeMap::new() };
    let text = |node: roxmltree::Node<'_, '_>, name: &str| {
        node.children().find(|child| child.tag_name().name() == name)?.text().map(str::to_owned)
    };
    document
        .descendants()
        .filter(|node| node.tag_name().name() == list)
        .flat_map(|list| list.children())
        .filter_map(|member| Some((text(member, key)?, text(member, value)?)))
        .collect()
}

/// A DynamoDB item as the type that it stands for.
fn from_item<T: DeserializeOwned>(item: &Value) -> Result<T> {
    let fields: Map<String, Value> = item
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), plain(value)?)))
        .collect();
    serde_json::from_value(fields.into()).map_err(|error| Error::Unexpected(format!("item {item}: {error}")))
}

/// A value of DynamoDB's as JSON has it: texts and numbers, which is all that is looked at.
fn plain(value: &Value) -> Option<Value> {
    match value.as_object()?.iter().next()? {
        (kind, value) if kind == "S" => Some(value.clone()),
        (kind, value) if kind == "N" => value.as_str()?.parse().ok().map(Value::Number),
        _ => None,
    }
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
