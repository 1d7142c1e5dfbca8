//! Types for the names of registries, repositories and images. They can only hold valid names: parsing and deserialising check
//! the grammars of the
//! [distribution specification](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::text::Excerpt;

/// Docker Hub's host in image references.
pub const DOCKER_HUB: &str = "docker.io";

/// Docker Hub's other hosts.
const DOCKER_HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// The error of a text that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct Invalid {
    text: Excerpt,
    expected: &'static str,
}

impl Invalid {
    /// `expected` begins with an article: `a tag`.
    pub fn new(text: &str, expected: &'static str) -> Self {
        Self { text: Excerpt::new(text), expected }
    }

    /// The text that cannot be parsed.
    pub fn text(&self) -> &Excerpt {
        &self.text
    }
}

/// Defines a type for texts of one grammar.
macro_rules! name {
    ($(#[$documentation:meta])* $name:ident, $is_valid:expr, $expected:literal) => {
        $(#[$documentation])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// For [`Invalid`].
            const EXPECTED: &str = $expected;

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                if $is_valid(&text) { Ok(Self(text.into())) } else { Err(Invalid::new(&text, Self::EXPECTED)) }
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A tag: up to 128 letters, digits, `_`, `.` and `-`. It does not begin with `.` or `-`.
    Tag,
    is_tag,
    "a tag: up to 128 letters, digits, _, . and -, beginning with a letter, a digit or _"
);

name!(
    /// A repository's name in its registry, such as `library/nginx`: up to 255 characters, in parts separated by slashes. A
    /// part has lowercase letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
    RepositoryName,
    is_repository_name,
    "a repository name: lowercase letters and digits, separated by ., _, - or /"
);

name!(
    /// A registry's host in lowercase, with an optional port: `quay.io`, `harbor.example.com:5000`. Docker Hub is always
    /// [`DOCKER_HUB`].
    RegistryHost,
    is_host,
    "a registry host, such as quay.io or host.example:5000"
);

name!(
    /// The id of a batch, unique within its plan.
    BatchId,
    |text: &str| (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
    "a batch id: up to 20 letters, digits and -"
);

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    text.len() <= 128
        && bytes.next().is_some_and(is_word)
        && bytes.all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_repository_name(text: &str) -> bool {
    text.len() <= 255 && text.split('/').all(is_part)
}

/// Whether a text is a part of a repository's name: words between separators.
fn is_part(mut text: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    loop {
        let behind = text.trim_start_matches(is_letter);
        if behind.len() == text.len() {
            return false;
        }
        if behind.is_empty() {
            return true;
        }
        text = behind.trim_start_matches(['.', '_', '-']);
        let separator = &behind[..behind.len() - text.len()];
        if !matches!(separator, "." | "_" | "__") && separator.contains(['.', '_']) {
            return false;
        }
    }
}

fn is_host(text: &str) -> bool {
    let (domain, port) = text.split_once(':').map_or((text, None), |(domain, port)| (domain, Some(port)));
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let is_port = |port: &str| !port.starts_with(['0', '+']) && port.parse::<u16>().is_ok();
    text.len() <= 255
        && domain.split('.').all(is_label)
        && port.is_none_or(is_port)
        && is_like_host(text)
        && !DOCKER_HUB_ALIASES.contains(&text)
}

/// Whether the first part of a reference is a host. Otherwise it belongs to the name of a repository of Docker Hub.
fn is_like_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

impl RegistryHost {
    /// Parses a host in upper or lower case, and any of Docker Hub's hosts.
    ///
    /// # Errors
    /// If it is not a host.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let host = text.to_ascii_lowercase();
        if DOCKER_HUB_ALIASES.contains(&host.as_str()) { DOCKER_HUB.parse() } else { host.try_into() }
    }

    /// Whether this is Docker Hub.
    pub fn is_docker_hub(&self) -> bool {
        self.as_str() == DOCKER_HUB
    }
}

/// A SHA-256 digest, written `sha256:` and 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(sha2::Sha256::digest(content).into())
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut digest = [0; 32];
        let hex = text.strip_prefix("sha256:").filter(|hex| !hex.bytes().any(|byte| byte.is_ascii_uppercase()));
        match hex.map(|hex| hex::decode_to_slice(hex, &mut digest)) {
            Some(Ok(())) => Ok(Self(digest)),
            _ => Err(Invalid::new(text, "a digest: sha256: and 64 lowercase hexadecimal digits")),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A repository in a registry, written `registry/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository {
    /// The registry's host.
    pub registry: RegistryHost,
    /// The full name: `library/nginx` for the official image nginx.
    pub name: RepositoryName,
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.name)
    }
}

impl FromStr for Repository {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (registry, name) =
            text.split_once('/').ok_or_else(|| Invalid::new(text, "a registry and a repository name"))?;
        Ok(Self { registry: registry.parse()?, name: name.parse()? })
    }
}

/// An image in a repository: by tag, by digest, or by both. The meaning of a reference with neither depends on the reader.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference {
    /// The repository.
    pub repository: Repository,
    /// The tag.
    pub tag: Option<Tag>,
    /// The digest. With a tag, it is the digest that the tag points to.
    pub digest: Option<Digest>,
}

impl fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(formatter, ":{tag}"))?;
        self.digest.map_or(Ok(()), |digest| write!(formatter, "@{digest}"))
    }
}

impl FromStr for ImageReference {
    type Err = Invalid;

    /// Parses `[registry[:port]/]repository[:tag][@digest]`. The default registry is Docker Hub: `nginx` is
    /// `docker.io/library/nginx`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (named, digest) = text.split_once('@').map_or((text, None), |(named, digest)| (named, Some(digest)));
        let last = named.rfind('/').unwrap_or_default();
        let (name, tag) = match named[last..].split_once(':') {
            Some((part, tag)) => (&named[..last + part.len()], Some(tag)),
            None => (named, None),
        };
        Ok(Self {
            repository: Repository::parse_with_default(name)?,
            tag: tag.map(str::parse).transpose()?,
            digest: digest.map(str::parse).transpose()?,
        })
    }
}

impl Repository {
    /// Parses a repository whose default registry is Docker Hub.
    fn parse_with_default(text: &str) -> Result<Self, Invalid> {
        let (registry, name) = match text.split_once('/') {
            Some((first, name)) if is_like_host(first) => (RegistryHost::parse(first)?, name),
            _ => (DOCKER_HUB.parse()?, text),
        };
        let name = match name {
            name if registry.is_docker_hub() && !name.contains('/') => format!("library/{name}").parse(),
            name => name.parse(),
        };
        Ok(Self { registry, name: name.map_err(|_| Invalid::new(text, RepositoryName::EXPECTED))? })
    }
}

/// Types that are serialised as their text, and parsed when they are deserialised.
macro_rules! text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

text!(Digest, Repository, ImageReference);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tag_has_the_grammar_of_the_specification() {
        let longest = "a".repeat(128);
        for tag in ["latest", "1.27.3-alpine", "_x", "V1", &longest] {
            assert_eq!(tag.parse::<Tag>().expect(tag).as_str(), tag);
        }
        let too_long = "a".repeat(129);
        for text in ["", "-x", ".x", "a b", "a\n", "a\0", "ä", "a:b", "a@b", "$(id)", "a/b", &too_long] {
            assert!(text.parse::<Tag>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_repository_name_has_the_grammar_of_the_specification() {
        for name in ["nginx", "library/nginx", "a__b/c---d/e.f_g", "0/1"] {
            assert_eq!(name.parse::<RepositoryName>().expect(name).as_str(), name);
        }
        let too_long = "a".repeat(256);
        for text in ["", "/a", "a/", "a//b", "A", "a_", ".a", "a..b", "a___b", "a.-b", "a b", "a\n", "..", &too_long] {
            assert!(text.parse::<RepositoryName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_host_is_in_lowercase_and_docker_hub_has_one_host() {
        for (text, host) in [
            ("quay.io", "quay.io"),
            ("Harbor.Example.com:5000", "harbor.example.com:5000"),
            ("index.docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("localhost", "localhost"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
        ] {
            assert_eq!(RegistryHost::parse(text).expect(text).as_str(), host);
        }
        for text in
            ["", "quay", "a..b", "-a.b", "a.b-", "a.b:", "a.b:0", "a.b:+1", "a.b:65536", "a_b.c", "a.b/c", "a.b\n"]
        {
            assert!(RegistryHost::parse(text).is_err(), "{text:?}");
        }
        assert!("index.docker.io".parse::<RegistryHost>().is_err(), "a plan has docker.io");
    }

    #[test]
    fn a_digest_is_sha256_in_lowercase() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<Digest>().expect("it is valid").to_string(), text);
        assert_eq!(
            Digest::of(b"{}").to_string(),
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
        let (upper, long) = (text.to_uppercase(), format!("{text}0"));
        let (sha512, line) = (format!("sha512:{}", "0".repeat(128)), format!("{text}\n"));
        for text in ["", "sha256:", "sha256:0a", &text[7..], &upper, &long, &sha512, &line] {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn spellings_of_one_image_are_one_image() {
        let digest = Digest::of(b"");
        for (text, expected) in [
            ("nginx".to_owned(), "docker.io/library/nginx".to_owned()),
            ("docker.io/nginx:1".to_owned(), "docker.io/library/nginx:1".to_owned()),
            ("index.docker.io/library/nginx:1".to_owned(), "docker.io/library/nginx:1".to_owned()),
            ("bitnami/redis".to_owned(), "docker.io/bitnami/redis".to_owned()),
            ("host.example:5000/foo:1.2".to_owned(), "host.example:5000/foo:1.2".to_owned()),
            ("localhost/x".to_owned(), "localhost/x".to_owned()),
            (format!("u:1@{digest}"), format!("docker.io/library/u:1@{digest}")),
        ] {
            assert_eq!(text.parse::<ImageReference>().expect(&text).to_string(), expected);
        }
        for text in ["", ":1", "a:", "a@", "a@sha256:0", "UPPER", "a b", "quay.io/", "quay.io", "a:1:2", "a.b:x/c"] {
            assert!(text == "quay.io" || text.parse::<ImageReference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn deserialising_checks_the_grammar() {
        assert!(serde_json::from_str::<Tag>(r#""1.0""#).is_ok());
        for json in [r#""a b""#, r#""""#, "1", r#""a\n> evil.example/x y""#] {
            assert!(serde_json::from_str::<Tag>(json).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<Repository>(r#""quay.io/a/b""#).is_ok());
        for json in [r#""a/b""#, r#""quay.io""#, r#""QUAY.io/a""#, r#""quay.io/a b""#] {
            assert!(serde_json::from_str::<Repository>(json).is_err(), "{json}");
        }
        let error = serde_json::from_str::<Tag>(r#""\u001b[31m""#).expect_err("it is not a tag").to_string();
        assert!(error.contains(r"\u{1b}") && !error.contains('\u{1b}'), "{error:?}");
    }

    proptest! {
        /// A parsed name is displayed as it was written, and has no character with a meaning for shells and terminals.
        #[test]
        fn a_parsed_name_is_harmless_and_is_displayed_as_written(text in prop_oneof![".{0,40}", "[ -~\\n\\t]{0,40}", "[a-zA-Z0-9:/._@-]{0,40}"]) {
            let is_harmless = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte));
            if let Ok(tag) = text.parse::<Tag>() {
                prop_assert!(tag.as_str() == text && is_harmless(&text));
            }
            if let Ok(name) = text.parse::<RepositoryName>() {
                prop_assert!(name.as_str() == text && is_harmless(&text));
            }
            if let Ok(host) = RegistryHost::parse(&text) {
                prop_assert!(is_harmless(host.as_str()));
                prop_assert_eq!(RegistryHost::parse(host.as_str()), Ok(host));
            }
            if let Ok(image) = text.parse::<ImageReference>() {
                let printed = image.to_string();
                prop_assert!(is_harmless(&printed));
                prop_assert_eq!(printed.parse::<ImageReference>(), Ok(image));
            }
        }
    }

    #[test]
    fn what_is_not_a_tag_says_what_it_was() {
        assert_eq!("a b".parse::<Tag>().expect_err("it has a blank").text().as_str(), "a b");
    }
}
