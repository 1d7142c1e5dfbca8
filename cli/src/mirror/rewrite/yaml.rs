//! Parses YAML.

use std::fmt;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use super::tree::{Builder, Content, Mapping, Scalar, Style, TooDeep, Tree};

/// Why a text is not YAML or JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct SyntaxError {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

impl SyntaxError {
    fn at(marker: &Marker, message: impl fmt::Display) -> Self {
        Self { line: marker.line(), column: marker.col() + 1, message: message.to_string() }
    }
}

impl From<ScanError> for SyntaxError {
    fn from(error: ScanError) -> Self {
        Self::at(error.marker(), error.info())
    }
}

/// Parses the documents of a text.
///
/// # Errors
/// If it is not YAML, or nested too deeply.
pub fn parse(text: &str) -> Result<Tree<'_>, SyntaxError> {
    let mut builder = Builder::default();
    let mut position = Position { text, characters: 0, bytes: 0 };
    for event in Parser::new_from_str(text) {
        let (event, Span { start, end }) = event?;
        let anchor = |id: usize| (id != 0).then_some(id);
        let too_deep = |error: TooDeep| SyntaxError::at(&start, error);
        match event {
            Event::Scalar(value, style, id, tag) => {
                let span = position.of(start)..position.of(end);
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                };
                let is_text = tag.as_deref().is_some_and(is_text);
                let tag = tag.filter(|_| !is_text).map(|tag| format!("{}{}", tag.handle, tag.suffix));
                builder.scalar(span, Scalar { value, style, tag, is_text }, anchor(id));
            }
            Event::SequenceStart(id, _) => {
                builder.start(position.of(start), Content::Sequence(Vec::new()), anchor(id)).map_err(too_deep)?;
            }
            Event::MappingStart(id, _) => {
                let empty = Content::Mapping(Mapping::default());
                builder.start(position.of(start), empty, anchor(id)).map_err(too_deep)?;
            }
            Event::SequenceEnd | Event::MappingEnd => builder.end(),
            Event::Alias(id) => builder.alias(id),
            _ => {}
        }
    }
    Ok(builder.finish())
}

/// Whether a tag says that a scalar is text.
fn is_text(tag: &Tag) -> bool {
    tag.is_yaml_core_schema() && tag.suffix == "str" || tag.handle.is_empty() && tag.suffix == "!"
}

/// Converts positions, which the parser counts in characters, to bytes.
struct Position<'a> {
    text: &'a str,
    characters: usize,
    bytes: usize,
}

impl Position<'_> {
    fn of(&mut self, marker: Marker) -> usize {
        // Each is near the previous one.
        while self.characters < marker.index() {
            let Some(character) = self.text[self.bytes..].chars().next() else { break };
            self.bytes += character.len_utf8();
            self.characters += 1;
        }
        while self.characters > marker.index() {
            let Some(character) = self.text[..self.bytes].chars().next_back() else { break };
            self.bytes -= character.len_utf8();
            self.characters -= 1;
        }
        self.bytes
    }
}
