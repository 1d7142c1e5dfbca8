//! `images`.

use anyhow::Result;

use super::Common;
use super::progress::{Progress, blank, bytes};
use crate::Outcome;
use crate::output::{cell, note, print, print_json, status_cell, table};
use crate::tasks::{self, Image};

/// Images of a table, unless `--limit` says more. A file or a script gets all.
const LIMIT: usize = 1_000;

/// Images of one request.
const PAGE: usize = 1_000;

#[derive(clap::Args)]
pub struct Images {
    /// The task
    task: String,
    /// Only images whose repository:tag contains this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only images whose last copy failed; exit code 1 if there are any
    #[arg(long)]
    failed: bool,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// The most images to list; default: 1000 in a table, and otherwise all
    #[arg(long)]
    limit: Option<usize>,
    #[command(flatten)]
    common: Common,
}

pub async fn images(arguments: &Images) -> Result<Outcome> {
    let Images { search, failed, csv, common, .. } = arguments;
    let account = common.account().await?;
    let task = account.task(&arguments.task).await?;
    let limit = arguments.limit.unwrap_or(if *csv || common.json { usize::MAX } else { LIMIT });
    let progress = Progress::start("reading the table");
    let (mut images, mut next) = (Vec::new(), None);
    loop {
        let wanted = (limit - images.len()).min(PAGE);
        let page = account.images(&task, search.as_deref(), *failed, wanted, next.as_deref()).await?;
        images.extend(page.items);
        next = page.next;
        progress.say(format_args!("{} images", images.len()));
        if next.is_none() || images.len() >= limit {
            break;
        }
    }
    drop(progress);
    if images.len() > limit || next.is_some() {
        images.truncate(limit);
        note(format_args!("There are more than {limit} images. Use --search, --limit or --csv."));
    }
    images.sort_by(|a, b| (&a.image, &a.tag).cmp(&(&b.image, &b.tag)));
    if common.json {
        print_json(&images)?;
    } else if *csv {
        print(tasks::csv(&images))?;
    } else {
        print(format_args!("{}\n", table_of(&images)))?;
    }
    Ok(Outcome::success_if(!failed || images.is_empty()))
}

fn table_of(images: &[Image]) -> comfy_table::Table {
    let mut rows = table(["IMAGE", "STATUS", "BYTES", "SECONDS", "ATTEMPTS", "UPDATED", "ERROR"]);
    for image in images {
        rows.add_row([
            cell(image.name()),
            status_cell(image.status()),
            cell(bytes(image.bytes)),
            cell(blank(image.seconds)),
            cell(blank(image.attempts)),
            cell(blank(image.updated_at)),
            cell(blank(image.error.as_ref())),
        ]);
    }
    rows
}
