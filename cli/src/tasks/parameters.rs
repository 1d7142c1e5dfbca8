//! The parameters of a task, as its template declares them. Forms and checks are made of them, so that they cannot drift apart.

use std::collections::BTreeMap;
use std::fmt;

use regex_lite::Regex;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use serde_yaml_ng::Value as Yaml;
use shared::text::Excerpt;

use super::{Error, Result};

/// Values of parameters, by their names.
pub type Values = BTreeMap<String, String>;

/// The label of parameters that are in no group.
const OTHERS: &str = "Others";

/// What a template says about parameters.
#[derive(Clone, Debug)]
pub struct Template {
    groups: Vec<Group>,
    rules: Vec<Rule>,
    document: Json,
}

/// Parameters that belong together.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// `Source`, for example.
    pub label: String,
    /// In the order of the template.
    pub parameters: Vec<Parameter>,
}

/// A parameter of a template.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parameter {
    /// Its name, which messages and documentation use.
    pub name: String,
    /// What it does, its format, and what blank means.
    pub description: String,
    /// Whether its value is a number.
    pub is_number: bool,
    /// `None` if a value is required.
    pub default: Option<String>,
    /// Empty if there is no list.
    pub allowed_values: Vec<String>,
    /// A regular expression for the whole value.
    pub pattern: Option<String>,
    /// In characters.
    pub min_length: Option<usize>,
    /// In characters.
    pub max_length: Option<usize>,
    /// Of a number.
    pub min_value: Option<f64>,
    /// Of a number.
    pub max_value: Option<f64>,
}

/// Combinations of values that are refused.
#[derive(Clone, Debug)]
struct Rule {
    condition: Option<Json>,
    /// Each with the words for a value that does not hold.
    assertions: Vec<(Json, String)>,
}

/// What is wrong with the values of parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `None` if it is a combination of parameters.
    pub parameter: Option<String>,
    /// What is expected, with the value.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(Excerpt::new(&self.message).as_str())
    }
}

impl Template {
    /// Parses a template in YAML or JSON.
    ///
    /// # Errors
    /// If it is neither, or declares no parameters.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid =
            |problem: &str| Error::Rejected(format!("The template cannot be read: {}", Excerpt::new(problem)));
        let document: Yaml = serde_yaml_ng::from_str(text).map_err(|error| invalid(&error.to_string()))?;
        let document = plain(document);
        let Json::Object(declared) = &document["Parameters"] else {
            return Err(invalid("it has no Parameters."));
        };
        let mut parameters: BTreeMap<&str, Parameter> =
            declared.iter().map(|(name, declared)| (name.as_str(), parameter(name, declared))).collect();
        let mut groups = Vec::new();
        for group in list(&document["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]) {
            let names = list(&group["Parameters"]).iter().filter_map(Json::as_str);
            let parameters: Vec<_> = names.filter_map(|name| parameters.remove(name)).collect();
            let label = group["Label"]["default"].as_str().unwrap_or(OTHERS).to_owned();
            groups.push(Group { label, parameters });
        }
        if !parameters.is_empty() {
            groups.push(Group { label: OTHERS.into(), parameters: parameters.into_values().collect() });
        }
        let rules = document["Rules"].as_object().into_iter().flatten().map(|(_, rule)| Rule {
            condition: rule.get("RuleCondition").cloned(),
            assertions: list(&rule["Assertions"])
                .iter()
                .map(|it| (it["Assert"].clone(), text_of(&it["AssertDescription"]).unwrap_or_default()))
                .collect(),
        });
        Ok(Self { groups, rules: rules.collect(), document })
    }

    /// The parameters, in the groups and the order of forms.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// All parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.groups.iter().flat_map(|group| &group.parameters)
    }

    /// The parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters().find(|parameter| parameter.name == name)
    }

    /// Checks values as CloudFormation does. Parameters that are not named have their defaults. What cannot be decided here is
    /// left to CloudFormation.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn check(&self, values: &Values) -> Result<()> {
        let unknown = values.keys().filter(|name| self.parameter(name).is_none()).map(|name| {
            let similar = self.parameters().find(|it| it.name.eq_ignore_ascii_case(name));
            let similar = similar.map(|it| format!(" Did you mean {}?", it.name)).unwrap_or_default();
            Problem {
                parameter: Some(name.clone()),
                message: format!("The template has no parameter {name}.{similar}"),
            }
        });
        let invalid = self.parameters().filter_map(|parameter| {
            let message = parameter.problem(values.get(&parameter.name).map(String::as_str))?;
            Some(Problem { parameter: Some(parameter.name.clone()), message })
        });
        let mut problems: Vec<_> = unknown.chain(invalid).collect();
        if problems.is_empty() {
            problems.extend(self.broken_rules(values).map(|message| Problem { parameter: None, message }));
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Parameters(problems)) }
    }

    fn broken_rules(&self, values: &Values) -> impl Iterator<Item = String> {
        let applies = |rule: &&Rule| match &rule.condition {
            Some(condition) => self.evaluate(condition, values) == Some(Json::Bool(true)),
            None => true,
        };
        let assertions = self.rules.iter().filter(applies).flat_map(|rule| &rule.assertions);
        let broken = assertions.filter(|(assert, _)| self.evaluate(assert, values) == Some(Json::Bool(false)));
        broken.map(|(_, message)| message.clone())
    }

    /// The value of an expression in a rule; `None` if it uses what is not known here.
    fn evaluate(&self, expression: &Json, values: &Values) -> Option<Json> {
        let all = |list: &Json| -> Option<Vec<Json>> {
            list.as_array()?.iter().map(|item| self.evaluate(item, values)).collect()
        };
        let booleans = |list: &Json| -> Option<Vec<bool>> { all(list)?.iter().map(Json::as_bool).collect() };
        let Json::Object(function) = expression else {
            return match expression {
                Json::Array(_) => all(expression).map(Json::Array),
                _ => text_of(expression).map(Json::String),
            };
        };
        let (name, argument) = function.iter().next()?;
        Some(match name.as_str() {
            "Ref" => {
                let name = argument.as_str()?;
                values.get(name).cloned().or_else(|| self.parameter(name)?.default.clone())?.into()
            }
            "Fn::Equals" => {
                let sides = all(argument)?;
                (sides.first()? == sides.get(1)?).into()
            }
            "Fn::Not" => (!booleans(argument)?.first()?).into(),
            "Fn::And" => booleans(argument)?.into_iter().all(|it| it).into(),
            "Fn::Or" => booleans(argument)?.into_iter().any(|it| it).into(),
            "Fn::Contains" => {
                let sides = all(argument)?;
                sides.first()?.as_array()?.contains(sides.get(1)?).into()
            }
            _ => return None,
        })
    }

    /// The whole template, with the short forms of functions (`!Ref`) in their long forms.
    pub(super) fn document(&self) -> &Json {
        &self.document
    }
}

impl Parameter {
    /// What is wrong with a value, or with its absence.
    pub fn problem(&self, value: Option<&str>) -> Option<String> {
        let name = &self.name;
        let Some(value) = value.or(self.default.as_deref()) else {
            return Some(format!("{name} needs a value. {}", self.description));
        };
        let expected = if !self.allowed_values.is_empty() {
            let is_allowed = self.allowed_values.iter().any(|allowed| allowed == value);
            (!is_allowed).then(|| {
                let values: Vec<_> =
                    self.allowed_values.iter().map(|it| if it.is_empty() { "blank" } else { it }).collect();
                format!("expected {}", values.join(", "))
            })
        } else if self.is_number {
            self.expected_number(value)
        } else {
            self.expected_text(value)
        };
        expected
            .map(|expected| format!("{name} is {:?}: {expected}. {}", Excerpt::within(value, 100), self.description))
    }

    fn expected_number(&self, value: &str) -> Option<String> {
        let (min, max) = (self.min_value, self.max_value);
        match value.parse::<f64>() {
            Ok(number) if min.is_none_or(|min| number >= min) && max.is_none_or(|max| number <= max) => None,
            _ => Some(match (min, max) {
                (Some(min), Some(max)) => format!("expected a number from {min} to {max}"),
                (Some(min), None) => format!("expected a number of at least {min}"),
                _ => "expected a number".to_owned(),
            }),
        }
    }

    fn expected_text(&self, value: &str) -> Option<String> {
        let length = value.chars().count();
        if let Some(min) = self.min_length.filter(|&min| length < min) {
            return Some(format!("expected at least {min} characters"));
        }
        if let Some(max) = self.max_length.filter(|&max| length > max) {
            return Some(format!("it has {length} characters, of at most {max}"));
        }
        // A pattern that only CloudFormation understands is left to it.
        let pattern = Regex::new(&format!("^(?:{})$", self.pattern.as_deref()?)).ok()?;
        (!pattern.is_match(value)).then(|| "it does not have the expected format".to_owned())
    }
}

fn parameter(name: &str, declared: &Json) -> Parameter {
    let text = |field: &str| text_of(&declared[field]);
    let number = |field: &str| text(field)?.parse::<f64>().ok();
    let length = |field: &str| text(field)?.parse().ok();
    Parameter {
        name: name.to_owned(),
        description: text("Description").unwrap_or_default(),
        is_number: declared["Type"] == "Number",
        default: text("Default"),
        allowed_values: list(&declared["AllowedValues"]).iter().filter_map(text_of).collect(),
        pattern: text("AllowedPattern"),
        min_length: length("MinLength"),
        max_length: length("MaxLength"),
        min_value: number("MinValue"),
        max_value: number("MaxValue"),
    }
}

/// Reads values from the text of a file: a map of names and values in YAML or JSON, also below `Parameters`, or the AWS CLI's
/// arrays of `{"ParameterKey": …, "ParameterValue": …}` or `"name=value"`.
///
/// # Errors
/// If it is something else.
pub fn read_values(text: &str) -> Result<Values> {
    let invalid = || {
        Error::Rejected(
            r#"The parameters are no map of names and values, and no array of {"ParameterKey": "a", "ParameterValue": "b"}."#
                .into(),
        )
    };
    let document: Yaml = serde_yaml_ng::from_str(text).map_err(|error| {
        Error::Rejected(format!("The parameters cannot be read: {}", Excerpt::new(&error.to_string())))
    })?;
    let pair = |item: &Json| match item {
        Json::String(pair) => pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())),
        _ => Some((item["ParameterKey"].as_str()?.to_owned(), text_of(&item["ParameterValue"])?)),
    };
    let values: Option<Values> = match plain(document) {
        Json::Array(items) => items.iter().map(pair).collect(),
        Json::Object(map) => {
            let map = match map.get("Parameters") {
                Some(Json::Object(inner)) => inner,
                _ => &map,
            };
            map.iter().map(|(name, value)| Some((name.clone(), text_of(value)?))).collect()
        }
        Json::Null => Some(Values::new()),
        _ => None,
    };
    values.ok_or_else(invalid)
}

fn list(value: &Json) -> &[Json] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A scalar as CloudFormation takes it.
fn text_of(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// YAML as JSON, with the short forms of functions in their long forms.
fn plain(value: Yaml) -> Json {
    match value {
        Yaml::Null => Json::Null,
        Yaml::Bool(flag) => flag.into(),
        Yaml::Number(number) => serde_json::to_value(number).unwrap_or_default(),
        Yaml::String(text) => text.into(),
        Yaml::Sequence(items) => items.into_iter().map(plain).collect(),
        Yaml::Mapping(entries) => {
            let entries = entries.into_iter().filter_map(|(key, value)| Some((text_of(&plain(key))?, plain(value))));
            Json::Object(entries.collect())
        }
        Yaml::Tagged(tagged) => {
            let tag = tagged.tag.to_string();
            let name = match tag.trim_start_matches('!') {
                name @ ("Ref" | "Condition") => name.to_owned(),
                name => format!("Fn::{name}"),
            };
            Json::Object(Map::from_iter([(name, plain(tagged.value))]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The project's own template, of which anchors and aliases are no part in what is deployed.
    fn template() -> Template {
        Template::parse(include_str!("../../../template.yaml")).expect("it is a template")
    }

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn problem(pairs: &[(&str, &str)]) -> String {
        template().check(&values(pairs)).expect_err("it is refused").to_string()
    }

    #[test]
    fn the_templates_parameters_are_in_its_groups_and_their_defaults_are_allowed() {
        let template = template();
        assert_eq!(template.groups()[0].label, "Source");
        assert_eq!(template.groups()[0].parameters[0].name, "sourceType");
        assert!(template.groups().iter().all(|group| group.label != OTHERS), "each is in a group");
        assert!(template.parameters().count() > 50);
        template.check(&Values::new()).expect("the defaults are allowed");
        // No pattern is left to CloudFormation.
        for parameter in template.parameters() {
            if let Some(pattern) = &parameter.pattern {
                Regex::new(pattern).unwrap_or_else(|error| panic!("{}: {error}", parameter.name));
            }
        }
    }

    #[test]
    fn a_parameter_has_what_the_template_says_about_it() {
        let template = template();
        let parameter = template.parameter("maxConcurrency").expect("it exists");
        assert_eq!((parameter.is_number, parameter.default.as_deref()), (true, Some("10")));
        assert_eq!((parameter.min_value, parameter.max_value), (Some(1.0), Some(1_000.0)));
        let parameter = template.parameter("destPrefix").expect("it exists");
        assert_eq!((parameter.max_length, parameter.pattern.is_some()), (Some(100), true));
        assert!(parameter.description.starts_with("Prefix of the repositories"));
        let parameter = template.parameter("logRetentionDays").expect("it exists");
        assert!(parameter.allowed_values.contains(&"30".to_owned()));
    }

    #[test]
    fn a_value_that_is_not_allowed_is_a_problem_with_the_parameter_and_the_value() {
        for (name, value, expected) in [
            ("srcregion", "x", "The template has no parameter srcregion. Did you mean srcRegion?"),
            ("sourceType", "Docker", "sourceType is \"Docker\": expected Amazon_ECR, Public."),
            ("maxConcurrency", "0", "maxConcurrency is \"0\": expected a number from 1 to 1000."),
            ("maxImages", "-1", "maxImages is \"-1\": expected a number of at least 0."),
            ("destPrefix", "/x/", "destPrefix is \"/x/\": it does not have the expected format. Prefix of"),
            (
                "srcAccountId",
                "1234567890123",
                "srcAccountId is \"1234567890123\": it has 13 characters, of at most 12.",
            ),
        ] {
            let problem = problem(&[(name, value)]);
            assert!(problem.starts_with(expected), "{problem}");
        }
        let both = problem(&[("sourceType", "Docker"), ("maxConcurrency", "0")]);
        assert!(both.contains("maxConcurrency is") && both.contains("sourceType is"), "{both}");
        let hostile = problem(&[("destPrefix", "\u{1b}[31m")]);
        assert!(hostile.contains(r"\u{1b}[31m"), "{hostile}");
    }

    #[test]
    fn combinations_are_refused_in_the_words_of_the_rules() {
        for (pairs, expected) in [
            (&[("sourceType", "Public")][..], "With sourceType Public, set srcList to SELECTED"),
            (&[("srcList", "SELECTED")], "With srcList SELECTED, srcImageList must name at least one image."),
            (&[("taskCpu", "4096")], "Fargate offers taskCpu 256"),
            (&[("ecsVpcId", "vpc-1")], "Set ecsVpcId, ecsSubnetA and ecsSubnetB together"),
        ] {
            let problem = problem(pairs);
            assert!(problem.starts_with(expected), "{problem}");
        }
        let public = [("sourceType", "Public"), ("srcList", "SELECTED"), ("srcImageList", "nginx")];
        template().check(&values(&public)).expect("it is allowed");
    }

    #[test]
    fn a_required_parameter_needs_a_value_and_an_unknown_function_is_left_to_cloudformation() {
        let template = Template::parse(
            r#"{"Parameters": {"a": {"Type": "String", "Description": "The a.", "MinLength": 2}},
                "Rules": {"r": {"Assertions": [
                    {"Assert": {"Fn::EachMemberIn": [["x"], {"Ref": "a"}]}, "AssertDescription": "no"}]}}}"#,
        )
        .expect("it is a template");
        assert_eq!(template.groups()[0].label, OTHERS);
        let problem = |pairs| template.check(&values(pairs)).expect_err("it is refused").to_string();
        assert_eq!(problem(&[]), "a needs a value. The a.");
        assert!(problem(&[("a", "x")]).starts_with("a is \"x\": expected at least 2 characters."));
        template.check(&values(&[("a", "xy")])).expect("the rule cannot be decided");
    }

    #[test]
    fn what_is_no_template_is_an_error() {
        for text in ["", "[]", "a: b", "{", "Parameters: []", "a: &a [*a]"] {
            let error = Template::parse(text).expect_err(text).to_string();
            assert!(error.starts_with("The template cannot be read: "), "{error}");
        }
    }

    #[test]
    fn values_are_read_in_each_form_that_users_have() {
        let expected = values(&[("maxImages", "5"), ("scanOnPush", "true"), ("srcList", "ALL")]);
        for text in [
            "srcList: ALL\nmaxImages: 5\nscanOnPush: true\n",
            r#"{"srcList": "ALL", "maxImages": 5, "scanOnPush": "true"}"#,
            r#"{"Parameters": {"srcList": "ALL", "maxImages": "5", "scanOnPush": true}}"#,
            r#"[{"ParameterKey": "srcList", "ParameterValue": "ALL"}, {"ParameterKey": "maxImages", "ParameterValue": 5},
                {"ParameterKey": "scanOnPush", "ParameterValue": "true"}]"#,
            r#"["srcList=ALL", "maxImages=5", "scanOnPush=true"]"#,
        ] {
            assert_eq!(read_values(text).expect(text), expected, "{text}");
        }
        assert_eq!(read_values("").expect("it is empty"), Values::new());
        for text in ["text", "a: [1]", "[1]", r#"[{"ParameterKey": "a"}]"#, "a: : b"] {
            assert!(read_values(text).is_err(), "{text}");
        }
    }
}
