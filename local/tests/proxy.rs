//! The intercepting proxy, as a client over TLS sees it.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use local::proxy::{Action, ECR_HOSTS, Fault, Kind, Pattern, Proxy, Traffic, Upstream};
use reqwest::{Certificate, Client};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const ECR: &str = "https://111111111111.dkr.ecr.us-east-1.amazonaws.com/v2/a/manifests/1";
const PUBLIC: &str = "https://quay.io/v2/a/blobs/sha256:0";

struct Network {
    proxy: Proxy,
    client: Client,
    _directory: TempDir,
}

impl Network {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let upstream = Upstream { ecr: server("ecr").await, public: Some(server("public").await) };
        let proxy = Proxy::start(upstream, directory.path()).await.unwrap();
        let bundle = std::fs::read(proxy.ca_bundle()).unwrap();
        let roots = Certificate::from_pem_bundle(&bundle).unwrap();
        let client =
            Client::builder().proxy(reqwest::Proxy::https(proxy.url()).unwrap()).tls_certs_only(roots).build().unwrap();
        Self { proxy, client, _directory: directory }
    }

    async fn get(&self, url: &str) -> Result<String, reqwest::Error> {
        self.client.get(url).send().await?.text().await
    }
}

fn any() -> Pattern {
    Pattern::new("*", "*")
}

/// A server that answers every request with its own name and the request's `Host`.
async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(answer(connection, name));
        }
    });
    address
}

async fn answer(mut connection: TcpStream, name: &str) {
    let mut request = Vec::new();
    while connection.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let host = head.split_once("host: ").unwrap().1.lines().next().unwrap();
            let body = format!("{name} {host}");
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            connection.write_all(answer.as_bytes()).await.unwrap();
            request.clear();
        }
    }
}

#[tokio::test]
async fn each_host_leads_to_its_stand_in_which_sees_the_name() {
    let network = Network::start().await;
    assert_eq!(network.get(PUBLIC).await.unwrap(), "public quay.io");
    let got = network.proxy.traffic(|host, method, kind| host == "quay.io" && method == "GET" && kind == Kind::Blob);
    assert_eq!(got, Traffic { requests: 1, sent: 0, received: 14 });
}

#[tokio::test]
async fn ecr_requires_its_login() {
    let network = Network::start().await;
    let ask = |login: &'static str| network.client.get(ECR).basic_auth("AWS", Some(login)).send();
    assert_eq!(ask("secret").await.unwrap().status(), StatusCode::UNAUTHORIZED);

    network.proxy.require_login(ECR_HOSTS, "QVdTOnNlY3JldA==");
    let refused = ask("wrong").await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        refused.headers()["www-authenticate"],
        "Basic realm=\"https://111111111111.dkr.ecr.us-east-1.amazonaws.com/\",service=\"ecr.amazonaws.com\""
    );
    let accepted = ask("secret").await.unwrap();
    assert_eq!(accepted.text().await.unwrap(), "ecr 111111111111.dkr.ecr.us-east-1.amazonaws.com");
}

#[tokio::test]
async fn a_status_is_returned_as_often_as_it_was_injected() {
    let network = Network::start().await;
    let wait = vec![(HeaderName::from_static("retry-after"), HeaderValue::from_static("1"))];
    let action = Action::Status(StatusCode::TOO_MANY_REQUESTS, wait);
    let fault =
        network.proxy.inject(Fault::new(Pattern::new("quay.io", "*/blobs/*").method(Method::GET), action).times(2));
    for expected in [429, 429, 200] {
        assert_eq!(network.client.get(PUBLIC).send().await.unwrap().status(), expected);
    }
    assert_eq!(fault.hits(), 2);
}

#[tokio::test]
async fn a_connection_breaks_before_or_in_the_middle_of_an_answer() {
    let network = Network::start().await;
    network.proxy.inject(Fault::new(any(), Action::Reset));
    network.client.get(PUBLIC).send().await.unwrap_err();

    network.proxy.inject(Fault::new(any(), Action::Truncate(5)));
    let answer = network.client.get(PUBLIC).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer.bytes().await.unwrap_err();

    assert_eq!(network.get(PUBLIC).await.unwrap(), "public quay.io");
}

#[tokio::test]
async fn a_stalled_request_goes_on_when_the_fault_is_lifted() {
    let network = Network::start().await;
    let fault = network.proxy.inject(Fault::new(Pattern::new("quay.io", "/v2/a/blobs/*"), Action::Stall).always());
    let request = tokio::spawn(network.client.get(PUBLIC).send());
    fault.hit(1).await;
    assert!(!request.is_finished());
    fault.lift();
    assert_eq!(request.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn requests_take_as_long_as_the_latency() {
    let network = Network::start().await;
    const LATENCY: Duration = Duration::from_millis(80);
    network.proxy.set_latency(LATENCY);
    let started = std::time::Instant::now();
    network.get(PUBLIC).await.unwrap();
    assert!(started.elapsed() >= LATENCY);
}
