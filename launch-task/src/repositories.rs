//! How repositories that the destination lacks are created.

use aws_sdk_ssm::Client;
use serde_json::Value;
use shared::config::Environment;
use shared::ecr::{ImageTagMutability, Registry, RepositorySettings};
use shared::plan::Copy;
use shared::{Error, Result};

/// The settings of new repositories, as the stack's parameters have them.
#[derive(Clone, Debug)]
pub struct Config {
    /// Those that need no call.
    settings: RepositorySettings,
    /// The parameter of the Parameter Store with the lifecycle policy.
    lifecycle_policy: Option<String>,
    /// The parameter with the repository policy.
    policy: Option<String>,
    /// Whether an ECR source's repositories are the model.
    from_source: bool,
}

impl Config {
    /// `TAG_MUTABILITY`, `SCAN_ON_PUSH`, `REPOSITORY_KMS_KEY`, `REPOSITORY_TAGS`, `COPY_REPOSITORY_SETTINGS`, and the names of
    /// the parameters with policies, `LIFECYCLE_POLICY_PARAM` and `REPOSITORY_POLICY_PARAM`.
    ///
    /// # Errors
    /// When one has a value that cannot be used.
    pub fn read(environment: &Environment) -> Result<Self> {
        let mutability = match environment.optional("TAG_MUTABILITY") {
            None => ImageTagMutability::Mutable,
            Some(_) => environment.choice(
                "TAG_MUTABILITY",
                &[("MUTABLE", ImageTagMutability::Mutable), ("IMMUTABLE", ImageTagMutability::Immutable)],
            )?,
        };
        let mut settings = RepositorySettings {
            mutability,
            scan_on_push: environment.flag("SCAN_ON_PUSH", false)?,
            kms_key: environment.optional("REPOSITORY_KMS_KEY").map(str::to_owned),
            ..RepositorySettings::default()
        };
        let tags = environment.optional("REPOSITORY_TAGS").unwrap_or_default();
        for tag in tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            let pair = tag.split_once('=').filter(|(key, _)| !key.trim().is_empty());
            let (key, value) = pair.ok_or_else(|| Error::Configuration {
                variable: "REPOSITORY_TAGS".into(),
                value: tags.into(),
                problem: format!("{tag:?} is no tag; expected key=value,key=value"),
            })?;
            settings = settings.with_tag(key.trim(), value.trim());
        }
        Ok(Self {
            settings,
            lifecycle_policy: environment.optional("LIFECYCLE_POLICY_PARAM").map(str::to_owned),
            policy: environment.optional("REPOSITORY_POLICY_PARAM").map(str::to_owned),
            from_source: environment.flag("COPY_REPOSITORY_SETTINGS", false)?,
        })
    }

    /// Whether the source is to be asked.
    #[must_use]
    pub fn copies_source(&self) -> bool {
        self.from_source
    }

    /// The settings of the repository that `copy` goes to. Those of `source` come first, where there is one, and what it
    /// does not have is as configured.
    ///
    /// # Errors
    /// When a policy cannot be read, or is not JSON; when the source does not tell.
    pub async fn settings(&self, ssm: &Client, source: Option<&Registry>, copy: &Copy) -> Result<RepositorySettings> {
        let configured = RepositorySettings {
            lifecycle_policy: read(ssm, self.lifecycle_policy.as_deref()).await?,
            policy: read(ssm, self.policy.as_deref()).await?,
            ..self.settings.clone()
        };
        let model = match source {
            Some(source) => source.settings(copy.source_name()).await?,
            None => None,
        };
        Ok(match model {
            None => configured,
            Some(model) => RepositorySettings {
                kms_key: configured.kms_key,
                lifecycle_policy: model.lifecycle_policy.or(configured.lifecycle_policy),
                policy: model.policy.or(configured.policy),
                tags: if model.tags.is_empty() { configured.tags } else { model.tags },
                ..model
            },
        })
    }
}

/// A policy that a parameter holds. What is not JSON is refused before a repository is created that would lack it.
async fn read(ssm: &Client, parameter: Option<&str>) -> Result<Option<String>> {
    let Some(name) = parameter else { return Ok(None) };
    let answer = ssm.get_parameter().name(name).send().await.map_err(Error::aws("ssm:GetParameter", name))?;
    let text = answer.parameter.and_then(|parameter| parameter.value).unwrap_or_default();
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(_)) => Ok(Some(text)),
        _ => Err(Error::Configuration {
            variable: name.to_owned(),
            value: text,
            problem: "a policy is a JSON object".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ssm::operation::get_parameter::GetParameterOutput;
    use aws_sdk_ssm::types::Parameter;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};

    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Config> {
        Config::read(&variables.iter().copied().collect())
    }

    async fn settings(variables: &[(&str, &str)], policy: &'static str) -> Result<RepositorySettings> {
        let rule = mock!(Client::get_parameter).then_output(move || {
            GetParameterOutput::builder().parameter(Parameter::builder().value(policy).build()).build()
        });
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&rule]);
        config(variables)?.settings(&ssm, None, &Copy::default()).await
    }

    #[tokio::test]
    async fn without_settings_a_repository_is_as_ecr_makes_it() {
        assert_eq!(settings(&[], "").await.expect("nothing is asked for"), RepositorySettings::default());
    }

    #[tokio::test]
    async fn settings_are_as_the_parameters_have_them() {
        let variables = [
            ("TAG_MUTABILITY", "IMMUTABLE"),
            ("SCAN_ON_PUSH", "true"),
            ("REPOSITORY_KMS_KEY", "arn:key"),
            ("REPOSITORY_TAGS", "team=platform, env=prod"),
            ("LIFECYCLE_POLICY_PARAM", "/stack/LifecyclePolicy"),
        ];
        let settings = settings(&variables, r#"{"rules": []}"#).await.expect("they are good");
        let expected = RepositorySettings {
            mutability: ImageTagMutability::Immutable,
            scan_on_push: true,
            kms_key: Some("arn:key".into()),
            lifecycle_policy: Some(r#"{"rules": []}"#.into()),
            ..RepositorySettings::default().with_tag("team", "platform").with_tag("env", "prod")
        };
        assert_eq!(settings, expected);
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named() {
        for (variable, value, problem) in [
            ("TAG_MUTABILITY", "SOMETIMES", "expected MUTABLE or IMMUTABLE"),
            ("REPOSITORY_TAGS", "team", "expected key=value"),
            ("REPOSITORY_TAGS", "=x", "expected key=value"),
        ] {
            let error = config(&[(variable, value)]).expect_err(value);
            assert!(error.to_string().starts_with(variable) && error.to_string().contains(problem), "{error}");
        }
        let error = settings(&[("REPOSITORY_POLICY_PARAM", "/stack/RepositoryPolicy")], "allow all").await;
        assert!(error.expect_err("it is no JSON").to_string().starts_with(r#"/stack/RepositoryPolicy is "allow all""#));
    }
}
