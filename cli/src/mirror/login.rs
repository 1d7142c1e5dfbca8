//! Prints how to log in to the mirror, and the policies that allow pulling from it.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use shared::ecr::{EcrHost, is_account};
use shared::inventory::{Inventory, MirroredRepository};
use shared::reference::RegistryHost;

use super::inventory;
use crate::Outcome;
use crate::output::{note, print};

/// What a pull needs, as in the managed policy
/// [AmazonEC2ContainerRegistryPullOnly](https://docs.aws.amazon.com/aws-managed-policy/latest/reference/AmazonEC2ContainerRegistryPullOnly.html).
const PULL: [&str; 2] = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"];

/// The most characters of a managed policy, without white space. See
/// [quotas](https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html).
const POLICY_SIZE: usize = 6_144;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    inventory: inventory::Source,
    /// An account that may pull, with `repository-policy`; may be repeated
    #[arg(long = "account", value_name = "ID")]
    accounts: Vec<String>,
    /// An AWS organization whose accounts may pull, with `repository-policy`
    #[arg(long, value_name = "ID", conflicts_with = "accounts")]
    organization: Option<String>,
    /// What to print
    #[arg(value_enum, default_value_t = What::Commands)]
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The commands that log in
    Commands,
    /// Docker's configuration for the credential helper of ECR, which needs no `docker login`
    DockerConfig,
    /// The IAM policy of a user or role that pulls from the mirror, and does nothing else
    PullPolicy,
    /// The repository policy that lets other accounts pull; for the stack's parameter repositoryPolicy
    RepositoryPolicy,
}

/// A policy of IAM or of a repository.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Policy {
    version: &'static str,
    statement: Vec<Statement>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    effect: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<Value>,
    action: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<Value>,
}

impl Policy {
    fn new(statement: impl Into<Vec<Statement>>) -> Self {
        Self { version: "2012-10-17", statement: statement.into() }
    }
}

impl Statement {
    fn allow(action: Value) -> Self {
        Self { effect: "Allow", principal: None, action, resource: None, condition: None }
    }
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let Arguments { inventory, accounts, organization, what } = arguments;
    if *what != What::RepositoryPolicy && !(accounts.is_empty() && organization.is_none()) {
        bail!("--account and --organization belong to `repository-policy`.");
    }
    let text = match what {
        // It is the same for each mirror.
        What::RepositoryPolicy => pretty(&repository_policy(accounts, organization.as_deref())?)?,
        What::Commands => commands(inventory.load().await?.registry())?,
        What::DockerConfig => pretty(&docker_config(inventory.load().await?.registry()))?,
        What::PullPolicy => pretty(&pull_policy(&inventory.load().await?)?)?,
    };
    print(text)?;
    Ok(Outcome::Success)
}

fn pretty(json: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(json)? + "\n")
}

fn ecr(registry: &RegistryHost) -> Result<EcrHost<'_>> {
    EcrHost::of(registry)
        .with_context(|| format!("{registry}, the registry of the inventory, is not a registry of ECR."))
}

fn commands(registry: &RegistryHost) -> Result<String> {
    let EcrHost { region, .. } = ecr(registry)?;
    Ok(["docker login", "podman login", "skopeo login", "helm registry login"]
        .map(|login| {
            format!(
                "aws ecr get-login-password --region {region} | {login} --username AWS --password-stdin {registry}\n"
            )
        })
        .concat())
}

fn docker_config(registry: &RegistryHost) -> Value {
    json!({ "credHelpers": { registry.as_str(): "ecr-login" } })
}

/// Names each repository if the policy has room for that, otherwise their first folders, otherwise all repositories.
fn pull_policy(inventory: &Inventory) -> Result<Policy> {
    let registry = ecr(inventory.registry())?;
    let repositories: Vec<_> = inventory.repositories().collect();
    if repositories.is_empty() {
        bail!("The inventory has no repositories. Start a run, and try again after it.");
    }
    let name = |repository: &MirroredRepository| repository.destination.name.to_string();
    let folder = |repository: &MirroredRepository| match repository.destination.name.as_str().split_once('/') {
        Some((folder, _)) => format!("{folder}/*"),
        None => name(repository),
    };
    let policy = |names: BTreeSet<String>| {
        let arns: Vec<_> = names.iter().map(|name| registry.repository_arn(name)).collect();
        Policy::new([
            Statement { resource: Some(json!("*")), ..Statement::allow(json!("ecr:GetAuthorizationToken")) },
            Statement { resource: Some(json!(arns)), ..Statement::allow(json!(PULL)) },
        ])
    };
    let exact = policy(repositories.iter().map(name).collect());
    let by_folder = || policy(repositories.iter().map(folder).collect());
    let fits = |policy: &Policy| serde_json::to_string(policy).is_ok_and(|json| json.len() <= POLICY_SIZE);
    Ok(match exact {
        exact if fits(&exact) => exact,
        _ => Some(by_folder()).filter(fits).unwrap_or_else(|| {
            note("The mirror has too many repositories for one policy. This policy allows all repositories of the registry.");
            policy(BTreeSet::from(["*".to_owned()]))
        }),
    })
}

fn repository_policy(accounts: &[String], organization: Option<&str>) -> Result<Policy> {
    if let Some(account) = accounts.iter().find(|account| !is_account(account)) {
        bail!("--account is {account:?}, but the ID of an account has 12 digits.");
    }
    let (principal, condition) = match organization {
        Some(id) if is_organization(id) => (json!("*"), Some(json!({ "StringEquals": { "aws:PrincipalOrgID": id } }))),
        Some(id) => bail!(
            "--organization is {id:?}, but the ID of an organization is o- and 10 to 32 lowercase letters and digits."
        ),
        None if accounts.is_empty() => bail!("Name who may pull: --account ID, or --organization ID."),
        None => (json!({ "AWS": accounts }), None),
    };
    Ok(Policy::new([Statement { principal: Some(principal), condition, ..Statement::allow(json!(PULL)) }]))
}

/// The pattern of [organization IDs](https://docs.aws.amazon.com/organizations/latest/APIReference/API_Organization.html).
fn is_organization(id: &str) -> bool {
    id.strip_prefix("o-").is_some_and(|id| {
        (10..=32).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use shared::inventory::MirroredImage;
    use shared::reference::Digest;

    use super::*;

    const HOST: &str = "111111111111.dkr.ecr.cn-north-1.amazonaws.com.cn";

    fn inventory(names: &[String]) -> Inventory {
        let mut inventory = Inventory::new(HOST.parse().expect("it is a host"));
        for name in names {
            inventory.add(MirroredRepository {
                source: format!("quay.io/{name}").parse().expect(name),
                destination: format!("{HOST}/{name}").parse().expect(name),
                images: vec![MirroredImage { tag: None, digest: Digest::of(b"") }],
            });
        }
        inventory
    }

    fn resources(names: &[String]) -> Vec<String> {
        let policy = json!(pull_policy(&inventory(names)).expect("it has repositories"));
        assert!(policy.to_string().len() <= POLICY_SIZE);
        assert_eq!(policy["Statement"][1]["Action"], json!(["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]));
        serde_json::from_value(policy["Statement"][1]["Resource"].clone()).expect("it is a list of texts")
    }

    #[test]
    fn the_pull_policy_names_as_few_repositories_as_it_has_room_for() {
        let arn = |name: &str| format!("arn:aws-cn:ecr:cn-north-1:111111111111:repository/{name}");
        assert_eq!(resources(&["app".into(), "hub/nginx".into()]), [arn("app"), arn("hub/nginx")]);
        let many: Vec<_> = (0..100).map(|number| format!("hub/app-{number}")).chain(["app".into()]).collect();
        assert_eq!(resources(&many), [arn("app"), arn("hub/*")]);
        let flat: Vec<_> = (0..200).map(|number| format!("app-{number}")).collect();
        assert_eq!(resources(&flat), [arn("*")]);
        assert!(pull_policy(&inventory(&[])).is_err());
    }

    #[test]
    fn the_repository_policy_allows_accounts_or_an_organization_to_pull_and_nobody_else() {
        let accounts = json!(repository_policy(&["222222222222".into()], None).expect("it is an account"));
        assert_eq!(accounts["Statement"][0]["Principal"], json!({ "AWS": ["222222222222"] }));
        assert_eq!(accounts["Statement"][0].get("Condition"), None);
        let organization = json!(repository_policy(&[], Some("o-abcdefghij")).expect("it is an organization"));
        let condition = json!({ "StringEquals": { "aws:PrincipalOrgID": "o-abcdefghij" } });
        assert_eq!(organization["Statement"][0]["Condition"], condition);
        for (accounts, organization) in
            [(vec![], None), (vec!["1".into()], None), (vec![], Some("*")), (vec![], Some("o-1"))]
        {
            assert!(repository_policy(&accounts, organization).is_err(), "{accounts:?} {organization:?}");
        }
    }

    #[test]
    fn the_page_shows_what_is_printed() {
        const PAGE: &str = include_str!("../../../docs/mirror/login.md");
        let block = |name: &str| {
            PAGE.split_once(&format!("```{name}\n")).and_then(|(_, rest)| rest.split_once("```")).expect(name).0
        };
        let host = "111111111111.dkr.ecr.us-east-1.amazonaws.com".parse().expect("it is a host");
        let mut inventory = Inventory::new(host);
        inventory.add(MirroredRepository {
            source: "docker.io/library/nginx".parse().expect("it is a repository"),
            destination: format!("{}/dockerhub/nginx", inventory.registry()).parse().expect("it is a repository"),
            images: Vec::new(),
        });
        assert_eq!(
            pretty(&pull_policy(&inventory).expect("it has a repository")).expect("it is JSON"),
            block("pull-policy")
        );
        assert_eq!(pretty(&docker_config(inventory.registry())).expect("it is JSON"), block("docker-config"));
        assert!(commands(inventory.registry()).expect("it is ECR's").starts_with(block("commands")));
    }

    #[test]
    fn the_commands_log_in_to_the_registry_in_its_region() {
        let commands = commands(&HOST.parse().expect("it is a host")).expect("it is ECR's");
        assert!(commands.starts_with(&format!(
            "aws ecr get-login-password --region cn-north-1 | docker login --username AWS --password-stdin {HOST}\n"
        )));
        assert!(super::commands(&"quay.io".parse().expect("it is a host")).is_err());
    }
}
