//! Splits a Dockerfile into instructions, as BuildKit does.

use std::collections::HashSet;
use std::iter::Peekable;

use shared::text::Excerpt;

use super::super::yaml::SyntaxError;

/// An instruction, with what follows its keyword.
#[derive(Debug, PartialEq, Eq)]
pub struct Instruction {
    /// In upper case.
    pub keyword: String,
    /// What follows, without the bodies of here-documents.
    pub words: Vec<Word>,
}

/// A text between spaces. It can have spaces in quotes, which belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The text.
    pub text: String,
    /// Where it begins in the file, in bytes.
    pub at: usize,
    /// Whether it is not interrupted by the end of a line.
    pub is_literal: bool,
}

/// A parser directive: a comment such as `# syntax=docker/dockerfile:1` before everything else.
struct Directive<'a> {
    key: &'a str,
    value: &'a str,
}

impl<'a> Directive<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (key, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
        let (key, value) = (key.trim(), value.trim());
        (key.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !value.is_empty()).then_some(Self { key, value })
    }
}

/// The image of the directive `syntax`, which BuildKit pulls, and where it is.
pub fn syntax(text: &str) -> Option<(usize, &str)> {
    let directives = text.lines().map_while(Directive::parse);
    let syntax = directives.into_iter().find(|directive| directive.key.eq_ignore_ascii_case("syntax"))?;
    Some((syntax.value.as_ptr() as usize - text.as_ptr() as usize, syntax.value))
}

/// The instructions of a Dockerfile.
///
/// # Errors
/// If it begins with another instruction than `ARG` and `FROM`.
pub fn instructions(text: &str) -> Result<Vec<Instruction>, SyntaxError> {
    let mut directives = text.lines().map_while(Directive::parse);
    let is_escape = |directive: &Directive<'_>| directive.key.eq_ignore_ascii_case("escape");
    let escape = if directives.find(is_escape).is_some_and(|it| it.value == "`") { '`' } else { '\\' };
    let (mut instructions, mut lines) = (Vec::new(), Lines { text, at: 0, number: 0 }.peekable());
    let mut endless = HashSet::new();
    while let Some(&(number, ..)) = lines.peek() {
        let characters = logical_line(&mut lines, escape);
        let mut words = words(text, &characters, escape).into_iter();
        let Some(keyword) = words.next() else { continue };
        let instruction = Instruction { keyword: keyword.text.to_uppercase(), words: words.collect() };
        if instructions.is_empty() && !matches!(instruction.keyword.as_str(), "ARG" | "FROM") {
            let message = format!(
                "a Dockerfile begins with FROM or ARG, not \"{}\"",
                Excerpt::within(&keyword.text, 50).as_str()
            );
            return Err(SyntaxError { line: number, column: 1, message });
        }
        if matches!(instruction.keyword.as_str(), "RUN" | "COPY" | "ADD" | "ONBUILD") {
            for document in here_documents(&instruction.words) {
                let mut behind = lines.clone();
                if endless.contains(&document) {
                    continue;
                }
                if behind.any(|(.., line)| document.ends_with(line)) {
                    lines = behind;
                } else {
                    // It is something else, such as the operator of a calculation.
                    endless.insert(document);
                }
            }
        }
        instructions.push(instruction);
    }
    Ok(instructions)
}

/// The lines of a text: number from 1, position, content without its end.
#[derive(Clone)]
struct Lines<'a> {
    text: &'a str,
    at: usize,
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.text[self.at..].split_inclusive('\n').next()?;
        let at = self.at;
        self.at += line.len();
        self.number += 1;
        Some((self.number, at, line.trim_end_matches(['\r', '\n'])))
    }
}

/// The characters of a line and its continuations, with their positions. Comments and empty lines are left out.
fn logical_line(lines: &mut Peekable<Lines<'_>>, escape: char) -> Vec<(usize, char)> {
    let mut characters = Vec::new();
    for (_, at, line) in lines {
        let trimmed = line.trim();
        if trimmed.starts_with('#') || trimmed.is_empty() {
            if characters.is_empty() {
                break;
            }
            continue;
        }
        let content = line.trim_end_matches([' ', '\t']);
        let continued = content.strip_suffix(escape).filter(|content| !content.ends_with(escape));
        characters.extend(continued.unwrap_or(line).char_indices().map(|(index, character)| (at + index, character)));
        if continued.is_none() {
            break;
        }
    }
    characters
}

/// Splits a line at spaces that are not in quotes.
fn words(text: &str, characters: &[(usize, char)], escape: char) -> Vec<Word> {
    let (mut words, mut word, mut quote, mut is_escaped) = (Vec::new(), Vec::new(), None, false);
    for &(at, character) in characters.iter().chain(&[(text.len(), ' ')]) {
        let is_end = at == text.len() || character.is_whitespace() && quote.is_none() && !is_escaped;
        if is_end && !word.is_empty() {
            let start = word[0];
            let content: String = word.drain(..).map(|(_, character): (usize, char)| character).collect();
            let is_literal = text[start.0..].starts_with(&content);
            words.push(Word { text: content, at: start.0, is_literal });
        } else if !is_end {
            word.push((at, character));
        }
        match quote {
            _ if is_escaped => {}
            Some(open) if character == open => quote = None,
            None if matches!(character, '"' | '\'') => quote = Some(character),
            _ => {}
        }
        // Single quotes have no escapes.
        is_escaped = character == escape && !is_escaped && quote != Some('\'');
    }
    words
}

/// Text that follows an instruction, until a line with a delimiter.
#[derive(PartialEq, Eq, Hash)]
struct HereDocument {
    delimiter: String,
    /// Whether tabs can precede the delimiter.
    has_tabs: bool,
}

impl HereDocument {
    fn ends_with(&self, line: &str) -> bool {
        self.delimiter == if self.has_tabs { line.trim_start_matches('\t') } else { line }
    }
}

/// The here-documents of an instruction: `<<EOF`, `3<<EOF`, `<<-"EOF"`, `<< EOF`.
fn here_documents(words: &[Word]) -> Vec<HereDocument> {
    let mut documents = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let operator = word.text.trim_start_matches(|first: char| first.is_ascii_digit());
        let Some(rest) = operator.strip_prefix("<<") else { continue };
        let (rest, has_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
        let rest = if rest.is_empty() { words.get(index + 1).map_or("", |next| next.text.as_str()) } else { rest };
        let delimiter = unquoted(rest);
        if !delimiter.is_empty() && !rest.contains('<') {
            documents.push(HereDocument { delimiter, has_tabs });
        }
    }
    documents
}

/// A word of a shell without its quotes.
fn unquoted(word: &str) -> String {
    let (mut text, mut quote, mut characters) = (String::new(), None, word.chars());
    while let Some(character) = characters.next() {
        match character {
            '\\' if quote != Some('\'') => text.extend(characters.next()),
            '"' | '\'' if quote.is_none() => quote = Some(character),
            _ if quote == Some(character) => quote = None,
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The instructions with `|` between words.
    fn split(text: &str) -> Vec<String> {
        let instructions = instructions(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let words = |it: Instruction| it.words.into_iter().map(|word| word.text).collect::<Vec<_>>().join("|");
        instructions.into_iter().map(|it| format!("{} {}", it.keyword.clone(), words(it))).collect()
    }

    #[test]
    fn instructions_have_continuations_comments_and_here_documents() {
        for (text, expected) in [
            ("  from a\r\nRun b  c\r\n", &["FROM a", "RUN b|c"] as &[_]),
            ("FROM \\\n# comment \\\n\n  a\\\nb \\  \n AS c\n# d\nUSER e", &["FROM ab|AS|c", "USER e"]),
            ("# Escape = `\nFROM a `\n b\\\nUSER x", &["FROM a|b\\", "USER x"]),
            ("# x\n# escape=`\nFROM a\\\nb", &["FROM ab"]),
            ("FROM a\nRUN x \\\\\nUSER b", &["FROM a", "RUN x|\\\\", "USER b"]),
            ("FROM a\nRUN cat <<EOF > x\nFROM b\nEOF\nUSER c", &["FROM a", "RUN cat|<<EOF|>|x", "USER c"]),
            ("FROM a\nCOPY <<-'A' 3<<B c\nA \n\tA\nB\nUSER c", &["FROM a", "COPY <<-'A'|3<<B|c", "USER c"]),
            (
                "FROM a\nRUN echo \"<< a <<B\" '\\' \\' <<<x\nUSER c",
                &["FROM a", "RUN echo|\"<< a <<B\"|'\\'|\\'|<<<x", "USER c"],
            ),
            ("ARG A=\"b c\" D='e \"'\nFROM x", &["ARG A=\"b c\"|D='e \"'", "FROM x"]),
            (
                "FROM a\nRUN <<eo\\'f\nUSER b\neo'f\nRUN << 'x y'\nUSER c\nx y",
                &["FROM a", "RUN <<eo\\'f", "RUN <<|'x y'"],
            ),
            (
                "FROM a\nRUN echo $((1 << 2)) <<EOF\nUSER b\nEOF x",
                &["FROM a", "RUN echo|$((1|<<|2))|<<EOF", "USER b", "EOF x"],
            ),
            ("", &[]),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_dockerfile_is_an_error() {
        let error = instructions("\n# a\nimage: b").expect_err("it is YAML").to_string();
        assert_eq!(error, "line 3, column 1: a Dockerfile begins with FROM or ARG, not \"image:\"");
    }
}
