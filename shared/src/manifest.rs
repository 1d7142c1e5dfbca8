//! Manifests: the images of an index, and the layers of an image.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::reference::Digest;

/// The most images of an index. Real ones have a few dozen.
const CHILDREN: usize = 500;

/// The most layers of an image, as
/// [in ECR](https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html). Real images have a few dozen.
const LAYERS: usize = 4_200;

/// The most bytes that an image counts as, so that a manifest with false sizes cannot overflow sums.
const BYTES: u64 = 1 << 46;

/// An image manifest or an index, in OCI's or Docker's format.
///
/// See the [image specification](https://github.com/opencontainers/image-spec/blob/main/manifest.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// The images of an index; empty for an image.
    #[serde(default, deserialize_with = "at_most::<_, _, CHILDREN>")]
    pub manifests: Vec<Descriptor>,
    /// The image that this one refers to, for example as its signature.
    pub subject: Option<Descriptor>,
    config: Option<Blob>,
    #[serde(default, deserialize_with = "at_most::<_, _, LAYERS>")]
    layers: Vec<Blob>,
}

/// An entry of an index, or a subject.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// The digest of the manifest.
    pub digest: Digest,
    /// The bytes of the manifest.
    #[serde(default)]
    pub size: u64,
    /// The platform of an image in an index.
    pub platform: Option<Platform>,
}

/// A configuration or a layer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Blob {
    digest: Digest,
    #[serde(default)]
    size: u64,
}

/// `linux/arm64` or `linux/arm/v7`, for example.
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
            _ => Err("expected a platform such as linux/arm64 or linux/arm/v7"),
        }
    }
}

impl Platform {
    /// Whether an image for `other` is an image for this platform. A platform without a variant accepts all variants.
    pub fn accepts(&self, other: &Self) -> bool {
        (&self.os, &self.architecture) == (&other.os, &other.architecture)
            && (self.variant.is_none() || self.variant == other.variant)
    }
}

impl Manifest {
    /// Parses a manifest. JSON of another kind is an empty manifest.
    ///
    /// # Errors
    /// If it is not JSON, has an invalid digest, or exceeds a limit.
    pub fn parse(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }
}

/// Configurations and layers of images. A blob of several images counts once, as it is stored and transferred once.
#[derive(Debug, Default)]
pub struct Blobs(HashMap<Digest, u64>);

impl Blobs {
    /// Adds the blobs of an image.
    pub fn add(&mut self, image: &Manifest) {
        self.0.extend(image.config.iter().chain(&image.layers).map(|blob| (blob.digest, blob.size)));
    }

    /// The number of blobs.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The bytes of all blobs.
    pub fn bytes(&self) -> u64 {
        self.0.values().copied().fold(0, u64::saturating_add).min(BYTES)
    }
}

/// Deserialises a list of at most `LIMIT` items, for `deserialize_with`. It stops at the first item beyond the limit.
///
/// # Errors
/// If the list exceeds the limit, or an item is not a `T`.
pub fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const LIMIT: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Items<T, const LIMIT: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const LIMIT: usize> Visitor<'de> for Items<T, LIMIT> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "a list of at most {LIMIT} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut read = Vec::new();
            while let Some(item) = items.next_element()? {
                if read.len() == LIMIT {
                    return Err(A::Error::custom(format_args!("a list exceeds the limit of {LIMIT} items")));
                }
                read.push(item);
            }
            Ok(read)
        }

        // Some registries return null for an empty list.
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }
    }
    deserializer.deserialize_any(Items::<T, LIMIT>(PhantomData))
}

/// Whether a media type is that of an index, which Docker calls a manifest list.
pub fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(content: &str) -> Digest {
        Digest::of(content.as_bytes())
    }

    fn image(config: &str, layers: &[(&str, u64)]) -> Manifest {
        let layer = |(content, size): &(&str, u64)| json!({ "digest": digest(content), "size": size });
        let layers: Vec<_> = layers.iter().map(layer).collect();
        parse(&json!({ "config": { "digest": digest(config), "size": 1 }, "layers": layers }))
            .expect("it is a manifest")
    }

    fn parse(manifest: &Value) -> serde_json::Result<Manifest> {
        Manifest::parse(manifest.to_string().as_bytes())
    }

    #[test]
    fn a_blob_that_two_platforms_share_counts_once_and_no_sum_overflows() {
        let bytes = |images: &[Manifest]| {
            let mut blobs = Blobs::default();
            images.iter().for_each(|image| blobs.add(image));
            blobs.bytes()
        };
        assert_eq!(bytes(&[image("arm", &[("base", 100)]), image("amd", &[("base", 100)])]), 102);
        assert_eq!(bytes(&[image("huge", &[("a", u64::MAX), ("b", u64::MAX)])]), BYTES);
    }

    #[test]
    fn a_platform_prints_as_it_is_written_and_accepts_its_variants() {
        for text in ["linux/arm64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), text);
        }
        for text in ["", "arm64", "linux/", "linux/arm/v7/x", "Linux/arm64", "linux/arm64,linux/amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        let platform = |text: &str| text.parse::<Platform>().expect("it is valid");
        assert!(platform("linux/arm64").accepts(&platform("linux/arm64/v8")));
        assert!(!platform("linux/arm/v6").accepts(&platform("linux/arm/v7")));
        assert!(!platform("linux/arm64").accepts(&platform("windows/arm64")));
    }

    #[test]
    fn an_index_lists_its_images() {
        let index =
            json!({ "manifests": [{ "digest": digest("a"), "size": 5 }, { "digest": digest("b"), "size": 6 }] });
        let digests: Vec<_> =
            parse(&index).expect("it is an index").manifests.iter().map(|image| image.digest).collect();
        assert_eq!(digests, [digest("a"), digest("b")]);
        assert_eq!(parse(&json!({ "manifests": null })).expect("it is empty"), Manifest::default());
    }

    #[test]
    fn a_manifest_that_is_invalid_or_exceeds_a_limit_is_an_error() {
        let many = |count| vec![json!({ "digest": digest("a") }); count];
        assert!(parse(&json!({ "manifests": many(CHILDREN) })).is_ok());
        for wrong in [
            json!({ "manifests": many(CHILDREN + 1) }),
            json!({ "layers": many(LAYERS + 1) }),
            json!({ "manifests": [{ "digest": "sha256:$(id)" }] }),
            json!({ "manifests": "none" }),
            json!({ "layers": [{ "digest": digest("a"), "size": -1 }] }),
            json!("{}"),
        ] {
            assert!(parse(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn blobs_are_counted_once() {
        let mut blobs = Blobs::default();
        assert_eq!((blobs.count(), blobs.bytes()), (0, 0));
        blobs.add(&image("arm", &[("base", 100), ("app", 10)]));
        blobs.add(&image("amd", &[("base", 100)]));
        assert_eq!((blobs.count(), blobs.bytes()), (4, 112));
    }

    #[test]
    fn an_index_is_told_from_an_image_by_its_media_type() {
        for index in
            ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"]
        {
            assert!(is_index(index), "{index}");
        }
        for image in
            ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"]
        {
            assert!(!is_index(image), "{image}");
        }
    }
}
