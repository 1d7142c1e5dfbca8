//! Patterns for tags: all tags, a glob or a version range, optionally limited to the newest ones.

use std::cmp::Ordering;

use glob::Pattern;
use semver::{Version, VersionReq};

use crate::reference::{Digest, Tag};

/// The pattern for all tags of a repository.
pub const ALL_TAGS: &str = "ALL_TAGS";

/// The word before the maximum number of tags.
const NEWEST: &str = "newest";

/// The comparators of version ranges.
const OPERATORS: [char; 5] = ['^', '~', '<', '>', '='];

/// A pattern for tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    kind: Kind,
    newest: Option<usize>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    All,
    Glob(Pattern),
    /// The versions and the suffix of the tags: `alpine` in `1.27.3-alpine`.
    Range(VersionReq, String),
}

/// A tag of a repository.
#[derive(Clone, Copy, Debug)]
pub struct Available<'a> {
    /// The tag.
    pub tag: &'a Tag,
    /// When its image was pushed, in seconds since 1970; 0 if that is unknown.
    pub pushed_at: i64,
}

impl Tags {
    /// All tags.
    pub fn all() -> Self {
        Self { kind: Kind::All, newest: None, text: ALL_TAGS.into() }
    }

    /// Whether `text` is a pattern, and not a tag.
    pub fn is_pattern(text: &str) -> bool {
        text == ALL_TAGS || text.contains(['*', '?', '[']) || text.starts_with(OPERATORS)
    }

    /// Parses a pattern: its first word and the other ones.
    ///
    /// # Errors
    /// A message about what is invalid.
    pub fn parse<'a>(first: &str, rest: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut words = rest.peekable();
        let kind = if first == ALL_TAGS {
            Kind::All
        } else if first.starts_with(OPERATORS) {
            let mut comparators = vec![first];
            while let Some(word) = words.next_if(|word| word.starts_with(OPERATORS)) {
                comparators.push(word);
            }
            range(&comparators)?
        } else {
            Kind::Glob(Pattern::new(first).map_err(|error| format!("invalid glob {first:?}: {}", error.msg))?)
        };
        let mut text = first.to_owned();
        if let Kind::Range(range, suffix) = &kind {
            text = range.comparators.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            if !suffix.is_empty() {
                text = format!("{text}-{suffix}");
            }
        }
        let newest = match (words.next(), words.next(), words.next()) {
            (None, ..) => None,
            (Some(NEWEST), Some(count), None) => {
                let count = count.parse().ok().filter(|&count: &usize| count > 0);
                let count = count.ok_or("expected a number of tags after newest, for example newest 3.")?;
                text = format!("{text} {NEWEST} {count}");
                Some(count)
            }
            (Some(NEWEST), ..) => return Err("expected newest and a number at the end, for example newest 3.".into()),
            (Some(word), ..) => return Err(format!("unexpected {word:?}. Separate entries by commas.")),
        };
        Ok(Self { kind, newest, text })
    }

    /// The pattern in its normal form, which parses to the same pattern.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches all tags without a limit.
    pub fn is_everything(&self) -> bool {
        self.kind == Kind::All && self.newest.is_none()
    }

    /// The same pattern without `newest`.
    pub fn without_limit(&self) -> Self {
        Self { newest: None, ..self.clone() }
    }

    /// The tags of `available` that the pattern selects. Only the pattern for everything selects tags of referrers, such as
    /// signatures.
    pub fn select<'a>(&self, available: &[Available<'a>]) -> Vec<&'a Tag> {
        let candidates = available.iter().filter(|it| self.is_everything() || subject(it.tag).is_none());
        let Some(newest) = self.newest else {
            return candidates.map(|it| it.tag).filter(|tag| self.matches(tag)).collect();
        };
        let mut matching: Vec<_> = candidates.filter(|it| self.matches(it.tag)).collect();
        matching.sort_by(|a, b| self.compare(b, a));
        matching.truncate(newest);
        matching.into_iter().map(|it| it.tag).collect()
    }

    fn matches(&self, tag: &Tag) -> bool {
        match &self.kind {
            Kind::All => true,
            Kind::Glob(pattern) => pattern.matches(tag.as_str()),
            Kind::Range(range, suffix) => {
                version(tag.as_str()).is_some_and(|(version, behind)| behind == suffix && range.matches(&version))
            }
        }
    }

    /// The newer tag is greater: by version in a version range, otherwise by the time of the push, and then by name, where 1.10
    /// is greater than 1.9.
    fn compare(&self, a: &Available<'_>, b: &Available<'_>) -> Ordering {
        let by_name = alphanumeric_sort::compare_str(a.tag.as_str(), b.tag.as_str());
        if let Kind::Range(..) = self.kind {
            let key = |it: &Available<'_>| version(it.tag.as_str()).map(|(version, _)| version);
            return key(a).cmp(&key(b)).then(by_name);
        }
        a.pushed_at.cmp(&b.pushed_at).then(by_name)
    }
}

/// The digest of the image that a tag refers to. `sha256-….sig`, `.att` and `.sbom` are cosign's tags, and `sha256-…` is a
/// [referrers tag](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema).
pub fn subject(tag: &Tag) -> Option<Digest> {
    let hex = tag.as_str().strip_prefix("sha256-")?;
    let hex = hex.split_once('.').map_or(hex, |(hex, _ending)| hex);
    format!("sha256:{hex}").parse().ok()
}

/// Parses the comparators of a version range. The last one can end in `-suffix`.
fn range(comparators: &[&str]) -> Result<Kind, String> {
    let expected = |text: &str| {
        format!("invalid version range {text:?}. Expected, for example, ^1.27, ~1.27.3, >=1.20 <2 or ^1.27-alpine.")
    };
    let mut requirements = Vec::new();
    let mut suffix = "";
    for comparator in comparators {
        let operator = comparator.len() - comparator.trim_start_matches(OPERATORS).len();
        let (operator, operand) = comparator.split_at(operator);
        let (numbers, behind) = split(operand).ok_or_else(|| expected(comparator))?;
        if !suffix.is_empty() {
            return Err("a suffix such as -alpine must be at the end of the version range.".into());
        }
        suffix = behind;
        let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        requirements.push(format!("{operator}{}", numbers.join(".")));
    }
    let range = VersionReq::parse(&requirements.join(", ")).map_err(|_| expected(&comparators.join(" ")))?;
    Ok(Kind::Range(range, suffix.to_owned()))
}

/// The version and the suffix of a tag: 1.27.0 and `alpine` for `v1.27-alpine`.
fn version(tag: &str) -> Option<(Version, &str)> {
    let (numbers, suffix) = split(tag)?;
    let number = |index: usize| numbers.get(index).copied().unwrap_or_default();
    Some((Version::new(number(0), number(1), number(2)), suffix))
}

/// Splits a tag into one to three numbers, after an optional `v`, and the suffix after `-`.
fn split(text: &str) -> Option<(Vec<u64>, &str)> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let (numbers, suffix) = text.split_once('-').unwrap_or((text, ""));
    let numbers: Vec<u64> = numbers
        .split('.')
        .map(|number| number.parse().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit())))
        .collect::<Option<_>>()?;
    (numbers.len() <= 3).then_some((numbers, suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGS: [&str; 12] = [
        "1.26.9",
        "1.27",
        "1.27.3",
        "1.27.10",
        "v1.28.0",
        "2",
        "1.27.3-alpine",
        "1.28.0-rc.1",
        "20.04",
        "edge",
        "latest",
        "nightly-2024",
    ];

    fn parse(text: &str) -> Result<Tags, String> {
        let mut words = text.split_whitespace();
        Tags::parse(words.next().unwrap_or_default(), words)
    }

    /// The tags that a pattern selects of `tags`, each with the time of its push.
    fn of(text: &str, tags: &[(&str, i64)]) -> Vec<String> {
        let tags: Vec<(Tag, i64)> = tags.iter().map(|&(tag, at)| (tag.parse().expect(tag), at)).collect();
        let available: Vec<_> = tags.iter().map(|(tag, pushed_at)| Available { tag, pushed_at: *pushed_at }).collect();
        parse(text).expect("it is a pattern").select(&available).into_iter().map(ToString::to_string).collect()
    }

    fn selected(text: &str) -> Vec<String> {
        of(text, &TAGS.map(|tag| (tag, 0)))
    }

    #[test]
    fn globs_and_version_ranges_select_matching_tags() {
        for (text, expected) in [
            ("1.27*", &["1.27", "1.27.3", "1.27.10", "1.27.3-alpine"][..]),
            ("1.2?.9", &["1.26.9"]),
            ("1.2[78].?", &["1.27.3"]),
            ("^1.27", &["1.27", "1.27.3", "1.27.10", "v1.28.0"]),
            ("~1.27.3", &["1.27.3", "1.27.10"]),
            (">=1.27.10", &["1.27.10", "v1.28.0", "2", "20.04"]),
            (">=1.27 <2", &["1.27", "1.27.3", "1.27.10", "v1.28.0"]),
            ("=1.27", &["1.27", "1.27.3", "1.27.10"]),
            (">=v20.04", &["20.04"]),
            ("^1.27-alpine", &["1.27.3-alpine"]),
            (">=1.28 <1.29-rc.1", &["1.28.0-rc.1"]),
        ] {
            assert_eq!(selected(text), expected, "{text}");
        }
        assert_eq!(selected(ALL_TAGS).len(), TAGS.len());
    }

    #[test]
    fn the_newest_tags_of_a_version_range_are_the_highest_versions() {
        assert_eq!(selected("^1.26 newest 3"), ["v1.28.0", "1.27.10", "1.27.3"]);
    }

    #[test]
    fn the_newest_tags_of_other_patterns_were_pushed_last_or_are_last_by_name() {
        assert_eq!(of("* newest 2", &[("b", 3), ("a", 9), ("c", 1)]), ["a", "b"]);
        assert_eq!(of("ALL_TAGS newest 2", &[("1.9", 0), ("1.10", 0), ("1.2", 0)]), ["1.10", "1.9"]);
    }

    #[test]
    fn only_the_pattern_for_everything_selects_signatures() {
        let signature = format!("sha256-{}.sig", "a".repeat(64));
        let tags = [(&*signature, 0), ("1", 0)];
        assert_eq!(of("*", &tags), ["1"]);
        assert_eq!(of("ALL_TAGS newest 2", &tags), ["1"]);
        assert_eq!(of(ALL_TAGS, &tags), [&*signature, "1"]);
    }

    #[test]
    fn the_tag_of_a_referrer_has_the_digest_of_its_subject() {
        let digest = Digest::of(b"image");
        let tag = |text: &str| text.parse::<Tag>().expect(text);
        for ending in ["", ".sig", ".att", ".sbom"] {
            assert_eq!(subject(&tag(&format!("sha256-{}{ending}", digest.hex()))), Some(digest));
        }
        assert_eq!(subject(&tag("sha256-abc.sig")), None);
        assert_eq!(subject(&tag("1.0")), None);
    }

    #[test]
    fn the_guides_entries_select_the_tags_in_the_guide() {
        let rows = crate::guide::rows("| Entry | What it takes |");
        assert_eq!(rows.len(), 10);
        let tags: Vec<_> = rows[0][1].iter().map(|tag| (tag.as_str(), 0)).collect();
        for row in &rows {
            let (_, pattern) = row[0][0].split_once(':').expect("it is an entry");
            assert_eq!(of(pattern, &tags), row[1], "{pattern}");
        }
    }

    #[test]
    fn the_error_of_an_invalid_pattern_says_what_is_invalid() {
        for (text, problem) in [
            ("1.[", "invalid glob"),
            ("^one", "invalid version range"),
            (">=1.2.3.4", "invalid version range"),
            ("^^1", "invalid version range"),
            (">=1-alpine <2", "must be at the end"),
            ("^1 newest", "at the end"),
            ("^1 newest 0", "a number"),
            ("^1 newest 3 4", "at the end"),
            ("^1 oldest 3", "unexpected \"oldest\""),
            ("1.* nginx:2", "Separate entries by commas"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn the_text_of_a_pattern_parses_to_the_same_pattern() {
        for text in ["ALL_TAGS", "ALL_TAGS newest 3", "1.27.*", "^1.27", ">=1.20 <2 newest 1", "~1.27-alpine"] {
            let tags = parse(text).expect(text);
            assert_eq!(parse(tags.as_str()), Ok(tags), "{text}");
        }
    }

    #[test]
    fn without_its_limit_a_pattern_takes_every_tag_that_it_matches() {
        let tags: Vec<Tag> = ["1", "2", "x"].map(|tag| tag.parse().expect(tag)).into();
        let available: Vec<_> = tags.iter().map(|tag| Available { tag, pushed_at: 0 }).collect();
        let newest = parse(">=1 newest 1").expect("it is a pattern");
        assert_eq!(newest.select(&available).len(), 1);
        assert_eq!(newest.without_limit().select(&available), [&tags[0], &tags[1]]);
    }
}
