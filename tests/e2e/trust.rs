//! What whoever may start an execution, write a list or push to a source can and cannot do.

use std::collections::BTreeMap;

use local::corpus::{Corpus, Seeded};
use local::images::SigningKey;
use local::machine::{ACCOUNT, REGION};
use local::registry::{Contents, contents};
use serde_json::{Value, json};

use crate::comparing::tags;
use crate::world::{PRIVATE_REGISTRY, Result, World, rows};

const ECR: &str = "AmazonEC2ContainerRegistry_V20150921";

pub async fn a_repository_takes_images_of_one_source_only(world: &World) -> Result {
    let corpus = Corpus::default().with("gcr.io", "e2e/origin", "1").with("eu.gcr.io", "e2e/origin", "2");
    let seeded = world.machine().seed(corpus).await?;
    // One that was there before, and does not say where its images come from.
    let home = world.machine().home()?;
    let name = "origin/gcr/e2e/origin";
    let created = home.json("ecr", &format!("{ECR}.CreateRepository"), json!({ "repositoryName": name })).await?;
    let arn = created["repository"]["repositoryArn"].clone();
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", "gcr.io/e2e/origin:1"),
        ("naming", "registry"),
    ];

    let image =
        |seeded: &Seeded| Contents::from([(name.to_owned(), [(seeded.tag.clone(), seeded.digest.clone())].into())]);
    let stack = world.deploy("origin", &parameters).await?;
    let first = world.run_for(stack, &json!({}), image(&seeded[1])).await?;
    let tags = home.json("ecr", &format!("{ECR}.ListTagsForResource"), json!({ "resourceArn": arn })).await?;
    let expected = json!([{ "Key": "ecr-transfer:source", "Value": "gcr.io/e2e/origin" }]);
    assert_eq!(tags["tags"], expected);

    let other = world.run_with(first.stack, &json!({ "srcImageList": "eu.gcr.io/e2e/origin:2,busybox:1.36" })).await?;
    assert_eq!(other.outcome.error.as_deref(), Some("ImagesNotCopied"));
    let rows = rows(&other.stack).await?;
    let message = rows[&("gcr/e2e/origin".to_owned(), "2".to_owned())].error_message.as_deref().unwrap_or_default();
    assert!(message.contains("takes images of gcr.io/e2e/origin only"), "{message}");
    assert_eq!(rows[&("dockerhub/busybox".to_owned(), "1.36".to_owned())].status, "Done");
    assert_eq!(world.machine().ecr(ACCOUNT, REGION).await?.digest(name, "2").await?, None);

    // As the guide has it for whoever wants just that.
    let tag = json!({ "Key": "ecr-transfer:source", "Value": "eu.gcr.io/e2e/origin" });
    home.json("ecr", &format!("{ECR}.TagResource"), json!({ "resourceArn": arn, "tags": [tag] })).await?;
    let input = json!({ "srcImageList": "eu.gcr.io/e2e/origin:2" });
    world.run_for(other.stack, &input, image(&seeded[0])).await.map(drop)
}

pub async fn what_a_stack_does_not_allow_is_refused_before_anything_is_started(world: &World) -> Result {
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", "busybox:1.37"),
        ("allowedSources", "docker.io/library/,111111111111.*"),
        ("maxImages", "1"),
    ];
    let stack = world.deploy("allowed", &parameters).await?;
    let ours = world.machine().ecr(ACCOUNT, REGION).await?.host().to_owned();
    for (list, error, cause) in [
        (
            "quay.io/coreos/etcd:v3.5.16".to_owned(),
            "InvalidImageList",
            "allowedSources does not allow quay.io/coreos/etcd",
        ),
        (format!("{ours}/payments/api:1"), "InvalidImageList", "srcEcrAccounts"),
        ("alpine:3.18,alpine:3.19".to_owned(), "TooMuchToCopy", "maxImages is 1, but the run would copy 2 images"),
    ] {
        let refused = world.run_with(stack.clone(), &json!({ "srcImageList": list })).await?;
        assert_eq!(refused.outcome.error.as_deref(), Some(error), "{list}: {:?}", refused.outcome);
        let text = refused.outcome.cause.as_deref().unwrap_or_default();
        assert!(text.contains(cause), "{text}");
    }
    let later = world.run_with(stack.clone(), &json!({ "notBefore": "2099-01-01T00:00:00Z" })).await?;
    assert_eq!(later.outcome.error.as_deref(), Some("InvalidConfiguration"), "no input stalls the others");
    assert!(world.tasks(&stack).is_empty());

    // A plan that somebody else has written.
    let digest = format!("sha256:{}", "0".repeat(64));
    let function = stack.resources().await?.remove("LaunchTaskFunction").ok_or("there is no such function")?;
    for (source, destination) in [
        ("docker.io/library/busybox", format!("{ours}/prod/payments")),
        ("docker.io/library/busybox", "evil.example/allowed/busybox".to_owned()),
        ("evil.example/backdoor", format!("{ours}/allowed/busybox")),
    ] {
        let copy = json!({ "source": source, "destination": destination, "image": "busybox",
                           "images": [{ "digest": digest, "tag": "1" }] });
        let batch = json!({ "id": "1", "bytes": 1, "repositories": [copy] });
        let request = json!({ "execution": "tampered", "batch": batch, "token": "nobody's" });
        let answer = world.machine().home()?.invoke(&function, &request).await;
        let answer = answer.map_or_else(|error| error.to_string(), |answer| answer.to_string());
        assert!(answer.contains("NotAllowed"), "{source} to {destination}: {answer}");
    }
    assert!(world.tasks(&stack).is_empty());

    let allowed = world.run(stack).await?;
    assert!(allowed.outcome.succeeded(), "{:?}", allowed.outcome);
    Ok(())
}

pub async fn a_password_that_names_no_registry_serves_the_only_one_of_the_deployed_list(world: &World) -> Result {
    let secret = json!({ "username": "robot", "password": "correct-horse" });
    let request = json!({ "Name": "robot", "SecretString": secret.to_string() });
    world.machine().home()?.json("secretsmanager", "secretsmanager.CreateSecret", request).await?;
    let list = format!("{PRIVATE_REGISTRY}/team/tool:ALL_TAGS");
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", list.as_str()),
        ("srcCredential", "robot"),
    ];
    let own = world.run(world.deploy("robot", &parameters).await?).await?;
    assert!(own.outcome.succeeded(), "{:?} {:?}", own.outcome, rows(&own.stack).await?);
    Ok(())
}

pub async fn what_a_signature_policy_does_not_accept_is_not_copied(world: &World) -> Result {
    let (key, other) = (SigningKey::generate()?, SigningKey::generate()?);
    for (name, key) in [("e2e/signed", &key), ("e2e/forged", &other)] {
        sign(world, name, key).await?;
    }
    let signed = json!([
        { "type": "sigstoreSigned", "keyData": key.key_data(), "signedIdentity": { "type": "matchRepository" } }
    ]);
    let policy = json!({
        "default": [{ "type": "reject" }],
        "transports": { "docker": {
            "docker.io/library/busybox": [{ "type": "insecureAcceptAnything" }],
            "docker.io/library/alpine": signed,
            "quay.io/e2e": signed,
        } },
    });
    let policy = policy.to_string();
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        (
            "srcImageList",
            "busybox:1.36,alpine:3.18,quay.io/coreos/etcd:ALL_TAGS,quay.io/e2e/signed:1,quay.io/e2e/forged:1",
        ),
        ("signaturePolicy", policy.as_str()),
    ];
    let run = world.run(world.deploy("signed", &parameters).await?).await?;

    assert_eq!(run.outcome.error.as_deref(), Some("ImagesNotCopied"), "{:?}", run.outcome);
    let rows = rows(&run.stack).await?;
    let message =
        |image: &str, tag: &str| rows[&(image.to_owned(), tag.to_owned())].error_message.clone().unwrap_or_default();
    // Debian's skopeo has no sigstore and refuses every signature. The default image's accepts the right one.
    let has_sigstore = !message("quay.io/e2e/signed", "1").contains("sigstore disabled");
    let mut expected = BTreeMap::from([
        ("alpine:3.18", "Error"),
        ("busybox:1.36", "Done"),
        ("quay.io/coreos/etcd:v3.5.14", "Error"),
        ("quay.io/coreos/etcd:v3.5.15", "Error"),
        ("quay.io/coreos/etcd:v3.5.16", "Error"),
        ("quay.io/e2e/forged:1", "Error"),
    ]);
    expected.insert("quay.io/e2e/signed:1", if has_sigstore { "Done" } else { "Error" });
    let statuses: Vec<_> =
        rows.iter().map(|((image, tag), row)| (format!("{image}:{tag}"), row.status.as_str())).collect();
    let statuses: BTreeMap<_, _> = statuses.iter().map(|(image, status)| (image.as_str(), *status)).collect();
    assert_eq!(statuses, expected, "a signature is not an image of its own");
    for (image, tag) in [("alpine", "3.18"), ("quay.io/e2e/forged", "1"), ("quay.io/coreos/etcd", "v3.5.14")] {
        assert!(message(image, tag).contains("Source image rejected"), "{}", message(image, tag));
    }
    assert_eq!(world.tasks(&run.stack).len(), 2, "one for each registry: what is rejected is not tried again");

    let there = tags(&contents(&world.machine().home()?, "signed/").await?);
    let names = there.keys().map(|(name, tag)| format!("{name}:{tag}"));
    let (signatures, images): (Vec<_>, Vec<_>) = names.partition(|image| image.ends_with(".sig"));
    let accepted = expected.iter().filter(|(_, status)| **status == "Done").map(|(image, _)| format!("signed/{image}"));
    assert!(images.into_iter().eq(accepted), "nothing else has arrived: {there:?}");
    assert_eq!(has_sigstore, !signatures.is_empty(), "the signatures come with their images: {there:?}");
    Ok(())
}

/// Pushes an image to quay.io, and cosign's signature of it, or of each of its platforms.
async fn sign(world: &World, name: &str, key: &SigningKey) -> Result {
    let seeded = world.machine().seed(Corpus::default().with("quay.io", name, "1")).await?;
    let public = world.machine().public().ok_or("the public registries are stand-ins")?;
    let manifest: Value = serde_json::from_slice(&public.manifest(name, &seeded[0].digest).await?)?;
    let platforms = manifest["manifests"].as_array().cloned().unwrap_or_default();
    let digests = platforms.iter().filter_map(|image| image["digest"].as_str());
    for digest in digests.chain([seeded[0].digest.as_str()]) {
        let (signature, tag) = key.sign(&format!("quay.io/{name}"), digest)?;
        public.push(name, &[(&signature, std::slice::from_ref(&tag))]).await?;
    }
    Ok(())
}
