//! Tests with registries whose responses the tests define.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response as Answer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::net::SocketAddr;

use reqwest::header::{AUTHORIZATION, HOST, LINK, RETRY_AFTER, WWW_AUTHENTICATE};

use super::http::ALL_ANSWERS;
use super::*;

/// A client that uses HTTP, and retries without a long delay.
pub fn client() -> Client {
    let retry = ExponentialBuilder::default().with_min_delay(Duration::from_millis(1));
    Client::with("http", reqwest::Client::builder(), retry).expect("it needs no certificates")
}

/// Starts a registry, and returns its host for image references.
pub async fn serve(answer: impl Fn(&Request<Body>) -> Answer<Body> + Clone + Send + Sync + 'static) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let address: SocketAddr = listener.local_addr().expect("it is bound");
    let router = Router::new().fallback(move |request: Request<Body>| {
        let answer = answer(&request);
        async move { answer }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    address.to_string()
}

pub fn status(code: u16) -> Answer<Body> {
    Answer::builder().status(code).body(Body::empty()).expect("it is an answer")
}

pub fn json(value: &serde_json::Value) -> Answer<Body> {
    Answer::new(Body::from(value.to_string()))
}

fn repository(host: &str) -> Repository {
    format!("{host}/team/app").parse().expect(host)
}

fn query(request: &Request<Body>, name: &str) -> Option<String> {
    let url = Url::parse(&format!("http://host{}", request.uri())).expect("it is a URL");
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn page(from: usize, length: usize) -> serde_json::Value {
    let tags: Vec<_> = (from..from + length).map(|number| format!("{number:06}")).collect();
    serde_json::json!({ "name": "team/app", "tags": tags })
}

async fn tags(host: &str) -> Result<Option<usize>> {
    count(&client().open(&repository(host), None).await?).await
}

async fn count(session: &Session<'_>) -> Result<Option<usize>> {
    Ok(session.tags().await?.map(|list| list.tags.len()))
}

/// A registry with this number of tags, and with Link. Returns its host and the number of requested pages.
async fn linking(count: usize) -> (String, Arc<AtomicUsize>) {
    let pages = Arc::<AtomicUsize>::default();
    let asked = Arc::clone(&pages);
    let host = serve(move |request| {
        if !request.uri().path().ends_with("/tags/list") {
            return status(200);
        }
        asked.fetch_add(1, Ordering::Relaxed);
        let from: usize = query(request, "next").and_then(|from| from.parse().ok()).unwrap_or_default();
        let length: usize = query(request, "n").and_then(|n| n.parse().ok()).unwrap_or(100);
        let to = count.min(from + length);
        let mut answer = json(&page(from, to - from));
        if to < count {
            let link = format!("</v2/team/app/tags/list?n={length}&next={to}>; rel=\"next\"");
            answer.headers_mut().insert(LINK, link.parse().expect("it is a header"));
        }
        answer
    })
    .await;
    (host, pages)
}

#[tokio::test]
async fn every_page_of_tags_is_read_at_full_size() {
    for (count, pages) in [(0, 1), (1, 1), (100, 1), (101, 1), (999, 1), (1_000, 2), (1_001, 2), (2_500, 3)] {
        let (host, asked) = linking(count).await;
        assert_eq!(tags(&host).await.expect("it answers"), Some(count));
        // After a page that is exactly full, one more is requested, because the registry may not support Link.
        assert_eq!(asked.load(Ordering::Relaxed), pages, "{count}");
    }
}

#[tokio::test]
async fn pages_of_a_registry_without_link_are_requested_by_the_last_tag() {
    let host = serve(|request| {
        let from = query(request, "last").and_then(|last| last.parse::<usize>().ok()).map_or(0, |last| last + 1);
        json(&page(from, 1_500_usize.saturating_sub(from).min(PAGE)))
    })
    .await;
    assert_eq!(tags(&host).await.expect("it answers"), Some(1_500));
}

#[tokio::test]
async fn a_registry_that_ignores_the_page_size_is_read_once() {
    let host = serve(|_| json(&page(0, 3_000))).await;
    assert_eq!(tags(&host).await.expect("it answers"), Some(3_000));
}

#[tokio::test]
async fn a_loop_of_pages_and_a_page_on_another_host_are_errors() {
    for (link, problem) in [
        ("</v2/team/app/tags/list?n=1000>; rel=\"next\"", "form a loop"),
        ("<http://elsewhere.example/v2/team/app/tags/list>; rel=\"next\"", "on another host"),
    ] {
        let host = serve(move |_| {
            let mut answer = json(&page(0, 10));
            answer.headers_mut().insert(LINK, link.parse().expect("it is a header"));
            answer
        })
        .await;
        let error = tags(&host).await.expect_err("there is more");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test]
async fn a_page_that_fails_is_retried_and_then_an_error() {
    let (failing, asked) = (Arc::new(AtomicUsize::new(2)), Arc::<AtomicUsize>::default());
    let (left, count) = (Arc::clone(&failing), Arc::clone(&asked));
    let host = serve(move |request| {
        if !request.uri().path().ends_with("/tags/list") {
            return status(200);
        }
        count.fetch_add(1, Ordering::Relaxed);
        let fails = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails { status(429) } else { json(&page(0, 3)) }
    })
    .await;
    assert_eq!(tags(&host).await.expect("the third attempt succeeds"), Some(3));
    assert_eq!(asked.load(Ordering::Relaxed), 3);

    failing.store(usize::MAX, Ordering::Relaxed);
    let error = tags(&host).await.expect_err("it never answers");
    assert_eq!(error.name(), "ServiceUnavailable");
    assert!(error.to_string().contains("429 Too Many Requests"), "{error}");
}

#[tokio::test]
async fn a_login_is_sent_to_the_token_url_and_the_token_to_the_registry() {
    let host = serve(|request| {
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let host = request.headers()[HOST].to_str().unwrap_or_default();
        match request.uri().path() {
            "/token" => {
                let is_valid = query(request, "service").as_deref() == Some("the registry")
                    && query(request, "scope").as_deref() == Some("repository:team/app:pull")
                    && authorization == Some(&format!("Basic {}", STANDARD.encode("me:hush")));
                if is_valid { json(&serde_json::json!({ "token": "t0ken" })) } else { status(403) }
            }
            _ if authorization == Some("Bearer t0ken") => json(&page(0, 1)),
            _ => {
                let mut answer = status(401);
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"the registry\"");
                answer.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().expect("it is a header"));
                answer
            }
        }
    })
    .await;
    let login =
        |token: &str| Login { host: repository(&host).registry, token: STANDARD.encode(token), expires_at: None };
    let client = client();
    let session = client.open(&repository(&host), Some(login("me:hush"))).await.expect("the password is right");
    assert_eq!(count(&session).await.expect("it answers"), Some(1));
    let refused = client.open(&repository(&host), Some(login("me:wrong"))).await.err().expect("the password is wrong");
    assert_eq!(refused.name(), "AccessDenied");
}

#[tokio::test]
async fn a_login_is_sent_to_a_registry_with_basic_authentication() {
    let host = serve(|request| {
        let is_user = request.headers().get(AUTHORIZATION).is_some_and(|it| it == "Basic bWU6aHVzaA==");
        if is_user {
            return json(&page(0, 1));
        }
        let mut answer = status(401);
        answer.headers_mut().insert(WWW_AUTHENTICATE, "Basic realm=\"r\"".parse().expect("it is a header"));
        answer
    })
    .await;
    let client = client();
    let login = Login { host: repository(&host).registry, token: "bWU6aHVzaA==".into(), expires_at: None };
    let session = client.open(&repository(&host), Some(login)).await.expect("it has answered");
    assert_eq!(count(&session).await.expect("it answers"), Some(1));
    let session = client.open(&repository(&host), None).await.expect("it has answered");
    assert_eq!(count(&session).await.expect("it answers"), None);
}

fn with_header(mut answer: Answer<Body>, name: &'static str, value: &str) -> Answer<Body> {
    answer.headers_mut().insert(name, value.parse().expect("it is a header"));
    answer
}

#[tokio::test]
async fn the_digest_of_a_manifest_is_in_the_header_or_calculated() {
    let digest = Digest::of(b"named");
    let host = serve(move |request| {
        let answer = match request.uri().path() {
            "/v2/team/app/manifests/named" => {
                let answer = with_header(status(200), "docker-content-digest", &digest.to_string());
                with_header(answer, "ratelimit-remaining", "76;w=21600")
            }
            "/v2/team/app/manifests/unnamed" => Answer::new(Body::from("{}")),
            "/v2/team/app/manifests/wrong" => with_header(status(200), "docker-content-digest", "sha256:$(id)"),
            _ => {
                let mut answer = json(&serde_json::json!({ "errors": [{ "message": "manifest unknown" }] }));
                *answer.status_mut() = StatusCode::NOT_FOUND;
                answer
            }
        };
        with_header(answer, "content-type", "application/vnd.oci.image.index.v1+json")
    })
    .await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    assert_eq!(session.head("named").await.expect("it answers"), Head { digest, is_index: true });
    assert_eq!(client.pulls_left(), None, "it is not Docker Hub");
    let unnamed = session.head("unnamed").await.expect("it answers");
    assert_eq!(unnamed, Head { digest: Digest::of(b"{}"), is_index: true });
    for (tag, problem) in
        [("missing", "404 Not Found: manifest unknown"), ("wrong", r#""sha256:$(id)" is not a digest"#)]
    {
        let error = session.head(tag).await.expect_err(tag).to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[tokio::test]
async fn docker_hubs_remaining_pulls_are_known_for_a_user_only() {
    let host = serve(|request| match request.uri().path() {
        "/v2/" => with_header(status(401), "www-authenticate", "Basic realm=\"r\""),
        _ => {
            let answer = with_header(status(200), "docker-content-digest", &Digest::of(b"").to_string());
            with_header(answer, "ratelimit-remaining", "76;w=21600")
        }
    })
    .await;
    let address = host.parse().expect("it is an address");
    let docker_hub: Repository = "docker.io/library/nginx".parse().expect("it is a repository");
    let login = Login { host: docker_hub.registry.clone(), token: "bWU6aHVzaA==".into(), expires_at: None };
    for (login, left) in [(None, None), (Some(login), Some(76))] {
        let http = reqwest::Client::builder().resolve("registry-1.docker.io", address);
        let client = Client::with("http", http, ExponentialBuilder::default()).expect("it needs no certificates");
        let session = client.open(&docker_hub, login).await.expect("it has answered");
        session.head("latest").await.expect("it answers");
        assert_eq!(client.pulls_left(), left);
    }
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_an_error() {
    let host = serve(|_| Answer::new(Body::from("{}"))).await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    session.manifest(Digest::of(b"{}")).await.expect("it has this digest");
    let error = session.manifest(Digest::of(b"other")).await.expect_err("it has another digest").to_string();
    assert!(error.contains("has another digest"), "{error}");
}

#[tokio::test]
async fn referrers_are_listed_if_the_registry_has_the_api() {
    let [one, two, three] = ["1", "2", "3"].map(|content| Digest::of(content.as_bytes()));
    let host = serve(move |request| match request.uri().path() {
        path if path == format!("/v2/team/app/referrers/{one}") => {
            json(&serde_json::json!({ "manifests": [{ "digest": two }] }))
        }
        "/v2/" => status(200),
        _ => status(404),
    })
    .await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    assert_eq!(session.referrers(one).await.expect("it answers"), [two]);
    assert!(session.referrers(three).await.expect("it answers").is_empty());
}

#[tokio::test]
async fn referrers_that_cannot_be_listed_are_an_error_and_others_are_still_requested() {
    let [refused, one] = ["refused", "1"].map(|content| Digest::of(content.as_bytes()));
    let host = serve(move |request| match request.uri().path() {
        "/v2/" => status(200),
        path if path.ends_with(&one.to_string()) => json(&serde_json::json!({ "manifests": [{ "digest": one }] })),
        _ => status(405),
    })
    .await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    let error = session.referrers(refused).await.expect_err("it is refused");
    assert!(error.to_string().ends_with("returned 405 Method Not Allowed"), "{error}");
    assert_eq!(session.referrers(one).await.expect("it answers"), [one]);
}

#[tokio::test]
async fn invalid_tags_are_counted_and_never_requested() {
    let evil = "1 due[$(id)]\n> evil.example/backdoor d.example/prod";
    let host =
        serve(move |_| json(&serde_json::json!({ "tags": ["1", evil, "\u{1b}[31m", "1", "x".repeat(10_000)] }))).await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    let list = session.tags().await.expect("it answers").expect("there are tags");
    assert_eq!(list.tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["1"]);
    let (count, first) = list.invalid.expect("some are invalid");
    assert_eq!(count, 3);
    assert!(!first.as_str().contains('\n') && first.as_str().chars().count() <= INVALID_TAG, "{first}");
}

/// The errors of all requests to a registry that answers each of them in the same way.
async fn errors(answer: impl Fn(&Request<Body>) -> Answer<Body> + Clone + Send + Sync + 'static) -> String {
    let host = serve(move |request| if request.uri().path() == "/v2/" { status(200) } else { answer(request) }).await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    let digest = Digest::of(b"");
    let errors =
        [session.tags().await.err(), session.manifest(digest).await.err(), session.referrers(digest).await.err()];
    errors.into_iter().flatten().map(|error| error.to_string()).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_response_that_is_too_large_is_an_error_with_the_limit() {
    let endless = |code: u16| {
        let chunk = Ok::<_, std::convert::Infallible>(vec![b'x'; 1 << 16]);
        let body = Body::from_stream(futures_util::stream::repeat(chunk));
        Answer::builder().status(code).body(body).expect("it is an answer")
    };
    let too_large = errors(move |_| endless(200)).await;
    assert_eq!(too_large.matches("exceeds the limit of 4194304 bytes").count(), 3, "{too_large}");
    let failed = errors(move |_| endless(500)).await;
    assert_eq!(failed.matches("returned 500 Internal Server Error").count(), 3, "{failed}");
}

/// A recorded error of a registry.
#[derive(Clone, Deserialize)]
struct Recorded {
    /// The request: `manifests`, `tags` or `token`.
    path: String,
    status: u16,
    code: Option<String>,
    message: Option<String>,
    body: Option<String>,
    kind: String,
    seen: String,
}

impl Recorded {
    fn answer(&self) -> Answer<Body> {
        let errors = || serde_json::json!({ "errors": [{ "code": self.code, "message": self.message }] }).to_string();
        let body = Body::from(self.body.clone().unwrap_or_else(errors));
        Answer::builder().status(self.status).body(body).expect("it is an answer")
    }
}

#[tokio::test]
async fn each_recorded_error_of_a_registry_has_its_kind() {
    let file = include_str!("../../../shared/tests/data/errors.json");
    let mut file: serde_json::Value = serde_json::from_str(file).expect("it is JSON");
    let all: Vec<Recorded> = serde_json::from_value(file["registries"].take()).expect("they are errors");
    for recorded in all {
        let answer = recorded.clone();
        let host = serve(move |request| match request.uri().path() {
            "/v2/" if answer.path == "token" => {
                let host = request.headers()[HOST].to_str().unwrap_or_default();
                with_header(status(401), "www-authenticate", &format!("Bearer realm=\"http://{host}/token\""))
            }
            "/v2/" => status(200),
            _ => answer.answer(),
        })
        .await;
        let client = client();
        let asked = async {
            let session = client.open(&repository(&host), None).await?;
            match recorded.path.as_str() {
                "tags" => session.tags().await.map(drop),
                _ => session.manifest(Digest::of(b"")).await.map(drop),
            }
        };
        let error = asked.await.expect_err(&recorded.seen);
        assert_eq!(format!("{:?}", error.kind()), recorded.kind, "{error} ({})", recorded.seen);
        let message = recorded.message.unwrap_or_default();
        assert!(error.to_string().contains(&message), "{error}");
    }
}

#[tokio::test]
async fn an_error_is_shortened_and_escaped() {
    let errors = errors(|_| {
        let message = format!("\u{1b}[31m{}", "x".repeat(30_000));
        let mut answer = json(&serde_json::json!({ "errors": [{ "message": message }] }));
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        answer
    })
    .await;
    assert!(errors.contains(r"\u{1b}[31mxxx") && !errors.contains('\u{1b}'), "{errors}");
    assert!(errors.lines().all(|error| error.chars().count() < Excerpt::LIMIT + 100), "{errors}");
}

#[tokio::test]
async fn an_endless_list_is_an_error_with_the_limit() {
    let too_many_pages = errors(|request| {
        let page: usize = query(request, "page").and_then(|page| page.parse().ok()).unwrap_or_default();
        let body = serde_json::json!({ "tags": [page.to_string()], "manifests": [] });
        let next = format!("<{}?page={}>; rel=\"next\"", request.uri().path(), page + 1);
        with_header(json(&body), "link", &next)
    })
    .await;
    for list in ["tag list", "list of referrers"] {
        assert!(too_many_pages.contains(&format!("the {list} exceeds the limit of 1000 pages")), "{too_many_pages}");
    }

    let too_many_items = errors(|request| {
        let page: usize = query(request, "page").and_then(|page| page.parse().ok()).unwrap_or_default();
        let tags: Vec<_> = (0..20_000).map(|number| format!("{page}-{number}")).collect();
        let digests: Vec<_> =
            (0..400).map(|n| serde_json::json!({ "digest": Digest::of(format!("{page}{n}").as_bytes()) })).collect();
        let body = serde_json::json!({ "tags": tags, "manifests": digests });
        let next = format!("<{}?page={}>; rel=\"next\"", request.uri().path(), page + 1);
        with_header(json(&body), "link", &next)
    })
    .await;
    for limit in ["the repository exceeds the limit of 100000 tags", " exceeds the limit of 1000 referrers"] {
        assert!(too_many_items.contains(limit), "{too_many_items}");
    }
}

#[tokio::test]
async fn a_registry_has_a_time_limit_for_all_requests() {
    let host = serve(|request| {
        if request.uri().path() == "/v2/" {
            return status(200);
        }
        let mut answer = status(429);
        answer.headers_mut().insert(RETRY_AFTER, "60".parse().expect("it is a header"));
        answer
    })
    .await;
    let client = Client { time: Duration::from_millis(200), ..client() };
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    let asked = futures_util::future::join_all((0..40).map(|tag| {
        let session = &session;
        async move { session.head(&tag.to_string()).await }
    }));
    for head in asked.await {
        let error = head.expect_err("it is never answered");
        assert_eq!(error.name(), "RequestRefused", "it is not retried");
        assert!(error.to_string().contains("exceeds the limit of 0 seconds per run"), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_to_another_scheme_and_too_many_redirects_are_errors() {
    let errors = errors(|request| {
        let next = match request.uri().path() {
            path if path.contains("manifests") => "https://169.254.169.254/".to_owned(),
            path => format!("{path}/x"),
        };
        with_header(status(307), "location", &next)
    })
    .await;
    assert!(errors.contains("redirect to https://169.254.169.254/, which is not a public http URL"), "{errors}");
    assert!(errors.contains("more than 5 redirects"), "{errors}");
}

#[tokio::test]
async fn a_login_is_never_sent_to_another_host_by_redirects() {
    let shown = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&shown);
    let elsewhere = serve(move |request| {
        count.fetch_add(usize::from(request.headers().contains_key(AUTHORIZATION)), Ordering::Relaxed);
        with_header(status(307), "location", &format!("{}/again", request.uri().path()))
    })
    .await;
    let host = serve(move |request| match request.uri().path() {
        "/v2/" => with_header(status(401), "www-authenticate", "Basic realm=\"r\""),
        path => with_header(status(307), "location", &format!("http://{elsewhere}{path}")),
    })
    .await;
    let client = client();
    let login = Login { host: repository(&host).registry, token: "bWU6aHVzaA==".into(), expires_at: None };
    let session = client.open(&repository(&host), Some(login)).await.expect("it has answered");
    let error = session.tags().await.expect_err("the other host redirects, too").to_string();
    assert!(error.contains("redirect from another host"), "{error}");
    assert_eq!(shown.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_registry_has_a_limit_for_the_bytes_of_all_responses() {
    let host = serve(|_| json(&serde_json::json!({ "tags": ["1"] }))).await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    session.tags().await.expect("it is below the limit");
    session.host.sent.store(ALL_ANSWERS + 1, Ordering::Relaxed);
    let error = session.tags().await.expect_err("it is above the limit").to_string();
    assert!(error.contains("exceeds the limit of 268435456 bytes per run"), "{error}");
}

#[tokio::test]
async fn a_password_is_not_sent_to_a_token_url_that_is_not_public() {
    for realm in ["https://169.254.169.254/token", "file:///token", "not an address"] {
        let host =
            serve(move |_| with_header(status(401), "www-authenticate", &format!("Bearer realm=\"{realm}\""))).await;
        let login = Login { host: repository(&host).registry, token: "bWU6aHVzaA==".into(), expires_at: None };
        let error = client().open(&repository(&host), Some(login)).await.err().expect(realm).to_string();
        assert!(error.contains("is not a public http URL") && error.contains(realm), "{error}");
    }
}

#[tokio::test]
async fn only_public_addresses_are_requested() {
    let client = Client::new().expect("there are certificates");
    for host in ["127.0.0.1:9001", "localhost", "169.254.170.2", "10.0.0.1:5000"] {
        let error = client.open(&repository(host), None).await.err().expect(host).to_string();
        assert!(error.contains("the registry's address is not public"), "{error}");
    }
}

#[tokio::test]
async fn a_host_is_asked_once_how_it_is_logged_in_to_for_all_its_repositories() {
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    let host = serve(move |request| {
        if request.uri().path() == "/v2/" {
            count.fetch_add(1, Ordering::Relaxed);
        }
        status(200)
    })
    .await;
    let client = client();
    for name in ["team/app", "team/tool"] {
        let repository = format!("{host}/{name}").parse().expect(name);
        client.open(&repository, None).await.expect("it needs no login");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn as_many_tags_and_referrers_as_are_allowed_are_listed() {
    let host = serve(|request| match request.uri().path() {
        "/v2/team/app/tags/list" => json(&page(0, TAGS)),
        _ => {
            let digest = |n: usize| serde_json::json!({ "digest": Digest::of(&n.to_le_bytes()) });
            json(&serde_json::json!({ "manifests": (0..REFERRERS).map(digest).collect::<Vec<_>>() }))
        }
    })
    .await;
    assert_eq!(tags(&host).await.expect("they are allowed"), Some(TAGS));
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    assert_eq!(session.referrers(Digest::of(b"1")).await.expect("they are allowed").len(), REFERRERS);
}

#[tokio::test]
async fn a_registry_that_shows_no_referrers_or_a_page_for_people_has_none() {
    let [closed, page] = ["closed", "page"].map(|content| Digest::of(content.as_bytes()));
    let host = serve(move |request| match request.uri().path() {
        "/v2/" => status(200),
        path if path.ends_with(&closed.to_string()) => status(403),
        _ => with_header(Answer::new(Body::from("<html>")), "content-type", "text/html"),
    })
    .await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    for digest in [closed, page] {
        assert_eq!(session.referrers(digest).await.expect("it answers"), []);
    }
}

#[tokio::test]
async fn redirects_are_followed_up_to_the_limit() {
    let host = serve(|request| {
        let followed: usize = query(request, "n").and_then(|n| n.parse().ok()).unwrap_or_default();
        if request.uri().path() == "/v2/" {
            status(200)
        } else if followed < REDIRECTS {
            with_header(status(307), "location", &format!("{}?n={}", request.uri().path(), followed + 1))
        } else {
            with_header(status(200), "docker-content-digest", &Digest::of(b"").to_string())
        }
    })
    .await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    assert_eq!(session.head("1").await.expect("it leads there").digest, Digest::of(b""));
}

#[tokio::test]
async fn a_registry_redirects_to_ten_hosts_at_most() {
    let host = serve(|request| {
        let (path, asked) = (request.uri().path(), request.headers()[HOST].to_str().unwrap_or_default());
        match path.rsplit_once("/manifests/") {
            Some((_, number)) if asked.starts_with("127.0.0.1:") => {
                let port = asked.rsplit(':').next().unwrap_or_default();
                with_header(status(307), "location", &format!("http://h{number}.example:{port}{path}"))
            }
            _ => with_header(status(200), "docker-content-digest", &Digest::of(b"").to_string()),
        }
    })
    .await;
    let address: SocketAddr = host.parse().expect("it is an address");
    let http =
        (0..=10).fold(reqwest::Client::builder(), |http, number| http.resolve(&format!("h{number}.example"), address));
    let client = Client::with("http", http, ExponentialBuilder::default()).expect("it needs no certificates");
    let session = client.open(&repository(&host), None).await.expect("it needs no login");
    for number in 0..10 {
        session.head(&number.to_string()).await.expect("it leads to one more");
    }
    let error = session.head("10").await.expect_err("these are too many").to_string();
    assert!(error.contains("more than 10 hosts"), "{error}");
}

#[tokio::test]
async fn a_refused_token_is_replaced_only_if_it_can_have_expired() {
    let tokens = Arc::<AtomicUsize>::default();
    let given = Arc::clone(&tokens);
    let host = serve(move |request| {
        let host = request.headers()[HOST].to_str().unwrap_or_default();
        if request.uri().path() == "/token" {
            let number = given.fetch_add(1, Ordering::Relaxed) + 1;
            return json(&serde_json::json!({ "token": format!("t{number}") }));
        }
        if request.headers().get(AUTHORIZATION).is_some_and(|it| it == "Bearer t2") {
            return json(&page(0, 1));
        }
        with_header(status(401), "www-authenticate", &format!("Bearer realm=\"http://{host}/token\""))
    })
    .await;
    let client = client();
    let session = client.open(&repository(&host), None).await.expect("it gets a token");
    assert_eq!(count(&session).await.expect("it answers"), None);
    assert_eq!(tokens.load(Ordering::Relaxed), 1, "a new token would be refused, too");

    let earlier = Instant::now().checked_sub(Duration::from_secs(120)).expect("the machine runs for longer");
    if let Some((_, since)) = &mut *session.authorization.lock().expect("nobody else has it") {
        *since = earlier;
    }
    assert_eq!(count(&session).await.expect("it answers"), Some(1));
    assert_eq!(tokens.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_registry_that_does_not_state_its_login_fails_unless_it_hides_its_root() {
    let open = async |code: u16, location: &'static str| {
        let host = serve(move |_| with_header(status(code), "location", location)).await;
        client().open(&repository(&host), None).await.map(drop)
    };
    assert_eq!(open(503, "").await.expect_err("it may answer later").name(), "ServiceUnavailable");
    open(307, "https://169.254.169.254/").await.expect_err("it leads to where it must not");
    open(404, "").await.expect("the repository's own answer will tell");
}
