//! That no role may do more than it does, nor less.

use std::collections::{BTreeMap, BTreeSet};

use local::aws::{Aws, xml_texts};
use local::machine::{ACCOUNT, REGION};
use local::stack::LOCAL_POLICY;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::world::{Result, World};

/// The functions whose calls the machine sees.
const FUNCTIONS: [&str; 3] = ["ListImagesFunction", "LaunchTaskFunction", "RecordStatusFunction"];

/// What tests take away, or ask for in vain, and of which stack.
const DENIED: [(&str, &str); 4] = [
    ("denied", "ecr:CreateRepository"),
    ("partly", "ecr:CreateRepository"),
    ("planless", "s3:PutObject"),
    ("role", "sts:AssumeRole"),
];

/// What is granted and not seen to be used, and why it is.
const UNSEEN: [(&str, &str, &[&str]); 7] = [
    ("*", "Lambda itself writes its log", &["logs:CreateLogStream", "logs:PutLogEvents"]),
    (
        "*",
        "only with a key of one's own, and by other services",
        &["kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey"],
    ),
    (
        "LaunchTaskFunction",
        "the tasks do it with the tokens that this function has got; the local registry asks for no permission",
        &[
            "ecr:BatchCheckLayerAvailability",
            "ecr:BatchGetImage",
            "ecr:CompleteLayerUpload",
            "ecr:GetDownloadUrlForLayer",
            "ecr:InitiateLayerUpload",
            "ecr:PutImage",
            "ecr:UploadLayerPart",
        ],
    ),
    (
        "LaunchTaskFunction",
        "AWS asks for these when a task is run or a repository is created",
        &["ecr:TagResource", "iam:PassRole"],
    ),
    (
        "RecordStatusFunction",
        "the other functions have used these forms of a credential, with the same policy",
        &["ssm:GetParameter", "sts:AssumeRole"],
    ),
    (
        "ListImagesFunction",
        "it asks registries of ECR that a Public list names as it asks all others, with a token",
        &["ecr:ListImages"],
    ),
    (
        "TaskExecutionRole",
        "only where skopeo's image is in ECR",
        &["ecr:BatchGetImage", "ecr:GetAuthorizationToken", "ecr:GetDownloadUrlForLayer"],
    ),
];

/// Compares what all stacks so far granted with what was done. It comes last, when every feature has been used.
pub async fn every_permission_is_used(world: &World) -> Result {
    let home = world.machine().home()?;
    let mut granted: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut used: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let (calls, authorized) = (world.machine().calls(), world.machine().fargate().authorized());
    for stack in world.stacks() {
        // Some have been deleted meanwhile.
        let Ok(resources) = stack.resources().await else { continue };
        for function in FUNCTIONS {
            let (Some(name), Some(role)) = (resources.get(function), resources.get(&format!("{function}Role"))) else {
                continue;
            };
            granted.entry(function).or_default().extend(allowed(&home, role).await?);
            let key = access_key_id(name, role);
            let calls = calls.iter().filter(|(call, _)| call.access_key_id == key);
            let denied: Vec<_> =
                calls.clone().filter(|(_, times)| times.denied > 0).map(|(call, _)| &call.action).collect();
            let expected =
                DENIED.iter().filter(|(name, _)| *name == stack.name()).any(|(_, action)| denied == [action]);
            assert!(denied.is_empty() || expected, "{function} of {}: denied {denied:?}", stack.name());
            used.entry(function).or_default().extend(calls.map(|(call, _)| call.action.clone()));
        }
        let Some(role) = resources.get("TaskExecutionRole") else { continue };
        granted.entry("TaskExecutionRole").or_default().extend(allowed(&home, role).await?);
        let authorized = authorized.iter().filter(|(arn, _)| arn.ends_with(&format!(":role/{role}")));
        used.entry("TaskExecutionRole").or_default().extend(authorized.map(|(_, action)| action.clone()));
    }

    assert_eq!(granted.len(), 4, "there is something to look at: {:?}", granted.keys());
    for (who, granted) in &granted {
        let used = used.get(who).ok_or(format!("{who} has done nothing"))?;
        assert!(used.len() > 2, "{who} has done little: {used:?}");
        let unseen = UNSEEN.iter().filter(|(whose, ..)| *whose == "*" || whose == who);
        let unseen: BTreeSet<_> = unseen.flat_map(|(.., actions)| *actions).map(|&action| action.to_owned()).collect();
        let unused: Vec<_> = granted.difference(used).filter(|action| !unseen.contains(*action)).collect();
        assert!(unused.is_empty(), "{who} is allowed what it never does: {unused:?}");
        let missing: Vec<_> = used.difference(granted).collect();
        assert!(missing.is_empty(), "{who} does what it is not allowed to: {missing:?}");
    }
    Ok(())
}

/// The actions that a role's policies allow.
async fn allowed(aws: &Aws, role: &str) -> Result<BTreeSet<String>> {
    let mut documents = Vec::new();
    let listed = aws.query("iam", "ListRolePolicies", &[("RoleName", role)]).await?;
    for name in xml_texts(&listed, "member").into_iter().filter(|name| name != LOCAL_POLICY) {
        documents.push(aws.query("iam", "GetRolePolicy", &[("RoleName", role), ("PolicyName", &name)]).await?);
    }
    let attached = aws.query("iam", "ListAttachedRolePolicies", &[("RoleName", role)]).await?;
    for arn in xml_texts(&attached, "PolicyArn") {
        let version = aws.query("iam", "GetPolicy", &[("PolicyArn", &arn)]).await?;
        let version = xml_texts(&version, "DefaultVersionId").pop().ok_or("a policy has no version")?;
        documents.push(aws.query("iam", "GetPolicyVersion", &[("PolicyArn", &arn), ("VersionId", &version)]).await?);
    }
    let mut actions = BTreeSet::new();
    for document in documents {
        let text = xml_texts(&document, "PolicyDocument").pop().or_else(|| xml_texts(&document, "Document").pop());
        let policy: Value =
            serde_json::from_str(&percent_decode_str(&text.ok_or("a policy has no document")?).decode_utf8()?)?;
        for statement in policy["Statement"].as_array().into_iter().flatten() {
            // Tests take permissions away.
            if statement["Effect"] == "Deny" {
                continue;
            }
            let action = &statement["Action"];
            let list = action.as_array().cloned().unwrap_or_else(|| vec![action.clone()]);
            actions.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
        }
    }
    Ok(actions)
}

/// The access key id that a function signs with on the local AWS, which makes it of the two names.
fn access_key_id(function: &str, role: &str) -> String {
    let function = format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}");
    let digest = Sha256::digest(format!("{function}:arn:aws:iam::{ACCOUNT}:role/{role}"));
    let digits: String = digest.iter().take(8).map(|byte| format!("{byte:02X}")).collect();
    format!("ASIA{digits}")
}
