//! An image with just a binary of this command: an OCI index with an image for each processor.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use elf::ElfBytes;
use elf::abi::{EM_AARCH64, EM_X86_64, PT_INTERP};
use elf::endian::AnyEndian;
use flate2::Compression;
use flate2::write::GzEncoder;
use pem::{EncodeConfig, LineEnding, Pem};
use serde_json::{Value, json};
use shared::reference::Digest;
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use super::NAME;

/// The media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of an image's manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Where the TLS stack looks for root certificates.
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";

/// Content of a registry, known by its digest.
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// The image of one processor.
pub struct Image {
    /// As in a platform: `amd64` or `arm64`.
    pub architecture: &'static str,
    /// The layer and the configuration.
    pub blobs: [Blob; 2],
    /// The manifest.
    pub manifest: Blob,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self { digest: Digest::of(&content), content }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest.to_string(), "size": self.content.len() })
    }
}

impl Image {
    /// The image of a binary. The same binary gives the same image.
    ///
    /// # Errors
    /// If it is not a static binary for Linux on one of ECS's and EKS's processors.
    pub fn new(binary: &[u8]) -> Result<Self> {
        let architecture = architecture(binary)?;
        let tar = tar(binary)?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(&tar)?;
        let layer = Blob::new(gzip.finish()?);
        let config = Blob::json(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "User": "65532:65532", "Entrypoint": ["/ecr-transfer", "mirror", "webhook", "serve"] },
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar).to_string()] },
        }));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
        }));
        Ok(Self { architecture, blobs: [layer, config], manifest })
    }
}

/// The index of images, in the order of their processors.
///
/// # Errors
/// If two are for the same processor.
pub fn index(images: &mut [Image]) -> Result<Blob> {
    images.sort_by_key(|image| image.architecture);
    if let Some([image, _]) = images.array_windows().find(|[a, b]| a.architecture == b.architecture) {
        bail!("Two binaries are for {}.", image.architecture);
    }
    let manifests = images.iter().map(|image| {
        let mut descriptor = image.manifest.descriptor(MANIFEST);
        descriptor["platform"] = json!({ "os": "linux", "architecture": image.architecture });
        descriptor
    });
    let annotations = json!({ "org.opencontainers.image.title": NAME, "org.opencontainers.image.version": env!("CARGO_PKG_VERSION") });
    Ok(Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": manifests.collect::<Vec<_>>(),
        "annotations": annotations,
    })))
}

/// The processor of a binary.
fn architecture(binary: &[u8]) -> Result<&'static str> {
    let elf = ElfBytes::<AnyEndian>::minimal_parse(binary).context("It is not a program for Linux")?;
    let segments = elf.segments().context("It is not a program")?;
    ensure!(
        !segments.iter().any(|segment| segment.p_type == PT_INTERP),
        "It needs shared libraries, which the image does not have. Use the binaries of a release"
    );
    match elf.ehdr.e_machine {
        EM_X86_64 => Ok("amd64"),
        EM_AARCH64 => Ok("arm64"),
        other => bail!("Its processor is neither x86_64 nor arm64 (ELF machine {other})"),
    }
}

fn tar(binary: &[u8]) -> Result<Vec<u8>> {
    let roots: Vec<_> = TLS_SERVER_ROOT_CERTS.iter().map(|root| Pem::new("CERTIFICATE", root.as_ref())).collect();
    let roots = pem::encode_many_config(&roots, EncodeConfig::new().set_line_ending(LineEnding::LF));
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in [("ecr-transfer", 0o755, binary), (ROOTS, 0o644, roots.as_bytes())] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)?;
    }
    Ok(tar.into_inner()?)
}
