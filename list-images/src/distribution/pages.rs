//! The pages of a list, each of which names the next.

use std::collections::BTreeSet;

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};

/// The most pages of a list.
pub const PAGES: usize = 1_000;

/// The pages of a list that were read.
pub struct Pages {
    list: &'static str,
    seen: BTreeSet<Url>,
}

impl Pages {
    pub fn new(list: &'static str) -> Self {
        Self { list, seen: BTreeSet::new() }
    }

    /// Enters a page.
    pub fn visit(&mut self, page: &Url) -> Result<(), String> {
        if !self.seen.insert(page.clone()) {
            return Err(format!("the pages of its {} go in circles", self.list));
        }
        if self.seen.len() > PAGES {
            return Err(format!("its {} has more than the {PAGES} pages that are allowed", self.list));
        }
        Ok(())
    }
}

/// The address of the next page: `Link: </v2/…>; rel="next"`.
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
