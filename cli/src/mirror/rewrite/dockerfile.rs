//! Finds the images in Dockerfiles: the bases of stages, and images that files are copied or mounted from.

mod instructions;

use std::collections::{HashMap, HashSet};

use shared::text::Excerpt;

use self::instructions::{Instruction, Word, instructions, syntax};
use super::tree::Lines;
use super::uses::{ELSEWHERE, Edit, Fate, Names, Part, UNUSUAL, Use, name_of, settle};
use super::yaml::SyntaxError;

/// The image without content.
const SCRATCH: &str = "scratch";

/// The longest text of an image with the values of its variables.
const MAX_LENGTH: usize = 4096;

/// The longest text that all variables of a file have together, each time that they are used.
const MAX_TOTAL: usize = 1 << 20;

/// How many characters of a variable's name are shown.
const MAX_SHOWN: usize = 50;

/// The images of a Dockerfile in the order of the text, with what is done with them.
///
/// # Errors
/// If it is not a Dockerfile, or its variables are too long.
pub fn find(text: &str, names: Names<'_>) -> Result<Vec<Use>, SyntaxError> {
    let instructions = instructions(text)?;
    let mut search = Search { names, arguments: HashMap::new(), total: 0, fixed: HashMap::new(), uses: Vec::new() };
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
            // Without a default of its own, the stage uses that one, for whatever it wants.
            ("ARG", words) => words.iter().for_each(|word| search.fix(&word.text)),
            ("FROM", [base, ..]) => {
                for option in options {
                    let option = search.expand(&option.text, None);
                    search.fixed.extend(option.parts().map(|part| (part, ELSEWHERE)));
                }
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
        if search.total > MAX_TOTAL {
            let line = Lines::new(text).line(instruction.words.first().map_or(0, |word| word.at));
            let message = format!("the variables have more than {MAX_TOTAL} bytes together, which is not supported");
            return Err(SyntaxError { line, column: 1, message });
        }
    }
    settle(&mut search.uses, &search.fixed);
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
    /// How many bytes their uses have.
    total: usize,
    /// The parts that must not change, with the reason.
    fixed: HashMap<Part, &'static str>,
    uses: Vec<Use>,
}

/// A text with the defaults of its variables.
#[derive(Clone, Debug, Default)]
struct Expanded {
    pieces: Vec<Piece>,
    /// Of all pieces, in bytes.
    length: usize,
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
        Self { pieces: vec![Piece { text: text.to_owned(), start }], length: text.len(), problem: None }
    }

    fn unknown(problem: String) -> Self {
        Self { problem: Some(problem), ..Self::default() }
    }

    fn append(&mut self, other: Self) {
        self.pieces.extend(other.pieces.into_iter().filter(|piece| !piece.text.is_empty()));
        self.problem = self.problem.take().or(other.problem);
        self.length += other.length;
        if self.is_too_long() {
            *self = Self { length: self.length, ..Self::unknown("it is too long".into()) };
        }
    }

    fn is_too_long(&self) -> bool {
        self.length > MAX_LENGTH
    }

    fn is_empty(&self) -> bool {
        self.length == 0 && self.problem.is_none()
    }

    /// Where its pieces are written.
    fn parts(&self) -> impl Iterator<Item = Part> {
        self.pieces.iter().filter_map(|piece| piece.start)
    }

    fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }
}

impl Search<'_> {
    /// Remembers the default of a build argument: `NAME=value`, `NAME="value"`.
    fn declare(&mut self, argument: &Word) {
        let Some((name, value)) = argument.text.split_once('=') else { return };
        let within = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
        let (single, double) = (within('\''), within('"'));
        let value = single.or(double).unwrap_or(value);
        let at = value.as_ptr() as usize - argument.text.as_ptr() as usize;
        let start = argument.literal_start().map(|start| start + at);
        let mut expanded = Expanded::default();
        expanded.append(match single {
            // It has no variables.
            Some(_) => Expanded::literal(value, start),
            None => self.expand(value, start),
        });
        if value.contains(['"', '\'', '\\']) {
            let problem = format!("the build argument {} has quotes", Excerpt::within(name, MAX_SHOWN));
            expanded.problem.get_or_insert(problem);
        }
        self.arguments.insert(name.to_owned(), expanded);
    }

    /// Lets the default of a build argument stay.
    fn fix(&mut self, name: &str) {
        if let Some(value) = self.arguments.get(name) {
            self.fixed.extend(value.parts().map(|part| (part, ELSEWHERE)));
        }
    }

    /// Replaces variables with their defaults.
    fn expand(&mut self, text: &str, start: Option<usize>) -> Expanded {
        let mut expanded = Expanded::default();
        let mut rest = text;
        while let Some((literal, behind)) = rest.split_once('$') {
            if expanded.is_too_long() || self.total > MAX_TOTAL {
                return expanded;
            }
            let at = |part: &str| start.map(|start| start + (part.as_ptr() as usize - text.as_ptr() as usize));
            expanded.append(Expanded::literal(literal, at(literal)));
            let is_of_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
            let (variable, behind) = match behind.strip_prefix('{').and_then(|it| it.split_once('}')) {
                Some(parts) => parts,
                None => behind.split_at(behind.find(|character| !is_of_name(character)).unwrap_or(behind.len())),
            };
            let (name, default) = variable.split_once('-').map_or((variable, None), |(name, it)| (name, Some(it)));
            // With a colon, the default also replaces an empty value.
            let (name, can_be_empty) = match name.strip_suffix(':').filter(|_| default.is_some()) {
                Some(name) => (name, false),
                None => (name, true),
            };
            let known = self.arguments.get(name).filter(|value| can_be_empty || !value.is_empty());
            self.total += known.filter(|value| !value.is_too_long()).map_or(0, |value| value.length);
            expanded.append(match (known, default) {
                _ if name.is_empty() || !name.chars().all(is_of_name) => {
                    Expanded::unknown("it contains a variable in a form that is not supported".into())
                }
                (Some(value), _) => value.clone(),
                (None, Some(default)) => Expanded::literal(default, at(default)),
                (None, None) => {
                    let name = Excerpt::within(name, MAX_SHOWN);
                    Expanded::unknown(format!("the build argument {name} has no default"))
                }
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
    fn image(&mut self, at: usize, written: &str, expanded: Expanded) {
        let (mut image, parts) = (expanded.text(), expanded.parts().collect());
        let Expanded { pieces, problem, .. } = expanded;
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
        self.uses.push(Use { at, image, parts, fate });
    }
}
