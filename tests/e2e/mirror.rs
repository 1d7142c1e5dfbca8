//! The command `ecr-transfer mirror`, with what a stack copied.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use flate2::read::GzDecoder;
use local::images;
use local::machine::{ACCOUNT, REGION};
use local::registry::contents;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::command::{Output, command, user};
use crate::world::{Result, World};

pub async fn copies_are_mirrored_at_once_for_the_user_that_the_page_describes(world: &World) -> Result {
    let home = world.machine().home()?;
    let run = world.run(world.deploy_public("mirror", "busybox:1.36,quay.io/coreos/etcd:ALL_TAGS").await?).await?;
    assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    let (bucket, table) = (run.stack.output("PlanBucket")?, run.stack.output("ImageTable")?);
    let policy = block(include_str!("../../docs/mirror/README.md"), "policy-mirror")?;
    let policy = policy.replace("BUCKET", bucket).replace("TABLE", table).replace("DTHECRStack", "mirror");
    let key = user(&home, "ecr-transfer-mirror", &policy).await?;

    // When the inventory was written, the destination was empty. The table has what was copied then.
    let list = mirror(world, &["list", "--stack", "mirror", "--json"], &key).await?;
    assert_eq!(list.code, 0, "{list:?}");
    let there = contents(&home, "mirror/").await?;
    let in_ecr = || there.iter().flat_map(|(name, images)| images.iter().map(move |(tag, digest)| (name, tag, digest)));
    let tagged = in_ecr().filter_map(|(name, tag, digest)| Some(format!("{name}:{}@{digest}", tag.as_ref()?)));
    let tagged: BTreeSet<_> = tagged.collect();
    assert!(tagged.len() > 2, "{tagged:?}");
    assert_eq!(listed(&serde_json::from_str(&list.stdout)?, true), tagged);

    // After the run, and without the table, the inventory is what ECR lists.
    let untagged = in_ecr().filter(|(_, tag, _)| tag.is_none()).map(|(name, _, digest)| format!("{name}@{digest}"));
    let untagged: BTreeSet<_> = untagged.collect();
    let written = async {
        loop {
            let inventory = home.object(bucket, "inventory/latest.json").await?;
            let inventory: Value = serde_json::from_str(&inventory)?;
            if listed(&inventory["repositories"], true) == tagged {
                return Result::Ok(listed(&inventory["repositories"], false));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let in_inventory = tokio::time::timeout(Duration::from_secs(60), written).await??;
    assert!(untagged.is_superset(&in_inventory) && !in_inventory.is_empty(), "{in_inventory:?} {untagged:?}");

    let resolve = ["resolve", "--stack", "mirror", "docker.io/library/busybox:1.36", "redis"];
    let resolved = mirror(world, &resolve, &key).await?;
    assert_eq!((resolved.code, resolved.stdout.ends_with("/mirror/busybox:1.36\n")), (1, true), "{resolved:?}");
    assert!(resolved.stderr.contains("docker.io/library/redis is not mirrored"), "{resolved:?}");
    let missing = mirror(world, &["list", "--stack", "no-stack"], &[]).await?;
    assert!(missing.code == 2 && missing.stderr.contains("CloudFormation has no stack no-stack"), "{missing:?}");
    Ok(())
}

pub async fn a_rewritten_task_definition_can_be_pulled(world: &World) -> Result {
    let images = ["busybox:1.36", "docker.io/library/busybox:1.37", "quay.io/coreos/etcd:v3.5.16"];
    let stack = world.deploy_public("rewritten", &images.join(",")).await?;
    assert!(world.run(stack).await?.outcome.succeeded());
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("task.json");
    let container = |image: &&str| json!({ "name": "app", "image": image, "essential": true });
    let containers: Vec<_> = images.iter().chain(&["redis:7"]).map(container).collect();
    let task = json!({ "family": "app", "containerDefinitions": containers });
    std::fs::write(&file, serde_json::to_string_pretty(&task)?)?;

    let path = file.to_str().ok_or("it is not UTF-8")?;
    let rewritten = mirror(world, &["rewrite", "--stack", "rewritten", path], &[]).await?;

    assert_eq!(rewritten.code, 0, "{rewritten:?}");
    assert!(rewritten.stderr.contains("redis"), "{rewritten:?}");
    let task: Value = serde_json::from_str(&rewritten.stdout)?;
    let containers = task["containerDefinitions"].as_array().ok_or("it has no containers")?;
    let names: Vec<_> = containers.iter().filter_map(|container| container["image"].as_str()).collect();
    let [mirrored @ .., "redis:7"] = &names[..] else { return Err(format!("{names:?}").into()) };
    assert_eq!(mirrored.len(), images.len());
    for (name, image) in mirrored.iter().zip(images) {
        assert!(name.contains(".amazonaws.com/rewritten/"), "{name}");
        let pulled = pull(world, name).await?;
        let (repository, tag) = image.rsplit_once(':').ok_or("it has no tag")?;
        let source = world.seeded(|_, name| repository.ends_with(name) || name.ends_with(repository));
        let source = source.iter().find(|image| image.tag.as_deref() == Some(tag)).ok_or("it was not seeded")?;
        let manifest = std::fs::read(pulled.path().join("manifest.json"))?;
        assert_eq!(images::digest(&manifest), source.digest, "{name}");
    }
    Ok(())
}

pub async fn the_webhooks_image_is_pushed_by_the_user_that_the_page_describes(world: &World) -> Result {
    let home = world.machine().home()?;
    let policy = block(include_str!("../../docs/mirror/webhook.md"), "policy-push")?;
    let policy = policy.replace("us-east-1", REGION).replace("111111111111", ACCOUNT);
    let key = user(&home, "ecr-transfer-push", &policy).await?;
    let directory = tempfile::tempdir()?;
    let programs = [("amd64", program(62)), ("arm64", program(183))];
    let mut command = vec!["webhook".to_owned(), "push".to_owned()];
    for (architecture, program) in &programs {
        let file = directory.path().join(architecture);
        std::fs::write(&file, program)?;
        command.push(format!("--binary={}", file.display()));
    }
    let command: Vec<_> = command.iter().map(String::as_str).collect();

    let pushed = mirror(world, &command, &key).await?;

    assert_eq!(pushed.code, 0, "{pushed:?}");
    let name = pushed.stdout.trim_end();
    assert!(name.contains(".amazonaws.com/ecr-transfer-webhook@sha256:"), "{pushed:?}");
    let pulled = pull(world, name).await?;
    let read = |digest: &str| std::fs::read(pulled.path().join(digest.trim_start_matches("sha256:")));
    let manifests: Value = serde_json::from_slice(&std::fs::read(pulled.path().join("manifest.json"))?)?;
    let manifests = manifests["manifests"].as_array().ok_or("it is no index")?;
    assert_eq!(manifests.len(), programs.len());
    for (manifest, (architecture, program)) in manifests.iter().zip(&programs) {
        assert_eq!(manifest["platform"]["architecture"], *architecture);
        let digest = manifest["digest"].as_str().ok_or("it has no digest")?.trim_start_matches("sha256:");
        let manifest: Value = serde_json::from_slice(&read(&format!("{digest}.manifest.json"))?)?;
        let config: Value = serde_json::from_slice(&read(manifest["config"]["digest"].as_str().ok_or("no config")?)?)?;
        assert_eq!(config["architecture"], *architecture);
        let layer = read(manifest["layers"][0]["digest"].as_str().ok_or("no layer")?)?;
        let mut files = tar::Archive::new(GzDecoder::new(layer.as_slice()));
        let mut first = files.entries()?.next().ok_or("the layer is empty")??;
        let mut content = Vec::new();
        first.read_to_end(&mut content)?;
        assert_eq!((&*first.path()?, &content), (Path::new("ecr-transfer"), program));
    }

    let again = mirror(world, &command, &key).await?;
    assert_eq!((again.code, &again.stdout), (0, &pushed.stdout), "{again:?}");
    assert!(again.stderr.contains("has this image already") && !again.stderr.contains("uploaded"), "{again:?}");
    let other = mirror(world, &[&command[..], &["--repository=other"]].concat(), &key).await?;
    assert!(other.code == 2 && other.stderr.contains("AccessDenied"), "{other:?}");
    Ok(())
}

/// The smallest static program for a processor. It cannot be run.
fn program(machine: u8) -> Vec<u8> {
    let mut elf = vec![0; 120];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // An executable, whose header of 64 bytes is followed by one segment of 56 bytes, which is loaded.
    for (offset, value) in [(16, 2), (18, machine), (20, 1), (32, 64), (52, 64), (54, 56), (56, 1), (64, 1)] {
        elf[offset] = value;
    }
    elf
}

/// Pulls an image with all platforms from the ECR of the home account, with skopeo.
async fn pull(world: &World, name: &str) -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    let target = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
    let answer = world.machine().home()?.json("ecr", target, json!({})).await?;
    let login = &answer["authorizationData"][0];
    let host = login["proxyEndpoint"].as_str().and_then(|url| url.split_once("://")).ok_or("it has no host")?.1;
    let auth = tempfile::NamedTempFile::new()?;
    std::fs::write(&auth, json!({ "auths": { host: { "auth": login["authorizationToken"] } } }).to_string())?;
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--all", &format!("docker://{name}"), &format!("dir:{}", directory.path().display())]);
    skopeo.env("REGISTRY_AUTH_FILE", auth.path()).envs(world.machine().env().iter().cloned());
    let output = skopeo.output().await?;
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(directory)
}

/// Runs `ecr-transfer mirror` on the machine.
async fn mirror(world: &World, arguments: &[&str], environment: &[(&str, String)]) -> Result<Output> {
    command(world, &[&["mirror"], arguments].concat(), environment).await
}

/// The images of an inventory's repositories, with or without tags, as ECR names them.
fn listed(all: &Value, with_tag: bool) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let images = all.as_array().into_iter().flatten().flat_map(|repository| {
        let name = text(&repository["destination"]);
        let name = name.split_once('/').map_or("", |(_, name)| name).to_owned();
        let images = repository["images"].as_array().into_iter().flatten();
        images.map(move |image| (name.clone(), image["tag"].as_str(), text(&image["digest"])))
    });
    let images = images.filter(|(_, tag, _)| tag.is_some() == with_tag);
    images
        .map(|(name, tag, digest)| format!("{}@{digest}", tag.map_or(name.clone(), |it| format!("{name}:{it}"))))
        .collect()
}

/// The content of a code block of a page.
fn block<'a>(page: &'a str, name: &str) -> Result<&'a str> {
    let (_, rest) = page.split_once(&format!("```{name}\n")).ok_or("the page has no such block")?;
    Ok(rest.split_once("```").ok_or("it does not end")?.0)
}
