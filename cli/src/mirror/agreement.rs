//! All ways to use the mirror agree on what an image becomes. The policy is compared with `resolve` in tests/kubernetes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};
use shared::inventory::{Inventory, Match, MirroredImage, MirroredRepository, Resolved};
use shared::reference::{Digest, ImageReference};

use super::rewrite::uses::{Names, name_of};
use super::rewrite::{FileType, Rewritten, images, parse};
use super::webhook::admission::{Rules, answer};
use super::{helm_values, kustomize};

const HOST: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

const SOURCES: [&str; 6] = [
    "docker.io/library/nginx",
    "docker.io/team/app",
    "quay.io/coreos/etcd",
    "localhost:5000/x",
    "harbor.example:8443/a/b",
    // The mirror is a source itself.
    "111111111111.dkr.ecr.us-east-1.amazonaws.com/app",
];

const NAMES: [&str; 12] = [
    "nginx",
    "library/nginx",
    "docker.io/nginx",
    "index.docker.io/library/nginx",
    "team/app",
    "Docker.io/team/app",
    "quay.io/coreos/etcd",
    "localhost:5000/x",
    "harbor.example:8443/a/b",
    "111111111111.dkr.ecr.us-east-1.amazonaws.com/app",
    "111111111111.dkr.ecr.us-east-1.amazonaws.com/copies/0",
    "redis",
];

const TAGS: [&str; 3] = ["1", "v2.0-alpine", "latest"];

/// What becomes of an image; `None` if the way has no option for such names.
type Way = fn(&str, Names<'_>) -> Option<String>;

const WAYS: [(&str, Way); 7] = [
    ("Kubernetes", |image, names| Some(in_yaml(&pod(image), "/spec/containers/0/image", names))),
    ("Compose", |image, names| {
        Some(in_yaml(&json!({ "services": { "a": { "image": image } } }), "/services/a/image", names))
    }),
    ("ECS", |image, names| {
        let task = json!({ "containerDefinitions": [{ "image": image }] }).to_string();
        let task = Rewritten::new(FileType::Yaml, &task, names).expect("it is JSON").text;
        let task: Value = serde_json::from_str(&task).expect(&task);
        task["containerDefinitions"][0]["image"].as_str().map(str::to_owned)
    }),
    ("Dockerfile", |image, names| {
        let text = Rewritten::new(FileType::Dockerfile, &format!("FROM {image}\n"), names).expect(image).text;
        text.strip_prefix("FROM ")?.strip_suffix('\n').map(str::to_owned)
    }),
    ("Helm", |image, names| {
        let values = yaml(&json!({ "image": image }));
        let values = vec![helm_values::Text::new(&values).expect(&values)];
        let values = helm_values::overriding(values, names).expect(image).text;
        let values: Value = serde_yaml_ng::from_str(&values).expect(&values);
        Some(values["image"].as_str().unwrap_or(image).to_owned())
    }),
    ("Kustomize", |image, names| {
        let (mut entries, text) = (kustomize::Entries::new(), yaml(&pod(image)));
        kustomize::add(&mut entries, images::find(&text, &parse(&text).expect("it is YAML"), names));
        let component: Value = serde_yaml_ng::from_str(&kustomize::component(entries)).expect("it is YAML");
        let (name, mut entries) = (name_of(image), component["images"].as_array().into_iter().flatten());
        let name =
            entries.find(|entry| entry["name"] == name).map_or(name, |entry| entry["newName"].as_str().expect(name));
        (names.matching == Match::Image).then(|| name.to_owned() + &image[name_of(image).len()..])
    }),
    ("webhook", |image, names| {
        let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "1",
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "operation": "CREATE",
            "object": pod(image),
        } });
        let rules = Rules { matching: names.matching, dry_run: false };
        let answer = answer(review.to_string().as_bytes(), names.inventory, rules).expect(image).review;
        let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap_or_default()).expect("it is base64");
        let patch: Value = serde_json::from_slice(&patch).unwrap_or_default();
        Some(patch[0]["value"].as_str().unwrap_or(image).to_owned())
    }),
];

fn pod(image: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": [{ "name": "a", "image": image }] } })
}

fn yaml(value: &Value) -> String {
    serde_yaml_ng::to_string(value).expect("it is YAML")
}

/// The image of a file after `mirror rewrite`.
fn in_yaml(file: &Value, pointer: &str, names: Names<'_>) -> String {
    let text = Rewritten::new(FileType::Yaml, &yaml(file), names).expect("it is YAML").text;
    let file: Value = serde_yaml_ng::from_str(&text).expect(&text);
    file.pointer(pointer).and_then(Value::as_str).expect(&text).to_owned()
}

/// A reference with the tag that it means. Kustomize adds none.
fn complete(image: &str) -> String {
    match image.parse::<ImageReference>() {
        Ok(image) if image.tag.is_none() && image.digest.is_none() => format!("{image}:latest"),
        Ok(image) => image.to_string(),
        Err(_) => image.to_owned(),
    }
}

fn digest(content: &str) -> Digest {
    Digest::of(content.as_bytes())
}

fn inventory() -> impl Strategy<Value = Inventory> {
    let images = (subsequence(TAGS.to_vec(), 0..=TAGS.len()), any::<bool>()).prop_map(|(tags, has_untagged)| {
        let tagged = tags.into_iter().map(|tag| MirroredImage { tag: tag.parse().ok(), digest: digest(tag) });
        tagged.chain(has_untagged.then(|| MirroredImage { tag: None, digest: digest("untagged") })).collect::<Vec<_>>()
    });
    vec((0..SOURCES.len(), images), 0..8).prop_map(|repositories| {
        let mut inventory = Inventory::new(HOST.parse().expect("it is a host"));
        for (index, images) in repositories {
            let source = SOURCES[index].parse().expect("it is a repository");
            let destination = format!("{HOST}/copies/{index}").parse().expect("it is a repository");
            inventory.add(MirroredRepository { source, destination, images });
        }
        inventory
    })
}

fn image() -> impl Strategy<Value = String> {
    let content = prop_oneof![3 => Just(None), 1 => select(vec!["1", "untagged", "none"]).prop_map(Some)];
    let parts = (select(NAMES.to_vec()), select(vec!["", ":1", ":v2.0-alpine", ":latest", ":none"]), content);
    let known = parts.prop_map(|(name, tag, content)| {
        let digest = content.map(|content| format!("@{}", digest(content))).unwrap_or_default();
        format!("{name}{tag}{digest}")
    });
    prop_oneof![8 => known, 1 => "[a-zA-Z0-9][a-zA-Z0-9./:@_-]{0,20}"]
}

proptest! {
    #[test]
    fn all_ways_agree(inventory in inventory(), images in vec(image(), 1..8), repository: bool) {
        let names = Names { inventory: &inventory, matching: if repository { Match::Repository } else { Match::Image } };
        for image in images {
            let expected = match inventory.resolve(&image, names.matching) {
                Ok(Resolved::Mirrored(mirror)) => mirror.to_string(),
                _ => complete(&image),
            };
            for (way, becomes) in WAYS {
                let actual = becomes(&image, names).map(|image| complete(&image));
                prop_assert!(actual.as_ref().is_none_or(|actual| *actual == expected), "{way}: {image}: {actual:?}, not {expected}");
            }
        }
    }
}
