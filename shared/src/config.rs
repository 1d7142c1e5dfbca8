//! The stack's parameters, as environment variables of the Lambdas.

use std::collections::HashMap;

use crate::ecr::is_account;
use crate::reference::{Invalid, RepositoryName};
use crate::{Error, Result};

/// Environment variables, from any iterator of pairs. Tests do not change the environment of their process.
#[derive(Debug, Default)]
pub struct Environment(HashMap<String, String>);

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        std::env::vars().collect()
    }

    /// A variable's value. Blank counts as unset, because CloudFormation cannot leave a variable out.
    pub fn optional(&self, variable: &str) -> Option<&str> {
        self.0.get(variable).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// A variable's value.
    ///
    /// # Errors
    /// If it is unset or blank.
    pub fn required(&self, variable: &str) -> Result<String> {
        // The template sets it, so the error names the variable, and not a parameter.
        self.optional(variable).map(str::to_owned).ok_or_else(|| Error::Configuration {
            parameter: variable.to_owned(),
            value: String::new(),
            problem: "set this environment variable of the function.".into(),
        })
    }

    /// The items of a variable's value, separated by commas or newlines.
    pub fn items(&self, variable: &str) -> impl Iterator<Item = &str> {
        let value = self.optional(variable).unwrap_or_default();
        value.split([',', '\n']).map(str::trim).filter(|item| !item.is_empty())
    }

    /// A variable's value as a number; `default` if it is unset or blank.
    ///
    /// # Errors
    /// If it is not a whole number.
    pub fn count(&self, variable: &str, default: usize) -> Result<usize> {
        match self.optional(variable) {
            None => Ok(default),
            Some(value) => value.parse().map_err(|_| invalid(variable, value, "expected a whole number.")),
        }
    }

    /// A variable's value, `true` or `false`; `default` if it is unset or blank.
    ///
    /// # Errors
    /// If it has another value.
    pub fn flag(&self, variable: &str, default: bool) -> Result<bool> {
        match self.optional(variable) {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(value) => Err(invalid(variable, value, "expected true or false.")),
        }
    }

    /// A variable's value, one of `choices`.
    ///
    /// # Errors
    /// If it is unset, blank, or has another value.
    pub fn choice<T: Clone>(&self, variable: &str, choices: &[(&str, T)]) -> Result<T> {
        let value = self.required(variable)?;
        choices.iter().find(|(name, _)| *name == value).map(|(_, choice)| choice.clone()).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            invalid(variable, &value, &format!("expected {}.", names.join(" or ")))
        })
    }
}

/// The error of a variable with an invalid value. It names the stack's parameter that the variable is set from.
pub fn invalid(variable: &str, value: &str, problem: &str) -> Error {
    Error::Configuration { parameter: parameter(variable), value: value.into(), problem: problem.into() }
}

/// The parameters of variables that are named differently.
const OTHER_NAMES: [(&str, &str); 8] = [
    ("DEST_CREDENTIAL_NAME", "destCredential"),
    ("LIFECYCLE_POLICY_PARAM", "lifecyclePolicy"),
    ("MIN_MIB_PER_TASK", "minMiBPerTask"),
    ("REPOSITORY_POLICY_PARAM", "repositoryPolicy"),
    ("REQUIRES_SIGNATURES", "signaturePolicy"),
    ("SELECTED_IMAGE_PARAM", "srcImageList"),
    ("SRC_CREDENTIAL_NAME", "srcCredential"),
    ("TASK_ARCHITECTURE", "architecture"),
];

/// The stack's parameter that a variable is set from: `minImages` for `MIN_IMAGES`.
fn parameter(variable: &str) -> String {
    if let Some((_, name)) = OTHER_NAMES.iter().find(|(other, _)| *other == variable) {
        return (*name).to_owned();
    }
    let mut words = variable.split('_').map(str::to_ascii_lowercase);
    let first = words.next().unwrap_or_default();
    words.fold(first, |name, word| name + &word[..1].to_ascii_uppercase() + &word[1..])
}

/// `DEST_PREFIX`: the prefix of all repositories at the destination.
///
/// # Errors
/// If it is not a valid repository name.
pub fn prefix(environment: &Environment) -> Result<Option<RepositoryName>> {
    let Some(value) = environment.optional("DEST_PREFIX") else { return Ok(None) };
    value
        .trim_matches('/')
        .parse()
        .map(Some)
        .map_err(|error: Invalid| invalid("DEST_PREFIX", value, &format!("{error}.")))
}

/// An ECR registry, and the credential for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// `cn-north-1`, for example; `None` for the Lambda's region.
    pub region: Option<String>,
    /// 12 digits; `None` for the credential's account.
    pub account: Option<String>,
    /// `None` for the Lambda's role.
    pub credential: Option<CredentialConfig>,
}

/// A credential, as `SRC_CREDENTIAL_NAME` or `DEST_CREDENTIAL_NAME` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialConfig {
    /// The name or ARN of a secret in Secrets Manager.
    Secret(String),
    /// The name of a parameter of the Parameter Store, written `ssm:name`.
    Parameter(String),
    /// A role to assume.
    Role {
        /// `arn:…:iam::…:role/…`
        arn: String,
        /// The external ID that the role's trust policy requires.
        external_id: Option<String>,
    },
}

impl CredentialConfig {
    /// The name for `ssm:` without a name.
    pub const DEFAULT_PARAMETER: &str = "drh-credentials";

    fn read(environment: &Environment, variable: &str, external_id: &str) -> Result<Option<Self>> {
        let Some(value) = environment.optional(variable) else { return Ok(None) };
        if let Some(name) = value.strip_prefix("ssm:") {
            let name = if name.is_empty() { Self::DEFAULT_PARAMETER } else { name };
            return Ok(Some(Self::Parameter(name.to_owned())));
        }
        // arn:partition:service:region:account:resource
        let mut arn = value.splitn(6, ':');
        Ok(Some(match (arn.next(), arn.nth(1), arn.nth(2)) {
            (Some("arn"), Some("iam"), Some(resource)) if resource.starts_with("role/") => {
                Self::Role { arn: value.to_owned(), external_id: environment.optional(external_id).map(str::to_owned) }
            }
            (Some("arn"), Some("secretsmanager"), Some(_)) => Self::Secret(value.to_owned()),
            (Some(name), None, None) if name == value => Self::Secret(name.to_owned()),
            _ => {
                return Err(invalid(
                    variable,
                    value,
                    "expected the name or ARN of a secret in Secrets Manager, ssm:name for a parameter of the Parameter \
                     Store, or the ARN of a role.",
                ));
            }
        }))
    }

    /// The value of the stack's parameter, for errors.
    pub fn name(&self) -> String {
        match self {
            Self::Secret(name) | Self::Role { arn: name, .. } => name.clone(),
            Self::Parameter(name) => format!("ssm:{name}"),
        }
    }
}

impl RegistryConfig {
    /// The destination registry: `DEST_REGION`, `DEST_ACCOUNT_ID`, `DEST_CREDENTIAL_NAME`, `DEST_EXTERNAL_ID`.
    ///
    /// # Errors
    /// If the account or the credential's name is invalid.
    pub fn destination(environment: &Environment) -> Result<Self> {
        let credential = CredentialConfig::read(environment, "DEST_CREDENTIAL_NAME", "DEST_EXTERNAL_ID")?;
        Self::read(environment, "DEST_REGION", "DEST_ACCOUNT_ID", credential)
    }

    fn read(
        environment: &Environment,
        region: &str,
        account: &str,
        credential: Option<CredentialConfig>,
    ) -> Result<Self> {
        let id = environment.optional(account);
        if let Some(id) = id
            && !is_account(id)
        {
            return Err(invalid(account, id, "expected an AWS account ID of 12 digits."));
        }
        Ok(Self { region: environment.optional(region).map(str::to_owned), account: id.map(str::to_owned), credential })
    }
}

/// Where images come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// One private registry of ECR.
    Ecr(RegistryConfig),
    /// Any registries with the OCI distribution API.
    Public(PublicConfig),
}

/// The configuration for any registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicConfig {
    /// The credential for registries that require a login.
    pub credential: Option<CredentialConfig>,
    /// The parameter of the Parameter Store with the deployed image list.
    pub list: Option<String>,
}

impl SourceConfig {
    /// `SOURCE_TYPE`, which is `Amazon_ECR` or `Public`, with `SRC_REGION`, `SRC_ACCOUNT_ID`, `SRC_CREDENTIAL_NAME`,
    /// `SRC_EXTERNAL_ID` and `SELECTED_IMAGE_PARAM`.
    ///
    /// # Errors
    /// If the type, the account or the credential's name is invalid.
    pub fn read(environment: &Environment) -> Result<Self> {
        let is_ecr = environment.choice("SOURCE_TYPE", &[("Amazon_ECR", true), ("Public", false)])?;
        let credential = CredentialConfig::read(environment, "SRC_CREDENTIAL_NAME", "SRC_EXTERNAL_ID")?;
        if !is_ecr {
            let list = environment.optional("SELECTED_IMAGE_PARAM").map(str::to_owned);
            return Ok(Self::Public(PublicConfig { credential, list }));
        }
        RegistryConfig::read(environment, "SRC_REGION", "SRC_ACCOUNT_ID", credential).map(Self::Ecr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().copied().collect()
    }

    #[test]
    fn a_blank_parameter_counts_as_unset() {
        let blank = environment(&[("SOURCE_TYPE", "Amazon_ECR"), ("SRC_ACCOUNT_ID", " "), ("SRC_REGION", "eu-west-1")]);
        let SourceConfig::Ecr(source) = SourceConfig::read(&blank).expect("it is valid") else {
            panic!("it is an ECR registry");
        };
        assert_eq!((source.account, source.credential), (None, None));
        assert_eq!(source.region.as_deref(), Some("eu-west-1"));
    }

    #[test]
    fn an_invalid_account_is_an_error_with_the_parameter() {
        let error = RegistryConfig::destination(&environment(&[("DEST_ACCOUNT_ID", "12345")])).expect_err("5 digits");
        assert_eq!(error.to_string(), r#"destAccountId is "12345": expected an AWS account ID of 12 digits."#);
        assert_eq!(error.name(), "InvalidConfiguration");
    }

    #[test]
    fn an_unknown_source_type_is_an_error_that_lists_the_known_ones() {
        let error = SourceConfig::read(&environment(&[("SOURCE_TYPE", "ECR")])).expect_err("it is not a choice");
        assert_eq!(error.to_string(), r#"sourceType is "ECR": expected Amazon_ECR or Public."#);
    }

    #[test]
    fn a_credential_is_a_secret_a_parameter_or_a_role() {
        let read = |value: &str| {
            let environment = environment(&[("DEST_CREDENTIAL_NAME", value), ("DEST_EXTERNAL_ID", "partner")]);
            RegistryConfig::destination(&environment).map(|registry| registry.credential.expect("it is named"))
        };
        let role = "arn:aws-cn:iam::333333333333:role/path/copier";
        let secret = "arn:aws:secretsmanager:us-east-1:111111111111:secret:key-AbCdEf";
        for (value, credential) in [
            ("team/key", CredentialConfig::Secret("team/key".into())),
            (secret, CredentialConfig::Secret(secret.into())),
            ("ssm:/team/key", CredentialConfig::Parameter("/team/key".into())),
            ("ssm:", CredentialConfig::Parameter("drh-credentials".into())),
            (role, CredentialConfig::Role { arn: role.into(), external_id: Some("partner".into()) }),
        ] {
            assert_eq!(read(value).expect(value), credential);
        }
        for value in ["arn:aws:iam::333333333333:user/me", "arn:aws:s3:::bucket", "a:b", "arn:aws:iam"] {
            let error = read(value).expect_err(value);
            assert!(error.to_string().starts_with(&format!("destCredential is {value:?}: ")), "{error}");
        }
    }

    #[test]
    fn a_prefix_is_a_repository_name_and_slashes_around_it_are_removed() {
        let read = |value: &str| prefix(&environment(&[("DEST_PREFIX", value)]));
        assert_eq!(read("/mirror/hub/").expect("it is valid").expect("it is not blank").as_str(), "mirror/hub");
        assert_eq!(read(" ").expect("it is blank"), None);
        assert!(
            read("Mirror").expect_err("it has a capital letter").to_string().starts_with(r#"destPrefix is "Mirror""#)
        );
    }

    #[test]
    fn errors_name_the_parameter_that_the_template_sets_a_variable_from() {
        let template = include_str!("../../template.yaml");
        let (parameters, _) = template.split_once("\nRules:").expect("rules follow the parameters");
        let is_parameter = |name: &str| parameters.contains(&format!("\n  {name}:\n    Type: "));
        let mut compared = 0;
        for line in template.lines() {
            let Some((variable, value)) = line.trim().split_once(": ") else { continue };
            let is_variable = variable.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            let references: Vec<_> = value.split("!Ref ").skip(1).map(|it| it.split([',', ']']).next()).collect();
            if is_variable && references.iter().flatten().any(|name| is_parameter(name)) && variable != "CLUSTER" {
                assert!(references.contains(&Some(parameter(variable).as_str())), "{line}");
                compared += 1;
            }
        }
        assert!(compared > 30, "{compared}");
        assert!(OTHER_NAMES.iter().all(|(_, name)| is_parameter(name)));
    }

    #[test]
    fn numbers_and_flags_are_checked() {
        let environment = environment(&[("N", "x"), ("F", "yes"), ("Z", "0")]);
        assert!(environment.count("N", 1).is_err());
        assert!(environment.flag("F", true).is_err());
        assert_eq!(environment.count("M", 10).expect("the default"), 10);
        assert_eq!(environment.count("Z", 10).expect("a number"), 0);
        assert!(environment.flag("G", true).expect("the default"));
    }
}
