//! What a manifest refers to: the images of an index, and the blobs of an image.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// The parts of an image manifest or an index that matter here; OCI's and Docker's formats share them.
///
/// See the [image specification](https://github.com/opencontainers/image-spec/blob/main/manifest.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// The images of an index; empty for an image.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// What it refers to: the image that it is a signature of, say.
    pub subject: Option<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Content, named by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// `sha256:…`
    pub digest: String,
    /// In bytes.
    #[serde(default)]
    pub size: u64,
    /// What an image of an index runs on.
    pub platform: Option<Platform>,
}

/// What an image runs on, in the words of Go: `linux/arm64`, or `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `arm64`
    pub architecture: String,
    /// `v7`
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(formatter, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.split('/').collect();
        let is_word =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        match parts[..] {
            [os, architecture, ref variant @ ..] if variant.len() < 2 && parts.iter().all(is_word) => Ok(Self {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.first().map(|&variant| variant.to_owned()),
            }),
            _ => Err("expected os/architecture or os/architecture/variant, such as linux/arm64"),
        }
    }
}

impl Platform {
    /// Whether an image for `other` is one for this platform, which may leave the variant open.
    #[must_use]
    pub fn accepts(&self, other: &Self) -> bool {
        (&self.os, &self.architecture) == (&other.os, &other.architecture)
            && (self.variant.is_none() || self.variant == other.variant)
    }
}

impl Manifest {
    /// Reads a manifest; one of an unknown kind refers to nothing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The bytes of config and layers of all `manifests`, each blob counted once, as it is stored and transferred.
    #[must_use]
    pub fn blob_bytes<'a>(manifests: impl IntoIterator<Item = &'a Self>) -> u64 {
        let blobs: HashMap<&str, u64> = manifests
            .into_iter()
            .flat_map(|manifest| manifest.config.iter().chain(&manifest.layers))
            .map(|blob| (blob.digest.as_str(), blob.size))
            .collect();
        blobs.values().sum()
    }
}

/// Whether a media type is that of an index (Docker: manifest list) and not that of a single image.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_two_platforms_share_counts_once() {
        let arm =
            r#"{"config": {"digest": "sha256:c1", "size": 1}, "layers": [{"digest": "sha256:base", "size": 100}]}"#;
        let amd =
            r#"{"config": {"digest": "sha256:c2", "size": 2}, "layers": [{"digest": "sha256:base", "size": 100}]}"#;
        assert_eq!(Manifest::blob_bytes(&[Manifest::parse(arm), Manifest::parse(amd)]), 103);
    }

    #[test]
    fn a_platform_prints_as_it_is_written_and_accepts_its_variants() {
        for text in ["linux/arm64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), text);
        }
        for text in ["", "arm64", "linux/", "linux/arm/v7/x", "Linux/arm64", "linux/arm64,linux/amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        let platform = |text: &str| text.parse::<Platform>().expect("it is one");
        assert!(platform("linux/arm64").accepts(&platform("linux/arm64/v8")));
        assert!(!platform("linux/arm/v6").accepts(&platform("linux/arm/v7")));
        assert!(!platform("linux/arm64").accepts(&platform("windows/arm64")));
    }

    #[test]
    fn an_index_lists_its_images() {
        let index =
            Manifest::parse(r#"{"manifests": [{"digest": "sha256:a", "size": 5}, {"digest": "sha256:b", "size": 6}]}"#);
        let digests: Vec<_> = index.manifests.iter().map(|image| image.digest.as_str()).collect();
        assert_eq!(digests, ["sha256:a", "sha256:b"]);
    }
}
