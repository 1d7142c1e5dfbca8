//! The examples of docs/selecting.md, for the tests that run them.

const GUIDE: &str = include_str!("../../docs/selecting.md");

/// The fenced blocks of this kind.
pub fn blocks(kind: &str) -> Vec<String> {
    let fence = format!("```{kind}\n");
    GUIDE.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// The rows of the table with these headings. A cell is the list of its texts in backticks.
pub fn rows(headings: &str) -> Vec<Vec<Vec<String>>> {
    let table = GUIDE.split_once(headings).map_or("", |(_, rest)| rest);
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cell = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    rows.map(|row| row.trim_matches('|').split('|').map(cell).collect()).collect()
}
