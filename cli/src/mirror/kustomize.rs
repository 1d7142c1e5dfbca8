//! Prints a component for Kustomize that replaces the images with those of the mirror.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use shared::inventory::{Match, MirroredRepository};
use shared::reference::Repository;

use super::inventory;
use super::rewrite::images::is_ambiguous;
use super::rewrite::uses::{Fate, Names, Use, name_of};
use super::rewrite::{STDIN, images, left, name, parse, read, report, without_mark};
use crate::Outcome;
use crate::output::print;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    inventory: inventory::Source,
    /// Print all repositories of the mirror, without manifests
    #[arg(long, conflicts_with = "files")]
    all: bool,
    /// Manifests; without any, or with -, standard input. An image is printed if the mirror has it with all their tags
    files: Vec<PathBuf>,
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let Arguments { all, files, .. } = arguments;
    ensure!(
        *all || !files.is_empty() || !io::stdin().is_terminal(),
        "There are no manifests. {}, or add --all to print all repositories",
        advice("DIRECTORY")
    );
    let inventory = arguments.inventory.load().await?;
    let names = Names { inventory: &inventory, matching: Match::Image };
    let mut entries = Entries::new();
    if *all {
        for MirroredRepository { source, destination, images } in inventory.repositories() {
            if !images.is_empty() {
                entries.extend(spellings(&source).into_iter().map(|name| (name, Some(destination.to_string()))));
            }
        }
    }
    let stdin = [PathBuf::from(STDIN)];
    let files = if files.is_empty() && !all { stdin.as_slice() } else { files };
    let mut has_images = *all;
    for file in files {
        ensure!(!file.is_dir(), "{0} is a directory. {1}", name(file), advice(&name(file)));
        let text = read(file).with_context(|| name(file))?;
        let text = without_mark(&text);
        let tree = parse(text).with_context(|| name(file))?;
        let uses = images::find(text, &tree, names);
        report(file, &left(text, &uses));
        has_images |= !uses.is_empty();
        add(&mut entries, uses);
    }
    ensure!(has_images, "The manifests have no images. {}", advice("DIRECTORY"));
    print(component(entries))?;
    Ok(Outcome::Success)
}

/// How to get the manifests of a directory.
fn advice(directory: &str) -> String {
    format!("Run: kubectl kustomize {directory} | ecr-transfer mirror kustomize")
}

/// The names of images, with those that replace them; `None` for one that Kustomize must not replace.
pub type Entries = BTreeMap<String, Option<String>>;

/// Adds the images of manifests.
pub fn add(entries: &mut Entries, uses: Vec<Use>) {
    for Use { image, fate, .. } in uses {
        let known = name_of(&image).to_owned();
        match fate {
            Fate::Mirrored { mirror, .. } => {
                entries.entry(known).or_insert_with(|| Some(mirror.repository.to_string()));
            }
            // Kustomize would also replace this one.
            Fate::Left(_) => {
                entries.insert(known, None);
            }
            Fate::AlreadyMirrored => {}
        }
    }
}

/// The component that replaces images.
pub fn component(entries: Entries) -> String {
    let text = |name: String| if is_ambiguous(&name) { format!("\"{name}\"") } else { name };
    let entries = entries.into_iter().filter_map(|(name, mirror)| Some((name, mirror?)));
    let images = entries.map(|(name, mirror)| format!("\n- name: {}\n  newName: {mirror}", text(name)));
    let mut images: String = images.collect();
    if images.is_empty() {
        images.push_str(" []");
    }
    format!("apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nimages:{images}\n")
}

/// The names of a repository. Kustomize compares names with the text in the manifest, and does not know that they are the same.
fn spellings(repository: &Repository) -> Vec<String> {
    let Repository { registry, name } = repository;
    if !registry.is_docker_hub() {
        return vec![repository.to_string()];
    }
    let paths = [Some(name.as_str()), name.as_str().strip_prefix("library/").filter(|name| !name.contains('/'))];
    let hosts = ["", "docker.io/", "index.docker.io/"];
    paths.into_iter().flatten().flat_map(|path| hosts.map(|host| format!("{host}{path}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_a_number_is_quoted() {
        let entries = [("1e3", "m/a"), ("a", "m/b")].map(|(name, mirror)| (name.to_owned(), Some(mirror.to_owned())));
        let component = component(entries.into());
        assert!(component.ends_with("images:\n- name: \"1e3\"\n  newName: m/a\n- name: a\n  newName: m/b\n"));
    }

    #[test]
    fn a_repository_of_docker_hub_has_several_names() {
        for (repository, expected) in [
            ("quay.io/library/a", "quay.io/library/a"),
            ("docker.io/a/b", "a/b docker.io/a/b index.docker.io/a/b"),
            (
                "docker.io/library/a",
                "library/a docker.io/library/a index.docker.io/library/a a docker.io/a index.docker.io/a",
            ),
        ] {
            assert_eq!(spellings(&repository.parse().expect(repository)).join(" "), expected);
        }
    }
}
