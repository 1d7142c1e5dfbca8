//! Which images a run copies.

use std::collections::BTreeMap;

use local::corpus::Seeded;
use serde_json::{Value, json};

use crate::world::{Result, World, rows, run, run_with, start_stalled};

/// The images that the stack below selects, in two parts.
const LIST: [&str; 2] =
    ["quay.io/coreos/etcd:^3.5 newest 1", "# Docker Hub's\ndocker.io/library/nginx:1.2[67]*, bitnami/redis:7.2,\n"];

fn tag(image: &Seeded) -> &str {
    image.tag.as_deref().unwrap_or_default()
}

pub async fn patterns_platforms_and_names_are_as_asked_for_and_a_dry_run_says_so_before(world: &World) -> Result {
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", LIST[0]),
        ("excludeTags", "*alpine*"),
        ("platforms", "linux/amd64"),
        ("naming", "registry"),
    ];
    let stack = world.deploy("choosing", &parameters).await?;

    let name = format!("{}/2", stack.resources().await?.get("SelectedImages").ok_or("there is no list")?);
    let more = json!({ "Name": name, "Type": "String", "Value": LIST[1] });
    world.machine().home()?.json("ssm", "AmazonSSM.PutParameter", more).await?;

    let dry = run_with(stack, &json!({ "dryRun": true })).await?;
    assert!(dry.outcome.succeeded(), "{:?}", dry.outcome);
    assert!(world.tasks(&dry.stack).is_empty());
    let place = |name: &str| dry.outcome.output["dryRun"][name].as_str().unwrap_or_default().to_owned();
    let report = world.machine().home()?.object(&place("bucket"), &place("key")).await?;
    let report: Vec<Value> = serde_json::from_str(&report)?;
    let text = |decision: &Value, name: &str| decision[name].as_str().unwrap_or_default().to_owned();
    let reasons: BTreeMap<_, _> =
        report.iter().map(|it| (text(it, "destination") + &text(it, "rule"), text(it, "reason"))).collect();
    let copied = |it: &&Seeded| match (it.repository.as_str(), tag(it)) {
        ("library/nginx", tag) => !tag.contains("alpine") && tag != "latest",
        ("bitnami/redis", tag) => tag == "7.2",
        // The signature is one of the index, which is not copied.
        ("coreos/etcd", tag) => tag == "v3.5.16",
        _ => false,
    };
    let images = world.seeded(|registry, _| ["docker.io", "quay.io"].contains(&registry));
    let images: Vec<_> = images.into_iter().filter(copied).collect();
    assert_eq!(images.len(), 4);
    assert_eq!(reasons.get("excludeTags *alpine*").map(String::as_str), Some("excluded"), "{report:?}");
    assert_eq!(reasons.values().filter(|reason| *reason == "new").count(), images.len(), "{report:?}");
    assert_eq!(report.len(), images.len() + 1, "{report:?}");

    let real = run(dry.stack).await?;
    assert!(real.outcome.succeeded(), "{:?}", real.outcome);
    let rows = rows(&real.stack).await?;
    assert_eq!(rows.len(), images.len(), "{:?}", rows.keys());
    let public = world.machine().public().ok_or("the public registries are stand-ins")?;
    let destination = world.machine().ecr(local::machine::ACCOUNT, local::machine::REGION).await?;
    for image in images {
        let manifest: Value = serde_json::from_slice(&public.manifest(&image.repository, tag(image)).await?)?;
        let platforms = manifest["manifests"].as_array().cloned().unwrap_or_default();
        let amd64 = platforms.iter().find(|it| it["platform"]["architecture"] == "amd64");
        let expected = amd64.and_then(|it| it["digest"].as_str()).unwrap_or(&image.digest);
        let name = match image.registry.as_str() {
            "docker.io" => format!("dockerhub/{}", image.repository.trim_start_matches("library/")),
            _ => format!("quay/{}", image.repository),
        };
        let digest = destination.digest(&format!("choosing/{name}"), tag(image)).await?;
        assert_eq!(digest.as_deref(), Some(expected), "{image:?}");
        let row = rows.get(&(name, tag(image).to_owned())).ok_or(format!("{image:?} has no row"))?;
        assert_eq!((row.status.as_str(), row.multi_arch_option.as_str()), ("Done", "linux/amd64"));
    }

    let other = run_with(real.stack, &json!({ "srcImageList": "busybox:1.36,nginx:1.26" })).await?;
    assert!(other.outcome.succeeded(), "{:?}", other.outcome);
    let counts = other.stack.execution_row(other.execution.name()).await?.ok_or("the execution has no item")?;
    assert_eq!((counts.listed, counts.unchanged, counts.done), (2, 1, 1), "{counts:?}");
    Ok(())
}

pub async fn an_execution_waits_for_an_earlier_one_and_a_third_leaves_it_to_the_second(world: &World) -> Result {
    let stack = world.deploy_public("overlapping", "busybox:1.37").await?;
    let (first, stalled) = start_stalled(world, &stack, "busybox").await?;
    let second = stack.start(&json!({})).await?;
    second.enters("WaitForTurn").await?;

    let third = run(stack.clone()).await?;
    assert!(third.outcome.succeeded(), "{:?}", third.outcome);
    assert!(third.execution.states().await?.contains(&"AnotherIsWaiting".to_owned()), "it does nothing");
    let dry = run_with(stack.clone(), &json!({ "dryRun": true })).await?;
    assert!(dry.outcome.succeeded(), "it is in nobody's way: {:?}", dry.outcome);

    stalled.lift();
    for execution in [first, second] {
        let outcome = execution.wait().await?;
        assert!(outcome.succeeded(), "{outcome:?}");
    }
    assert_eq!(world.tasks(&stack).len(), 1, "the second found everything there");
    Ok(())
}

pub async fn a_listing_that_is_too_short_fails_the_run(world: &World) -> Result {
    let parameters =
        [("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", "busybox:1.37"), ("minImages", "2")];
    let run = run(world.deploy("short", &parameters).await?).await?;
    assert_eq!(run.outcome.error.as_deref(), Some("TooFewImages"), "{:?}", run.outcome);
    assert!(world.tasks(&run.stack).is_empty());
    Ok(())
}
