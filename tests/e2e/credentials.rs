//! Who a run is towards its source.

use local::aws::{Aws, xml_text};
use local::machine::{ACCOUNT, SOURCE_ACCOUNT, SOURCE_CREDENTIAL, SOURCE_REGION};
use local::stack::Stack;
use serde_json::{Value, json};

use crate::world::{PRIVATE_LOGIN, PRIVATE_REGISTRY, Result, World, rows, run};

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
    let run = run(world.deploy(name, &parameters).await?).await?;
    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    let images = world.seeded(|_, repository| repository == "tools/migrate");
    let image = images.into_iter().find(|image| image.tag.as_deref() == Some("5.0")).ok_or("it is not seeded")?;
    world.check_copied(&run.stack, "tools/migrate", image).await?;
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
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Resource": "*",
        "Action": ["ecr:GetAuthorizationToken", "ecr:DescribeRepositories", "ecr:DescribeImages", "ecr:BatchGetImage",
            "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"],
    }] });
    let role = ("RoleName", "ecr-transfer-source");
    let trust = trust.to_string();
    let created = source.query("iam", "CreateRole", &[role, ("AssumeRolePolicyDocument", &trust)]).await?;
    let arn = xml_text(&created, "Arn").ok_or("the role has no ARN")?;
    let policy = policy.to_string();
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
    let denied = run(world.deploy(stack.name(), &wrong).await?).await?;
    assert_eq!(denied.outcome.error.as_deref(), Some("AccessDenied"), "{:?}", denied.outcome);
    let cause = denied.outcome.cause.as_deref().unwrap_or_default();
    assert!(cause.contains("sts:AssumeRole") && cause.contains(&arn), "{cause}");
    Ok(())
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
    let run = run(world.deploy("harbor", &parameters).await?).await?;
    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    for image in world.seeded(|registry, _| registry == PRIVATE_REGISTRY) {
        world.check_copied(&run.stack, "harbor.example.com-5000/team/tool", image).await?;
    }
    assert_eq!(rows(&run.stack).await?.values().filter(|row| row.status == "Done").count(), 2);
    Ok(())
}
