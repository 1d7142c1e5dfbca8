//! Prints a MutatingAdmissionPolicy, with which Kubernetes itself makes new pods pull the copies.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::ValueEnum;
use shared::inventory::{Inventory, Match, MirroredRepository};
use shared::reference::{Digest, Repository};

use super::inventory;
use crate::Outcome;
use crate::output::{note, print};

/// The policy and its binding. The ConfigMaps are [`CONFIG_MAP`] and their data.
const POLICY: &str = include_str!("kubernetes/policy.yaml");

const CONFIG_MAP: &str = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}-{count}-{index}
  namespace: {namespace}
  labels:
    app.kubernetes.io/managed-by: ecr-transfer
    app.kubernetes.io/part-of: {name}
    ecr-transfer/config-maps: \"{count}\"
data:
";

/// Whether the mirror has the image of `x`: an entry of a ConfigMap in `x[1]`, and a tag and digest in `x[2]`.
const HAS_IMAGE: &str = "x[1].contains(x[2].contains('@')
        ? ' @' + x[2].substring(x[2].size() - 64) + ' '
        : ' ' + x[2].substring(1) + ' ')";
const HAS_REPOSITORY: &str = "x[1] != ''";

/// The most bytes of data in a ConfigMap. Kubernetes allows 1 MiB, and etcd 1.5 MiB with all metadata.
const MOST_BYTES: usize = 768 << 10;

/// The most ConfigMaps. The policy runs once for each of them whenever a pod is created.
const MOST_CONFIG_MAPS: usize = 64;

/// About how many bytes of a repository one ConfigMap has, as long as there are enough ConfigMaps. The policy searches all of
/// them for each container, and Kubernetes limits the cost of that.
const BYTES_OF_A_PART: usize = 64 << 10;

/// The longest key of a ConfigMap.
const LONGEST_KEY: usize = 253;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    inventory: inventory::Source,
    #[command(flatten)]
    matching: inventory::Matching,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args)]
struct Options {
    /// The name of the policy and its binding; those of the ConfigMaps begin with it
    #[arg(long, default_value = "ecr-transfer", value_parser = label)]
    name: String,
    /// The namespace of the ConfigMaps, which must exist. Anyone who can write ConfigMaps there decides which images all pods pull
    #[arg(long, default_value = "ecr-transfer", value_parser = label)]
    namespace: String,
    /// What happens to a pod if the policy cannot be evaluated: it keeps its images, or is rejected
    #[arg(long, value_enum, default_value_t = FailurePolicy::Ignore)]
    failure_policy: FailurePolicy,
    /// Print admissionregistration.k8s.io/v1beta1, for Kubernetes 1.34 and 1.35
    #[arg(long)]
    v1beta1: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FailurePolicy {
    Ignore,
    Fail,
}

/// Parses a name that Kubernetes allows for a namespace and as the value of a label, and that YAML reads as text.
pub fn label(text: &str) -> Result<String, &'static str> {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_valid = text.bytes().all(|byte| is_word(byte) || byte == b'-')
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && !["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&text)
        && text.bytes().last().is_some_and(is_word)
        && text.len() <= 63;
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err(
            "expected up to 63 lowercase letters, digits and -, beginning with a letter, and no word such as null or true",
        )
    }
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let inventory = arguments.inventory.load().await?;
    let matching = arguments.matching.value();
    let (repositories, skipped) = selected(&inventory);
    for (repository, reason) in skipped {
        note(format_args!("The policy does not change images of {repository}: {reason}."));
    }
    print(manifests(&repositories, matching, &arguments.options)?)?;
    Ok(Outcome::Success)
}

/// The repositories that the policy can change, and the others with the reason.
fn selected(inventory: &Inventory) -> (Vec<MirroredRepository>, Vec<(Repository, &'static str)>) {
    let (mut selected, mut skipped) = (Vec::new(), Vec::new());
    let repositories: Vec<_> = inventory.repositories().collect();
    let destinations: HashSet<_> = repositories.iter().map(|repository| repository.destination.clone()).collect();
    for repository in repositories {
        if destinations.contains(&repository.source) {
            // Kubernetes may run the policy again on what it changed.
            skipped.push((repository.source, "it is a mirror itself"));
        } else if key(&repository.source).len() > LONGEST_KEY {
            skipped.push((repository.source, "its name is too long for a key of a ConfigMap"));
        } else {
            selected.push(repository);
        }
    }
    (selected, skipped)
}

/// A repository as the key of a ConfigMap, which cannot have all of its characters. Names of repositories have no capitals.
fn key(repository: &Repository) -> String {
    repository.to_string().replace('/', "S").replace(':', "P")
}

/// A number that depends on the text alone, so that a tag stays in its ConfigMap when others come and go.
fn number(text: &str) -> usize {
    let hex = Digest::of(text.as_bytes()).hex();
    usize::from_str_radix(&hex[..8], 16).expect("it is a hexadecimal number of 32 bits")
}

/// The entry of a repository in one ConfigMap, or a part of it.
struct Part {
    key: String,
    value: String,
    /// Parts with different numbers, of as many as there are ConfigMaps, are in different ConfigMaps.
    number: usize,
}

/// The parts of a repository: a power of two, so that few tags change places when they become more.
fn parts(repository: &MirroredRepository, matching: Match) -> Vec<Part> {
    let mut words = BTreeSet::new();
    if matching == Match::Image {
        for image in &repository.images {
            words.extend(image.tag.as_ref().map(ToString::to_string));
            words.insert(format!("@{}", image.digest.hex()));
        }
        if words.is_empty() {
            return Vec::new();
        }
    }
    let bytes: usize = words.iter().map(|word| word.len() + 1).sum();
    let count = bytes.div_ceil(BYTES_OF_A_PART).next_power_of_two().min(MOST_CONFIG_MAPS);
    let key = key(&repository.source);
    let first = number(&key);
    let empty = |number| Part { key: key.clone(), value: format!("{} ", repository.destination), number };
    let mut parts: Vec<_> = (first..first + count).map(empty).collect();
    for word in words {
        let value = &mut parts[number(&word) % count].value;
        value.push_str(&word);
        value.push(' ');
    }
    parts
}

/// As few ConfigMaps as have enough room, and a power of two, as [`parts`]. No two of the `most_of_one` parts of a repository
/// are in the same.
fn config_maps(parts: &[Part], most_of_one: usize) -> Result<Vec<BTreeMap<&str, &str>>> {
    let counts = (0..).map(|exponent| 1 << exponent).take_while(|&count| count <= MOST_CONFIG_MAPS);
    for count in counts.filter(|&count| most_of_one <= count) {
        let (mut maps, mut bytes) = (vec![BTreeMap::new(); count], vec![0; count]);
        for Part { key, value, number } in parts {
            maps[number % count].insert(key.as_str(), value.as_str());
            bytes[number % count] += key.len() + value.len();
        }
        if bytes.iter().all(|&bytes| bytes <= MOST_BYTES) {
            return Ok(maps);
        }
    }
    bail!(
        "The mirror has too many images for {MOST_CONFIG_MAPS} ConfigMaps of {} KiB. Use --match repository, which needs only the names of the repositories, or `ecr-transfer mirror webhook`.",
        MOST_BYTES >> 10
    );
}

fn manifests(repositories: &[MirroredRepository], matching: Match, options: &Options) -> Result<String> {
    let parts: Vec<_> = repositories.iter().map(|repository| parts(repository, matching)).collect();
    let most_of_one = parts.iter().map(Vec::len).max().unwrap_or_default();
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        bail!(
            "The mirror has no image that a policy could use, so nothing is printed. `ecr-transfer mirror list` shows what it has."
        );
    }
    let config_maps = config_maps(&parts, most_of_one)?;
    let fill = |template: &str| {
        template
            .replace("{name}", &options.name)
            .replace("{namespace}", &options.namespace)
            .replace("{count}", &config_maps.len().to_string())
    };
    let mut yaml = String::new();
    // The binding comes last and selects all ConfigMaps at once, so that a different number of them is no gap.
    for (index, data) in config_maps.iter().enumerate() {
        yaml += &fill(CONFIG_MAP).replace("{index}", &index.to_string());
        for (key, value) in data {
            // A name, tag or digest has no character with a meaning in a quoted string.
            writeln!(yaml, "  {key}: \"{value}\"").expect("memory does not fail");
        }
        yaml += "---\n";
    }
    yaml += &fill(POLICY)
        .replace("{version}", if options.v1beta1 { "v1beta1" } else { "v1" })
        .replace("{failure_policy}", &format!("{:?}", options.failure_policy))
        .replace("{is_mirrored}", if matching == Match::Image { HAS_IMAGE } else { HAS_REPOSITORY });
    Ok(yaml)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_yaml_ng::Value;
    use shared::inventory::MirroredImage;

    use super::*;

    const PAGES: [&str; 2] =
        [include_str!("../../../docs/mirror/kubernetes.md"), include_str!("../../../docs/mirror/kubernetes.zh.md")];

    /// The blocks of code of a page in one language.
    fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
        let begin = format!("```{language}\n");
        page.split(&begin).skip(1).map(|rest| rest.split_once("```").expect("the block ends").0).collect()
    }

    fn options(arguments: &str) -> Options {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        Line::parse_from(format!("mirror {arguments}").split_whitespace()).options
    }

    fn documents(yaml: &str) -> Vec<Value> {
        yaml.split(
            "
---
",
        )
        .map(|document| serde_yaml_ng::from_str(document).expect(document))
        .collect()
    }

    fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
        path.split(' ')
            .fold(value, |value, key| key.parse::<usize>().map_or_else(|_| &value[key], |index| &value[index]))
    }

    fn mirrored(source: &str, destination: &str, tags: &[String]) -> MirroredRepository {
        let image = |tag: &String| MirroredImage {
            tag: (!tag.is_empty()).then(|| tag.parse().expect("it is a tag")),
            digest: Digest::of(tag.as_bytes()),
        };
        MirroredRepository {
            source: source.parse().expect(source),
            destination: destination.parse().expect(destination),
            images: tags.iter().map(image).collect(),
        }
    }

    fn numbered(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("1.{number}")).collect()
    }

    /// The data of all ConfigMaps: repository, copy, and tag or digest.
    fn data(yaml: &str) -> Vec<BTreeSet<(String, String)>> {
        let config_maps = documents(yaml).into_iter().filter(|document| document["kind"] == "ConfigMap");
        let entries = |document: Value| -> BTreeMap<String, String> {
            serde_yaml_ng::from_value(document["data"].clone()).expect("it is a map")
        };
        config_maps
            .map(entries)
            .map(|entries| {
                let words = |(key, value): &(String, String)| -> Vec<_> {
                    let key = key.replace('S', "/").replace('P', ":");
                    let (copy, words) = value.split_once(' ').expect("the copy comes first");
                    words.split_whitespace().map(|word| (format!("{key} {copy}"), word.to_owned())).collect()
                };
                entries.into_iter().flat_map(|entry| words(&entry)).collect()
            })
            .collect()
    }

    fn printed(repositories: &[MirroredRepository]) -> String {
        manifests(repositories, Match::Image, &options("")).expect("there are images")
    }

    #[test]
    fn the_pages_show_what_is_printed_and_what_it_does() {
        for page in PAGES {
            let inventory = Inventory::parse(blocks(page, "json")[0].as_bytes()).expect("it is an inventory");
            let (repositories, skipped) = selected(&inventory);
            assert_eq!(skipped, []);
            assert_eq!(printed(&repositories).split("---\n").next(), Some(blocks(page, "yaml")[0]));
            let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | `"));
            let images: Vec<_> = rows.map(|(image, rest)| (image, rest.split('`').next())).collect();
            assert_eq!(images.len(), 7);
            for (image, expected) in images {
                let name = match inventory.resolve(image, Match::Image) {
                    Ok(shared::inventory::Resolved::Mirrored(mirror)) => mirror.to_string(),
                    _ => image.to_owned(),
                };
                assert_eq!(Some(name.as_str()), expected, "{image}");
            }
            for yaml in blocks(page, "yaml") {
                assert!(!documents(yaml).is_empty());
                for line in yaml.lines().filter_map(|line| line.split_once("- run: ecr-transfer ")) {
                    parse(line.1);
                }
            }
            blocks(page, "bash")
                .iter()
                .flat_map(|block| block.lines())
                .filter_map(|line| line.strip_prefix("ecr-transfer "))
                .for_each(parse);
        }
        for language in ["bash", "json", "yaml"] {
            assert_eq!(blocks(PAGES[0], language), blocks(PAGES[1], language));
        }
    }

    /// Panics if a command line in a page is not valid.
    fn parse(line: &str) {
        let line = line.split(['|', '>']).next().unwrap_or_default();
        let arguments = std::iter::once("ecr-transfer").chain(line.split_whitespace());
        if let Err(error) = crate::Arguments::try_parse_from(arguments) {
            panic!("{line}: {error}");
        }
    }

    #[test]
    fn the_binding_selects_the_config_maps() {
        let repositories = [mirrored("quay.io/a/b", "r.example/b", &numbered(9000))];
        let yaml =
            manifests(&repositories, Match::Image, &options("--name x --namespace z --v1beta1 --failure-policy fail"));
        let documents = documents(&yaml.expect("there are images"));
        let (config_maps, others) = documents.split_at(documents.len() - 2);
        assert_eq!(config_maps.len(), 16);
        let [policy, binding] = others else { panic!("{others:?}") };
        let selected = at(binding, "spec paramRef selector matchLabels").as_mapping().expect("it selects");
        for (index, config_map) in config_maps.iter().enumerate() {
            assert_eq!(at(config_map, "kind"), "ConfigMap");
            assert_eq!(at(config_map, "metadata name"), &format!("x-16-{index}"));
            assert_eq!(at(config_map, "metadata namespace"), at(binding, "spec paramRef namespace"));
            assert!(selected.iter().all(|(key, value)| at(config_map, "metadata labels").get(key) == Some(value)));
        }
        assert_eq!(selected["ecr-transfer/config-maps"], "16");
        assert_eq!(at(binding, "spec policyName"), at(policy, "metadata name"));
        for (path, expected) in [
            ("apiVersion", "admissionregistration.k8s.io/v1beta1"),
            ("kind", "MutatingAdmissionPolicy"),
            ("metadata name", "x"),
            ("spec failurePolicy", "Fail"),
            ("spec matchConstraints resourceRules 0 resources 0", "pods"),
            ("spec matchConstraints resourceRules 1 resources 0", "pods/ephemeralcontainers"),
            ("spec matchConstraints namespaceSelector matchExpressions 0 key", "ecr-transfer/mirror"),
            ("spec matchConstraints objectSelector matchExpressions 0 key", "ecr-transfer/mirror"),
            ("spec mutations 0 patchType", "JSONPatch"),
        ] {
            assert_eq!(at(policy, path), expected, "{path}");
        }
        assert!(!serde_yaml_ng::to_string(&documents).expect("it is YAML").contains("{name}"));
    }

    #[test]
    fn the_default_is_v1_and_ignores_failures() {
        let documents = documents(&printed(&[mirrored("quay.io/a/b", "r.example/b", &numbered(1))]));
        let policy = &documents[1];
        assert_eq!(
            (at(policy, "apiVersion"), at(policy, "spec failurePolicy")),
            (&"admissionregistration.k8s.io/v1".into(), &"Ignore".into())
        );
        assert_eq!(at(&documents[2], "spec paramRef parameterNotFoundAction"), "Allow");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Also of a repository that needs several ConfigMaps.
        #[test]
        fn each_image_is_in_one_config_map(sizes in vec(prop_oneof![4 => 0..20_usize, 1 => 0..3000_usize], 1..8)) {
            let repositories: Vec<_> = sizes.iter().enumerate()
                .map(|(index, &size)| mirrored(&format!("a.b:80/r{index}"), &format!("r.example/{index}"), &numbered(size)))
                .collect();
            prop_assume!(sizes.iter().any(|&size| size > 0));
            let data = data(&printed(&repositories));
            let expected: BTreeSet<_> = repositories.iter().flat_map(|repository| {
                let name = format!("{} {}", repository.source, repository.destination);
                repository.images.iter().flat_map(move |image| {
                    let words = [format!("@{}", image.digest.hex()), image.tag.as_ref().expect("all have tags").to_string()];
                    words.map(|word| (name.clone(), word))
                })
            }).collect();
            prop_assert!(data.len().is_power_of_two());
            prop_assert_eq!(data.iter().map(BTreeSet::len).sum::<usize>(), expected.len());
            prop_assert_eq!(data.into_iter().flatten().collect::<BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn a_new_image_changes_only_the_config_maps_that_get_its_tag_and_its_digest() {
        let of = |count| data(&printed(&[mirrored("quay.io/a/b", "r.example/b", &numbered(count))]));
        let (before, after) = (of(5000), of(5001));
        assert_eq!((before.len(), after.len()), (8, 8));
        let added =
            before.iter().zip(&after).map(|(before, after)| (after.len() - before.len(), before.is_subset(after)));
        let added: Vec<_> = added.collect();
        assert!(
            added.iter().all(|added| added.1) && added.iter().map(|added| added.0).sum::<usize>() == 2,
            "{added:?}"
        );
    }

    #[test]
    fn with_match_repository_there_is_an_entry_without_images() {
        let repositories = [mirrored("quay.io/a/b", "r.example/b", &[])];
        let yaml = manifests(&repositories, Match::Repository, &options("")).expect("there is a repository");
        assert_eq!(at(&documents(&yaml)[0], "data quay.ioSaSb"), "r.example/b ");
        assert!(yaml.contains(HAS_REPOSITORY) && !yaml.contains(HAS_IMAGE));
    }

    #[test]
    fn what_a_policy_cannot_change_is_named() {
        let long = format!("quay.io/{}", "a/".repeat(123) + "a");
        let mut inventory = Inventory::new("r.example".parse().expect("it is a host"));
        for (source, destination) in [
            ("quay.io/a", "r.example/a"),
            ("r.example/a", "r.example/copy/a"),
            ("r.example/b", "r.example/copy/b"),
            (long.as_str(), "r.example/long"),
        ] {
            inventory.add(mirrored(source, destination, &numbered(1)));
        }
        let (selected, skipped) = selected(&inventory);
        let sources: Vec<_> = selected.iter().map(|repository| repository.source.to_string()).collect();
        assert_eq!(sources, ["quay.io/a", "r.example/b"]);
        let skipped: Vec<_> = skipped.iter().map(|(repository, reason)| (repository.to_string(), *reason)).collect();
        assert_eq!(
            skipped,
            [(long, "its name is too long for a key of a ConfigMap"), ("r.example/a".into(), "it is a mirror itself")]
        );
    }

    #[test]
    fn nothing_and_too_much_are_errors() {
        let empty = mirrored("quay.io/a/b", "r.example/b", &[]);
        let error = manifests(&[empty], Match::Image, &options("")).expect_err("there is no image").to_string();
        assert!(error.starts_with("The mirror has no image"), "{error}");

        let part = |number: usize| Part { key: number.to_string(), value: "x".repeat(MOST_BYTES - 2), number };
        let mut parts: Vec<_> = (0..MOST_CONFIG_MAPS).map(part).collect();
        assert_eq!(config_maps(&parts, 1).expect("one fits into each").len(), MOST_CONFIG_MAPS);
        parts.push(part(0));
        parts[0].key = "another".into();
        let error = config_maps(&parts, 1).expect_err("two do not fit into one").to_string();
        assert!(error.contains("64 ConfigMaps of 768 KiB. Use --match repository"), "{error}");
    }

    #[test]
    fn a_name_is_one_that_kubernetes_allows() {
        for name in ["a", "ecr-transfer", "a-1", &"a".repeat(63)] {
            assert!(label(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a b",
            "{count}",
            "a\nb",
            "é",
            "1",
            "0-1",
            "null",
            "true",
            "y",
            &"a".repeat(64),
        ] {
            assert!(label(name).is_err(), "{name}");
        }
    }
}
