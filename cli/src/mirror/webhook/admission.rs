//! What a pod's images become: a function from an AdmissionReview to the answer, without a server around it.

use std::collections::{BTreeMap, HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shared::inventory::{Inventory, Match, Resolved};
use shared::text::Excerpt;

/// What a dry run sets on a pod: the images that its containers and volumes would use, as JSON.
pub const ANNOTATION: &str = "ecr-transfer/would-use";

/// The most bytes of all annotations of an object, keys and values. Kubernetes rejects an object with more.
const ANNOTATIONS_LIMIT: usize = 256 << 10;

/// The most images of a pod. One with more would keep other pods waiting.
const MOST_IMAGES: usize = 500;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// How images are rewritten.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Which images count as mirrored.
    pub matching: Match,
    /// Whether pods are only annotated.
    pub dry_run: bool,
}

/// The answer to a review, and what is worth a metric or a line in the log.
#[derive(Debug)]
pub struct Answer {
    /// The AdmissionReview to send. It always allows the request.
    pub review: Value,
    /// What became of the object.
    pub outcome: Outcome,
    /// The pod's namespace and name, for logs.
    pub pod: Excerpt,
    /// The images that were, or would be, rewritten.
    pub rewritten: Vec<Rewritten>,
    /// The number of images with a name at the mirror already.
    pub already_mirrored: u64,
    /// The number of images that the mirror does not have.
    pub not_mirrored: u64,
}

/// What became of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has other images now.
    Rewritten,
    /// Without the dry run, it would have other images now.
    WouldRewrite,
    /// None of its images is rewritten.
    Unchanged,
    /// It is not what this webhook is registered for, and unchanged.
    Unexpected(Excerpt),
}

/// The image of a container or a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rewritten {
    /// `/spec/containers/0/image`, for example.
    #[serde(skip)]
    pointer: String,
    /// The name of the container; of a volume, it is behind `volumes/`.
    pub name: Excerpt,
    /// The image in the request.
    pub image: String,
    /// Its name at the mirror.
    pub mirror: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: Request<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    uid: String,
    resource: Resource,
    sub_resource: Option<String>,
    operation: String,
    namespace: Option<String>,
    /// Parsed later: without the uid, a review with another object could not be answered.
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow)]
    old_object: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Resource {
    group: String,
    version: String,
    resource: String,
}

/// Every field is optional, and may be `null`, because Go writes an empty list in either way.
#[derive(Default, Deserialize)]
struct Pod {
    metadata: Option<Metadata>,
    spec: Option<Spec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    generate_name: Option<String>,
    annotations: Option<HashMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
    volumes: Option<Vec<Volume>>,
}

#[derive(Deserialize)]
struct Container {
    name: Option<String>,
    image: Option<String>,
}

#[derive(Deserialize)]
struct Volume {
    name: Option<String>,
    image: Option<ImageVolume>,
}

#[derive(Deserialize)]
struct ImageVolume {
    reference: Option<String>,
}

/// Which images of a pod a request can change.
enum Scope {
    /// A new pod: those of its containers and volumes.
    All,
    /// New ephemeral containers of a running pod. Kubernetes rejects a change of those that it has.
    NewEphemeral,
}

/// Answers an AdmissionReview. Whatever its object is, the request is allowed.
///
/// # Errors
/// If it is not an AdmissionReview, which cannot be answered.
pub fn answer(review: &[u8], inventory: &Inventory, rules: Rules) -> Result<Answer, Excerpt> {
    let review: Review = serde_json::from_slice(review).map_err(|error| Excerpt::new(&error.to_string()))?;
    let Review { api_version, kind, request } = review;
    if (api_version.as_str(), kind.as_str()) != (API_VERSION, KIND) {
        return Err(Excerpt::new(&format!("it is {api_version:?} {kind:?} instead of {API_VERSION} {KIND}")));
    }
    let mut answer = Answer {
        review: Value::Null,
        outcome: Outcome::Unchanged,
        pod: Excerpt::default(),
        rewritten: Vec::new(),
        already_mirrored: 0,
        not_mirrored: 0,
    };
    let patch = match request.pod() {
        Ok((pod, old, scope)) => {
            answer.pod = pod.full_name(request.namespace.as_deref());
            let images = pod.images(&old, &scope);
            if images.len() > MOST_IMAGES {
                answer.outcome = Outcome::Unexpected(Excerpt::new(&format!("the pod has {} images", images.len())));
                Vec::new()
            } else {
                images.into_iter().for_each(|used| answer.add(used, inventory, rules));
                answer.patch(&pod, &scope, rules)
            }
        }
        Err(problem) => {
            answer.outcome = Outcome::Unexpected(problem);
            Vec::new()
        }
    };
    let mut response = json!({ "uid": request.uid, "allowed": true });
    if !patch.is_empty() {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(Value::from(patch).to_string()).into();
    }
    answer.review = json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response });
    Ok(answer)
}

impl Request<'_> {
    /// The pod, the pod that it replaces, and its containers that may change.
    fn pod(&self) -> Result<(Pod, Pod, Scope), Excerpt> {
        let Resource { group, version, resource } = &self.resource;
        let sub_resource = self.sub_resource.as_deref().unwrap_or_default();
        let scope = match (group.as_str(), version.as_str(), resource.as_str(), sub_resource, self.operation.as_str()) {
            ("", "v1", "pods", "", "CREATE") => Scope::All,
            ("", "v1", "pods", "ephemeralcontainers", "UPDATE") => Scope::NewEphemeral,
            _ => {
                let operation = &self.operation;
                return Err(Excerpt::new(&format!("{operation} of {group}/{version}/{resource}/{sub_resource}")));
            }
        };
        let object = self.object.ok_or_else(|| Excerpt::new("the request has no object"))?;
        let parse = |json: &RawValue| {
            serde_json::from_str::<Pod>(json.get())
                .map_err(|error| Excerpt::new(&format!("the object is not a pod: {error}")))
        };
        Ok((parse(object)?, self.old_object.map(parse).transpose()?.unwrap_or_default(), scope))
    }
}

impl Pod {
    fn full_name(&self, namespace: Option<&str>) -> Excerpt {
        let metadata = self.metadata.as_ref();
        let name = metadata.and_then(|it| it.name.as_deref().or(it.generate_name.as_deref())).unwrap_or_default();
        Excerpt::new(&format!("{}/{name}", namespace.unwrap_or_default()))
    }

    /// The images in `scope`.
    fn images(&self, old: &Self, scope: &Scope) -> Vec<Used<'_>> {
        let (Some(spec), old) = (&self.spec, old.spec.as_ref()) else { return Vec::new() };
        let ephemeral = used("ephemeralContainers", &spec.ephemeral_containers);
        match scope {
            Scope::All => {
                let volumes = spec.volumes.iter().flatten().enumerate().filter_map(|(index, volume)| {
                    Some(Used {
                        pointer: format!("/spec/volumes/{index}/image/reference"),
                        name: format!("volumes/{}", volume.name.as_deref().unwrap_or_default()),
                        image: volume.image.as_ref()?.reference.as_deref()?,
                    })
                });
                let containers = used("initContainers", &spec.init_containers);
                containers.chain(used("containers", &spec.containers)).chain(ephemeral).chain(volumes).collect()
            }
            Scope::NewEphemeral => {
                let old: HashSet<_> = old
                    .iter()
                    .flat_map(|spec| used("ephemeralContainers", &spec.ephemeral_containers))
                    .map(|it| it.name)
                    .collect();
                ephemeral.filter(|it| !old.contains(&it.name)).collect()
            }
        }
    }
}

/// An image that a pod uses.
struct Used<'a> {
    pointer: String,
    name: String,
    image: &'a str,
}

/// The images of a list of containers.
fn used<'a>(list: &'static str, containers: &'a Option<Vec<Container>>) -> impl Iterator<Item = Used<'a>> {
    containers.iter().flatten().enumerate().filter_map(move |(index, container)| {
        Some(Used {
            pointer: format!("/spec/{list}/{index}/image"),
            name: container.name.clone().unwrap_or_default(),
            image: container.image.as_deref()?,
        })
    })
}

impl Answer {
    fn add(&mut self, Used { pointer, name, image }: Used<'_>, inventory: &Inventory, rules: Rules) {
        match inventory.resolve(image, rules.matching) {
            Ok(Resolved::Mirrored(mirror)) => self.rewritten.push(Rewritten {
                pointer,
                name: Excerpt::new(&name),
                image: image.to_owned(),
                mirror: mirror.to_string(),
            }),
            Ok(Resolved::AlreadyMirrored) => self.already_mirrored += 1,
            Err(_) => self.not_mirrored += 1,
        }
    }

    /// The JSON Patch. Each of its operations applies: the API server rejects a pod whose patch does not, whatever the
    /// failurePolicy is.
    fn patch(&mut self, pod: &Pod, scope: &Scope, rules: Rules) -> Vec<Value> {
        if self.rewritten.is_empty() {
            return Vec::new();
        }
        if !rules.dry_run {
            self.outcome = Outcome::Rewritten;
            let replace = |it: &Rewritten| json!({ "op": "replace", "path": it.pointer, "value": it.mirror });
            return self.rewritten.iter().map(replace).collect();
        }
        self.outcome = Outcome::WouldRewrite;
        match (scope, &pod.metadata) {
            (Scope::All, Some(metadata)) => self.annotation(metadata).into_iter().collect(),
            // The API server ignores other changes of such a request.
            _ => Vec::new(),
        }
    }

    /// `None` if the pod has no room for it.
    fn annotation(&self, metadata: &Metadata) -> Option<Value> {
        let images: BTreeMap<_, _> = self.rewritten.iter().map(|it| (it.name.as_str(), it.mirror.as_str())).collect();
        let text = json!(images).to_string();
        let present = metadata.annotations.iter().flatten().filter(|(key, _)| *key != ANNOTATION);
        let size = |(key, value): (&String, &String)| key.len() + value.len();
        if present.map(size).sum::<usize>() + ANNOTATION.len() + text.len() > ANNOTATIONS_LIMIT {
            return None;
        }
        Some(match metadata.annotations {
            Some(_) => {
                let key = ANNOTATION.replace('/', "~1");
                json!({ "op": "add", "path": format!("/metadata/annotations/{key}"), "value": text })
            }
            None => json!({ "op": "add", "path": "/metadata/annotations", "value": { ANNOTATION: text } }),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::inventory::{MirroredImage, MirroredRepository};

    use super::*;

    const HOST: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

    fn inventory() -> Inventory {
        let mut inventory = Inventory::new(HOST.parse().expect("it is a host"));
        for (source, name, tags) in [
            ("docker.io/library/nginx", "hub/nginx", &["1.27", "latest"][..]),
            ("quay.io/coreos/etcd", "quay/etcd", &["v3"]),
        ] {
            inventory.add(MirroredRepository {
                source: source.parse().expect(source),
                destination: format!("{HOST}/{name}").parse().expect(name),
                images: tags.iter().map(|tag| MirroredImage { tag: tag.parse().ok(), digest: digest(tag) }).collect(),
            });
        }
        inventory
    }

    fn digest(content: &str) -> shared::reference::Digest {
        shared::reference::Digest::of(content.as_bytes())
    }

    fn container(name: &str, image: &str) -> Value {
        json!({ "name": name, "image": image, "resources": {} })
    }

    fn created(pod: &Value) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "resource": { "group": "", "version": "v1", "resource": "pods" },
                "namespace": "shop",
                "operation": "CREATE",
                "userInfo": { "username": "admin" },
                "object": pod,
                "oldObject": null,
                "dryRun": false,
            },
        })
    }

    /// The answer, and the object with the patch applied. Each operation of the patch must apply.
    fn admitted(review: &Value, rules: Rules) -> (Answer, Value) {
        let answer = answer(review.to_string().as_bytes(), &inventory(), rules).expect("it is a review");
        let response = &answer.review["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&review["request"]["uid"], &json!(true)));
        let mut object = review["request"]["object"].clone();
        if let Some(patch) = response["patch"].as_str() {
            assert_eq!(response["patchType"], "JSONPatch");
            let patch: Vec<Value> =
                serde_json::from_slice(&STANDARD.decode(patch).expect("it is base64")).expect("it is JSON");
            patch.iter().for_each(|operation| apply(&mut object, operation));
        }
        (answer, object)
    }

    fn apply(object: &mut Value, operation: &Value) {
        let path = operation["path"].as_str().expect("it has a path");
        let (parent, key) = path.rsplit_once('/').expect("it is a pointer");
        let parent = object.pointer_mut(parent).expect("the parent exists");
        let key = key.replace("~1", "/");
        match operation["op"].as_str() {
            Some("replace") => *parent.get_mut(&key).expect("it exists") = operation["value"].clone(),
            Some("add") => {
                parent.as_object_mut().expect("it is an object").insert(key, operation["value"].clone());
            }
            other => panic!("{other:?}"),
        }
    }

    fn dry_run() -> Rules {
        Rules { dry_run: true, ..Rules::default() }
    }

    #[test]
    fn the_images_of_all_containers_and_volumes_are_rewritten_and_nothing_else_changes() {
        let pinned = format!("nginx:1.26@{}", digest("1.27"));
        let pod = |mirror: bool| {
            let name = |image: &str, copy: String| if mirror { copy } else { image.to_owned() };
            json!({
                "metadata": { "generateName": "web-", "labels": { "app": "web" } },
                "spec": {
                    "initContainers": [container("init", &name("docker.io/nginx", format!("{HOST}/hub/nginx:latest")))],
                    "containers": [
                        container("web", &name("nginx:1.27", format!("{HOST}/hub/nginx:1.27"))),
                        container("redis", "redis:8"),
                        container("old", "nginx:1.26"),
                        container("copy", &format!("{HOST}/hub/nginx:1.27")),
                        container("pinned", &name(&pinned, format!("{HOST}/hub/{pinned}"))),
                        container("local", "localhost:5000/nginx:1.27"),
                    ],
                    "ephemeralContainers": [
                        container("debug", &name("quay.io/coreos/etcd:v3", format!("{HOST}/quay/etcd:v3"))),
                    ],
                    "volumes": [
                        { "name": "nginx:1.27", "emptyDir": {} },
                        { "name": "files", "image": { "reference": name("nginx:1.27", format!("{HOST}/hub/nginx:1.27")) } },
                        { "name": "other", "image": { "reference": "redis" } },
                        { "name": "none", "image": {} },
                    ],
                },
            })
        };
        let (answer, object) = admitted(&created(&pod(false)), Rules::default());
        assert_eq!(object, pod(true));
        assert_eq!(answer.outcome, Outcome::Rewritten);
        assert_eq!((answer.rewritten.len(), answer.already_mirrored, answer.not_mirrored), (5, 1, 4));
        assert_eq!(answer.pod.as_str(), "shop/web-");
    }

    #[test]
    fn a_repository_is_enough_if_the_rules_say_so() {
        let pod = json!({ "spec": { "containers": [container("web", "nginx:1.28"), container("redis", "redis")] } });
        let rules = Rules { matching: Match::Repository, dry_run: false };
        let (_, object) = admitted(&created(&pod), rules);
        assert_eq!(object["spec"]["containers"][0]["image"], format!("{HOST}/hub/nginx:1.28"));
        assert_eq!(object["spec"]["containers"][1]["image"], "redis");
    }

    #[test]
    fn new_ephemeral_containers_are_rewritten_and_those_of_the_running_pod_stay() {
        let pod = |ephemeral: &[Value]| {
            let containers = json!([container("web", "nginx:1.27")]);
            json!({ "metadata": {}, "spec": { "containers": containers, "ephemeralContainers": ephemeral } })
        };
        let mut review = created(&pod(&[container("first", "nginx:1.27"), container("second", "nginx")]));
        review["request"]["operation"] = "UPDATE".into();
        review["request"]["subResource"] = "ephemeralcontainers".into();
        review["request"]["oldObject"] = pod(&[container("first", "nginx:1.27")]);
        let (answer, object) = admitted(&review, Rules::default());
        let second = container("second", &format!("{HOST}/hub/nginx:latest"));
        assert_eq!(object, pod(&[container("first", "nginx:1.27"), second]));
        assert_eq!(answer.outcome, Outcome::Rewritten);

        let (answer, object) = admitted(&review, dry_run());
        assert_eq!(answer.outcome, Outcome::WouldRewrite);
        // The API server would ignore an annotation here.
        assert_eq!(object, review["request"]["object"]);
    }

    #[test]
    fn a_pod_with_very_many_images_stays() {
        for count in [MOST_IMAGES, MOST_IMAGES + 1] {
            let containers = vec![container("web", "nginx:1.27"); count];
            let (answer, object) =
                admitted(&created(&json!({ "spec": { "containers": containers } })), Rules::default());
            let is_rewritten = object["spec"]["containers"][0]["image"] != "nginx:1.27";
            assert_eq!(
                (is_rewritten, answer.outcome == Outcome::Rewritten),
                (count == MOST_IMAGES, count == MOST_IMAGES)
            );
        }
    }

    #[test]
    fn a_dry_run_only_annotates() {
        let nginx = format!("{HOST}/hub/nginx:latest");
        let images = json!({ "init": format!("{HOST}/quay/etcd:v3"), "volumes/web": nginx, "web": nginx });
        let spec = json!({
            "initContainers": [container("init", "quay.io/coreos/etcd:v3")],
            "containers": [container("web", "nginx"), container("redis", "redis")],
            "volumes": [{ "name": "web", "image": { "reference": "nginx" } }],
        });
        for annotations in [None, Some(json!({ "a/b": "c" })), Some(json!({ ANNOTATION: "old" }))] {
            let mut pod = json!({ "metadata": { "name": "web" }, "spec": spec });
            if let Some(annotations) = &annotations {
                pod["metadata"]["annotations"] = annotations.clone();
            }
            let (answer, object) = admitted(&created(&pod), dry_run());
            pod["metadata"]["annotations"][ANNOTATION] = images.to_string().into();
            assert_eq!(object, pod);
            assert_eq!(answer.outcome, Outcome::WouldRewrite);
        }
        let other = json!({ "metadata": {}, "spec": { "containers": [container("redis", "redis")] } });
        let (answer, object) = admitted(&created(&other), dry_run());
        assert_eq!((answer.outcome, object), (Outcome::Unchanged, other));
    }

    #[test]
    fn a_dry_run_never_makes_a_pod_invalid() {
        let pod = |length: usize| {
            let annotations = json!({ "large": "x".repeat(length) });
            json!({ "metadata": { "annotations": annotations }, "spec": { "containers": [container("web", "nginx")] } })
        };
        let text = json!({ "web": format!("{HOST}/hub/nginx:latest") }).to_string();
        let room = ANNOTATIONS_LIMIT - "large".len() - ANNOTATION.len() - text.len();
        let (_, object) = admitted(&created(&pod(room)), dry_run());
        assert_eq!(object["metadata"]["annotations"][ANNOTATION], text);
        let (answer, object) = admitted(&created(&pod(room + 1)), dry_run());
        assert_eq!((answer.outcome, object), (Outcome::WouldRewrite, pod(room + 1)));
    }

    #[test]
    fn what_is_not_a_new_pod_is_allowed_and_unchanged() {
        let pod = json!({ "spec": { "containers": [container("web", "nginx:1.27")] } });
        let with = |pointer: &str, value: Value| {
            let mut review = created(&pod);
            *review["request"].pointer_mut(pointer).expect(pointer) = value;
            review
        };
        for (review, problem) in [
            (with("/operation", "UPDATE".into()), "UPDATE of /v1/pods/"),
            (with("/operation", "DELETE".into()), "DELETE of /v1/pods/"),
            (with("/resource/resource", "deployments".into()), "CREATE of /v1/deployments/"),
            (with("/resource/version", "v2".into()), "CREATE of /v2/pods/"),
            (with("/object", Value::Null), "the request has no object"),
            (with("/object", json!([])), "the object is not a pod: "),
            (with("/object", json!("nginx")), "the object is not a pod: "),
            (with("/object/spec", json!(1)), "the object is not a pod: "),
            (with("/object/spec/containers", json!({})), "the object is not a pod: "),
            (with("/object/spec/containers/0/image", json!(1)), "the object is not a pod: "),
            (with("/oldObject", json!({ "spec": 1 })), "the object is not a pod: "),
        ] {
            let (answer, object) = admitted(&review, Rules::default());
            let Outcome::Unexpected(text) = &answer.outcome else { panic!("{:?}: {review}", answer.outcome) };
            assert!(text.as_str().starts_with(problem), "{text}");
            assert_eq!(object, review["request"]["object"]);
        }
    }

    #[test]
    fn an_empty_pod_is_unchanged() {
        let no_image = json!({ "spec": { "containers": [{ "name": "web" }, { "image": "" }, { "image": null }, {}] } });
        for pod in [
            json!({}),
            json!({ "spec": {} }),
            json!({ "metadata": null, "spec": null }),
            json!({ "spec": { "containers": null, "initContainers": [] } }),
            no_image,
        ] {
            let (answer, object) = admitted(&created(&pod), Rules::default());
            assert_eq!((answer.outcome, object), (Outcome::Unchanged, pod));
        }
    }

    #[test]
    fn what_is_not_a_review_is_an_error() {
        let deep = "[".repeat(100_000);
        let with = |old, new| created(&json!({})).to_string().replace(old, new);
        let v1beta1 = with("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
        let conversion = with("AdmissionReview", "ConversionReview");
        let no_kind = with("\"kind\":\"AdmissionReview\",", "");
        let [v1beta1, conversion, no_kind] = [&v1beta1, &conversion, &no_kind].map(String::as_str);
        for text in
            ["", "{}", "null", "[]", "{\"request\": {}}", &deep, v1beta1, conversion, no_kind, "\u{0}", "{\"a\"}"]
        {
            assert!(answer(text.as_bytes(), &inventory(), Rules::default()).is_err(), "{}", Excerpt::new(text));
        }
        assert!(answer(b"{\"apiVersion\": \"\xff\"}", &inventory(), Rules::default()).is_err());
    }

    /// Images as people write them, most of them of the inventory.
    fn image() -> impl Strategy<Value = String> {
        let name = "(docker[.]io/|index[.]docker[.]io/|localhost:5000/)?(library/)?nginx|quay[.]io/coreos/etcd|redis";
        let tag = "(:(1[.]27|latest|v3|1[.]28))?";
        let with_digest = prop_oneof![Just(None), Just(Some("1.27")), Just(Some("v3")), Just(Some("none"))];
        let known = (name, tag, with_digest).prop_map(|(name, tag, with_digest)| {
            let digest = with_digest.map(|content| format!("@{}", digest(content))).unwrap_or_default();
            format!("{name}{tag}{digest}")
        });
        prop_oneof![4 => known, 1 => Just(format!("{HOST}/hub/nginx:1.27")), 1 => "[a-z0-9./:@-]{0,20}", 1 => "\\PC{0,20}"]
    }

    proptest! {
        #[test]
        fn each_image_becomes_what_the_inventory_says(
            images in proptest::collection::vec(image(), 0..12),
            first in 0..12_usize,
            second in 0..12_usize,
            repository in any::<bool>(),
        ) {
            let matching = if repository { Match::Repository } else { Match::Image };
            let pod = |images: &[String]| {
                let (a, b) = (first.min(second).min(images.len()), first.max(second).min(images.len()));
                let list = |images: &[String]| images.iter().map(|image| container("x", image)).collect::<Vec<_>>();
                json!({ "metadata": {}, "spec": {
                    "containers": list(&images[..a]),
                    "initContainers": list(&images[a..b]),
                    "ephemeralContainers": list(&images[b..]),
                } })
            };
            let resolved: Vec<_> = images
                .iter()
                .map(|image| match inventory().resolve(image, matching) {
                    Ok(Resolved::Mirrored(mirror)) => mirror.to_string(),
                    _ => image.clone(),
                })
                .collect();
            let (_, object) = admitted(&created(&pod(&images)), Rules { matching, dry_run: false });
            prop_assert_eq!(object, pod(&resolved));
        }

        #[test]
        fn no_input_is_a_panic(text in "\\PC{0,200}|[\\x00-\\xff]{0,50}|([\\[\\]{}:,\"0-9ne]{0,60})") {
            drop(answer(text.as_bytes(), &inventory(), Rules::default()));
            // The same as the object of a request.
            let review = created(&json!({})).to_string().replace("\"object\":{}", &format!("\"object\":{text}"));
            if let Ok(answer) = answer(review.as_bytes(), &inventory(), Rules::default()) {
                prop_assert_eq!(&answer.review["response"]["allowed"], &json!(true));
            }
        }
    }
}
