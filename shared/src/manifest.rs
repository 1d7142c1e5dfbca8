//! What a manifest refers to: the images of an index, and the blobs of an image.

use std::collections::HashMap;

use serde::Deserialize;

/// The parts of an image manifest or an index that matter here; OCI's and Docker's formats share them.
///
/// See the [image specification](https://github.com/opencontainers/image-spec/blob/main/manifest.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// The images of an index; empty for an image.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
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
    fn an_index_lists_its_images() {
        let index =
            Manifest::parse(r#"{"manifests": [{"digest": "sha256:a", "size": 5}, {"digest": "sha256:b", "size": 6}]}"#);
        let digests: Vec<_> = index.manifests.iter().map(|image| image.digest.as_str()).collect();
        assert_eq!(digests, ["sha256:a", "sha256:b"]);
    }
}
