//! Tables, on the terminal and on a page.

use std::{fmt::Write as _, path::Path};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;

use crate::error::{Error, Result};

/// In a cell for which there is no number.
pub const NOTHING: &str = "–";

/// A table: text in the first column, numbers in all others.
pub struct Grid {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// A row of cells for each of `rows`.
    pub fn new<'a, T>(
        header: impl IntoIterator<Item = &'a str>,
        rows: &[T],
        cells: impl Fn(&T) -> Vec<String>,
    ) -> Self {
        Self { header: header.into_iter().map(str::to_owned).collect(), rows: rows.iter().map(cells).collect() }
    }

    /// For a terminal.
    #[must_use]
    pub fn terminal(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_header(&self.header).add_rows(&self.rows);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// For a page.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("| {} |\n| ---", self.header.join(" | "));
        for _ in self.header.iter().skip(1) {
            text += " | --:";
        }
        text += " |\n";
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }
}

/// A number with its thousands told apart.
#[must_use]
pub fn count(number: usize) -> String {
    HumanCount(number as u64).to_string()
}

/// Seconds, in the two units that matter most.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{hours} h {minutes} min"),
    }
}

/// Dollars, to the cents or the part of one that matter.
#[must_use]
pub fn dollars(dollars: f64) -> String {
    match dollars {
        1.0.. => format!("${dollars:.2}"),
        0.01.. => format!("${dollars:.3}"),
        _ => format!("${dollars:.4}"),
    }
}

/// A share in percent.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// Writes a page that has no picture.
///
/// # Errors
/// If it cannot be written.
pub fn write_page(page: &Path, text: &str) -> Result<()> {
    std::fs::write(page, text).map_err(Error::system(page.display().to_string()))
}

/// Writes a page, and the picture next to it; the page is made with the picture's name.
///
/// # Errors
/// If they cannot be written.
pub fn write(page: &Path, text: impl FnOnce(&str) -> String, picture: String) -> Result<()> {
    let path = page.with_extension("svg");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for (path, content) in [(page, text(&name)), (&path, picture)] {
        std::fs::write(path, content).map_err(Error::system(path.display().to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_two_units_at_most() {
        assert_eq!(
            [59.6, 119.4, 119.6, 7_199.0, 42_860.0].map(duration),
            ["60 s", "119 s", "2 min 0 s", "119 min 59 s", "11 h 54 min"]
        );
    }

    #[test]
    fn numbers_are_to_the_right_in_markdown() {
        let grid = Grid { header: vec!["A".into(), "B".into()], rows: vec![vec!["x".into(), "1".into()]] };
        assert_eq!(grid.markdown(), "| A | B |\n| --- | --: |\n| x | 1 |\n");
    }
}
