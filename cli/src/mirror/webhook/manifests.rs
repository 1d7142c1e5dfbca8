//! Prints the Kubernetes objects that run the webhook.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fs_err as fs;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use shared::inventory::Match;
use shared::reference::{ImageReference, Invalid};
use time::{Duration, OffsetDateTime};

use super::{NAME, OPT_OUT};
use crate::Outcome;
use crate::mirror::inventory::Matching;
use crate::output::print;

/// The key of the authority is in no file, so a long life is no risk, and nothing ends because someone forgot it.
const CERTIFICATE_LIFETIME: Duration = Duration::days(10 * 365);

/// How far the clock of the API server may be behind.
const CLOCK_TOLERANCE: Duration = Duration::hours(1);

#[derive(clap::Args)]
pub struct Arguments {
    /// The image that `push` printed
    #[arg(long)]
    image: ImageReference,
    /// The bucket with the inventory: the output PlanBucket of the stack
    #[arg(long)]
    bucket: String,
    /// The bucket's region; default: that of the cluster
    #[arg(long)]
    region: Option<String>,
    /// The IAM role that reads the inventory, for IAM roles for service accounts (IRSA). Without it, associate a role with EKS
    /// Pod Identity
    #[arg(long, value_name = "ARN")]
    role_arn: Option<String>,
    /// The namespace; it is created
    #[arg(long, default_value = "ecr-transfer")]
    namespace: Namespace,
    #[command(flatten)]
    matching: Matching,
    /// Change no image; only annotate pods with the images that they would use
    #[arg(long)]
    dry_run: bool,
    /// Let cert-manager issue and renew the certificate. Without it, the printed Secret has a new one, valid for ten years
    #[arg(long)]
    cert_manager: bool,
    /// The caBundle of the installed webhook, as PEM: it stays valid until the pods have loaded the new certificate
    #[arg(long, value_name = "FILE", conflicts_with = "cert_manager")]
    former_ca: Option<PathBuf>,
}

/// The name of a namespace.
#[derive(Clone, Debug)]
struct Namespace(String);

impl FromStr for Namespace {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_valid = (1..=63).contains(&text.len())
            && text.bytes().all(is_inner)
            && !text.starts_with('-')
            && !text.ends_with('-')
            // Such a name would be a number in YAML.
            && text.contains(|letter: char| letter.is_ascii_lowercase());
        if is_valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(text, "a namespace: up to 63 lowercase letters, digits and -"))
        }
    }
}

pub fn run(arguments: &Arguments) -> Result<Outcome> {
    print(arguments.manifests()?)?;
    Ok(Outcome::Success)
}

impl Arguments {
    /// YAML. Values are written as JSON, which is YAML too.
    fn manifests(&self) -> Result<String> {
        let namespace = self.namespace.0.as_str();
        let (certificate, ca_bundle) = if self.cert_manager {
            (format!(include_str!("manifests/cert-manager.yaml"), name = NAME, namespace = namespace), String::new())
        } else {
            let issued = Issued::new(&format!("{NAME}.{namespace}.svc"))?;
            let ca_bundle = format!("{}{}", issued.ca, self.former_ca()?);
            let secret = format!(
                include_str!("manifests/secret.yaml"),
                name = NAME,
                namespace = namespace,
                certificate = STANDARD.encode(&issued.certificate),
                key = STANDARD.encode(&issued.key),
            );
            (secret, format!("      caBundle: {}\n", STANDARD.encode(ca_bundle)))
        };
        let role = self.role_arn.iter().map(|arn| ("eks.amazonaws.com/role-arn", arn.as_str()));
        let injection = format!("{namespace}/{NAME}");
        let injection = self.cert_manager.then_some(("cert-manager.io/inject-ca-from", injection.as_str()));
        let region = self.region.iter().map(|region| json!({ "name": "AWS_REGION", "value": region }));
        Ok(format!(
            include_str!("manifests/webhook.yaml"),
            name = NAME,
            namespace = namespace,
            opt_out = OPT_OUT,
            image = json!(self.image.to_string()),
            arguments = json!(self.server_arguments()),
            environment = json!(region.collect::<Vec<_>>()),
            service_account_annotations = annotations(role),
            webhook_annotations = annotations(injection),
            certificate = certificate,
            ca_bundle = ca_bundle,
        )
        .trim_end()
        .to_owned()
            + "\n")
    }

    fn server_arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--bucket={}", self.bucket)];
        if self.matching.value() == Match::Repository {
            arguments.push("--match=repository".into());
        }
        if self.dry_run {
            arguments.push("--dry-run".into());
        }
        arguments
    }

    /// The authority of the certificate that the pods have now. Older ones are not needed any more.
    fn former_ca(&self) -> Result<String> {
        let Some(file) = &self.former_ca else { return Ok(String::new()) };
        let certificates = pem::parse_many(fs::read(file)?).with_context(|| file.display().to_string())?;
        let Some(latest) = certificates.first() else { return Ok(String::new()) };
        ensure!(latest.tag() == "CERTIFICATE", "{} has a {} instead of a certificate", file.display(), latest.tag());
        Ok(latest.to_string().replace("\r\n", "\n"))
    }
}

fn annotations<'a>(annotations: impl IntoIterator<Item = (&'static str, &'a str)>) -> serde_json::Value {
    annotations.into_iter().map(|(key, value)| (key.to_owned(), serde_json::Value::from(value))).collect()
}

/// A server's certificate, as PEM. The key of the authority that issued it is gone.
pub struct Issued {
    /// The authority's certificate.
    pub ca: String,
    /// The server's certificate.
    pub certificate: String,
    /// The server's key.
    pub key: String,
}

impl Issued {
    /// A certificate for the server `host`.
    ///
    /// # Errors
    /// If `host` is not a DNS name.
    pub fn new(host: &str) -> Result<Self> {
        let now = OffsetDateTime::now_utc();
        let params = |names: Vec<String>, common_name: &str| {
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, common_name);
            params.not_before = now - CLOCK_TOLERANCE;
            params.not_after = now + CERTIFICATE_LIFETIME;
            params.use_authority_key_identifier_extension = true;
            Ok::<_, rcgen::Error>(params)
        };
        let mut ca = params(Vec::new(), &format!("{NAME}-ca"))?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let mut server = params(vec![host.to_owned()], NAME)?;
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &ca)?;
        Ok(Self { ca: ca.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
    }
}
