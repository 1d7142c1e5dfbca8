//! Lists what the mirror has. It is written repository by repository: all of them together would need much memory.

use std::io::{self, Write};
use std::iter;

use anyhow::Result;
use serde::Serializer as _;
use serde_json::Serializer;
use shared::inventory::{Inventory, MirroredRepository};
use shared::reference::ImageReference;

use super::inventory;
use crate::Outcome;
use crate::output::print_with;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    inventory: inventory::Source,
    /// Print JSON: an array of {"source", "destination", "images": [{"tag", "digest"}]}
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let inventory = arguments.inventory.load().await?;
    print_with(|out| if arguments.json { json(&inventory, out) } else { table(&inventory, out) })?;
    Ok(Outcome::Success)
}

fn json(inventory: &Inventory, out: &mut dyn Write) -> io::Result<()> {
    Serializer::pretty(&mut *out).collect_seq(inventory.repositories())?;
    writeln!(out)
}

fn table(inventory: &Inventory, out: &mut dyn Write) -> io::Result<()> {
    let header = || iter::once(["IMAGE", "MIRROR", "DIGEST"].map(str::to_owned));
    let rows = || header().chain(inventory.repositories().flat_map(rows));
    let longest = |column: usize| rows().map(|row| row[column].len()).max().unwrap_or_default();
    let (first, second) = (longest(0), longest(1));
    for [image, mirror, digest] in rows() {
        writeln!(out, "{image:first$}  {mirror:second$}  {digest}")?;
    }
    Ok(())
}

/// The image, its name at the mirror, and its digest, of each image of a repository.
fn rows(repository: MirroredRepository) -> impl Iterator<Item = [String; 3]> {
    let MirroredRepository { source, destination, images } = repository;
    images.into_iter().map(move |image| {
        let digest = image.tag.is_none().then_some(image.digest);
        let name = |repository| ImageReference { repository, tag: image.tag.clone(), digest }.to_string();
        [name(source.clone()), name(destination.clone()), image.digest.to_string()]
    })
}

#[cfg(test)]
mod tests {
    use shared::inventory::MirroredImage;
    use shared::reference::Digest;

    use super::*;

    const HOST: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

    fn inventory() -> Inventory {
        let mut inventory = Inventory::new(HOST.parse().expect("it is a host"));
        for (source, name, tag) in [("docker.io/library/nginx", "nginx", Some("1")), ("a.b/c", "c", None)] {
            let tag: Option<&str> = tag;
            inventory.add(MirroredRepository {
                source: source.parse().expect(source),
                destination: format!("{HOST}/{name}").parse().expect(name),
                images: vec![MirroredImage { tag: tag.map(|tag| tag.parse().expect(tag)), digest: Digest::of(b"") }],
            });
        }
        inventory
    }

    fn written(write: fn(&Inventory, &mut dyn Write) -> io::Result<()>, inventory: &Inventory) -> String {
        let mut out = Vec::new();
        write(inventory, &mut out).expect("memory does not fail");
        String::from_utf8(out).expect("it is text")
    }

    #[test]
    fn a_line_has_an_image_its_name_at_the_mirror_and_its_digest() {
        let digest = Digest::of(b"");
        let (untagged, copy) = (format!("a.b/c@{digest}"), format!("{HOST}/c@{digest}"));
        let line = |image: &str, mirror: &str, digest: &str| {
            format!("{image:0$}  {mirror:1$}  {digest}\n", untagged.len(), copy.len())
        };
        let digest = digest.to_string();
        let expected = line("IMAGE", "MIRROR", "DIGEST")
            + &line(&untagged, &copy, &digest)
            + &line("docker.io/library/nginx:1", &format!("{HOST}/nginx:1"), &digest);
        assert_eq!(written(table, &inventory()), expected);
        let empty = Inventory::new(HOST.parse().expect("it is a host"));
        assert_eq!(written(table, &empty), "IMAGE  MIRROR  DIGEST\n");
        assert_eq!(written(json, &empty), "[]\n");
    }

    #[test]
    fn json_has_all_repositories() {
        let inventory = inventory();
        let repositories: Vec<_> = inventory.repositories().collect();
        let expected = serde_json::to_string_pretty(&repositories).expect("it is JSON") + "\n";
        assert_eq!(written(json, &inventory), expected);
    }
}
