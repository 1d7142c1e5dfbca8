//! The command `ecr-transfer mirror webhook serve` as a process, with the certificate of the printed manifests.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize as _;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ecr-transfer");

const INVENTORY: &str = r#"{"version": 1, "registry": "111111111111.dkr.ecr.us-east-1.amazonaws.com", "repositories": [{
    "source": "docker.io/library/nginx",
    "destination": "111111111111.dkr.ecr.us-east-1.amazonaws.com/nginx",
    "images": [{ "tag": "1.27", "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000" }]
}]}"#;

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().expect("it is text")).expect("it is base64")
}

#[tokio::test]
async fn the_server_of_the_manifests_answers_the_api_server_until_it_is_terminated() {
    let printed = Command::new(PROGRAM)
        .args(["mirror", "webhook", "manifests", "--image", "registry.example/webhook:1", "--bucket", "plans"])
        .output()
        .expect("it runs");
    assert!(printed.status.success(), "{printed:?}");
    let documents = serde_yaml_ng::Deserializer::from_slice(&printed.stdout);
    let objects: Vec<_> = documents.map(|it| Value::deserialize(it).expect("it is YAML")).collect();
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).expect(kind);
    let webhook = &of_kind("MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"];
    let service = &webhook["service"];
    let text = |name: &str| service[name].as_str().expect("it is text").to_owned();
    let host = format!("{}.{}.svc", text("name"), text("namespace"));

    let directory = tempfile::tempdir().expect("there is room");
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).expect("it can be written");
        path
    };
    let secret = &of_kind("Secret")["data"];
    let mut server = Command::new(PROGRAM)
        .args(["mirror", "webhook", "serve", "--port=0", "--metrics-port=0", "--grace=0"])
        .arg("--inventory")
        .arg(file("inventory.json", INVENTORY.as_bytes()))
        .arg("--certificate")
        .arg(file("tls.crt", &decoded(&secret["tls.crt"])))
        .arg("--key")
        .arg(file("tls.key", &decoded(&secret["tls.key"])))
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let log = BufReader::new(server.stderr.take().expect("it is piped")).lines();
    let mut log = log.map(|line| serde_json::from_str::<Value>(&line.expect("it is text")).expect("it is JSON"));
    let mut logged = |message: &str| log.find(|line| line["message"] == message).expect(message);

    let port = logged("Listening")["port"].as_u64().expect("it is a number");
    logged("A new inventory is in use");
    let ca = reqwest::Certificate::from_pem(&decoded(&webhook["caBundle"])).expect("it is PEM");
    let address = ([127, 0, 0, 1], u16::try_from(port).expect("it is a port")).into();
    let client =
        reqwest::Client::builder().tls_certs_only([ca]).resolve(&host, address).build().expect("it is complete");
    let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "1",
        "resource": { "group": "", "version": "v1", "resource": "pods" },
        "operation": "CREATE",
        "namespace": "shop",
        "object": { "metadata": { "name": "web" }, "spec": { "containers": [{ "name": "web", "image": "nginx:1.27" }] } },
    } });
    let url = format!("https://{host}:{port}{}", text("path"));
    let answer: Value =
        client.post(url).json(&review).send().await.expect("it answers").json().await.expect("it is JSON");
    let patch: Value = serde_json::from_slice(&decoded(&answer["response"]["patch"])).expect("it is JSON");
    let image = "111111111111.dkr.ecr.us-east-1.amazonaws.com/nginx:1.27";
    assert_eq!(patch, json!([{ "op": "replace", "path": "/spec/containers/0/image", "value": image }]));
    let line = logged("Rewritten");
    assert_eq!(line["pod"], "shop/web");
    let images: Value = serde_json::from_str(line["images"].as_str().expect("it is text")).expect("it is JSON");
    assert_eq!(images, json!([{ "name": "web", "image": "nginx:1.27", "mirror": image }]));

    drop(client);
    kill_process(Pid::from_child(&server), Signal::TERM).expect("it runs");
    logged("Ending");
    assert!(server.wait().expect("it ends").success());
}
