//! The command `ecr-transfer mirror`, with what a stack copied.

use std::collections::BTreeSet;
use std::env;

use local::aws::xml_text;
use local::machine::{ACCOUNT, REGION};
use local::registry::contents;
use serde_json::Value;
use tokio::process::Command;

use crate::world::{Result, World};

/// The variable that makes this program the command.
pub const IS_COMMAND: &str = "ECR_TRANSFER_IS_COMMAND";

pub async fn copies_are_mirrored_at_once_for_the_user_that_the_page_describes(world: &World) -> Result {
    let home = world.machine().home()?;
    let run = world.run(world.deploy_public("mirror", "busybox:1.36,quay.io/coreos/etcd:ALL_TAGS").await?).await?;
    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    let user = ("UserName", "ecr-transfer-mirror");
    home.query("iam", "CreateUser", &[user]).await?;
    let (bucket, table) = (run.stack.output("PlanBucket")?, run.stack.output("ImageTable")?);
    let policy = block(include_str!("../../docs/mirror/README.md"), "policy-mirror")?;
    let policy = policy.replace("BUCKET", bucket).replace("TABLE", table).replace("DTHECRStack", "mirror");
    let policy = policy.replace("us-east-1", REGION).replace("111111111111", ACCOUNT);
    home.query("iam", "PutUserPolicy", &[user, ("PolicyName", "read"), ("PolicyDocument", &policy)]).await?;
    let key = home.query("iam", "CreateAccessKey", &[user]).await?;
    let field = |name: &str| xml_text(&key, name).ok_or(format!("the key has no {name}"));
    let key = [("AWS_ACCESS_KEY_ID", field("AccessKeyId")?), ("AWS_SECRET_ACCESS_KEY", field("SecretAccessKey")?)];

    // When the inventory was written, the destination was empty. The table has what was copied then.
    let list = mirror(world, &["list", "--stack", "mirror", "--json"], &key).await?;
    assert_eq!(list.code, 0, "{list:?}");
    let there = contents(&home, "mirror/").await?;
    let images = || there.iter().flat_map(|(name, images)| images.iter().map(move |(tag, digest)| (name, tag, digest)));
    let tagged = images().filter_map(|(name, tag, digest)| Some(format!("{name}:{}@{digest}", tag.as_ref()?)));
    let tagged: BTreeSet<_> = tagged.collect();
    assert!(tagged.len() > 2, "{tagged:?}");
    assert_eq!(listed(&list.stdout, true)?, tagged);

    // The next run copies nothing, and its inventory is what ECR lists.
    assert_eq!(world.run(run.stack.clone()).await?.outcome.status, "SUCCEEDED");
    let list = mirror(world, &["list", "--stack", "mirror", "--json"], &key).await?;
    assert_eq!(listed(&list.stdout, true)?, tagged);
    let untagged = images().filter(|(_, tag, _)| tag.is_none()).map(|(name, _, digest)| format!("{name}@{digest}"));
    assert!(untagged.collect::<BTreeSet<_>>().is_superset(&listed(&list.stdout, false)?), "{}", list.stdout);

    let resolve = ["resolve", "--stack", "mirror", "docker.io/library/busybox:1.36", "redis"];
    let resolved = mirror(world, &resolve, &key).await?;
    assert_eq!((resolved.code, resolved.stdout.ends_with("/mirror/busybox:1.36\n")), (1, true), "{resolved:?}");
    assert!(resolved.stderr.contains("docker.io/library/redis is not mirrored"), "{resolved:?}");
    let missing = mirror(world, &["list", "--stack", "no-stack"], &[]).await?;
    assert!(missing.code == 2 && missing.stderr.contains("CloudFormation has no stack no-stack"), "{missing:?}");
    Ok(())
}

/// What the command printed.
#[derive(Debug)]
struct Output {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `ecr-transfer mirror` on the machine.
async fn mirror(world: &World, arguments: &[&str], environment: &[(&str, String)]) -> Result<Output> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("mirror").args(arguments).envs(world.machine().env().iter().cloned());
    command.envs(environment.iter().cloned()).env(IS_COMMAND, "1");
    let output = command.output().await?;
    Ok(Output {
        code: output.status.code().ok_or("it was killed")?,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// The images of `mirror list --json`, with or without tags, as ECR names them.
fn listed(json: &str, with_tag: bool) -> Result<BTreeSet<String>> {
    let all: Value = serde_json::from_str(json)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let images = all.as_array().into_iter().flatten().flat_map(|repository| {
        let name = text(&repository["destination"]);
        let name = name.split_once('/').map_or("", |(_, name)| name).to_owned();
        let images = repository["images"].as_array().into_iter().flatten();
        images.map(move |image| (name.clone(), image["tag"].as_str(), text(&image["digest"])))
    });
    let images = images.filter(|(_, tag, _)| tag.is_some() == with_tag);
    Ok(images
        .map(|(name, tag, digest)| format!("{}@{digest}", tag.map_or(name.clone(), |it| format!("{name}:{it}"))))
        .collect())
}

/// The content of a code block of a page.
fn block<'a>(page: &'a str, name: &str) -> Result<&'a str> {
    let (_, rest) = page.split_once(&format!("```{name}\n")).ok_or("the page has no such block")?;
    Ok(rest.split_once("```").ok_or("it does not end")?.0)
}
