//! The picture: time and peak memory over the number of images, both axes logarithmic.
//!
//! It lies on a card of its own, light or dark as the reader prefers, so that it can be read on any page.

use std::fmt::Write as _;

use indicatif::HumanCount;

use crate::{
    goals::{MEMORY, Row, TIME, mebibytes},
    measure::Measurement,
    scenario::Destination,
};

const STYLE: &str = "
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .middle { text-anchor: middle }
  .end { text-anchor: end }
  .card { fill: #ffffff; stroke: #d1d9e0 }
  .grid { stroke: #d1d9e0 }
  .goal { stroke: #59636e; stroke-dasharray: 5 4 }
  .same { stroke: #0969da; fill: #0969da }
  .changed { stroke: #bc4c00; fill: #bc4c00 }
  .empty { stroke: #8250df; fill: #8250df }
  polyline { fill: none !important; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .card { fill: #0d1117; stroke: #3d444d }
    .grid { stroke: #3d444d }
    .goal { stroke: #9198a1 }
    .same { stroke: #4493f8; fill: #4493f8 }
    .changed { stroke: #f0883e; fill: #f0883e }
    .empty { stroke: #ab7df8; fill: #ab7df8 }
  }
";

/// The size of the card, and of the area in which a panel's lines are.
const CARD: (f64, f64) = (860.0, 380.0);
const AREA: (f64, f64) = (330.0, 230.0);
/// The upper end of both areas, and the left end of each.
const TOP: f64 = 96.0;
const LEFT: [f64; 2] = [70.0, 490.0];

/// A point of a line: images, and seconds or MiB; or of the card.
pub type Point = (f64, f64);

/// One of the two diagrams.
struct Panel {
    title: &'static str,
    unit: &'static str,
    left: f64,
    goal: f64,
    lines: Vec<(Destination, Vec<Point>)>,
}

/// Draws the rows that were measured on whole registries of 100 images in each repository.
#[must_use]
pub fn draw(rows: &[Row]) -> String {
    let seconds = |run: &Measurement| run.time.as_secs_f64();
    let memory = |run: &Measurement| mebibytes(run.peak_memory);
    let panels = [
        Panel { title: "Time", unit: "s", left: LEFT[0], goal: TIME.as_secs_f64(), lines: lines(rows, seconds) },
        Panel { title: "Peak memory", unit: "MiB", left: LEFT[1], goal: MEMORY, lines: lines(rows, memory) },
    ];
    let mut svg = open(CARD, "Time and peak memory of list-images over the number of images");
    for (destination, x) in Destination::ALL.into_iter().zip([70.0, 230.0, 410.0]) {
        svg += &marker(destination, x, 30.0);
        svg += &text("", (x + 14.0, 34.5), destination.name());
    }
    for panel in &panels {
        svg += &panel.draw();
    }
    svg + "</svg>\n"
}

/// The beginning of a picture with a card of this size; `</svg>` ends it.
pub fn open((width, height): Point, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
         <title>{title}</title>\n\
         <style>{STYLE}</style>\n\
         <rect class=\"card\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n",
        width - 1.0,
        height - 1.0
    )
}

fn lines(rows: &[Row], number: impl Fn(&Measurement) -> f64) -> Vec<(Destination, Vec<Point>)> {
    let line = |destination| {
        let is_on_it = |row: &&Row| {
            let scenario = row.scenario;
            scenario.selected.is_none() && scenario.images == 100 && scenario.destination == destination
        };
        let point = |row: &Row| Some((row.scenario.expected().listed as f64, number(row.result.as_ref().ok()?)));
        (destination, rows.iter().filter(is_on_it).filter_map(point).collect())
    };
    Destination::ALL.map(line).into()
}

impl Panel {
    fn draw(&self) -> String {
        let Self { title, unit, left, goal, .. } = self;
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let columns = ticks(points().map(|point| point.0), &[1.0]);
        let levels = ticks(points().map(|point| point.1).chain([*goal]), &[1.0, 2.0, 5.0]);
        let x = |images: f64| left + AREA.0 * position(images, &columns);
        let y = |number: f64| TOP + AREA.1 * (1.0 - position(number, &levels));
        let (right, bottom) = (left + AREA.0, TOP + AREA.1);

        let mut svg = text("title", (*left, TOP - 16.0), &format!("{title} ({unit})"));
        for &level in &levels {
            let y = y(level);
            svg += &line("grid", (*left, y), (right, y));
            svg += &text("end", (left - 8.0, y + 4.5), &level.to_string());
        }
        for &images in &columns {
            let x = x(images);
            svg += &line("grid", (x, TOP), (x, bottom));
            svg += &text("middle", (x, bottom + 20.0), &HumanCount(images as u64).to_string());
        }
        svg += &text("middle", (left + AREA.0 / 2.0, bottom + 40.0), "images");
        svg += &line("goal", (*left, y(*goal)), (right, y(*goal)));
        svg += &text("", (left + 8.0, y(*goal) + 17.0), &format!("goal: at most {goal} {unit}"));
        for (destination, points) in &self.lines {
            let corners: Vec<_> = points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
            let _ = writeln!(svg, "<polyline class=\"{}\" points=\"{}\"/>", class(*destination), corners.join(" "));
            for point in points {
                svg += &marker(*destination, x(point.0), y(point.1));
            }
        }
        svg
    }
}

fn class(destination: Destination) -> &'static str {
    match destination {
        Destination::Same => "same",
        Destination::Changed => "changed",
        Destination::Empty => "empty",
    }
}

/// A mark whose shape alone tells what it is about.
fn marker(destination: Destination, x: f64, y: f64) -> String {
    let class = class(destination);
    match destination {
        Destination::Same => format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>\n"),
        Destination::Changed => {
            format!("<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\"/>\n", x - 4.0, y - 4.0)
        }
        Destination::Empty => format!("<path class=\"{class}\" d=\"M{x:.1} {:.1}l5 9h-10z\"/>\n", y - 5.5),
    }
}

fn line(class: &str, from: Point, to: Point) -> String {
    format!(
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\n",
        from.0, from.1, to.0, to.1
    )
}

/// A text, whose class says on which side of the point it is.
pub fn text(class: &str, at: Point, text: &str) -> String {
    format!("<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>\n", at.0, at.1)
}

/// The round numbers, `steps` in each decade, from the last one below all `numbers` to the first one above them.
fn ticks(numbers: impl Iterator<Item = f64> + Clone, steps: &[f64]) -> Vec<f64> {
    let least = numbers.clone().fold(f64::INFINITY, f64::min);
    let most = numbers.fold(f64::NEG_INFINITY, f64::max);
    let all: Vec<f64> = (-3..=7)
        .flat_map(|decade| steps.iter().map(move |step| (step, decade)))
        // Below one, a quotient: 2 / 10 prints as 0.2, and 2 × 0.1 not always.
        .map(|(step, decade)| if decade < 0 { step / 10_f64.powi(-decade) } else { step * 10_f64.powi(decade) })
        .collect();
    let first = all.partition_point(|&tick| tick <= least).saturating_sub(1);
    let last = all.partition_point(|&tick| tick < most).min(all.len() - 1);
    all.get(first..=last).unwrap_or(&all).to_vec()
}

/// Where between the first and the last tick a number is, from 0 to 1.
fn position(number: f64, ticks: &[f64]) -> f64 {
    match ticks {
        [first, .., last] => (number / first).ln() / (last / first).ln(),
        _ => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_all_numbers() {
        assert_eq!(ticks([0.3, 8.0].into_iter(), &[1.0, 2.0, 5.0]), [0.2, 0.5, 1.0, 2.0, 5.0, 10.0]);
        assert_eq!(ticks([1_000.0, 100_000.0].into_iter(), &[1.0]), [1_000.0, 10_000.0, 100_000.0]);
    }

    #[test]
    fn positions_are_logarithmic() {
        assert_eq!(position(1.0, &[1.0, 100.0]), 0.0);
        assert_eq!(position(10.0, &[1.0, 100.0]), 0.5);
        assert_eq!(position(100.0, &[1.0, 100.0]), 1.0);
    }
}
