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

impl Account {
    /// Images of a task, in the order of the table, which is none. Only those whose `repository:tag` contains `search`, and only
    /// those that fail if `only_failed`. `from` is the end of another page. A page has about `limit` images: fewer at the end, and
    /// more or fewer if `search` is given.
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
            let limit_of_page = (only_failed || search.is_none()).then(|| i32::try_from(page.max(1)).unwrap_or(i32::MAX));
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
