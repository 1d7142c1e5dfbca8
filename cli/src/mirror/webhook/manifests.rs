//! Prints the Kubernetes objects that run the webhook.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use shared::inventory::Match;
use shared::reference::{ImageReference, Invalid};
use time::{Duration, OffsetDateTime};
use x509_parser::parse_x509_certificate;

use super::certificate::MAX_BYTES;
use super::{NAME, bucket};
use crate::Outcome;
use crate::mirror::files;
use crate::mirror::inventory::Matching;
use crate::mirror::kubernetes::label;
use crate::output::print;

/// The key of the authority is in no file, so a long life is no risk, and nothing ends because someone forgot it.
const CERTIFICATE_LIFETIME: Duration = Duration::days(10 * 365);

/// How far the clock of the API server may be behind.
const CLOCK_TOLERANCE: Duration = Duration::hours(1);

#[derive(clap::Args)]
pub struct Arguments {
    /// The image that `push` printed
    #[arg(long, value_parser = image)]
    image: ImageReference,
    /// The bucket with the inventory: the output PlanBucket of the stack
    #[arg(long, value_parser = bucket)]
    bucket: String,
    /// The bucket's region; default: that of the cluster
    #[arg(long)]
    region: Option<String>,
    /// The IAM role that reads the inventory, for IAM roles for service accounts (IRSA). Without it, associate a role with EKS
    /// Pod Identity
    #[arg(long, value_name = "ARN", value_parser = role_arn)]
    role_arn: Option<String>,
    /// The namespace; it is created
    #[arg(long, default_value = "ecr-transfer", value_parser = label)]
    namespace: String,
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

/// Parses an image's full name, so that what is not meant as one is no image of Docker Hub.
fn image(text: &str) -> Result<ImageReference, Invalid> {
    let invalid = || Invalid::new(text, "an image as `push` prints it: REGISTRY/REPOSITORY@DIGEST, or with :TAG");
    let image: ImageReference = text.parse().map_err(|_| invalid())?;
    let is_full = image.to_string() == text && (image.tag.is_some() || image.digest.is_some());
    if is_full { Ok(image) } else { Err(invalid()) }
}

/// Parses the ARN of a role.
fn role_arn(text: &str) -> Result<String, Invalid> {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    let is_valid = if let ["arn", partition, "iam", "", account, role] = parts[..] {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-/".contains(&byte);
        partition.starts_with("aws")
            && partition.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
            && account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && role.strip_prefix("role/").is_some_and(|name| name.bytes().all(is_name) && !name.is_empty())
            && !role.ends_with('/')
    } else {
        false
    };
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err(Invalid::new(text, "the ARN of a role: arn:PARTITION:iam::ACCOUNT:role/NAME"))
    }
}

pub fn run(arguments: &Arguments) -> Result<Outcome> {
    print(arguments.manifests()?)?;
    Ok(Outcome::Success)
}

impl Arguments {
    /// YAML. Values are written as JSON, which is YAML too.
    fn manifests(&self) -> Result<String> {
        // Without quotation marks, the namespace `1` would be a number.
        let namespace = json!(self.namespace);
        let host = format!("{NAME}.{}.svc", self.namespace);
        let (certificate, ca_bundle) = if self.cert_manager {
            let certificate =
                format!(include_str!("manifests/cert-manager.yaml"), name = NAME, namespace = namespace, host = host);
            (certificate, String::new())
        } else {
            let issued = Issued::new(&host)?;
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
        let injection = format!("{}/{NAME}", self.namespace);
        let injection = self.cert_manager.then_some(("cert-manager.io/inject-ca-from", injection.as_str()));
        let region = self.region.iter().map(|region| json!({ "name": "AWS_REGION", "value": region }));
        Ok(format!(
            include_str!("manifests/webhook.yaml"),
            name = NAME,
            namespace = namespace,
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
        let content = files::read(file, MAX_BYTES).with_context(|| file.display().to_string())?;
        if content.trim_ascii().is_empty() {
            // No webhook is installed.
            return Ok(String::new());
        }
        let name = file.display();
        let certificates = pem::parse_many(content).with_context(|| name.to_string())?;
        let latest = certificates.first().with_context(|| {
            format!("{name} has no certificate. Give the caBundle of the installed webhook, as PEM.")
        })?;
        ensure!(latest.tag() == "CERTIFICATE", "{name} has a {} instead of a certificate", latest.tag());
        parse_x509_certificate(latest.contents()).with_context(|| format!("{name} has an invalid certificate"))?;
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use fs_err as fs;
    use serde::Deserialize as _;
    use serde_json::Value;

    use super::*;

    const IMAGE: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com/ecr-transfer-webhook:1";

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn manifests(options: &[&str]) -> Result<Vec<Value>, String> {
        let line = ["manifests", "--image", IMAGE, "--bucket", "plans"].iter().chain(options);
        let arguments = Command::try_parse_from(line).map_err(|error| error.to_string())?.arguments;
        let text = arguments.manifests().map_err(|error| format!("{error:#}"))?;
        let documents = serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize);
        documents.collect::<Result<_, _>>().map_err(|error| format!("{error}\n{text}"))
    }

    fn printed(options: &[&str]) -> Vec<Value> {
        manifests(options).expect("they are printed")
    }

    /// The only object of a kind.
    fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
        let mut all = objects.iter().filter(|object| object["kind"] == kind);
        let object = all.next().expect(kind);
        assert!(all.next().is_none(), "{kind}");
        object
    }

    fn decoded(value: &Value) -> String {
        let content = STANDARD.decode(value.as_str().expect("it is text")).expect("it is base64");
        String::from_utf8(content).expect("it is PEM")
    }

    fn ca_bundle(objects: &[Value]) -> String {
        decoded(&object(objects, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]["caBundle"])
    }

    #[test]
    fn the_objects_belong_together() {
        let objects = printed(&["--namespace", "mirror"]);
        let kinds: Vec<_> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
        // The webhook itself is last: until it is there, pods are created as before.
        assert_eq!(
            kinds,
            [
                "Namespace",
                "ServiceAccount",
                "Secret",
                "Deployment",
                "PodDisruptionBudget",
                "Service",
                "MutatingWebhookConfiguration"
            ]
        );
        for object in &objects {
            let (kind, metadata) = (&object["kind"], &object["metadata"]);
            let name = if kind == "Namespace" { "mirror" } else { NAME };
            assert_eq!(metadata["name"], name, "{kind}");
            if kind != "Namespace" && kind != "MutatingWebhookConfiguration" {
                assert_eq!(metadata["namespace"], "mirror", "{kind}");
            }
        }
        let pod = &object(&objects, "Deployment")["spec"]["template"];
        let labels = &pod["metadata"]["labels"];
        assert_eq!(&object(&objects, "Deployment")["spec"]["selector"]["matchLabels"], labels);
        assert_eq!(&object(&objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels);
        assert_eq!(&object(&objects, "Service")["spec"]["selector"], labels);
        let pod = &pod["spec"];
        assert_eq!(pod["serviceAccountName"], NAME);
        assert_eq!(pod["volumes"][0]["secret"], json!({ "secretName": NAME, "defaultMode": 0o440 }));
        let container = &pod["containers"][0];
        assert_eq!(container["image"], IMAGE);
        assert_eq!(container["args"], json!(["--bucket=plans"]));
        assert_eq!(container["env"], json!([]));
        let ports: Vec<_> = container["ports"].as_array().into_iter().flatten().map(|port| &port["name"]).collect();
        for port in object(&objects, "Service")["spec"]["ports"].as_array().into_iter().flatten() {
            assert!(ports.contains(&&port["targetPort"]), "{port}");
        }
        let service = &object(&objects, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]["service"];
        assert_eq!(*service, json!({ "name": NAME, "namespace": "mirror", "path": "/mutate", "port": 443 }));
    }

    #[test]
    fn a_pod_is_never_rejected_because_of_the_webhook_and_namespaces_and_pods_can_opt_out() {
        let objects = printed(&[]);
        let webhook = &object(&objects, "MutatingWebhookConfiguration")["webhooks"][0];
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["timeoutSeconds"], 2);
        assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
        assert_eq!(webhook["sideEffects"], "None");
        let opt_out = json!({ "key": "ecr-transfer/mirror", "operator": "NotIn", "values": ["disabled"] });
        assert_eq!(webhook["objectSelector"], json!({ "matchExpressions": [opt_out] }));
        let own = json!({ "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["ecr-transfer"] });
        assert_eq!(webhook["namespaceSelector"], json!({ "matchExpressions": [own, opt_out] }));
        let rule = |resource: &str, operation: &str| json!({ "apiGroups": [""], "apiVersions": ["v1"], "resources": [resource], "operations": [operation], "scope": "Namespaced" });
        assert_eq!(webhook["rules"], json!([rule("pods", "CREATE"), rule("pods/ephemeralcontainers", "UPDATE")]));
    }

    #[test]
    fn options_reach_the_server_and_its_service_account() {
        let role = "arn:aws-cn:iam::111111111111:role/webhook";
        let objects = printed(&["--region", "cn-north-1", "--role-arn", role, "--match", "repository", "--dry-run"]);
        let container = &object(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["args"], json!(["--bucket=plans", "--match=repository", "--dry-run"]));
        assert_eq!(container["env"], json!([{ "name": "AWS_REGION", "value": "cn-north-1" }]));
        let annotations = &object(&objects, "ServiceAccount")["metadata"]["annotations"];
        assert_eq!(*annotations, json!({ "eks.amazonaws.com/role-arn": role }));
    }

    #[test]
    fn the_arguments_of_the_pod_are_arguments_of_the_server() {
        #[derive(Parser)]
        struct Server {
            #[command(flatten)]
            _arguments: super::super::serve::Arguments,
        }
        let objects = printed(&["--match", "repository", "--dry-run"]);
        let container = &object(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        let arguments = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
        assert!(Server::try_parse_from(["serve"].into_iter().chain(arguments)).is_ok());
    }

    #[test]
    fn values_cannot_add_anything_to_the_objects() {
        let hostile = "x\n---\nkind: \"Pod\" # {} '";
        let objects = printed(&["--region", hostile]);
        assert_eq!(objects.len(), printed(&[]).len());
        let container = &object(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["env"][0]["value"], hostile);
    }

    #[test]
    fn an_option_that_cannot_be_right_is_rejected_with_what_it_must_be() {
        let role = "arn:aws:iam::111111111111:role/";
        let long = "a".repeat(64);
        let cases: [(&str, &str, &[&str]); 4] = [
            (
                "--bucket",
                "is not the name of a bucket: 3 to 63 lowercase",
                &["", "ab", &long, "Plans", "a_b", "-abc", "abc.", "s3://plans", "a\nb"],
            ),
            (
                "--role-arn",
                "is not the ARN of a role: arn:PARTITION:iam::ACCOUNT:role/NAME",
                &[
                    "",
                    "xyz",
                    role,
                    "webhook",
                    "arn:aws:iam::1:role/a",
                    "arn:aws:iam::111111111111:user/a",
                    "arn::iam::111111111111:role/a",
                    "arn:aws:iam::111111111111:role/a\nb",
                    "arn:aws:iam::111111111111:role/a:b",
                    "arn:aws:iam::111111111111:role/a/",
                ],
            ),
            ("--namespace", "lowercase letters, digits and -", &["", "Mirror", "a_b", "-a", "a-", "a/b", "x\n", &long]),
            (
                "--image",
                "is not an image as `push` prints it: REGISTRY/REPOSITORY@DIGEST, or with :TAG",
                &[
                    "",
                    " ",
                    "xyz",
                    "xyz:1",
                    "registry.example/a",
                    "not an image",
                    "https://registry.example/a",
                    "a:b:c",
                    "registry.example/",
                    "registry.example/A",
                    "registry.example/a:",
                    "registry.example/a@sha256:1",
                    "$image",
                ],
            ),
        ];
        for (option, expected, values) in cases {
            for value in values {
                let mut line = vec!["manifests"];
                for required in [["--image", IMAGE], ["--bucket", "plans"]] {
                    if required[0] != option {
                        line.extend(required);
                    }
                }
                let given = format!("{option}={value}");
                line.push(&given);
                let error = Command::try_parse_from(line).map(|_| ()).expect_err(value).to_string();
                assert!(error.contains(expected) && error.contains(option), "{error}");
            }
        }
        for role in ["arn:aws:iam::111111111111:role/a/b@c", "arn:aws-us-gov:iam::111111111111:role/a"] {
            printed(&["--role-arn", role]);
        }
    }

    #[test]
    fn the_former_authority_stays_trusted_and_older_ones_do_not() {
        let directory = tempfile::tempdir().expect("there is room");
        let file = directory.path().join("former.pem");
        let option = file.to_str().expect("it is text");
        let former = |bundle: &str| {
            fs::write(&file, bundle).expect("it can be written");
            ca_bundle(&printed(&["--former-ca", option]))
        };
        let first = ca_bundle(&printed(&[]));
        let second = former(&first);
        assert!(second.ends_with(&first) && second.len() > first.len());
        let third = former(&second);
        assert!(third.ends_with(second.strip_suffix(&first).expect("it ends so")));
        assert_eq!(pem::parse_many(&third).expect("it is PEM").len(), 2);
        // There is no former one when it is installed for the first time.
        assert_eq!(pem::parse_many(former("")).expect("it is PEM").len(), 1);

        let key = Issued::new("a.b.svc").expect("it is a name").key;
        fs::write(&file, key).expect("it can be written");
        let error = manifests(&["--former-ca", option]).expect_err("it is a key");
        assert!(error.contains("has a PRIVATE KEY instead of a certificate"), "{error}");
        for (content, problem) in [
            ("hello", "has no certificate"),
            ("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==", "has no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "has an invalid certificate"),
        ] {
            fs::write(&file, content).expect("it can be written");
            let error = manifests(&["--former-ca", option]).expect_err(problem);
            assert!(error.contains(problem) && error.contains("former.pem"), "{error}");
        }
    }

    #[test]
    fn cert_manager_issues_the_certificate_for_the_service() {
        let objects = printed(&["--cert-manager"]);
        assert!(objects.iter().all(|object| object["kind"] != "Secret"));
        let configuration = object(&objects, "MutatingWebhookConfiguration");
        let annotations = json!({ "cert-manager.io/inject-ca-from": format!("ecr-transfer/{NAME}") });
        assert_eq!(configuration["metadata"]["annotations"], annotations);
        // cert-manager sets it, so applying again must not reset it.
        assert_eq!(configuration["webhooks"][0]["clientConfig"].get("caBundle"), None);
        let named = |kind: &str, name: &str| {
            let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
            &objects.iter().find(is_it).expect(name)["spec"]
        };
        let server = named("Certificate", NAME);
        assert_eq!(server["secretName"], NAME);
        assert_eq!(server["dnsNames"], json!([format!("{NAME}.ecr-transfer.svc")]));
        assert_eq!(server["issuerRef"]["name"], NAME);
        let authority = named("Certificate", &format!("{NAME}-ca"));
        assert_eq!(named("Issuer", NAME)["ca"]["secretName"], authority["secretName"]);
        assert_eq!(authority["isCA"], true);
        assert!(!named("Issuer", authority["issuerRef"]["name"].as_str().expect("it is text")).is_null());
    }
}
