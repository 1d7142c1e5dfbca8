//! The rows of a task's image table: the result of each image's last copy.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Serialize;
use shared::Error as AwsError;
use shared::text::Excerpt;

use super::run::{Item, PAGE, number, text, text_value};
use super::{Account, Error, Page, Result, Task, Time};

/// The index with the rows that say `Error`.
const FAILING: &str = "Failing";

/// A page of images.
pub type Images = Page<Image>;

/// The row of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The repository's name at the destination, without the prefix.
    pub image: Excerpt,
    /// The tag, the digest of an untagged image, or a pattern that no tag matches.
    pub tag: Excerpt,
    /// Whether the destination has it.
    pub is_done: bool,
    /// The words of skopeo, the registry or ECR.
    pub error: Option<Excerpt>,
    /// Since when it fails.
    pub failing_since: Option<Time>,
    /// Where it comes from.
    pub source: Option<Excerpt>,
    /// Where it is.
    pub destination: Option<Excerpt>,
    /// Its digest at the destination.
    pub digest: Option<Excerpt>,
    /// Its compressed size.
    pub bytes: Option<u64>,
    /// How long the copy took.
    pub seconds: Option<u64>,
    /// How often it was copied, or tried.
    pub attempts: Option<u64>,
    /// The run of the last copy.
    pub run: Option<Excerpt>,
    /// The platforms that are copied.
    pub platforms: Option<Excerpt>,
    /// When the row was written.
    pub updated_at: Option<Time>,
    /// When it was last copied.
    pub last_done_at: Option<Time>,
    /// The stream of its Fargate task's log, for [`Log::of_image`](super::Log::of_image).
    #[serde(skip)]
    pub log_stream: Option<String>,
}

impl Image {
    fn of(item: &Item) -> Self {
        let excerpt = |name: &str| text(item, name).map(Excerpt::from);
        let time = |name: &str| text(item, name).and_then(Time::parse);
        Self {
            image: excerpt("Image").unwrap_or_default(),
            tag: excerpt("Tag").unwrap_or_default(),
            is_done: text(item, "Status") == Some(shared::task::DONE),
            error: excerpt("ErrorMessage"),
            failing_since: time("FailingSince"),
            source: excerpt("Source"),
            destination: excerpt("Destination"),
            digest: excerpt("Digest"),
            bytes: number(item, "Bytes"),
            seconds: number(item, "Seconds"),
            attempts: number(item, "Attempts"),
            run: excerpt("Execution"),
            platforms: excerpt("MultiArchOption"),
            updated_at: time("UpdatedAt"),
            last_done_at: time("LastDoneAt"),
            log_stream: text(item, "LogStream").map(str::to_owned),
        }
    }

    /// Its status in the table.
    pub fn status(&self) -> &'static str {
        if self.is_done { shared::task::DONE } else { shared::task::ERROR }
    }

    /// Its name in the table: `repository:tag`, or `repository@digest`.
    pub fn name(&self) -> String {
        let separator = if self.tag.as_str().starts_with("sha256:") { '@' } else { ':' };
        format!("{}{separator}{}", self.image, self.tag)
    }

    /// Whether `search` is part of its name.
    fn matches(&self, search: Option<&str>) -> bool {
        search.is_none_or(|search| self.name().contains(search))
    }
}

/// Images as CSV: [RFC 4180](https://www.rfc-editor.org/rfc/rfc4180). Values have no line breaks.
pub fn csv(images: &[Image]) -> String {
    fn blank(value: Option<impl ToString>) -> String {
        value.map(|value| value.to_string()).unwrap_or_default()
    }
    let header =
        "image,tag,status,error,failingSince,source,destination,digest,bytes,seconds,attempts,run,updatedAt\r\n";
    let row = |image: &Image| {
        let values = [
            image.image.to_string(),
            image.tag.to_string(),
            image.status().to_owned(),
            blank(image.error.as_ref()),
            blank(image.failing_since),
            blank(image.source.as_ref()),
            blank(image.destination.as_ref()),
            blank(image.digest.as_ref()),
            blank(image.bytes),
            blank(image.seconds),
            blank(image.attempts),
            blank(image.run.as_ref()),
            blank(image.updated_at),
        ];
        values.iter().map(|value| csv_value(value)).collect::<Vec<_>>().join(",") + "\r\n"
    };
    images.iter().fold(header.to_owned(), |text, image| text + &row(image))
}

/// A value with quotes where it needs them. A spreadsheet takes what begins like a formula for one, so an apostrophe comes before it.
fn csv_value(value: &str) -> String {
    let guard = if value.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    if value.contains([',', '"', '\n', '\r']) {
        format!("\"{guard}{}\"", value.replace('"', "\"\""))
    } else {
        format!("{guard}{value}")
    }
}

impl Account {
    /// Images of a task, in no order. Only those whose `repository:tag` contains `search`, and only those that fail if
    /// `only_failed`. `from` is the end of another page. A page has about `limit` images: fewer at the end, and more or fewer
    /// if `search` is given.
    ///
    /// # Errors
    /// If the task is not complete, or a permission is missing.
    pub async fn images(
        &self,
        task: &Task,
        search: Option<&str>,
        only_failed: bool,
        limit: usize,
        from: Option<&str>,
    ) -> Result<Images> {
        let table = task.output("ImageTable")?;
        let mut key = from.map(decode).transpose()?;
        let mut images = Vec::new();
        loop {
            let scan = self.dynamodb.scan().table_name(table).set_exclusive_start_key(key);
            let scan = if only_failed { scan.index_name(FAILING) } else { scan };
            // A search reads as much as fits into an answer, which is 1 MB.
            let page = if only_failed { limit.min(PAGE) } else { limit };
            let limit_of_page =
                (only_failed || search.is_none()).then(|| i32::try_from(page.max(1)).unwrap_or(i32::MAX));
            let answer = scan.set_limit(limit_of_page).send().await.map_err(AwsError::aws("dynamodb:Scan", table))?;
            let mut items = answer.items.unwrap_or_default();
            if only_failed {
                // The index has the keys of the table.
                let keys = items.into_iter().map(|mut item| {
                    item.retain(|name, _| name == "Image" || name == "Tag");
                    item
                });
                items = self.items(table, keys.collect()).await?;
            }
            let found = items.iter().map(Image::of).filter(|image| image.matches(search));
            images.extend(found.filter(|image| !only_failed || !image.is_done));
            key = answer.last_evaluated_key;
            if images.len() >= limit || key.is_none() {
                return Ok(Images { items: images, next: key.as_ref().map(encode) });
            }
        }
    }

    /// The image of a `repository:tag` or `repository@digest` in the table.
    ///
    /// # Errors
    /// If it has no row.
    pub async fn image(&self, task: &Task, name: &str) -> Result<Image> {
        let missing = || {
            let name = Excerpt::within(name, 300);
            Error::Rejected(format!("{} has no image {name:?}. `ecr-transfer images {0}` lists them.", task.name))
        };
        let (image, tag) = name.rsplit_once('@').or_else(|| name.rsplit_once(':')).ok_or_else(missing)?;
        let table = task.output("ImageTable")?;
        let get = self.dynamodb.get_item().table_name(table);
        let get = get.key("Image", text_value(image)).key("Tag", text_value(tag));
        let answer = get.send().await.map_err(AwsError::aws("dynamodb:GetItem", table))?;
        answer.item.as_ref().map(Image::of).ok_or_else(missing)
    }
}

/// A key of the table or the index, which has texts only, as an opaque text.
fn encode(key: &Item) -> String {
    let texts: BTreeMap<_, _> = key.keys().map(|name| (name, text(key, name))).collect();
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&texts).unwrap_or_default())
}

fn decode(page: &str) -> Result<Item> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(page).ok();
    let texts = bytes.and_then(|it| serde_json::from_slice::<HashMap<String, String>>(&it).ok());
    let texts = texts.ok_or_else(|| Error::Rejected("The page is not one that was given.".into()))?;
    Ok(texts.into_iter().map(|(name, text)| (name, text_value(&text))).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use aws_sdk_dynamodb::operation::batch_get_item::BatchGetItemOutput;
    use aws_sdk_dynamodb::operation::get_item::GetItemOutput;
    use aws_sdk_dynamodb::operation::scan::ScanOutput;
    use aws_smithy_mocks::{Rule, mock};

    use super::super::account::tests::account;
    use super::super::stack::tests::task;
    use super::*;

    fn item(image: &str, tag: &str, done: bool) -> Item {
        let status = if done { "Done" } else { "Error" };
        let mut item = key(image, tag);
        item.insert("Status".into(), text_value(status));
        item.insert("Destination".into(), text_value(&format!("host/{image}:{tag}")));
        item
    }

    fn key(image: &str, tag: &str) -> Item {
        Item::from([("Image".into(), text_value(image)), ("Tag".into(), text_value(tag))])
    }

    /// An image, copied or failed.
    pub fn image(image: &str, tag: &str, done: bool) -> Image {
        Image::of(&item(image, tag, done))
    }

    fn names(images: &Images) -> Vec<String> {
        images.items.iter().map(Image::name).collect()
    }

    /// Two pages: the images `a:1` and `b:2`, then `c:1`.
    fn pages() -> [Rule; 2] {
        [
            mock!(aws_sdk_dynamodb::Client::scan)
                .match_requests(|request| request.exclusive_start_key().is_none() && request.index_name().is_none())
                .then_output(|| {
                    let items = vec![item("a", "1", true), item("b", "2", false)];
                    ScanOutput::builder().set_items(Some(items)).set_last_evaluated_key(Some(key("b", "2"))).build()
                }),
            mock!(aws_sdk_dynamodb::Client::scan)
                .match_requests(|request| request.exclusive_start_key() == Some(&key("b", "2")))
                .then_output(|| ScanOutput::builder().items(item("c", "1", true)).build()),
        ]
    }

    #[tokio::test]
    async fn images_come_in_pages() {
        let [first, second] = pages();
        let account = account(&[&first, &second]);
        let page = account.images(&task(), None, false, 2, None).await.expect("they are read");
        assert_eq!(names(&page), ["a:1", "b:2"]);
        let next = page.next.expect("there is another page");
        let page = account.images(&task(), None, false, 2, Some(&next)).await.expect("they are read");
        assert_eq!((names(&page), page.next), (vec!["c:1".to_owned()], None));
        assert!(account.images(&task(), None, false, 2, Some("x")).await.is_err());
    }

    #[tokio::test]
    async fn a_search_reads_until_it_has_found_enough() {
        let [first, second] = pages();
        let page =
            account(&[&first, &second]).images(&task(), Some("c:"), false, 5, None).await.expect("they are read");
        assert_eq!((names(&page), page.next), (vec!["c:1".to_owned()], None));
    }

    #[tokio::test]
    async fn failed_images_are_read_by_their_index() {
        let scan = mock!(aws_sdk_dynamodb::Client::scan)
            .match_requests(|request| request.index_name() == Some("Failing") && request.limit() == Some(100))
            .then_output(|| {
                let mut found = key("b", "2");
                found.insert("FailingSince".into(), text_value("2026-01-01T00:00:00Z"));
                ScanOutput::builder().items(found).items(key("healed", "1")).build()
            });
        let get = mock!(aws_sdk_dynamodb::Client::batch_get_item)
            .match_requests(|request| {
                let keys = request.request_items().and_then(|tables| tables.get("images")).map(|it| it.keys().to_vec());
                keys == Some(vec![key("b", "2"), key("healed", "1")])
            })
            .then_output(|| {
                let items = vec![item("b", "2", false), item("healed", "1", true)];
                BatchGetItemOutput::builder().responses("images", items).build()
            });
        let page = account(&[&scan, &get]).images(&task(), None, true, 1_000, None).await.expect("they are read");
        assert_eq!(names(&page), ["b:2"]);
    }

    #[tokio::test]
    async fn an_image_is_found_by_its_name_and_what_it_says_is_escaped() {
        let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
        let found = mock!(aws_sdk_dynamodb::Client::get_item)
            .match_requests(move |request| request.key() == Some(&key("a/b", digest)))
            .then_output(|| {
                let mut item = item("a/b", digest, false);
                item.insert("ErrorMessage".into(), text_value("<b>\u{1b}[2J"));
                item.insert("UpdatedAt".into(), text_value("2026-01-02T03:04:05Z"));
                GetItemOutput::builder().set_item(Some(item)).build()
            });
        let missing = mock!(aws_sdk_dynamodb::Client::get_item).then_output(|| GetItemOutput::builder().build());
        let account = account(&[&found, &missing]);
        let image = account.image(&task(), &format!("a/b@{digest}")).await.expect("it is there");
        assert_eq!(image.name(), format!("a/b@{digest}"));
        assert_eq!(image.error.map(|error| error.to_string()).as_deref(), Some(r"<b>\u{1b}[2J"));
        assert_eq!(image.updated_at.map(|time| time.to_string()).as_deref(), Some("2026-01-02T03:04:05Z"));
        for name in ["a/b:2", "a"] {
            let error = account.image(&task(), name).await.expect_err("it is not there").to_string();
            assert!(error.starts_with("copies has no image"), "{error}");
        }
    }

    #[test]
    fn a_value_is_quoted_where_it_must_be_and_no_formula() {
        for (value, expected) in [
            ("nginx", "nginx"),
            ("", ""),
            ("a,b", "\"a,b\""),
            ("say \"no\"", "\"say \"\"no\"\"\""),
            ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
            ("-1,2", "\"'-1,2\""),
        ] {
            assert_eq!(csv_value(value), expected);
        }
    }
}
