//! The languages of the console. English is in the pages; `zh.json` translates it.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A language of the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// English.
    #[default]
    English,
    /// Simplified Chinese.
    Chinese,
}

static CHINESE: LazyLock<HashMap<&str, &str>> =
    LazyLock::new(|| serde_json::from_str(include_str!("zh.json")).expect("a test reads it"));

impl Language {
    /// The language of a code such as `zh` or `zh-CN`.
    pub fn of_code(code: &str) -> Option<Self> {
        match code.split('-').next() {
            Some("en") => Some(Self::English),
            Some("zh") => Some(Self::Chinese),
            _ => None,
        }
    }

    /// The first language of an `Accept-Language` header that the console has.
    pub fn accepted(header: &str) -> Self {
        let codes = header.split(',').filter_map(|part| part.split(';').next());
        codes.filter_map(|code| Self::of_code(code.trim())).next().unwrap_or_default()
    }

    /// For the attribute `lang`.
    pub fn code(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh-CN",
        }
    }

    /// A text of the console in this language.
    pub fn t(self, english: &'static str) -> &'static str {
        match self {
            Self::English => english,
            Self::Chinese => CHINESE.get(english).copied().unwrap_or(english),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fs_err as fs;

    use super::*;

    /// The texts in the sources of the console: the argument of each call of `t`.
    fn texts() -> BTreeSet<String> {
        let mut texts = BTreeSet::new();
        for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/console")).expect("it is there") {
            let path = file.expect("it can be listed").path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(path).expect("it can be read");
                let calls = source.split(".t(\"").skip(1);
                texts.extend(calls.filter_map(|rest| Some(rest.split_once("\")")?.0.to_owned())));
            }
        }
        texts
    }

    #[test]
    fn each_text_is_translated_and_no_translation_is_left_over() {
        let translated: BTreeSet<String> = CHINESE.keys().map(|&english| english.to_owned()).collect();
        assert_eq!(texts(), translated);
    }

    #[test]
    fn the_browsers_language_is_used_if_the_console_has_it() {
        for (header, language) in [
            ("zh-CN,zh;q=0.9,en;q=0.8", Language::Chinese),
            ("fr, en-GB;q=0.8, zh;q=0.5", Language::English),
            ("fr", Language::English),
            ("", Language::English),
        ] {
            assert_eq!(Language::accepted(header), language, "{header}");
        }
    }
}
