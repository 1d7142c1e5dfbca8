//! Text from outside, as it may be shown.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A text that came from outside, on its way to a log, a row or a message: at most [`Excerpt::LIMIT`] characters in at most
/// twice as many bytes, and none of them moves a cursor, ends a line or turns the direction of writing. What would is shown as `\n` or `\u{1b}`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Excerpt(String);

impl Excerpt {
    /// The most characters that it has.
    pub const LIMIT: usize = 1_000;

    /// Shows `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self::within(text, Self::LIMIT)
    }

    /// Shows `text` with at most `limit` characters.
    #[must_use]
    pub fn within(text: &str, limit: usize) -> Self {
        let mut shown = String::new();
        // Each character shows as one or more of them.
        for character in text.chars().take(limit + 1) {
            match character {
                // Quotes and backslashes are harmless; escaped, a text that is shown twice would grow.
                '"' | '\'' | '\\' => shown.push(character),
                _ => shown.extend(character.escape_debug()),
            }
        }
        if shown.len() > 2 * limit || shown.chars().nth(limit).is_some() {
            const END: char = '…';
            let room = (2 * limit).saturating_sub(END.len_utf8());
            let end = shown.char_indices().nth(limit.saturating_sub(1)).map_or(shown.len(), |(end, _)| end);
            shown.truncate(shown.floor_char_boundary(end.min(room)));
            shown.push(END);
        }
        Self(shown)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same with at most `limit` characters.
    #[must_use]
    pub fn cut(&self, limit: usize) -> Self {
        Self::within(&self.0, limit)
    }
}

impl From<String> for Excerpt {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<&str> for Excerpt {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<Excerpt> for String {
    fn from(excerpt: Excerpt) -> Self {
        excerpt.0
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{}\"", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_or_a_mail_would_act_on_is_escaped() {
        let text = "a\nb\r\t\u{1b}[31m\u{9b}x\u{202e}\u{2028}\0 \"ü\" \\n";
        let shown = r#"a\nb\r\t\u{1b}[31m\u{9b}x\u{202e}\u{2028}\0 "ü" \n"#;
        assert_eq!(Excerpt::new(text).as_str(), shown);
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        let shown = Excerpt::new(&"x".repeat(300_000));
        assert_eq!(shown.as_str().chars().count(), Excerpt::LIMIT);
        assert!(shown.as_str().ends_with("x…"));
        assert_eq!(Excerpt::within("abc", 3).as_str(), "abc");
        assert_eq!(Excerpt::within("abcd", 3).as_str(), "ab…");
        let wide = Excerpt::new(&"😀".repeat(1_000));
        assert!(wide.as_str().len() <= 2 * Excerpt::LIMIT && wide.as_str().ends_with("😀…"));
    }

    proptest! {
        #[test]
        fn nothing_but_printable_text_is_shown_and_showing_it_again_changes_nothing(text in "\\PC{0,20}|[\\x00-\\x{ff}]{0,40}|.{0,1100}") {
            let shown = Excerpt::new(&text);
            prop_assert!(!shown.as_str().chars().any(char::is_control));
            prop_assert!(shown.as_str().chars().count() <= Excerpt::LIMIT);
            prop_assert_eq!(Excerpt::new(shown.as_str()), shown);
        }
    }

    #[test]
    fn a_text_may_have_twice_as_many_bytes_as_characters_and_keeps_what_there_is_room_for() {
        assert_eq!(Excerpt::within("üüü", 3).as_str(), "üüü");
        let wide = Excerpt::within(&"😀".repeat(20), 20);
        assert_eq!(wide.as_str(), format!("{}…", "😀".repeat(9)));
        assert_eq!(Excerpt::new("abcd").cut(3).as_str(), "ab…");
    }
}
