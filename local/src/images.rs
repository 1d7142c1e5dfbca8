//! Container images, made here: real layers, real manifests, and the same digests on every machine.
//!
//! A layer is a gzip'd tar of files whose content follows from the layer's name alone. So two images that name the same
//! layer share it, as images share their bases, and any change to what this module makes shows as a changed digest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::Write as _,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, GzBuilder};
use hudsucker::rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// The media types that an image is written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// As buildah, buildx and most newer tools push.
    Oci,
    /// As the Docker daemon pushes.
    Docker,
}

impl Format {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// A layer by its name and the size of its content, in bytes.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LayerSpec {
    /// What its content follows from.
    pub name: String,
    /// How much content it has before compression.
    pub size: usize,
}

/// An image, as it is asked for.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// Its media types.
    pub format: Format,
    /// Its architectures. With one it is a plain manifest, with several an index of them.
    pub architectures: Vec<&'static str>,
    /// Its layers, from the base up; each is made anew for each architecture.
    pub layers: Vec<LayerSpec>,
}

impl ImageSpec {
    /// The layers of its image for one of them.
    pub(crate) fn layers_for(&self, architecture: &str) -> impl Iterator<Item = LayerSpec> {
        self.layers
            .iter()
            .map(move |layer| LayerSpec { name: format!("{}/{architecture}", layer.name), size: layer.size })
    }
}

/// Bytes with their digest: a layer or a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Blob {
    /// `sha256:…`
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), bytes }
    }
}

/// A manifest or an index, exactly as it is pushed.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// `sha256:…`
    pub digest: String,
    /// Its media type.
    pub media_type: &'static str,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Manifest {
    fn new(media_type: &'static str, content: &Value) -> Self {
        let bytes = content.to_string().into_bytes();
        Self { digest: digest(&bytes), media_type, bytes }
    }
}

/// An image with everything that belongs to it.
#[derive(Clone, Debug)]
pub struct Image {
    /// What its tag names: an index, or the manifest of the only platform.
    pub manifest: Manifest,
    /// The manifests that the index lists.
    pub platforms: Vec<Manifest>,
    /// Layers and configurations of all platforms, each once.
    pub blobs: Vec<Arc<Blob>>,
}

/// An index of no images.
#[must_use]
pub fn empty_index() -> Manifest {
    let media_type = Format::Oci.index();
    Manifest::new(media_type, &json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [] }))
}

/// An artifact of one layer, such as a signature or an SBOM, which may refer to the image of digest `subject`.
#[must_use]
pub fn artifact(media_type: &str, content: &str, subject: Option<&str>) -> Image {
    artifact_with(media_type, content, subject, &json!({}))
}

/// The same, with annotations of its layer.
fn artifact_with(media_type: &str, content: &str, subject: Option<&str>, annotations: &Value) -> Image {
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    let (config, layer) = (Blob::new(b"{}".to_vec()), Blob::new(content.as_bytes().to_vec()));
    let descriptor = |media_type: &str, blob: &Blob| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len() });
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": Format::Oci.manifest(),
        "artifactType": media_type,
        "config": descriptor(EMPTY, &config),
        "layers": [descriptor(media_type, &layer)],
    });
    if annotations.as_object().is_some_and(|annotations| !annotations.is_empty()) {
        manifest["layers"][0]["annotations"] = annotations.clone();
    }
    if let Some(subject) = subject {
        manifest["subject"] = json!({ "mediaType": Format::Oci.manifest(), "digest": subject, "size": 1_000 });
    }
    let manifest = Manifest::new(Format::Oci.manifest(), &manifest);
    Image { manifest, platforms: Vec::new(), blobs: vec![Arc::new(config), Arc::new(layer)] }
}

/// A key that images are signed with, as cosign does.
pub struct SigningKey(KeyPair);

impl SigningKey {
    /// A new one.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn generate() -> Result<Self> {
        KeyPair::generate().map(Self).map_err(|error| Error::Unexpected(error.to_string()))
    }

    /// The public key, as a signature policy holds it: base64 of PEM.
    #[must_use]
    pub fn key_data(&self) -> String {
        STANDARD.encode(self.0.public_key_pem())
    }

    /// The signature of the image of this digest in a repository, and the tag that it goes by; see cosign's
    /// [specification](https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md).
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn sign(&self, repository: &str, digest: &str) -> Result<(Image, String)> {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": repository },
                "image": { "docker-manifest-digest": digest },
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string();
        let signature = self.0.sign(payload.as_bytes()).map_err(|error| Error::Unexpected(error.to_string()))?;
        let annotations = json!({ "dev.cosignproject.cosign/signature": STANDARD.encode(signature) });
        let image = artifact_with("application/vnd.dev.cosign.simplesigning.v1+json", &payload, None, &annotations);
        Ok((image, format!("{}.sig", digest.replace(':', "-"))))
    }
}

/// Makes images, and each layer once.
///
/// # Errors
/// If a layer cannot be written.
pub fn make(specs: &[ImageSpec]) -> Result<Vec<Image>> {
    let wanted: BTreeSet<LayerSpec> = specs
        .iter()
        .flat_map(|spec| spec.architectures.iter().flat_map(|architecture| spec.layers_for(architecture)))
        .collect();
    let layers = make_layers(&wanted.into_iter().collect::<Vec<_>>())?;
    Ok(specs.iter().map(|spec| assemble(spec, &layers)).collect())
}

/// A layer, and the digest that its content has before compression.
struct Layer {
    blob: Arc<Blob>,
    diff_id: String,
}

fn make_layers(specs: &[LayerSpec]) -> Result<BTreeMap<LayerSpec, Layer>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = specs.len().div_ceil(threads).max(1);
    let layers: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = specs
            .chunks(share)
            .map(|specs| scope.spawn(|| specs.iter().map(|spec| Ok((spec.clone(), make_layer(spec)?))).collect()))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    layers.into_iter().collect::<Result<Vec<_>>>().map(|layers| layers.into_iter().flatten().collect())
}

fn make_layer(spec: &LayerSpec) -> Result<Layer> {
    let unwritable = Error::file(format!("layer {}", spec.name));
    let tar = tar_of(spec).map_err(unwritable)?;
    let unwritable = Error::file(format!("layer {}", spec.name));
    let compress = || {
        // No time and no name in the header: they would change the digest.
        let mut gzip = GzBuilder::new().write(Vec::with_capacity(tar.len()), Compression::fast());
        gzip.write_all(&tar)?;
        gzip.finish()
    };
    let bytes = compress().map_err(unwritable)?;
    Ok(Layer { blob: Arc::new(Blob::new(bytes)), diff_id: digest(&tar) })
}

/// A few files, whose bytes are as incompressible as most of what images hold.
fn tar_of(spec: &LayerSpec) -> std::io::Result<Vec<u8>> {
    const FILES: usize = 4;
    let mut archive = tar::Builder::new(Vec::with_capacity(spec.size + 8_192));
    let mut noise = Noise::new(&spec.name);
    for file in 0..FILES {
        let content = noise.bytes(spec.size / FILES);
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, format!("opt/{}/{file}", spec.name), content.as_slice())?;
    }
    archive.into_inner()
}

/// `SplitMix64`, seeded with a name. Written out, because a crate may change its numbers with its version.
struct Noise(u64);

impl Noise {
    fn new(name: &str) -> Self {
        // FNV-1a
        Self(
            name.bytes()
                .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)),
        )
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

fn assemble(spec: &ImageSpec, layers: &BTreeMap<LayerSpec, Layer>) -> Image {
    let mut blobs = BTreeMap::new();
    let mut platforms: Vec<(Manifest, &str)> = Vec::new();
    for &architecture in &spec.architectures {
        let layers: Vec<&Layer> = spec.layers_for(architecture).filter_map(|layer| layers.get(&layer)).collect();
        let config = Arc::new(Blob::new(config_of(spec, architecture, &layers).to_string().into_bytes()));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": spec.format.manifest(),
            "config": descriptor(spec.format.config(), &config.digest, config.bytes.len()),
            "layers": layers.iter()
                .map(|layer| descriptor(spec.format.layer(), &layer.blob.digest, layer.blob.bytes.len()))
                .collect::<Vec<_>>(),
        });
        platforms.push((Manifest::new(spec.format.manifest(), &manifest), architecture));
        for blob in layers.iter().map(|layer| &layer.blob).chain([&config]) {
            blobs.insert(blob.digest.clone(), Arc::clone(blob));
        }
    }
    let blobs = blobs.into_values().collect();

    if let [(manifest, _)] = platforms.as_slice() {
        return Image { manifest: manifest.clone(), platforms: Vec::new(), blobs };
    }
    let entries = platforms.iter().map(|(manifest, architecture)| {
        let mut entry = descriptor(manifest.media_type, &manifest.digest, manifest.bytes.len());
        entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
        entry
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": spec.format.index(),
        "manifests": entries.collect::<Vec<_>>(),
    });
    let manifest = Manifest::new(spec.format.index(), &index);
    Image { manifest, platforms: platforms.into_iter().map(|(manifest, _)| manifest).collect(), blobs }
}

fn config_of(spec: &ImageSpec, architecture: &str, layers: &[&Layer]) -> Value {
    const CREATED: &str = "2024-06-01T00:00:00Z";
    json!({
        "architecture": architecture,
        "os": "linux",
        "created": CREATED,
        "config": { "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>() },
        "history": spec.layers.iter()
            .map(|layer| json!({ "created": CREATED, "created_by": format!("ADD {} /", layer.name) }))
            .collect::<Vec<_>>(),
    })
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// The SHA-256 digest, as registries write it.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn spec(format: Format, architectures: &[&'static str]) -> ImageSpec {
        let layer = |name: &str, size| LayerSpec { name: name.into(), size };
        ImageSpec {
            format,
            architectures: architectures.to_vec(),
            layers: vec![layer("base", 9_000), layer("top", 500)],
        }
    }

    #[test]
    fn the_same_image_is_made_every_time() {
        let specs = [spec(Format::Oci, &["amd64", "arm64"])];
        let (first, second) = (make(&specs).unwrap(), make(&specs).unwrap());
        assert_eq!(first[0].manifest, second[0].manifest);
    }

    #[test]
    fn images_share_the_layers_that_they_name_alike() {
        let mut other = spec(Format::Docker, &["amd64"]);
        other.layers[1].name = "another top".into();
        let images = make(&[spec(Format::Docker, &["amd64"]), other]).unwrap();
        let digests = |image: &Image| image.blobs.iter().map(|blob| blob.digest.clone()).collect::<BTreeSet<_>>();
        assert_eq!(digests(&images[0]).intersection(&digests(&images[1])).count(), 1);
    }

    #[test]
    fn an_index_lists_a_manifest_for_each_platform_and_they_list_what_there_is() {
        let image = make(&[spec(Format::Oci, &["amd64", "arm64"])]).unwrap().remove(0);
        let index: Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
        assert_eq!(index["manifests"][1]["platform"]["architecture"], "arm64");
        assert_eq!(index["manifests"][1]["digest"], image.platforms[1].digest.as_str());

        let blob = |digest: &Value| image.blobs.iter().find(|blob| *digest == blob.digest.as_str()).unwrap();
        let manifest: Value = serde_json::from_slice(&image.platforms[0].bytes).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"]["digest"]).bytes).unwrap();
        let mut tar = Vec::new();
        let layer = blob(&manifest["layers"][0]["digest"]);
        flate2::read::GzDecoder::new(layer.bytes.as_slice()).read_to_end(&mut tar).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&tar).as_str());
        assert_eq!(manifest["layers"][0]["size"], layer.bytes.len());
    }

    #[test]
    fn an_image_for_one_platform_is_no_index() {
        let image = make(&[spec(Format::Docker, &["amd64"])]).unwrap().remove(0);
        assert_eq!(image.manifest.media_type, "application/vnd.docker.distribution.manifest.v2+json");
        assert!(image.platforms.is_empty());
    }
}
