//! The rows that say `Error`, and which of them have lost their reason.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_dynamodb::Client;
use shared::plan::Row;
use shared::reference::RepositoryName;
use shared::text::Excerpt;
use shared::{Error, Result};

use crate::difference::planned;
use crate::source::{ListingFailure, SourceImage};

/// The table's index of failing rows: only these have its key.
const INDEX: &str = "Failing";

/// The rows that say `Error`: by the repository's name in the table, the tags, digests and patterns.
#[derive(Debug, Default)]
pub struct Failing(BTreeMap<RepositoryName, BTreeSet<Excerpt>>);

impl Failing {
    /// Reads them from the table.
    pub async fn read(dynamodb: &Client, table: &str) -> Result<Self> {
        let mut pages = dynamodb.scan().table_name(table).index_name(INDEX).into_paginator().send();
        let mut failing = Self::default();
        while let Some(page) = pages.next().await {
            let page = page.map_err(Error::aws("dynamodb:Scan", table))?;
            for item in page.items() {
                let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok());
                // Whatever else is in the table is not ours.
                if let (Some(Ok(image)), Some(tag)) = (text("Image").map(|image| image.parse()), text("Tag")) {
                    failing.0.entry(image).or_default().insert(tag.as_str().into());
                }
            }
        }
        Ok(failing)
    }

    /// Of a repository's rows, those of images that the destination has meanwhile, and those of what is no longer wanted. Nor is
    /// one that the destination has archived: BatchGetImage does not show it, so record-status could not settle its row.
    pub fn healed(
        &self,
        image: &RepositoryName,
        unchanged: &[SourceImage],
        is_archived: impl Fn(&SourceImage) -> bool,
        missing: &[SourceImage],
        failures: &[ListingFailure],
    ) -> (Vec<SourceImage>, Vec<Row>) {
        let Some(rows) = self.0.get(image) else { return Default::default() };
        let present = |listed: &&SourceImage| rows.contains(&name(listed)) && !is_archived(listed);
        let present: Vec<SourceImage> = unchanged.iter().filter(present).cloned().collect();
        // What could not be listed may still be wanted.
        if failures.iter().any(ListingFailure::hides_others) {
            return (present, Vec::new());
        }
        let mut wanted: BTreeSet<Excerpt> = failures.iter().map(|failed| failed.name.clone()).collect();
        wanted.extend(missing.iter().chain(&present).map(name));
        let obsolete = rows.difference(&wanted).map(|tag| Row { image: image.clone(), tag: tag.clone() });
        (present, obsolete.collect())
    }

    /// The rows of repositories that are not among `images`: they are no longer wanted.
    pub fn of_others(&self, images: &BTreeSet<&RepositoryName>) -> Vec<Row> {
        let others = self.0.iter().filter(|(image, _)| !images.contains(image));
        others.flat_map(|(image, tags)| tags.iter().map(|tag| Row { image: image.clone(), tag: tag.clone() })).collect()
    }
}

/// The name of an image's row.
fn name(listed: &SourceImage) -> Excerpt {
    planned(listed).name().into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use aws_sdk_dynamodb::operation::scan::ScanOutput;
    use aws_sdk_dynamodb::types::AttributeValue;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use shared::reference::Digest;

    use super::*;

    fn repository(name: &str) -> RepositoryName {
        name.parse().expect(name)
    }

    fn listed(tag: &str) -> SourceImage {
        SourceImage::new(Some(tag.parse().expect(tag)), Digest::of(tag.as_bytes()))
    }

    fn is_archived(listed: &SourceImage) -> bool {
        listed.tag.as_ref().is_some_and(|tag| tag.as_str() == "archived")
    }

    fn tags(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.tag.as_str()).collect()
    }

    /// The failing rows of the repository `app`, as the table has them.
    async fn failing(names: &'static [&str]) -> Failing {
        let text = |value: &str| AttributeValue::S(value.to_owned());
        let row = move |tag: &&str| HashMap::from([("Image".to_owned(), text("app")), ("Tag".to_owned(), text(tag))]);
        let scanned = mock!(Client::scan)
            .match_requests(|request| (request.table_name(), request.index_name()) == (Some("images"), Some("Failing")))
            .then_output(move || ScanOutput::builder().set_items(Some(names.iter().map(row).collect())).build());
        Failing::read(&mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&scanned]), "images")
            .await
            .expect("they are read")
    }

    #[tokio::test]
    async fn a_row_is_settled_if_the_image_is_there_obsolete_if_nobody_wants_it_and_else_it_stays() {
        let untagged = SourceImage::new(None, Digest::of(b"untagged"));
        let failing = failing(&["archived", "there", "missing", "9.*", "8.*", "deselected", "sha256:1"]).await;
        let failed = [ListingFailure::new("9.*", "no tag matches")];
        let (present, obsolete) = failing.healed(
            &repository("app"),
            &[listed("there"), listed("other"), untagged, listed("archived")],
            is_archived,
            &[listed("missing")],
            &failed,
        );
        assert_eq!(present, [listed("there")]);
        assert_eq!(tags(&obsolete), ["8.*", "archived", "deselected", "sha256:1"]);
    }

    #[tokio::test]
    async fn nothing_is_obsolete_in_a_repository_that_could_not_be_listed() {
        let failing = failing(&["ALL_TAGS", "1", "2"]).await;
        let (present, obsolete) = failing.healed(
            &repository("app"),
            &[listed("1")],
            is_archived,
            &[],
            &[ListingFailure::unlistable("no answer")],
        );
        assert_eq!((present.len(), obsolete.len()), (1, 0));
        let (_, obsolete) = failing.healed(&repository("app"), &[], is_archived, &[listed("1")], &[]);
        assert_eq!(tags(&obsolete), ["2", "ALL_TAGS"], "it has been listed");
    }

    #[tokio::test]
    async fn the_rows_of_a_repository_that_nobody_wants_are_obsolete() {
        let failing = failing(&["1"]).await;
        assert_eq!(tags(&failing.of_others(&BTreeSet::from([&repository("other")]))), ["1"]);
        assert!(failing.of_others(&BTreeSet::from([&repository("app")])).is_empty());
    }
}
