//! YAML and JSON as nodes that know their place in the text.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::iter;
use std::ops::Range;
use std::slice;

/// The index of a node.
pub type Id = usize;

/// How deep collections may be nested.
const MAX_DEPTH: usize = 200;

/// How many mappings and fields a search in each mapping of a text may visit by merge keys, together. With more, a small text
/// would keep a processor busy for minutes. The files of people need some hundred.
const MAX_VISITS: usize = 1_000_000;

/// How many fields [`Tree::merge`] makes, and how deep. Aliases can make them endless.
const MAX_FIELDS: usize = 1_000_000;

/// The merge key of YAML: the fields of other mappings.
const MERGE: &str = "<<";

/// The fields that [`Tree::field`] finds.
const FIELDS: [&str; 20] = [
    MERGE,
    "apiVersion",
    "build",
    "containerDefinitions",
    "ContainerDefinitions",
    "digest",
    "extends",
    "file",
    "global",
    "image",
    "Image",
    "imageRegistry",
    "kind",
    "reference",
    "registry",
    "repository",
    "service",
    "services",
    "sha",
    "tag",
];

/// The documents of a text. An alias is another reference to the node of its anchor.
#[derive(Debug, Default)]
pub struct Tree<'a> {
    nodes: Vec<Node<'a>>,
    /// The nodes of each document. The first one is its root.
    pub documents: Vec<Range<Id>>,
}

/// A value or a key.
#[derive(Debug)]
pub struct Node<'a> {
    /// Where it is in the text, in bytes. That of a collection is empty.
    pub span: Range<usize>,
    /// How many aliases refer to it.
    pub aliases: usize,
    /// What it holds.
    pub content: Content<'a>,
}

/// What a node holds.
#[derive(Debug)]
pub enum Content<'a> {
    /// Text, a number, a boolean, or null.
    Scalar(Scalar<'a>),
    /// A list.
    Sequence(Vec<Id>),
    /// A map.
    Mapping(Mapping),
}

/// The fields of a map, in the order of the text.
#[derive(Debug, Default)]
pub struct Mapping {
    /// All fields.
    pub fields: Vec<Field>,
    /// Where those of [`FIELDS`] are.
    known: Vec<(&'static str, usize)>,
}

/// A key and its value.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The key.
    pub key: Id,
    /// The value.
    pub value: Id,
    /// Whether the value is an alias.
    pub is_alias: bool,
}

/// A field of a mapping: the mapping that has it, and its index there.
pub type Place = (Id, usize);

/// A scalar, as it is written.
#[derive(Debug)]
pub struct Scalar<'a> {
    /// The text that it stands for.
    pub value: Cow<'a, str>,
    /// How it is written.
    pub style: Style,
    /// The name of its type, if that is not the default: `!Sub`.
    pub tag: Option<String>,
    /// Whether a tag says that it is text, such as `!!str`.
    pub is_text: bool,
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without quotes. It can be a number, a boolean or null.
    Plain,
    /// In quotes, which belong to its span.
    Quoted,
    /// As lines of their own, indented.
    Block,
}

impl Scalar<'_> {
    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        let is_plain = self.style == Style::Plain && self.tag.is_none() && !self.is_text;
        is_plain && matches!(&*self.value, "" | "~" | "null" | "Null" | "NULL")
    }
}

impl<'a> Tree<'a> {
    /// A node.
    pub fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id]
    }

    /// The scalar of a node.
    pub fn scalar(&self, id: Id) -> Option<&Scalar<'a>> {
        match &self.node(id).content {
            Content::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// The text of a scalar.
    pub fn text(&self, id: Id) -> Option<&str> {
        self.scalar(id).map(|scalar| &*scalar.value)
    }

    /// The mapping of a node.
    pub fn mapping(&self, id: Id) -> Option<&Mapping> {
        match &self.node(id).content {
            Content::Mapping(mapping) => Some(mapping),
            _ => None,
        }
    }

    /// The value of a field.
    pub fn value(&self, (mapping, index): Place) -> Id {
        self.mapping(mapping).expect("a place is in a mapping").fields[index].value
    }

    /// A field of a mapping by its name, which is one of [`FIELDS`]: its own, or a merged one.
    pub fn field(&self, mapping: Id, name: &str) -> Option<Place> {
        self.lineage(mapping).find_map(|id| Some((id, self.mapping(id)?.known(name)?)))
    }

    /// A mapping and those that it merges, in the order of their precedence. One can occur several times.
    pub fn lineage(&self, mapping: Id) -> impl Iterator<Item = Id> {
        let (mut pending, mut followed) = (vec![mapping], HashSet::new());
        iter::from_fn(move || {
            let id = pending.pop()?;
            let merged = self.merged(id);
            if !merged.is_empty() && followed.insert(id) {
                pending.extend(merged.iter().rev());
            }
            Some(id)
        })
    }

    /// Whether searches in all mappings would visit too much by merge keys.
    pub fn has_too_many_merges(&self) -> bool {
        let merged = self.ids().filter(|id| !self.merged(*id).is_empty()).flat_map(|id| self.lineage(id).skip(1));
        let mut visits = 0;
        for id in merged {
            visits += 1 + self.mapping(id).map_or(0, |mapping| mapping.fields.len());
            if visits > MAX_VISITS {
                return true;
            }
        }
        false
    }

    /// The mappings that a mapping merges, in the order of their precedence.
    pub fn merged(&self, mapping: Id) -> &[Id] {
        let merge = self.mapping(mapping).and_then(|mapping| Some(&mapping.fields[mapping.known(MERGE)?]));
        let Some(Field { value, .. }) = merge else { return &[] };
        match &self.node(*value).content {
            Content::Sequence(items) => items,
            _ => slice::from_ref(value),
        }
    }

    /// The fields of a mapping: its own, and those that it merges.
    pub fn fields(&self, mapping: Id) -> Vec<Field> {
        let (mut fields, mut keys) = (Vec::new(), HashSet::new());
        for mapping in self.lineage(mapping).filter_map(|id| self.mapping(id)) {
            // Of a key that occurs twice, the last one counts.
            let own = mapping.fields.iter().rev().filter(|field| !self.is_merge(**field));
            let own = own.filter(|field| self.text(field.key).is_some_and(|key| keys.insert(key)));
            let own: Vec<_> = own.copied().collect();
            fields.extend(own.into_iter().rev());
        }
        fields
    }

    /// Whether a field is a merge key.
    pub fn is_merge(&self, field: Field) -> bool {
        self.scalar(field.key).is_some_and(|key| key.style == Style::Plain && key.value == MERGE)
    }

    /// All nodes.
    pub fn ids(&self) -> Range<Id> {
        0..self.nodes.len()
    }

    /// Adds the documents of another text, which begins at `offset`. Returns the root of the first.
    pub fn append(&mut self, other: Self, offset: usize) -> Option<Id> {
        let first = self.nodes.len();
        let root = other.documents.first().map(|document| document.start + first);
        self.documents.extend(other.documents.into_iter().map(|it| it.start + first..it.end + first));
        self.nodes.extend(other.nodes.into_iter().map(|mut node| {
            node.span = node.span.start + offset..node.span.end + offset;
            match &mut node.content {
                Content::Scalar(_) => {}
                Content::Sequence(items) => items.iter_mut().for_each(|id| *id += first),
                Content::Mapping(mapping) => {
                    for Field { key, value, .. } in &mut mapping.fields {
                        *key += first;
                        *value += first;
                    }
                }
            }
            node
        }));
        root
    }

    /// Makes what Helm makes of two values: the fields of two mappings together, or `above`.
    ///
    /// # Errors
    /// If that is too much.
    pub fn merge(&mut self, below: Id, above: Id) -> Result<Id, TooMany> {
        self.merge_at(below, above, 0, &mut 0)
    }

    fn merge_at(&mut self, below: Id, above: Id, depth: usize, count: &mut usize) -> Result<Id, TooMany> {
        if self.mapping(below).is_none() || self.mapping(above).is_none() {
            return Ok(above);
        }
        let (mut fields, over) = (self.fields(below), self.fields(above));
        *count += fields.len() + over.len();
        if depth > MAX_DEPTH || *count > MAX_FIELDS {
            return Err(TooMany);
        }
        let keys = fields.iter().enumerate().filter_map(|(index, it)| Some((self.text(it.key)?.to_owned(), index)));
        let keys: HashMap<_, _> = keys.collect();
        for field in over {
            match self.text(field.key).and_then(|key| keys.get(key)) {
                Some(&index) => {
                    let value = self.merge_at(fields[index].value, field.value, depth + 1, count)?;
                    fields[index] = Field { value, is_alias: field.is_alias && value == field.value, ..field };
                }
                None => fields.push(field),
            }
        }
        let mut mapping = Mapping::default();
        fields.into_iter().for_each(|field| mapping.push(self.known_name(field.key), field));
        let start = self.node(above).span.start;
        self.nodes.push(Node { span: start..start, aliases: 0, content: Content::Mapping(mapping) });
        Ok(self.nodes.len() - 1)
    }

    /// The name of a field, if it is one of [`FIELDS`].
    fn known_name(&self, key: Id) -> Option<&'static str> {
        let key = self.scalar(key)?;
        let known = FIELDS.iter().find(|name| **name == key.value)?;
        (*known != MERGE || key.style == Style::Plain).then_some(*known)
    }
}

impl Mapping {
    fn known(&self, name: &str) -> Option<usize> {
        self.known.iter().find(|(known, _)| *known == name).map(|&(_, index)| index)
    }

    fn push(&mut self, name: Option<&'static str>, field: Field) {
        if let Some(name) = name {
            // Of a key that occurs twice, the last one counts, as it does in JSON and Kubernetes.
            self.known.retain(|(known, _)| *known != name);
            self.known.push((name, self.fields.len()));
        }
        self.fields.push(field);
    }
}

/// Builds a tree from the events of a parser.
#[derive(Debug, Default)]
pub struct Builder<'a> {
    tree: Tree<'a>,
    /// The collections that are not complete, with the keys that wait for their values.
    open: Vec<(Id, Option<Id>)>,
    anchors: HashMap<usize, Id>,
}

/// Merged mappings have too many fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The values together are too many, or nested too deeply. Do they repeat themselves by an alias?")]
pub struct TooMany;

/// The text is nested too deeply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("collections are nested more than {MAX_DEPTH} levels deep")]
pub struct TooDeep;

impl<'a> Builder<'a> {
    /// A scalar.
    pub fn scalar(&mut self, span: Range<usize>, scalar: Scalar<'a>, anchor: Option<usize>) {
        self.add(Node { span, aliases: 0, content: Content::Scalar(scalar) }, anchor);
    }

    /// The start of a sequence or mapping, which is empty.
    pub fn start(&mut self, at: usize, content: Content<'a>, anchor: Option<usize>) -> Result<(), TooDeep> {
        let id = self.add(Node { span: at..at, aliases: 0, content }, anchor);
        self.open.push((id, None));
        if self.open.len() > MAX_DEPTH { Err(TooDeep) } else { Ok(()) }
    }

    /// The end of the innermost collection.
    pub fn end(&mut self) {
        self.open.pop();
    }

    /// An alias of the anchor.
    pub fn alias(&mut self, anchor: usize) {
        if let Some(&id) = self.anchors.get(&anchor) {
            self.tree.nodes[id].aliases += 1;
            self.insert(id, true);
        }
    }

    /// The complete tree.
    pub fn finish(self) -> Tree<'a> {
        self.tree
    }

    fn add(&mut self, node: Node<'a>, anchor: Option<usize>) -> Id {
        let id = self.tree.nodes.len();
        self.tree.nodes.push(node);
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, id);
        }
        if self.open.is_empty() {
            self.tree.documents.push(id..id);
        }
        if let Some(document) = self.tree.documents.last_mut() {
            document.end = id + 1;
        }
        self.insert(id, false);
        id
    }

    /// Adds a node to the innermost collection.
    fn insert(&mut self, id: Id, is_alias: bool) {
        let Some((parent, pending)) = self.open.last_mut() else { return };
        let parent = *parent;
        if let Content::Sequence(items) = &mut self.tree.nodes[parent].content {
            items.push(id);
            return;
        }
        let Some(key) = pending.take() else {
            *pending = Some(id);
            return;
        };
        let name = self.tree.known_name(key);
        if let Content::Mapping(mapping) = &mut self.tree.nodes[parent].content {
            mapping.push(name, Field { key, value: id, is_alias });
        }
    }
}

/// The lines of positions in a text.
pub struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Lines<'a> {
    /// The lines of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1 }
    }

    /// The line of a position, from 1. Each position is at or behind the previous one.
    pub fn line(&mut self, position: usize) -> usize {
        let passed = self.text.as_bytes().get(self.at..position).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at = self.at.max(position);
        self.line
    }
}
