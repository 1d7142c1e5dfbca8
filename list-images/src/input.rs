//! What an execution's input asks for, and the list of selected images.

use aws_sdk_ssm::Client;
use serde::Deserialize;
use serde_json::Value;
use shared::reference::RegistryHost;
use shared::selection::{self, Selection};
use shared::{Error, Result};

use crate::config::{Config, Scope};

/// What the input of an execution may ask for, for that run.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Input {
    /// Instead of the images that the stack selects: a list of the same form.
    pub src_image_list: Option<String>,
    /// To write what would be copied, and why, and to copy nothing.
    pub dry_run: bool,
    /// The console suggests one.
    #[serde(alias = "Comment")]
    comment: Value,
    /// That images were pushed; the state machine has waited for those that follow.
    pushed: Value,
}

impl Input {
    /// Reads an execution's input. An event of EventBridge, which starts most executions, asks for nothing.
    pub fn parse(input: &Value) -> Result<Self> {
        let asks = ["srcImageList", "dryRun"].iter().any(|field| input.get(field).is_some());
        // With a field of ours it is nobody's event, and the state machine has taken it for an input.
        if input.is_null() || input.get("detail-type").is_some() && !asks {
            return Ok(Self::default());
        }
        serde_json::from_value(input.clone()).map_err(|error| Error::Configuration {
            parameter: "the execution's input".into(),
            value: input.to_string(),
            problem: format!(
                r#"{error}; expected JSON like {{"srcImageList": "nginx:1.27", "dryRun": true}}, or {{}}"#
            ),
        })
    }

    /// Checks that it is known which images are wanted, and that the input may say so.
    pub fn check(&self, config: &Config) -> Result<()> {
        if self.src_image_list.is_some() && !config.allows_input_images {
            return Err(Error::NotAllowed {
                subject: "srcImageList in the execution's input".into(),
                problem: "the stack's parameter allowInputImages is false, so a run copies what the stack selects"
                    .into(),
            });
        }
        if self.src_image_list.is_some() || !matches!(config.scope, Scope::Nothing) {
            return Ok(());
        }
        Err(Error::Configuration {
            parameter: "srcList".into(),
            value: "ALL".into(),
            problem: "only an ECR registry can be copied as a whole: choose SELECTED and give a list of images".into(),
        })
    }
}

/// The images that are selected, or `None` for all.
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
    fn the_input_may_select_images_and_ask_for_a_dry_run() {
        let input = Input::parse(&json!({ "srcImageList": "nginx:1.27", "dryRun": true })).expect("it is one");
        assert_eq!((input.src_image_list.as_deref(), input.dry_run), (Some("nginx:1.27"), true));
    }

    #[test]
    fn what_starts_an_execution_by_itself_asks_for_nothing() {
        for input in [
            Value::Null,
            json!({}),
            json!({ "Comment": "Insert your JSON here" }),
            json!({ "pushed": true }),
            json!({ "version": "0", "detail-type": "Scheduled Event", "source": "aws.events", "detail": {} }),
        ] {
            let input = Input::parse(&input).expect("it is no wish");
            assert_eq!((input.src_image_list, input.dry_run), (None, false));
        }
    }

    #[test]
    fn a_misspelled_wish_is_an_error_that_names_it() {
        for (input, problem) in [
            (json!({ "dryrun": true }), "unknown field `dryrun`"),
            (json!({ "dryRun": "yes" }), "invalid type"),
            (json!("nginx:1.27"), "invalid type"),
        ] {
            let error = Input::parse(&input).expect_err("it is none");
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
    fn all_of_a_registry_that_is_not_ecr_is_refused_unless_the_input_selects_images() {
        let environment = [("SOURCE_TYPE", "Public"), ("SRC_LIST", "ALL"), ("PLAN_BUCKET", "bucket")];
        let config = Config::read(&environment.into_iter().collect()).expect("it is complete");
        let error = Input::default().check(&config).expect_err("it would list nothing");
        assert!(error.to_string().starts_with(r#"srcList is "ALL": "#), "{error}");
        let input = Input { src_image_list: Some("nginx".into()), ..Input::default() };
        input.check(&config).expect("it selects an image");
    }

    #[test]
    fn an_input_that_names_images_is_refused_where_the_stack_does_not_allow_it() {
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
        Input { dry_run: true, ..Input::default() }.check(&config).expect("it names no image");
    }

    #[test]
    fn no_input_says_when_a_run_begins() {
        Input::parse(&json!({ "notBefore": "2099-01-01T00:00:00Z" })).expect_err("it would stall all that follow");
        Input::parse(&json!({ "pushed": true })).expect("it waits for a fixed time");
        Input::parse(&json!({ "detail-type": 1, "dryRun": true })).expect_err("it would copy, and wait for nobody");
    }

    #[test]
    fn the_guides_inputs_are_inputs() {
        let guide = include_str!("../../docs/selecting.md");
        let examples: Vec<_> = guide.split("```input\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(examples.len(), 2);
        for example in examples {
            Input::parse(&serde_json::from_str(example).expect("it is JSON")).expect("it is an input");
        }
    }

    #[tokio::test]
    async fn all_parameters_below_the_path_are_one_list() {
        let (list, more) =
            (held("quay.io/a/a:1"), below(&[("/list/10", "quay.io/a/c:1"), ("/list/2", "quay.io/a/b:1")]));
        assert_eq!(selected("/list", &[&list, &more]).await.expect("they are lists"), ["a/a", "a/b", "a/c"]);
        let (none, more) = (missing(), below(&[("/list/1", "quay.io/a/b:1")]));
        assert_eq!(selected("/list", &[&none, &more]).await.expect("it is a list"), ["a/b"]);
    }

    #[tokio::test]
    async fn a_name_that_is_no_path_has_nothing_below() {
        assert_eq!(selected("list", &[&held("quay.io/a/a:1")]).await.expect("it is a list"), ["a/a"]);
    }

    #[tokio::test]
    async fn a_wrong_entry_is_named_with_the_parameter_that_holds_it() {
        let (list, more) = (held("nginx"), below(&[("/list/10", "a:1,B:1"), ("/list/2", "a:2")]));
        let error = selected("/list", &[&list, &more]).await.expect_err("it is no reference");
        assert!(error.to_string().starts_with(r#""B:1" (entry 2 of /list/10): "#), "{error}");
    }

    #[tokio::test]
    async fn a_parameter_that_is_missing_is_an_error_that_names_it() {
        let error = selected("/list", &[&missing(), &below(&[])]).await.expect_err("there is none");
        assert!(error.to_string().starts_with(r#""/list": the Parameter Store has no parameter"#), "{error}");
    }

    #[tokio::test]
    async fn the_input_comes_before_the_list() {
        let ssm = mock_client!(aws_sdk_ssm, RuleMode::MatchAny, [&missing()]);
        let input = Input { src_image_list: Some("quay.io/x/y:1".into()), ..Input::default() };
        let selection = select(&config("/list"), &input, &ssm, None).await.expect("it is a list").expect("it selects");
        assert_eq!(selection.keys().map(ToString::to_string).collect::<Vec<_>>(), ["quay.io/x/y"]);
    }
}
