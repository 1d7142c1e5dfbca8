//! The picture of the batches: a bar for each way to pack them, as long as the run, and how much of it tasks start.

use crate::{
    chart::{Point, open, text},
    grid::duration,
};

/// The size of the card, and the left end of each panel's bars.
const CARD: Point = (860.0, 300.0);
const LEFT: [f64; 2] = [80.0, 500.0];
/// The upper end of the first bar, how high a bar is, and how far it is to the next one.
const TOP: f64 = 98.0;
const HEIGHT: f64 = 18.0;
const STEP: f64 = 30.0;
/// The length of the longest bar; its time stands behind it.
const LONGEST: f64 = 230.0;

/// One of the two diagrams.
pub struct Panel {
    /// What is copied.
    pub title: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// A run.
pub struct Bar {
    /// How it is packed.
    pub name: String,
    /// How many seconds it takes.
    pub time: f64,
    /// The share of it in which tasks start.
    pub starting: f64,
}

/// Draws them side by side, each to its own scale.
#[must_use]
pub fn draw(panels: &[Panel; 2]) -> String {
    let mut svg = open(CARD, "Time of a run over the number of images in each task");
    for ((class, meaning), x) in
        [("changed", "tasks start"), ("same", "images are copied")].into_iter().zip([80.0, 200.0])
    {
        svg += &rectangle(class, (x, 22.0), 12.0, 12.0);
        svg += &text("", (x + 20.0, 32.5), meaning);
    }
    for (panel, left) in panels.iter().zip(LEFT) {
        svg += &panel.draw(left);
    }
    svg + "</svg>\n"
}

impl Panel {
    fn draw(&self, left: f64) -> String {
        let most = self.bars.iter().map(|bar| bar.time).fold(f64::MIN_POSITIVE, f64::max);
        let mut svg = text("title", (left, TOP - 30.0), &self.title);
        svg += &text("end", (left - 10.0, TOP - 10.0), "per task");
        for (number, bar) in self.bars.iter().enumerate() {
            let top = TOP + STEP * number as f64;
            let length = LONGEST * bar.time / most;
            let starting = length * bar.starting;
            let baseline = top + HEIGHT - 4.5;
            svg += &text("end", (left - 10.0, baseline), &bar.name);
            svg += &rectangle("changed", (left, top), starting, HEIGHT);
            svg += &rectangle("same", (left + starting, top), length - starting, HEIGHT);
            svg += &text("", (left + length + 8.0, baseline), &duration(bar.time));
        }
        svg
    }
}

/// A filled rectangle: its upper left corner, its width and its height.
#[must_use]
pub fn rectangle(class: &str, (x, y): Point, width: f64, height: f64) -> String {
    format!(
        "<rect class=\"{class}\" stroke-width=\"0\" x=\"{x:.1}\" y=\"{y:.1}\" \
         width=\"{width:.1}\" height=\"{height:.1}\"/>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_has_the_whole_length() {
        let bar = |time| Bar { name: String::new(), time, starting: 0.5 };
        let svg = Panel { title: String::new(), bars: vec![bar(10.0), bar(5.0)] }.draw(0.0);
        assert_eq!(svg.matches(&format!("width=\"{:.1}\"", LONGEST / 2.0)).count(), 2);
        assert_eq!(svg.matches(&format!("width=\"{:.1}\"", LONGEST / 4.0)).count(), 2);
    }
}
