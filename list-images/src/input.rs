//! The input of an execution, and the selected images.

use aws_sdk_ssm::Client;
use serde::Deserialize;
use serde_json::Value;
use shared::reference::RegistryHost;
use shared::selection::{self, Selection};
use shared::{Error, Result};

use crate::config::{Config, Scope};

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Input {
    /// An image list that replaces the stack's selection.
    pub src_image_list: Option<String>,
    /// Report what a run would copy, and copy nothing.
    pub dry_run: bool,
    /// The console suggests an input with this field.
    #[serde(alias = "Comment")]
    comment: Value,
    /// A pushed image started the execution. Only the state machine uses this.
    pushed: Value,
}

impl Input {
    /// Parses an execution's input. An event of EventBridge, which starts most executions, is the default input. Unknown fields
    /// are errors, so that a misspelled `dryRun` does not start a copy.
    pub fn parse(input: &Value) -> Result<Self> {
        let has_field = ["srcImageList", "dryRun"].iter().any(|field| input.get(field).is_some());
        // The state machine does not treat an input with these fields as an event.
        if input.is_null() || input.get("detail-type").is_some() && !has_field {
            return Ok(Self::default());
        }
        serde_json::from_value(input.clone()).map_err(|error| Error::Configuration {
            parameter: "The execution's input".into(),
            value: input.to_string(),
            problem: format!(
                r#"expected {{}}, or JSON like {{"srcImageList": "nginx:1.27", "dryRun": true}}: {error}"#
            ),
        })
    }

    /// Checks that images are selected, and that the input is allowed to select them.
    pub fn check(&self, config: &Config) -> Result<()> {
        if self.src_image_list.is_some() && !config.allows_input_images {
            return Err(Error::NotAllowed {
                subject: "srcImageList in the execution's input".into(),
                problem: "allowInputImages is false, so only the stack's parameters select images.".into(),
            });
        }
        if self.src_image_list.is_some() || !matches!(config.scope, Scope::Nothing) {
            return Ok(());
        }
        Err(Error::Configuration {
            parameter: "srcList".into(),
            value: "ALL".into(),
            problem: "only an ECR registry can be copied as a whole. Set srcList to SELECTED, and list images in srcImageList."
                .into(),
        })
    }
}

/// The selected images, or `None` for all.
pub async fn select(
    config: &Config,
    input: &Input,
    ssm: &Client,
    source: Option<&RegistryHost>,
) -> Result<Option<Selection>> {
    if let Some(list) = &input.src_image_list {
        return selection::parse([("the execution's srcImageList", list.as_str())], source).map(Some);
    }
    match &config.scope {
        Scope::All | Scope::Nothing => Ok(None),
        Scope::Selected(parameter) => {
            let parts = selection::read(ssm, parameter).await?;
            selection::parse(parts.iter().map(|(name, list)| (name.as_str(), list.as_str())), source).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ssm::operation::get_parameter::{GetParameterError, GetParameterOutput};
    use aws_sdk_ssm::operation::get_parameters_by_path::GetParametersByPathOutput;
    use aws_sdk_ssm::types::Parameter;
    use aws_sdk_ssm::types::error::ParameterNotFound;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_input_can_select_images_and_request_a_dry_run() {
        let input = Input::parse(&json!({ "srcImageList": "nginx:1.27", "dryRun": true })).expect("it is valid");
        assert_eq!((input.src_image_list.as_deref(), input.dry_run), (Some("nginx:1.27"), true));
    }

    #[test]
    fn an_event_and_a_suggested_input_are_the_default_input() {
        for input in [
            Value::Null,
            json!({}),
            json!({ "Comment": "Insert your JSON here" }),
            json!({ "pushed": true }),
            json!({ "version": "0", "detail-type": "Scheduled Event", "source": "aws.events", "detail": {} }),
        ] {
            let input = Input::parse(&input).expect("it is valid");
            assert_eq!((input.src_image_list, input.dry_run), (None, false));
        }
    }

    #[test]
    fn an_invalid_input_is_an_error_with_the_field() {
        for (input, problem) in [
            (json!({ "dryrun": true }), "unknown field `dryrun`"),
            (json!({ "dryRun": "yes" }), "invalid type"),
            (json!("nginx:1.27"), "invalid type"),
        ] {
            let error = Input::parse(&input).expect_err("it is invalid");
            assert!(error.to_string().contains(problem), "{error}");
            assert_eq!(error.name(), "InvalidConfiguration");
        }
    }

    fn config(parameter: &str) -> Config {
        let environment = [
            ("SOURCE_TYPE", "Public"),
            ("SRC_LIST", "SELECTED"),
            ("SELECTED_IMAGE_PARAM", parameter),
            ("PLAN_BUCKET", "bucket"),
        ];
        Config::read(&environment.into_iter().collect()).expect("it is complete")
    }

    fn parameter(name: &str, list: &str) -> Parameter {
        Parameter::builder().name(name).value(list).build()
    }

    fn held(list: &'static str) -> Rule {
        mock!(Client::get_parameter)
            .then_output(move || GetParameterOutput::builder().parameter(parameter("/list", list)).build())
    }

    fn below(lists: &'static [(&str, &str)]) -> Rule {
        mock!(Client::get_parameters_by_path)
            .match_requests(|request| request.path() == Some("/list") && request.recursive() == Some(true))
            .then_output(|| {
                let lists = lists.iter().map(|(name, list)| parameter(name, list)).collect();
                GetParametersByPathOutput::builder().set_parameters(Some(lists)).build()
            })
    }

    fn missing() -> Rule {
        mock!(Client::get_parameter)
            .then_error(|| GetParameterError::ParameterNotFound(ParameterNotFound::builder().build()))
    }

    async fn selected(name: &str, rules: &[&Rule]) -> Result<Vec<String>> {
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, rules);
        let selection = select(&config(name), &Input::default(), &ssm, None).await?.expect("it is a selection");
        Ok(selection.keys().map(|repository| repository.name.to_string()).collect())
    }

    #[test]
    fn all_images_of_a_registry_other_than_ecr_are_an_error_unless_the_input_selects_images() {
        let environment = [("SOURCE_TYPE", "Public"), ("SRC_LIST", "ALL"), ("PLAN_BUCKET", "bucket")];
        let config = Config::read(&environment.into_iter().collect()).expect("it is complete");
        let error = Input::default().check(&config).expect_err("it would list nothing");
        assert!(error.to_string().starts_with(r#"srcList is "ALL": "#), "{error}");
        let input = Input { src_image_list: Some("nginx".into()), ..Input::default() };
        input.check(&config).expect("it selects an image");
    }

    #[test]
    fn an_input_that_selects_images_is_refused_if_the_stack_does_not_allow_it() {
        let environment = [
            ("SOURCE_TYPE", "Public"),
            ("SRC_LIST", "SELECTED"),
            ("SELECTED_IMAGE_PARAM", "/list"),
            ("PLAN_BUCKET", "bucket"),
            ("ALLOW_INPUT_IMAGES", "false"),
        ];
        let config = Config::read(&environment.into_iter().collect()).expect("it is complete");
        let input = Input { src_image_list: Some("nginx".into()), dry_run: true, ..Input::default() };
        let error = input.check(&config).expect_err("not even in a dry run");
        assert_eq!(error.name(), "NotAllowed");
        assert!(error.to_string().contains("allowInputImages"), "{error}");
        Input { dry_run: true, ..Input::default() }.check(&config).expect("it selects no images");
    }

    #[test]
    fn an_input_cannot_delay_other_executions() {
        Input::parse(&json!({ "notBefore": "2099-01-01T00:00:00Z" })).expect_err("it is unknown");
        Input::parse(&json!({ "pushed": true })).expect("the state machine waits for a fixed time");
        Input::parse(&json!({ "detail-type": 1, "dryRun": true }))
            .expect_err("it is an event with a field of an input");
    }

    #[test]
    fn the_guides_inputs_are_valid() {
        let guide = include_str!("../../docs/selecting.md");
        let examples: Vec<_> = guide.split("```input\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(examples.len(), 2);
        for example in examples {
            Input::parse(&serde_json::from_str(example).expect("it is JSON")).expect("it is an input");
        }
    }

    #[tokio::test]
    async fn the_list_includes_all_parameters_below_the_path() {
        let (list, more) =
            (held("quay.io/a/a:1"), below(&[("/list/10", "quay.io/a/c:1"), ("/list/2", "quay.io/a/b:1")]));
        assert_eq!(selected("/list", &[&list, &more]).await.expect("they are lists"), ["a/a", "a/b", "a/c"]);
        let (none, more) = (missing(), below(&[("/list/1", "quay.io/a/b:1")]));
        assert_eq!(selected("/list", &[&none, &more]).await.expect("it is a list"), ["a/b"]);
    }

    #[tokio::test]
    async fn a_name_that_is_not_a_path_is_a_single_parameter() {
        assert_eq!(selected("list", &[&held("quay.io/a/a:1")]).await.expect("it is a list"), ["a/a"]);
    }

    #[tokio::test]
    async fn the_error_of_an_invalid_entry_has_the_name_of_its_parameter() {
        let (list, more) = (held("nginx"), below(&[("/list/10", "a:1,B:1"), ("/list/2", "a:2")]));
        let error = selected("/list", &[&list, &more]).await.expect_err("it is not a reference");
        assert!(error.to_string().starts_with(r#""B:1" (entry 2 of /list/10): "#), "{error}");
    }

    #[tokio::test]
    async fn a_missing_parameter_is_an_error_with_its_name() {
        let error = selected("/list", &[&missing(), &below(&[])]).await.expect_err("it does not exist");
        assert!(error.to_string().starts_with(r#""/list": the Parameter Store has no parameter"#), "{error}");
    }

    #[tokio::test]
    async fn the_list_in_the_input_replaces_that_of_the_stack() {
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&missing()]);
        let input = Input { src_image_list: Some("quay.io/x/y:1".into()), ..Input::default() };
        let selection = select(&config("/list"), &input, &ssm, None).await.expect("it is a list").expect("it selects");
        assert_eq!(selection.keys().map(ToString::to_string).collect::<Vec<_>>(), ["quay.io/x/y"]);
    }
}
