//! What the stack's parameters ask for.

use shared::Result;
use shared::allowed::Allowed;
use shared::config::{self, Environment, RegistryConfig, SourceConfig};
use shared::manifest::Platform;
use shared::naming::Naming;
use shared::reference::RepositoryName;

use crate::batches::Packing;
use crate::rules::Rules;
use crate::source::Options;

/// The configuration of list-images.
#[derive(Debug)]
pub struct Config {
    /// Where images come from.
    pub source: SourceConfig,
    /// Which sources may be read.
    pub allowed: Allowed,
    /// Which images are copied.
    pub scope: Scope,
    /// Whether an execution's input may name other images.
    pub allows_input_images: bool,
    /// What is asked of every listing.
    pub options: Options,
    /// The registry that they go to.
    pub destination: RegistryConfig,
    /// What is put in front of each repository's name there.
    pub prefix: Option<RepositoryName>,
    /// What repositories are called there.
    pub naming: Naming,
    /// The fewest images that the source must have.
    pub min_images: usize,
    /// The most images that a run copies; `None` for any number.
    pub max_images: Option<u64>,
    /// The most bytes that a run copies, as far as sizes are known; `None` for any number.
    pub max_bytes: Option<u64>,
    /// The bucket for the plan.
    pub plan_bucket: String,
    /// The ARN of the state machine whose executions wait for each other; `None` if nothing does.
    pub state_machine: Option<String>,
    /// The table with a row for each image; `None` if there is none to correct.
    pub image_table: Option<String>,
    /// How they are packed into batches.
    pub packing: Packing,
}

/// Which images of the source.
#[derive(Debug)]
pub enum Scope {
    /// All of them.
    All,
    /// Those in the list that this parameter of the Parameter Store holds, and those below its path.
    Selected(String),
    /// None, unless an execution's input says so: a registry that is not ECR cannot be listed as a whole.
    Nothing,
}

impl Config {
    /// Reads the configuration.
    ///
    /// # Errors
    /// When a variable is missing, has a value that cannot be used, or contradicts another one.
    pub fn read(environment: &Environment) -> Result<Self> {
        let source = SourceConfig::read(environment)?;
        let rules = Rules::read(environment)?;
        let all = environment.choice("SRC_LIST", &[("ALL", true), ("SELECTED", false)])?;
        let scope = match (all, &source) {
            (true, SourceConfig::Ecr(_)) => Scope::All,
            (true, SourceConfig::Public(_)) => Scope::Nothing,
            (false, _) if rules.choose_repositories() => {
                let problem = "includeRepositories and excludeRepositories are for ALL repositories. Leave them blank";
                return Err(config::invalid("SRC_LIST", "SELECTED", problem));
            }
            (false, _) => Scope::Selected(environment.required("SELECTED_IMAGE_PARAM")?.to_owned()),
        };
        let at_most = |variable: &str| environment.count(variable, 0).map(|count| (count > 0).then_some(count as u64));
        Ok(Self {
            allowed: Allowed::read(environment, &source)?,
            source,
            scope,
            allows_input_images: environment.flag("ALLOW_INPUT_IMAGES", true)?,
            options: Options {
                // Signatures come with their images where these are checked, and what else refers to them is not signed.
                include_untagged: environment.flag("INCLUDE_UNTAGGED", true)? && !rules.signed,
                platform: platform(environment)?,
                rules,
            },
            destination: RegistryConfig::destination(environment)?,
            prefix: config::prefix(environment)?,
            naming: match environment.optional("NAMING") {
                None => Naming::default(),
                Some(_) => environment.choice("NAMING", &[("plain", Naming::Plain), ("registry", Naming::Registry)])?,
            },
            min_images: environment.count("MIN_IMAGES", 0)?,
            max_images: at_most("MAX_IMAGES")?,
            max_bytes: at_most("MAX_BYTES")?,
            plan_bucket: environment.required("PLAN_BUCKET")?.to_owned(),
            state_machine: environment.optional("STATE_MACHINE").map(str::to_owned),
            image_table: environment.optional("IMAGE_TABLE").map(str::to_owned),
            packing: Packing {
                tasks: environment.count("MAX_CONCURRENCY", 10)?.max(1),
                images: environment.count("MAX_IMAGES_PER_TASK", usize::MAX)?.max(1),
                bytes: (environment.count("MIN_MIB_PER_TASK", 512)?.max(1) as u64) << 20,
                manifests_per_second: environment.count("PUT_IMAGE_RATE", 10)?.max(1) as u64,
            },
        })
    }
}

/// `PLATFORMS`: `all`, `system` for the one that the tasks run on, or a platform.
fn platform(environment: &Environment) -> Result<Option<Platform>> {
    let system = |architecture: &str| Platform { os: "linux".into(), architecture: architecture.into(), variant: None };
    match environment.optional("PLATFORMS") {
        None | Some("all") => Ok(None),
        Some("system") => environment.required("TASK_ARCHITECTURE").map(|it| Some(system(it))),
        Some(value) => value.parse().map(Some).map_err(|problem: &str| {
            config::invalid("PLATFORMS", value, &format!("expected all, system or a platform: {problem}"))
        }),
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
        assert!(matches!((config.source, config.scope), (SourceConfig::Ecr(_), Scope::All)));
        assert!(config.options.include_untagged && config.options.platform.is_none());
        assert_eq!((config.naming, config.min_images, config.packing.tasks), (Naming::Plain, 0, 10));
    }

    #[test]
    fn zero_is_no_limit() {
        let config = read(&[("MAX_IMAGES", "0"), ("MAX_BYTES", "1000")]).expect("it is complete");
        assert_eq!((config.max_images, config.max_bytes), (None, Some(1_000)));
    }

    #[test]
    fn where_signatures_are_checked_they_come_with_their_images_and_not_by_themselves() {
        let config = read(&[("REQUIRES_SIGNATURES", "true")]).expect("it is complete");
        assert!(!config.options.include_untagged);
    }

    #[test]
    fn a_platform_may_be_named_or_be_that_of_the_tasks() {
        let platform = |value: &str| {
            read(&[("PLATFORMS", value), ("TASK_ARCHITECTURE", "arm64")]).map(|config| config.options.platform)
        };
        assert_eq!(platform("all").expect("it is complete"), None);
        let named = platform("linux/arm/v7").expect("it is complete").expect("it is one");
        assert_eq!(named.to_string(), "linux/arm/v7");
        let system = platform("system").expect("it is complete").expect("it is one");
        assert_eq!(system.to_string(), "linux/arm64");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (variable, parameter, value, problem) in [
            ("PLATFORMS", "platforms", "arm64", "expected all, system or a platform"),
            ("NAMING", "naming", "flat", "expected plain or registry"),
            ("MIN_IMAGES", "minImages", "-1", "expected a whole number"),
            ("SRC_LIST", "srcList", "SOME", "expected ALL or SELECTED"),
        ] {
            let error = read(&[(variable, value)]).expect_err(value);
            assert!(error.to_string().starts_with(&format!("{parameter} is {value:?}: ")), "{error}");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn selected_needs_a_list_and_no_patterns_for_repositories() {
        let error = read(&[("SRC_LIST", "SELECTED")]).expect_err("there is no list");
        assert!(error.to_string().starts_with("SELECTED_IMAGE_PARAM"), "{error}");
        let patterns = [("SRC_LIST", "SELECTED"), ("SELECTED_IMAGE_PARAM", "/p"), ("INCLUDE_REPOSITORIES", "a/")];
        let error = read(&patterns).expect_err("they contradict each other");
        assert!(error.to_string().contains("includeRepositories"), "{error}");
    }

    #[test]
    fn what_a_task_is_worth_starting_for_is_given_in_mebibytes() {
        let bytes = |mebibytes: &str| read(&[("MIN_MIB_PER_TASK", mebibytes)]).expect("it is complete").packing.bytes;
        assert_eq!((bytes("3"), bytes("0")), (3 * 1_024 * 1_024, 1_024 * 1_024));
    }
}
