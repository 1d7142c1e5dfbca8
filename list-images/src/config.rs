//! What the stack's parameters ask for.

use shared::config::{Environment, RegistryConfig, SourceType};
use shared::{Error, Result};

/// The configuration of list-images.
#[derive(Debug)]
pub struct Config {
    /// Where images come from.
    pub source: Source,
    /// Which of them.
    pub choice: Choice,
    /// Whether images without a tag come along, where all tags of a repository are copied.
    pub include_untagged: bool,
    /// The registry that they go to.
    pub destination: RegistryConfig,
    /// What is put in front of each repository's name there, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The bucket for the plan.
    pub plan_bucket: String,
    /// How many tasks run at once.
    pub concurrency: usize,
}

/// Where images come from.
#[derive(Debug)]
pub enum Source {
    /// An ECR registry.
    Ecr(RegistryConfig),
    /// Any registry that speaks the OCI distribution API; each entry of the list names its own.
    Public,
}

/// Which images of the source.
#[derive(Debug)]
pub enum Choice {
    /// All of them.
    All,
    /// Those in the list that this parameter of the Parameter Store holds.
    Selected(String),
}

impl Config {
    /// Reads the configuration.
    ///
    /// # Errors
    /// When a variable is missing, has a value that cannot be used, or contradicts another one.
    pub fn read(environment: &Environment) -> Result<Self> {
        let source = match SourceType::read(environment)? {
            SourceType::Ecr => Source::Ecr(RegistryConfig::source(environment)?),
            SourceType::Public => Source::Public,
        };
        let all = environment.choice("SRC_LIST", &[("ALL", true), ("SELECTED", false)])?;
        let choice = match (all, &source) {
            (true, Source::Ecr(_)) => Choice::All,
            (true, Source::Public) => {
                return Err(Error::Configuration {
                    variable: "SRC_LIST".into(),
                    value: "ALL".into(),
                    problem: "a public registry cannot be copied as a whole: choose SELECTED and give a list of images"
                        .into(),
                });
            }
            (false, _) => Choice::Selected(environment.required("SELECTED_IMAGE_PARAM")?.to_owned()),
        };
        Ok(Self {
            source,
            choice,
            include_untagged: environment.flag("INCLUDE_UNTAGGED", true)?,
            destination: RegistryConfig::destination(environment)?,
            prefix: environment.optional("DEST_PREFIX").unwrap_or_default().trim_matches('/').to_owned(),
            plan_bucket: environment.required("PLAN_BUCKET")?.to_owned(),
            concurrency: environment.count("MAX_CONCURRENCY", 10)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(changes: &[(&str, &str)]) -> Result<Config> {
        let defaults = [("SOURCE_TYPE", "Amazon_ECR"), ("SRC_LIST", "ALL"), ("PLAN_BUCKET", "plans")];
        Config::read(&defaults.iter().chain(changes).copied().collect())
    }

    #[test]
    fn the_defaults_copy_everything_from_ecr() {
        let config = read(&[]).expect("it is complete");
        assert!(matches!((config.source, config.choice), (Source::Ecr(_), Choice::All)));
        assert!(config.include_untagged);
        assert_eq!(config.concurrency, 10);
    }

    #[test]
    fn the_prefix_loses_the_slashes_around_it() {
        assert_eq!(read(&[("DEST_PREFIX", "/mirror/hub/")]).expect("it is complete").prefix, "mirror/hub");
    }

    #[test]
    fn all_of_a_public_registry_is_refused() {
        let error = read(&[("SOURCE_TYPE", "Public")]).expect_err("it would list nothing");
        assert!(error.to_string().starts_with(r#"SRC_LIST is "ALL": "#), "{error}");
    }

    #[test]
    fn selected_needs_a_list() {
        let error = read(&[("SRC_LIST", "SELECTED")]).expect_err("there is no list");
        assert!(error.to_string().starts_with("SELECTED_IMAGE_PARAM"), "{error}");
    }
}
