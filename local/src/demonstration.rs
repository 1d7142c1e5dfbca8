//! The demonstration: two stacks copy everything there is, and then nothing, since nothing has changed.

use std::{collections::BTreeSet, path::Path, time::Duration};

use local::{
    Error, Machine, Options, Result,
    corpus::{Corpus, Seeded},
    images,
    machine::{ACCOUNT, PublicRegistries, REGION, SOURCE_ACCOUNT, SOURCE_CREDENTIAL, SOURCE_REGION},
    process::Program,
    stack::{ImageRow, Stack, project},
};
use oci_spec::distribution::Reference;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Ending, Interruption,
    report::{self, Ended, Watched, phase},
};

/// The stack that copies a whole ECR registry.
pub const ECR_STACK: &str = "DTHECRStack";
const PUBLIC_STACK: &str = "DTHPublicStack";

/// What the second stack copies.
const SELECTED: &[&str] = &[
    "alpine:3.19",
    "alpine:3.20",
    "alpine:latest",
    "bitnami/redis:7.4",
    "busybox:1.36",
    "busybox:1.37",
    "docker.io/library/nginx:1.26",
    "docker.io/library/nginx:1.27",
    "docker.io/library/redis:7",
    "quay.io/coreos/etcd:ALL_TAGS",
    "quay.io/prometheus/prometheus:v2.54.1",
];
/// In place of a tag: all of them.
const ALL_TAGS: &str = "ALL_TAGS";

/// Starts a machine of its own, copies on it what there is (or just these images), and checks it all.
pub async fn run(images: &[String]) -> Result<Ending> {
    let directory = project().join(format!(".local/run-{}", std::process::id()));
    let ending = run_in(&directory, images).await;
    tidy(&directory, ending)
}

/// Keeps the directory only for those who want to know why it ended so.
fn tidy(directory: &Path, ending: Result<Ending>) -> Result<Ending> {
    match &ending {
        Ok(Ending::Bad) | Err(_) => report::line(&format!("  The logs are in {}", directory.display())),
        Ok(Ending::Good | Ending::Interrupted) => {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
    ending
}

/// Starts a machine of its own, and checks it as `make check-aws` checks an account.
pub async fn check() -> Result<Ending> {
    let directory = project().join(format!(".local/check-{}", std::process::id()));
    let ending = check_in(&directory).await;
    tidy(&directory, ending)
}

async fn check_in(directory: &Path) -> Result<Ending> {
    let mut interruption = Interruption::listen()?;
    let start = phase("a local AWS", Machine::start(Options::new(directory)));
    let Some(machine) = interruption.or(start).await? else { return Ok(Ending::Interrupted) };
    let check = async {
        let (mut process, (output, errors)) = Stack::check(&machine).await?.start_piped().await?;
        tokio::join!(show(output), show(errors));
        Ok(if process.exited().await.success() { Ending::Good } else { Ending::Bad })
    };
    let ending = interruption.or(check).await;
    machine.stop().await;
    Ok(ending?.unwrap_or(Ending::Interrupted))
}

/// Prints a program's output as it comes.
async fn show(output: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        report::line(&line);
    }
}

async fn run_in(directory: &Path, images: &[String]) -> Result<Ending> {
    let mut interruption = Interruption::listen()?;
    let start = async {
        let public = public_registries(images).await;
        phase("a local AWS", Machine::start(Options { public, ..Options::new(directory) })).await
    };
    let Some(machine) = interruption.or(start).await? else { return Ok(Ending::Interrupted) };
    let ending = interruption.or(demonstrate(&machine, images)).await;
    machine.stop().await;
    Ok(ending?.unwrap_or(Ending::Interrupted))
}

/// The real registries, if they are asked for images and can be reached.
async fn public_registries(images: &[String]) -> PublicRegistries {
    const HUB: (&str, u16) = ("registry-1.docker.io", 443);
    if images.is_empty() {
        return PublicRegistries::StandIn;
    }
    if let Ok(Ok(_)) = timeout(Duration::from_secs(2), TcpStream::connect(HUB)).await {
        report::line("  There is a network: the images come from the real registries.");
        return PublicRegistries::Real;
    }
    report::line("  There is no network: images of these names are made here.");
    PublicRegistries::StandIn
}

async fn demonstrate(machine: &Machine, images: &[String]) -> Result<Ending> {
    let (stacks, wanted) = if images.is_empty() { set_up_all(machine).await? } else { set_up(machine, images).await? };

    report::line("");
    let tasks = machine.fargate().count();
    let first = execute(&stacks).await?;
    let first_tasks = machine.fargate().count() - tasks;
    let traffic = machine.proxy().traffic(|_, _, _| true);
    report::line(&format!("  tasks started: {first_tasks}, requests to registries: {}", traffic.requests));
    let mut rows: Vec<ImageRow> = Vec::new();
    for stack in &stacks {
        rows.extend(stack.image_rows().await?);
    }
    report::images(&rows);
    let wrong = phase("every image compared with its source, by digest", compare(machine, &wanted)).await?;
    report::wrong(&wrong);

    report::line("\n  Once more, with nothing changed:");
    let tasks = machine.fargate().count();
    let second = execute(&stacks).await?;
    let second_tasks = machine.fargate().count() - tasks;
    let copied: u64 = second.iter().map(|end| end.counts.to_copy).sum();
    report::line(&format!("  images to copy: {copied}, tasks started: {second_tasks}"));

    let succeeded = first.iter().chain(&second).all(|end| end.outcome.succeeded());
    let good = succeeded && wrong.is_empty() && copied == 0 && second_tasks == 0;
    Ok(if good { Ending::Good } else { Ending::Bad })
}

/// Both stacks, with everything that the machine can be seeded with.
async fn set_up_all(machine: &Machine) -> Result<(Vec<Stack>, BTreeSet<Wanted>)> {
    let corpus = machine.private_corpus().await?.and(Corpus::public());
    let seeded = phase("images, made and pushed to their registries", machine.seed(corpus)).await?;
    let list = SELECTED.join(",");
    let parameters = public_parameters(&list);
    let stacks = async {
        let (ecr, public) = tokio::try_join!(
            Stack::deploy(machine, ECR_STACK, ECR_PARAMETERS),
            Stack::deploy(machine, PUBLIC_STACK, &parameters),
        )?;
        Ok(vec![ecr, public])
    };
    let stacks = phase("two stacks, deployed with sam", stacks).await?;

    let private = machine.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?;
    let from_private = seeded.iter().filter(|image| image.registry == private.host()).map(|image| Wanted {
        registry: image.registry.clone(),
        repository: image.repository.clone(),
        reference: image.tag.clone().unwrap_or_else(|| image.digest.clone()),
    });
    let mut wanted: BTreeSet<_> = from_private.collect();
    wanted.extend(selected(machine, SELECTED, &seeded).await?);
    Ok((stacks, wanted))
}

/// The parameters of the stack that copies the source account's registry.
pub const ECR_PARAMETERS: &[(&str, &str)] = &[
    ("sourceType", "Amazon_ECR"),
    ("srcAccountId", SOURCE_ACCOUNT),
    ("srcRegion", SOURCE_REGION),
    ("srcCredential", SOURCE_CREDENTIAL),
    ("srcList", "ALL"),
];

fn public_parameters(list: &str) -> [(&'static str, &str); 3] {
    [("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", list)]
}

/// One stack for these images.
async fn set_up(machine: &Machine, images: &[String]) -> Result<(Vec<Stack>, BTreeSet<Wanted>)> {
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let mut seeded = Vec::new();
    if machine.public().is_some() {
        let mut corpus = Corpus::public();
        for image in &images {
            let reference = parse(image)?;
            let (registry, repository) = (reference.registry(), reference.repository());
            match reference.tag() {
                None => return Err(Error::Unexpected(format!("{image}: without a network it needs a tag"))),
                Some(ALL_TAGS) => {}
                Some(tag) if corpus.contains(registry, repository, tag) => {}
                Some(tag) => corpus = corpus.with(registry, repository, tag),
            }
        }
        seeded = phase("images, made and pushed to a registry", machine.seed(corpus)).await?;
    }
    let list = images.join(",");
    let parameters = public_parameters(&list);
    let stack = phase("a stack, deployed with sam", Stack::deploy(machine, PUBLIC_STACK, &parameters)).await?;
    let wanted = selected(machine, &images, &seeded).await?;
    Ok((vec![stack], wanted))
}

async fn execute(stacks: &[Stack]) -> Result<Vec<Ended>> {
    let mut executions = Vec::new();
    for stack in stacks {
        executions.push(Watched { stack, execution: stack.start(&json!({})).await? });
    }
    let ended = report::follow(&executions).await?;
    report::endings(&executions, &ended);
    Ok(ended)
}

/// An image that must be at the destination in the end.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Wanted {
    registry: String,
    repository: String,
    /// A tag or a digest.
    reference: String,
}

impl Wanted {
    /// Its repository at the destination: as at the source, but that Docker Hub's official images lose their `library`, and
    /// all other registries' have the registry in front.
    fn destination(&self, private: &str) -> String {
        match self.registry.as_str() {
            "docker.io" => self.repository.trim_start_matches("library/").to_owned(),
            registry if registry == private => self.repository.clone(),
            registry => format!("{}/{}", registry.replace(':', "-"), self.repository),
        }
    }
}

fn parse(image: &str) -> Result<Reference> {
    image.parse().map_err(|error| Error::Unexpected(format!("{image}: {error}")))
}

/// The images that a selection means.
async fn selected(machine: &Machine, selection: &[&str], seeded: &[Seeded]) -> Result<BTreeSet<Wanted>> {
    let mut wanted = BTreeSet::new();
    for image in selection {
        let image = parse(image)?;
        let (registry, repository) = (image.registry().to_owned(), image.repository().to_owned());
        let references = match image.digest().or(image.tag()) {
            Some(ALL_TAGS) if machine.public().is_some() => seeded
                .iter()
                .filter(|image| image.registry == registry && image.repository == repository)
                .filter_map(|image| image.tag.clone())
                .collect(),
            Some(ALL_TAGS) => list_tags(machine, &format!("{registry}/{repository}")).await?,
            reference => vec![reference.unwrap_or("latest").to_owned()],
        };
        for reference in references {
            wanted.insert(Wanted { registry: registry.clone(), repository: repository.clone(), reference });
        }
    }
    Ok(wanted)
}

/// Looks each image up in both registries, and returns those that are not the same.
async fn compare(machine: &Machine, wanted: &BTreeSet<Wanted>) -> Result<Vec<String>> {
    let private = machine.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?;
    let destination = machine.ecr(ACCOUNT, REGION).await?;
    let mut wrong = Vec::new();
    for image in wanted {
        let Wanted { registry, repository, reference } = image;
        let at_source = match machine.public() {
            _ if registry == private.host() => private.digest(repository, reference).await?,
            Some(public) => public.digest(repository, reference).await?,
            None => Some(real_digest(machine, registry, repository, reference).await?),
        };
        let name = image.destination(private.host());
        let copied = destination.digest(&name, reference).await?;
        if copied != at_source || copied.is_none() {
            let digest = |digest: Option<String>| digest.unwrap_or_else(|| "nothing".into());
            wrong.push(format!(
                "{registry}/{repository} {reference}: {} at the source, {} at the destination",
                digest(at_source),
                digest(copied)
            ));
        }
    }
    Ok(wrong)
}

/// The digest in a real registry. skopeo knows how to log in to all of them.
async fn real_digest(machine: &Machine, registry: &str, repository: &str, reference: &str) -> Result<String> {
    let separator = if reference.contains(':') { '@' } else { ':' };
    let image = format!("docker://{registry}/{repository}{separator}{reference}");
    Ok(images::digest(&skopeo(machine, &["inspect", "--raw", &image]).await?))
}

async fn list_tags(machine: &Machine, repository: &str) -> Result<Vec<String>> {
    let answer = skopeo(machine, &["list-tags", &format!("docker://{repository}")]).await?;
    let answer: serde_json::Value = serde_json::from_slice(&answer)
        .map_err(|error| Error::Unexpected(format!("skopeo list-tags {repository}: {error}")))?;
    let tags = answer["Tags"].as_array().into_iter().flatten();
    Ok(tags.filter_map(|tag| tag.as_str().map(str::to_owned)).collect())
}

async fn skopeo(machine: &Machine, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = machine.directory().join("skopeo.out");
    Program::new(Path::new("skopeo"), "run `make setup`")?
        .args(arguments)
        .envs(machine.env().iter().cloned())
        .envs([("HOME", machine.directory())])
        .run(&output)
        .await?;
    std::fs::read(&output).map_err(Error::file(&output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_expected_where_the_project_puts_it() {
        let destination = |registry: &str, repository: &str| {
            Wanted { registry: registry.into(), repository: repository.into(), reference: "1".into() }
                .destination("ecr")
        };
        assert_eq!(destination("ecr", "library/a"), "library/a");
        assert_eq!(destination("docker.io", "library/a"), "a");
        assert_eq!(destination("docker.io", "a/b"), "a/b");
        assert_eq!(destination("localhost:5000", "a/b"), "localhost-5000/a/b");
    }
}
