//! What the comparison found: a table for each latency, the goals, and a picture.

use std::num::NonZeroUsize;

use super::{Job, Row, Tool};
use crate::{
    chart::{self, Bar, Panel},
    report::{Goal, NOTHING, Report, circumstances, count, table},
};

pub fn report(rows: &[Row], latencies: &[u64], runs: NonZeroUsize) -> Report {
    let tables: Vec<_> = latencies
        .iter()
        .map(|&latency| {
            let rows: Vec<_> = rows.iter().filter(|row| row.latency == latency).collect();
            format!("### {}\n\n{}", title(latency), measured(&rows))
        })
        .collect();
    let longest = latencies.iter().max().copied().unwrap_or_default();
    let slowest: Vec<_> = rows.iter().filter(|row| row.latency == longest).collect();
    Report {
        parts: vec![("tables", tables.join("\n\n")), ("circumstances", circumstances(runs))],
        goals: goals(&slowest),
        picture: Some(picture(&slowest, longest)),
    }
}

fn title(latency: u64) -> String {
    if latency == 0 { "Without latency".to_owned() } else { format!("{latency} ms for each request") }
}

fn measured(rows: &[&Row]) -> String {
    let header = [
        "",
        "Time",
        "÷ skopeo sync",
        "Requests",
        "source",
        "destination",
        "AWS",
        "MB",
        "÷ unique layers",
        "Tasks",
        "CPU",
        "Memory",
    ];
    table(
        header,
        rows.iter().map(|row| {
            let Row { job, tool, traffic, usage, .. } = row;
            let ratio = |ratio: Option<f64>| ratio.map_or_else(|| NOTHING.to_owned(), |ratio| format!("{ratio:.2}"));
            let (manifests, blobs, uploads) = traffic.destination;
            [
                format!("{}: {}", job.name(), tool.name()),
                format!("{:.1} s", seconds(row)),
                ratio(find(rows, *job, Tool::SkopeoSync).map(|sync| seconds(row) / seconds(sync))),
                count(traffic.requests()),
                format!("{} + {}", traffic.source.0, traffic.source.1),
                format!("{manifests} + {blobs} + {uploads}"),
                count(traffic.calls),
                format!("{:.0}", traffic.bytes as f64 / 1e6),
                ratio(row.over_unique),
                count(row.tasks),
                format!("{:.1} s", usage.cpu),
                format!("{:.0} MB", usage.memory as f64 / 1e6),
            ]
        }),
    )
}

fn find<'a>(rows: &[&'a Row], job: Job, tool: Tool) -> Option<&'a Row> {
    rows.iter().find(|row| (row.job, row.tool) == (job, tool)).copied()
}

fn seconds(row: &Row) -> f64 {
    row.time.as_secs_f64()
}

/// None, unless ecr-transfer and skopeo sync were measured.
fn goals(rows: &[&Row]) -> Vec<Goal> {
    let ours = |job| find(rows, job, Tool::EcrTransfer);
    let (Some(cold), Some(nothing), Some(changed)) = (ours(Job::Cold), ours(Job::Nothing), ours(Job::OneChanged))
    else {
        return Vec::new();
    };
    let Some(sync) = find(rows, Job::Cold, Tool::SkopeoSync) else { return Vec::new() };
    let against =
        |what, ours: &Row, number: fn(&Row) -> f64, text: fn(f64) -> String, is_met: fn(&f64, &f64) -> bool| {
            let others = rows.iter().filter(|row| row.job == ours.job && row.tool != ours.tool);
            let (ours, best) = (number(ours), others.map(|row| number(row)).fold(f64::INFINITY, f64::min));
            Goal::new(what, format!("{}, best other {}", text(ours), text(best)), is_met(&ours, &best))
        };
    let requests = |row: &Row| row.traffic.requests() as f64;
    let (whole, tenths) = (|requests| format!("{requests:.0}"), |seconds| format!("{seconds:.1} s"));
    let times = seconds(sync) / seconds(cold);
    vec![
        Goal::new("Nothing to do: no task", nothing.tasks.to_string(), nothing.tasks == 0),
        against("Nothing to do: fewer requests than any other tool", nothing, requests, whole, f64::lt),
        against("Nothing to do: faster than any other tool", nothing, seconds, tenths, f64::lt),
        Goal::new("One image changed: one task", changed.tasks.to_string(), changed.tasks == 1),
        Goal::new("Cold copy: three times as fast as skopeo sync", format!("{times:.1} times"), times >= 3.0),
        against("Cold copy: not slower than any other tool", cold, seconds, tenths, f64::le),
    ]
}

fn picture(rows: &[&Row], latency: u64) -> String {
    let panels = Job::ALL.map(|job| Panel {
        title: format!("{}, {}", job.name(), title(latency).to_lowercase()),
        bars: rows
            .iter()
            .filter(|row| row.job == job)
            .map(|row| Bar { name: row.tool.name(), seconds: seconds(row), is_ours: row.tool == Tool::EcrTransfer })
            .collect(),
    });
    chart::draw("Time of each tool for each job", &panels)
}
