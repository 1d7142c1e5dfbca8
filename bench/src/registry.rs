//! Registries with many images, in the words of ECR's API.

use std::{collections::HashMap, ops::Range};

use serde_json::json;

/// The most that a listing answers at once.
pub const PAGE: usize = 1_000;

/// What a listing answers at once if it is not asked for more.
const DEFAULT_PAGE: usize = 100;

/// A registry in one account and region.
pub struct Registry {
    /// The account.
    pub account: &'static str,
    /// The region.
    pub region: &'static str,
    /// Its repositories.
    pub repositories: Vec<Repository>,
    index: HashMap<String, usize>,
}

/// A repository.
pub struct Repository {
    /// Its name.
    pub name: String,
    /// Its JSON in DescribeRepositories.
    pub description: String,
    /// Its images, each with one tag.
    pub images: Vec<Image>,
}

/// An image.
pub struct Image {
    /// `sha256:…`
    pub digest: String,
    /// Its tag.
    pub tag: String,
    /// Its JSON in DescribeImages.
    pub detail: String,
}

impl Registry {
    /// A registry of `repositories` with `images` each. Two with the same `variant` have the same digests, two with
    /// another have no digest in common.
    #[must_use]
    pub fn new(account: &'static str, region: &'static str, repositories: usize, images: usize, variant: u64) -> Self {
        let repositories: Vec<_> = (0..repositories)
            .map(|number| {
                let name = repository_name(number);
                let image =
                    |image| Image::new(account, &name, variant << 48 | (number as u64) << 24 | image as u64, image);
                let images = (0..images).map(image).collect();
                Repository { description: description(account, region, &name), name, images }
            })
            .collect();
        let index = repositories.iter().enumerate().map(|(at, repository)| (repository.name.clone(), at)).collect();
        Self { account, region, repositories, index }
    }

    /// The repository of a name.
    #[must_use]
    pub fn repository(&self, name: &str) -> Option<&Repository> {
        self.index.get(name).map(|&at| &self.repositories[at])
    }

    /// The registry's URL, which ECR hands out together with a token.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://{}.dkr.ecr.{}.amazonaws.com", self.account, self.region)
    }
}

impl Repository {
    /// The image with this digest, or else this tag.
    #[must_use]
    pub fn image(&self, digest: Option<&str>, tag: Option<&str>) -> Option<&Image> {
        self.images.iter().find(|image| match digest {
            Some(digest) => image.digest == digest,
            None => Some(image.tag.as_str()) == tag,
        })
    }
}

impl Image {
    fn new(account: &str, repository: &str, identity: u64, number: usize) -> Self {
        let words: [u64; 4] = std::array::from_fn(|word| mix(identity ^ (word as u64) << 60));
        let digest = words.iter().fold("sha256:".to_owned(), |digest, word| format!("{digest}{word:016x}"));
        let tag = tag(number);
        let detail = json!({
            "artifactMediaType": "application/vnd.docker.container.image.v1+json",
            "imageDigest": digest,
            "imageManifestMediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "imagePushedAt": 1_700_000_000 + number,
            "imageSizeInBytes": 20_000_000 + words[0] % 200_000_000,
            "imageStatus": "ACTIVE",
            "imageTags": [tag],
            "lastRecordedPullTime": 1_750_000_000 + number,
            "registryId": account,
            "repositoryName": repository,
        });
        Self { digest, tag, detail: detail.to_string() }
    }
}

fn description(account: &str, region: &str, name: &str) -> String {
    json!({
        "createdAt": 1_700_000_000,
        "encryptionConfiguration": {"encryptionType": "AES256"},
        "imageScanningConfiguration": {"scanOnPush": false},
        "imageTagMutability": "MUTABLE",
        "registryId": account,
        "repositoryArn": format!("arn:aws:ecr:{region}:{account}:repository/{name}"),
        "repositoryName": name,
        "repositoryUri": format!("{account}.dkr.ecr.{region}.amazonaws.com/{name}"),
    })
    .to_string()
}

/// The name of a registry's repository, counted from 0: `team-17/service-421`.
#[must_use]
pub fn repository_name(number: usize) -> String {
    format!("team-{}/service-{}", number / 25 + 1, number + 1)
}

/// The tag of a repository's image, counted from 0: `v1`.
#[must_use]
pub fn tag(number: usize) -> String {
    format!("v{}", number + 1)
}

/// Which of `total` items the page has that `token` leads to, and the token that leads to the next one.
#[must_use]
pub fn page(total: usize, token: Option<&str>, limit: Option<usize>) -> (Range<usize>, Option<String>) {
    let start = token.and_then(|token| token.parse().ok()).unwrap_or(0).min(total);
    let end = total.min(start + limit.unwrap_or(DEFAULT_PAGE).clamp(1, PAGE));
    (start..end, (end < total).then(|| end.to_string()))
}

/// Numbers that look random, and are the same in each run: SplitMix64.
#[must_use]
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_everything_once() {
        let mut token: Option<String> = None;
        let mut items = Vec::new();
        let mut pages = 0;
        loop {
            let (range, next) = page(2_500, token.as_deref(), Some(PAGE));
            items.extend(range);
            pages += 1;
            token = next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(pages, 3);
        assert_eq!(items, (0..2_500).collect::<Vec<_>>());
    }

    #[test]
    fn a_page_is_as_long_as_ecr_allows() {
        assert_eq!(page(5_000, None, None).0, 0..100);
        assert_eq!(page(5_000, None, Some(9_999)).0, 0..1_000);
        assert_eq!(page(1_000, None, Some(1_000)), (0..1_000, None));
        assert_eq!(page(0, None, Some(1_000)), (0..0, None));
    }

    #[test]
    fn digests_differ_between_images_and_variants_only() {
        let digests = |variant| -> Vec<_> {
            let registry = Registry::new("1", "r", 3, 3, variant);
            registry.repositories.into_iter().flat_map(|it| it.images).map(|image| image.digest).collect()
        };
        assert_eq!(digests(0), digests(0));
        let mut all = [digests(0), digests(1)].concat();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 18);
        assert!(all.iter().all(|digest| digest.len() == "sha256:".len() + 64));
    }
}
