//! Who a run is towards its source.

use local::aws::{Aws, xml_text};
use local::machine::{ACCOUNT, SOURCE_ACCOUNT, SOURCE_CREDENTIAL, SOURCE_REGION};
use local::stack::Stack;
use serde_json::{Value, json};

use crate::world::{PRIVATE_LOGIN, PRIVATE_REGISTRY, Result, World, rows};

/// Where nothing else is copied to, in the source account.
const DESTINATION_REGION: &str = "eu-central-1";

/// Copies one image of the source account with `credential`, into a stack of its own.
async fn copy(world: &World, name: &str, credential: &str, external_id: &str) -> Result<Stack> {
    let parameters = [
        ("srcRegion", SOURCE_REGION),
        ("srcAccountId", SOURCE_ACCOUNT),
        ("srcList", "SELECTED"),
        ("srcImageList", "tools/migrate:5.0"),
        ("srcCredential", credential),
        ("srcExternalId", external_id),
    ];
    let run = world.run(world.deploy(name, &parameters).await?).await?;
    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    Ok(run.stack)
}

pub async fn an_access_key_may_be_in_the_parameter_store(world: &World) -> Result {
    let home = world.machine().home()?;
    let request = json!({ "SecretId": SOURCE_CREDENTIAL });
    let secret = home.json("secretsmanager", "secretsmanager.GetSecretValue", request).await?;
    let parameter = json!({ "Name": "drh-credentials", "Type": "SecureString", "Value": secret["SecretString"] });
    home.json("ssm", "AmazonSSM.PutParameter", parameter).await?;
    copy(world, "parameter", "ssm:", "").await.map(drop)
}

pub async fn a_role_is_assumed_with_its_external_id(world: &World) -> Result {
    let source: Aws = world.machine().aws(SOURCE_ACCOUNT, SOURCE_REGION)?;
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{ACCOUNT}:root") }, "Action": "sts:AssumeRole",
        "Condition": { "StringEquals": { "sts:ExternalId": "ecr-transfer/partner" } },
    }] });
    let policy = guide("policy-source", SOURCE_REGION)?;
    let role = ("RoleName", "ecr-transfer-source");
    let trust = trust.to_string();
    let created = source.query("iam", "CreateRole", &[role, ("AssumeRolePolicyDocument", &trust)]).await?;
    let arn = xml_text(&created, "Arn").ok_or("the role has no ARN")?;
    source.query("iam", "PutRolePolicy", &[role, ("PolicyName", "read"), ("PolicyDocument", &policy)]).await?;

    let stack = copy(world, "role", &arn, "ecr-transfer/partner").await?;

    // The same with another external id: nobody else's identity is used instead.
    let wrong = [
        ("srcRegion", SOURCE_REGION),
        ("srcAccountId", SOURCE_ACCOUNT),
        ("srcList", "SELECTED"),
        ("srcImageList", "tools/migrate:5.1"),
        ("srcCredential", &arn),
        ("srcExternalId", "somebody-else"),
    ];
    let denied = world.run(world.deploy(stack.name(), &wrong).await?).await?;
    assert_eq!(denied.outcome.error.as_deref(), Some("AccessDenied"), "{:?}", denied.outcome);
    let cause = denied.outcome.cause.as_deref().unwrap_or_default();
    assert!(cause.contains("sts:AssumeRole") && cause.contains(&arn), "{cause}");
    Ok(())
}

pub async fn a_destination_in_another_account_takes_images_from_the_user_that_the_guide_describes(
    world: &World,
) -> Result {
    let there: Aws = world.machine().aws(SOURCE_ACCOUNT, DESTINATION_REGION)?;
    let user = ("UserName", "ecr-transfer-destination");
    there.query("iam", "CreateUser", &[user]).await?;
    let policy = guide("policy-destination", DESTINATION_REGION)?;
    there.query("iam", "PutUserPolicy", &[user, ("PolicyName", "write"), ("PolicyDocument", &policy)]).await?;
    let key = there.query("iam", "CreateAccessKey", &[user]).await?;
    let field = |name: &str| xml_text(&key, name).ok_or(format!("the key has no {name}"));
    let secret = json!({ "access_key_id": field("AccessKeyId")?, "secret_access_key": field("SecretAccessKey")? });
    let request = json!({ "Name": "destination-credential", "SecretString": secret.to_string() });
    world.machine().home()?.json("secretsmanager", "secretsmanager.CreateSecret", request).await?;
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", "busybox:1.36"),
        ("destAccountId", SOURCE_ACCOUNT),
        ("destRegion", DESTINATION_REGION),
        ("destCredential", "destination-credential"),
    ];

    let run = world.run(world.deploy("abroad", &parameters).await?).await?;

    assert!(run.outcome.succeeded(), "{:?} {:?}", run.outcome, rows(&run.stack).await?);
    let again = world.run(run.stack).await?;
    assert_eq!(again.outcome.status, "SUCCEEDED", "{:?}", again.outcome);
    assert_eq!(world.tasks(&again.stack).len(), 1, "the second found it there");
    Ok(())
}

/// A policy of the guide, for the source account in a region.
fn guide(name: &str, region: &str) -> Result<String> {
    let guide = include_str!("../../docs/guide.md");
    let (_, block) = guide.split_once(&format!("```{name}\n")).ok_or("the guide has no such policy")?;
    let (policy, _) = block.split_once("```").ok_or("it does not end")?;
    let policy: Value = serde_json::from_str(policy)?;
    let statements = policy["Statement"].as_array().ok_or("it allows nothing")?;
    let resource = statements.iter().filter_map(|statement| statement["Resource"].as_str()).find(|it| *it != "*");
    let resource = resource.ok_or("it names no registry")?;
    let ours = format!("arn:aws:ecr:{region}:{SOURCE_ACCOUNT}:repository/*");
    Ok(policy.to_string().replace(resource, &ours))
}

pub async fn a_private_registry_gets_its_own_login_and_no_other_registry_does(world: &World) -> Result {
    let auths: Value = json!({ "auths": { PRIVATE_REGISTRY: { "auth": PRIVATE_LOGIN } } });
    let request = json!({
        "Name": "registries/logins", "SecretString": auths.to_string(), "ClientRequestToken": "0".repeat(32),
    });
    world.machine().home()?.json("secretsmanager", "secretsmanager.CreateSecret", request).await?;
    let list = format!("{PRIVATE_REGISTRY}/team/tool:ALL_TAGS,busybox:1.36");
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", list.as_str()),
        ("srcCredential", "registries/logins"),
    ];
    let run = world.run(world.deploy("harbor", &parameters).await?).await?;
    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    assert_eq!(rows(&run.stack).await?.values().filter(|row| row.status == "Done").count(), 2);
    Ok(())
}
