//! What a command found: on the terminal, and in the marked parts of a page.

use std::{fmt, path::Path, thread};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};

/// In a cell without a number.
pub const NOTHING: &str = "–";

#[derive(Default)]
pub struct Report {
    /// The parts of the page by their names, in Markdown.
    pub parts: Vec<(&'static str, String)>,
    pub goals: Vec<Goal>,
    /// An SVG, for the file next to the page.
    pub picture: Option<String>,
}

pub struct Goal {
    pub what: String,
    pub measured: String,
    pub met: bool,
}

impl Goal {
    pub fn new(what: impl Into<String>, measured: String, met: bool) -> Self {
        Self { what: what.into(), measured, met }
    }

    pub fn at_most(what: &str, limit: f64, measured: f64, unit: &str) -> Self {
        Self::new(format!("{what}: at most {limit} {unit}"), format!("{measured:.2} {unit}"), measured <= limit)
    }
}

impl Report {
    fn all_parts(&self) -> impl Iterator<Item = (&str, String)> {
        let result = |met| if met { "met" } else { "missed" };
        let goals = self.goals.iter().map(|it| [it.what.clone(), it.measured.clone(), result(it.met).to_owned()]);
        let goals = (!self.goals.is_empty()).then(|| ("goals", table(["Goal", "Measured", "Result"], goals)));
        self.parts.iter().map(|(name, text)| (*name, text.clone())).chain(goals)
    }

    /// Fills in the marked parts of a page, and writes the picture next to it.
    pub fn update(&self, page: &Path) -> Result<()> {
        let mut text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
        for (name, part) in self.all_parts() {
            text = replace(&text, name, &part).with_context(|| page.display().to_string())?;
        }
        std::fs::write(page, text)?;
        if let Some(picture) = &self.picture {
            std::fs::write(page.with_extension("svg"), picture)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all_parts().try_for_each(|(_, part)| writeln!(formatter, "{part}\n"))
    }
}

/// Replaces what is between `<!-- bench: NAME -->` and `<!-- /NAME -->`.
fn replace(page: &str, name: &str, part: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- bench: {name} -->"), format!("<!-- /{name} -->"));
    let missing = || format!("The page has no part {begin} … {end}");
    let (before, rest) = page.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    Ok(format!("{before}{begin}\n\n{part}\n\n{end}{after}"))
}

/// A table in Markdown: text in the first column, numbers in the others.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines: Vec<String> = table.lines().collect();
    if let Some(separator) = lines.get_mut(1) {
        *separator = separator.replace("-|", ":|").replacen(":|", "-|", 1);
    }
    lines.join("\n")
}

pub fn count(number: impl fmt::Display + Copy) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// Seconds in the two units that matter most.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The one in the middle; of an even number, the lower of the two.
///
/// # Panics
/// If there are none.
pub fn median<T, K: Ord>(mut values: Vec<T>, key: impl Fn(&T) -> K) -> T {
    values.sort_by_key(key);
    values.swap_remove((values.len() - 1) / 2)
}

/// How often, and on which machine, it was measured.
pub fn circumstances(runs: impl fmt::Display) -> String {
    let cores = thread::available_parallelism().map_or_else(|_| "?".into(), |cores| cores.to_string());
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = processor.map_or(std::env::consts::ARCH, |(_, name)| name);
    format!("Each row is the run with the median time of {runs}. The machine: {cores} cores, {processor}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_two_units_at_most() {
        let durations = [59.6, 119.4, 119.6, 7_199.0, 42_860.0].map(duration);
        assert_eq!(durations, ["60 s", "119 s", "2 min 0 s", "119 min 59 s", "11 h 54 min"]);
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 12, 123, 1_234, 1_234_567].map(count), ["0", "12", "123", "1,234", "1,234,567"]);
    }

    #[test]
    fn numbers_are_aligned_to_the_right() {
        let rows = [["x", "1"].map(str::to_owned), ["y", "100"].map(str::to_owned)];
        assert_eq!(table(["A", "B"], rows), "| A |   B |\n|---|----:|\n| x |   1 |\n| y | 100 |");
    }

    #[test]
    fn only_the_marked_part_of_a_page_is_replaced() {
        let page = "a\n<!-- bench: t -->\nold\n<!-- /t -->\nb\n";
        let replaced = replace(page, "t", "new").expect("the part is there");
        assert_eq!(replaced, "a\n<!-- bench: t -->\n\nnew\n\n<!-- /t -->\nb\n");
        assert_eq!(replace(&replaced, "t", "new").expect("it is still there"), replaced);
        assert!(replace(page, "u", "new").is_err());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let median = |values: &[u32]| median(values.to_vec(), |&value| value);
        assert_eq!([median(&[3, 1, 2]), median(&[4, 3, 1, 2]), median(&[7])], [2, 2, 7]);
    }
}
