//! Which images a run copies.

use std::collections::BTreeMap;

use local::corpus::Seeded;
use local::registry::Contents;
use serde_json::{Value, json};

use crate::world::{Result, World, rows, start_stalled};

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

    let dry = world.run_with(stack, &json!({ "dryRun": true })).await?;
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

    let real = world.run_for(dry.stack, &json!({}), amd64(world, &images).await?).await?;
    let rows = rows(&real.stack).await?;
    assert_eq!(rows.len(), 4, "{:?}", rows.keys());
    assert!(rows.values().all(|row| (&*row.status, &*row.multi_arch_option) == ("Done", "linux/amd64")), "{rows:?}");

    let images = world.seeded(|_, repository| repository == "library/busybox");
    let images: Vec<_> = images.into_iter().filter(|image| tag(image) == "1.36").collect();
    let input = json!({ "srcImageList": "busybox:1.36,nginx:1.26" });
    let other = world.run_for(real.stack, &input, amd64(world, &images).await?).await?;
    let counts = other.stack.execution_row(other.execution.name()).await?.ok_or("the execution has no item")?;
    assert_eq!((counts.listed, counts.unchanged, counts.done), (2, 1, 1), "{counts:?}");
    Ok(())
}

/// The images for one platform, named as above.
async fn amd64(world: &World, images: &[&Seeded]) -> Result<Contents> {
    let public = world.machine().public().ok_or("the public registries are stand-ins")?;
    let mut wanted = Contents::new();
    for image in images {
        let manifest: Value = serde_json::from_slice(&public.manifest(&image.repository, tag(image)).await?)?;
        let platforms = manifest["manifests"].as_array().cloned().unwrap_or_default();
        let amd64 = platforms.iter().find(|it| it["platform"]["architecture"] == "amd64");
        let digest = amd64.and_then(|it| it["digest"].as_str()).unwrap_or(&image.digest);
        let name = match image.registry.as_str() {
            "docker.io" => format!("dockerhub/{}", image.repository.trim_start_matches("library/")),
            _ => format!("quay/{}", image.repository),
        };
        let images = wanted.entry(format!("choosing/{name}")).or_default();
        images.insert((image.tag.clone(), digest.to_owned()));
    }
    Ok(wanted)
}

pub async fn an_execution_waits_for_an_earlier_one_and_a_third_leaves_it_to_the_second(world: &World) -> Result {
    let stack = world.deploy_public("overlapping", "busybox:1.37").await?;
    let (first, stalled) = start_stalled(world, &stack, "busybox").await?;
    let second = stack.start(&json!({})).await?;
    second.enters("WaitForTurn").await?;

    let third = stack.start(&json!({})).await?;
    let outcome = third.wait().await?;
    assert!(outcome.succeeded(), "{outcome:?}");
    assert!(third.states().await?.contains(&"AnotherIsWaiting".to_owned()), "it does nothing");
    let dry = world.run_with(stack.clone(), &json!({ "dryRun": true })).await?;
    assert!(dry.outcome.succeeded(), "it is in nobody's way: {:?}", dry.outcome);

    stalled.lift();
    for execution in [first, second] {
        let run = world.finish(stack.clone(), execution, &json!({})).await?;
        assert!(run.outcome.succeeded(), "{:?}", run.outcome);
    }
    assert_eq!(world.tasks(&stack).len(), 1, "the second found everything there");
    Ok(())
}

pub async fn a_listing_that_is_too_short_fails_the_run(world: &World) -> Result {
    let parameters =
        [("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", "busybox:1.37"), ("minImages", "2")];
    let run = world.run(world.deploy("short", &parameters).await?).await?;
    assert_eq!(run.outcome.error.as_deref(), Some("TooFewImages"), "{:?}", run.outcome);
    assert!(world.tasks(&run.stack).is_empty());
    Ok(())
}
