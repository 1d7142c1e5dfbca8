//! The table's rows that say `Error`, and which of them are outdated.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_dynamodb::Client;
use shared::plan::Row;
use shared::reference::RepositoryName;
use shared::text::Excerpt;
use shared::{Error, Result};

use crate::difference::planned;
use crate::source::{ListingFailure, SourceImage};

/// The table's index of failing rows.
const INDEX: &str = "Failing";

/// Tags, digests and patterns by the repository's name in the table.
#[derive(Debug, Default)]
pub struct FailingRows(BTreeMap<RepositoryName, BTreeSet<Excerpt>>);

impl FailingRows {
    pub async fn read(dynamodb: &Client, table: &str) -> Result<Self> {
        let mut pages = dynamodb.scan().table_name(table).index_name(INDEX).into_paginator().send();
        let mut rows = Self::default();
        while let Some(page) = pages.next().await {
            let page = page.map_err(Error::aws("dynamodb:Scan", table))?;
            for item in page.items() {
                let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok());
                // Items that somebody else wrote are ignored.
                if let (Some(Ok(image)), Some(tag)) = (text("Image").map(|image| image.parse()), text("Tag")) {
                    rows.0.entry(image).or_default().insert(tag.as_str().into());
                }
            }
        }
        Ok(rows)
    }

    /// The outdated rows of a repository: images that the destination has now, and rows of images that are no longer selected.
    /// The row of an image that is archived at the destination is deleted, because record-status cannot find that image.
    pub fn outdated(
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
        // Images that are not listed can still be selected.
        if failures.iter().any(ListingFailure::hides_others) {
            return (present, Vec::new());
        }
        let mut needed: BTreeSet<Excerpt> = failures.iter().map(|failed| failed.name.clone()).collect();
        needed.extend(missing.iter().chain(&present).map(name));
        let obsolete = rows.difference(&needed).map(|tag| Row { image: image.clone(), tag: tag.clone() });
        (present, obsolete.collect())
    }

    /// The rows of repositories that are not in `images`, because they are no longer selected.
    pub fn of_others(&self, images: &BTreeSet<&RepositoryName>) -> Vec<Row> {
        let others = self.0.iter().filter(|(image, _)| !images.contains(image));
        others.flat_map(|(image, tags)| tags.iter().map(|tag| Row { image: image.clone(), tag: tag.clone() })).collect()
    }
}

/// The key of an image's row.
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

    /// The failing rows of the repository `app`.
    async fn failing(names: &'static [&str]) -> FailingRows {
        let text = |value: &str| AttributeValue::S(value.to_owned());
        let row = move |tag: &&str| HashMap::from([("Image".to_owned(), text("app")), ("Tag".to_owned(), text(tag))]);
        let scanned = mock!(Client::scan)
            .match_requests(|request| (request.table_name(), request.index_name()) == (Some("images"), Some("Failing")))
            .then_output(move || ScanOutput::builder().set_items(Some(names.iter().map(row).collect())).build());
        FailingRows::read(&mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&scanned]), "images")
            .await
            .expect("they are read")
    }

    #[tokio::test]
    async fn a_row_is_corrected_if_the_image_exists_and_deleted_if_it_is_not_selected() {
        let untagged = SourceImage::new(None, Digest::of(b"untagged"));
        let failing = failing(&["archived", "there", "missing", "9.*", "8.*", "deselected", "sha256:1"]).await;
        let failed = [ListingFailure::new("9.*", "no tag matches")];
        let (present, obsolete) = failing.outdated(
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
    async fn no_row_is_deleted_in_a_repository_that_cannot_be_listed() {
        let failing = failing(&["ALL_TAGS", "1", "2"]).await;
        let (present, obsolete) = failing.outdated(
            &repository("app"),
            &[listed("1")],
            is_archived,
            &[],
            &[ListingFailure::unlistable("no answer")],
        );
        assert_eq!((present.len(), obsolete.len()), (1, 0));
        let (_, obsolete) = failing.outdated(&repository("app"), &[], is_archived, &[listed("1")], &[]);
        assert_eq!(tags(&obsolete), ["2", "ALL_TAGS"], "it is listed");
    }

    #[tokio::test]
    async fn the_rows_of_a_repository_that_is_not_selected_are_deleted() {
        let failing = failing(&["1"]).await;
        assert_eq!(tags(&failing.of_others(&BTreeSet::from([&repository("other")]))), ["1"]);
        assert!(failing.of_others(&BTreeSet::from([&repository("app")])).is_empty());
    }
}
