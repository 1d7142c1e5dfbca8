//! Text from outside that can be shown in logs, rows and messages.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Text of at most [`Excerpt::LIMIT`] characters in at most twice as many bytes. Characters that move a cursor, end a line or
/// change the direction of writing are escaped, as `\n` or `\u{1b}`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Excerpt(String);

impl Excerpt {
    /// In characters.
    pub const LIMIT: usize = 1_000;

    /// Escapes `text`, and cuts it to [`LIMIT`](Self::LIMIT) characters.
    pub fn new(text: &str) -> Self {
        Self::within(text, Self::LIMIT)
    }

    /// Escapes `text`, and cuts it to `limit` characters.
    pub fn within(text: &str, limit: usize) -> Self {
        let mut shown = String::new();
        // Escaping never makes a text shorter.
        for character in text.chars().take(limit + 1) {
            match character {
                // These are harmless. If they were escaped, a text would grow each time that it passes through here.
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

    /// The escaped text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, cut to `limit` characters.
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
    fn control_characters_are_escaped() {
        let text = "a\nb\r\t\u{1b}[31m\u{9b}x\u{202e}\u{2028}\0 \"ü\" \\n";
        let shown = r#"a\nb\r\t\u{1b}[31m\u{9b}x\u{202e}\u{2028}\0 "ü" \n"#;
        assert_eq!(Excerpt::new(text).as_str(), shown);
    }

    #[test]
    fn a_long_text_is_cut_and_ends_in_an_ellipsis() {
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
        fn an_excerpt_is_printable_and_an_excerpt_of_it_is_the_same(text in "\\PC{0,20}|[\\x00-\\x{ff}]{0,40}|.{0,1100}") {
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
