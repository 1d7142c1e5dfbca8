//! The pages of a list.

use std::collections::BTreeSet;

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};

/// The most pages of a list.
const PAGES: usize = 1_000;

/// The pages that were read.
pub struct Pages {
    list: &'static str,
    seen: BTreeSet<Url>,
}

impl Pages {
    pub fn new(list: &'static str) -> Self {
        Self { list, seen: BTreeSet::new() }
    }

    /// Adds a page. A page that was already read, and too many pages, are errors.
    pub fn visit(&mut self, page: &Url) -> Result<(), String> {
        if !self.seen.insert(page.clone()) {
            return Err(format!("the pages of the {} form a loop.", self.list));
        }
        if self.seen.len() > PAGES {
            return Err(format!("the {} exceeds the limit of {PAGES} pages.", self.list));
        }
        Ok(())
    }
}

/// The URL of the next page: `Link: </v2/…>; rel="next"`.
pub fn link(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(LINK)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(','))
        .find_map(|link| {
            let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let is_next = parameters.split(';').map(str::trim).any(|it| matches!(it, "rel=\"next\"" | "rel=next"));
            is_next.then(|| address.to_owned())
        })
}
