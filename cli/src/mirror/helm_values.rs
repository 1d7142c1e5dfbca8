//! Prints values for a Helm chart that replace its images with those of the mirror.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use super::inventory;
use super::rewrite::images::{Kind, find_in, is_ambiguous};
use super::rewrite::tree::{Content, Field, Id, Style, Tree};
use super::rewrite::uses::{Names, Use};
use super::rewrite::{Left, left, name, parse, read, report, without_mark};
use crate::Outcome;
use crate::output::{is_unprintable, print, printable};

/// How deep the printed values may be nested, how many they may be, and how many bytes. Aliases can make them endless.
const MAX_DEPTH: usize = 100;
const MAX_VALUES: usize = 1_000_000;
const MAX_BYTES: usize = 16 << 20;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    inventory: inventory::Source,
    #[command(flatten)]
    matching: inventory::Matching,
    /// Exit code 1 if an image is not mirrored
    #[arg(long)]
    strict: bool,
    /// The values: of the chart, as `helm show values` prints them, or your own; - for standard input. Of several files, in the
    /// order of Helm's options `-f`, the values that Helm makes of them
    #[arg(required = true)]
    values: Vec<PathBuf>,
}

pub async fn run(arguments: &Arguments) -> Result<Outcome> {
    let inventory = arguments.inventory.load().await?;
    let names = Names { inventory: &inventory, matching: arguments.matching.value() };
    let files = &arguments.values;
    let texts: Result<Vec<_>> = files.iter().map(|file| read(file).with_context(|| name(file))).collect();
    let texts = texts?;
    let texts = files.iter().zip(&texts).map(|(file, text)| Text::new(text).with_context(|| name(file)));
    let all_names = || files.iter().map(|file| name(file)).collect::<Vec<_>>().join(", ");
    let values = overriding(texts.collect::<Result<_>>()?, names).with_context(all_names)?;
    for (file, left) in files.iter().zip(&values.left) {
        report(file, left);
    }
    print(values.text)?;
    Ok(Outcome::success_if(!arguments.strict || values.left.iter().all(Vec::is_empty)))
}

/// The values of a file.
pub struct Text<'a> {
    text: &'a str,
    tree: Tree<'a>,
}

impl<'a> Text<'a> {
    /// Parses values.
    ///
    /// # Errors
    /// If the text is not one document.
    pub fn new(text: &'a str) -> Result<Self> {
        let text = without_mark(text);
        let tree = parse(text)?;
        ensure!(tree.documents.len() <= 1, "The values are {} documents. Helm reads one", tree.documents.len());
        Ok(Self { text, tree })
    }
}

/// Values that replace others.
pub struct Values {
    /// The values.
    pub text: String,
    /// The images of each text that stay.
    left: Vec<Vec<Left>>,
}

/// The values that change, without the others, in what Helm makes of several texts.
///
/// # Errors
/// If they are too many.
pub fn overriding(texts: Vec<Text<'_>>, names: Names<'_>) -> Result<Values> {
    let (mut all, mut tree, mut root, mut last_lines) = (String::new(), Tree::default(), None, Vec::new());
    for Text { text, tree: part } in texts {
        let last = tree.append(part, all.len());
        all += text;
        if !text.ends_with('\n') {
            all.push('\n');
        }
        last_lines.push(all.matches('\n').count());
        root = match (root, last) {
            (Some(below), Some(above)) if tree.mapping(above).is_some() => Some(tree.merge(below, above)?),
            (root, last) => root.or(last),
        };
    }
    let Some(root) = root else { return Ok(Values { text: "{}\n".into(), left: Vec::new() }) };
    let uses = find_in(&all, &tree, names, &(root..root + 1), Kind::Values);
    let edits = uses.iter().flat_map(Use::edits);
    let changes: HashMap<_, _> = edits.map(|edit| (edit.part, edit.text.trim_matches('"'))).collect();
    let changing = parents(&tree, changes.keys().copied().collect());
    let mut writer = Writer { tree: &tree, changes, changing, values: 0, bytes: 0 };
    let changed = writer.block(root, 0, false)?.unwrap_or_else(|| "{}".into());
    let (mut left, mut before) = (left(&all, &uses).into_iter().peekable(), 0);
    let left = last_lines.into_iter().map(|last| {
        let of_text = std::iter::from_fn(|| left.next_if(|it| it.line <= last));
        let of_text = of_text.map(|it| Left { line: it.line - before, ..it }).collect();
        before = last;
        of_text
    });
    Ok(Values { left: left.collect(), text: changed.trim_start().to_owned() + "\n" })
}

/// The nodes, and all that contain them.
fn parents(tree: &Tree<'_>, mut nodes: Vec<Id>) -> HashSet<Id> {
    let mut parents: HashMap<Id, Vec<Id>> = HashMap::new();
    for parent in tree.ids() {
        let mut contains = |child| parents.entry(child).or_default().push(parent);
        match &tree.node(parent).content {
            Content::Scalar(_) => {}
            Content::Sequence(items) => items.iter().copied().for_each(contains),
            Content::Mapping(mapping) => mapping.fields.iter().for_each(|field| contains(field.value)),
        }
    }
    let mut all = HashSet::new();
    while let Some(node) = nodes.pop() {
        if all.insert(node) {
            nodes.extend(parents.get(&node).into_iter().flatten());
        }
    }
    all
}

struct Writer<'a> {
    tree: &'a Tree<'a>,
    /// The new texts of scalars.
    changes: HashMap<Id, &'a str>,
    /// The nodes that change, or contain one that does.
    changing: HashSet<Id>,
    /// How many are visited.
    values: usize,
    /// How many bytes are written.
    bytes: usize,
}

impl Writer<'_> {
    /// A value behind its key: on the same line after a space, or on the following lines. Helm replaces a list, so it is
    /// written as a whole; of a map, only what changes.
    fn value(&mut self, id: Id, depth: usize, is_whole: bool) -> Result<String> {
        if let Content::Scalar(_) = self.tree.node(id).content {
            let scalar = self.scalar(id);
            self.count(depth, scalar.len())?;
            return Ok(format!(" {scalar}"));
        }
        let empty = if self.tree.mapping(id).is_some() { " {}" } else { " []" };
        Ok(self.block(id, depth, is_whole)?.unwrap_or_else(|| empty.into()))
    }

    /// The lines of a collection, each after a line break; `None` if there are none.
    fn block(&mut self, id: Id, depth: usize, is_whole: bool) -> Result<Option<String>> {
        self.count(depth, 0)?;
        let (space, mut lines) = ("  ".repeat(depth), String::new());
        match &self.tree.node(id).content {
            Content::Scalar(_) => {}
            Content::Sequence(items) => {
                for &item in items {
                    let value = self.value(item, depth + 1, true)?;
                    // The first line of a collection follows the dash.
                    lines += &format!("\n{space}- {}", value.trim_start());
                }
            }
            Content::Mapping(_) => {
                for Field { key, value, .. } in self.tree.fields(id) {
                    self.count(depth, 0)?;
                    if is_whole || self.changing.contains(&value) {
                        let key = self.scalar(key);
                        self.count(depth, key.len())?;
                        lines += &format!("\n{space}{key}:{}", self.value(value, depth + 1, is_whole)?);
                    }
                }
            }
        }
        Ok((!lines.is_empty()).then_some(lines))
    }

    /// Counts a value, and the bytes of its line.
    fn count(&mut self, depth: usize, bytes: usize) -> Result<()> {
        self.values += 1;
        self.bytes += 2 * depth + bytes;
        if depth > MAX_DEPTH || self.values > MAX_VALUES || self.bytes > MAX_BYTES {
            bail!(
                "The values that change are too many or too long, or nested too deeply. Do they repeat themselves by an alias?"
            );
        }
        Ok(())
    }

    fn scalar(&self, id: Id) -> String {
        match (self.changes.get(&id), self.tree.scalar(id)) {
            (Some(new), _) if is_ambiguous(new) => quoted(new),
            (Some(new), _) => (*new).to_owned(),
            (None, Some(scalar)) if scalar.is_null() => "null".into(),
            (None, Some(scalar)) => match &scalar.tag {
                Some(tag) => format!("!<{}> {}", encoded(tag), quoted(&scalar.value)),
                None if scalar.style == Style::Plain && !scalar.is_text && !scalar.value.contains(is_unprintable) => {
                    scalar.value.to_string()
                }
                None => quoted(&scalar.value),
            },
            (None, None) => "null".into(),
        }
    }
}

/// A text in double quotes.
fn quoted(text: &str) -> String {
    printable(&serde_json::to_string(text).expect("text is JSON"))
}

/// A tag as it is written between `!<` and `>`.
fn encoded(tag: &str) -> String {
    let is_harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"!:,._-/".contains(&byte);
    let byte = |byte: u8| if is_harmless(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    tag.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use shared::inventory::Match;

    use super::super::rewrite::tests::{HOST, LINES, inventory};
    use super::super::rewrite::uses::apply;
    use super::*;

    /// The result with `…` for the mirror's host, and what is left.
    fn result(values: &str) -> String {
        together(&[values])
    }

    /// The result of several texts. The numbers of all lines but those of the first begin with that of the text.
    fn together(texts: &[&str]) -> String {
        let inventory = inventory();
        let names = Names { inventory: &inventory, matching: Match::Image };
        let texts: Result<_> = texts.iter().map(|text| Text::new(text)).collect();
        match texts.and_then(|texts| overriding(texts, names)) {
            Ok(Values { text, left }) => {
                let left = left.iter().enumerate().flat_map(|(index, left)| {
                    let text = if index == 0 { String::new() } else { format!("{index}:") };
                    left.iter().map(move |Left { line, image, reason }| format!("!{text}{line} {image}: {reason}"))
                });
                text.replace(HOST, "…") + &left.collect::<String>()
            }
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn of_several_texts_helm_uses_the_last_value() {
        let redis = "image: {registry: docker.io, repository: bitnami/redis, tag: '7.2'}\n";
        let stays = |text: &str, image: &str| format!("{{}}\n!{text} {image}");
        for (texts, expected) in [
            ([redis, "replicas: 1", ""], "image:\n  registry: …\n  repository: hub/bitnami/redis\n".to_owned()),
            (
                [redis, "# x\nimage: {repository: redis}", "image: {tag: '7'}\n"],
                "image:\n  registry: …\n  repository: hub/redis\n".into(),
            ),
            (
                [redis, "\n\n", "image:\n  tag: none"],
                stays("1", "docker.io/bitnami/redis:none: the mirror of docker.io/bitnami/redis does not have the tag none"),
            ),
            (
                [redis, "# x\n\nimage: {repository: memcached}\nl: [{image: a}]", "l: [{image: 'nginx'}]"],
                "l:\n  - image: …/hub/nginx:latest\n!1:3 docker.io/memcached:7.2: the repository docker.io/library/memcached is not mirrored".into(),
            ),
            ([redis, "image: null", "---\n"], "{}\n".into()),
            (["image: redis:7", redis, "image: nginx"], "image: …/hub/nginx:latest\n".into()),
            (
                ["b: &b {registry: quay.io, tag: v3}\na: {<<: *b, repository: x}\n", "a: {repository: coreos/etcd}", "b: {x: 1}"],
                "b:\n  registry: …\na:\n  repository: quay/etcd\n  registry: …\n".into(),
            ),
        ] {
            assert_eq!(together(&texts), expected, "{texts:?}");
        }
        let cycle = "a: &a {image: nginx, self: *a}\n";
        assert!(together(&[cycle, cycle]).starts_with("The values together are too many"));
    }

    #[test]
    fn only_what_changes_is_printed() {
        for (values, expected) in [
            ("", "{}\n"),
            ("replicas: 1\n", "{}\n"),
            ("{}", "{}\n"),
            (
                "# The image\nimage:\n  registry: docker.io\n  repository: bitnami/redis\n  tag: 7.2 # float\nreplicas: 1\nmetrics: {image: 'quay.io/coreos/etcd:v3', port: 1}\n",
                "image:\n  registry: …\n  repository: hub/bitnami/redis\nmetrics:\n  image: …/quay/etcd:v3\n",
            ),
            (
                "a: {registry: quay.io, repository: team/number, tag: 1}\nb: {repository: memcached, tag: 1}\n",
                "a:\n  registry: …\n  repository: \"123\"\n!2 memcached:1: the repository docker.io/library/memcached is not mirrored",
            ),
            (
                "image: nginx\napiVersion: v1\nkind: x\n\"odd: key\": {image: redis:7}\n",
                "image: …/hub/nginx:latest\n\"odd: key\":\n  image: …/hub/redis:7\n",
            ),
        ] {
            assert_eq!(result(values), expected, "{values}");
        }
    }

    #[test]
    fn a_list_is_printed_as_a_whole() {
        let values = "sidecars:
  # A comment
  - name: \"1\"
    image: nginx
    args: [a, 1, 1.0, ~, true, 'it''s', [], {}, [[x]]]
    env:
      - {name: A, value: \"x\\ny\"}
    text: |
      a
      b
    number: 0x1F
    nothing:
  - plain
";
        let expected = "sidecars:
  - name: \"1\"
    image: …/hub/nginx:latest
    args:
      - a
      - 1
      - 1.0
      - null
      - true
      - \"it's\"
      - []
      - {}
      - - - x
    env:
      - name: A
        value: \"x\\ny\"
    text: \"a\\nb\\n\"
    number: 0x1F
    nothing: null
  - plain
";
        assert_eq!(result(values), expected);
        assert_eq!(result(&expected.replace('…', HOST)), "{}\n");
    }

    #[test]
    fn aliases_and_merged_fields_are_written_where_they_are_used() {
        assert_eq!(
            result(
                "base: &b {registry: docker.io, tag: '7.2', x: 1}\na: {<<: *b, repository: bitnami/redis}\nc: {image: &i nginx}\nd: {image: *i}\n"
            ),
            "base:\n  registry: …\na:\n  repository: hub/bitnami/redis\n  registry: …\nc:\n  image: …/hub/nginx:latest\nd:\n  image: …/hub/nginx:latest\n"
        );
    }

    #[test]
    fn values_that_contain_themselves_are_an_error() {
        let mut laughs = "a0: &a0 {image: nginx}\n".to_owned();
        for level in 1..30 {
            laughs += &format!("a{level}: &a{level} [*a{0}, *a{0}, *a{0}]\n", level - 1);
        }
        for values in ["a: &a\n  image: nginx\n  self: *a\n", &laughs] {
            assert!(result(values).starts_with("The values that change are too many"), "{}", result(values));
        }
        assert_eq!(result("a: 1\n---\nb: 1\n"), "The values are 2 documents. Helm reads one");
    }

    #[test]
    fn scalars_that_aliases_repeat_are_an_error() {
        let long = format!("s: &a {}\nl: [{{image: nginx, v: [{}]}}]\n", "x".repeat(1 << 20), "*a, ".repeat(200));
        let many = format!("l: &l [{}]\nm: [{{image: nginx, v: [{}]}}]\n", "1, ".repeat(2_000), "*l, ".repeat(2_000));
        let key =
            format!("? &k {}\n: 1\nl: [{{image: nginx, v: [{}]}}]\n", "x".repeat(1 << 20), "{*k : 1}, ".repeat(200));
        for values in [long, many, key] {
            let result = result(&values);
            assert!(result.starts_with("The values that change are too many"), "{:?}", result.get(..200));
        }
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        assert_eq!(result("image: redis:7\nimage: nginx:1.27\n"), "image: …/hub/nginx:1.27\n");
        assert_eq!(result("l: [{image: redis:7, x: 1, x: 2}]\n"), "l:\n  - image: …/hub/redis:7\n    x: 2\n");
    }

    #[test]
    fn a_value_keeps_its_type() {
        for (value, expected) in [
            ("!!str 5", "\"5\""),
            ("!!str true", "\"true\""),
            ("! 012", "\"012\""),
            ("!!str", "\"\""),
            ("!!int \"5\"", "!<tag:yaml.org,2002:int> \"5\""),
            ("!<x:y> 1", "!<x:y> \"1\""),
            ("!a%0Aevil:%20y z", "!<!a%0Aevil:%20y> \"z\""),
            ("!a%3E z", "!<!a%3E> \"z\""),
        ] {
            let text = format!("l:\n- image: nginx\n  x: {value}\n");
            let printed = format!("l:\n  - image: …/hub/nginx:latest\n    x: {expected}\n");
            assert_eq!(result(&text), printed, "{value}");
            let [before, after] = [&text, &printed].map(|text| {
                let tree = parse(text).expect(text);
                meaning(&tree, 0)["l"][0]["x"].clone()
            });
            assert_eq!(before, after, "{value}");
        }
    }

    #[test]
    fn unprintable_characters_are_escaped() {
        let text = "l:\n- image: nginx\n  x: \"\\x7f\\x9b\\u2028\\u2029\\uFEFF\\u202E é\"\n  y: a\u{9b}b\n";
        let expected = "    x: \"\\u007f\\u009b\\u2028\\u2029\\ufeff\\u202e é\"\n    y: \"a\\u009bb\"\n";
        assert_eq!(result(text), format!("l:\n  - image: …/hub/nginx:latest\n{expected}"));
    }

    /// What a document says, with its aliases and merged fields. A scalar that is not a text begins with a question mark.
    fn meaning(tree: &Tree<'_>, id: Id) -> Value {
        let writer = Writer { tree, changes: HashMap::new(), changing: HashSet::new(), values: 0, bytes: 0 };
        match &tree.node(id).content {
            Content::Scalar(scalar) if scalar.is_null() => Value::Null,
            Content::Scalar(scalar) => {
                let has_type = scalar.tag.is_some() || scalar.is_text || scalar.style != Style::Plain;
                let is_text = has_type || !is_ambiguous(&scalar.value);
                format!("{}{:?}{}", if is_text { "" } else { "?" }, scalar.tag, scalar.value).into()
            }
            Content::Sequence(items) => items.iter().map(|&item| meaning(tree, item)).collect(),
            Content::Mapping(_) => {
                let fields = tree.fields(id).into_iter();
                fields.map(|field| (writer.scalar(field.key), meaning(tree, field.value))).collect()
            }
        }
    }

    /// The values that Helm uses for two files.
    fn merged(values: Value, overriding: Value) -> Value {
        match (values, overriding) {
            (Value::Object(mut values), Value::Object(overriding)) => {
                for (key, value) in overriding {
                    let old = values.remove(&key).unwrap_or_default();
                    values.insert(key, merged(old, value));
                }
                values.into()
            }
            (_, overriding) => overriding,
        }
    }

    proptest! {
        /// Helm uses the same values for the file that `rewrite` changes, and for the original file with the printed one.
        #[test]
        fn the_values_change_as_if_they_were_rewritten(lines in prop::collection::vec(prop::sample::select(LINES.to_vec()), 1..12)) {
            let lines = lines.iter().filter(|line| !line.contains("---") && !line.starts_with("? {")).enumerate();
            let indented = |line: &str| line.trim_end().replace('\n', "\n  ");
            let values: String = lines.map(|(index, line)| format!("n{index}:\n  {}\n", indented(line))).collect();
            let Ok(before) = parse(&values) else { return Ok(()) };
            let Some(document) = before.documents.first() else { return Ok(()) };
            let inventory = inventory();
            let names = Names { inventory: &inventory, matching: Match::Image };
            let texts = vec![Text::new(&values).expect(&values)];
            let printed = overriding(texts, names).expect(&values).text;
            let rewritten = apply(&values, &find_in(&values, &before, names, document, Kind::Values));
            let [printed, rewritten] = [&printed, &rewritten].map(|text| meaning(&parse(text).expect(text), 0));
            prop_assert_eq!(merged(meaning(&before, 0), printed), rewritten, "{}", values);
        }
    }
}
