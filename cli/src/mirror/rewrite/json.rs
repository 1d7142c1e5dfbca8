//! Parses JSON. Parsers of YAML reject some of it, such as tabs and pairs of surrogates.

use std::fmt::Display;

use aws_smithy_json::deserialize::{Token, json_token_iter};
use serde::de::IgnoredAny;

use super::tree::{Builder, Content, Mapping, Scalar, Style, Tree};
use super::yaml::SyntaxError;

/// Parses the values of a text.
///
/// # Errors
/// If it is not JSON.
pub fn parse(text: &str) -> Result<Tree<'_>, SyntaxError> {
    // The parser that knows positions accepts more than JSON, and its errors have no lines.
    for value in serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>() {
        value.map_err(|error| {
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            SyntaxError { line: error.line(), column: error.column(), message }
        })?;
    }
    let mut builder = Builder::default();
    for token in json_token_iter(text.as_bytes()) {
        let token = token.map_err(|error| SyntaxError { line: 1, column: 1, message: error.to_string() })?;
        let start = token.offset().0;
        match token {
            Token::StartArray { .. } => {
                builder.start(start, Content::Sequence(Vec::new()), None).map_err(|error| at(text, start, &error))?;
            }
            Token::StartObject { .. } => {
                let empty = Content::Mapping(Mapping::default());
                builder.start(start, empty, None).map_err(|error| at(text, start, &error))?;
            }
            Token::EndArray { .. } | Token::EndObject { .. } => builder.end(),
            Token::ObjectKey { key: escaped, .. } | Token::ValueString { value: escaped, .. } => {
                let span = start..start + escaped.as_escaped_str().len() + 2;
                let value = escaped.to_unescaped().map_err(|error| at(text, start, &error))?;
                builder.scalar(span, Scalar { value, style: Style::Quoted, tag: None, is_text: false }, None);
            }
            Token::ValueNull { .. } | Token::ValueBool { .. } | Token::ValueNumber { .. } => {
                let behind = &text[start..];
                let end = behind.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(behind.len());
                let scalar = Scalar { value: behind[..end].into(), style: Style::Plain, tag: None, is_text: false };
                builder.scalar(start..start + end, scalar, None);
            }
        }
    }
    Ok(builder.finish())
}

/// An error at a position in bytes.
fn at(text: &str, position: usize, error: &dyn Display) -> SyntaxError {
    let before = &text[..position];
    let line = before.matches('\n').count() + 1;
    let column = before.lines().next_back().filter(|_| !before.ends_with('\n')).unwrap_or_default().chars().count() + 1;
    SyntaxError { line, column, message: error.to_string() }
}
