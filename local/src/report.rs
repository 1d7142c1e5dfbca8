//! What a person sees of a run: its phases, how far it has come, and what became of each image.

#![expect(clippy::print_stdout, reason = "this module is what the command prints")]

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use local::{
    Result,
    stack::{Execution, ExecutionRow, ImageRow, Outcome, Stack},
};

/// How often the counts of a running execution are looked at.
const REFRESH: Duration = Duration::from_millis(300);

/// Prints a line.
pub fn line(text: &str) {
    println!("{text}");
}

/// Waits for a phase, and says how long it took.
///
/// # Errors
/// What the phase itself reports.
pub async fn phase<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let bar = if std::io::stdout().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    let started = Instant::now();
    let result = work.await;
    bar.finish_and_clear();
    let mark = if result.is_ok() { "✓" } else { "✗" };
    println!("{mark} {what}  {:.1} s", started.elapsed().as_secs_f64());
    result
}

/// An execution of a stack that somebody waits for.
pub struct Watched<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The execution.
    pub execution: Execution,
}

/// How an execution ended.
pub struct Ended {
    /// What Step Functions says.
    pub outcome: Outcome,
    /// What the table says.
    pub counts: ExecutionRow,
    /// How long it took.
    pub elapsed: Duration,
}

/// Waits for executions, and shows how far they are.
///
/// # Errors
/// If their state cannot be read.
pub async fn follow(executions: &[Watched<'_>]) -> Result<Vec<Ended>> {
    let bars = MultiProgress::new();
    let terminal = std::io::stdout().is_terminal();
    if !terminal {
        bars.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let width = executions.iter().map(|watched| watched.stack.name().len()).max().unwrap_or_default();
    let waits = executions.iter().map(|watched| {
        // Of an unknown length, but a bar of none is a full one.
        let bar = bars.add(ProgressBar::new(1));
        if let Ok(style) = ProgressStyle::with_template("  {prefix} {bar:32.green} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(format!("{:width$}", watched.stack.name()));
        bar.set_message("listing");
        follow_one(watched, bar, terminal)
    });
    let ended = futures_util::future::try_join_all(waits).await;
    // What is left to say, the endings say.
    let _ = bars.clear();
    ended
}

async fn follow_one(watched: &Watched<'_>, bar: ProgressBar, terminal: bool) -> Result<Ended> {
    let Watched { stack, execution } = watched;
    let started = Instant::now();
    let mut shown = None;
    loop {
        // In this order, so that what is counted when it has ended is all that is ever counted.
        let outcome = execution.describe().await?;
        let counts = stack.execution_row(execution.name()).await?;
        if counts.is_some() && shown != counts {
            let counts = counts.unwrap_or_default();
            bar.set_length(counts.to_copy.max(1));
            bar.set_position(counts.done + counts.failed);
            bar.set_message(progress(&counts));
            if !terminal {
                println!("  {}: {}", stack.name(), progress(&counts));
            }
        }
        shown = counts;
        if outcome.status != "RUNNING" {
            bar.finish();
            return Ok(Ended { outcome, counts: counts.unwrap_or_default(), elapsed: started.elapsed() });
        }
        tokio::time::sleep(REFRESH).await;
    }
}

fn progress(counts: &ExecutionRow) -> String {
    let ExecutionRow { to_copy, done, failed, bytes_done, unchanged, .. } = counts;
    let mut text = format!("{done} of {to_copy} images, {}", HumanBytes(*bytes_done));
    if *unchanged > 0 {
        text += &format!(", {unchanged} unchanged");
    }
    if *failed > 0 {
        text += &format!(", {failed} failed");
    }
    text
}

/// Says of each execution how it ended.
pub fn endings(executions: &[Watched<'_>], ended: &[Ended]) {
    for (watched, end) in executions.iter().zip(ended) {
        let mark = if end.outcome.succeeded() { "✓" } else { "✗" };
        let seconds = end.elapsed.as_secs_f64();
        println!(
            "{mark} {}: {}, {}  {seconds:.1} s",
            watched.stack.name(),
            end.outcome.status.to_lowercase(),
            progress(&end.counts)
        );
        for text in [&end.outcome.error, &end.outcome.cause].into_iter().flatten() {
            println!("    {text}");
        }
    }
}

/// Prints what became of each image.
pub fn images(rows: &[ImageRow]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(["Image", "Tag", "Status", "Digest", "Size", "Seconds"]);
    for column in [4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let rows: BTreeMap<_, _> = rows.iter().map(|row| ((&row.image, &row.tag), row)).collect();
    for row in rows.values() {
        let color = if row.status == "Done" { Color::Green } else { Color::Red };
        table.add_row([
            Cell::new(&row.image),
            Cell::new(if row.tag.starts_with("sha256:") { "(none)" } else { &row.tag }),
            Cell::new(&row.status).fg(color),
            Cell::new(row.digest.as_deref().map(short).unwrap_or_default()),
            Cell::new(row.bytes.map(|bytes| HumanBytes(bytes).to_string()).unwrap_or_default()),
            Cell::new(row.seconds.map(|seconds| seconds.to_string()).unwrap_or_default()),
        ]);
    }
    println!("{table}");
    let mut errors: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in rows.values() {
        if let Some(error) = &row.error_message {
            errors.entry(error).or_default().push(format!("{}:{}", row.image, row.tag));
        }
    }
    for (error, images) in errors {
        println!("✗ {}: {error}", enumerated(&images));
    }
}

/// Says which images are not what they should be.
pub fn wrong(images: &[String]) {
    const SHOWN: usize = 10;
    for image in images.iter().take(SHOWN) {
        println!("✗ {image}");
    }
    if images.len() > SHOWN {
        println!("  and {} more", images.len() - SHOWN);
    }
}

/// The first few, and how many more there are.
fn enumerated(names: &[String]) -> String {
    const SHOWN: usize = 3;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}

/// A digest, as much of it as people read.
fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}
