//! The machine as a whole: starts its parts in order, connects them, and stops them.

use std::collections::BTreeMap;
use std::fs::{Permissions, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow};
use fs_err as fs;
use futures_util::future::select_all;
use rustix::process::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::aws::{Aws, code, http_client, xml_text, xml_texts};
use crate::corpus::{Corpus, Seeded};
use crate::fargate::Fargate;
use crate::gateway::{Call, Gateway, Times};
use crate::hostile::Hostile;
use crate::process::{Process, Program, find};
use crate::proxy::{ECR_HOSTS, Proxy, Upstream};
use crate::registry::Registry;
use crate::stack::project;

/// The account that everything is deployed to.
pub const ACCOUNT: &str = "111111111111";
/// The region that everything is deployed to.
pub const REGION: &str = "us-east-1";
/// The account that images are copied from.
pub const SOURCE_ACCOUNT: &str = "222222222222";
/// The region that images are copied from.
pub const SOURCE_REGION: &str = "us-west-2";
/// The secret, in the deploying account, with an access key of the source account.
pub const SOURCE_CREDENTIAL: &str = "source-credential";
/// The ECS cluster that tasks run in.
pub const CLUSTER: &str = "ecr-transfer";
/// The bucket that deployed code goes through.
pub(crate) const ARTIFACTS: &str = "ecr-transfer-artifacts";

/// A machine's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its logs and its state go. No two machines can share it.
    pub directory: PathBuf,
    /// The port of the AWS endpoint; 0 is a free one.
    pub port: u16,
    /// The output of `sam build` that stacks are deployed from.
    pub build: PathBuf,
    /// Whether public registries are the real ones, reached over the network, instead of a stand-in.
    pub real_registries: bool,
}

impl Options {
    /// A machine on free ports with stand-ins for everything, and functions as they are built for AWS.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let build = project().join(".aws-sam/build");
        Self { directory: directory.into(), port: 0, build, real_registries: false }
    }
}

/// The network that stacks are deployed into.
#[derive(Clone, Debug)]
pub struct Network {
    pub vpc: String,
    pub subnets: [String; 2],
}

/// A running AWS. Dropping it stops it.
pub struct Machine {
    fargate: Fargate,
    gateway: Gateway,
    /// ministack, and the stand-in for public registries.
    servers: Vec<Process>,
    public: Option<Registry>,
    hostile: Hostile,
    proxy: Proxy,
    /// ministack's own, behind the gateway.
    endpoint: String,
    network: Network,
    environment: Vec<(String, String)>,
    directory: PathBuf,
    build: PathBuf,
    // Released, and removed, after everything that uses them.
    _scratch: TempDir,
    _lock: fs::File,
}

impl Machine {
    /// Starts a machine, and waits until it can be used.
    pub async fn start(options: Options) -> Result<Self> {
        fs::create_dir_all(&options.directory)?;
        let directory = fs::canonicalize(&options.directory)?;
        let lock = take(&directory)?;
        // Tasks of other users read it. The state directory may be in a home that only its owner can enter.
        let scratch = shared_directory("ecr-transfer-", 0o755)?;
        find("skopeo".as_ref(), "install the package skopeo")?;

        let address = free_address()?;
        let (mut servers, mut public) = (Vec::new(), None);
        let mut upstream = Upstream { ecr: address, public: None };
        if !options.real_registries {
            let address = free_address()?;
            servers.push(start_registry(&directory, address).await?);
            public = Some(Registry::new(&format!("http://{address}"), "public")?);
            upstream.public = Some(address);
        }
        let proxy = Proxy::start(upstream, scratch.path()).await?;
        let hostile = Hostile::start(&proxy).await?;
        let gateway = Gateway::open((Ipv4Addr::LOCALHOST, options.port).into(), proxy.identity(), address).await?;
        let public_endpoint = format!("https://{}", gateway.address());
        let ca_bundle = proxy.ca_bundle().display().to_string();
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let mut environment =
            [("HTTPS_PROXY", &*proxy.url()), ("NO_PROXY", "127.0.0.1,localhost"), ("SSL_CERT_FILE", &ca_bundle)]
                .map(pair)
                .to_vec();
        servers.push(start_ministack(&directory, address, &public_endpoint, &environment).await?);

        let endpoint = format!("http://{address}");
        let aws = Aws::new(&endpoint, ACCOUNT, REGION)?;
        let source = Aws::new(&endpoint, SOURCE_ACCOUNT, SOURCE_REGION)?;
        let (login, network, (), ()) = tokio::try_join!(
            authorization(&aws),
            network(&aws),
            create_source_credential(&aws, &source),
            aws.create_bucket(ARTIFACTS),
        )?;
        // ministack's registry asks for no login.
        proxy.require_login(ECR_HOSTS, login["authorizationToken"].as_str().context("ECR returned no token")?);
        let fargate = Fargate::start(aws, environment.clone(), scratch.path());

        environment.extend(
            [
                ("AWS_ENDPOINT_URL", public_endpoint.as_str()),
                ("AWS_CA_BUNDLE", &ca_bundle),
                ("AWS_ACCESS_KEY_ID", ACCOUNT),
                // Any value: ministack does not check that of an account's root.
                ("AWS_SECRET_ACCESS_KEY", "local"),
                ("AWS_DEFAULT_REGION", REGION),
                ("AWS_REGION", REGION),
                ("AWS_PAGER", ""),
                ("AWS_EC2_METADATA_DISABLED", "true"),
                ("SAM_CLI_TELEMETRY", "0"),
            ]
            .map(pair),
        );
        Ok(Self {
            fargate,
            gateway,
            servers,
            public,
            hostile,
            proxy,
            endpoint,
            network,
            environment,
            directory,
            build: options.build,
            _scratch: scratch,
            _lock: lock,
        })
    }

    /// The output of `sam build` that stacks are deployed from.
    pub fn build(&self) -> &Path {
        &self.build
    }

    /// A client as an account's root.
    pub fn aws(&self, account: &str, region: &str) -> Result<Aws> {
        Aws::new(&self.endpoint, account, region)
    }

    /// A client as the root of the account that everything is deployed to.
    pub fn home(&self) -> Result<Aws> {
        self.aws(ACCOUNT, REGION)
    }

    /// An account's ECR registry in a region, reached without login or proxy.
    pub async fn ecr(&self, account: &str, region: &str) -> Result<Registry> {
        let authorization = authorization(&self.aws(account, region)?).await?;
        let host = authorization["proxyEndpoint"].as_str().unwrap_or_default();
        Registry::new(&self.endpoint, host.trim_start_matches("https://"))
    }

    /// The stand-in for public registries, unless the real ones are used.
    pub fn public(&self) -> Option<&Registry> {
        self.public.as_ref()
    }

    /// The environment in which `aws`, `sam` and `skopeo` use this machine.
    pub fn env(&self) -> &[(String, String)] {
        &self.environment
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The registry that attacks its clients.
    pub fn hostile(&self) -> &Hostile {
        &self.hostile
    }

    /// The calls of the Lambdas, and of all others in the machine's environment, so far.
    pub fn calls(&self) -> BTreeMap<Call, Times> {
        self.gateway.calls()
    }

    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    pub fn fargate(&self) -> &Fargate {
        &self.fargate
    }

    /// Where logs and state are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The images of the source account, ready to be pushed by [`Machine::seed`].
    pub async fn private_corpus(&self) -> Result<Corpus> {
        Ok(Corpus::private(self.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?.host()))
    }

    /// Makes images and pushes them to their registries. Creates the source account's repositories.
    pub async fn seed(&self, corpus: Corpus) -> Result<Vec<Seeded>> {
        let source = self.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?;
        let aws = self.aws(SOURCE_ACCOUNT, SOURCE_REGION)?;
        for repository in corpus.repositories(source.host()) {
            let created = ecr(&aws, "CreateRepository", json!({ "repositoryName": repository })).await;
            if !matches!(&created, Err(error) if code(error) == Some("RepositoryAlreadyExistsException")) {
                created?;
            }
        }
        corpus.push(&source, self.public()).await
    }

    /// Waits until one of its servers fails.
    pub async fn failed(&mut self) -> Error {
        select_all(self.servers.iter_mut().map(|server| Box::pin(server.exited()))).await;
        anyhow!("a server of the local AWS has ended; its log is in {}", self.directory.display())
    }

    /// Stops everything, and waits until it is gone.
    pub async fn stop(self) {
        drop((self.fargate, self.gateway));
        for server in self.servers {
            server.stop().await;
        }
    }
}

/// Locks the directory for this process, until the process ends. The locked file has its number.
fn take(directory: &Path) -> Result<fs::File> {
    let path = directory.join("pid");
    let file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
    let in_use =
        || format!("a local AWS is already running in {}: stop it with `make down` first", directory.display());
    file.file().try_lock().with_context(in_use)?;
    fs::write(path, std::process::id().to_string())?;
    Ok(file)
}

/// The process of the machine that uses a directory, if there is one.
pub fn running(directory: &Path) -> Option<Pid> {
    let path = directory.join("pid");
    let is_taken = matches!(fs::File::open(&path).ok()?.file().try_lock(), Err(TryLockError::WouldBlock));
    let process = fs::read_to_string(path).ok().filter(|_| is_taken)?;
    Pid::from_raw(process.parse().ok()?)
}

/// A temporary directory for processes of other users.
pub(crate) fn shared_directory(prefix: &str, mode: u32) -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix(prefix).tempdir()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(mode))?;
    Ok(directory)
}

/// A free port.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

async fn start_registry(directory: &Path, address: SocketAddr) -> Result<Process> {
    let storage = empty(directory.join("registry"))?;
    let configuration = directory.join("registry.yml");
    let settings = json!({
        "version": 0.1,
        "storage": { "filesystem": { "rootdirectory": storage }, "delete": { "enabled": true } },
        // Absolute URLs would have the scheme of the proxy's requests, which is plain HTTP.
        "http": { "addr": address, "relativeurls": true },
    });
    fs::write(&configuration, settings.to_string())?;
    let program = Program::new("docker-registry", "install the package docker-registry")?;
    let process = program.args(["serve".as_ref(), configuration.as_os_str()]).start(directory.join("registry.log"));
    answering(process.await?, &format!("http://{address}/v2/")).await
}

async fn start_ministack(
    directory: &Path,
    address: SocketAddr,
    public_endpoint: &str,
    through_proxy: &[(String, String)],
) -> Result<Process> {
    let state = empty(directory.join("ministack"))?;
    let program = directory.join("corrections.py");
    fs::write(&program, include_str!("corrections.py"))?;
    let settings = [
        ("AUTH", "true"),
        // For the Lambdas, which inherit it.
        ("AWS_ENDPOINT_URL", public_endpoint),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("BIND_HOST", "127.0.0.1"),
        // With Docker it would pull images and run tasks by itself.
        ("DOCKER_HOST", "tcp://127.0.0.1:1"),
        ("GATEWAY_PORT", &address.port().to_string()),
        // This would listen on a fixed port, which two machines cannot share.
        ("IOT_MTLS_ENABLED", "false"),
        ("LAMBDA_EXECUTOR", "local"),
        ("MINISTACK_ACCOUNT_ID", ACCOUNT),
        ("MINISTACK_HOST", "127.0.0.1"),
        ("MINISTACK_REGION", REGION),
        // A retry that waits for a minute on AWS waits for about a second here.
        ("SFN_WAIT_SCALE", "0.02"),
    ];
    let process = Program::new(tool("ministack", "python3"), "run `make setup`")?
        .args([program])
        .envs(settings)
        .envs([("HOME", &state), ("TMPDIR", &state)])
        .envs([("S3_DATA_DIR", state.join("s3")), ("STATE_DIR", state.join("state"))])
        .envs(through_proxy.iter().cloned())
        .directory(&state)
        .start(directory.join("ministack.log"));
    answering(process.await?, &format!("http://{address}/_ministack/ready")).await
}

/// An empty directory, without the state of an earlier machine.
fn empty(directory: PathBuf) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Waits until a server answers.
async fn answering(mut server: Process, url: &str) -> Result<Process> {
    let http = http_client()?;
    server.ready(async || http.get(url).send().await.ok().filter(|answer| answer.status().is_success())).await?;
    Ok(server)
}

pub(crate) fn tool(environment: &str, program: &str) -> PathBuf {
    tools_directory().join(environment).join("bin").join(program)
}

/// Where the project's set-up puts its tools: `ECR_TRANSFER_TOOLS`, or else in the user's cache.
pub(crate) fn tools_directory() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache"))).unwrap_or_default();
    set("ECR_TRANSFER_TOOLS").unwrap_or_else(|| cache().join("ecr-transfer/tools"))
}

async fn ecr(aws: &Aws, action: &str, body: Value) -> Result<Value> {
    aws.json("ecr", &format!("AmazonEC2ContainerRegistry_V20150921.{action}"), body).await
}

async fn authorization(aws: &Aws) -> Result<Value> {
    Ok(ecr(aws, "GetAuthorizationToken", json!({})).await?["authorizationData"][0].take())
}

/// The account's default network, with a cluster.
async fn network(aws: &Aws) -> Result<Network> {
    let cluster = json!({ "clusterName": CLUSTER });
    aws.json("ecs", "AmazonEC2ContainerServiceV20141113.CreateCluster", cluster).await?;
    let described = aws.query("ec2", "DescribeSubnets", &[]).await?;
    let vpc = xml_text(&described, "vpcId").context("there is no default VPC")?;
    let mut subnets = xml_texts(&described, "subnetId").into_iter();
    let subnets = subnets.next().zip(subnets.next()).context("the default VPC has fewer than two subnets")?;
    Ok(Network { vpc, subnets: subnets.into() })
}

/// Creates a user of the source account who may read from its registry, and a secret of the deploying account with the key.
async fn create_source_credential(aws: &Aws, source: &Aws) -> Result<()> {
    const USER: (&str, &str) = ("UserName", "ecr-transfer-reader");
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Resource": "*", "Action": [
            "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:DescribeImages", "ecr:DescribeRepositories",
            "ecr:GetAuthorizationToken", "ecr:GetDownloadUrlForLayer", "ecr:ListImages",
        ],
    }] });
    let policy = [USER, ("PolicyName", "read"), ("PolicyDocument", &policy.to_string())];
    source.query("iam", "CreateUser", &[USER]).await?;
    source.query("iam", "PutUserPolicy", &policy).await?;
    let key = source.query("iam", "CreateAccessKey", &[USER]).await?;
    let secret = json!({
        "access_key_id": xml_text(&key, "AccessKeyId"), "secret_access_key": xml_text(&key, "SecretAccessKey"),
    });
    let secret = json!({ "Name": SOURCE_CREDENTIAL, "SecretString": secret.to_string() });
    aws.json("secretsmanager", "secretsmanager.CreateSecret", secret).await.map(drop)
}
