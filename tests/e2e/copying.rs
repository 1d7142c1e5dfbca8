//! What a run copies.

use std::collections::BTreeMap;

use local::images::{self, Format, ImageSpec, LayerSpec};
use local::machine::{ACCOUNT, REGION, SOURCE_ACCOUNT, SOURCE_CREDENTIAL};
use local::registry::Registry;
use local::stack::Stack;
use serde_json::{Value, json};

use crate::world::{Result, World, rows};

/// A region of the source account that no other test copies from.
const QUIET_REGION: &str = "ap-southeast-2";

pub async fn all_of_an_ecr_registry_is_copied_across_accounts_and_regions(world: &World) -> Result {
    let first = world.private_run().await?;
    assert!(first.outcome.succeeded(), "{:?} {:?}", first.outcome, rows(&first.stack).await?);

    let images = world.seeded(|registry, _| local::proxy::is_ecr(registry));
    let untagged = images.iter().filter(|image| image.tag.is_none()).count();
    assert!(images.len() >= 22 && untagged >= 1, "{} images, {untagged} without a tag", images.len());
    let rows = rows(&first.stack).await?;
    for image in &images {
        let tag = image.tag.as_ref().unwrap_or(&image.digest);
        let row = rows.get(&(image.repository.clone(), tag.clone())).ok_or(format!("{image:?} has no row"))?;
        assert_eq!(row.status, "Done", "{row:?}");
        assert_eq!(row.digest.as_ref(), Some(&image.digest));
        assert_eq!(row.error_message, None);
        assert_eq!(row.attempts, Some(1));
        assert!(row.bytes.is_some_and(|bytes| bytes > 0) && row.log_stream.is_some(), "{row:?}");
        assert!(row.seconds.is_some(), "the task's log has been read: {row:?}");
    }
    assert_eq!(rows.len(), images.len(), "every image has a row, and nothing else has");

    let counts = first.stack.execution_row(first.execution.name()).await?.ok_or("the execution has no item")?;
    let total = images.len() as u64;
    assert_eq!((counts.listed, counts.to_copy, counts.done, counts.failed), (total, total, total, 0));
    Ok(())
}

pub async fn no_call_is_denied_in_a_run_that_succeeds(world: &World) -> Result {
    let first = world.private_run().await?;
    assert!(first.outcome.succeeded(), "{:?} {:?}", first.outcome, rows(&first.stack).await?);
    // The Lambdas log each call that fails, also those that they can do without.
    let logs = world.logs("/private-").await?.to_string();
    assert!(logs.contains("REPORT RequestId"), "the Lambdas have logged: {logs}");
    for denied in ["AccessDenied", "not authorized", "ERROR"] {
        assert!(!logs.contains(denied), "{logs}");
    }
    Ok(())
}

pub async fn a_second_run_copies_nothing_and_starts_no_task(world: &World) -> Result {
    let first = world.private_run().await?;
    let tasks = world.tasks(&first.stack).len();
    assert!(tasks > 0);

    let second = world.run(first.stack.clone()).await?;

    assert!(second.outcome.succeeded(), "{:?}", second.outcome);
    assert_eq!(world.tasks(&first.stack).len(), tasks);
    let counts = second.stack.execution_row(second.execution.name()).await?.ok_or("the execution has no item")?;
    assert_eq!((counts.to_copy, counts.done), (0, 0));
    assert!(counts.unchanged > 0 && counts.unchanged == counts.listed, "{counts:?}");
    Ok(())
}

pub async fn selected_public_images_and_all_tags_are_copied(world: &World) -> Result {
    let list = "nginx:1.27, docker.io/library/nginx:1.27,bitnami/redis:7.4,quay.io/coreos/etcd:ALL_TAGS,";
    let public = world.run(world.deploy_public("public", list).await?).await?;
    assert!(public.outcome.succeeded(), "{:?}", public.outcome);

    let etcd = world.seeded(|registry, repository| (registry, repository) == ("quay.io", "coreos/etcd"));
    assert!(etcd.len() >= 3);
    let rows = rows(&public.stack).await?;
    assert_eq!(rows.len(), etcd.len() + 2, "{:?}", rows.keys());
    assert!(rows.values().all(|row| row.status == "Done"));
    assert_eq!(public.outcome.output["failed"], json!("0"));
    Ok(())
}

pub async fn tags_that_change_in_an_ecr_registry_are_followed(world: &World) -> Result {
    // The tests that copy all of the source account's registry are about another region.
    let aws = world.machine().aws(SOURCE_ACCOUNT, QUIET_REGION)?;
    let request = json!({ "repositoryName": "team/app" });
    aws.json("ecr", "AmazonEC2ContainerRegistry_V20150921.CreateRepository", request).await?;
    let source = world.machine().ecr(SOURCE_ACCOUNT, QUIET_REGION).await?;
    let images = push_versions(&source, "team/app").await?;
    let parameters =
        [("srcRegion", QUIET_REGION), ("srcAccountId", SOURCE_ACCOUNT), ("srcCredential", SOURCE_CREDENTIAL)];
    let stack = world.deploy("following", &parameters).await?;
    follow(world, stack, &source, ("team/app", "team/app"), &images).await
}

pub async fn tags_that_change_in_a_public_registry_are_followed(world: &World) -> Result {
    let source = world.machine().public().ok_or("the public registries are stand-ins")?;
    let images = push_versions(source, "e2e/changing").await?;
    let stack = world.deploy_public("changing", "quay.io/e2e/changing:ALL_TAGS").await?;
    follow(world, stack, source, ("e2e/changing", "quay.io/e2e/changing"), &images).await
}

/// Pushes versions of an image to a source, most of them with several tags. Gives their digests.
async fn push_versions(source: &Registry, repository: &str) -> Result<Vec<String>> {
    let tags = [&["1.0", "blue"][..], &["1.1", "green", "latest"], &["1.2", "beta"], &["nightly"]];
    let specs = tags.map(|tags| ImageSpec {
        format: Format::Oci,
        architectures: vec!["amd64", "arm64"],
        layers: vec![LayerSpec { name: format!("{repository}/{}", tags[0]), size: 10_000 }],
    });
    let images = images::make(&specs)?;
    let tags = tags.map(|tags| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>());
    let tagged: Vec<_> = images.iter().zip(&tags).map(|(image, tags)| (image, &**tags)).collect();
    source.push(repository, &tagged).await?;
    Ok(images.into_iter().map(|image| image.manifest.digest).collect())
}

/// Changes tags of images that the destination has already. Each run compares what the destination lists with the source.
async fn follow(
    world: &World,
    stack: Stack,
    source: &Registry,
    (repository, name): (&str, &str),
    versions: &[String],
) -> Result {
    let first = world.run(stack).await?;
    assert!(first.outcome.succeeded(), "{:?} {:?}", first.outcome, rows(&first.stack).await?);

    let [old, middle, new, _nightly] = versions else { return Err("there are four versions".into()) };
    let added = [("stable", middle)];
    // The last one leaves an image without a tag.
    let moved = [("latest", new), ("blue", middle), ("green", old), ("nightly", new)];
    let changed: BTreeMap<_, _> = added.into_iter().chain(moved).collect();
    for (tag, digest) in &changed {
        source.tag(repository, digest, tag).await?;
    }
    source.untag(repository, "beta").await?;
    let second = world.run(first.stack).await?;

    assert!(second.outcome.succeeded(), "{:?} {:?}", second.outcome, rows(&second.stack).await?);
    let counts = second.stack.execution_row(second.execution.name()).await?.ok_or("the execution has no item")?;
    assert_eq!((counts.to_copy, counts.done), (5, 5), "{counts:?}");
    let unchanged = BTreeMap::from([("1.0", old), ("1.1", middle), ("1.2", new), ("beta", new)]);
    let rows = rows(&second.stack).await?;
    assert_eq!(rows.len(), changed.len() + unchanged.len(), "{:?}", rows.keys());
    for ((_, tag), row) in &rows {
        let digest = changed.get(&**tag).or(unchanged.get(&**tag)).ok_or(format!("{tag} is not a tag"))?;
        assert_eq!((&*row.status, row.digest.as_ref()), ("Done", Some(*digest)), "{row:?}");
        let is_copied = row.execution == second.execution.name();
        assert_eq!(is_copied, changed.contains_key(&**tag), "{row:?}");
    }
    let destination = world.machine().ecr(ACCOUNT, REGION).await?;
    let beta = destination.digest(&format!("{}/{name}", second.stack.name()), "beta").await?;
    assert_eq!(beta.as_ref(), Some(new), "a tag that is deleted at the source stays at the destination");

    let tasks = world.tasks(&second.stack).len();
    let third = world.run(second.stack).await?;
    assert!(third.outcome.succeeded(), "{:?}", third.outcome);
    assert_eq!(world.tasks(&third.stack).len(), tasks, "nothing has changed");
    Ok(())
}

pub async fn a_new_repository_is_created_as_asked_for(world: &World) -> Result {
    let lifecycle = json!({ "rules": [{
        "rulePriority": 1, "action": { "type": "expire" },
        "selection": { "tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 10 },
    }] });
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": "Pull", "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::333333333333:root" },
        "Action": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
    }] });
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", "busybox:1.36"),
        ("tagMutability", "IMMUTABLE"),
        ("scanOnPush", "true"),
        ("repositoryTags", "team=platform,env=prod"),
        ("lifecyclePolicy", &lifecycle.to_string()),
        ("repositoryPolicy", &policy.to_string()),
    ];
    let run = world.run(world.deploy("settings", &parameters).await?).await?;
    assert!(run.outcome.succeeded(), "{:?} {:?}", run.outcome, rows(&run.stack).await?);

    let home = world.machine().home()?;
    let ecr = async |action: &str, request: Value| {
        home.json("ecr", &format!("AmazonEC2ContainerRegistry_V20150921.{action}"), request).await
    };
    let name = json!({ "repositoryName": "settings/busybox" });
    let described = ecr("DescribeRepositories", json!({ "repositoryNames": ["settings/busybox"] })).await?;
    let repository = &described["repositories"][0];
    assert_eq!(repository["imageTagMutability"], "IMMUTABLE");
    assert_eq!(repository["imageScanningConfiguration"]["scanOnPush"], true);
    let text = |answer: &Value, name: &str| serde_json::from_str::<Value>(answer[name].as_str().unwrap_or_default());
    assert_eq!(text(&ecr("GetLifecyclePolicy", name.clone()).await?, "lifecyclePolicyText")?, lifecycle);
    assert_eq!(text(&ecr("GetRepositoryPolicy", name).await?, "policyText")?, policy);
    let tags = ecr("ListTagsForResource", json!({ "resourceArn": repository["repositoryArn"] })).await?;
    assert_eq!(tags["tags"].as_array().map(Vec::len), Some(3), "those that were asked for, and the source: {tags}");
    Ok(())
}
