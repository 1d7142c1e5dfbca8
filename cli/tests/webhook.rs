//! The command `ecr-transfer mirror webhook` as a process: the server with what `manifests` prints, and the examples of the page.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser as _;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize as _;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ecr-transfer");

const PAGE: &str = include_str!("../../docs/mirror/webhook.md");
const CHINESE: &str = include_str!("../../docs/mirror/webhook.zh.md");

const INVENTORY: &str = r#"{"version": 1, "registry": "111111111111.dkr.ecr.us-east-1.amazonaws.com", "repositories": [{
    "source": "docker.io/library/nginx",
    "destination": "111111111111.dkr.ecr.us-east-1.amazonaws.com/nginx",
    "images": [{ "tag": "1.27", "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000" }]
}]}"#;

/// The code blocks of a page, with their languages.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let fenced = page.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').expect("it has a line")).collect()
}

fn blocks_in(language: &str) -> Vec<&'static str> {
    blocks(PAGE).into_iter().filter(|block| block.0 == language).map(|block| block.1).collect()
}

fn yaml(text: &[u8]) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_slice(text);
    documents.map(|document| Value::deserialize(document).expect("it is YAML")).collect()
}

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
    let objects = yaml(&printed.stdout);
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).expect(kind);
    let webhook = &of_kind("MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"];
    let service = &webhook["service"];
    let text = |name: &str| service[name].as_str().expect("it is text").to_owned();
    let host = format!("{}.{}.svc", text("name"), text("namespace"));

    let directory = tempfile::tempdir().expect("there is room");
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).expect("it can be written");
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

    let listening = logged("Listening");
    let port = listening["port"].as_u64().expect("it is a number");
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

    let metrics = format!("http://127.0.0.1:{}/metrics", listening["metrics_port"]);
    let metrics = reqwest::get(metrics).await.expect("it answers").text().await.expect("it is text");
    let prefix = "ecr_transfer_webhook_";
    let in_alarms = blocks_in("yaml").concat();
    let in_alarms = in_alarms.split(prefix).skip(1).map(|it| it.split([' ', ')', '\n']).next().unwrap_or_default());
    let in_table = PAGE.lines().filter(|line| line.starts_with("| `") && line.contains("_"));
    let in_table = in_table.flat_map(|line| line.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2));
    let named: Vec<_> = in_alarms.chain(in_table).map(|name| name.trim_end_matches("{outcome}")).collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        assert!(metrics.contains(&format!("{prefix}{name}")), "{name} is not in {metrics}");
    }

    drop(client);
    kill_process(Pid::from_child(&server), Signal::TERM).expect("it runs");
    logged("Ending");
    assert!(server.wait().expect("it ends").success());
}

#[test]
fn both_pages_have_the_same_examples() {
    assert_eq!(blocks(PAGE), blocks(CHINESE));
    for json in blocks_in("json") {
        serde_json::from_str::<Value>(json).expect(json);
    }
    for text in blocks_in("yaml") {
        assert_eq!(yaml(text.as_bytes()).len(), 1);
    }
}

/// Runs all commands of the page, in their order. What they need of AWS and Kubernetes is in scripts of these names.
#[test]
fn the_commands_of_the_page_work() {
    let directory = tempfile::tempdir().expect("there is room");
    let write = |name: &str, script: &str| {
        let path = directory.path().join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\nset -euo pipefail\n{script}")).expect("it can be written");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("it can be executed");
    };
    write("aws", r#"if [[ $1 == cloudformation ]]; then echo plans; fi"#);
    write(
        "kubectl",
        r#"
echo "$*" >>kubectl.log
case $1 in
apply) cat "$3" >"applied-$(grep -c '^apply' kubectl.log).yaml" ;;
get) if [[ $2 == mutatingwebhookconfiguration ]]; then sed -n 's/ *caBundle: //p' applied-2.yaml; fi ;;
esac"#,
    );
    write(
        "ecr-transfer",
        r#"
if [[ $3 == push ]]; then
  printf '%s\n' ecr-transfer "$@" >push
  echo registry.example/ecr-transfer-webhook@sha256:0000000000000000000000000000000000000000000000000000000000000000
else
  exec "$PROGRAM" "$@"
fi"#,
    );
    let path = std::env::var("PATH").expect("it is set");
    let script = blocks_in("bash").concat();
    let done = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(&directory)
        .env("PATH", format!("{}:{path}", directory.path().display()))
        .env("PROGRAM", PROGRAM)
        .output()
        .expect("it runs");
    assert!(done.status.success(), "{done:?}");

    let applied = |number: usize| {
        yaml(&fs::read(directory.path().join(format!("applied-{number}.yaml"))).expect("it was applied"))
    };
    let arguments = |objects: &[Value]| {
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").expect("it is there");
        deployment["spec"]["template"]["spec"]["containers"][0]["args"].clone()
    };
    let ca_bundle = |objects: &[Value]| {
        let webhook = objects.iter().find(|object| object["kind"] == "MutatingWebhookConfiguration");
        decoded(&webhook.expect("it is there")["webhooks"][0]["clientConfig"]["caBundle"])
    };
    let has = |objects: &[Value], kind: &str| objects.iter().any(|object| object["kind"] == kind);
    assert_eq!(arguments(&applied(1)), json!(["--bucket=plans"]));
    assert_eq!(arguments(&applied(2)), json!(["--bucket=plans", "--dry-run"]));
    assert!(has(&applied(3), "Certificate") && !has(&applied(3), "Secret"));
    // From the dry run to changing images: the former authority stays trusted.
    assert_eq!(arguments(&applied(4)), json!(["--bucket=plans"]));
    let former = ca_bundle(&applied(2));
    assert!(ca_bundle(&applied(4)).ends_with(&former) && ca_bundle(&applied(4)).len() > former.len());
    assert!(has(&applied(5), "Certificate") && !has(&applied(5), "Secret"));
    assert!(!directory.path().join("applied-6.yaml").exists());

    let push = fs::read_to_string(directory.path().join("push")).expect("it was called");
    assert!(cli::Arguments::try_parse_from(push.lines()).is_ok(), "{push}");
}
