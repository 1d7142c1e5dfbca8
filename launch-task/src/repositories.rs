//! The settings of new repositories at the destination.

use aws_sdk_ssm::Client;
use serde_json::Value;
use shared::config::{Environment, invalid};
use shared::ecr::{EcrHost, ImageTagMutability, Registry, RepositorySettings};
use shared::plan::RepositoryCopy;
use shared::{Error, Result};

/// The stack's parameters for new repositories.
#[derive(Clone, Debug)]
pub struct Config {
    /// The settings without policies.
    settings: RepositorySettings,
    /// The parameter of the Parameter Store with the lifecycle policy.
    lifecycle_policy: Option<String>,
    /// The parameter of the Parameter Store with the repository policy.
    policy: Option<String>,
    /// Whether the settings of an ECR source are copied.
    from_source: bool,
    /// Whether repository policies are copied, too. A person who can push to the source can then push to the destination.
    policy_from_source: bool,
}

impl Config {
    /// `TAG_MUTABILITY`, `SCAN_ON_PUSH`, `REPOSITORY_KMS_KEY`, `REPOSITORY_TAGS`, `COPY_REPOSITORY_SETTINGS`,
    /// `COPY_REPOSITORY_POLICY`, and the names of the parameters with policies, `LIFECYCLE_POLICY_PARAM` and
    /// `REPOSITORY_POLICY_PARAM`.
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
        for tag in environment.items("REPOSITORY_TAGS") {
            let pair = tag.split_once('=').filter(|(key, _)| !key.trim().is_empty());
            let (key, value) = pair.ok_or_else(|| {
                invalid("REPOSITORY_TAGS", tags, &format!("{tag:?} is not a tag. Expected key=value,key=value."))
            })?;
            settings = settings.with_tag(key.trim(), value.trim());
        }
        Ok(Self {
            settings,
            lifecycle_policy: environment.optional("LIFECYCLE_POLICY_PARAM").map(str::to_owned),
            policy: environment.optional("REPOSITORY_POLICY_PARAM").map(str::to_owned),
            from_source: environment.flag("COPY_REPOSITORY_SETTINGS", false)?,
            policy_from_source: environment.flag("COPY_REPOSITORY_POLICY", false)?,
        })
    }

    /// Whether [`settings`](Self::settings) needs the source.
    pub fn copies_source(&self) -> bool {
        self.from_source
    }

    /// The settings of the destination of `copy`: those of `source`, if it is given, and otherwise those of the parameters. A
    /// repository policy is never copied from another account.
    pub async fn settings(
        &self,
        ssm: &Client,
        source: Option<&Registry>,
        copy: &RepositoryCopy,
    ) -> Result<RepositorySettings> {
        let configured = RepositorySettings {
            lifecycle_policy: read(ssm, self.lifecycle_policy.as_deref()).await?,
            policy: read(ssm, self.policy.as_deref()).await?,
            ..self.settings.clone()
        };
        let account = |host| EcrHost::of(host).map(|host| host.account);
        let is_same_account = account(&copy.source.registry) == account(&copy.destination.registry);
        let at_source = match source {
            Some(source) => source.settings(&copy.source.name, self.policy_from_source && is_same_account).await?,
            None => None,
        };
        Ok(match at_source {
            None => configured,
            Some(at_source) => RepositorySettings {
                kms_key: configured.kms_key,
                lifecycle_policy: at_source.lifecycle_policy.or(configured.lifecycle_policy),
                policy: at_source.policy.or(configured.policy),
                tags: if at_source.tags.is_empty() { configured.tags } else { at_source.tags },
                ..at_source
            },
        })
    }
}

/// Reads a policy from the Parameter Store. It is checked here, before ECR creates a repository and rejects its policy.
async fn read(ssm: &Client, parameter: Option<&str>) -> Result<Option<String>> {
    let Some(name) = parameter else { return Ok(None) };
    let answer = ssm.get_parameter().name(name).send().await.map_err(Error::aws("ssm:GetParameter", name))?;
    let text = answer.parameter.and_then(|parameter| parameter.value).unwrap_or_default();
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(_)) => Ok(Some(text)),
        _ => Err(Error::Configuration {
            parameter: name.to_owned(),
            value: text,
            problem: "a policy must be a JSON object.".into(),
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

    fn copy(account: &str) -> RepositoryCopy {
        let repository =
            |account: &str| format!("{account}.dkr.ecr.us-west-2.amazonaws.com/app").parse().expect(account);
        let (source, destination) = (repository(account), repository("111111111111"));
        RepositoryCopy { source, destination, image: "app".parse().expect("it is a name"), images: Vec::new() }
    }

    async fn settings(variables: &[(&str, &str)], policy: &'static str) -> Result<RepositorySettings> {
        let rule = mock!(Client::get_parameter).then_output(move || {
            GetParameterOutput::builder().parameter(Parameter::builder().value(policy).build()).build()
        });
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&rule]);
        config(variables)?.settings(&ssm, None, &copy("222222222222")).await
    }

    #[tokio::test]
    async fn without_parameters_a_repository_has_the_default_settings() {
        assert_eq!(settings(&[], "").await.expect("nothing is asked for"), RepositorySettings::default());
    }

    #[tokio::test]
    async fn parameters_become_the_settings_of_a_repository() {
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
    async fn a_policy_is_copied_only_on_request_and_never_from_another_account() {
        use aws_sdk_ecr::Client as Ecr;
        use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesOutput;
        use aws_sdk_ecr::operation::get_lifecycle_policy::GetLifecyclePolicyOutput;
        use aws_sdk_ecr::operation::get_repository_policy::GetRepositoryPolicyOutput;
        use aws_sdk_ecr::operation::list_tags_for_resource::ListTagsForResourceOutput;

        let described = mock!(Ecr::describe_repositories).then_output(|| {
            let repository = aws_sdk_ecr::types::Repository::builder().repository_name("app").repository_arn("arn:app");
            DescribeRepositoriesOutput::builder().repositories(repository.build()).build()
        });
        let lifecycle = mock!(Ecr::get_lifecycle_policy).then_output(|| GetLifecyclePolicyOutput::builder().build());
        let tags = mock!(Ecr::list_tags_for_resource).then_output(|| ListTagsForResourceOutput::builder().build());
        let policy = mock!(Ecr::get_repository_policy)
            .then_output(|| GetRepositoryPolicyOutput::builder().policy_text(r#"{"Statement": []}"#).build());
        let rules = [&described, &lifecycle, &tags, &policy];
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, []);
        for (flag, account, copied) in
            [("false", "111111111111", false), ("true", "111111111111", true), ("true", "222222222222", false)]
        {
            let source = Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, rules), None);
            let config = config(&[("COPY_REPOSITORY_SETTINGS", "true"), ("COPY_REPOSITORY_POLICY", flag)])
                .expect("they are flags");
            let settings = config.settings(&ssm, Some(&source), &copy(account)).await.expect("ECR answers");
            assert_eq!(settings.policy.is_some(), copied, "{flag} from {account}");
        }
        assert_eq!(policy.num_calls(), 1, "it is read only if it is used");
    }

    #[tokio::test]
    async fn the_error_of_an_invalid_parameter_has_its_name_and_value() {
        for (variable, value, problem) in [
            ("TAG_MUTABILITY", "SOMETIMES", r#"tagMutability is "SOMETIMES": expected MUTABLE or IMMUTABLE"#),
            ("REPOSITORY_TAGS", "team", r#"repositoryTags is "team": "team" is not a tag. Expected key=value"#),
            ("REPOSITORY_TAGS", "=x", r#"repositoryTags is "=x": "=x" is not a tag. Expected key=value"#),
        ] {
            let error = config(&[(variable, value)]).expect_err(value);
            assert!(error.to_string().starts_with(problem), "{error}");
        }
        let error = settings(&[("REPOSITORY_POLICY_PARAM", "/stack/RepositoryPolicy")], "allow all").await;
        assert!(
            error.expect_err("it is not JSON").to_string().starts_with(r#"/stack/RepositoryPolicy is "allow all""#)
        );
    }

    #[test]
    fn the_source_is_asked_only_where_that_is_asked_for() {
        for (flag, asked) in [("true", true), ("false", false)] {
            assert_eq!(config(&[("COPY_REPOSITORY_SETTINGS", flag)]).expect("it is a flag").copies_source(), asked);
        }
    }

    #[tokio::test]
    async fn what_the_sources_repository_does_not_have_is_as_configured() {
        use aws_sdk_ecr::Client as Ecr;
        use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesOutput;
        use aws_sdk_ecr::operation::get_lifecycle_policy::GetLifecyclePolicyOutput;
        use aws_sdk_ecr::operation::list_tags_for_resource::ListTagsForResourceOutput;

        let described = mock!(Ecr::describe_repositories).then_output(|| {
            let repository = aws_sdk_ecr::types::Repository::builder().repository_name("app").repository_arn("arn:app");
            let repository = repository.image_tag_mutability(ImageTagMutability::Immutable);
            DescribeRepositoriesOutput::builder().repositories(repository.build()).build()
        });
        let lifecycle = mock!(Ecr::get_lifecycle_policy).then_output(|| GetLifecyclePolicyOutput::builder().build());
        let tags = mock!(Ecr::list_tags_for_resource).then_output(|| ListTagsForResourceOutput::builder().build());
        let source =
            Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, [&described, &lifecycle, &tags]), None);
        let parameter = mock!(Client::get_parameter).then_compute_output(|request| {
            let value = serde_json::json!({ "name": request.name() }).to_string();
            GetParameterOutput::builder().parameter(Parameter::builder().value(value).build()).build()
        });
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&parameter]);
        let config = config(&[
            ("COPY_REPOSITORY_SETTINGS", "true"),
            ("REPOSITORY_KMS_KEY", "arn:key"),
            ("REPOSITORY_TAGS", "team=platform"),
            ("LIFECYCLE_POLICY_PARAM", "lifecycle"),
            ("REPOSITORY_POLICY_PARAM", "policy"),
        ]);
        let settings = config.expect("it is good").settings(&ssm, Some(&source), &copy("222222222222")).await;
        let expected = RepositorySettings {
            mutability: ImageTagMutability::Immutable,
            kms_key: Some("arn:key".into()),
            lifecycle_policy: Some(r#"{"name":"lifecycle"}"#.into()),
            policy: Some(r#"{"name":"policy"}"#.into()),
            ..RepositorySettings::default().with_tag("team", "platform")
        };
        assert_eq!(settings.expect("ECR answers"), expected);
    }
}
