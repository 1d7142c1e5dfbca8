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

/// About how many bytes of a repository one ConfigMap has. The policy searches all of them for each container, and Kubernetes
/// limits the cost of that.
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
    /// The namespace of the ConfigMaps. Who can write ConfigMaps there decides which images all pods pull
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

/// Parses a name that Kubernetes allows for a namespace and as the value of a label.
fn label(text: &str) -> Result<String, &'static str> {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_valid = text.bytes().all(|byte| is_word(byte) || byte == b'-')
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().last().is_some_and(is_word)
        && text.len() <= 63;
    if is_valid { Ok(text.to_owned()) } else { Err("up to 63 lowercase letters, digits and -") }
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
    let repositories = inventory.repositories();
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
    let count = bytes.div_ceil(BYTES_OF_A_PART).next_power_of_two();
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

/// As few ConfigMaps as have enough room, and a power of two, as [`parts`].
fn config_maps(parts: &[Part], most_of_one: usize) -> Option<Vec<BTreeMap<&str, &str>>> {
    let counts = (0..).map(|exponent| 1 << exponent).take_while(|&count| count <= MOST_CONFIG_MAPS);
    counts.filter(|&count| most_of_one <= count).find_map(|count| {
        let (mut maps, mut bytes) = (vec![BTreeMap::new(); count], vec![0; count]);
        for Part { key, value, number } in parts {
            maps[number % count].insert(key.as_str(), value.as_str());
            bytes[number % count] += key.len() + value.len();
        }
        bytes.iter().all(|&bytes| bytes <= MOST_BYTES).then_some(maps)
    })
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
    let Some(config_maps) = config_maps(&parts, most_of_one) else {
        bail!(
            "The mirror has too many images for {MOST_CONFIG_MAPS} ConfigMaps of {} KiB. Use --match repository, which needs only the names of the repositories, or `ecr-transfer mirror webhook`.",
            MOST_BYTES >> 10
        );
    };
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
            writeln!(yaml, "  {key}: {value:?}").expect("memory does not fail");
        }
        yaml += "---\n";
    }
    yaml += &fill(POLICY)
        .replace("{version}", if options.v1beta1 { "v1beta1" } else { "v1" })
        .replace("{failure_policy}", &format!("{:?}", options.failure_policy))
        .replace("{is_mirrored}", if matching == Match::Image { HAS_IMAGE } else { HAS_REPOSITORY });
    Ok(yaml)
}
