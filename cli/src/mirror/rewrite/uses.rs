//! Images that a text uses, and the edits that let it use the mirror.

use std::collections::HashMap;
use std::ops::Range;

use shared::inventory::{Inventory, Match, Resolved};
use shared::reference::ImageReference;

/// A part of the text that several images can share: a scalar, or the default of a build argument.
pub type Part = usize;

/// A use of an image.
#[derive(Debug)]
pub struct Use {
    /// Where it is in the text, in bytes.
    pub at: usize,
    /// The image, as the text names it.
    pub image: String,
    /// The parts of the text that name it.
    pub parts: Vec<Part>,
    /// What is to be done.
    pub fate: Fate,
}

/// What is done with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It gets another name.
    Mirrored {
        /// The name at the mirror.
        mirror: ImageReference,
        /// How the text gets it.
        edits: Vec<Edit>,
    },
    /// It already is at the mirror.
    AlreadyMirrored,
    /// It stays, for this reason.
    Left(String),
}

/// A replacement of a part, or within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The part that changes.
    pub part: Part,
    /// The bytes that are replaced.
    pub range: Range<usize>,
    /// Their replacement in the text.
    pub text: String,
}

/// Why an image stays whose text is something else, too.
pub const ELSEWHERE: &str = "the same text is also used where it is not an image";

/// Why an image stays whose text cannot be replaced.
pub const UNUSUAL: &str = "it is written in a way that cannot be changed";

/// Knows the names at the mirror.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// What the mirror has.
    pub inventory: &'a Inventory,
    /// Which images count as mirrored.
    pub matching: Match,
}

impl Names<'_> {
    /// The name of an image at the mirror, or `None` if it already is one.
    ///
    /// # Errors
    /// If it is not mirrored: the reason.
    pub fn resolve(self, image: &str) -> Result<Option<ImageReference>, String> {
        if image.contains('$') || image.contains("{{") {
            return Err("it contains a variable".into());
        }
        match self.inventory.resolve(image, self.matching) {
            Ok(Resolved::Mirrored(mirror)) => Ok(Some(mirror)),
            Ok(Resolved::AlreadyMirrored) => Ok(None),
            Err(reason) => Err(reason.to_string()),
        }
    }
}

impl Use {
    /// The edits of an image that gets another name.
    pub fn edits(&self) -> &[Edit] {
        match &self.fate {
            Fate::Mirrored { edits, .. } => edits,
            _ => &[],
        }
    }
}

/// Lets images stay that share a part with one that stays, or that gets another text. `fixed` are the parts that must not
/// change for another reason, with that reason.
pub fn settle(uses: &mut [Use], fixed: &HashMap<Part, &'static str>) {
    let mut by_part: HashMap<Part, Vec<usize>> = HashMap::new();
    for (index, it) in uses.iter().enumerate() {
        for part in &it.parts {
            by_part.entry(*part).or_default().push(index);
        }
    }
    let mut pending: Vec<Part> = fixed.keys().copied().collect();
    let is_edited = |it: &Use, part: Part| it.edits().iter().any(|edit| edit.part == part);
    for (part, users) in &by_part {
        let edit = |index: &usize| uses[*index].edits().iter().find(|edit| edit.part == *part);
        if users.iter().any(|user| edit(user) != edit(&users[0])) {
            pending.push(*part);
        }
    }
    // Each image stops changing at most once.
    while let Some(part) = pending.pop() {
        // Only once for each part, because then no user changes it any more.
        for &index in by_part.remove(&part).iter().flatten() {
            if is_edited(&uses[index], part) {
                let reason = fixed.get(&part).copied().unwrap_or("it shares text with an image that is not mirrored");
                uses[index].fate = Fate::Left(reason.into());
                pending.extend(&uses[index].parts);
            }
        }
    }
}

/// The text with all edits.
pub fn apply(text: &str, uses: &[Use]) -> String {
    let mut edits: Vec<_> = uses.iter().flat_map(Use::edits).map(|edit| (edit.range.clone(), &edit.text)).collect();
    edits.sort_by_key(|(range, _)| range.start);
    edits.dedup();
    let (mut result, mut end) = (String::with_capacity(text.len() + edits.len() * 64), 0);
    for (range, replacement) in edits {
        result.push_str(&text[end..range.start]);
        result.push_str(replacement);
        end = range.end;
    }
    result + &text[end..]
}

/// A reference without its tag and digest.
pub fn name_of(image: &str) -> &str {
    let named = image.split('@').next().unwrap_or_default();
    let last = named.rfind('/').unwrap_or_default();
    named[last..].find(':').map_or(named, |colon| &named[..last + colon])
}
