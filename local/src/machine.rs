//! The machine as a whole: starts its parts in order, wires them together, and stops them all.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    aws::{Aws, http_client, xml_text},
    corpus::{Corpus, Seeded},
    error::{Error, Result},
    fargate::Fargate,
    gateway::{Call, Gateway, Times},
    hostile::Hostile,
    process::{Process, Program, find},
    proxy::{Proxy, Upstream},
    registry::Registry,
};

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
pub const ARTIFACTS: &str = "ecr-transfer-artifacts";

/// What an access key of twelve digits needs as its secret: ministack does not look at it.
const ROOT_SECRET: &str = "local";
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SET_UP: &str = "run `make setup`";

/// What the names of public registries lead to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PublicRegistries {
    /// To a registry on this machine, which holds what it was seeded with.
    #[default]
    StandIn,
    /// To the real ones, over the network.
    Real,
}

/// How a machine is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its logs and its state go. No two machines can share it.
    pub directory: PathBuf,
    /// The port of the AWS endpoint; a free one if none is given.
    pub port: Option<u16>,
    /// What public registries are.
    pub public: PublicRegistries,
}

impl Options {
    /// A machine on free ports with stand-ins for everything.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), port: None, public: PublicRegistries::default() }
    }
}

/// What a stack needs to know of the network that it is deployed into.
#[derive(Clone, Debug)]
pub struct Network {
    /// The VPC's id.
    pub vpc: String,
    /// The ids of two of its subnets.
    pub subnets: [String; 2],
}

/// A running AWS. Dropping it stops it.
#[derive(Debug)]
pub struct Machine {
    fargate: Fargate,
    gateway: Gateway,
    ministack: Process,
    public: Option<(Process, Registry)>,
    hostile: Hostile,
    proxy: Proxy,
    /// ministack's own, behind the gateway.
    endpoint: String,
    network: Network,
    environment: Vec<(String, String)>,
    directory: PathBuf,
    // Released, and removed, after everything that uses them.
    _scratch: TempDir,
    _lock: File,
}

impl Machine {
    /// Starts a machine, and waits until it can be used.
    ///
    /// # Errors
    /// If a program is missing, the port is taken, the directory is in use, or a part does not start.
    pub async fn start(options: Options) -> Result<Self> {
        std::fs::create_dir_all(&options.directory).map_err(Error::file(&options.directory))?;
        let directory = options.directory.canonicalize().map_err(Error::file(&options.directory))?;
        let lock = lock(&directory)?;
        let scratch = scratch()?;
        // What tasks need, before anything is started.
        find("skopeo".as_ref(), "install the package skopeo")?;

        let (public, registry_address) = match options.public {
            PublicRegistries::StandIn => start_registry(&directory)
                .await
                .map(|(process, registry, address)| (Some((process, registry)), Some(address)))?,
            PublicRegistries::Real => (None, None),
        };
        let port = options.port.map_or_else(free_port, Ok)?;
        let door = SocketAddr::from((LOOPBACK, port));
        if TcpStream::connect(door).is_ok() {
            return Err(Error::PortInUse(port));
        }
        let address = SocketAddr::from((LOOPBACK, free_port()?));
        let endpoint = format!("http://{address}");
        let upstream = Upstream { ecr: address, public: registry_address };
        let proxy = Proxy::start(upstream, scratch.path()).await?;
        let hostile = Hostile::start().await?;
        for host in hostile.hosts() {
            proxy.lead(host, hostile.address());
        }
        let gateway = Gateway::open(door, proxy.identity(), address).await?;
        let through_proxy = vec![
            ("HTTPS_PROXY".to_owned(), proxy.url()),
            ("NO_PROXY".to_owned(), "127.0.0.1,localhost".to_owned()),
            ("SSL_CERT_FILE".to_owned(), proxy.ca_bundle().display().to_string()),
        ];
        let public_endpoint = format!("https://{door}");
        let ministack = start_ministack(&directory, address, &public_endpoint, &through_proxy).await?;

        let aws = Aws::new(&endpoint, ACCOUNT, ROOT_SECRET, REGION)?;
        let source = Aws::new(&endpoint, SOURCE_ACCOUNT, ROOT_SECRET, SOURCE_REGION)?;
        let (login, network, (), ()) = tokio::try_join!(
            login(&aws),
            create_network(&aws),
            create_source_credential(&aws, &source),
            aws.create_bucket(ARTIFACTS),
        )?;
        proxy.require_login("*.dkr.ecr.*", &login);
        let fargate = Fargate::start(aws, ACCOUNT, through_proxy.clone(), scratch.path());

        let mut environment = through_proxy;
        environment.extend(
            [
                ("AWS_ENDPOINT_URL", public_endpoint.as_str()),
                ("AWS_CA_BUNDLE", &proxy.ca_bundle().display().to_string()),
                ("AWS_ACCESS_KEY_ID", ACCOUNT),
                ("AWS_SECRET_ACCESS_KEY", ROOT_SECRET),
                ("AWS_DEFAULT_REGION", REGION),
                ("AWS_REGION", REGION),
                ("AWS_PAGER", ""),
                ("AWS_EC2_METADATA_DISABLED", "true"),
                ("SAM_CLI_TELEMETRY", "0"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        Ok(Self {
            fargate,
            gateway,
            ministack,
            public,
            hostile,
            proxy,
            endpoint,
            network,
            environment,
            directory,
            _scratch: scratch,
            _lock: lock,
        })
    }

    /// A client as an account's root.
    ///
    /// # Errors
    /// If it cannot be set up.
    pub fn aws(&self, account: &str, region: &str) -> Result<Aws> {
        Aws::new(&self.endpoint, account, ROOT_SECRET, region)
    }

    /// A client as the root of the account that everything is deployed to.
    ///
    /// # Errors
    /// If it cannot be set up.
    pub fn home(&self) -> Result<Aws> {
        self.aws(ACCOUNT, REGION)
    }

    /// An account's ECR registry in a region, reached without login or proxy.
    ///
    /// # Errors
    /// If ECR does not answer.
    pub async fn ecr(&self, account: &str, region: &str) -> Result<Registry> {
        let authorization = authorization(&self.aws(account, region)?).await?;
        let host = authorization["proxyEndpoint"].as_str().unwrap_or_default();
        Registry::new(&self.endpoint, host.trim_start_matches("https://"))
    }

    /// The stand-in for public registries, unless the real ones are used.
    #[must_use]
    pub fn public(&self) -> Option<&Registry> {
        self.public.as_ref().map(|(_, registry)| registry)
    }

    /// The environment in which `aws`, `sam` and `skopeo` use this machine.
    #[must_use]
    pub fn env(&self) -> &[(String, String)] {
        &self.environment
    }

    /// The network that a stack is deployed into.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network between registries and those who use them.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The registry that attacks whoever reads it.
    #[must_use]
    pub fn hostile(&self) -> &Hostile {
        &self.hostile
    }

    /// What the Lambdas, and whoever uses the machine's environment, have called so far, and how often.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<Call, Times> {
        self.gateway.calls()
    }

    /// The door that everything but this machine itself comes through.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Where tasks run.
    #[must_use]
    pub fn fargate(&self) -> &Fargate {
        &self.fargate
    }

    /// Where logs and state are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The images of the source account, ready to be pushed by [`Machine::seed`].
    ///
    /// # Errors
    /// If ECR does not answer.
    pub async fn private_corpus(&self) -> Result<Corpus> {
        Ok(Corpus::private(self.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?.host()))
    }

    /// Makes images, and pushes them to where they belong. Repositories of the source account are created.
    ///
    /// # Errors
    /// If a registry refuses.
    pub async fn seed(&self, corpus: Corpus) -> Result<Vec<Seeded>> {
        let source = self.ecr(SOURCE_ACCOUNT, SOURCE_REGION).await?;
        let aws = self.aws(SOURCE_ACCOUNT, SOURCE_REGION)?;
        for repository in corpus.repositories(source.host()) {
            let created = ecr(&aws, "CreateRepository", json!({ "repositoryName": repository })).await;
            if !matches!(&created, Err(error) if error.code() == Some("RepositoryAlreadyExistsException")) {
                created?;
            }
        }
        let registries = BTreeMap::from([(source.host().to_owned(), source)]);
        corpus.push(&registries, self.public()).await
    }

    /// Waits until a part of it ends, which none should.
    pub async fn failed(&mut self) -> Error {
        let name = match &mut self.public {
            Some((registry, _)) => tokio::select! {
                _ = self.ministack.exited() => "ministack",
                _ = registry.exited() => "docker-registry",
            },
            None => {
                self.ministack.exited().await;
                "ministack"
            }
        };
        Error::Unexpected(format!("{name} ended; its log is in {}", self.directory.display()))
    }

    /// Stops everything, and waits until it is gone.
    pub async fn stop(self) {
        self.fargate.stop().await;
        drop(self.gateway);
        self.ministack.stop().await;
        if let Some((registry, _)) = self.public {
            registry.stop().await;
        }
    }
}

/// Takes the directory for this process alone; the lock goes with the process, however it ends.
fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(Error::file(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::AlreadyRunning(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(Error::File { path, source }),
    }
}

/// A directory for what tasks must reach, whatever user they run as. The state directory may lie in a home that only its
/// owner can enter.
fn scratch() -> Result<TempDir> {
    let everywhere = std::env::temp_dir();
    let directory =
        tempfile::Builder::new().prefix("ecr-transfer-").tempdir_in(&everywhere).map_err(Error::file(&everywhere))?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
        .map_err(Error::file(directory.path()))?;
    Ok(directory)
}

/// A port that nobody listens on now.
fn free_port() -> Result<u16> {
    let failed = |source| Error::File { path: "a free port".into(), source };
    let listener = TcpListener::bind((LOOPBACK, 0)).map_err(failed)?;
    Ok(listener.local_addr().map_err(failed)?.port())
}

async fn start_registry(directory: &Path) -> Result<(Process, Registry, SocketAddr)> {
    let storage = directory.join("registry");
    // What an earlier machine held would make this one's answers depend on it.
    let _ = std::fs::remove_dir_all(&storage);
    std::fs::create_dir_all(&storage).map_err(Error::file(&storage))?;
    let configuration = directory.join("registry.yml");
    std::fs::write(
        &configuration,
        json!({
            "version": 0.1,
            "storage": { "filesystem": { "rootdirectory": storage }, "delete": { "enabled": true } },
            // Absolute URLs would be of the plain HTTP that the proxy speaks to it.
            "http": { "addr": format!("{LOOPBACK}:0"), "relativeurls": true },
        })
        .to_string(),
    )
    .map_err(Error::file(&configuration))?;

    let log = directory.join("registry.log");
    let mut process = Program::new("docker-registry", "install the package docker-registry")?
        .args(["serve".as_ref(), configuration.as_os_str()])
        .start(&log)
        .await?;
    // It picks a free port by itself, and says which.
    let address = process
        .ready(async || {
            let log = std::fs::read_to_string(&log).ok()?;
            let (_, address) = log.split_once("listening on ")?;
            address.split(['"', '\n', ' ']).next()?.parse::<SocketAddr>().ok()
        })
        .await?;
    let registry = Registry::new(&format!("http://{address}"), "public")?;
    Ok((process, registry, address))
}

async fn start_ministack(
    directory: &Path,
    address: SocketAddr,
    public_endpoint: &str,
    through_proxy: &[(String, String)],
) -> Result<Process> {
    let state = directory.join("ministack");
    let _ = std::fs::remove_dir_all(&state);
    std::fs::create_dir_all(&state).map_err(Error::file(&state))?;
    let port = address.port().to_string();
    let settings = [
        ("AUTH", "true"),
        // Not for itself: the Lambdas inherit it.
        ("AWS_ENDPOINT_URL", public_endpoint),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("BIND_HOST", "127.0.0.1"),
        // It must find no Docker, or it would pull images and run tasks by itself.
        ("DOCKER_HOST", "tcp://127.0.0.1:1"),
        ("GATEWAY_PORT", &port),
        // It would listen on a fixed port, which two machines cannot share.
        ("IOT_MTLS_ENABLED", "false"),
        ("LAMBDA_EXECUTOR", "local"),
        ("MINISTACK_ACCOUNT_ID", ACCOUNT),
        ("MINISTACK_HOST", "127.0.0.1"),
        ("MINISTACK_REGION", REGION),
        // A retry that waits for a minute on AWS waits for about a second here.
        ("SFN_WAIT_SCALE", "0.02"),
    ];
    let program = directory.join("corrections.py");
    std::fs::write(&program, include_str!("corrections.py")).map_err(Error::file(&program))?;
    let mut process = Program::new(tool("ministack", "python3"), SET_UP)?
        .args([program])
        .envs(settings)
        .envs([
            ("HOME", &state),
            ("TMPDIR", &state),
            ("S3_DATA_DIR", &state.join("s3")),
            ("STATE_DIR", &state.join("state")),
        ])
        .envs(through_proxy.iter().cloned())
        .directory(&state)
        .start(directory.join("ministack.log"))
        .await?;
    let http = http_client()?;
    let url = format!("http://{address}/_ministack/ready");
    process.ready(async || http.get(&url).send().await.ok().filter(|answer| answer.status().is_success())).await?;
    Ok(process)
}

/// Where the project's set-up puts a tool.
pub(crate) fn tool(environment: &str, program: &str) -> PathBuf {
    tools_directory().join(environment).join("bin").join(program)
}

/// Where the project's set-up puts its tools: `ECR_TRANSFER_TOOLS`, or else in the user's cache.
pub(crate) fn tools_directory() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        cache.unwrap_or_default().join("ecr-transfer/tools")
    };
    set("ECR_TRANSFER_TOOLS").unwrap_or_else(cache)
}

async fn ecr(aws: &Aws, action: &str, body: Value) -> Result<Value> {
    aws.json("ecr", &format!("AmazonEC2ContainerRegistry_V20150921.{action}"), body).await
}

async fn authorization(aws: &Aws) -> Result<Value> {
    Ok(ecr(aws, "GetAuthorizationToken", json!({})).await?["authorizationData"][0].take())
}

/// The login that ECR hands out, which ministack's registry does not ask for, and the proxy does.
async fn login(aws: &Aws) -> Result<String> {
    let authorization = authorization(aws).await?;
    authorization["authorizationToken"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::Unexpected("ECR handed out no token".into()))
}

async fn create_network(aws: &Aws) -> Result<Network> {
    let cluster = json!({ "clusterName": CLUSTER });
    aws.json("ecs", "AmazonEC2ContainerServiceV20141113.CreateCluster", cluster).await?;
    let created = aws.query("ec2", "CreateVpc", &[("CidrBlock", "10.0.0.0/16")]).await?;
    let missing = |what: &str| Error::Unexpected(format!("EC2 made no {what}"));
    let vpc = xml_text(&created, "vpcId").ok_or_else(|| missing("VPC"))?;
    let subnet = async |zone: &str, block: &str| {
        let parameters = [("VpcId", vpc.as_str()), ("CidrBlock", block), ("AvailabilityZone", zone)];
        let created = aws.query("ec2", "CreateSubnet", &parameters).await?;
        xml_text(&created, "subnetId").ok_or_else(|| missing("subnet"))
    };
    let subnets =
        [subnet(&format!("{REGION}a"), "10.0.0.0/24").await?, subnet(&format!("{REGION}b"), "10.0.1.0/24").await?];
    Ok(Network { vpc, subnets })
}

/// A user of the source account who may read from its registry, with the key in a secret of the deploying account.
async fn create_source_credential(aws: &Aws, source: &Aws) -> Result<()> {
    const USER: (&str, &str) = ("UserName", "ecr-transfer-reader");
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Action": [
                "ecr:BatchCheckLayerAvailability",
                "ecr:BatchGetImage",
                "ecr:DescribeImages",
                "ecr:DescribeRepositories",
                "ecr:GetAuthorizationToken",
                "ecr:GetDownloadUrlForLayer",
                "ecr:ListImages",
            ],
            "Resource": "*",
        }],
    })
    .to_string();
    source.query("iam", "CreateUser", &[USER]).await?;
    source.query("iam", "PutUserPolicy", &[USER, ("PolicyName", "read"), ("PolicyDocument", &policy)]).await?;
    let key = source.query("iam", "CreateAccessKey", &[USER]).await?;
    let secret = json!({
        "access_key_id": xml_text(&key, "AccessKeyId"),
        "secret_access_key": xml_text(&key, "SecretAccessKey"),
    });
    let request = json!({
        "Name": SOURCE_CREDENTIAL,
        "SecretString": secret.to_string(),
        "ClientRequestToken": uuid::Uuid::new_v4().to_string(),
    });
    aws.json("secretsmanager", "secretsmanager.CreateSecret", request).await.map(drop)
}
