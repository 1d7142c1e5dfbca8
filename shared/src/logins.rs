//! The logins to the registries that images come from.

use aws_config::SdkConfig;

use crate::Result;
use crate::config::SourceConfig;
use crate::credentials::{Identity, Stores, Users};
use crate::ecr::{Login, Registry, account_and_region};

/// Logs in to the registries that images come from.
pub struct SourceLogins<'a> {
    base: &'a SdkConfig,
    source: Source,
}

enum Source {
    Ecr(Registry),
    Public(Identity),
}

impl<'a> SourceLogins<'a> {
    /// As the source's credential has it.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn connect(base: &'a SdkConfig, stores: &Stores, source: &SourceConfig) -> Result<Self> {
        let source = match source {
            SourceConfig::Ecr(registry) => Source::Ecr(Registry::connect(base, stores, registry).await?),
            SourceConfig::Public(credential) => Source::Public(stores.identity(credential.as_ref()).await?),
        };
        Ok(Self { base, source })
    }

    /// The users that the credential is for, if that is what it is.
    #[must_use]
    pub fn users(&self) -> Option<&Users> {
        match &self.source {
            Source::Public(Identity::Users(users)) => Some(users),
            _ => None,
        }
    }

    /// The login to the registry at `host`; `None` where it is asked anonymously. A registry of ECR always asks for one:
    /// it gets the access key's or the role's, or else, if the credential holds none for it, that of the Lambda's role.
    ///
    /// # Errors
    /// When ECR does not hand out a token.
    pub async fn to(&self, host: &str) -> Result<Option<Login>> {
        let identity = match &self.source {
            Source::Ecr(registry) => return registry.login().await.map(Some),
            Source::Public(identity) => identity,
        };
        if let Identity::Users(users @ Users::Each(_)) = identity
            && let Some(login) = users.login(host)
        {
            return Ok(Some(login));
        }
        match (account_and_region(host), identity) {
            (Some((account, region)), identity) => {
                let provider = if let Identity::Aws(provider) = identity { Some(provider.clone()) } else { None };
                let registry = Registry::of(self.base, provider, Some(region.to_owned()), Some(account.to_owned()));
                // The name by which the image calls it, of those that the registry has.
                Ok(Some(Login { host: host.to_owned(), ..registry.login().await? }))
            }
            (None, Identity::Users(users)) => Ok(users.login(host)),
            (None, Identity::Itself | Identity::Aws(_)) => Ok(None),
        }
    }
}
