//! Lists what the mirror has.

use anyhow::Result;
use comfy_table::{Table, presets};
use shared::inventory::MirroredRepository;
use shared::reference::ImageReference;

use super::inventory;
use crate::Outcome;
use crate::output::print;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    inventory: inventory::Source,
    /// Print JSON: an array of {"source", "destination", "images": [{"tag", "digest"}]}
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let repositories = arguments.inventory.load().await?.repositories();
    if arguments.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&repositories)?))?;
    } else {
        print(format_args!("{}\n", table(&repositories)))?;
    }
    Ok(Outcome::Success)
}

fn table(repositories: &[MirroredRepository]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["IMAGE", "MIRROR", "DIGEST"]);
    for MirroredRepository { source, destination, images } in repositories {
        for image in images {
            let digest = image.tag.is_none().then_some(image.digest);
            let name = |repository| ImageReference { repository, tag: image.tag.clone(), digest }.to_string();
            table.add_row([name(source.clone()), name(destination.clone()), image.digest.to_string()]);
        }
    }
    table
}
