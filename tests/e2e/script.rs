//! The script that copies, by itself: run as Fargate runs it, with no stack or state machine around it.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, StatusCode};
use local::corpus::{Corpus, Seeded};
use local::machine::{ACCOUNT, REGION, SOURCE_ACCOUNT, SOURCE_REGION};
use local::process::{Process, Program};
use local::proxy::{Action, Fault, Injected, Kind, Pattern};
use local::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::secrets;
use crate::world::{Result, World};

/// How long a task may take that does nothing but copy what it is told to, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A region that nothing else is copied to, so that the proxy counts for one test alone.
const QUIET_REGION: &str = "eu-west-1";
/// Who a task runs as, where whoever runs the tests may say so.
const TASK_USER: u32 = 1000;
/// The layers of every image, which skopeo uploads at the same time.
const LAYERS: usize = 3;
/// More than all configurations of an image take, which are always uploaded, and less than any layer.
const CONFIGURATIONS: u64 = 10_000;
/// What a task is answered for with, which is nobody else's business.
const TASK_TOKEN: &str = "the-token-of-the-task";
/// What ends with SIGTERM, as shells say it.
const TERMINATED: i32 = 143;
/// The line at which the script waits until all copies above it have ended.
const BARRIER: &str = "=\n";

pub async fn the_script_copies_every_kind_of_image_and_leaves_nothing_behind(world: &World) -> Result {
    let (tagged, single) =
        (seeded(world, "library/alpine", Some("3.20"))?, seeded(world, "coreos/etcd", Some("v3.5.16"))?);
    let (both, untagged) = (seeded(world, "data/etl/ingest", Some("v3"))?, seeded(world, "data/etl/ingest", None)?);
    let destination = Destination::new(world, REGION).await?;
    let names = ["script/kinds/alpine", "script/kinds/etcd", "script/kinds/ingest"];
    destination.create(&names).await?;
    let to = |name| destination.image(name);
    let copies = [
        header("docker.io/library/alpine", &to(names[0])),
        header("quay.io/coreos/etcd", &to(names[1])),
        header(&format!("{}/data/etl/ingest", both.registry), &to(names[2])),
        image(1, &tagged.digest, "3.20"),
        image(2, &single.digest, "v3.5.16"),
        image(3, &untagged.digest, "-"),
        BARRIER.to_owned(),
        image(1, &tagged.digest, "another"),
        image(3, &both.digest, "v3"),
    ]
    .concat();

    let end = Task::start(world, &copies, 2, &destination.auth).await?.end().await?;

    let copied = [
        (format!("{}:3.20", to(names[0])), names[0], "3.20", tagged),
        (format!("{}:another", to(names[0])), names[0], "another", tagged),
        (format!("{}:v3.5.16", to(names[1])), names[1], "v3.5.16", single),
        (format!("{}@{}", to(names[2]), untagged.digest), names[2], untagged.digest.as_str(), untagged),
        (format!("{}:v3", to(names[2])), names[2], "v3", both),
    ];
    assert_eq!(end.exit_code, Some(0), "{end:?}");
    assert_eq!(end.images.len(), copied.len(), "{end:?}");
    for (image, repository, reference, source) in copied {
        assert_eq!(end.images.get(&image), Some(&Ok(())), "{image}");
        destination.check(repository, reference, source).await?;
    }
    Ok(())
}

pub async fn the_script_goes_on_past_an_image_that_is_missing(world: &World) -> Result {
    let destination = Destination::new(world, REGION).await?;
    destination.create(&["script/missing"]).await?;
    let repository = destination.image("script/missing");
    let tags = ["1.36", "1.37"];
    let [first, last] = tags.map(|tag| seeded(world, "library/busybox", Some(tag)));
    let (first, last) = (first?, last?);
    let missing = format!("sha256:{}", "0".repeat(64));
    let images = [image(1, &first.digest, tags[0]), image(1, &missing, "9.99"), image(1, &last.digest, tags[1])];
    let copies = header("docker.io/library/busybox", &repository) + &images.concat();

    let end = Task::start(world, &copies, 1, &destination.auth).await?.end().await?;

    assert_eq!(end.exit_code, Some(1), "{end:?}");
    assert_eq!(end.images.len(), 3, "{end:?}");
    for (tag, source) in [(tags[0], first), (tags[1], last)] {
        assert_eq!(end.images.get(&format!("{repository}:{tag}")), Some(&Ok(())), "{tag}");
        destination.check("script/missing", tag, source).await?;
    }
    let words = end.error(&format!("{repository}:9.99"))?;
    assert!(words.contains("manifest unknown"), "{words}");
    assert_eq!(destination.registry.digest("script/missing", "9.99").await?, None);
    Ok(())
}

pub async fn the_script_brings_no_more_manifests_to_its_destination_than_it_is_told_to(world: &World) -> Result {
    // A clock that stands still, and sleep that only notes for how long it was asked.
    let programs = tempfile::tempdir()?;
    let slept = programs.path().join("slept");
    let note = format!("echo \"$1\" >>'{}'", slept.display());
    for (name, does) in [("date", "echo 1000"), ("sleep", &note), ("skopeo", "exit 0")] {
        let program = programs.path().join(name);
        std::fs::write(&program, format!("#!/bin/sh\n{does}\n"))?;
        std::fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    }
    give_to_task(programs.path())?;
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH")?);
    let digest = "0".repeat(64);
    let pair = format!("1 {digest} index 3\n1 {digest} image 1\n");
    let copies = header("s.example/a", "d.example/a") + &pair + &pair;

    let paced = [("PATH", path), ("PACE", "400".to_owned())];
    let end = Task::start_with(world, &copies, 4, &json!({}), &paced).await?.end().await?;

    assert_eq!(end.exit_code, Some(0), "{end:?}");
    // They may start after 0, 1.2, 1.6 and 2.8 seconds; less than a second is not waited for.
    assert_eq!(std::fs::read_to_string(slept)?, "1\n1\n2\n");
    Ok(())
}

pub async fn the_script_copies_as_many_images_at_a_time_as_it_is_told_to(world: &World) -> Result {
    let destination = Destination::new(world, REGION).await?;
    let names = ["script/slots/first", "script/slots/second", "script/slots/third"];
    destination.create(&names).await?;
    let source = seeded(world, "library/busybox", Some("1.36"))?;
    let headers = names.map(|name| header("docker.io/library/busybox", &destination.image(name))).concat();
    let copies = headers + &[1, 2, 3].map(|number| image(number, &source.digest, "1.36")).concat();
    // The first two get as far as their first upload; the third is held where it first comes near its destination.
    let uploads = |name: &str| Pattern::new("*", &format!("/v2/{name}/blobs/uploads/*")).method(Method::POST);
    let stall = |pattern| world.machine().proxy().inject(Fault::new(pattern, Action::Stall).always());
    let [first, second] = [names[0], names[1]].map(|name| stall(uploads(name)));
    let third = stall(Pattern::new("*", &format!("/v2/{}/*", names[2])));

    let mut task = Task::start(world, &copies, 2, &destination.auth).await?;
    task.reaches(&first, 1).await?;
    task.reaches(&second, 1).await?;
    assert_eq!(third.hits(), 0, "it waits for one of the two");
    assert_eq!(task.output()?, "");

    first.lift();
    task.reaches(&third, 1).await?;
    let done = format!("Done\t{}:1.36\t", destination.image(names[0]));
    let output = task.output()?;
    assert!(output.starts_with(&done) && output.lines().count() == 1, "the second still holds its slot: {output}");

    second.lift();
    third.lift();
    let end = task.end().await?;
    assert_eq!(end.exit_code, Some(0), "{end:?}");
    for name in names {
        assert_eq!(end.images.get(&format!("{}:1.36", destination.image(name))), Some(&Ok(())), "{name}");
        destination.check(name, "1.36", source).await?;
    }
    Ok(())
}

pub async fn the_script_gets_over_faults_of_the_network(world: &World) -> Result {
    // Images of its own: somebody else's request must not meet the faults.
    let names = ["script/faults/busy", "script/faults/cut", "script/faults/reset"];
    let corpus = names.iter().fold(Corpus::default(), |corpus, name| corpus.with("quay.io", name, "1"));
    let sources = world.machine().seed(corpus).await?;
    let destination = Destination::new(world, REGION).await?;
    destination.create(&names).await?;
    let to =
        |source: &Seeded| header(&format!("quay.io/{}", source.repository), &destination.image(&source.repository));
    let headers: String = sources.iter().map(to).collect();
    let images = sources.iter().enumerate().map(|(index, source)| image(index + 1, &source.digest, "1"));
    let copies = headers + &images.collect::<String>();
    let blobs = |name: &str| Pattern::new("quay.io", &format!("/v2/{name}/blobs/sha256:*")).method(Method::GET);
    let upload = Pattern::new("*.dkr.ecr.*", &format!("/v2/{}/blobs/uploads/*", names[2])).method(Method::POST);
    let later = vec![(RETRY_AFTER, HeaderValue::from_static("1"))];
    let faults = [
        (blobs(names[0]), Action::Status(StatusCode::TOO_MANY_REQUESTS, later)),
        (blobs(names[1]), Action::Truncate(100)),
        (upload, Action::Reset),
    ];
    let faults = faults.map(|(pattern, action)| world.machine().proxy().inject(Fault::new(pattern, action)));

    let end = Task::start(world, &copies, 3, &destination.auth).await?.end().await?;

    assert_eq!(faults.map(|fault| fault.hits()), [1, 1, 1], "it has met them: {end:?}");
    assert_eq!(end.exit_code, Some(0), "{end:?}");
    for source in &sources {
        let image = format!("{}:1", destination.image(&source.repository));
        assert_eq!(end.images.get(&image), Some(&Ok(())), "{image}");
        destination.check(&source.repository, "1", source).await?;
    }
    Ok(())
}

pub async fn the_script_ends_at_once_when_it_is_terminated(world: &World) -> Result {
    let destination = Destination::new(world, REGION).await?;
    // With all images under way the shell waits for their end; with one still to come it waits for a slot. skopeo has got
    // to where it writes no more files: one that it writes while the shell removes them may stay.
    for (name, tags) in [("script/terminated/last", ["1.36"].as_slice()), ("script/terminated/next", &["1.36", "1.37"])]
    {
        destination.create(&[name]).await?;
        let copies = destination.busybox(name, tags)?;
        let uploads = Pattern::new("*", &format!("/v2/{name}/blobs/uploads/*")).method(Method::POST);
        let stalled = world.machine().proxy().inject(Fault::new(uploads, Action::Stall).always());

        let mut task = Task::start(world, &copies, 1, &destination.auth).await?;
        task.reaches(&stalled, LAYERS).await?;
        task.terminate().await?;
        let end = task.end().await?;
        stalled.lift();

        assert_eq!(end.exit_code, Some(TERMINATED), "{name}: {end:?}");
        assert_eq!(end.images.len(), 0, "{name}: it says nothing of images that were never done: {end:?}");
        assert_eq!(destination.registry.digest(name, "1.36").await?, None);
    }
    Ok(())
}

pub async fn the_script_says_that_it_was_refused_where_it_has_no_login(world: &World) -> Result {
    let destination = Destination::new(world, REGION).await?;
    destination.create(&["script/refused"]).await?;
    let image = destination.image("script/refused");
    let copies = destination.busybox("script/refused", &["1.36", "1.37"])?;

    let end = Task::start(world, &copies, 2, &json!({})).await?.end().await?;

    assert_eq!(end.exit_code, Some(1), "{end:?}");
    assert_eq!(end.images.len(), 2, "{end:?}");
    for tag in ["1.36", "1.37"] {
        let words = end.error(&format!("{image}:{tag}"))?;
        assert!(words.contains("authentication required") || words.contains("Not Authorized"), "{words}");
        assert_eq!(destination.registry.digest("script/refused", tag).await?, None);
    }
    Ok(())
}

pub async fn the_script_uploads_what_images_share_once(world: &World) -> Result {
    let destination = Destination::new(world, QUIET_REGION).await?;
    let names = ["script/shared/both", "script/shared/here", "script/shared/there"];
    destination.create(&names).await?;
    let public = world.machine().public().ok_or("there are no public registries")?;
    let sources = [seeded(world, "library/nginx", Some("1.26"))?, seeded(world, "library/nginx", Some("1.27"))?];
    let (old, new) = (
        public.blobs(&sources[0].repository, &sources[0].digest).await?,
        public.blobs(&sources[1].repository, &sources[1].digest).await?,
    );
    let both: BTreeMap<_, _> = old.iter().chain(&new).collect();
    assert!(both.len() < old.len() + new.len(), "they share something");
    let uploads = |method: Option<&str>| {
        world.machine().proxy().traffic(|host, its, kind| {
            host == destination.registry.host() && method.is_none_or(|method| method == its) && kind == Kind::Upload
        })
    };

    // In one repository the second image finds what the first has brought, for which it waits.
    let [first, second] = sources.map(|source| image(1, &source.digest, source.tag.as_deref().unwrap_or_default()));
    let copies = header("docker.io/library/nginx", &destination.image(names[0])) + &first + BARRIER + &second;
    let end = Task::start(world, &copies, 4, &destination.auth).await?.end().await?;

    assert_eq!(end.exit_code, Some(0), "{end:?}");
    let before = uploads(None).sent;
    assert_eq!(uploads(Some("POST")).requests, both.len() as u64);
    assert_eq!(before, both.values().copied().sum::<u64>());
    for source in sources {
        destination.check(names[0], source.tag.as_deref().unwrap_or_default(), source).await?;
    }

    // From another repository the layers are mounted, since skopeo was told by the first copy that they are there.
    let headers = [names[1], names[2]].map(|name| header("docker.io/library/nginx", &destination.image(name)));
    let copies = headers.concat() + &[1, 2].map(|number| image(number, &sources[1].digest, "1.27")).concat();
    let end = Task::start(world, &copies, 1, &destination.auth).await?.end().await?;

    assert_eq!(end.exit_code, Some(0), "{end:?}");
    let (once, sent) = (new.values().sum::<u64>(), uploads(None).sent - before);
    assert!((once..once + CONFIGURATIONS).contains(&sent), "{sent} bytes for an image of {once}");
    for name in &names[1..] {
        destination.check(name, "1.27", sources[1]).await?;
    }
    Ok(())
}

pub async fn the_script_shows_the_logins_to_nobody_else(world: &World) -> Result {
    let destination = Destination::new(world, REGION).await?;
    destination.create(&["script/logins"]).await?;
    let copies = destination.busybox("script/logins", &["1.36"])?;
    let uploads = Pattern::new("*", "/v2/script/logins/blobs/uploads/*").method(Method::POST);
    let stalled = world.machine().proxy().inject(Fault::new(uploads, Action::Stall).always());

    let mut task = Task::start(world, &copies, 1, &destination.auth).await?;
    task.reaches(&stalled, 1).await?;
    let processes = task.processes()?;
    let [skopeo] = processes.iter().filter(|it| it.command.starts_with("skopeo\0")).collect::<Vec<_>>()[..] else {
        return Err(format!("it runs more or less than one skopeo: {processes:?}").into());
    };
    assert!(skopeo.environment.contains("\0REGISTRY_AUTH_FILE="), "{skopeo:?}");
    assert!(processes.len() > 1, "the script's shell is another: {processes:?}");
    for process in &processes {
        let shown = |secret: &String| process.command.contains(secret) || process.environment.contains(secret);
        assert!(!task.secrets.iter().any(shown), "{process:?}");
    }
    for work in std::fs::read_dir(task.scratch())? {
        let work = work?;
        assert_eq!(work.metadata()?.mode() & 0o077, 0, "others can look into {:?}", work.path());
        assert_eq!(std::fs::metadata(work.path().join("auth.json"))?.mode() & 0o077, 0, "others can read the logins");
    }
    stalled.lift();

    let end = task.end().await?;
    assert_eq!(end.exit_code, Some(0), "{end:?}");
    Ok(())
}

/// The line of `COPIES` for a repository.
fn header(source: &str, destination: &str) -> String {
    format!("> {source} {destination}\n")
}

/// The line of `COPIES` for an image of the repository with that number; `-` stands for no tag.
fn image(repository: usize, digest: &str, tag: &str) -> String {
    format!("{repository} {} {tag} 1\n", digest.trim_start_matches("sha256:"))
}

/// An image at the sources.
fn seeded<'a>(world: &'a World, repository: &str, tag: Option<&str>) -> Result<&'a Seeded> {
    let images = world.seeded(|_, its| its == repository);
    let image = images.into_iter().find(|image| image.tag.as_deref() == tag);
    Ok(image.ok_or_else(|| format!("{repository}:{tag:?} is not seeded"))?)
}

/// The registry that is copied to, and the logins to it and to the source.
struct Destination<'a> {
    world: &'a World,
    region: &'a str,
    registry: Registry,
    auth: Value,
}

impl<'a> Destination<'a> {
    async fn new(world: &'a World, region: &'a str) -> Result<Self> {
        let machine = world.machine();
        let registry = machine.ecr(ACCOUNT, region).await?;
        let source = machine.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?;
        let mut auths = json!({});
        for (host, aws) in [
            (registry.host(), machine.aws(ACCOUNT, region)?),
            (source.host(), machine.aws(SOURCE_ACCOUNT, SOURCE_REGION)?),
        ] {
            let login =
                aws.json("ecr", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken", json!({})).await?;
            auths[host] = json!({ "auth": login["authorizationData"][0]["authorizationToken"] });
        }
        Ok(Self { world, region, registry, auth: json!({ "auths": auths }) })
    }

    /// Creates repositories, as launch-task does before it starts a task.
    async fn create(&self, names: &[&str]) -> Result {
        let aws = self.world.machine().aws(ACCOUNT, self.region)?;
        for name in names {
            let target = "AmazonEC2ContainerRegistry_V20150921.CreateRepository";
            aws.json("ecr", target, json!({ "repositoryName": name })).await?;
        }
        Ok(())
    }

    /// A repository's name with its registry's.
    fn image(&self, repository: &str) -> String {
        format!("{}/{repository}", self.registry.host())
    }

    /// What copies tags of busybox to a repository.
    fn busybox(&self, repository: &str, tags: &[&str]) -> Result<String> {
        let mut copies = header("docker.io/library/busybox", &self.image(repository));
        for tag in tags {
            copies += &image(1, &seeded(self.world, "library/busybox", Some(tag))?.digest, tag);
        }
        Ok(copies)
    }

    /// Checks that it has an image, with the source's digest.
    async fn check(&self, repository: &str, reference: &str, source: &Seeded) -> Result {
        let digest = self.registry.digest(repository, reference).await?;
        if digest.as_ref() != Some(&source.digest) {
            return Err(format!("{repository} has {digest:?} for {reference}, and not {}", source.digest).into());
        }
        Ok(())
    }
}

/// The two parts of the container's command, as the template has them: what starts the script, and the script.
fn command() -> Result<[String; 2]> {
    let template = include_str!("../../template.yaml");
    let (_, container) = template.split_once("\n        - Name: skopeo\n").ok_or("the task has no container")?;
    let (_, items) = container.split_once("\n          Command:\n").ok_or("it has no command")?;
    let is_inside = |line: &&str| line.is_empty() || line.starts_with("            ");
    let items = items.lines().take_while(is_inside).map(|line| format!("{line}\n")).collect::<String>();
    let text = |block: &str| block.lines().map(|line| format!("{}\n", line.get(14..).unwrap_or_default())).collect();
    let blocks: Vec<String> = items.split("            - |\n").skip(1).map(text).collect();
    blocks.try_into().map_err(|blocks| format!("its command has not two parts: {blocks:?}").into())
}

/// A task's directory for temporary files.
const SCRATCH: &str = "tmp";

/// Lets the user that tasks run as have a file, where whoever runs the tests may say so: whether they may.
fn give_to_task(path: &Path) -> Result<bool> {
    let root = std::fs::metadata(path)?.uid() == 0;
    if root {
        chown(path, Some(TASK_USER), Some(TASK_USER))?;
    }
    Ok(root)
}

/// What a process shows of itself, in parts that end with a NUL.
#[derive(Debug)]
struct Shown {
    command: String,
    environment: String,
}

/// A run of the script.
struct Task {
    process: Process,
    secrets: Vec<String>,
    directory: TempDir,
}

impl Task {
    /// Starts it with all that Fargate would give to it.
    async fn start(world: &World, copies: &str, jobs: u32, auth: &Value) -> Result<Self> {
        Self::start_with(world, copies, jobs, auth, &[]).await
    }

    /// The same, with more in its environment.
    async fn start_with(world: &World, copies: &str, jobs: u32, auth: &Value, more: &[(&str, String)]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let scratch = directory.path().join(SCRATCH);
        std::fs::create_dir(&scratch)?;
        // Whoever started it has the number from the file: `exec` keeps it.
        let shell = Program::new("/bin/sh", "it is part of every Linux")?
            .args(["-c", r#"echo $$ >"$0" && exec "$@""#])
            .args([directory.path().join("pid")])
            .args(["/bin/sh", "-c"])
            .args(command()?);
        let network = ["HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"];
        let mut shell = shell
            .envs(world.machine().env().iter().filter(|(name, _)| network.contains(&name.as_str())).cloned())
            .envs([
                ("COPIES", copies),
                ("JOBS", &jobs.to_string()),
                ("TIMEOUT", &(PATIENCE * 4).as_secs().to_string()),
                ("REGISTRY_AUTH", &auth.to_string()),
                ("TASK_TOKEN", TASK_TOKEN),
            ])
            .envs([("HOME", &scratch), ("TMPDIR", &scratch)])
            .envs(more.iter().map(|(name, value)| (*name, value.as_str())))
            .directory(&scratch);
        give_to_task(directory.path())?;
        if give_to_task(&scratch)? {
            shell = shell.user(TASK_USER, TASK_USER);
        }
        let mut secrets = secrets::known(world.machine()).await?;
        secrets.push(TASK_TOKEN.to_owned());
        Ok(Self { process: shell.start(directory.path().join("log")).await?, secrets, directory })
    }

    /// What it has printed so far, on either stream.
    fn output(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.directory.path().join("log"))?)
    }

    /// Where its temporary files are.
    fn scratch(&self) -> PathBuf {
        self.directory.path().join(SCRATCH)
    }

    /// Its processes.
    fn processes(&self) -> Result<Vec<Shown>> {
        let ours = format!("\0HOME={}", self.scratch().display());
        let mut processes = Vec::new();
        for process in std::fs::read_dir("/proc")?.flatten() {
            let read = |name| std::fs::read(process.path().join(name)).unwrap_or_default();
            let [environment, command] =
                ["environ", "cmdline"].map(|name| String::from_utf8_lossy(&read(name)).into_owned());
            let environment = format!("\0{environment}");
            if environment.contains(&ours) {
                processes.push(Shown { command, environment });
            }
        }
        Ok(processes)
    }

    /// Waits until it has met a fault so many times.
    async fn reaches(&mut self, fault: &Injected, times: usize) -> Result {
        tokio::select! {
            () = fault.hit(times) => Ok(()),
            ended = self.exit() => Err(format!("it ended before, with {:?}: {}", ended?, self.output()?).into()),
        }
    }

    /// Asks the shell, and nobody else, to end: as ECS asks a container's first process.
    async fn terminate(&self) -> Result {
        let pid = std::fs::read_to_string(self.directory.path().join("pid"))?;
        let kill = Program::new("/bin/sh", "it is part of every Linux")?.args(["-c", r#"kill -TERM "$0""#, pid.trim()]);
        Ok(kill.run(self.directory.path().join("kill.log")).await?)
    }

    async fn exit(&mut self) -> Result<Option<i32>> {
        match timeout(PATIENCE, self.process.exited()).await {
            Ok(status) => Ok(status.code()),
            Err(_) => Err(format!("it does not end; so far it has printed: {}", self.output()?).into()),
        }
    }

    /// Waits until it ends, and makes sure that it gave no secret away and left nothing behind.
    async fn end(mut self) -> Result<End> {
        let exit_code = self.exit().await?;
        let output = self.output()?;
        if self.secrets.iter().any(|secret| output.contains(secret)) {
            return Err("it has printed a credential".into());
        }
        let left: Vec<_> = std::fs::read_dir(self.scratch())?.collect();
        if !left.is_empty() {
            return Err(format!("it has left {left:?}, and printed: {output}").into());
        }
        let images = output.lines().map(|line| image_of(line).ok_or_else(|| format!("it has printed {line:?}").into()));
        Ok(End { exit_code, images: images.collect::<Result<_>>()? })
    }
}

/// The image that a line is about, and skopeo's words if it failed.
fn image_of(line: &str) -> Option<(String, std::result::Result<(), String>)> {
    let fields: Vec<_> = line.split('\t').collect();
    match fields[..] {
        ["Done", image, seconds] if seconds.parse::<u64>().is_ok() => Some((image.to_owned(), Ok(()))),
        ["Error", image, seconds, words] if seconds.parse::<u64>().is_ok() => {
            Some((image.to_owned(), Err(words.to_owned())))
        }
        _ => None,
    }
}

/// What came of a run: its exit code, and what it says of each image, in lines that are all about images.
#[derive(Debug)]
struct End {
    exit_code: Option<i32>,
    images: BTreeMap<String, std::result::Result<(), String>>,
}

impl End {
    /// Why an image was not copied.
    fn error(&self, image: &str) -> Result<&str> {
        match self.images.get(image) {
            Some(Err(words)) => Ok(words),
            other => Err(format!("{image}: {other:?}").into()),
        }
    }
}
