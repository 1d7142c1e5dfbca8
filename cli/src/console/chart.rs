//! Charts as SVG. A chart has a text for those who cannot see it, and each bar says its value.

use maud::{Markup, html};

/// A bar: its value, and what it says when the pointer is on it.
pub struct Bar {
    /// The value, not negative.
    pub value: f64,
    /// Whether it counts something bad.
    pub is_bad: bool,
    /// What it says.
    pub label: String,
}

/// A row of small bars without axes.
pub fn sparkline(bars: &[Bar], text: &str) -> Markup {
    html! { svg.spark viewBox="0 0 120 24" role="img" aria-label=(text) { (columns(bars, 120.0, 0.0, 24.0)) } }
}

/// Bars at equal distances, with their highest value and the labels of both ends.
pub fn chart(bars: &[Bar], highest: &str, ends: [&str; 2], text: &str) -> Markup {
    html! {
        svg.chart viewBox="0 0 600 140" role="img" aria-label=(text) {
            line.rule x1="0" x2="600" y1="120" y2="120" {}
            line.rule x1="0" x2="600" y1="18" y2="18" {}
            (columns(bars, 600.0, 18.0, 120.0))
            text x="0" y="12" { (highest) }
            text x="0" y="136" { (ends[0]) }
            text x="600" y="136" text-anchor="end" { (ends[1]) }
        }
    }
}

/// The fewest places for bars.
const SLOTS: usize = 20;

/// Bars in a field of this width, from `bottom` at most to `top`.
fn columns(bars: &[Bar], width: f64, top: f64, bottom: f64) -> Markup {
    let highest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    // A few bars are not stretched.
    let step = width / bars.len().max(SLOTS) as f64;
    html! {
        @for (index, bar) in bars.iter().enumerate() {
            // A value of 0 is a line, so that it differs from no value.
            @let height = if highest > 0.0 { bar.value / highest * (bottom - top) } else { 0.0 }.max(1.0);
            rect.bar.bad[bar.is_bad] x=(number(index as f64 * step)) y=(number(bottom - height))
                width=(number((step - 1.0).max(1.0))) height=(number(height)) { title { (bar.label) } }
        }
    }
}

/// One decimal is enough for pixels.
fn number(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(value: f64, label: &str) -> Bar {
        Bar { value, is_bad: false, label: label.into() }
    }

    #[test]
    fn the_highest_bar_fills_the_chart_and_labels_are_escaped() {
        let svg = sparkline(&[bar(0.0, "none"), bar(5.0, "<b>"), Bar { is_bad: true, ..bar(2.5, "half") }], "runs")
            .into_string();
        assert!(svg.contains(r#"height="24.0"><title>&lt;b&gt;</title>"#), "{svg}");
        assert!(svg.contains(r#"class="bar bad" x="12.0" y="12.0""#), "{svg}");
        assert!(svg.contains(r#"height="1.0"><title>none"#), "{svg}");
    }

    #[test]
    fn a_chart_without_values_is_no_error() {
        let svg = chart(&[], "0", ["then", "now"], "runs").into_string();
        assert!(svg.contains("then") && !svg.contains("NaN") && !svg.contains("rect"), "{svg}");
    }
}
