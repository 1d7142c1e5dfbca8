//! The parameters of list-images.

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
    pub(crate) source: SourceConfig,
    pub(crate) allowed: Allowed,
    pub(crate) scope: Scope,
    /// Whether an execution's input can select other images.
    pub(crate) allows_input_images: bool,
    pub(crate) options: Options,
    pub(crate) destination: RegistryConfig,
    /// The prefix of all repositories at the destination.
    pub(crate) prefix: Option<RepositoryName>,
    pub(crate) naming: Naming,
    /// 0 for no limit.
    pub(crate) min_images: usize,
    /// `None` for no limit.
    pub(crate) max_images: Option<u64>,
    /// `None` for no limit. Only known sizes count.
    pub(crate) max_bytes: Option<u64>,
    pub(crate) plan_bucket: String,
    /// The ARN of the state machine, one of whose executions runs at a time; `None` to run them all.
    pub(crate) state_machine: Option<String>,
    /// `None` to leave outdated rows unchanged.
    pub(crate) image_table: Option<String>,
    pub(crate) packing: Packing,
}

/// The images that a run copies.
#[derive(Debug)]
pub(crate) enum Scope {
    All,
    /// The image list in this parameter of the Parameter Store, and in those below its path.
    Selected(String),
    /// Only those in an execution's input, because a registry other than ECR cannot be listed as a whole.
    Nothing,
}

impl Config {
    /// Reads the configuration.
    ///
    /// # Errors
    /// If a variable is missing or invalid, or contradicts another one.
    pub fn read(environment: &Environment) -> Result<Self> {
        let source = SourceConfig::read(environment)?;
        let rules = Rules::read(environment)?;
        let all = environment.choice("SRC_LIST", &[("ALL", true), ("SELECTED", false)])?;
        let scope = match (all, &source) {
            (true, SourceConfig::Ecr(_)) => Scope::All,
            (true, SourceConfig::Public(_)) => Scope::Nothing,
            (false, _) if rules.select_repositories() => {
                let problem = "includeRepositories and excludeRepositories require ALL. Leave them blank.";
                return Err(config::invalid("SRC_LIST", "SELECTED", problem));
            }
            (false, _) => Scope::Selected(environment.required("SELECTED_IMAGE_PARAM")?),
        };
        let at_most = |variable: &str| environment.count(variable, 0).map(|count| (count > 0).then_some(count as u64));
        Ok(Self {
            allowed: Allowed::read(environment, &source)?,
            source,
            scope,
            allows_input_images: environment.flag("ALLOW_INPUT_IMAGES", true)?,
            options: Options {
                // If signatures are checked, the task copies them with their images, and other referrers are not signed.
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
            plan_bucket: environment.required("PLAN_BUCKET")?,
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

/// `PLATFORMS`: `all`, `system` for the platform of the tasks, or one platform.
fn platform(environment: &Environment) -> Result<Option<Platform>> {
    match environment.optional("PLATFORMS") {
        None | Some("all") => Ok(None),
        Some("system") => {
            let architecture = environment.required("TASK_ARCHITECTURE")?;
            Ok(Some(Platform { os: "linux".into(), architecture, variant: None }))
        }
        Some(value) => value.parse().map(Some).map_err(|_| {
            let problem = "expected all, system or a platform such as linux/arm64 or linux/arm/v7.";
            config::invalid("PLATFORMS", value, problem)
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
    fn a_limit_of_zero_is_no_limit() {
        let config = read(&[("MAX_IMAGES", "0"), ("MAX_BYTES", "1000")]).expect("it is complete");
        assert_eq!((config.max_images, config.max_bytes), (None, Some(1_000)));
    }

    #[test]
    fn if_signatures_are_checked_untagged_images_are_not_included() {
        let config = read(&[("REQUIRES_SIGNATURES", "true")]).expect("it is complete");
        assert!(!config.options.include_untagged);
    }

    #[test]
    fn the_platform_is_all_a_named_one_or_that_of_the_tasks() {
        let platform = |value: &str| {
            read(&[("PLATFORMS", value), ("TASK_ARCHITECTURE", "arm64")]).map(|config| config.options.platform)
        };
        assert_eq!(platform("all").expect("it is complete"), None);
        let named = platform("linux/arm/v7").expect("it is complete").expect("it is valid");
        assert_eq!(named.to_string(), "linux/arm/v7");
        let system = platform("system").expect("it is complete").expect("it is valid");
        assert_eq!(system.to_string(), "linux/arm64");
    }

    #[test]
    fn the_error_of_an_invalid_parameter_has_its_name_and_value() {
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
    fn selected_requires_a_list_and_excludes_rules_for_repositories() {
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
