//! The webhook's certificate: loaded from files, and loaded again when they change.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;

use super::metrics::Metrics;
use crate::mirror::files::read_regular;

/// The largest file. A Secret of Kubernetes has at most 1 MiB.
pub const MAX_BYTES: u64 = 1 << 20;

/// A certificate and its key, in files.
#[derive(Clone, Debug, clap::Args)]
pub struct Files {
    /// The server's certificate and those that issued it, as PEM
    #[arg(long, value_name = "FILE", default_value = "/certificate/tls.crt")]
    certificate: PathBuf,
    /// The certificate's private key, as PEM
    #[arg(long, value_name = "FILE", default_value = "/certificate/tls.key")]
    key: PathBuf,
}

/// A certificate that can change while the server runs.
pub struct Certificate {
    files: Files,
    content: Mutex<Content>,
    /// What the server uses.
    pub config: RustlsConfig,
}

#[derive(PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificate {
    /// Loads a certificate.
    ///
    /// # Errors
    /// If a file cannot be read, has no certificate or key, or they do not belong together.
    pub fn load(files: &Files, metrics: &Metrics) -> Result<Self> {
        let content = files.read()?;
        let (config, expires_at) = content.parse().with_context(|| files.name())?;
        metrics.certificate_replaced(expires_at);
        let config = RustlsConfig::from_config(config);
        Ok(Self { files: files.clone(), content: Mutex::new(content), config })
    }

    /// Uses the certificate of the files if there is another one.
    ///
    /// # Errors
    /// As [`load`](Self::load). The one in use stays.
    pub fn refresh(&self, metrics: &Metrics) -> Result<()> {
        self.read(metrics).inspect_err(|_| metrics.certificate_failed())
    }

    fn read(&self, metrics: &Metrics) -> Result<()> {
        let content = self.files.read()?;
        let mut current = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if content == *current {
            return Ok(());
        }
        let (config, expires_at) = content.parse().with_context(|| self.files.name())?;
        metrics.certificate_replaced(expires_at);
        self.config.reload_from_config(config);
        *current = content;
        tracing::info!("A new certificate is in use");
        Ok(())
    }
}

impl Files {
    fn read(&self) -> Result<Content> {
        let read = |file: &PathBuf| read_regular(file, MAX_BYTES).with_context(|| file.display().to_string());
        Ok(Content { certificate: read(&self.certificate)?, key: read(&self.key)? })
    }

    fn name(&self) -> String {
        format!("{} and {}", self.certificate.display(), self.key.display())
    }
}

impl Content {
    /// The server's configuration, and when the certificate expires, in seconds since 1970.
    fn parse(&self) -> Result<(Arc<ServerConfig>, i64)> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.context("The certificate is not PEM")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).context("The key is not PEM")?;
        let server = chain.first().context("The file has no certificate")?;
        let (_, parsed) = parse_x509_certificate(server).context("The certificate is not X.509")?;
        let expires_at = parsed.validity().not_after.timestamp();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok((Arc::new(config), expires_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_never_end_are_refused() {
        let directory = tempfile::tempdir().expect("there is room");
        for file in ["/dev/zero".into(), directory.path().to_owned()] {
            let files = Files { certificate: file.clone(), key: file.clone() };
            let error = files.read().err().map(|error| format!("{error:#}"));
            assert_eq!(error, Some(format!("{}: It is not a regular file", file.display())));
        }
    }
}
