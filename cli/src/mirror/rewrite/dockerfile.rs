//! Finds the images in Dockerfiles: the bases of stages, and images that files are copied or mounted from.

mod instructions;

use std::collections::{HashMap, HashSet};

use self::instructions::{Instruction, Word, instructions, syntax};
use super::uses::{Edit, Fate, Names, UNUSUAL, Use, name_of, settle};
use super::yaml::SyntaxError;

/// The image without content.
const SCRATCH: &str = "scratch";

/// The longest text of an image with the values of its variables.
const MAX_LENGTH: usize = 4096;

/// The images of a Dockerfile in the order of the text, with what is done with them.
///
/// # Errors
/// If it is not a Dockerfile.
pub fn find(text: &str, names: Names<'_>) -> Result<Vec<Use>, SyntaxError> {
    let instructions = instructions(text)?;
    let mut search = Search { names, arguments: HashMap::new(), uses: Vec::new() };
    if let Some((at, image)) = syntax(text) {
        search.image(at, image, Expanded::literal(image, Some(at)));
    }
    let all_stages = instructions.iter().filter_map(stage_name).collect();
    let (mut stages, mut has_stage) = (HashSet::new(), false);
    for instruction in &instructions {
        let (keyword, words) = match (instruction.keyword.as_str(), instruction.words.as_slice()) {
            ("ONBUILD", [keyword, words @ ..]) => (keyword.text.to_uppercase(), words),
            (keyword, words) => (keyword.to_owned(), words),
        };
        let (options, words) = split_options(words);
        match (keyword.as_str(), words) {
            ("ARG", words) if !has_stage => words.iter().for_each(|word| search.declare(word)),
            ("FROM", [base, ..]) => {
                let image = search.expand(&base.text, base.literal_start());
                if !stages.contains(&image.text().to_lowercase()) && image.text() != SCRATCH {
                    search.image(base.at, &base.text, image);
                }
                has_stage = true;
                stages.extend(stage_name(instruction));
            }
            ("COPY" | "RUN", _) => search.sources(options, &all_stages),
            _ => {}
        }
    }
    settle(&mut search.uses, &HashSet::new());
    search.uses.sort_by_key(|it| it.at);
    Ok(search.uses)
}

/// The options of an instruction, such as `--platform=linux/arm64`, and the words behind them.
fn split_options(words: &[Word]) -> (&[Word], &[Word]) {
    words.split_at(words.iter().take_while(|word| word.text.starts_with("--")).count())
}

/// The name of a stage, which does not distinguish upper and lower case.
fn stage_name(instruction: &Instruction) -> Option<String> {
    match split_options(&instruction.words).1 {
        [_, keyword, name] if instruction.keyword == "FROM" && keyword.text.eq_ignore_ascii_case("AS") => {
            Some(name.text.to_lowercase())
        }
        _ => None,
    }
}

impl Word {
    /// Where it begins, if it is written as it is.
    fn literal_start(&self) -> Option<usize> {
        self.is_literal.then_some(self.at)
    }
}

struct Search<'a> {
    names: Names<'a>,
    /// The defaults of the build arguments that the bases of stages can use.
    arguments: HashMap<String, Expanded>,
    uses: Vec<Use>,
}

/// A text with the defaults of its variables.
#[derive(Clone, Debug, Default)]
struct Expanded {
    pieces: Vec<Piece>,
    /// Why the text is not known.
    problem: Option<String>,
}

/// A text that is written in the file.
#[derive(Clone, Debug)]
struct Piece {
    text: String,
    /// Where; `None` if it is written with escapes or over several lines.
    start: Option<usize>,
}

impl Expanded {
    fn literal(text: &str, start: Option<usize>) -> Self {
        Self { pieces: vec![Piece { text: text.to_owned(), start }], problem: None }
    }

    fn unknown(problem: String) -> Self {
        Self { pieces: Vec::new(), problem: Some(problem) }
    }

    fn append(&mut self, other: Self) {
        self.pieces.extend(other.pieces.into_iter().filter(|piece| !piece.text.is_empty()));
        self.problem = self.problem.take().or(other.problem);
        if self.pieces.iter().map(|piece| piece.text.len()).sum::<usize>() > MAX_LENGTH {
            *self = Self::unknown("it is too long".into());
        }
    }

    fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }
}

impl Search<'_> {
    /// Remembers the default of a build argument: `NAME=value`, `NAME="value"`.
    fn declare(&mut self, argument: &Word) {
        let Some((name, value)) = argument.text.split_once('=') else { return };
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        let value = quoted.unwrap_or(value);
        let at = value.as_ptr() as usize - argument.text.as_ptr() as usize;
        let expanded = match value.contains(['"', '\'', '\\']) {
            true => Expanded::unknown(format!("the build argument {name} has quotes")),
            false => self.expand(value, argument.literal_start().map(|start| start + at)),
        };
        self.arguments.insert(name.to_owned(), expanded);
    }

    /// Replaces variables with their defaults.
    fn expand(&self, text: &str, start: Option<usize>) -> Expanded {
        let mut expanded = Expanded::default();
        let mut rest = text;
        while let Some((literal, behind)) = rest.split_once('$') {
            let at = |part: &str| start.map(|start| start + (part.as_ptr() as usize - text.as_ptr() as usize));
            expanded.append(Expanded::literal(literal, at(literal)));
            let is_of_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
            let (name, default, behind) = match behind.strip_prefix('{').and_then(|it| it.split_once('}')) {
                Some((variable, behind)) => match variable.split_once(":-").or_else(|| variable.split_once('-')) {
                    Some((name, default)) => (name, Some(default), behind),
                    None => (variable, None, behind),
                },
                None => {
                    let end = behind.find(|character| !is_of_name(character)).unwrap_or(behind.len());
                    (&behind[..end], None, &behind[end..])
                }
            };
            let known = self.arguments.get(name).filter(|value| default.is_none() || !value.text().is_empty());
            expanded.append(match (known, default) {
                _ if name.is_empty() || !name.chars().all(is_of_name) => {
                    Expanded::unknown("it contains a variable in a form that is not supported".into())
                }
                (Some(value), _) => value.clone(),
                (None, Some(default)) => Expanded::literal(default, at(default)),
                (None, None) => Expanded::unknown(format!("the build argument {name} has no default")),
            });
            rest = behind;
        }
        let at = start.map(|start| start + (rest.as_ptr() as usize - text.as_ptr() as usize));
        expanded.append(Expanded::literal(rest, at));
        expanded
    }

    /// The images in `COPY --from=…` and `RUN --mount=…,from=…`.
    fn sources(&mut self, options: &[Word], stages: &HashSet<String>) {
        for option in options {
            let source = match option.text.split_once('=') {
                Some(("--from", source)) => Some(source),
                Some(("--mount", mount)) => mount.split(',').find_map(|field| field.strip_prefix("from=")),
                _ => None,
            };
            let is_stage = |name: &str| {
                name.bytes().all(|byte| byte.is_ascii_digit())
                    || stages.contains(&name.to_lowercase())
                    || name == SCRATCH
            };
            if let Some(source) = source.filter(|source| !is_stage(source)) {
                let at = source.as_ptr() as usize - option.text.as_ptr() as usize;
                let image = Expanded::literal(source, option.literal_start().map(|start| start + at));
                self.image(option.at + at, source, image);
            }
        }
    }

    /// The text `written` at `at` is an image.
    fn image(&mut self, at: usize, written: &str, Expanded { pieces, problem }: Expanded) {
        let mut image: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        if problem.is_some() {
            written.clone_into(&mut image);
        }
        let resolved = problem.map_or_else(|| self.names.resolve(&image), Err);
        let fate = match resolved {
            Err(reason) => Fate::Left(reason),
            Ok(None) => Fate::AlreadyMirrored,
            Ok(Some(mirror)) => {
                let name = name_of(&image).len();
                let edit = match pieces.as_slice() {
                    [Piece { text, start: Some(start) }] => {
                        Ok((*start, *start..start + text.len(), mirror.to_string()))
                    }
                    // The name is written, and the tag has variables.
                    [Piece { text, start: Some(start) }, ..] if text.len() >= name => {
                        Ok((*start, *start..start + name, mirror.repository.to_string()))
                    }
                    [Piece { start: Some(_), .. }, ..] => {
                        written.clone_into(&mut image);
                        Err("its name has variables; write it out")
                    }
                    _ => Err(UNUSUAL),
                };
                match edit {
                    Ok((part, range, text)) => Fate::Mirrored { mirror, edits: vec![Edit { part, range, text }] },
                    Err(reason) => Fate::Left(reason.into()),
                }
            }
        };
        let parts = pieces.iter().filter_map(|piece| piece.start).collect();
        self.uses.push(Use { at, image, parts, fate });
    }
}
