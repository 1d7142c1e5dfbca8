//! Replaces the images in files with those of the mirror. Everything else stays byte for byte.

pub mod dockerfile;
pub mod images;
pub mod json;
pub mod tree;
pub mod uses;
pub mod yaml;

use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use fs_err as fs;
use shared::text::Excerpt;
use tempfile::NamedTempFile;

use self::tree::{Lines, Scalar, Tree};
use self::uses::{Fate, Names, Use};
use super::files::{self, read_all};
use super::inventory;
use crate::Outcome;
use crate::output::{note, print};

/// The largest file.
const MAX_BYTES: u64 = 64 << 20;

/// How many characters of an image that stays are shown.
const MAX_SHOWN: usize = 200;

/// Standard input.
pub const STDIN: &str = "-";

/// The same, as a file.
const STDIN_FILE: &str = "/dev/stdin";

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    inventory: inventory::Source,
    #[command(flatten)]
    matching: inventory::Matching,
    /// Change the files
    #[arg(long, requires = "files")]
    in_place: bool,
    /// Print the images that would change, and change nothing; exit code 1 if there are any
    #[arg(long, conflicts_with = "in_place")]
    check: bool,
    /// Exit code 1 if an image is not mirrored
    #[arg(long)]
    strict: bool,
    /// Type of the files and of standard input. Default: by file name; standard input is YAML
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    file_type: Option<FileType>,
    /// Files; without any, or with -, standard input
    files: Vec<PathBuf>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileType {
    /// YAML or JSON
    Yaml,
    /// A Dockerfile
    Dockerfile,
}

impl FileType {
    /// The type of a file by its name: `Dockerfile`, `Dockerfile.dev`, `Dockerfile-dev`, `dev.Dockerfile`, and the same with
    /// `Containerfile`.
    fn of(file: &Path) -> Self {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_dockerfile = |kind: &str| {
            let rest = name.strip_prefix(kind).or_else(|| name.strip_suffix(kind));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']) || rest.ends_with('.'))
        };
        if ["dockerfile", "containerfile"].into_iter().any(is_dockerfile) { Self::Dockerfile } else { Self::Yaml }
    }
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let Arguments { in_place, check, strict, file_type, files, .. } = arguments;
    ensure!(
        files.len() <= 1 || *in_place || *check,
        "With several files, the result has no place. Add --in-place to change them, or --check to see what would change."
    );
    ensure!(
        !in_place || !files.iter().any(|file| is_stdin(file)),
        "--in-place cannot change standard input. Remove one of them."
    );
    let inventory = arguments.inventory.load().await?;
    let names = Names { inventory: &inventory, matching: arguments.matching.value() };
    let stdin = [PathBuf::from(STDIN)];
    let files = if files.is_empty() { stdin.as_slice() } else { files };
    let (mut changed, mut left, mut errors) = (0, 0, Vec::new());
    for file in files {
        let rewritten = read(file).and_then(|text| {
            let rewritten = Rewritten::new(file_type.unwrap_or_else(|| FileType::of(file)), &text, names)?;
            if *in_place && rewritten.text != text {
                replace(file, &rewritten.text)?;
            }
            Ok(rewritten)
        });
        let rewritten = match rewritten {
            Ok(rewritten) => rewritten,
            Err(error) => {
                errors.push(error.context(name(file)));
                continue;
            }
        };
        left += rewritten.left.len();
        let mut stays = rewritten.left.as_slice();
        if *check {
            changed += rewritten.changed.len();
            for (line, image, mirror) in &rewritten.changed {
                let (before, behind) = stays.split_at(stays.partition_point(|it| it.line <= *line));
                report(file, before);
                print(format_args!("{}:{line}: {image} -> {mirror}\n", name(file)))?;
                stays = behind;
            }
        }
        report(file, stays);
        if !check && !in_place {
            print(&rewritten.text)?;
        }
    }
    let is_fine = changed == 0 && !(*strict && left > 0);
    match errors.len() {
        0 => Ok(Outcome::success_if(is_fine)),
        1 => Err(errors.remove(0)),
        count => {
            errors.iter().for_each(|error| note(format_args!("error: {error:#}")));
            bail!("{count} of {} files were not read, and stay as they are", files.len())
        }
    }
}

fn is_stdin(file: &Path) -> bool {
    [STDIN, STDIN_FILE].iter().any(|name| file == Path::new(name))
}

/// How messages name a file. Its name may have characters that control a terminal.
pub fn name(file: &Path) -> String {
    if is_stdin(file) { "standard input".into() } else { Excerpt::new(&file.to_string_lossy()).to_string() }
}

/// Reads a file, or standard input.
///
/// # Errors
/// If it is neither a regular file nor open already, as `<(command)` is, or cannot be read, is too large, or is not UTF-8.
pub fn read(file: &Path) -> Result<String> {
    let text = if is_stdin(file) { read_all(io::stdin().lock(), MAX_BYTES) } else { files::read(file, MAX_BYTES) };
    String::from_utf8(text?).context("The file is not text in UTF-8")
}

/// Writes a file completely, or not at all. It keeps its permissions and owner, and links stay. A file with several names or of
/// another owner is written in its place, where a crash can leave a part of it.
fn replace(file: &Path, text: &str) -> Result<()> {
    ensure!(file.is_file(), "It is not a regular file, so --in-place cannot change it");
    let file = fs::canonicalize(file)?;
    let directory = file.parent().context("It has no directory")?;
    let mut new = NamedTempFile::new_in(directory)?;
    new.write_all(text.as_bytes())?;
    let (old, owner) = (fs::metadata(&file)?, new.as_file().metadata()?);
    if old.nlink() > 1 || (old.uid(), old.gid()) != (owner.uid(), owner.gid()) {
        let mut existing = fs::OpenOptions::new().write(true).truncate(true).open(file)?;
        existing.write_all(text.as_bytes())?;
        existing.sync_all()?;
        return Ok(());
    }
    fs::set_permissions(new.path(), old.permissions())?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

/// A text with the images of the mirror.
pub struct Rewritten {
    /// The text.
    pub text: String,
    /// The images that changed: the line, the image, and its name at the mirror.
    pub changed: Vec<(usize, String, String)>,
    /// The images that did not change.
    pub left: Vec<Left>,
}

/// An image that does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The line, from 1.
    pub line: usize,
    /// The image, as the text names it.
    pub image: Excerpt,
    /// Why.
    pub reason: String,
}

/// The images that do not change. `uses` are in the order of the text.
pub fn left(text: &str, uses: &[Use]) -> Vec<Left> {
    let mut lines = Lines::new(text);
    let left = uses.iter().filter_map(|Use { at, image, fate, .. }| match fate {
        Fate::Left(reason) => {
            Some(Left { line: lines.line(*at), image: Excerpt::within(image, MAX_SHOWN), reason: reason.clone() })
        }
        _ => None,
    });
    let mut left: Vec<_> = left.collect();
    left.dedup();
    left
}

/// Prints the images that do not change.
pub fn report(file: &Path, left: &[Left]) {
    for Left { line, image, reason } in left {
        note(format_args!("{}:{line}: {image}: {reason}", name(file)));
    }
}

impl Rewritten {
    /// Replaces the images in a text.
    ///
    /// # Errors
    /// If it is not of the type.
    pub fn new(file_type: FileType, text: &str, names: Names<'_>) -> Result<Self> {
        let content = without_mark(text);
        let uses = match file_type {
            FileType::Yaml => images::find(content, &parse(content)?, names),
            FileType::Dockerfile => dockerfile::find(content, names).context("The file is not a Dockerfile")?,
        };
        let mut lines = Lines::new(content);
        let changed = uses.iter().filter_map(|Use { at, image, fate, .. }| match fate {
            Fate::Mirrored { mirror, .. } => Some((lines.line(*at), image.clone(), mirror.to_string())),
            _ => None,
        });
        let mut changed: Vec<_> = changed.collect();
        changed.dedup();
        Ok(Self {
            changed,
            left: left(content, &uses),
            text: text[..text.len() - content.len()].to_owned() + &uses::apply(content, &uses),
        })
    }
}

/// A text without the byte order mark that some files from Windows begin with.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Parses YAML or JSON whose documents are maps, lists or empty.
///
/// # Errors
/// If it is neither, or its merge keys repeat too much. Most texts are YAML, but only one scalar, such as the lines of a
/// Dockerfile.
pub fn parse(text: &str) -> Result<Tree<'_>> {
    let tree = parse_any(text)?;
    ensure!(!tree.has_too_many_merges(), "Merge keys (<<) repeat too many mappings, which is not supported");
    let mut roots = tree.documents.iter().filter_map(|document| tree.scalar(document.start));
    ensure!(
        roots.all(Scalar::is_null),
        "The file is not a manifest. For a Dockerfile, use \"mirror rewrite\" with --type dockerfile"
    );
    Ok(tree)
}

fn parse_any(text: &str) -> Result<Tree<'_>> {
    if text.trim_start().starts_with(['{', '[']) {
        match json::parse(text) {
            Ok(tree) => return Ok(tree),
            // YAML has the same brackets.
            Err(error) => return yaml::parse(text).map_err(|_| error).context("The file is neither JSON nor YAML"),
        }
    }
    yaml::parse(text).context("The file is not YAML")
}

#[cfg(test)]
pub mod tests;
