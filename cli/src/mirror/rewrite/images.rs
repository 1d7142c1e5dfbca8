//! Finds the images in YAML and JSON: of Kubernetes, Compose, ECS, and the values of Helm charts.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use shared::inventory::Match;
use shared::reference::ImageReference;

use super::tree::{Content, Field, Id, Place, Scalar, Style, Tree};
use super::uses::{ELSEWHERE, Edit, Fate, Names, UNUSUAL, Use, name_of, settle};

/// What a document is. It decides which fields are images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A manifest: the images of containers, also in custom resources.
    Kubernetes,
    /// The images of services that are not built.
    Compose,
    /// A task definition, or a CloudFormation template that has one: the images of its containers.
    Ecs,
    /// Anything else, such as the values of a Helm chart: each field `image` with a text.
    Values,
}

/// The fields of a Compose file. Others begin with `x-`.
const COMPOSE: [&str; 9] =
    ["version", "name", "include", "services", "networks", "volumes", "configs", "secrets", "models"];

/// Why an image of Compose stays. Its builds have
/// [that name](https://docs.docker.com/reference/compose-file/build/#using-build-and-image).
const BUILT: &str = "it is the name of what a service with build builds";
const EXTENDS_ELSEWHERE: &str = "its service extends one of another file, which may have build";

/// How many services are followed that extend each other.
const MAX_EXTENDED: usize = 10;

/// The longest part of an image, in bytes. An anchor can repeat a longer text many times.
const MAX_PART: usize = 1_000;

impl Kind {
    /// Decides by the fields of the document.
    fn of(tree: &Tree<'_>, document: &Range<Id>) -> Self {
        let root = document.start;
        let Some(mapping) = tree.mapping(root) else { return Self::Values };
        if tree.field(root, "apiVersion").is_some() && tree.field(root, "kind").is_some() {
            return Self::Kubernetes;
        }
        let is_of_compose = |field: &Field| {
            tree.text(field.key).is_some_and(|key| COMPOSE.contains(&key) || key.starts_with("x-") || key == "<<")
        };
        if tree.field(root, "services").is_some() && mapping.fields.iter().all(is_of_compose) {
            return Self::Compose;
        }
        let has_containers =
            |id| ["containerDefinitions", "ContainerDefinitions"].iter().any(|key| tree.field(id, key).is_some());
        if document.clone().any(|id| tree.mapping(id).is_some() && has_containers(id)) {
            return Self::Ecs;
        }
        Self::Values
    }
}

/// The images of all documents in the order of the text, with what is done with them.
pub fn find(text: &str, tree: &Tree<'_>, names: Names<'_>) -> Vec<Use> {
    tree.documents.iter().flat_map(|document| Search::new(text, tree, names).run(document, None)).collect()
}

/// The images of a document of a known kind.
pub fn find_in(text: &str, tree: &Tree<'_>, names: Names<'_>, document: &Range<Id>, kind: Kind) -> Vec<Use> {
    Search::new(text, tree, names).run(document, Some(kind))
}

/// What a node is for its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    /// Nothing special. Whether the name of the field says that it describes an image.
    Value { of_image: bool },
    /// A list of containers.
    Containers,
    /// A container.
    Container,
    /// A mapping that a container merges.
    Merged,
    /// The volumes of a pod.
    Volumes,
    /// The services of Compose.
    Services,
    /// A service of Compose.
    Service,
    /// A mapping that a service of Compose merges.
    MergedService,
    /// What is no image in Compose.
    Other,
}

struct Search<'a> {
    text: &'a str,
    tree: &'a Tree<'a>,
    names: Names<'a>,
    kind: Kind,
    /// Whether the value `global.imageRegistry` replaces the registry of all images, as in Bitnami's charts.
    has_global_registry: bool,
    visited: HashSet<(Id, Role)>,
    pending: Vec<(Id, Role)>,
    /// The fields that are images, or parts of images.
    places: HashSet<Place>,
    /// The nodes that are images. An alias of one has the same fate.
    images: HashSet<Id>,
    /// The services of Compose by name.
    services: HashMap<&'a str, Id>,
    /// The images of Compose that stay, with the reason.
    fixed: HashMap<Id, &'static str>,
    uses: Vec<Use>,
}

impl<'a> Search<'a> {
    fn new(text: &'a str, tree: &'a Tree<'a>, names: Names<'a>) -> Self {
        Self {
            text,
            tree,
            names,
            kind: Kind::Values,
            has_global_registry: false,
            visited: HashSet::new(),
            pending: Vec::new(),
            places: HashSet::new(),
            images: HashSet::new(),
            services: HashMap::new(),
            fixed: HashMap::new(),
            uses: Vec::new(),
        }
    }

    fn run(mut self, document: &Range<Id>, kind: Option<Kind>) -> Vec<Use> {
        let (tree, root) = (self.tree, document.start);
        self.kind = kind.unwrap_or_else(|| Kind::of(tree, document));
        self.has_global_registry =
            tree.field(root, "global").is_some_and(|global| self.filled(tree.value(global), "imageRegistry").is_some());
        match (self.kind, tree.field(root, "services")) {
            (Kind::Compose, Some(services)) => self.compose(root, tree.value(services)),
            _ => self.pending.push((root, Role::Value { of_image: false })),
        }
        while let Some((id, role)) = self.pending.pop() {
            if self.visited.insert((id, role)) {
                self.visit(id, role);
            }
        }
        let fixed = self.fixed(document);
        settle(&mut self.uses, &fixed);
        self.uses.sort_by_key(|it| it.at);
        self.uses
    }

    fn visit(&mut self, id: Id, role: Role) {
        match (&self.tree.node(id).content, role) {
            (Content::Sequence(items), _) => {
                for &item in items {
                    let role = match role {
                        Role::Containers if self.tree.mapping(item).is_some() => Role::Container,
                        // The branches of CloudFormation's !If.
                        Role::Containers => Role::Containers,
                        Role::Volumes => Role::Volumes,
                        Role::Services | Role::Service | Role::MergedService | Role::Other => Role::Other,
                        _ => Role::Value { of_image: false },
                    };
                    self.pending.push((item, role));
                }
            }
            (Content::Mapping(mapping), Role::Services) => {
                let services = mapping.fields.iter().filter(|field| !self.tree.is_merge(**field));
                self.pending.extend(services.map(|field| (field.value, Role::Service)));
                self.pending.extend(self.tree.merged(id).iter().map(|&merged| (merged, Role::Services)));
            }
            (Content::Mapping(mapping), Role::Service | Role::MergedService) => {
                if role == Role::Service {
                    self.service(id);
                }
                let is_other =
                    |field: &&Field| !self.tree.is_merge(**field) && self.tree.text(field.key) != Some("image");
                self.pending.extend(mapping.fields.iter().filter(is_other).map(|field| (field.value, Role::Other)));
                self.pending.extend(self.tree.merged(id).iter().map(|&merged| (merged, Role::MergedService)));
            }
            (Content::Mapping(mapping), Role::Other) => {
                self.pending.extend(mapping.fields.iter().map(|field| (field.value, Role::Other)));
            }
            (Content::Mapping(_), Role::Volumes) => {
                if let Some(place) = self.tree.field(id, "image") {
                    self.image_of(self.tree.value(place), "reference");
                }
            }
            (Content::Mapping(mapping), Role::Containers | Role::Container | Role::Merged) => {
                if role == Role::Container {
                    self.image_of(id, "image");
                }
                if role == Role::Container && self.kind == Kind::Ecs {
                    self.image_of(id, "Image");
                }
                if role != Role::Merged {
                    self.helm_image(id, false);
                }
                for (index, &field) in mapping.fields.iter().enumerate() {
                    if self.tree.text(field.key) == Some("Fn::If") {
                        self.pending.push((field.value, Role::Containers));
                    } else {
                        self.field((id, index), field);
                    }
                }
                self.pending.extend(self.tree.merged(id).iter().map(|&merged| (merged, Role::Merged)));
            }
            (Content::Mapping(mapping), Role::Value { of_image }) => {
                self.helm_image(id, of_image);
                for (index, &field) in mapping.fields.iter().enumerate() {
                    self.field((id, index), field);
                }
                self.pending.extend(self.tree.merged(id).iter().map(|&merged| (merged, role)));
            }
            (Content::Scalar(_), _) => {}
        }
    }

    fn field(&mut self, place: Place, field: Field) {
        let key = self.tree.text(field.key).unwrap_or_default();
        let role = match (self.kind, key) {
            _ if self.tree.is_merge(field) => return,
            (Kind::Kubernetes, "containers" | "initContainers" | "ephemeralContainers")
            | (Kind::Ecs, "containerDefinitions" | "ContainerDefinitions") => Role::Containers,
            (Kind::Kubernetes, "volumes") => {
                self.pending.push((field.value, Role::Volumes));
                Role::Value { of_image: false }
            }
            (Kind::Values, "image") if self.tree.scalar(field.value).is_some() => {
                // With these, it is a part of the name.
                if !["registry", "tag", "digest"].iter().any(|name| self.tree.field(place.0, name).is_some()) {
                    self.image(place);
                }
                return;
            }
            _ => Role::Value { of_image: key.ends_with("image") || key.ends_with("Image") },
        };
        self.pending.push((field.value, role));
    }

    /// Starts with the services of a Compose file, and with all else that has a meaning there.
    fn compose(&mut self, root: Id, services: Id) {
        let tree = self.tree;
        for mapping in tree.lineage(services).filter_map(|id| tree.mapping(id)) {
            for field in mapping.fields.iter().rev() {
                if let Some(name) = tree.text(field.key) {
                    self.services.entry(name).or_insert(field.value);
                }
            }
        }
        let others = tree.mapping(root).into_iter().flat_map(|root| &root.fields).filter(|field| {
            let key = tree.text(field.key).unwrap_or_default();
            !(key == "services" || key.starts_with("x-") || tree.is_merge(**field))
        });
        self.pending.extend(others.map(|field| (field.value, Role::Other)));
        self.pending.push((services, Role::Services));
    }

    /// A service of Compose. If it has `build`, also of a service that it extends, its image is the name of what is built.
    fn service(&mut self, id: Id) {
        let tree = self.tree;
        let (services, is_complete) = self.extended(id);
        let Some(place) = services.iter().find_map(|&id| tree.field(id, "image")) else { return };
        if services.iter().any(|&id| tree.field(id, "build").is_some()) {
            self.fixed.insert(tree.value(place), BUILT);
            return;
        }
        if !is_complete {
            self.fixed.insert(tree.value(place), EXTENDS_ELSEWHERE);
        }
        self.image(place);
    }

    /// A service and those that it extends, and whether these are all. Compose takes
    /// [a field](https://docs.docker.com/reference/compose-file/services/#extends) of the first that has it.
    fn extended(&self, service: Id) -> (Vec<Id>, bool) {
        let (tree, mut services) = (self.tree, vec![service]);
        while let Some(extends) = services.last().and_then(|&id| tree.field(id, "extends")).map(|it| tree.value(it)) {
            let name = tree.field(extends, "service").map_or(extends, |place| tree.value(place));
            let base = tree.text(name).and_then(|name| self.services.get(name));
            match base.filter(|_| tree.field(extends, "file").is_none() && services.len() <= MAX_EXTENDED) {
                Some(&base) => services.push(base),
                None => return (services, false),
            }
        }
        (services, true)
    }

    /// A field of a mapping is an image, if the mapping has it.
    fn image_of(&mut self, mapping: Id, name: &str) {
        if let Some(place) = self.tree.field(mapping, name) {
            self.image(place);
        }
    }

    /// The field at `place` is an image.
    fn image(&mut self, place: Place) {
        let id = self.tree.value(place);
        let node = self.tree.node(id);
        if !self.places.insert(place) || !self.images.insert(id) {
            return;
        }
        let Some(scalar) = self.tree.scalar(id) else {
            // Such as CloudFormation's {"Fn::Sub": …}.
            if self.kind == Kind::Ecs {
                let function = self.tree.mapping(id).and_then(|mapping| mapping.fields.first());
                let [name, value] = [function.map(|it| it.key), function.map(|it| it.value)].map(|id| {
                    id.and_then(|id| self.tree.text(id)).filter(|text| text.len() <= MAX_PART).unwrap_or("…")
                });
                let image = format!("{{{name}: {value}}}");
                let fate = Fate::Left("it is a function of CloudFormation".into());
                self.uses.push(Use { at: node.span.start, image, parts: vec![id], fate });
            }
            return;
        };
        let image = scalar.value.to_string();
        if scalar.is_null() || image.is_empty() || scalar.style == Style::Plain && is_boolean(&image) {
            return;
        }
        let fate = match (&scalar.tag, self.names.resolve(&image)) {
            (Some(tag), _) => Fate::Left(format!("it is a value of the type {tag}")),
            (None, Ok(None)) => Fate::AlreadyMirrored,
            (None, Err(reason)) => Fate::Left(reason),
            (None, Ok(Some(_))) if name_of(&image) == image && self.has_tag_elsewhere(place.0) => {
                Fate::Left("its tag is in another field".into())
            }
            (None, Ok(Some(mirror))) => match self.edit(id, mirror.to_string()) {
                Some(edit) => Fate::Mirrored { mirror, edits: vec![edit] },
                None => Fate::Left(UNUSUAL.into()),
            },
        };
        self.uses.push(Use { at: node.span.start, image, parts: vec![id], fate });
    }

    /// Helm charts describe images by `repository` or `image`, and one of `registry`, `tag` and `digest`.
    fn helm_image(&mut self, mapping: Id, of_image: bool) {
        let has = |name| self.tree.field(mapping, name).is_some();
        let has_parts = ["registry", "tag", "digest"].into_iter().any(has);
        let key = match () {
            () if has("repository") && (has_parts || of_image) => "repository",
            () if has("image") && has_parts && self.kind == Kind::Values => "image",
            () => return,
        };
        let Some(place) = self.tree.field(mapping, key) else { return };
        let repository = self.tree.value(place);
        let Some(name) = self.filled(mapping, key).filter(|name| !name.value.contains("://")) else { return };
        let [registry, tag, digest, sha] = ["registry", "tag", "digest", "sha"].map(|name| self.filled(mapping, name));
        let all = [Some(name), registry, tag, digest, sha];
        if all.iter().flatten().any(|part| part.value.len() > MAX_PART) {
            return;
        }
        let mut image = match registry {
            Some(registry) => format!("{}/{}", registry.value.trim_end_matches('/'), name.value),
            None => name.value.to_string(),
        };
        let is_name = image.parse().is_ok_and(|it: ImageReference| it.tag.is_none() && it.digest.is_none());
        tag.iter().for_each(|tag| image += &format!(":{}", tag.value));
        match (digest, sha) {
            (Some(digest), _) => image += &format!("@{}", digest.value),
            // As in Grafana's charts.
            (None, Some(sha)) => image += &format!("@sha256:{}", sha.value),
            (None, None) => {}
        }
        let is_whole = tag.is_some() || digest.is_some() || sha.is_some();
        let places = [key, "registry", "tag", "digest", "sha"];
        let places: Vec<_> = places.iter().filter_map(|name| self.tree.field(mapping, name)).collect();
        let resolved = match all.into_iter().flatten().find_map(|it| it.tag.as_ref()) {
            Some(tag) => Err(format!("it has a value of the type {tag}")),
            None if tag.is_some_and(is_changed_number) => {
                Err("Helm reads its tag as a number, and changes it; write the tag in quotes".into())
            }
            None if self.has_global_registry && has("registry") => {
                Err("global.imageRegistry is set: the chart puts it in place of the image's registry".into())
            }
            None if is_whole => self.names.resolve(&image),
            None => Names { matching: Match::Repository, ..self.names }.resolve(&image),
        };
        let fate = match resolved {
            Err(reason) => Fate::Left(reason),
            Ok(None) => Fate::AlreadyMirrored,
            Ok(Some(_)) if !is_name => Fate::Left("its repository has a tag".into()),
            Ok(Some(_)) if registry.is_some_and(|registry| registry.value.ends_with('/')) => {
                Fate::Left("its registry ends with a slash; write it without".into())
            }
            Ok(Some(_)) if !is_whole && self.names.matching == Match::Image => {
                Fate::Left("it has no tag; --match repository accepts it with any tag".into())
            }
            Ok(Some(mirror)) => {
                let target = &mirror.repository;
                let edits = match registry.and_then(|_| self.tree.field(mapping, "registry")) {
                    Some(place) => [
                        self.edit(self.tree.value(place), target.registry.to_string()),
                        self.edit(repository, target.name.to_string()),
                    ]
                    .into_iter()
                    .collect(),
                    None => self.edit(repository, target.to_string()).map(|edit| vec![edit]),
                };
                edits.map_or(Fate::Left(UNUSUAL.into()), |edits| Fate::Mirrored { mirror, edits })
            }
        };
        let parts = places.iter().map(|&place| self.tree.value(place)).collect();
        self.places.extend(places);
        // A merged field is elsewhere.
        let own = self.tree.mapping(mapping).filter(|_| place.0 == mapping).map(|mapping| mapping.fields[place.1].key);
        let at = self.tree.node(own.unwrap_or(mapping)).span.start;
        self.uses.push(Use { at, image, parts, fate });
    }

    /// Whether a mapping of values has a field such as `imageTag`, which a chart adds to the image.
    fn has_tag_elsewhere(&self, mapping: Id) -> bool {
        let fields = self.tree.mapping(mapping).map(|mapping| mapping.fields.as_slice()).unwrap_or_default();
        let mut keys = fields.iter().filter_map(|field| self.tree.text(field.key)).map(str::to_lowercase);
        self.kind == Kind::Values
            && keys.any(|key| key.ends_with("tag") || key.ends_with("version") && key != "apiversion")
    }

    /// The scalar in a field, if it has a text.
    fn filled(&self, mapping: Id, name: &str) -> Option<&'a Scalar<'a>> {
        let scalar = self.tree.scalar(self.tree.value(self.tree.field(mapping, name)?))?;
        (!scalar.is_null() && !scalar.value.is_empty()).then_some(scalar)
    }

    /// Replaces a scalar and keeps its style.
    fn edit(&self, id: Id, new: String) -> Option<Edit> {
        let (node, scalar) = (self.tree.node(id), self.tree.scalar(id)?);
        let written = self.text.get(node.span.clone())?;
        let start = node.span.start + properties_length(written);
        let content = &self.text[start..node.span.end];
        let range = match scalar.style {
            Style::Plain if content == scalar.value => start..node.span.end,
            Style::Quoted => start + 1..start + closing_quote(content)?,
            Style::Block if content.matches(&*scalar.value).count() == 1 => {
                let start = start + content.find(&*scalar.value)?;
                start..start + scalar.value.len()
            }
            _ => return None,
        };
        let text = if scalar.style == Style::Plain && is_ambiguous(&new) { format!("\"{new}\"") } else { new };
        Some(Edit { part: id, range, text })
    }

    /// The scalars that, by an anchor, are also used where they are no images, and others that stay, with the reason.
    fn fixed(&self, document: &Range<Id>) -> HashMap<Id, &'static str> {
        let mut uses: HashMap<Id, (usize, bool)> = HashMap::new();
        for &(mapping, index) in &self.places {
            let field = self.tree.mapping(mapping).expect("a place is in a mapping").fields[index];
            let (aliases, is_defined) = uses.entry(field.value).or_default();
            if field.is_alias { *aliases += 1 } else { *is_defined = true }
        }
        let is_elsewhere = |(&id, &(aliases, is_defined)): (&Id, &(usize, bool))| {
            let is_used = aliases < self.tree.node(id).aliases || !is_defined && !self.is_extension(document, id);
            is_used.then_some(id)
        };
        let of_values =
            self.places.iter().filter(|place| self.is_of_value(**place)).map(|place| self.tree.value(*place));
        let elsewhere = uses.iter().filter_map(is_elsewhere).chain(of_values).map(|id| (id, ELSEWHERE));
        elsewhere.chain(self.fixed.iter().map(|(&id, &reason)| (id, reason))).collect()
    }

    /// Whether the image of a container or a service is also a field of something else, because their mappings are the same.
    fn is_of_value(&self, (mapping, index): Place) -> bool {
        let key = self.tree.mapping(mapping).and_then(|it| self.tree.text(it.fields[index].key));
        let roles = [Role::Value { of_image: false }, Role::Value { of_image: true }, Role::Other];
        self.kind != Kind::Values
            && matches!(key, Some("image" | "Image"))
            && roles.iter().any(|role| self.visited.contains(&(mapping, *role)))
    }

    /// Whether a node is in an extension `x-…` of Compose, which has no meaning of its own.
    fn is_extension(&self, document: &Range<Id>, id: Id) -> bool {
        let fields = self.tree.mapping(document.start).map(|root| root.fields.as_slice()).unwrap_or_default();
        // The nodes of a field are between its key and the next key.
        let field = fields.partition_point(|field| field.key <= id).checked_sub(1).map(|index| fields[index]);
        let key = field.and_then(|field| self.tree.text(field.key));
        self.kind == Kind::Compose && key.is_some_and(|key| key.starts_with("x-"))
    }
}

/// The length of the anchor and the tag before a scalar.
fn properties_length(written: &str) -> usize {
    let mut rest = written;
    while rest.starts_with(['&', '!', '#']) {
        let is_end =
            |character: char| if rest.starts_with('#') { character == '\n' } else { character.is_whitespace() };
        rest = rest.trim_start_matches(|character| !is_end(character)).trim_start();
    }
    written.len() - rest.len()
}

/// Where the quotes of a text end.
fn closing_quote(quoted: &str) -> Option<usize> {
    let quote = quoted.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    let mut characters = quoted.char_indices().skip(1);
    while let Some((index, character)) = characters.next() {
        let is_escape = match quote {
            '"' => character == '\\',
            _ => quoted[index..].starts_with("''"),
        };
        if is_escape {
            characters.next();
        } else if character == quote {
            return Some(index);
        }
    }
    None
}

/// Whether Helm, which reads numbers as 64-bit floats, writes a number in another way: 1.10 as 1.1, and 20260101 as 2.0260101e+07.
fn is_changed_number(scalar: &Scalar<'_>) -> bool {
    let is_number = scalar.style == Style::Plain
        && !scalar.is_text
        && scalar.value.starts_with(|first: char| first.is_ascii_digit());
    let number = scalar.value.parse::<f64>().ok().filter(|_| is_number);
    number.is_some_and(|number| number.abs() >= 1e6 || number.to_string() != scalar.value)
}

fn is_boolean(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "true" | "false")
}

/// Whether a plain scalar with this text could be another type than text.
pub fn is_ambiguous(text: &str) -> bool {
    let is_of_number = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b'x' | b'o' | b'.' | b'_' | b':' | b'-');
    matches!(text, "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | "inf" | "nan")
        || text.starts_with(|first: char| first.is_ascii_digit()) && text.bytes().all(is_of_number)
}
