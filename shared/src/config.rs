//! The stack's configuration as the Lambdas see it: environment variables, read once and checked.

use std::collections::HashMap;

use crate::{Error, Result};

/// The environment, from any iterator of pairs, so that tests need no process environment.
#[derive(Debug, Default)]
pub struct Environment(HashMap<String, String>);

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Environment {
    /// The process's environment.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars().collect()
    }

    /// A variable's value, unless it is unset or blank: CloudFormation has no other way to leave a parameter out.
    #[must_use]
    pub fn optional(&self, variable: &str) -> Option<&str> {
        self.0.get(variable).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// A variable's value.
    ///
    /// # Errors
    /// When it is unset or blank.
    pub fn required(&self, variable: &str) -> Result<&str> {
        self.optional(variable).ok_or_else(|| invalid(variable, "", "it must have a value"))
    }

    /// A variable's value as a number; `default` where it is unset or blank.
    ///
    /// # Errors
    /// When it is not a whole number of at least 1.
    pub fn count(&self, variable: &str, default: usize) -> Result<usize> {
        match self.optional(variable) {
            None => Ok(default),
            Some(value) => value
                .parse()
                .ok()
                .filter(|&number| number >= 1)
                .ok_or_else(|| invalid(variable, value, "expected a whole number of at least 1")),
        }
    }

    /// A variable's value as `true` or `false`; `default` where it is unset or blank.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn flag(&self, variable: &str, default: bool) -> Result<bool> {
        match self.optional(variable) {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(value) => Err(invalid(variable, value, "expected true or false")),
        }
    }

    /// A variable's value as one of `choices`.
    ///
    /// # Errors
    /// When it is unset, or none of them.
    pub fn choice<T: Clone>(&self, variable: &str, choices: &[(&str, T)]) -> Result<T> {
        let value = self.required(variable)?;
        choices.iter().find(|(name, _)| *name == value).map(|(_, choice)| choice.clone()).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            invalid(variable, value, &format!("expected {}", names.join(" or ")))
        })
    }
}

fn invalid(variable: &str, value: &str, problem: &str) -> Error {
    Error::Configuration { variable: variable.into(), value: value.into(), problem: problem.into() }
}

/// An ECR registry, and who we are when we talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The region, for example `cn-north-1`; where blank, the Lambda's own.
    pub region: Option<String>,
    /// The 12-digit account; where blank, that of the identity in use.
    pub account: Option<String>,
    /// The name of the secret that holds an access key; where blank, the Lambda's role.
    pub credential: Option<String>,
}

impl RegistryConfig {
    /// The source registry: `SRC_REGION`, `SRC_ACCOUNT_ID`, `SRC_CREDENTIAL_NAME`.
    ///
    /// # Errors
    /// When the account is not one.
    pub fn source(environment: &Environment) -> Result<Self> {
        Self::read(environment, "SRC_REGION", "SRC_ACCOUNT_ID", "SRC_CREDENTIAL_NAME")
    }

    /// The destination registry: `DEST_REGION`, `DEST_ACCOUNT_ID`, `DEST_CREDENTIAL_NAME`.
    ///
    /// # Errors
    /// When the account is not one.
    pub fn destination(environment: &Environment) -> Result<Self> {
        Self::read(environment, "DEST_REGION", "DEST_ACCOUNT_ID", "DEST_CREDENTIAL_NAME")
    }

    fn read(environment: &Environment, region: &str, account: &str, credential: &str) -> Result<Self> {
        let id = environment.optional(account);
        if let Some(id) = id
            && !(id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_digit()))
        {
            return Err(invalid(account, id, "an AWS account id has 12 digits"));
        }
        Ok(Self {
            region: environment.optional(region).map(str::to_owned),
            account: id.map(str::to_owned),
            credential: environment.optional(credential).map(str::to_owned),
        })
    }
}

/// What the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceType {
    /// An ECR registry.
    Ecr,
    /// Any registry that speaks the OCI distribution API.
    Public,
}

impl SourceType {
    /// `SOURCE_TYPE`: `Amazon_ECR` or `Public`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn read(environment: &Environment) -> Result<Self> {
        environment.choice("SOURCE_TYPE", &[("Amazon_ECR", Self::Ecr), ("Public", Self::Public)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_parameter_counts_as_left_out() {
        let environment: Environment = [("SRC_ACCOUNT_ID", " "), ("SRC_REGION", "eu-west-1")].into_iter().collect();
        let source = RegistryConfig::source(&environment).expect("it is valid");
        assert_eq!(source.account, None);
        assert_eq!(source.region.as_deref(), Some("eu-west-1"));
    }

    #[test]
    fn an_account_that_is_none_is_an_error_that_names_it() {
        let environment: Environment = [("DEST_ACCOUNT_ID", "12345")].into_iter().collect();
        let error = RegistryConfig::destination(&environment).expect_err("it has 5 digits");
        assert_eq!(error.to_string(), r#"DEST_ACCOUNT_ID is "12345": an AWS account id has 12 digits"#);
        assert_eq!(error.name(), "InvalidConfiguration");
    }

    #[test]
    fn a_source_type_that_does_not_exist_is_an_error_that_lists_the_ones_that_do() {
        let environment: Environment = [("SOURCE_TYPE", "ECR")].into_iter().collect();
        let error = SourceType::read(&environment).expect_err("it is not a choice");
        assert_eq!(error.to_string(), r#"SOURCE_TYPE is "ECR": expected Amazon_ECR or Public"#);
    }

    #[test]
    fn numbers_and_flags_are_checked() {
        let environment: Environment = [("N", "0"), ("F", "yes")].into_iter().collect();
        assert!(environment.count("N", 1).is_err());
        assert!(environment.flag("F", true).is_err());
        assert_eq!(environment.count("M", 10).expect("the default"), 10);
        assert!(environment.flag("G", true).expect("the default"));
    }
}
