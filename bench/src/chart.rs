//! A bar chart as SVG, on a card that is light or dark as the reader prefers.

use std::fmt::Write as _;

const STYLE: &str = "
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .name { text-anchor: end }
  .card { fill: #ffffff; stroke: #d1d9e0 }
  .ours { fill: #0969da }
  .others { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .card { fill: #0d1117; stroke: #3d444d }
    .ours { fill: #4493f8 }
    .others { fill: #f0883e }
  }
";
const WIDTH: f64 = 860.0;
const LEFT: f64 = 250.0;
const LONGEST: f64 = 480.0;
const STEP: f64 = 26.0;
const GAP: f64 = 50.0;

/// Bars that share a scale.
pub struct Panel {
    pub title: String,
    pub bars: Vec<Bar>,
}

pub struct Bar {
    pub name: &'static str,
    pub seconds: f64,
    pub is_ours: bool,
}

pub fn draw(title: &str, panels: &[Panel]) -> String {
    let height = panels.iter().map(|panel| GAP + STEP * panel.bars.len() as f64).sum::<f64>() + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"card\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n",
        WIDTH - 1.0,
        height - 1.0
    );
    let mut y = 34.0;
    for Panel { title, bars } in panels {
        svg += &text("title", 24.0, y, title);
        let longest = bars.iter().map(|bar| bar.seconds).fold(f64::MIN_POSITIVE, f64::max);
        for Bar { name, seconds, is_ours } in bars {
            y += STEP;
            let (top, length) = (y - 12.0, LONGEST * seconds / longest);
            let class = if *is_ours { "ours" } else { "others" };
            svg += &text("name", LEFT - 10.0, y, name);
            let _ =
                writeln!(svg, "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"16\"/>");
            svg += &text("", LEFT + length + 8.0, y, &format!("{seconds:.1} s"));
        }
        y += GAP;
    }
    svg + "</svg>\n"
}

fn text(class: &str, x: f64, y: f64, text: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_has_the_whole_length() {
        let bar = |seconds| Bar { name: "", seconds, is_ours: true };
        let svg = draw("", &[Panel { title: String::new(), bars: vec![bar(10.0), bar(5.0)] }]);
        assert!(svg.contains("width=\"480.0\"") && svg.contains("width=\"240.0\""));
    }
}
