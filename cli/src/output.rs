//! What a command prints, and its exit code.

use std::env;
use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, IsTerminal as _, Write};
use std::process::ExitCode;

use comfy_table::{Cell, Color, Table, presets};
use serde::Serialize;
use shared::text::Excerpt;

/// The most characters of a line for the person.
const LINE: usize = 4_000;

/// The result of a command that did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Success,
    /// Something that was asked for is not so: an image is not mirrored, or a file would change. Exit code 1.
    Negative,
}

impl Outcome {
    /// [`Success`](Self::Success) if `condition` holds.
    pub fn success_if(condition: bool) -> Self {
        if condition { Self::Success } else { Self::Negative }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::SUCCESS,
            Outcome::Negative => Self::FAILURE,
        }
    }
}

/// Prints a result.
pub fn print(text: impl Display) -> io::Result<()> {
    print_with(|out| write!(out, "{text}"))
}

/// Prints a result piece by piece. A reader that closes the pipe early, such as `head`, is not an error.
pub fn print_with(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// JSON that has text from outside, with escapes for the characters that are valid in JSON and control a terminal.
pub fn printable(json: &str) -> String {
    let mut printable = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            // Between values. In a text, it is escaped already.
            '\n' => printable.push(character),
            _ if is_unprintable(character) => printable += &format!("\\u{:04x}", u32::from(character)),
            _ => printable.push(character),
        }
    }
    printable
}

/// Whether a character ends a line, moves a cursor or changes the direction of writing.
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Prints a line for the person to standard error, so that standard output has the result alone. It may have text from outside,
/// which must not control the terminal.
pub fn note(line: impl Display) {
    // If nobody can read it, the result counts alone.
    let _ = writeln!(io::stderr().lock(), "{}", Excerpt::within(&line.to_string(), LINE).as_str());
}

/// Prints a result as JSON.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(format_args!("{}\n", printable(&serde_json::to_string_pretty(value)?)))?)
}

/// A table without lines.
pub fn table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.into_iter().map(Cell::new).collect::<Vec<_>>());
    table
}

/// A cell of text that may come from outside.
pub fn cell(text: impl Display) -> Cell {
    Cell::new(Excerpt::new(&text.to_string()))
}

/// A cell with a status of CloudFormation, Step Functions or ECS. On a terminal it has a colour, which says nothing more.
pub fn status_cell(status: &str) -> Cell {
    let is_colored = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let color = match status {
        _ if !is_colored => return cell(status),
        "FAILED" | "ABORTED" | "TIMED_OUT" | "Error" => Color::Red,
        _ if status.ends_with("_FAILED") || status.contains("ROLLBACK") => Color::Red,
        "RUNNING" => Color::Yellow,
        _ if status.ends_with("_IN_PROGRESS") => Color::Yellow,
        _ => Color::Green,
    };
    cell(status).fg(color)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_cannot_control_the_terminal() {
        let mut table = table(["IMAGE"]);
        table.add_row([cell("<b>\u{1b}[2J\n")]);
        assert_eq!(table.lines().last().as_deref().map(str::trim), Some(r"<b>\u{1b}[2J\n"));
    }

    #[test]
    fn printable_json_is_the_same_value_without_characters_that_control_a_terminal() {
        let value = serde_json::json!({ "a\u{7f}\u{9b}": ["\n\u{1b}[31m", "\u{202e}\u{2066}\u{feff}", "é 你 😀"] });
        let pretty = serde_json::to_string_pretty(&value).expect("it is JSON");
        let printable = printable(&pretty);
        assert!(!printable.contains(|character| is_unprintable(character) && character != '\n'), "{printable:?}");
        assert!(printable.contains(r"a\u007f\u009b") && printable.contains("é 你 😀"), "{printable}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printable).expect("it is JSON"), value);
    }
}
