//! The sources that the stack's parameters allow. A person who can start an execution can only copy from these.

use glob::Pattern;

use crate::Result;
use crate::config::{Environment, SourceConfig, invalid};
use crate::ecr::{EcrHost, is_account};
use crate::reference::Repository;

/// The sources that may be read.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Empty for all.
    sources: Vec<Source>,
    /// The accounts whose private ECR registries may be read; `None` if the source is one ECR registry.
    ecr_accounts: Option<Vec<String>>,
}

#[derive(Clone, Debug)]
struct Source {
    registry: Pattern,
    repository: Pattern,
}

impl Allowed {
    /// `ALLOWED_SOURCES`: registries, or repositories in them, by glob: `docker.io/library/*,quay.io`. `SRC_ECR_ACCOUNTS`: the
    /// accounts whose private ECR registries an image list can name. Both are separated by commas.
    ///
    /// # Errors
    /// If a glob or an account is invalid.
    pub fn read(environment: &Environment, source: &SourceConfig) -> Result<Self> {
        let sources = environment.items("ALLOWED_SOURCES").map(|item| {
            let (registry, repository) = item.split_once('/').unwrap_or((item, ""));
            let below = if repository.is_empty() || repository.ends_with('/') { "*" } else { "" };
            let glob = |text: &str| {
                let problem = |error: glob::PatternError| format!("invalid glob {text:?}: {}", error.msg);
                Pattern::new(text).map_err(|error| invalid("ALLOWED_SOURCES", item, &problem(error)))
            };
            Ok(Source { registry: glob(registry)?, repository: glob(&format!("{repository}{below}"))? })
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        // An empty list allows all sources. A value such as "," is probably a mistake.
        if let Some(value) = environment.optional("ALLOWED_SOURCES").filter(|_| sources.is_empty()) {
            return Err(invalid("ALLOWED_SOURCES", value, "it names no source. Leave it blank to allow all sources."));
        }
        let ecr_accounts: Vec<_> = environment.items("SRC_ECR_ACCOUNTS").map(str::to_owned).collect();
        if let Some(wrong) = ecr_accounts.iter().find(|account| !is_account(account)) {
            let problem = "expected AWS account IDs of 12 digits, separated by commas.";
            return Err(invalid("SRC_ECR_ACCOUNTS", wrong, problem));
        }
        let ecr_accounts = matches!(source, SourceConfig::Public(_)).then_some(ecr_accounts);
        Ok(Self { sources, ecr_accounts })
    }

    /// Checks that a repository may be read.
    ///
    /// # Errors
    /// A message with the parameter that does not allow it.
    pub fn check(&self, repository: &Repository) -> Result<(), String> {
        let matches = |source: &Source| {
            source.registry.matches(repository.registry.as_str()) && source.repository.matches(repository.name.as_str())
        };
        if !self.sources.is_empty() && !self.sources.iter().any(matches) {
            return Err(format!("allowedSources does not allow {repository}."));
        }
        match (EcrHost::of(&repository.registry), &self.ecr_accounts) {
            (Some(EcrHost { account, .. }), Some(accounts)) if !accounts.iter().any(|it| it == account) => {
                Err(format!(
                    "{} is a private ECR registry. To copy images from it, add its account to srcEcrAccounts.",
                    repository.registry
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PublicConfig, RegistryConfig};

    fn public(variables: &[(&str, &str)]) -> Result<Allowed> {
        Allowed::read(&variables.iter().copied().collect(), &SourceConfig::Public(PublicConfig::default()))
    }

    fn repository(text: &str) -> Repository {
        text.parse().expect(text)
    }

    #[test]
    fn registry_and_repository_must_both_match_their_own_glob() {
        let allowed =
            public(&[("ALLOWED_SOURCES", "docker.io/library/, quay.io,*.gcr.io/team/app-*")]).expect("they are globs");
        for name in ["docker.io/library/nginx", "quay.io/a/b", "eu.gcr.io/team/app-1"] {
            assert_eq!(allowed.check(&repository(name)), Ok(()), "{name}");
        }
        for name in
            ["docker.io/evil/nginx", "quay.io.evil.example/a", "evil.example/x.gcr.io/team/app-1", "eu.gcr.io/team/db"]
        {
            let error = allowed.check(&repository(name)).expect_err(name);
            assert_eq!(error, format!("allowedSources does not allow {name}."));
        }
        assert_eq!(public(&[]).expect("both are optional").check(&repository("anywhere.example/x")), Ok(()));
        for wrong in ["docker.io/[", ",", " , \n"] {
            assert!(public(&[("ALLOWED_SOURCES", wrong)]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn private_ecr_registries_are_allowed_by_account_whatever_their_host() {
        let allowed = public(&[("SRC_ECR_ACCOUNTS", "602401143452")]).expect("it is an account");
        for name in [
            "602401143452.dkr.ecr.us-west-2.amazonaws.com/a",
            "602401143452.dkr-ecr.eu-west-1.on.aws/a",
            "public.ecr.aws/a",
        ] {
            assert_eq!(allowed.check(&repository(name)), Ok(()), "{name}");
        }
        for name in ["111111111111.dkr.ecr.us-west-2.amazonaws.com/a", "111111111111.dkr-ecr.us-west-2.on.aws/a"] {
            assert!(allowed.check(&repository(name)).expect_err(name).contains("srcEcrAccounts"), "{name}");
            assert!(public(&[]).expect("both are optional").check(&repository(name)).is_err(), "{name}");
        }
        assert!(public(&[("SRC_ECR_ACCOUNTS", "60240114345")]).is_err());
    }

    #[test]
    fn an_ecr_source_is_allowed_because_the_stack_names_it() {
        let source = SourceConfig::Ecr(RegistryConfig { region: None, account: None, credential: None });
        let allowed = Allowed::read(&Environment::default(), &source).expect("both are optional");
        assert_eq!(allowed.check(&repository("111111111111.dkr.ecr.us-west-2.amazonaws.com/a")), Ok(()));
    }
}
