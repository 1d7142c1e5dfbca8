//! The hostile registry's attacks, seen by a client that withstands them all.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::collections::BTreeSet;
use std::time::Instant;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LINK, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use local::hostile::{BACKDOOR, DOMAIN, ELSEWHERE, Honest, Hostile, REPOSITORY, TARGET};
use local::images;
use local::proxy::{ECR_HOSTS, Proxy, Upstream};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Method, Response};
use serde_json::Value;
use tempfile::TempDir;

const MEBIBYTE: usize = 1 << 20;

struct Registry {
    hostile: Hostile,
    proxy: Proxy,
    client: Client,
    _directory: TempDir,
}

impl Registry {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = ([127, 0, 0, 1], 1).into();
        let proxy = Proxy::start(Upstream { ecr: nowhere, public: Some(nowhere) }, directory.path()).await.unwrap();
        let hostile = Hostile::start(&proxy).await.unwrap();
        let roots = Certificate::from_pem_bundle(&std::fs::read(proxy.ca_bundle()).unwrap()).unwrap();
        let client = Client::builder().proxy(reqwest::Proxy::https(proxy.url()).unwrap()).tls_certs_only(roots);
        let client = client.redirect(Policy::none()).build().unwrap();
        Self { hostile, proxy, client, _directory: directory }
    }

    async fn ask(&self, method: Method, host: &str, path: &str) -> Response {
        let url = format!("https://{host}/v2/{REPOSITORY}/{path}");
        self.client.request(method, url).send().await.unwrap()
    }

    async fn get(&self, name: &str, path: &str) -> Response {
        self.ask(Method::GET, &format!("{name}.{DOMAIN}"), path).await
    }

    async fn body(&self, name: &str, path: &str) -> Vec<u8> {
        self.get(name, path).await.bytes().await.unwrap().to_vec()
    }

    async fn json(&self, name: &str, path: &str) -> Value {
        serde_json::from_slice(&self.body(name, path).await).unwrap()
    }

    async fn tags(&self, name: &str) -> Vec<String> {
        serde_json::from_value(self.json(name, "tags/list").await["tags"].take()).unwrap()
    }

    /// The manifests of all tags of a host but the honest image's.
    async fn others(&self, name: &str) -> Vec<String> {
        self.tags(name).await.into_iter().filter(|tag| tag != "good").map(|tag| format!("manifests/{tag}")).collect()
    }
}

fn header(response: &Response, name: impl reqwest::header::AsHeaderName) -> Option<String> {
    Some(String::from_utf8_lossy(response.headers().get(name)?.as_bytes()).into_owned())
}

fn named(response: &Response) -> Option<String> {
    header(response, "docker-content-digest")
}

fn is_digest(text: &str) -> bool {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(is_hex))
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| is_word(byte) || b".-".contains(&byte))
        && is_word(text.as_bytes()[0])
}

/// How much of a body comes before `limit`, and whether that was its end.
async fn read_up_to(mut response: Response, limit: usize) -> (usize, bool) {
    let mut read = 0;
    while let Some(piece) = response.chunk().await.unwrap() {
        read += piece.len();
        if read >= limit {
            return (read, false);
        }
    }
    (read, true)
}

#[tokio::test]
async fn honest_images_can_be_pulled_and_match_their_digests() {
    let registry = Registry::start().await;
    for attack in registry.hostile.attacks().into_iter().filter(|attack| attack.honest != Honest::Nothing) {
        let token = if attack.host.starts_with("realm.") { "Bearer hostile" } else { "" };
        let get = async |path: &str| {
            let url = format!("https://{}/v2/{REPOSITORY}/{path}", attack.host);
            let request = registry.client.get(url).header("authorization", token);
            request.send().await.unwrap()
        };
        for (tag, digest) in &attack.valid {
            let response = get(&format!("manifests/{}", tag.unwrap_or(digest))).await;
            assert_eq!(named(&response).as_ref(), Some(digest), "{}", attack.host);
            let manifest = response.bytes().await.unwrap();
            assert_eq!(images::digest(&manifest), *digest);
            assert_eq!(get(&format!("manifests/{digest}")).await.bytes().await.unwrap(), manifest);
            let manifest: Value = serde_json::from_slice(&manifest).unwrap();
            for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
                let digest = blob["digest"].as_str().unwrap();
                let content = get(&format!("blobs/{digest}")).await.bytes().await.unwrap();
                assert_eq!(
                    (images::digest(&content).as_str(), blob["size"].as_u64()),
                    (digest, Some(content.len() as u64))
                );
            }
        }
    }
}

#[tokio::test]
async fn attacks_are_named_as_in_lists_of_images() {
    let Registry { hostile, .. } = Registry::start().await;
    let attacks = hostile.attacks();
    let hosts: BTreeSet<_> = attacks.iter().map(|attack| &attack.host).collect();
    assert!(hosts.len() == attacks.len() && attacks.len() > 40, "each has a host of its own");
    let first = attacks.iter().find(|attack| attack.host == "tags.hostile.example").unwrap();
    assert_eq!(first.entries[..2], ["tags.hostile.example/a:ALL_TAGS", "tags.hostile.example/a:good"]);
    assert_eq!(first.entries[2], format!("tags.hostile.example/a@{}", hostile.good()));
    assert_eq!((first.honest, first.fails), (Honest::Copied, true));
}

#[tokio::test]
async fn tags_hold_commands_lines_and_terminal_sequences() {
    let registry = Registry::start().await;
    for (name, status) in [("tags", 404), ("found", 200)] {
        let tags = registry.tags(name).await;
        assert_eq!(tags.iter().filter(|tag| is_tag(tag)).collect::<Vec<_>>(), ["good"]);
        let companion = format!("{}.s due[$(cat $REGISTRY_AUTH_FILE>>", registry.hostile.good().replace(':', "-"));
        assert!(tags.iter().any(|tag| tag.starts_with(&companion)), "a companion of the image");
        let backdoor = format!("\n> {BACKDOOR}/backdoor 111111111111.dkr.ecr.us-east-1.amazonaws.com/{TARGET}\n");
        for part in ["\n", "\t", "\r", "\u{1b}", "\u{9b}", "\u{202e}", "\0", "\nCOPIES_END\n", "`", "..", &backdoor] {
            assert!(tags.iter().any(|tag| tag.contains(part)), "{part:?}");
        }
        assert!(tags.contains(&String::new()) && tags.iter().any(|tag| tag.len() > 10_000));
        assert_eq!(registry.get(name, "manifests/due%5B").await.status(), status);
    }
}

#[tokio::test]
async fn a_list_of_tags_may_be_malformed() {
    let registry = Registry::start().await;
    for name in ["string", "object", "mixed", "bytes", "surrogate", "deep", "html"] {
        let list = registry.body(&format!("list-{name}"), "tags/list").await;
        let list = serde_json::from_slice(&list).unwrap_or(Value::Null);
        let tags = list.get("tags").and_then(|tags| serde_json::from_value::<Vec<String>>(tags.clone()).ok());
        assert!(tags.is_none(), "{name}");
    }
}

#[tokio::test]
async fn digests_in_headers_are_invalid_or_do_not_match() {
    let registry = Registry::start().await;
    let mut headers = BTreeSet::new();
    for path in registry.others("digests").await {
        let header = named(&registry.get("digests", &path).await);
        assert!(header.as_deref().is_none_or(|digest| !is_digest(digest)), "{path}: {header:?}");
        headers.extend(header);
    }
    for part in ["sha512:", "$(", "due[", " ", "\u{fffd}"] {
        assert!(headers.iter().any(|header| header.contains(part)), "{part}: {headers:?}");
    }
    let upper = format!("sha256:{}", registry.hostile.good()[7..].to_uppercase());
    assert!(headers.contains(&upper) && headers.iter().any(|header| header.len() < 64));

    let liar = registry.get("liar", "manifests/t0").await;
    let header = named(&liar).unwrap();
    let body = liar.bytes().await.unwrap();
    assert!(is_digest(&header) && images::digest(&body) != header);
    assert_eq!(registry.body("liar", &format!("manifests/{header}")).await, body, "by digest, too");
}

#[tokio::test]
async fn malformed_manifests_match_their_digests() {
    let registry = Registry::start().await;
    for name in ["types", "shapes", "index", "layers"] {
        let others = registry.others(name).await;
        assert!(others.len() > 8, "{name}");
        for path in others {
            let response = registry.get(name, &path).await;
            let (digest, media_type) = (named(&response).unwrap(), header(&response, CONTENT_TYPE));
            let body = response.bytes().await.unwrap();
            assert_eq!(images::digest(&body), digest, "{name} {path}");
            assert_eq!(registry.body(name, &format!("manifests/{digest}")).await, body);
            let manifest: Option<Value> = serde_json::from_slice(&body).ok();
            let list = |field: &str| manifest.as_ref().and_then(|it| it[field].as_array().cloned()).unwrap_or_default();
            let is_wrong = |it: &Value| {
                it["digest"].as_str().is_none_or(|digest| !is_digest(digest))
                    || it["size"].as_u64().is_none_or(|it| it == u64::MAX)
            };
            match name {
                "types" => assert!(media_type.is_none_or(|it| !it.starts_with("application/")), "{path}"),
                "index" => assert!(list("manifests").len() == 2 && is_wrong(&list("manifests")[1]), "{path}"),
                "layers" => assert!(is_wrong(&list("layers")[0]), "{path}"),
                _ => assert!(list("layers").is_empty() && list("manifests").iter().all(Value::is_array), "{path}"),
            }
        }
    }
    let config = registry.json("layers", "manifests/t0").await["config"]["digest"].take();
    let blob = registry.body("layers", &format!("blobs/{}", config.as_str().unwrap())).await;
    assert_ne!(config, images::digest(&blob), "it cannot be copied");
}

#[tokio::test]
async fn an_index_has_thousands_of_children() {
    let registry = Registry::start().await;
    let index = registry.json("many", "manifests/t0").await;
    let children = index["manifests"].as_array().unwrap();
    assert_eq!(children.len(), 3_000);
    let last = children[2_999]["digest"].as_str().unwrap();
    assert_eq!(images::digest(&registry.body("many", &format!("manifests/{last}")).await), last, "and has them");
}

#[tokio::test]
async fn referrers_are_of_other_images_or_invalid_or_never_end() {
    let registry = Registry::start().await;
    let good = registry.hostile.good().to_owned();
    let path = format!("referrers/{good}");
    let mut subjects = Vec::new();
    for it in registry.json("subject", &path).await["manifests"].as_array().unwrap() {
        let manifest = registry.json("subject", &format!("manifests/{}", it["digest"].as_str().unwrap())).await;
        subjects.push(manifest["subject"]["digest"].as_str().map(str::to_owned));
    }
    assert_eq!(subjects.len(), 3);
    assert!(
        subjects[0] == Some(good.clone())
            && subjects[1].as_ref().is_some_and(|it| *it != good)
            && subjects[2].is_none()
    );

    let index = registry.json("referrers", &path).await;
    let digests = index["manifests"].as_array().unwrap().iter().map(|it| it["digest"].as_str().unwrap());
    assert!(digests.clone().count() > 5 && !digests.clone().any(is_digest));

    let mut seen = BTreeSet::new();
    let mut next = path;
    for _ in 0..20 {
        let page = registry.get("endless", &next).await;
        next = link(&page);
        let page: Value = page.json().await.unwrap();
        assert!(seen.insert(page["manifests"][0]["digest"].to_string()), "always a new one");
    }
}

/// The next page, behind the repository's name.
fn link(page: &Response) -> String {
    let link = header(page, LINK).unwrap();
    let (address, _) = link.trim_start_matches('<').split_once(">; rel=\"next\"").unwrap();
    address.trim_start_matches(&format!("/v2/{REPOSITORY}/")).to_owned()
}

#[tokio::test]
async fn pages_of_tags_never_end_or_repeat_or_lead_to_another_host() {
    let registry = Registry::start().await;
    let (mut tags, mut next) = (BTreeSet::new(), "tags/list".to_owned());
    for page in 1..=20 {
        let answer = registry.get("pages", &next).await;
        next = link(&answer);
        let answer: Value = answer.json().await.unwrap();
        tags.extend(answer["tags"].as_array().unwrap().iter().map(Value::to_string));
        assert_eq!(tags.len(), page * 10);
    }
    let second = link(&registry.get("circle", "tags/list").await);
    let third = link(&registry.get("circle", &second).await);
    assert_eq!(link(&registry.get("circle", &third).await), second);
    let elsewhere = link(&registry.get("elsewhere", "tags/list").await);
    assert!(elsewhere.starts_with(&format!("https://{BACKDOOR}/v2/")), "{elsewhere}");
}

#[tokio::test]
async fn errors_are_long_or_hold_terminal_sequences() {
    let registry = Registry::start().await;
    let mut statuses = Vec::new();
    for path in registry.others("error-long").await {
        let error = registry.get("error-long", &path).await;
        statuses.push(error.status().as_u16());
        let error: Value = error.json().await.unwrap();
        assert_eq!(error["errors"][0]["message"].as_str().map(str::len), Some(300 << 10));
    }
    assert_eq!(statuses, [400, 403, 404]);
    let error = registry.json("error-text", "manifests/t0").await;
    let message = error["errors"][0]["message"].as_str().unwrap();
    assert!(['\n', '\r', '\u{1b}', '\u{9b}', '\u{202e}'].iter().all(|it| message.contains(*it)));
}

#[tokio::test]
async fn huge_bodies_come_in_pieces_and_go_on() {
    let registry = Registry::start().await;
    let huge = [
        ("error-huge", "manifests/t0", 400),
        ("error-huge", "manifests/t2", 404),
        ("big-manifest", "manifests/t0", 200),
        ("big-manifest", "manifests/t1", 200),
        ("big-list", "tags/list", 200),
    ];
    for (name, path, status) in huge {
        let head = registry.ask(Method::HEAD, &format!("{name}.{DOMAIN}"), path).await;
        assert_eq!(head.status(), status, "{name}");
        let response = registry.get(name, path).await;
        assert_eq!((response.status().as_u16(), header(&response, CONTENT_LENGTH)), (status, None), "{name}");
        let (read, ended) = read_up_to(response, 8 * MEBIBYTE).await;
        assert!(read >= 8 * MEBIBYTE && !ended, "{name}: {read}");
    }
    let named = [
        named(&registry.get("big-manifest", "manifests/t0").await),
        named(&registry.get("big-manifest", "manifests/t1").await),
    ];
    assert!(named[0].as_deref().is_some_and(is_digest) && named[1].is_none());
}

#[tokio::test]
async fn a_huge_body_is_as_long_as_it_says() {
    let registry = Registry::start().await;
    let (read, ended) = read_up_to(registry.get("big-manifest", "manifests/t1").await, usize::MAX).await;
    assert!(ended && (200 * MEBIBYTE..201 * MEBIBYTE).contains(&read), "{read}");
}

#[tokio::test]
async fn a_busy_registry_always_asks_to_wait_a_minute() {
    let registry = Registry::start().await;
    assert_eq!(registry.tags("busy").await.len(), 40);
    for path in ["manifests/p0-1", "manifests/p0-1", "manifests/good"] {
        let answer = registry.get("busy", path).await;
        assert_eq!((answer.status().as_u16(), header(&answer, RETRY_AFTER).as_deref()), (429, Some("60")));
    }
}

#[tokio::test]
async fn a_slow_body_comes_a_byte_at_a_time() {
    let registry = Registry::start().await;
    let answered = registry.ask(Method::HEAD, &format!("drip.{DOMAIN}"), "manifests/t0").await;
    assert!(named(&answered).as_deref().is_some_and(is_digest), "what is asked for without a body is answered at once");
    let manifest = registry.get("drip", "manifests/t0").await;
    let layer = registry.json("drip", "manifests/t1").await["layers"][0]["digest"].take();
    let layer = registry.get("drip", &format!("blobs/{}", layer.as_str().unwrap())).await;
    let started = Instant::now();
    let (manifest, layer) = tokio::join!(read_up_to(manifest, 2), read_up_to(layer, 2));
    assert_eq!((manifest, layer), ((2, false), (2, false)));
    assert!(started.elapsed().as_secs_f64() > 1.9);
}

#[tokio::test]
async fn redirects_lead_to_forbidden_addresses() {
    let registry = Registry::start().await;
    for (name, place) in [
        ("to-http-loopback", "http://127.0.0.1:"),
        ("to-https-loopback", "https://127.0.0.1:"),
        ("to-localhost", "https://localhost:"),
        ("to-task-metadata", "http://169.254.170.2/"),
        ("to-link-local", "https://169.254.169.254/"),
        ("to-plain-http", "http://to-plain-http.hostile.example/"),
        ("to-and-fro", "/v2/a/manifests/good?page="),
    ] {
        for path in ["manifests/good", "tags/list"] {
            let answer = registry.get(name, path).await;
            let location = header(&answer, LOCATION).unwrap();
            assert!(answer.status() == 307 && location.starts_with(place), "{location}");
        }
    }
    let first = header(&registry.get("to-and-fro", "manifests/good").await, LOCATION).unwrap();
    let second = header(&registry.get("to-and-fro", first.trim_start_matches("/v2/a/")).await, LOCATION).unwrap();
    assert_ne!(first, second, "each is a new place");

    let place = header(&registry.get("to-http-loopback", "manifests/good").await, LOCATION).unwrap();
    registry.client.get(place).send().await.unwrap_err();
    assert_eq!(registry.hostile.trapped(), 1, "who goes there is seen");
}

#[tokio::test]
async fn tokens_come_from_other_hosts_and_logins_are_recorded() {
    let registry = Registry::start().await;
    for (name, place) in [
        ("realm", "https://realm-elsewhere.example/"),
        ("realm-plain-http", "http://realm-elsewhere.example/"),
        ("realm-http-loopback", "http://127.0.0.1:"),
        ("realm-https-loopback", "https://127.0.0.1:"),
        ("realm-link-local", "https://169.254.169.254/"),
    ] {
        let answer = registry.get(name, "manifests/good").await;
        let challenge = header(&answer, WWW_AUTHENTICATE).unwrap();
        assert!(answer.status() == 401 && challenge.starts_with(&format!("Bearer realm=\"{place}")), "{challenge}");
    }
    let answer = registry.get("111111111111.dkr.ecr.us-east-1", "manifests/good").await;
    assert!(answer.status() == 401 && header(&answer, WWW_AUTHENTICATE).unwrap().starts_with("Basic "));

    assert!(registry.hostile.authorizations().is_empty());
    let token = format!("https://{ELSEWHERE}/v2/a/token?scope=x");
    let request = registry.client.get(token).basic_auth("me", Some("hush"));
    let token: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(token["token"], "hostile");
    assert_eq!(registry.hostile.authorizations(), [(ELSEWHERE.to_owned(), "Basic bWU6aHVzaA==".to_owned())]);
    let last = registry.hostile.received().pop().unwrap();
    assert_eq!(
        (last.host.as_str(), last.method.as_str(), last.path.as_str()),
        (ELSEWHERE, "GET", "/v2/a/token?scope=x")
    );
}

#[tokio::test]
async fn injected_commands_could_write_as_any_user() {
    let tags = Registry::start().await;
    let pwned = tags.hostile.loot().join("PWNED");
    assert!(tags.tags("tags").await.iter().any(|tag| tag.contains(&format!(">>{}", pwned.display()))));
    assert_eq!(std::fs::read_dir(tags.hostile.loot()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_proxy_leads_hostile_hosts_there_without_a_login_and_ip_addresses_nowhere() {
    let Registry { hostile, proxy, client, _directory } = Registry::start().await;
    proxy.require_login(ECR_HOSTS, "QVdTOnNlY3JldA==");
    let get =
        async |host: &str| client.get(format!("https://{host}/v2/a/manifests/good")).send().await.unwrap().status();

    for host in ["hostile.example", "tags.hostile.example", BACKDOOR, ELSEWHERE] {
        assert_eq!(get(host).await, 200, "{host}");
    }
    let lookalike = "111111111111.dkr.ecr.us-east-1.hostile.example";
    let answer = client.get(format!("https://{lookalike}/v2/")).basic_auth("me", Some("hush")).send().await.unwrap();
    assert_eq!(header(&answer, WWW_AUTHENTICATE).as_deref(), Some("Basic realm=\"ECR\""), "the registry's own answer");
    assert_eq!(hostile.authorizations().len(), 1);
    client.get("https://169.254.169.254/").send().await.unwrap_err();
    assert_eq!(proxy.traffic(|host, _, _| host == "169.254.169.254").requests, 1, "but it is seen");
}
