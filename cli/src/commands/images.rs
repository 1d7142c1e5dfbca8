//! `images`.

use anyhow::Result;

use super::Common;
use super::progress::{Progress, blank, bytes};
use crate::Outcome;
use crate::output::{cell, note, print, print_json, status_cell, table};
use crate::tasks::Image;

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
        print(csv_of(&images))?;
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
            status_cell(status(image)),
            cell(bytes(image.bytes)),
            cell(blank(image.seconds)),
            cell(blank(image.attempts)),
            cell(blank(image.updated_at)),
            cell(blank(image.error.as_ref())),
        ]);
    }
    rows
}

fn status(image: &Image) -> &'static str {
    if image.is_done { shared::task::DONE } else { shared::task::ERROR }
}

/// [RFC 4180](https://www.rfc-editor.org/rfc/rfc4180). Values have no line breaks.
fn csv_of(images: &[Image]) -> String {
    let header =
        "image,tag,status,error,failingSince,source,destination,digest,bytes,seconds,attempts,run,updatedAt\r\n";
    let row = |image: &Image| {
        let values = [
            image.image.to_string(),
            image.tag.to_string(),
            status(image).to_owned(),
            blank(image.error.as_ref()),
            blank(image.failing_since),
            blank(image.source.as_ref()),
            blank(image.destination.as_ref()),
            blank(image.digest.as_ref()),
            blank(image.bytes),
            blank(image.seconds),
            blank(image.attempts),
            blank(image.run.as_ref()),
            blank(image.updated_at),
        ];
        values.iter().map(|value| csv_value(value)).collect::<Vec<_>>().join(",") + "\r\n"
    };
    images.iter().fold(header.to_owned(), |text, image| text + &row(image))
}

/// A value with quotes where it needs them. A spreadsheet takes what begins like a formula for one, so an apostrophe comes
/// before it.
fn csv_value(value: &str) -> String {
    let guard = if value.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    if value.contains([',', '"', '\n', '\r']) {
        format!("\"{guard}{}\"", value.replace('"', "\"\""))
    } else {
        format!("{guard}{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_quoted_where_it_must_be_and_no_formula() {
        for (value, expected) in [
            ("nginx", "nginx"),
            ("", ""),
            ("a,b", "\"a,b\""),
            ("say \"no\"", "\"say \"\"no\"\"\""),
            ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
            ("-1,2", "\"'-1,2\""),
        ] {
            assert_eq!(csv_value(value), expected);
        }
    }
}
