//! What an entry of the list may have in place of a tag: all tags, a glob, or a range of versions, and the newest of these.

use std::cmp::Ordering;

use glob::Pattern;
use semver::{Version, VersionReq};

/// In place of a tag: all tags of the repository.
pub const ALL_TAGS: &str = "ALL_TAGS";

/// The word in front of the number of tags to keep.
const NEWEST: &str = "newest";

/// What a comparator of a range of versions begins with.
const OPERATORS: [char; 5] = ['^', '~', '<', '>', '='];

/// Tags that are wanted, without naming each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    kind: Kind,
    newest: Option<usize>,
    /// As it was written.
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    All,
    Glob(Pattern),
    /// The versions, and what follows the version in a tag: `alpine` in `1.27.3-alpine`.
    Range(VersionReq, String),
}

/// A tag that a repository has.
#[derive(Clone, Copy, Debug)]
pub struct Available<'a> {
    /// The tag.
    pub tag: &'a str,
    /// When its image was pushed, in seconds since 1970; 0 where the source does not tell.
    pub pushed_at: i64,
}

impl Tags {
    /// All tags.
    #[must_use]
    pub fn all() -> Self {
        Self { kind: Kind::All, newest: None, text: ALL_TAGS.into() }
    }

    /// Whether `text`, in the place of a tag, stands for more than the tag of that name.
    #[must_use]
    pub fn is_pattern(text: &str) -> bool {
        text == ALL_TAGS || text.contains(['*', '?', '[']) || text.starts_with(OPERATORS)
    }

    /// Parses what stands in the place of a tag, `first`, and the words behind it.
    ///
    /// # Errors
    /// With what is wrong with it.
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
            Kind::Glob(Pattern::new(first).map_err(|error| format!("{first} is no glob: {}", error.msg))?)
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
                let count = count.ok_or("behind newest, a number of tags is expected, such as newest 3")?;
                text = format!("{text} {NEWEST} {count}");
                Some(count)
            }
            (Some(NEWEST), ..) => return Err("newest N, such as newest 3, is expected at the end".into()),
            (Some(word), ..) => return Err(format!("{word:?} is not expected there; entries are separated by commas")),
        };
        Ok(Self { kind, newest, text })
    }

    /// As it may be written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether these are all tags, whatever there is.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.kind == Kind::All && self.newest.is_none()
    }

    /// The same, however many there are.
    #[must_use]
    pub fn without_limit(&self) -> Self {
        Self { newest: None, ..self.clone() }
    }

    /// Those of `available` that are wanted. Tags that belong to another image, such as its signature, are no choice of
    /// their own, unless everything is wanted.
    #[must_use]
    pub fn select<'a>(&self, available: &[Available<'a>]) -> Vec<&'a str> {
        let candidates = available.iter().filter(|it| self.is_everything() || subject(it.tag).is_none());
        let Some(newest) = self.newest else {
            return candidates.map(|it| it.tag).filter(|tag| self.matches(tag)).collect();
        };
        let mut matching: Vec<_> = candidates.filter(|it| self.matches(it.tag)).collect();
        matching.sort_by(|a, b| self.compare(b, a));
        matching.truncate(newest);
        matching.into_iter().map(|it| it.tag).collect()
    }

    fn matches(&self, tag: &str) -> bool {
        match &self.kind {
            Kind::All => true,
            Kind::Glob(pattern) => pattern.matches(tag),
            Kind::Range(range, suffix) => {
                version(tag).is_some_and(|(version, behind)| behind == suffix && range.matches(&version))
            }
        }
    }

    /// Which of two tags is newer: by version in a range; otherwise by the time of the push, or by name where the source
    /// does not tell, in which 1.10 comes after 1.9.
    fn compare(&self, a: &Available<'_>, b: &Available<'_>) -> Ordering {
        let by_name = alphanumeric_sort::compare_str(a.tag, b.tag);
        if let Kind::Range(..) = self.kind {
            let key = |it: &Available<'_>| version(it.tag).map(|(version, _)| version);
            return key(a).cmp(&key(b)).then(by_name);
        }
        a.pushed_at.cmp(&b.pushed_at).then(by_name)
    }
}

/// The digest of the image that a tag belongs to: `sha256-….sig`, `.att` and `.sbom` are cosign's, and without an ending
/// it lists the image's referrers, see the
/// [referrers tag schema](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema).
#[must_use]
pub fn subject(tag: &str) -> Option<String> {
    let hex = tag.strip_prefix("sha256-")?;
    let hex = hex.split_once('.').map_or(hex, |(hex, _ending)| hex);
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| format!("sha256:{hex}"))
}

/// A range from its comparators, of which the last may end in `-suffix`.
fn range(comparators: &[&str]) -> Result<Kind, String> {
    let expected = |text: &str| {
        format!("{text} is no range of versions; expected one such as ^1.27, ~1.27.3, >=1.20 <2, or ^1.27-alpine")
    };
    let mut requirements = Vec::new();
    let mut suffix = "";
    for comparator in comparators {
        let operator = comparator.len() - comparator.trim_start_matches(OPERATORS).len();
        let (operator, operand) = comparator.split_at(operator);
        let (numbers, behind) = split(operand).ok_or_else(|| expected(comparator))?;
        if !suffix.is_empty() {
            return Err("the suffix, such as -alpine, belongs to the end of the range".into());
        }
        suffix = behind;
        let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        requirements.push(format!("{operator}{}", numbers.join(".")));
    }
    let range = VersionReq::parse(&requirements.join(", ")).map_err(|_| expected(&comparators.join(" ")))?;
    Ok(Kind::Range(range, suffix.to_owned()))
}

/// The version that a tag names, and what follows it: `v1.27-alpine` is version 1.27.0, and `alpine`.
fn version(tag: &str) -> Option<(Version, &str)> {
    let (numbers, suffix) = split(tag)?;
    let number = |index: usize| numbers.get(index).copied().unwrap_or_default();
    Some((Version::new(number(0), number(1), number(2)), suffix))
}

/// One to three numbers, separated by dots, after an optional `v`; and what follows behind a `-`.
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

    fn selected(text: &str) -> Vec<&'static str> {
        let available = TAGS.map(|tag| Available { tag, pushed_at: 0 });
        parse(text).expect("it is a pattern").select(&available)
    }

    #[test]
    fn globs_and_ranges_select_what_they_say() {
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
    fn the_newest_are_the_highest_versions_of_a_range() {
        assert_eq!(selected("^1.26 newest 3"), ["v1.28.0", "1.27.10", "1.27.3"]);
    }

    #[test]
    fn the_newest_of_other_tags_were_pushed_last_or_come_last_by_name() {
        let pushed = [("b", 3), ("a", 9), ("c", 1)].map(|(tag, pushed_at)| Available { tag, pushed_at });
        assert_eq!(parse("* newest 2").expect("it is a pattern").select(&pushed), ["a", "b"]);
        let named = ["1.9", "1.10", "1.2"].map(|tag| Available { tag, pushed_at: 0 });
        assert_eq!(parse("ALL_TAGS newest 2").expect("it is a pattern").select(&named), ["1.10", "1.9"]);
    }

    #[test]
    fn a_signature_is_only_selected_with_everything() {
        let signature = format!("sha256-{}.sig", "a".repeat(64));
        let available = [&*signature, "1"].map(|tag| Available { tag, pushed_at: 0 });
        assert_eq!(parse("*").expect("it is a pattern").select(&available), ["1"]);
        assert_eq!(parse("ALL_TAGS newest 2").expect("it is a pattern").select(&available), ["1"]);
        assert_eq!(Tags::all().select(&available), [&*signature, "1"]);
    }

    #[test]
    fn the_subject_of_a_companion_is_in_its_name() {
        let hex = "0".repeat(64);
        for ending in ["", ".sig", ".att", ".sbom"] {
            assert_eq!(subject(&format!("sha256-{hex}{ending}")), Some(format!("sha256:{hex}")));
        }
        assert_eq!(subject("sha256-abc.sig"), None);
        assert_eq!(subject("1.0"), None);
    }

    #[test]
    fn the_guides_entries_take_what_the_guide_says() {
        let rows = crate::guide::rows("| Entry | What it takes |");
        assert_eq!(rows.len(), 10);
        let tags = &rows[0][1];
        let available: Vec<_> = tags.iter().map(|tag| Available { tag, pushed_at: 0 }).collect();
        for row in &rows {
            let (_, pattern) = row[0][0].split_once(':').expect("it is an entry");
            let selected = parse(pattern).expect(pattern).select(&available);
            assert_eq!(selected, row[1], "{pattern}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, problem) in [
            ("1.[", "no glob"),
            ("^one", "no range"),
            (">=1.2.3.4", "no range"),
            ("^^1", "no range"),
            (">=1-alpine <2", "belongs to the end"),
            ("^1 newest", "at the end"),
            ("^1 newest 0", "a number"),
            ("^1 newest 3 4", "at the end"),
            ("^1 oldest 3", "\"oldest\" is not expected"),
            ("1.* nginx:2", "separated by commas"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn what_prints_parses_back() {
        for text in ["ALL_TAGS", "ALL_TAGS newest 3", "1.27.*", "^1.27", ">=1.20 <2 newest 1", "~1.27-alpine"] {
            let tags = parse(text).expect(text);
            assert_eq!(parse(tags.as_str()), Ok(tags), "{text}");
        }
    }
}
