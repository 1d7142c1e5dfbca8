//! Prints the names of images at the mirror.

use anyhow::Result;
use serde_json::json;
use shared::inventory::Resolved;
use shared::text::Excerpt;

use super::inventory;
use crate::Outcome;
use crate::output::{note, print, printable};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    inventory: inventory::Source,
    #[command(flatten)]
    matching: inventory::Matching,
    /// Print JSON: an array of {"image", "mirror"} or {"image", "reason"}
    #[arg(long)]
    json: bool,
    /// Images as in `docker pull`: nginx, quay.io/coreos/etcd:v3.5.1, nginx@sha256:…
    #[arg(required = true)]
    images: Vec<String>,
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let inventory = arguments.inventory.load().await?;
    let (mut lines, mut items, mut all_mirrored) = (String::new(), Vec::new(), true);
    for image in &arguments.images {
        let mirror = match inventory.resolve(image, arguments.matching.value()) {
            Ok(Resolved::Mirrored(mirror)) => mirror.to_string(),
            Ok(Resolved::AlreadyMirrored) => image.clone(),
            Err(reason) => {
                all_mirrored = false;
                if arguments.json {
                    items.push(json!({ "image": image, "reason": reason.to_string() }));
                } else {
                    note(format_args!("{}: {reason}", Excerpt::new(image).as_str()));
                }
                continue;
            }
        };
        items.push(json!({ "image": image, "mirror": mirror }));
        lines.push_str(&mirror);
        lines.push('\n');
    }
    print(if arguments.json { printable(&serde_json::to_string_pretty(&items)?) + "\n" } else { lines })?;
    Ok(Outcome::success_if(all_mirrored))
}
