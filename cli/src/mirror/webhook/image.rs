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
        "It is not static. Download a release, and name its binary: --binary x86_64/ecr-transfer"
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

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    /// A program for a processor, as far as its headers say; with the segment of a dynamic linker or without.
    pub fn binary(machine: u16, needs_libraries: bool) -> Vec<u8> {
        const HEADER: u16 = 64;
        const SEGMENT: u16 = 56;
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        // An executable of version 1, without an entry; the segments are behind the header, and there are no sections.
        [2, machine].iter().for_each(|number| elf.extend(number.to_le_bytes()));
        elf.extend(1_u32.to_le_bytes());
        [0, u64::from(HEADER), 0].iter().for_each(|number| elf.extend(number.to_le_bytes()));
        elf.extend(0_u32.to_le_bytes());
        [HEADER, SEGMENT, 1, 0, 0, 0].iter().for_each(|number| elf.extend(number.to_le_bytes()));
        let kind = if needs_libraries { PT_INTERP } else { elf::abi::PT_LOAD };
        elf.extend(kind.to_le_bytes());
        elf.resize(usize::from(HEADER + SEGMENT), 0);
        elf
    }

    fn parsed(blob: &Blob) -> Value {
        assert_eq!(blob.digest, Digest::of(&blob.content));
        serde_json::from_slice(&blob.content).expect("it is JSON")
    }

    #[test]
    fn an_image_has_the_binary_and_root_certificates() {
        let program = binary(EM_AARCH64, false);
        let image = Image::new(&program).expect("it is static");
        let [layer, config] = &image.blobs;
        let manifest = parsed(&image.manifest);
        assert_eq!(manifest["layers"], json!([layer.descriptor(LAYER)]));
        assert_eq!(manifest["config"], config.descriptor(CONFIG));

        let mut tar = Vec::new();
        GzDecoder::new(layer.content.as_slice()).read_to_end(&mut tar).expect("it is compressed");
        let config = parsed(config);
        assert_eq!(config["rootfs"]["diff_ids"], json!([Digest::of(&tar).to_string()]));
        assert_eq!((&config["os"], &config["architecture"]), (&json!("linux"), &json!("arm64")));
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(tar.as_slice()).entries().expect("it is an archive") {
            let mut entry = entry.expect("it is complete");
            let (path, mode) = (entry.path().expect("it has a name").display().to_string(), entry.header().mode().ok());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("it is complete");
            files.insert(path, (mode, content));
        }
        assert_eq!(files.remove("ecr-transfer"), Some((Some(0o755), program)));
        let (mode, roots) = files.remove(ROOTS).expect("it is there");
        assert_eq!(mode, Some(0o644));
        assert_eq!(pem::parse_many(roots).expect("it is PEM").len(), TLS_SERVER_ROOT_CERTS.len());
        assert!(files.is_empty());
    }

    #[test]
    fn the_image_starts_the_server() {
        use clap::CommandFactory as _;
        let image = Image::new(&binary(EM_X86_64, false)).expect("it is static");
        let config = parsed(&image.blobs[1]);
        let entrypoint: Vec<_> = config["config"]["Entrypoint"].as_array().into_iter().flatten().collect();
        assert_eq!(entrypoint.first().and_then(|program| program.as_str()), Some("/ecr-transfer"));
        let mut command = &crate::Arguments::command();
        for name in entrypoint[1..].iter().filter_map(|name| name.as_str()) {
            command = command.find_subcommand(name).expect(name);
        }
        assert!(command.get_arguments().any(|argument| argument.get_long() == Some("bucket")));
    }

    #[test]
    fn the_index_is_the_same_in_whichever_order_the_binaries_are_given() {
        let images = |machines: [u16; 2]| machines.map(|it| Image::new(&binary(it, false)).expect("it is static"));
        let first = index(&mut images([EM_X86_64, EM_AARCH64])).expect("they differ");
        let second = index(&mut images([EM_AARCH64, EM_X86_64])).expect("they differ");
        assert_eq!(first.digest, second.digest);
        let platforms: Vec<_> = parsed(&first)["manifests"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| it["platform"]["architecture"].clone())
            .collect();
        assert_eq!(platforms, ["amd64", "arm64"]);
        let error = index(&mut images([EM_X86_64; 2])).map(|_| ()).expect_err("they are for the same processor");
        assert_eq!(error.to_string(), "Two binaries are for amd64.");
    }

    #[test]
    fn a_binary_that_could_not_run_in_the_image_is_an_error() {
        const EM_386: u16 = 3;
        for (binary, problem) in [
            (
                binary(EM_X86_64, true),
                "is not static. Download a release, and name its binary: --binary x86_64/ecr-transfer",
            ),
            (binary(EM_386, false), "neither x86_64 nor arm64"),
            (b"#!/bin/sh\n".to_vec(), "not a program for Linux"),
            (Vec::new(), "not a program for Linux"),
            (binary(EM_X86_64, false)[..100].to_vec(), "not a program"),
        ] {
            let error = Image::new(&binary).map(|_| ()).expect_err(problem);
            assert!(format!("{error:#}").contains(problem), "{error:#}");
        }
    }
}
