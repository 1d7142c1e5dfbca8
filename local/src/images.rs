//! Makes container images: real layers, real manifests, and the same digests on every machine.
//!
//! A layer is a gzip'd tar of files whose content depends on the layer's name and size only. So two images that name the same
//! layer share it, as images share their bases.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::sync::Arc;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compression, GzBuilder};
use hudsucker::rcgen::{KeyPair, SigningKey as _};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The media types of an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Pushed by buildah, buildx and most newer tools.
    Oci,
    /// Pushed by the Docker daemon.
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

/// A layer, before it is made.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LayerSpec {
    /// Its content depends on the name.
    pub name: String,
    /// The size of its content before compression, in bytes.
    pub size: usize,
}

/// An image, before it is made.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    pub format: Format,
    /// With one architecture the image is a plain manifest, with several an index.
    pub architectures: Vec<&'static str>,
    /// From the base up; each architecture has its own layers.
    pub layers: Vec<LayerSpec>,
}

impl ImageSpec {
    /// The layers of one architecture.
    pub(crate) fn layers_for(&self, architecture: &str) -> impl Iterator<Item = LayerSpec> {
        let layer = move |it: &LayerSpec| LayerSpec { name: format!("{}/{architecture}", it.name), size: it.size };
        self.layers.iter().map(layer)
    }

    /// The layers of all architectures.
    pub(crate) fn all_layers(&self) -> impl Iterator<Item = LayerSpec> {
        self.architectures.iter().flat_map(|architecture| self.layers_for(architecture))
    }
}

/// Bytes with their digest: a layer or a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Blob {
    /// `sha256:…`
    pub digest: String,
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), bytes }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        descriptor(media_type, &self.digest, self.bytes.len())
    }
}

/// A manifest or an index, exactly as it is pushed.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// `sha256:…`
    pub digest: String,
    pub media_type: &'static str,
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
    /// An index, or the manifest of the only platform.
    pub manifest: Manifest,
    /// The manifests that the index lists.
    pub platforms: Vec<Manifest>,
    /// Layers and configurations of all platforms.
    pub blobs: Vec<Arc<Blob>>,
}

/// An index of no images.
pub fn empty_index() -> Manifest {
    index_of(Format::Oci, &[])
}

fn index_of(format: Format, manifests: &[Value]) -> Manifest {
    let media_type = format.index();
    Manifest::new(media_type, &json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests }))
}

/// An artifact of one layer, such as a signature or an SBOM, which may refer to the image of digest `subject`.
pub fn artifact(media_type: &str, content: &str, subject: Option<&str>) -> Image {
    let layer = Blob::new(content.as_bytes().to_vec());
    let described = layer.descriptor(media_type);
    artifact_of(media_type, layer, &described, subject)
}

fn artifact_of(media_type: &str, layer: Blob, described: &Value, subject: Option<&str>) -> Image {
    let config = Blob::new(b"{}".to_vec());
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": Format::Oci.manifest(),
        "artifactType": media_type,
        "config": config.descriptor("application/vnd.oci.empty.v1+json"),
        "layers": [described],
    });
    if let Some(subject) = subject {
        manifest["subject"] = descriptor(Format::Oci.manifest(), subject, 1_000);
    }
    let manifest = Manifest::new(Format::Oci.manifest(), &manifest);
    Image { manifest, platforms: Vec::new(), blobs: vec![Arc::new(config), Arc::new(layer)] }
}

/// A key that images are signed with, as cosign does.
pub struct SigningKey(KeyPair);

impl SigningKey {
    pub fn generate() -> Result<Self> {
        Ok(Self(KeyPair::generate()?))
    }

    /// The public key, as a signature policy holds it: base64 of PEM.
    pub fn key_data(&self) -> String {
        STANDARD.encode(self.0.public_key_pem())
    }

    /// The signature of the image of this digest in a repository, and the tag that it goes by; see cosign's
    /// [specification](https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md).
    pub fn sign(&self, repository: &str, digest: &str) -> Result<(Image, String)> {
        const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": repository },
                "image": { "docker-manifest-digest": digest },
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string();
        let signature = STANDARD.encode(self.0.sign(payload.as_bytes())?);
        let layer = Blob::new(payload.into_bytes());
        let mut described = layer.descriptor(MEDIA_TYPE);
        described["annotations"] = json!({ "dev.cosignproject.cosign/signature": signature });
        let image = artifact_of(MEDIA_TYPE, layer, &described, None);
        Ok((image, format!("{}.sig", digest.replace(':', "-"))))
    }
}

/// Makes images. Each layer is made once.
pub fn make(specs: &[ImageSpec]) -> Result<Vec<Image>> {
    let wanted: BTreeSet<LayerSpec> = specs.iter().flat_map(ImageSpec::all_layers).collect();
    let wanted: Vec<LayerSpec> = wanted.into_iter().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = wanted.len().div_ceil(threads).max(1);
    let layers = std::thread::scope(|scope| {
        let shares = wanted.chunks(share);
        let workers = shares.map(|specs| scope.spawn(|| specs.iter().map(make_layer).collect::<Vec<_>>()));
        let workers: Vec<_> = workers.collect();
        let made = workers.into_iter().map(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        made.flatten().collect::<Result<BTreeMap<_, _>>>()
    })?;
    Ok(specs.iter().map(|spec| assemble(spec, &layers)).collect())
}

/// A layer, and the digest that its content has before compression.
struct Layer {
    blob: Arc<Blob>,
    diff_id: String,
}

/// Makes a layer of a few files, whose bytes compress as little as most content of images.
fn make_layer(spec: &LayerSpec) -> Result<(LayerSpec, Layer)> {
    const FILES: usize = 4;
    let mut archive = tar::Builder::new(Vec::with_capacity(spec.size + 8_192));
    let mut seed = DefaultHasher::new();
    spec.name.hash(&mut seed);
    let mut random = fastrand::Rng::with_seed(seed.finish());
    let mut content = vec![0; spec.size / FILES];
    for file in 0..FILES {
        random.fill(&mut content);
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, format!("opt/{}/{file}", spec.name), content.as_slice())?;
    }
    let tar = archive.into_inner()?;
    // Without a time and a name in the header, which would change the digest.
    let mut gzip = GzBuilder::new().write(Vec::with_capacity(tar.len()), Compression::fast());
    gzip.write_all(&tar)?;
    Ok((spec.clone(), Layer { blob: Arc::new(Blob::new(gzip.finish()?)), diff_id: digest(&tar) }))
}

fn assemble(spec: &ImageSpec, layers: &BTreeMap<LayerSpec, Layer>) -> Image {
    let (mut platforms, mut entries, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
    for &architecture in &spec.architectures {
        let layers: Vec<&Layer> = spec.layers_for(architecture).filter_map(|layer| layers.get(&layer)).collect();
        let config = Blob::new(config_of(spec, architecture, &layers).to_string().into_bytes());
        let described = layers.iter().map(|layer| layer.blob.descriptor(spec.format.layer()));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": spec.format.manifest(),
            "config": config.descriptor(spec.format.config()),
            "layers": described.collect::<Vec<_>>(),
        });
        let manifest = Manifest::new(spec.format.manifest(), &manifest);
        let mut entry = descriptor(manifest.media_type, &manifest.digest, manifest.bytes.len());
        entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
        entries.push(entry);
        platforms.push(manifest);
        blobs.extend(layers.iter().map(|layer| Arc::clone(&layer.blob)).chain([Arc::new(config)]));
    }
    let manifest = if platforms.len() == 1 { platforms.remove(0) } else { index_of(spec.format, &entries) };
    Image { manifest, platforms, blobs }
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

pub(crate) fn descriptor(media_type: &str, digest: impl Serialize, size: impl Serialize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// The SHA-256 digest, as registries write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
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
