//! Tests with small files: before, after, and what is reported.

use std::fmt::Write as _;

use proptest::prelude::*;
use shared::inventory::{Inventory, Match, MirroredImage, MirroredRepository};
use shared::reference::Digest;

use super::uses::Names;
use super::*;

/// The mirror.
pub const HOST: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

/// What the mirror has.
pub fn inventory() -> Inventory {
    let mut inventory = Inventory::new(HOST.parse().expect("it is a host"));
    for (source, name, tags) in [
        ("docker.io/library/nginx", "hub/nginx", &["1.27", "latest"] as &[_]),
        ("docker.io/library/redis", "hub/redis", &["7", "7.2"]),
        ("docker.io/bitnami/redis", "hub/bitnami/redis", &["7.2"]),
        ("docker.io/docker/dockerfile", "hub/docker/dockerfile", &["1"]),
        ("quay.io/coreos/etcd", "quay/etcd", &["v3"]),
        ("quay.io/team/number", "123", &["1"]),
    ] {
        inventory.add(MirroredRepository {
            source: source.parse().expect(source),
            destination: format!("{HOST}/{name}").parse().expect(name),
            images: tags
                .iter()
                .map(|tag| MirroredImage { tag: Some(tag.parse().expect(tag)), digest: Digest::of(tag.as_bytes()) })
                .collect(),
        });
    }
    inventory
}

fn rewritten(file_type: FileType, matching: Match, text: &str) -> Rewritten {
    let inventory = inventory();
    Rewritten::new(file_type, text, Names { inventory: &inventory, matching }).expect(text)
}

/// The result with `…` for the mirror's host, and below a line what is left.
fn result(file_type: FileType, matching: Match, text: &str) -> String {
    let rewritten = rewritten(file_type, matching, text);
    let mut result = rewritten.text.replace(HOST, "…");
    for Left { line, image, reason } in rewritten.left {
        write!(result, "\n!{line} {image}: {reason}").expect("memory does not fail");
    }
    result
}

fn yaml(text: &str) -> String {
    result(FileType::Yaml, Match::Image, text)
}

fn dockerfile(text: &str) -> String {
    result(FileType::Dockerfile, Match::Image, text)
}

fn assert_pairs(rewrite: fn(&str) -> String, pairs: &[(&str, &str)]) {
    for (before, after) in pairs {
        assert_eq!(rewrite(before), *after, "{before}");
    }
}

#[test]
fn all_containers_of_kubernetes_are_rewritten() {
    assert_eq!(
        yaml(
            "# A comment: nginx
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {image: nginx}}
spec:
  template:
    spec:
      initContainers:
        - {name: init, image: docker.io/nginx:1.27}   # kept
      containers:
      - name: web
        image:   \"nginx\"
        env: [{name: image, value: nginx}]
      - name: other
        image: memcached:1.6
      ephemeralContainers: [{name: debug, image: 'quay.io/coreos/etcd:v3'}]
      volumes:
      - name: model
        image: {reference: redis:7, pullPolicy: Always}
---
apiVersion: v1
kind: List
items:
- apiVersion: batch/v1
  kind: CronJob
  spec: {jobTemplate: {spec: {template: {spec: {containers: [image: nginx]}}}}}
"
        ),
        "# A comment: nginx
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {image: nginx}}
spec:
  template:
    spec:
      initContainers:
        - {name: init, image: …/hub/nginx:1.27}   # kept
      containers:
      - name: web
        image:   \"…/hub/nginx:latest\"
        env: [{name: image, value: nginx}]
      - name: other
        image: memcached:1.6
      ephemeralContainers: [{name: debug, image: '…/quay/etcd:v3'}]
      volumes:
      - name: model
        image: {reference: …/hub/redis:7, pullPolicy: Always}
---
apiVersion: v1
kind: List
items:
- apiVersion: batch/v1
  kind: CronJob
  spec: {jobTemplate: {spec: {template: {spec: {containers: [image: …/hub/nginx:latest]}}}}}

!15 memcached:1.6: the repository docker.io/library/memcached is not mirrored"
    );
}

#[test]
fn other_fields_of_kubernetes_stay() {
    for text in [
        "apiVersion: v1\nkind: ConfigMap\ndata: {image: nginx, containers: nginx}\n",
        "apiVersion: example.com/v1\nkind: Machine\nspec: {image: nginx}\n",
        "apiVersion: v1\nkind: Pod\nspec: {containers: nginx}\n",
        "apiVersion: v1\nkind: Pod\nspec: {containers: [nginx, {image: }, {image: null}, {image: [nginx]}]}\n",
        "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: …/hub/nginx:none}]}\n",
    ] {
        assert_eq!(yaml(&text.replace('…', HOST)), text);
    }
}

#[test]
fn the_style_of_a_scalar_stays() {
    assert_pairs(
        yaml,
        &[
            ("image: nginx", "image: …/hub/nginx:latest"),
            ("{image: nginx}", "{image: …/hub/nginx:latest}"),
            ("image: 'nginx' # x\n", "image: '…/hub/nginx:latest' # x\n"),
            (r#"image: "\x6eginx""#, r#"image: "…/hub/nginx:latest""#),
            ("image: !!str nginx\n", "image: !!str …/hub/nginx:latest\n"),
            ("image: ! nginx\n", "image: ! …/hub/nginx:latest\n"),
            ("image: >-\n  nginx:1.27\nb: 1\n", "image: >-\n  …/hub/nginx:1.27\nb: 1\n"),
            ("image: |-  # x\n   nginx\n\n\nb: 1\n", "image: |-  # x\n   …/hub/nginx:latest\n\n\nb: 1\n"),
            ("image:\n  nginx:1.27\n", "image:\n  …/hub/nginx:1.27\n"),
            ("? image\n: nginx\n", "? image\n: …/hub/nginx:latest\n"),
            ("é: 你好 🎉\nimage: nginx # é\n", "é: 你好 🎉\nimage: …/hub/nginx:latest # é\n"),
            (
                "\u{feff}image: nginx\r\nb: |\r\n  x\r\nc: {image: nginx}\r\n",
                "\u{feff}image: …/hub/nginx:latest\r\nb: |\r\n  x\r\nc: {image: …/hub/nginx:latest}\r\n",
            ),
            (
                "%YAML 1.2\n---\nimage: nginx\n...\n---\nimage: redis:7\n",
                "%YAML 1.2\n---\nimage: …/hub/nginx:latest\n...\n---\nimage: …/hub/redis:7\n",
            ),
            ("# nothing\n", "# nothing\n"),
            ("", ""),
        ],
    );
}

#[test]
fn variables_and_other_types_stay() {
    assert_pairs(
        yaml,
        &[
            ("image: nginx:${TAG}", "image: nginx:${TAG}\n!1 nginx:${TAG}: it contains a variable"),
            ("image: '{{ .image }}'", "image: '{{ .image }}'\n!1 {{ .image }}: it contains a variable"),
            ("image: !Ref Image", "image: !Ref Image\n!1 Image: it is a value of the type !Ref"),
            ("image: |\n  nginx\n", "image: |\n  nginx\n\n!2 nginx\\n: nginx\\n is not an image reference"),
            ("image: true\n", "image: true\n"),
            ("image: ''\n", "image: ''\n"),
        ],
    );
}

#[test]
fn an_anchor_is_rewritten_where_it_is_defined() {
    assert_pairs(
        yaml,
        &[
            ("a: {image: &i nginx}\nb: {image: *i}\n", "a: {image: &i …/hub/nginx:latest}\nb: {image: *i}\n"),
            (
                "a: &a {image: nginx}\nb: {<<: *a, x: 1}\nc: {<<: [*a]}\n",
                "a: &a {image: …/hub/nginx:latest}\nb: {<<: *a, x: 1}\nc: {<<: [*a]}\n",
            ),
            (
                "a: {image: &i nginx}\nb: {env: *i}\n",
                "a: {image: &i nginx}\nb: {env: *i}\n\n!1 nginx: the same text is also used where it is not an image",
            ),
            (
                "defaults: {name: &i nginx}\nimage: *i\n",
                "defaults: {name: &i nginx}\nimage: *i\n\n!1 nginx: the same text is also used where it is not an image",
            ),
            (
                "x-image: &i nginx\nx-app: &app\n  image: redis:7\nservices:\n  a: {image: *i}\n  b: {<<: *app}\n  c: {<<: *app, image: nginx:1.27}\n",
                "x-image: &i …/hub/nginx:latest\nx-app: &app\n  image: …/hub/redis:7\nservices:\n  a: {image: *i}\n  b: {<<: *app}\n  c: {<<: *app, image: …/hub/nginx:1.27}\n",
            ),
            (
                "services:\n  web: &web {image: nginx}\n  app: {<<: *web, build: .}\n",
                "services:\n  web: &web {image: nginx}\n  app: {<<: *web, build: .}\n\n!2 nginx: it is the name of what a service with build builds",
            ),
            (
                "services:\n  web: {image: &i nginx}\n  app: {image: *i, build: .}\n",
                "services:\n  web: {image: &i nginx}\n  app: {image: *i, build: .}\n\n!2 nginx: it is the name of what a service with build builds",
            ),
            (
                "b: &b {registry: docker.io, tag: '7.2'}\nc: {<<: *b, repository: bitnami/redis}\nd: {<<: *b, repository: bitnami/mongodb}\n",
                "b: &b {registry: docker.io, tag: '7.2'}\nc: {<<: *b, repository: bitnami/redis}\nd: {<<: *b, repository: bitnami/mongodb}\n\n!2 docker.io/bitnami/redis:7.2: it shares text with an image that is not mirrored\n!3 docker.io/bitnami/mongodb:7.2: the repository docker.io/bitnami/mongodb is not mirrored",
            ),
            (
                "b: &b {registry: docker.io, tag: '7.2'}\nc: {<<: *b, repository: bitnami/redis}\nd: {<<: *b, repository: redis}\n",
                "b: &b {registry: …, tag: '7.2'}\nc: {<<: *b, repository: hub/bitnami/redis}\nd: {<<: *b, repository: hub/redis}\n",
            ),
            ("a: &a\n  image: nginx\n  self: *a\n", "a: &a\n  image: …/hub/nginx:latest\n  self: *a\n"),
        ],
    );
}

#[test]
fn a_container_that_is_also_something_else_stays() {
    let start = "apiVersion: v1\nkind: Pod\n";
    let stays = "\n!3 nginx: the same text is also used where it is not an image";
    for text in [
        "data: &d {image: nginx}\ncontainers: [*d]\n",
        "data: &l [{image: nginx}]\ncontainers: *l\n",
        "data: &d {image: nginx}\ncontainers: [{<<: *d}]\n",
        "containers: [&d {image: nginx}]\ndata: *d\n",
        "containers: [&d {image: nginx}]\ndata: {<<: *d}\n",
    ] {
        let text = start.to_owned() + text;
        assert_eq!(yaml(&text), text.clone() + stays);
    }
    for text in [
        "containers: [&c {image: nginx}]\ninitContainers: [*c, {<<: *c, name: x}]\n",
        "containers: &l [{image: nginx}]\ninitContainers: *l\n",
    ] {
        let text = start.to_owned() + text;
        assert_eq!(yaml(&text), text.replace("nginx", "…/hub/nginx:latest"));
    }
}

#[test]
fn many_functions_are_no_problem() {
    let text = format!("{{\"containerDefinitions\":[{}{{}}]}}", "{\"image\":{}},".repeat(80_000));
    assert_eq!(rewritten(FileType::Yaml, Match::Image, &text).text, text);
}

#[test]
fn an_image_that_stays_keeps_all_that_share_a_part_with_it() {
    let text = "a: {registry: &r docker.io, repository: memcached, tag: 7}
b: {registry: *r, repository: &n redis, tag: 7}
c: {registry: &s docker.io, repository: *n, tag: 7}
d: {registry: *s, repository: bitnami/redis, tag: 7.2}
e: {registry: docker.io, repository: redis, tag: 7}
";
    let shares = "it shares text with an image that is not mirrored";
    let expected = text.replace("registry: docker.io, repository: redis", "registry: …, repository: hub/redis")
        + &format!(
            "
!1 docker.io/memcached:7: the repository docker.io/library/memcached is not mirrored
!2 docker.io/redis:7: {shares}
!3 docker.io/redis:7: {shares}
!4 docker.io/bitnami/redis:7.2: {shares}"
        );
    assert_eq!(yaml(text), expected);
}

#[test]
fn many_aliases_are_no_problem() {
    let mut text = "a0: &a0 {image: nginx}\n".to_owned();
    for level in 1..500 {
        let below = level - 1;
        writeln!(text, "a{level}: &a{level} {{<<: [*a{below}, *a{below}], x: [*a{below}, *a{below}]}}")
            .expect("memory does not fail");
    }
    assert_eq!(yaml(&text), text.replace("nginx", "…/hub/nginx:latest"));
}

#[test]
fn merge_keys_have_a_limit_together() {
    let mut text = "image: nginx\nm0: &m0 {x: 1}\n".to_owned();
    for level in 1..60 {
        writeln!(text, "m{level}: &m{level} {{<<: *m{}}}", level - 1).expect("memory does not fail");
    }
    let merging = |count: usize| text.clone() + &"- {<<: *m59}\n".repeat(count).replacen('-', "l:\n-", 1);
    let many = merging(1_000);
    assert_eq!(yaml(&many), many.replace("nginx", "…/hub/nginx:latest"));
    let inventory = inventory();
    let names = Names { inventory: &inventory, matching: Match::Image };
    let error = Rewritten::new(FileType::Yaml, &merging(9_000), names).err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("Merge keys (<<) repeat too many mappings, which is not supported"));
}

#[test]
fn images_of_helm_charts_are_rewritten() {
    assert_pairs(
        yaml,
        &[
            (
                "image: {registry: docker.io, repository: bitnami/redis, tag: 7.2}",
                "image: {registry: …, repository: hub/bitnami/redis, tag: 7.2}",
            ),
            (
                "image:\n  registry: \"\"\n  repository: nginx # x\n  tag: \"1.27\"\n  digest: \"\"\n",
                "image:\n  registry: \"\"\n  repository: …/hub/nginx # x\n  tag: \"1.27\"\n  digest: \"\"\n",
            ),
            ("web: {repository: redis, tag: 7}", "web: {repository: …/hub/redis, tag: 7}"),
            (
                "web: {registry: quay.io, repository: coreos/etcd, tag: v3}",
                "web: {registry: …, repository: quay/etcd, tag: v3}",
            ),
            (
                "web: {registry: quay.io/coreos, repository: etcd, tag: v3}",
                "web: {registry: …, repository: quay/etcd, tag: v3}",
            ),
            (
                "web: {registry: quay.io, repository: team/number, tag: 1}",
                "web: {registry: …, repository: \"123\", tag: 1}",
            ),
            (
                "image: redis:7\nimages: [{repository: nginx, tag: 1.27}]",
                "image: …/hub/redis:7\nimages: [{repository: …/hub/nginx, tag: 1.27}]",
            ),
            (
                "apiVersion: v1\nkind: HelmRelease\nspec: {values: {image: {repository: nginx, tag: 1.27}}}",
                "apiVersion: v1\nkind: HelmRelease\nspec: {values: {image: {repository: …/hub/nginx, tag: 1.27}}}",
            ),
            (
                "sidecarImage: {repository: nginx}",
                "sidecarImage: {repository: nginx}\n!1 nginx: it has no tag; --match repository accepts it with any tag",
            ),
            (
                "image: {repository: memcached}",
                "image: {repository: memcached}\n!1 memcached: the repository docker.io/library/memcached is not mirrored",
            ),
            (
                "image: {repository: nginx, tag: 1.28}",
                "image: {repository: nginx, tag: 1.28}\n!1 nginx:1.28: the mirror of docker.io/library/nginx does not have the tag 1.28",
            ),
            (
                "image: {repository: 'nginx:1.27', tag: ''}",
                "image: {repository: 'nginx:1.27', tag: ''}\n!1 nginx:1.27: its repository has a tag",
            ),
            (
                "global: {imageRegistry: quay.io}\nimage: {registry: docker.io, repository: nginx, tag: 1.27}",
                "global: {imageRegistry: quay.io}\nimage: {registry: docker.io, repository: nginx, tag: 1.27}\n!2 docker.io/nginx:1.27: global.imageRegistry is set: the chart puts it in place of the image's registry",
            ),
            (
                "a: {registry: docker.io, image: bitnami/redis, tag: 7.2}",
                "a: {registry: …, image: hub/bitnami/redis, tag: 7.2}",
            ),
            ("a: {image: nginx, tag: 1.27}", "a: {image: …/hub/nginx, tag: 1.27}"),
            (
                "a: {image: nginx, imageTag: 1.27}",
                "a: {image: nginx, imageTag: 1.27}\n!1 nginx: its tag is in another field",
            ),
            ("a: {image: 'nginx:1.27', version: 1}", "a: {image: '…/hub/nginx:1.27', version: 1}"),
            (
                "image: {repository: nginx, tag: 1.270}",
                "image: {repository: nginx, tag: 1.270}\n!1 nginx:1.270: Helm reads its tag as a number, and changes it; write the tag in quotes",
            ),
            (
                "a: {registry: docker.io/, repository: bitnami/redis, tag: '7.2'}",
                "a: {registry: docker.io/, repository: bitnami/redis, tag: '7.2'}\n!1 docker.io/bitnami/redis:7.2: its registry ends with a slash; write it without",
            ),
            (
                "image: {repository: nginx, tag: !!str 1.270}",
                "image: {repository: nginx, tag: !!str 1.270}\n!1 nginx:1.270: the mirror of docker.io/library/nginx does not have the tag 1.270",
            ),
            (
                "chart: {repository: 'https://example.com/charts', tag: 1}",
                "chart: {repository: 'https://example.com/charts', tag: 1}",
            ),
            ("git: {repository: nginx}", "git: {repository: nginx}"),
        ],
    );
    let digest = Digest::of(b"1.27");
    let pinned = format!("image: {{repository: nginx, tag: none, digest: '{digest}'}}");
    assert_eq!(yaml(&pinned), pinned.replace("nginx", "…/hub/nginx"));
    let sha = format!("image: {{repository: nginx, tag: none, sha: '{}'}}", digest.hex());
    assert_eq!(yaml(&sha), sha.replace("nginx", "…/hub/nginx"));
    let any = |text| result(FileType::Yaml, Match::Repository, text);
    assert_eq!(any("image: {repository: nginx, tag: ''}"), "image: {repository: …/hub/nginx, tag: ''}");
    assert_eq!(any("image: nginx:9"), "image: …/hub/nginx:9");
}

#[test]
fn services_of_compose_are_rewritten() {
    let text = "name: x
services:
  web:
    image: nginx:1.27
    environment: {image: nginx}
    deploy: {labels: {repository: nginx, tag: 1.27}}
  built: {build: ., image: nginx}
  variable: {image: \"nginx:${TAG:-1.27}\"}
volumes: {data: {labels: {image: nginx}}}
";
    let expected =
        text.replacen("nginx:1.27", "…/hub/nginx:1.27", 1) + "\n!8 nginx:${TAG:-1.27}: it contains a variable";
    assert_eq!(yaml(text), expected);
    // Values with a field of that name.
    assert_eq!(
        yaml("services: {web: {image: nginx}}\nreplicas: 1"),
        "services: {web: {image: …/hub/nginx:latest}}\nreplicas: 1"
    );
}

#[test]
fn a_service_of_compose_that_is_also_something_else_stays() {
    for text in [
        "services: {web: &web {image: nginx}}\nvolumes: {data: {labels: *web}}\n",
        "services: {web: &web {image: nginx}}\nvolumes: {data: {labels: {<<: *web}}}\n",
        "services: {web: &web {image: nginx}, app: {image: 'redis:x', labels: *web}}\n",
        "services: {web: &web {image: nginx}, app: {<<: {labels: *web}}}\n",
        "services: &all {web: {image: nginx}}\nnetworks: *all\n",
        "x-web: &web {image: nginx}\nservices: {web: *web}\nconfigs: [[{a: *web}]]\n",
    ] {
        let result = yaml(text);
        assert!(result.starts_with(text), "{result}");
        assert!(result.contains(" nginx: the same text is also used where it is not an image"), "{result}");
    }
    for text in [
        "services: {web: &web {image: nginx}, app: *web, other: {<<: *web, labels: {image: nginx:1.27}}}\n",
        "x-web: &web {image: nginx}\nx-other: *web\nservices: {web: *web}\nvolumes: {data: {labels: {image: x}}}\n",
    ] {
        assert_eq!(yaml(text), text.replacen("image: nginx}", "image: …/hub/nginx:latest}", 1));
    }
}

#[test]
fn a_service_of_compose_that_extends_one_with_build_is_built() {
    let built = |line| format!("\n!{line} nginx: it is the name of what a service with build builds");
    let elsewhere = "\n!1 nginx: its service extends one of another file, which may have build".to_owned();
    for (services, left) in [
        ("{base: {build: .}, web: {extends: base, image: nginx}}", String::new()),
        ("{base: {build: .}, web: {extends: {service: base}, image: nginx}}", String::new()),
        ("{base: {build: .}, a: {extends: base}, web: {extends: {service: a}, image: nginx}}", String::new()),
        ("{base: {image: nginx}, web: {extends: base, build: .}}", built(1)),
        ("{web: {extends: {file: a.yaml, service: base}, image: nginx}, base: {image: 'a:1'}}", elsewhere.clone()),
        ("{web: {extends: missing, image: nginx}}", elsewhere.clone()),
        ("{web: {extends: web, image: nginx}}", elsewhere.clone()),
        ("{web: {extends: [], image: nginx}}", elsewhere),
    ] {
        let text = format!("services: {services}");
        let result = yaml(&text);
        let left = if services.contains("a:1") {
            left + "\n!1 a:1: the repository docker.io/library/a is not mirrored"
        } else {
            left
        };
        assert_eq!(result, text + &left);
    }
    for services in [
        "{base: {image: nginx}, web: {extends: base}, app: {extends: {service: web}}}",
        "{base: {labels: {build: x}}, web: {extends: base, image: nginx}}",
        "{base: {build: .}, web: {image: nginx, labels: {extends: base}}}",
        "{<<: {base: {}}, web: {extends: base, image: nginx}}",
        "{<<: {base: {image: nginx}}, web: {extends: base}}",
    ] {
        let text = format!("services: {services}");
        assert_eq!(yaml(&text), text.replace("nginx", "…/hub/nginx:latest"));
    }
}

#[test]
fn task_definitions_are_rewritten() {
    assert_pairs(
        yaml,
        &[
            (
                "{\n\t\"taskDefinition\": {\"containerDefinitions\": [\n\t\t{\"image\": \"nginx:1.27\", \"name\": \"\\ud83d\\ude00\"},\n\t\t{\"image\":\"docker.io\\/library\\/redis:7\"}],\"image\": \"nginx\"}}\n",
                "{\n\t\"taskDefinition\": {\"containerDefinitions\": [\n\t\t{\"image\": \"…/hub/nginx:1.27\", \"name\": \"\\ud83d\\ude00\"},\n\t\t{\"image\":\"…/hub/redis:7\"}],\"image\": \"nginx\"}}\n",
            ),
            (
                "Resources:\n  Task:\n    Properties:\n      ContainerDefinitions:\n      - Image: nginx\n      - Image: !Sub '${Registry}/nginx'\n      - Image: {Ref: Image}\n      - !If [A, {Image: nginx}, {Image: redis:7}]\n      - {\"Fn::If\": [A, {Image: nginx}, {Ref: AWS::NoValue}]}\n      - {Image: {Ref: Img}, Name: x}\n  Other: {Image: nginx}\n",
                "Resources:\n  Task:\n    Properties:\n      ContainerDefinitions:\n      - Image: …/hub/nginx:latest\n      - Image: !Sub '${Registry}/nginx'\n      - Image: {Ref: Image}\n      - !If [A, {Image: …/hub/nginx:latest}, {Image: …/hub/redis:7}]\n      - {\"Fn::If\": [A, {Image: …/hub/nginx:latest}, {Ref: AWS::NoValue}]}\n      - {Image: {Ref: Img}, Name: x}\n  Other: {Image: nginx}\n\n!6 ${Registry}/nginx: it is a value of the type !Sub\n!7 {Ref: Image}: it is a function of CloudFormation\n!10 {Ref: Img}: it is a function of CloudFormation",
            ),
            (
                "{\"ContainerDefinitions\": {\"Fn::If\": [\"A\", [{\"Image\": \"nginx\"}], []]}}",
                "{\"ContainerDefinitions\": {\"Fn::If\": [\"A\", [{\"Image\": \"…/hub/nginx:latest\"}], []]}}",
            ),
        ],
    );
}

#[test]
fn json_is_rewritten() {
    assert_pairs(
        yaml,
        &[
            (
                "{\"image\":\"nginx\"} [{\"image\" : \"redis:7\"}]",
                "{\"image\":\"…/hub/nginx:latest\"} [{\"image\" : \"…/hub/redis:7\"}]",
            ),
            (
                "{\"image\": null, \"<<\": {\"image\": 1.5e3}}",
                "{\"image\": null, \"<<\": {\"image\": 1.5e3}}\n!1 1.5e3: the repository docker.io/library/1.5e3 is not mirrored",
            ),
            ("{\"repository\": \"redis\", \"tag\": 7}", "{\"repository\": \"…/hub/redis\", \"tag\": 7}"),
        ],
    );
}

#[test]
fn what_is_not_yaml_is_an_error_with_its_position() {
    let inventory = inventory();
    let names = Names { inventory: &inventory, matching: Match::Image };
    for (text, expected) in [
        ("a: 1\nb: [1,\n", "The file is not YAML: line 3, column 1: "),
        ("a: {{ .Values.a }}\nb: {{- x }}:\n  - {{", "The file is not YAML: line "),
        (
            &format!("[\n {}1{}]", "[".repeat(200), "]".repeat(200)),
            "The file is neither JSON nor YAML: line 2, column 201: collections are nested more than 200 levels deep",
        ),
        ("{\"a\": 1,\n \"b\" 2}", "The file is neither JSON nor YAML: line 2, column 6: expected `:`"),
        ("a: *b", "The file is not YAML: line 1, column 4: "),
        ("hello\n", "The file is not a manifest. "),
        ("a: 1\n---\n'b'\n", "The file is not a manifest. "),
        (
            "FROM nginx:1.27\nRUN x\n",
            "The file is not a manifest. For a Dockerfile, use \"mirror rewrite\" with --type dockerfile",
        ),
        (&"[".repeat(100_000), "The file is neither JSON nor YAML: line 1, column 100000: EOF while parsing a list"),
        (
            &"- ".repeat(100_000),
            "The file is not YAML: line 1, column 401: collections are nested more than 200 levels deep",
        ),
    ] {
        let error = Rewritten::new(FileType::Yaml, text, names).err().map(|error| format!("{error:#}"));
        let error = error.expect("it is not YAML");
        assert!(error.starts_with(expected), "{error}");
    }
    let error = Rewritten::new(FileType::Dockerfile, "a: 1\n", names).err().map(|error| format!("{error:#}"));
    assert!(
        error.as_ref().is_some_and(|error| error.starts_with("The file is not a Dockerfile: line 1, column 1: ")),
        "{error:?}"
    );
}

#[test]
fn stages_of_dockerfiles_are_rewritten() {
    assert_pairs(
        dockerfile,
        &[
            (
                "# syntax=docker/dockerfile:1\n# FROM nginx\nfrom --platform=$BUILDPLATFORM nginx:1.27 as Build\nRUN x \\\n  nginx\nFROM build\r\nFROM scratch\nFROM redis:7  AS nginx\nFROM nginx\nFROM memcached",
                "# syntax=…/hub/docker/dockerfile:1\n# FROM nginx\nfrom --platform=$BUILDPLATFORM …/hub/nginx:1.27 as Build\nRUN x \\\n  nginx\nFROM build\r\nFROM scratch\nFROM …/hub/redis:7  AS nginx\nFROM nginx\nFROM memcached\n!10 memcached: the repository docker.io/library/memcached is not mirrored",
            ),
            (
                "FROM redis:7\nONBUILD COPY --from=nginx:1.27 a b\nonbuild run --mount=from=nginx,target=/x y\n",
                "FROM …/hub/redis:7\nONBUILD COPY --from=…/hub/nginx:1.27 a b\nonbuild run --mount=from=…/hub/nginx:latest,target=/x y\n",
            ),
            ("FROM nginx AS nginx\nFROM nginx\n", "FROM …/hub/nginx:latest AS nginx\nFROM nginx\n"),
            ("FROM \\\n  nginx:1.27 \\\n  AS a\n", "FROM \\\n  …/hub/nginx:1.27 \\\n  AS a\n"),
            ("FROM ngi\\\nnx\n", "FROM ngi\\\nnx\n\n!1 nginx: it is written in a way that cannot be changed"),
            ("# escape=`\nFROM `\n nginx\nCOPY a `\n b\n", "# escape=`\nFROM `\n …/hub/nginx:latest\nCOPY a `\n b\n"),
            (
                "FROM redis:7\nCOPY --from=nginx:1.27 --chown=1 /a /b\nCOPY --from=0 a b\nCOPY --from=LATER a b\nRUN --mount=type=bind,from=nginx,target=/x cat <<EOF\nFROM nginx\nEOF\nFROM nginx as later",
                "FROM …/hub/redis:7\nCOPY --from=…/hub/nginx:1.27 --chown=1 /a /b\nCOPY --from=0 a b\nCOPY --from=LATER a b\nRUN --mount=type=bind,from=…/hub/nginx:latest,target=/x cat <<EOF\nFROM nginx\nEOF\nFROM …/hub/nginx:latest as later",
            ),
        ],
    );
}

#[test]
fn defaults_of_build_arguments_are_rewritten() {
    assert_pairs(
        dockerfile,
        &[
            (
                "ARG BASE=nginx:1.27\nFROM $BASE\nFROM ${BASE} AS a\n",
                "ARG BASE=…/hub/nginx:1.27\nFROM $BASE\nFROM ${BASE} AS a\n",
            ),
            ("ARG A=1 BASE=\"nginx\" C\nFROM ${BASE}\n", "ARG A=1 BASE=\"…/hub/nginx:latest\" C\nFROM ${BASE}\n"),
            ("ARG TAG=1.27\nFROM nginx:${TAG}\n", "ARG TAG=1.27\nFROM …/hub/nginx:${TAG}\n"),
            ("FROM nginx:${TAG:-1.27}\n", "FROM …/hub/nginx:${TAG:-1.27}\n"),
            ("FROM ${BASE:-nginx:1.27}\n", "FROM ${BASE:-…/hub/nginx:1.27}\n"),
            (
                "ARG I=nginx\nARG T=1.27\nARG B=$I:$T\nFROM $B\n",
                "ARG I=…/hub/nginx\nARG T=1.27\nARG B=$I:$T\nFROM $B\n",
            ),
            (
                "ARG TAG=9\nFROM nginx:$TAG",
                "ARG TAG=9\nFROM nginx:$TAG\n!2 nginx:9: the mirror of docker.io/library/nginx does not have the tag 9",
            ),
            (
                "ARG TAG\nFROM nginx:$TAG",
                "ARG TAG\nFROM nginx:$TAG\n!2 nginx:$TAG: the build argument TAG has no default",
            ),
            (
                "ARG R=docker.io\nFROM $R/nginx",
                "ARG R=docker.io\nFROM $R/nginx\n!2 $R/nginx: its name has variables; write it out",
            ),
            (
                "ARG B=nginx\nFROM $B\nFROM $B-x",
                "ARG B=nginx\nFROM $B\nFROM $B-x\n!2 nginx: it shares text with an image that is not mirrored\n!3 nginx-x: the repository docker.io/library/nginx-x is not mirrored",
            ),
            (
                "ARG B=nginx\nFROM $B\nFROM $B:$X",
                "ARG B=nginx\nFROM $B\nFROM $B:$X\n!2 nginx: it shares text with an image that is not mirrored\n!3 $B:$X: the build argument X has no default",
            ),
            (
                "FROM ${B:+nginx}",
                "FROM ${B:+nginx}\n!1 ${B:+nginx}: it contains a variable in a form that is not supported",
            ),
            ("ARG A=nginx\nARG B='$A'\nFROM $B", "ARG A=nginx\nARG B='$A'\nFROM $B\n!3 $A: it contains a variable"),
            ("ARG A=\nFROM nginx${A-x}\n", "ARG A=\nFROM …/hub/nginx:latest${A-x}\n"),
            ("ARG A=\nFROM nginx:${A:-1.27}\n", "ARG A=\nFROM …/hub/nginx:${A:-1.27}\n"),
        ],
    );
    let mut text = "ARG A0=nginx\n".to_owned();
    for level in 1..1000 {
        writeln!(text, "ARG A{level}=$A{0}$A{0}", level - 1).expect("memory does not fail");
    }
    assert!(dockerfile(&(text + "FROM $A999")).ends_with("it is too long"));
}

#[test]
fn a_build_argument_that_is_also_something_else_stays() {
    let stays = |line, image| format!("\n!{line} {image}: the same text is also used where it is not an image");
    for (text, left) in [
        ("ARG OS=nginx\nFROM ${OS}:1.27\nARG OS\nRUN [ \"$OS\" = nginx ]\n", stays(2, "nginx:1.27")),
        ("ARG A=nginx\nARG B=$A:1.27\nFROM $B\nARG X B\n", stays(3, "nginx:1.27")),
        ("ARG A=nginx\nARG B=\"a\"$A\nFROM $A\nARG B\n", stays(3, "nginx")),
        ("ARG A=nginx\nFROM --platform=$A $A\n", stays(2, "nginx")),
    ] {
        assert_eq!(dockerfile(text), text.to_owned() + &left);
    }
    assert_eq!(dockerfile("ARG A=nginx\nFROM $A\nARG A=x\n"), "ARG A=…/hub/nginx:latest\nFROM $A\nARG A=x\n");
}

#[test]
fn build_arguments_do_not_multiply() {
    let value = format!("ARG X=ab\nARG A={}\n", "$X".repeat(2_000));
    let one = dockerfile(&format!("{value}FROM {}\n", "$A".repeat(20_000)));
    assert!(one.ends_with("it is too long"), "{}", &one[one.len() - 200..]);
    let inventory = inventory();
    let names = Names { inventory: &inventory, matching: Match::Image };
    let many = format!("{value}{}", "FROM $A\n".repeat(5_000));
    let error = Rewritten::new(FileType::Dockerfile, &many, names).err().map(|error| format!("{error:#}"));
    let expected = "The file is not a Dockerfile: line 264, column 1: the variables have more than 1048576 bytes together, which is not supported";
    assert_eq!(error.as_deref(), Some(expected));
    let name = format!("ARG A=${{{}}}\n{}", "x".repeat(10_000), "FROM $A\n".repeat(5_000));
    assert!(rewritten(FileType::Dockerfile, Match::Image, &name).left[0].reason.len() < 200);
}

#[test]
fn files_are_dockerfiles_by_their_names() {
    for name in [
        "Dockerfile",
        "a/dockerfile",
        "Dockerfile.dev",
        "Dockerfile-dev",
        "dev.Dockerfile",
        "Containerfile",
        "x/Containerfile.1",
    ] {
        assert_eq!(FileType::of(Path::new(name)), FileType::Dockerfile, "{name}");
    }
    for name in
        ["-", "Dockerfiles", "not-dockerfile", "mydockerfile", "dockerfile/a.yaml", "compose.yaml", "task.json", ".."]
    {
        assert_eq!(FileType::of(Path::new(name)), FileType::Yaml, "{name}");
    }
}

const IMAGES: [&str; 8] = [
    "nginx",
    "docker.io/library/nginx:1.27",
    "nginx:9",
    "index.docker.io/bitnami/redis:7.2",
    "quay.io/coreos/etcd:v3",
    "localhost:5000/nginx",
    "busybox",
    "111111111111.dkr.ecr.us-east-1.amazonaws.com/hub/nginx:1.27",
];

/// A value in a document, and what it becomes.
#[derive(Clone, Debug)]
enum Value {
    Image { name: usize, style: usize },
    Text(&'static str),
    List(Vec<Value>),
    Map(Vec<Value>),
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec!["", "nginx", "~", "|", "1.27", "é 你", "a: 'b", "# c", "\t\"", "\u{1f600}"]);
    let leaf = prop_oneof![
        (0..IMAGES.len(), 0..4_usize).prop_map(|(name, style)| Value::Image { name, style }),
        text.prop_map(Value::Text),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
            prop::collection::vec(inner, 0..4).prop_map(Value::Map),
        ]
    })
}

impl Value {
    /// As the value of a field: the text, with that of images from `name`.
    fn write(&self, name: &dyn Fn(&str) -> String, is_json: bool, indent: usize, out: &mut String) {
        let (space, json) = (" ".repeat(indent), |text: &str| serde_json::to_string(text).expect("it is text"));
        match self {
            Self::Image { name: image, style } => {
                let image = name(IMAGES[*image]);
                *out += &match style {
                    _ if is_json => format!(" {}", json(&image)),
                    0 => format!(" {image}  # é nginx\n"),
                    1 => format!(" '{image}'\n"),
                    2 => format!("  \"{image}\"\r\n"),
                    _ => format!(" >-\n{space}   {image}\n"),
                };
            }
            Self::Text(text) => *out += &format!(" {}{}", json(text), if is_json { "" } else { "\n" }),
            Self::List(values) if is_json || values.is_empty() => {
                *out += " [";
                for (index, value) in values.iter().enumerate() {
                    *out += if index > 0 { ",\t" } else { "" };
                    value.write_item(name, true, indent, out);
                }
                *out += if is_json { "]" } else { "]\n" };
            }
            Self::Map(values) if is_json || values.is_empty() => {
                *out += " {";
                for (index, value) in values.iter().enumerate() {
                    *out += if index > 0 { "\n\t, " } else { "" };
                    let key =
                        if value.is_image() { format!("\"i{index}\": {{\"image\"") } else { format!("\"k{index}\"") };
                    *out += &format!("{key}:");
                    value.write(name, true, indent, out);
                    *out += if value.is_image() { "}" } else { "" };
                }
                *out += if is_json { "}" } else { "}\n" };
            }
            Self::List(values) => {
                *out += "\n";
                for value in values {
                    *out += &format!("{space}-");
                    value.write_item(name, false, indent + 2, out);
                }
            }
            Self::Map(values) => {
                *out += "\n";
                for (index, value) in values.iter().enumerate() {
                    if value.is_image() {
                        *out += &format!("{space}i{index}:\n{space}  image:");
                        value.write(name, false, indent + 4, out);
                    } else {
                        *out += &format!("{space}k{index}:");
                        value.write(name, false, indent + 2, out);
                    }
                }
            }
        }
    }

    fn write_item(&self, name: &dyn Fn(&str) -> String, is_json: bool, indent: usize, out: &mut String) {
        if !self.is_image() {
            return self.write(name, is_json, indent, out);
        }
        *out += if is_json { "{\"image\":" } else { " image:" };
        self.write(name, is_json, indent, out);
        *out += if is_json { "}" } else { "" };
    }

    fn is_image(&self) -> bool {
        matches!(self, Self::Image { .. })
    }
}

proptest! {
    /// The text with other images is the result, so nothing else changes.
    #[test]
    fn exactly_the_images_change(values in prop::collection::vec(value(), 1..6), is_json: bool) {
        let inventory = inventory();
        let names = Names { inventory: &inventory, matching: Match::Image };
        let mirrored = |image: &str| match names.resolve(image) {
            Ok(Some(mirror)) => mirror.to_string(),
            _ => image.to_owned(),
        };
        let write = |name: &dyn Fn(&str) -> String| {
            let mut text = String::new();
            Value::Map(values.clone()).write(name, is_json, 0, &mut text);
            text
        };
        let (before, after) = (write(&str::to_owned), write(&mirrored));
        let once = Rewritten::new(FileType::Yaml, &before, names).expect(&before).text;
        prop_assert_eq!(&once, &after);
        let twice = Rewritten::new(FileType::Yaml, &once, names).expect(&once);
        prop_assert_eq!(&twice.text, &once);
        prop_assert!(twice.changed.is_empty());
    }

    /// In a Dockerfile only the images change, and a second run changes nothing.
    #[test]
    fn a_dockerfile_keeps_everything_else(lines in prop::collection::vec(prop::sample::select(DOCKERFILE.to_vec()), 1..12)) {
        let text = format!("ARG BASE=nginx:1.27\nARG TAG=\"7.2\"\n{}", lines.concat());
        let inventory = inventory();
        let names = Names { inventory: &inventory, matching: Match::Image };
        let result = Rewritten::new(FileType::Dockerfile, &text, names).expect(&text);
        let mut restored = result.text.clone();
        for (mirror, image) in [("hub/nginx:latest", "nginx"), ("hub/nginx", "nginx"), ("hub/bitnami/redis", "bitnami/redis"), ("hub/redis", "redis")] {
            restored = restored.replace(&format!("{HOST}/{mirror}"), image);
        }
        prop_assert_eq!(restored, &*text);
        let twice = Rewritten::new(FileType::Dockerfile, &result.text, names).expect(&result.text);
        prop_assert_eq!(twice.text, result.text);
        prop_assert!(twice.changed.is_empty());
    }

    #[test]
    fn no_text_leads_to_a_panic(text in "[-a-c:{}\\[\\]&*!|>'\"%#,\n\r\t ?<$=.é\u{feff}]{0,80}", prefix in "(image: |FROM |ARG |\\{|services:\n  a: |RUN --mount=|COPY --from=)?") {
        let text = prefix + &text;
        let inventory = inventory();
        for matching in [Match::Image, Match::Repository] {
            for file_type in [FileType::Yaml, FileType::Dockerfile] {
                let _ = Rewritten::new(file_type, &text, Names { inventory: &inventory, matching });
            }
        }
    }

    /// Texts of pieces that are common in YAML: the result is the same document with other images.
    #[test]
    fn the_result_is_the_same_document_with_other_images(pieces in prop::collection::vec(piece(), 1..12)) {
        let text = pieces.concat();
        let inventory = inventory();
        let names = Names { inventory: &inventory, matching: Match::Image };
        let Ok(before) = parse(without_mark(&text)) else { return Ok(()) };
        let result = Rewritten::new(FileType::Yaml, &text, names).expect(&text);
        let after = parse(without_mark(&result.text));
        prop_assert!(after.is_ok(), "{:?} {:?}", text, result.text);
        let after = after.expect("it is YAML");
        prop_assert_eq!(&before.documents, &after.documents);
        for id in before.documents.iter().flat_map(Clone::clone) {
            match (before.scalar(id), after.scalar(id)) {
                (Some(old), Some(new)) if old.value != new.value => {
                    prop_assert!(IMAGES.contains(&&*old.value) || PARTS.contains(&&*old.value), "{:?} {:?}", text, result.text);
                    prop_assert!(new.value.starts_with(HOST) || new.value.starts_with("hub/"), "{:?} {:?}", text, result.text);
                }
                (Some(old), Some(new)) => {
                    prop_assert_eq!(&old.tag, &new.tag);
                    prop_assert!(old.style == new.style);
                }
                (None, None) => prop_assert_eq!(format!("{:?}", before.mapping(id)), format!("{:?}", after.mapping(id))),
                _ => prop_assert!(false, "{:?} {:?}", text, result.text),
            }
        }
        let twice = Rewritten::new(FileType::Yaml, &result.text, names).expect(&result.text);
        prop_assert_eq!(twice.text, result.text);
    }
}

const PARTS: [&str; 5] = ["docker.io", "bitnami/redis", "redis", "nginx:1.27", "redis:7.2"];

/// A piece of YAML: mostly whole lines, sometimes a part of one.
fn piece() -> impl Strategy<Value = &'static str> {
    prop_oneof![20 => prop::sample::select(LINES.to_vec()), 1 => prop::sample::select(PARTS_OF_LINES.to_vec())]
}

/// Lines of YAML with images.
pub const LINES: [&str; 26] = [
    "image: nginx\n",
    "é: 你  # nginx\r\n",
    "image: &a nginx # x\n",
    "a: {image: *a}\n",
    "a: {image: !!str &b 'nginx:1.27'}\nb: [*b]\n",
    "b: &c {image: \"redis:7.2\", x: [1, \"a\\\"b\"]}\n",
    "c: {<<: *c}\n",
    "d: [{<<: [*c], image: nginx}, *c]\n",
    "image:\n  >-  # x\n     nginx\n\n",
    "e:\n- image: |-\r\n    redis:7.2\r\n- 'nginx'\n",
    "image: {registry: docker.io, repository: redis, tag: 7}\n",
    "f:\n  registry: &r docker.io\n  repository: bitnami/redis\n  tag: 7.2\n",
    "g: {registry: *r, repository: redis, tag: '7'}\n",
    "h: {registry: *r, repository: memcached, tag: '7'}\n",
    "image: !Ref nginx\n",
    "image:\n",
    "image: nginx:${TAG}\n",
    "? image\n: \"nginx\"\n",
    "? {image: nginx}\n: x\n",
    "---\n",
    "---\napiVersion: v1\nkind: Pod\n",
    "containers:\n- image: nginx\n- {image: 'redis:7.2'}\n",
    "containers: &l [{image: nginx}]\ninitContainers: *l\n",
    "---\nx-a: &a nginx\nservices: {a: {image: *a}, b: {image: nginx, build: .}}\n",
    "---\ncontainerDefinitions: [{image: \"\\x6eginx\"}]\n",
    "# nginx\n\n",
];

const PARTS_OF_LINES: [&str; 20] = [
    "\n", "  ", "\r", " #", "- ", "a: ", "'", "\"", "&a ", "*a", "!x ", "|\n ", "{", "}", "[", "]", ", ", "<<: ", "? ",
    "...\n",
];

const DOCKERFILE: [&str; 17] = [
    "FROM nginx\n",
    "from --platform=linux/arm64 redis:7.2 as nginx\r\n",
    "FROM nginx AS b\n",
    "FROM $BASE\n",
    "FROM redis:${TAG} AS B\n",
    "FROM ${BASE}-x\n",
    "FROM bitnami/redis:${NONE:-7.2}\n",
    "COPY --from=nginx a b\n",
    "ONBUILD COPY --from=nginx a b\n",
    "COPY --from=b \\\n  # FROM nginx\n\n  a b\n",
    "RUN --mount=type=bind,from=redis:7,target=/a x\n",
    "RUN cat <<A >x && cat <<-B\nFROM nginx\nA\n\tB\n",
    "RUN echo 'FROM nginx' \\\r\n  nginx\r\n",
    "# FROM nginx\n",
    "\n",
    "ARG BASE=redis:7\n",
    "USER nginx\n",
];
