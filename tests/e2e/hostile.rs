//! What a hostile registry comes to: errors of its own images, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use http::Method;
use local::hostile::{Attack, BACKDOOR, ELSEWHERE, Honest, REPOSITORY};
use local::registry::Contents;
use local::stack::Stack;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::secrets;
use crate::world::{PRIVATE_LOGIN, PRIVATE_REGISTRY, Result, Run, World, rows};

/// A run that takes longer has been stopped by a registry.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a function may take.
const MEMORY: u64 = 200 << 20;
/// What a parameter of CloudFormation, and of the Parameter Store, may have.
const PARAMETER: usize = 4_096;
/// The images of other registries that the list names next to hostile ones.
const HONEST: [&str; 3] = ["busybox:ALL_TAGS", "alpine:3.20", "quay.io/coreos/etcd:v3.5.16"];

pub async fn a_hostile_registry_costs_its_own_images_and_nothing_else(world: &World) -> Result {
    let attacks = world.machine().hostile().attacks();
    let private = format!("{PRIVATE_REGISTRY}/team/tool:1.0");
    let list = attacks.iter().flat_map(|attack| attack.entries.clone()).chain(HONEST.map(str::to_owned));
    let before = contents(world).await?;
    let stack = deploy(world, "hostile", list.chain([private])).await?;
    let notifications = world.notifications(&stack).await?;

    let run = timeout(PATIENCE, world.run(stack)).await??;

    assert_eq!(run.outcome.error.as_deref(), Some("ImagesNotCopied"), "{:?}", run.outcome);
    let mut expected = honest(world, run.stack.name()).await?;
    let rows = rows(&run.stack).await?;
    for (repository, images) in &expected.clone() {
        let image = repository.trim_start_matches("hostile/");
        for (tag, digest) in images.iter().filter_map(|(tag, digest)| Some((tag.as_ref()?, digest))) {
            let row = rows.get(&(image.to_owned(), tag.clone())).ok_or(format!("{image}:{tag} has no row"))?;
            assert_eq!((row.status.as_str(), row.digest.as_ref()), ("Done", Some(digest)), "{row:?}");
        }
    }
    for attack in attacks.iter().filter(|attack| attack.fails) {
        let image = format!("{}/{REPOSITORY}", attack.host);
        let fails = rows.iter().any(|((name, _), row)| *name == image && row.status == "Error");
        assert!(fails, "{image} has no error");
    }
    expected.extend(attacks.iter().filter(|it| it.honest == Honest::Copied).map(|it| (place(&run, it), tagged(it))));
    check(world, &run, &attacks, &before, expected).await?;

    let received = notifications.received().await?;
    assert_eq!(received.len(), 1, "{received:?}");
    let (subject, text) = &received[0];
    assert!(is_harmless(subject) && text.lines().all(is_harmless), "{text:?}");
    Ok(())
}

pub async fn an_image_pinned_by_digest_brings_nothing_else_from_a_hostile_registry(world: &World) -> Result {
    // What belongs to the image is looked for among the registry's tags, though none of them is in the list.
    let attacks = world.machine().hostile().attacks();
    let list = attacks.iter().map(|attack| attack.entries[2].clone()).chain(HONEST.map(str::to_owned));
    let before = contents(world).await?;
    let stack = deploy(world, "pinned", list).await?;

    let run = timeout(PATIENCE, world.run(stack)).await??;

    let mut expected = honest(world, run.stack.name()).await?;
    expected.retain(|repository, _| !repository.ends_with("/team/tool"));
    let pinned = |attack: &Attack| attack.valid.iter().map(|(_, digest)| (None, digest.clone())).collect();
    expected.extend(attacks.iter().filter(|it| it.honest == Honest::Copied).map(|it| (place(&run, it), pinned(it))));
    check(world, &run, &attacks, &before, expected).await
}

/// Deploys a stack that copies the images of a list, which may be too long for one parameter, with a login to one of the
/// registries.
async fn deploy(world: &World, name: &str, list: impl Iterator<Item = String>) -> Result<Stack> {
    let home = world.machine().home()?;
    let auths = json!({ "auths": { PRIVATE_REGISTRY: { "auth": PRIVATE_LOGIN } } });
    let credential = format!("{name}/logins");
    let request = json!({ "Name": credential, "SecretString": auths.to_string() });
    home.json("secretsmanager", "secretsmanager.CreateSecret", request).await?;

    let mut parts = vec![String::new()];
    for entry in list {
        match parts.last_mut() {
            Some(part) if part.len() + entry.len() < PARAMETER => *part += &format!("{entry},"),
            _ => parts.push(format!("{entry},")),
        }
    }
    let parameters = [
        ("sourceType", "Public"),
        ("srcList", "SELECTED"),
        ("srcImageList", parts[0].as_str()),
        ("srcCredential", &credential),
        // The shortest, since a slow registry uses it up.
        ("taskTimeoutSeconds", "60"),
    ];
    let stack = world.deploy(name, &parameters).await?;
    let parameter = stack.resources().await?.remove("SelectedImages").ok_or("there is no list")?;
    for (number, part) in parts.iter().enumerate().skip(1) {
        let more = json!({ "Name": format!("{parameter}/{}", number + 1), "Type": "String", "Value": part });
        home.json("ssm", "AmazonSSM.PutParameter", more).await?;
    }
    Ok(stack)
}

/// What the list names of honest registries, by its repository at the destination.
async fn honest(world: &World, prefix: &str) -> Result<Contents> {
    let mut honest = Contents::new();
    for image in world.seeded(|registry, _| !local::proxy::is_ecr(registry)) {
        let tag = image.tag.clone().unwrap_or_default();
        let name = match (image.registry.as_str(), image.repository.as_str(), tag.as_str()) {
            ("docker.io", "library/busybox", _) => "busybox",
            ("docker.io", "library/alpine", "3.20") => "alpine",
            ("quay.io", "coreos/etcd", "v3.5.16") => "quay.io/coreos/etcd",
            // Its signature.
            ("quay.io", "coreos/etcd", tag) if tag.starts_with("sha256-") => "quay.io/coreos/etcd",
            (PRIVATE_REGISTRY, "team/tool", "1.0") => "harbor.example.com-5000/team/tool",
            _ => continue,
        };
        honest.entry(format!("{prefix}/{name}")).or_default().insert((Some(tag), image.digest.clone()));
    }
    assert_eq!(honest.len(), 4, "{honest:?}");
    Ok(honest)
}

/// The repository of an attack at the destination.
fn place(run: &Run, attack: &Attack) -> String {
    format!("{}/{}/{REPOSITORY}", run.stack.name(), attack.host)
}

fn tagged(attack: &Attack) -> BTreeSet<(Option<String>, String)> {
    attack.valid.iter().map(|(tag, digest)| (tag.map(str::to_owned), digest.clone())).collect()
}

/// Checks what must hold whatever a run copies: the destination has what is `expected`, and besides it only what is served
/// as it should be; nothing hostile is anywhere else; and no credential, command or request has gone where it must not.
async fn check(world: &World, run: &Run, attacks: &[Attack], before: &Contents, expected: Contents) -> Result {
    let after = contents(world).await?;
    let none = BTreeSet::new();
    for (repository, images) in &expected {
        let there = after.get(repository).unwrap_or(&none);
        for (tag, digest) in images {
            // An image that is expected without a tag may have got one.
            let is_there = |it: &(Option<String>, String)| it.1 == *digest && (tag.is_none() || it.0 == *tag);
            assert!(there.iter().any(is_there), "{repository} lacks {tag:?} {digest}: {there:?}");
        }
    }
    let mut allowed = expected.clone();
    for (repository, images) in &expected {
        let children = children(world, run.stack.name(), repository, images).await?;
        allowed.entry(repository.clone()).or_default().extend(children.into_iter().map(|digest| (None, digest)));
    }
    for attack in attacks {
        let allowed = allowed.entry(place(run, attack)).or_default();
        allowed.extend(tagged(attack));
        allowed.extend(attack.valid.iter().map(|(_, digest)| (None, digest.clone())));
    }
    let prefix = format!("{}/", run.stack.name());
    for (repository, images) in after.iter().filter(|(repository, _)| repository.starts_with(&prefix)) {
        let allowed = allowed.get(repository).ok_or(format!("{repository} is nobody's"))?;
        assert!(images.is_subset(allowed), "{repository}: {:?}", images.difference(allowed).collect::<Vec<_>>());
    }
    check_elsewhere(world, attacks, before, &after);
    check_rows(run).await?;
    check_requests(world).await?;

    let machine = world.machine();
    let scratch = machine.proxy().ca_bundle().parent().unwrap_or(Path::new("/nowhere"));
    for place in [machine.hostile().loot(), scratch, machine.directory()] {
        assert!(!has_loot(place), "a command of the registry has run: {}", place.display());
    }
    let logs = world.logs(run.stack.name()).await?;
    let messages = texts(&logs).into_iter().flat_map(|text| text.split(['\n', '\t']));
    for message in messages {
        assert!(is_harmless(message), "{message:?}");
    }
    let functions = run.stack.resources().await?;
    for function in ["ListImagesFunction", "LaunchTaskFunction", "RecordStatusFunction"] {
        let name = functions.get(function).ok_or("there is no such function")?;
        let peak = peak_memory(name).ok_or(format!("{function} has no process any more"))?;
        assert!(peak < MEMORY, "{function} took {} MiB", peak >> 20);
    }
    Ok(())
}

/// The tests that run at the same time have repositories of their own, outside of this one's prefix.
fn check_elsewhere(world: &World, attacks: &[Attack], before: &Contents, after: &Contents) {
    let stacks: BTreeSet<String> = world.stacks().iter().map(|stack| stack.name().to_owned()).collect();
    let is_of_a_test = |repository: &str| {
        let folder = repository.split('/').next().unwrap_or_default();
        let is_seeded = |name: &str| repository.ends_with(name.trim_start_matches("library/"));
        stacks.contains(folder)
            || ["ecr-transfer-webhook", "origin", "script", "upstream"].contains(&folder)
            || folder.starts_with("ecr-transfer-check-")
            || !world.seeded(|_, name| is_seeded(name)).is_empty()
    };
    let new: Vec<_> = after.keys().filter(|it| !before.contains_key(*it) && !is_of_a_test(it)).collect();
    assert!(new.is_empty(), "there are new repositories: {new:?}");

    let ours: BTreeSet<&str> = ["hostile", "pinned"].into();
    let hostile: BTreeSet<_> = attacks.iter().flat_map(|attack| &attack.valid).map(|(_, digest)| digest).collect();
    for (repository, images) in after.iter().filter(|(name, _)| !ours.contains(name.split('/').next().unwrap_or(name)))
    {
        assert!(!images.iter().any(|(_, digest)| hostile.contains(digest)), "{repository} has a hostile image");
    }
}

/// Rows say what is wrong, in words that can be shown.
async fn check_rows(run: &Run) -> Result {
    for ((image, tag), row) in rows(&run.stack).await? {
        let message = row.error_message.as_deref().unwrap_or_default();
        let texts = [&image, &tag, &row.source, &row.destination, message];
        assert!(texts.into_iter().all(is_harmless) && message.chars().count() <= 1_000, "{row:?}");
        assert_eq!(row.status == "Error", !message.is_empty(), "{row:?}");
    }
    Ok(())
}

/// Nobody has gone where the registry led, brought it anything, or shown it a credential.
async fn check_requests(world: &World) -> Result {
    let machine = world.machine();
    let hostile = machine.hostile();
    let secrets = secrets::known(machine).await?;
    for (host, authorization) in hostile.authorizations() {
        assert!(!secrets.iter().any(|secret| authorization.contains(secret)), "{host} got a credential");
        assert!(host.starts_with("realm.") && authorization == "Bearer hostile", "{host} got {authorization}");
    }
    for request in hostile.received() {
        assert!([Method::GET, Method::HEAD].contains(&request.method), "{request:?}");
        assert_ne!(request.host, BACKDOOR, "{request:?}");
        assert!(request.host != ELSEWHERE || request.path.starts_with("/v2/a/token?"), "{request:?}");
    }
    assert_eq!(hostile.trapped(), 0, "this machine was connected to");
    let link_local = machine.proxy().traffic(|host, _, _| host.starts_with("169.254."));
    assert_eq!(link_local.requests, 0, "a link-local address was asked");
    Ok(())
}

/// All that the destination's registry holds.
async fn contents(world: &World) -> Result<Contents> {
    Ok(local::registry::contents(&world.machine().home()?, "").await?)
}

/// The images that those of an honest registry list; ECR lists them, too.
async fn children(
    world: &World,
    prefix: &str,
    repository: &str,
    images: &BTreeSet<(Option<String>, String)>,
) -> Result<BTreeSet<String>> {
    let name = repository.trim_start_matches(prefix).trim_start_matches('/');
    let seeded = world.seeded(|registry, _| !local::proxy::is_ecr(registry));
    let public = world.machine().public().ok_or("the public registries are stand-ins")?;
    let mut children = BTreeSet::new();
    for image in seeded {
        let is_it = name.ends_with(image.repository.trim_start_matches("library/"));
        if is_it && images.contains(&(image.tag.clone(), image.digest.clone())) {
            let manifest: Value = serde_json::from_slice(&public.manifest(&image.repository, &image.digest).await?)?;
            let digests = manifest["manifests"].as_array().into_iter().flatten();
            children.extend(digests.filter_map(|child| child["digest"].as_str()).map(str::to_owned));
        }
    }
    Ok(children)
}

/// Whether a terminal, a mail program or a reader takes a text for what it is.
fn is_harmless(text: &str) -> bool {
    let is_format =
        |it| matches!(it, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    !text.chars().any(|it| it.is_control() || is_format(it))
}

/// All texts in a value.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::Object(fields) => fields.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// Whether there is a file that injected commands would have written.
fn has_loot(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut entries = entries.map(|entry| (entry.file_name(), entry.path(), entry.file_type()));
    entries.any(|(name, path, kind)| name == "PWNED" || kind.is_ok_and(|kind| kind.is_dir()) && has_loot(&path))
}

/// The most bytes of memory that a function ever had: ministack keeps its process for the next invocation.
fn peak_memory(function: &str) -> Option<u64> {
    let is_it = format!("AWS_LAMBDA_FUNCTION_NAME={function}");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let peaks = processes.filter_map(|process| {
        let environment = std::fs::read(process.path().join("environ")).ok()?;
        environment.split(|byte| *byte == 0).find(|variable| *variable == is_it.as_bytes())?;
        let status = std::fs::read_to_string(process.path().join("status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = peak.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kibibytes << 10)
    });
    peaks.max()
}
