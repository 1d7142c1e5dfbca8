//! The images of a repository in any registry that speaks the OCI distribution API.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use shared::Result;
use shared::ecr::Login;
use shared::logins::SourceLogins;
use shared::manifest::{Manifest, Platform};
use tokio::sync::Mutex;

use super::{Listed, Listing, Options, Wish, choose, on_platform, unlistable};
use crate::distribution::{Client, Session};
use crate::selection::Named;
use crate::tags::{Available, subject};

/// Images of one repository that are asked for at once. The client limits how many it asks one registry for.
const CONCURRENCY: usize = 16;

/// On Docker Hub a GET of a manifest counts as a pull, of which there are few; a HEAD does not.
pub const COUNTS_PULLS: &str = "docker.io";

/// All of them, and the logins to those that want one.
pub struct Registries<'a> {
    client: Client,
    logins: SourceLogins<'a>,
    /// Those got so far, by host: ECR's take a call.
    known: Mutex<HashMap<String, Option<Login>>>,
}

impl<'a> Registries<'a> {
    /// Registries that are asked by `client` with `logins`.
    #[must_use]
    pub fn new(client: Client, logins: SourceLogins<'a>) -> Self {
        Self { client, logins, known: Mutex::default() }
    }

    /// The logins.
    #[must_use]
    pub fn logins(&self) -> &SourceLogins<'a> {
        &self.logins
    }

    /// How many images may still be pulled from where pulls count, if that is known.
    #[must_use]
    pub fn pulls_left(&self) -> Option<u64> {
        self.client.pulls_left()
    }

    /// Lists what the run wants of a repository, with the digests that the registry names. An image that it does not name
    /// is left to skopeo, which says why in its own words.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub async fn list(&self, wish: &Wish, options: &Options) -> Result<Listing> {
        let session = self.open(wish).await?;
        let tags = match session.tags_for(wish, options).await? {
            Tags::Known(tags) => tags,
            Tags::NotNeeded => Vec::new(),
            Tags::None => {
                let mut listing = Listing::default();
                listing.images.push(unlistable(&std::io::Error::other("the source shows no tags of it")));
                listing.images.extend(heads(&session, wish.wanted.images.iter().cloned().collect()).await?);
                return Ok(listing);
            }
        };
        let available: Vec<_> = tags.iter().map(|tag| Available { tag, pushed_at: 0 }).collect();
        let (chosen, mut listing) = choose(&wish.wanted, &available, &options.rules);
        listing.images.extend(heads(&session, chosen).await?);
        if let Some(platform) = &options.platform {
            resolve(&session, platform, &mut listing.images).await;
        }
        if options.include_untagged {
            companions(&session, &tags, options, &mut listing).await?;
        }
        Ok(listing)
    }

    /// Fills in the sizes, where asking for them costs no pull.
    ///
    /// # Errors
    /// When the repository cannot be asked.
    pub async fn with_sizes(&self, wish: &Wish, images: Vec<Listed>) -> Result<Vec<Listed>> {
        let unknown = |image: &Listed| image.error.is_none() && image.digest.is_some();
        if wish.repository.registry == COUNTS_PULLS || !images.iter().any(unknown) {
            return Ok(images);
        }
        let session = &self.open(wish).await?;
        let with_size = async |image: Listed| match &image.digest {
            Some(digest) if image.error.is_none() => {
                let (bytes, images) = content(session, digest).await;
                Listed { bytes, images, ..image }
            }
            _ => image,
        };
        Ok(stream::iter(images).map(with_size).buffered(CONCURRENCY).collect().await)
    }

    async fn open(&self, wish: &Wish) -> Result<Session<'_>> {
        let login = self.login(&wish.repository.registry).await?;
        self.client.open(&wish.repository, login).await
    }

    async fn login(&self, host: &str) -> Result<Option<Login>> {
        let mut known = self.known.lock().await;
        if let Some(login) = known.get(host) {
            return Ok(login.clone());
        }
        let login = self.logins.to(host).await?;
        known.insert(host.to_owned(), login.clone());
        Ok(login)
    }
}

/// The tags of a repository.
enum Tags {
    Known(Vec<String>),
    NotNeeded,
    None,
}

impl Session<'_> {
    /// The tags, where a pattern or the companions of an image need them.
    async fn tags_for(&self, wish: &Wish, options: &Options) -> Result<Tags> {
        if !wish.wanted.patterns.is_empty() {
            return Ok(self.tags().await?.filter(|tags| !tags.is_empty()).map_or(Tags::None, Tags::Known));
        }
        if !options.include_untagged {
            return Ok(Tags::NotNeeded);
        }
        // The images are named; what belongs to them can only be found where the registry shows its tags.
        Ok(self.tags().await?.map_or(Tags::NotNeeded, Tags::Known))
    }
}

/// What the registry says of each image. One that it fails to tell of is an error of that image.
async fn heads(session: &Session<'_>, images: Vec<Named>) -> Result<Vec<Listed>> {
    let total = images.len();
    let heads: Vec<(Listed, Option<shared::Error>)> = stream::iter(images)
        .map(async |named| {
            let reference = named.digest.as_ref().or(named.tag.as_ref()).map_or("latest", String::as_str);
            match session.head(reference).await {
                Ok(head) => {
                    let is_index = head.as_ref().is_some_and(|head| head.is_index);
                    let digest = named.digest.clone().or(head.map(|head| head.digest));
                    (Listed { tag: named.tag, digest, is_index, ..Listed::default() }, None)
                }
                Err(error) => {
                    let listed = Listed {
                        tag: named.tag,
                        digest: named.digest,
                        error: Some(error.to_string()),
                        ..Listed::default()
                    };
                    (listed, Some(error))
                }
            }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    // Where the registry tells of none, it is the repository that cannot be listed.
    if total > 0 && heads.iter().all(|(_, error)| error.is_some()) {
        return Err(heads.into_iter().find_map(|(_, error)| error).expect("there is one, and each has failed"));
    }
    Ok(heads.into_iter().map(|(listed, _)| listed).collect())
}

/// Puts in place of each index its image for the platform.
async fn resolve(session: &Session<'_>, platform: &Platform, images: &mut [Listed]) {
    let resolve = async |image: &mut Listed| {
        let Some(digest) = image.digest.clone().filter(|_| image.is_index) else { return };
        let index = session.manifest(&digest).await.map_err(|error| error.to_string());
        match index.and_then(|index| on_platform(&index, platform)) {
            Ok(child) => (image.digest, image.is_index) = (Some(child.digest), false),
            Err(error) => image.error = Some(error),
        }
    };
    stream::iter(images).for_each_concurrent(CONCURRENCY, resolve).await;
}

/// Adds what refers to the listed images: signatures, SBOMs, attestations; and what refers to these.
async fn companions(session: &Session<'_>, tags: &[String], options: &Options, listing: &mut Listing) -> Result<()> {
    let named: BTreeSet<Option<String>> = listing.images.iter().map(|image| image.tag.clone()).collect();
    let is_new = |tag: &&String| !named.contains(&Some((*tag).clone())) && options.rules.excluding_tag(tag).is_none();
    let mut tags: Vec<&String> = tags.iter().filter(|tag| subject(tag).is_some()).filter(is_new).collect();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut fresh: BTreeSet<String> = listing.images.iter().filter_map(|image| image.digest.clone()).collect();
    while !fresh.is_empty() {
        let (of_fresh, others) =
            tags.into_iter().partition(|tag| subject(tag).is_some_and(|digest| fresh.contains(&digest)));
        tags = others;
        let named = Vec::<&String>::into_iter(of_fresh).map(|tag| Named { tag: Some(tag.clone()), digest: None });
        let mut found = heads(session, named.collect()).await?;

        let referrers: Vec<Vec<String>> =
            stream::iter(&fresh).map(|digest| session.referrers(digest)).buffered(CONCURRENCY).try_collect().await?;
        let untagged = referrers.into_iter().flatten();
        found.extend(untagged.map(|digest| Listed { digest: Some(digest), ..Listed::default() }));

        known.append(&mut fresh);
        found.retain(|image| image.tag.is_some() || image.digest.as_ref().is_some_and(|it| !known.contains(it)));
        fresh = found.iter().filter_map(|image| image.digest.clone()).filter(|it| !known.contains(it)).collect();
        for image in found {
            if !listing.images.contains(&image) {
                listing.images.push(image);
            }
        }
    }
    Ok(())
}

/// The bytes of an image; of an index, those of all its images, and how many there are. 0 where the registry does not
/// tell.
async fn content(session: &Session<'_>, digest: &str) -> (u64, u64) {
    let Ok(manifest) = session.manifest(digest).await else { return (0, 0) };
    let images: Vec<Manifest> = stream::iter(&manifest.manifests)
        .map(async |image| session.manifest(&image.digest).await.unwrap_or_default())
        .buffered(CONCURRENCY)
        .collect()
        .await;
    (Manifest::blob_bytes(images.iter().chain([&manifest])), images.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_config::SdkConfig;
    use aws_smithy_mocks::{RuleMode, mock_client};
    use axum::body::Body;
    use axum::http::{Method, Request, Response};
    use serde_json::json;
    use shared::config::SourceConfig;
    use shared::credentials::Stores;

    use super::*;
    use crate::distribution::tests::{client, json, serve, status};
    use crate::naming::Naming;
    use crate::rules::Rules;
    use crate::selection;

    fn digest(of: char) -> String {
        format!("sha256:{}", of.to_string().repeat(64))
    }

    fn signature(of: char) -> String {
        format!("{}.sig", digest(of).replace(':', "-"))
    }

    /// A registry with an index as 1.0 and latest, a signed image as 1.1, and an SBOM that refers to the latter.
    fn answer(request: &Request<Body>) -> Response<Body> {
        let index = || {
            json(&json!({ "manifests": [
                { "digest": digest('c'), "platform": { "os": "linux", "architecture": "arm64" } },
                { "digest": digest('d'), "platform": { "os": "linux", "architecture": "amd64" } },
            ] }))
        };
        let head = |of: char, is_index: bool| {
            let kind = if is_index { "index" } else { "manifest" };
            let mut answer = if request.method() == Method::GET && is_index { index() } else { status(200) };
            let media_type = format!("application/vnd.oci.image.{kind}.v1+json");
            answer.headers_mut().insert("content-type", media_type.parse().expect("it is a header"));
            answer.headers_mut().insert("docker-content-digest", digest(of).parse().expect("it is a header"));
            answer
        };
        let Some(rest) = request.uri().path().strip_prefix("/v2/team/app/") else { return status(200) };
        match rest.split_once('/').unwrap_or_default() {
            ("tags", _) => json(&json!({ "tags": ["1.0", "1.1", "latest", "2.0-beta", signature('b')] })),
            ("manifests", "1.0" | "latest") => head('a', true),
            ("manifests", it) if it == digest('a') => head('a', true),
            ("manifests", "1.1") => head('b', false),
            ("manifests", it) if it == signature('b') => head('5', false),
            ("referrers", it) if it == digest('b') => json(&json!({ "manifests": [{ "digest": digest('7') }] })),
            ("referrers", _) => json(&json!({ "manifests": [] })),
            _ => status(404),
        }
    }

    async fn list(host: &str, entry: &str, options: &Options) -> Result<Listing> {
        let base = SdkConfig::builder().build();
        let stores = Stores {
            secrets: mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, []),
            ssm: mock_client!(aws_sdk_ssm, RuleMode::MatchAny, []),
            sts: mock_client!(aws_sdk_sts, RuleMode::MatchAny, []),
        };
        let logins = SourceLogins::connect(&base, &stores, &SourceConfig::Public(None)).await.expect("it is anonymous");
        let list = entry.split(',').map(|tag| format!("{host}/team/app:{tag}")).collect::<Vec<_>>().join(",");
        let (repository, wanted) = selection::parse([("the list", list.as_str())], None)
            .expect("it is a list")
            .into_iter()
            .next()
            .expect("it names one repository");
        let name = Naming::Plain.name(&repository);
        let wish = Wish { destination: name.clone(), name, repository, wanted };
        Registries::new(client(), logins).list(&wish, options).await
    }

    fn options(platform: Option<&str>, exclude: &str) -> Options {
        Options {
            include_untagged: true,
            platform: platform.map(|platform| platform.parse().expect("it is one")),
            rules: Rules::read(&[("EXCLUDE_TAGS", exclude)].into_iter().collect()).expect("they are globs"),
        }
    }

    fn pairs(listing: Listing) -> Vec<(String, String)> {
        let mut pairs: Vec<_> = listing
            .images
            .into_iter()
            .map(|image| (image.tag.unwrap_or("-".into()), image.error.or(image.digest).unwrap_or("?".into())))
            .collect();
        pairs.sort();
        pairs
    }

    fn expected(pairs: &[(&str, String)]) -> Vec<(String, String)> {
        pairs.iter().map(|(tag, digest)| ((*tag).to_owned(), digest.clone())).collect()
    }

    #[tokio::test]
    async fn all_tags_are_listed_with_what_refers_to_them_and_without_what_is_excluded() {
        let host = serve(answer).await;
        let listing = list(&host, "ALL_TAGS", &options(None, "*beta*")).await.expect("it can be listed");
        assert_eq!(listing.excluded.len(), 1);
        assert_eq!(
            pairs(listing),
            expected(&[
                ("-", digest('7')),
                ("1.0", digest('a')),
                ("1.1", digest('b')),
                ("latest", digest('a')),
                (&signature('b'), digest('5')),
            ])
        );
    }

    #[tokio::test]
    async fn a_named_image_brings_its_signature_and_one_that_is_missing_is_left_to_skopeo() {
        let host = serve(answer).await;
        let listing = list(&host, "1.1,9.9", &options(None, "")).await.expect("it can be listed");
        assert_eq!(
            pairs(listing),
            expected(&[("-", digest('7')), ("1.1", digest('b')), ("9.9", "?".into()), (&signature('b'), digest('5'))])
        );
        let without = Options { include_untagged: false, ..options(None, "") };
        assert_eq!(
            pairs(list(&host, "1.1", &without).await.expect("it can be listed")),
            expected(&[("1.1", digest('b'))])
        );
    }

    #[tokio::test]
    async fn for_one_platform_an_index_is_its_image_for_it() {
        let host = serve(answer).await;
        let listing = list(&host, "1.0,1.1", &options(Some("linux/arm64"), "")).await.expect("it can be listed");
        assert_eq!(
            pairs(listing),
            expected(&[("-", digest('7')), ("1.0", digest('c')), ("1.1", digest('b')), (&signature('b'), digest('5'))])
        );
        let listing = list(&host, "1.0", &options(Some("linux/s390x"), "")).await.expect("it can be listed");
        assert_eq!(
            pairs(listing),
            expected(&[("1.0", "it has no image for linux/s390x, only for linux/arm64, linux/amd64".into())])
        );
    }

    #[tokio::test]
    async fn a_repository_that_shows_no_tags_is_told() {
        let host = serve(|request| status(if request.uri().path() == "/v2/" { 200 } else { 404 })).await;
        let listing = list(&host, "ALL_TAGS", &options(None, "")).await.expect("it has answered");
        assert_eq!(
            pairs(listing),
            expected(&[("ALL_TAGS", "its images cannot be listed: the source shows no tags of it".into())])
        );
    }

    #[tokio::test]
    async fn an_image_that_the_registry_fails_to_tell_of_costs_no_other_one_and_all_of_them_the_repository() {
        let asked = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&asked);
        let host = serve(move |request| {
            if request.uri().path().ends_with("/manifests/1.0") {
                count.fetch_add(1, Ordering::Relaxed);
                return status(503);
            }
            answer(request)
        })
        .await;
        let listing = list(&host, "1.0,1.1", &options(None, "")).await.expect("one of them is listed");
        let errors: Vec<_> = listing.images.iter().filter_map(|image| image.error.as_deref()).collect();
        assert_eq!(errors.len(), 1);
        assert!(errors[0].contains("503 Service Unavailable"), "{errors:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 4, "a registry that fails is asked again");

        let error = list(&host, "1.0", &options(None, "")).await.expect_err("none is listed");
        assert_eq!(error.name(), "ServiceUnavailable");
    }
}
