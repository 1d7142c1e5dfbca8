//! The rules that exclude repositories and tags.

use glob::Pattern;
use shared::Result;
use shared::config::{Environment, invalid};
use shared::reference::Tag;
use shared::tags::subject;

#[derive(Debug, Default)]
pub struct Rules {
    /// Empty for all.
    include_repositories: Patterns,
    exclude_repositories: Patterns,
    exclude_tags: Patterns,
    /// Whether the copying task checks signatures. It copies the signatures of an image with the image.
    pub signed: bool,
}

#[derive(Debug, Default)]
struct Patterns(Vec<Pattern>);

impl Rules {
    /// `INCLUDE_REPOSITORIES`, `EXCLUDE_REPOSITORIES` and `EXCLUDE_TAGS`: globs, separated by commas. A glob for repositories
    /// that ends in a slash matches all repositories below it. `REQUIRES_SIGNATURES`: whether the task checks signatures.
    pub fn read(environment: &Environment) -> Result<Self> {
        let read = |variable: &str| {
            let value = environment.optional(variable).unwrap_or_default();
            let patterns = environment.items(variable).map(|text| {
                let below = if text.ends_with('/') && variable != "EXCLUDE_TAGS" { "*" } else { "" };
                Pattern::new(&format!("{text}{below}"))
                    .map_err(|error| invalid(variable, value, &format!("invalid glob {text:?}: {}", error.msg)))
            });
            patterns.collect::<Result<_>>().map(Patterns)
        };
        Ok(Self {
            include_repositories: read("INCLUDE_REPOSITORIES")?,
            exclude_repositories: read("EXCLUDE_REPOSITORIES")?,
            exclude_tags: read("EXCLUDE_TAGS")?,
            signed: environment.flag("REQUIRES_SIGNATURES", false)?,
        })
    }

    /// Whether a rule selects repositories.
    pub fn select_repositories(&self) -> bool {
        !(self.include_repositories.0.is_empty() && self.exclude_repositories.0.is_empty())
    }

    /// The rule that excludes a repository.
    pub fn excluding_repository(&self, name: &str) -> Option<String> {
        match self.exclude_repositories.matching(name) {
            Some(pattern) => Some(format!("excludeRepositories {pattern}")),
            None if self.include_repositories.0.is_empty() => None,
            None if self.include_repositories.matching(name).is_some() => None,
            None => Some("not in includeRepositories".into()),
        }
    }

    /// The rule that excludes a tag.
    pub fn excluding_tag(&self, tag: &Tag) -> Option<String> {
        if self.signed && subject(tag).is_some() {
            return Some("signaturePolicy: signatures are copied with their image".into());
        }
        self.exclude_tags.matching(tag.as_str()).map(|pattern| format!("excludeTags {pattern}"))
    }
}

impl Patterns {
    fn matching(&self, text: &str) -> Option<&str> {
        self.0.iter().find(|pattern| pattern.matches(text)).map(Pattern::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(variables: &[(&str, &str)]) -> Result<Rules> {
        Rules::read(&variables.iter().copied().collect())
    }

    #[test]
    fn repositories_are_included_and_excluded_by_glob_and_by_folder() {
        let rules =
            rules(&[("INCLUDE_REPOSITORIES", "team-a/, shared-*"), ("EXCLUDE_REPOSITORIES", "*/test,shared-x")])
                .expect("they are globs");
        for (name, rule) in [
            ("team-a/app", None),
            ("team-a/deep/app", None),
            ("shared-base", None),
            ("team-a", Some("not in includeRepositories")),
            ("team-ab/app", Some("not in includeRepositories")),
            ("team-a/test", Some("excludeRepositories */test")),
            ("shared-x", Some("excludeRepositories shared-x")),
        ] {
            assert_eq!(rules.excluding_repository(name).as_deref(), rule, "{name}");
        }
    }

    #[test]
    fn tags_are_excluded_by_glob() {
        let rules =
            rules(&[("EXCLUDE_TAGS", "*alpha*,*beta*,*windowsservercore*,*nanoserver*")]).expect("they are globs");
        for tag in ["1.0-alpha", "v2beta1", "8.0-windowsservercore-ltsc2022", "nanoserver"] {
            assert!(rules.excluding_tag(&tag.parse().expect(tag)).is_some(), "{tag}");
        }
        assert_eq!(rules.excluding_tag(&"1.0-alpine".parse().expect("it is a tag")), None);
    }

    #[test]
    fn without_rules_nothing_is_excluded() {
        let rules = rules(&[]).expect("all are optional");
        assert!(!rules.select_repositories());
        let signature = format!("sha256-{}.sig", "a".repeat(64)).parse().expect("it is a tag");
        assert_eq!((rules.excluding_repository("a"), rules.excluding_tag(&signature)), (None, None));
        let signed = self::rules(&[("REQUIRES_SIGNATURES", "true")]).expect("it is a flag");
        assert!(signed.excluding_tag(&signature).is_some_and(|rule| rule.starts_with("signaturePolicy")));
    }

    #[test]
    fn an_invalid_glob_is_an_error_with_the_glob() {
        let error = rules(&[("EXCLUDE_TAGS", "*-rc, [a")]).expect_err("a bracket is open");
        assert!(error.to_string().starts_with(r#"excludeTags is "*-rc, [a": invalid glob "[a": "#), "{error}");
    }
}
