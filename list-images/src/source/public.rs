//! Lists the images of a repository in any registry with the OCI distribution API.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt, stream};
use shared::Result;
use shared::ecr::Login;
use shared::logins::SourceLogins;
use shared::manifest::{Blobs, Platform};
use shared::reference::{Digest, RegistryHost, Tag};
use shared::selection::NamedImage;
use shared::tags::{Available, subject};
use tokio::sync::Mutex;

use super::{Finished, Listing, ListingFailure, Options, RepositoryRequest, SourceImage, choose, on_platform};
use crate::distribution::{Client, Head, Session, TagList};

/// Images of one repository that are requested at once. The client has another limit for each registry.
const CONCURRENCY: usize = 16;

/// Images of an index that are requested at once.
const CHILDREN_AT_ONCE: usize = 4;

/// The most layers of an image with all its platforms.
const BLOBS: usize = 10_000;

/// The most referrers in a repository.
const REFERRERS: usize = 10_000;

/// The client for all registries, and their logins.
pub struct Registries<'a> {
    client: Client,
    logins: SourceLogins<'a>,
    /// The logins by host. Each login of ECR takes a call.
    known: Mutex<HashMap<RegistryHost, Option<Login>>>,
}

impl<'a> Registries<'a> {
    pub fn new(client: Client, logins: SourceLogins<'a>) -> Self {
        Self { client, logins, known: Mutex::default() }
    }

    /// See [`Client::pulls_left`].
    pub fn pulls_left(&self) -> Option<u64> {
        self.client.pulls_left()
    }

    /// Lists the selected images of a repository.
    pub async fn list(&self, request: &RepositoryRequest, options: &Options) -> Result<Listing> {
        let session = self.open(request).await?;
        let by_pattern = !request.wanted.patterns.is_empty();
        // For images that the list names, the tags are only needed to find their referrers.
        let tags = if by_pattern || options.include_untagged { session.tags().await } else { Ok(None) };
        let (tags, failure) = match tags {
            Ok(Some(TagList { tags, invalid })) => {
                let failure = invalid.filter(|_| by_pattern).map(|(count, first)| {
                    let error = format!("Skipped invalid tags: {count}. The first one is {first:?}.");
                    ListingFailure::new("invalid tags", &error)
                });
                (tags, failure)
            }
            Ok(None) => (Vec::new(), None),
            Err(error) if by_pattern => return Err(error),
            Err(error) => (Vec::new(), Some(ListingFailure::referrers(&error))),
        };
        let (chosen, mut listing) = if by_pattern && tags.is_empty() {
            let mut listing = Listing::default();
            listing.fail(ListingFailure::unlistable(NO_TAGS));
            (request.wanted.images.iter().cloned().collect(), listing)
        } else {
            let available: Vec<_> = tags.iter().map(|tag| Available { tag, pushed_at: 0 }).collect();
            choose(&request.wanted, &available, &BTreeSet::new(), &options.rules)
        };
        failure.into_iter().for_each(|failed| listing.fail(failed));
        add_digests(&session, chosen, &mut listing).await?;
        if let Some(platform) = &options.platform {
            resolve(&session, platform, &mut listing).await;
        }
        if options.include_untagged
            && let Err(error) = add_referrers(&session, &tags, options, &mut listing).await
        {
            listing.fail(ListingFailure::referrers(&error));
        }
        Ok(listing)
    }

    /// Adds sizes and numbers of images, except on Docker Hub, and checks the subjects of referrers.
    pub async fn with_sizes(&self, request: &RepositoryRequest, images: Vec<SourceImage>) -> Result<Finished> {
        // Docker Hub counts a GET of a manifest as a pull, but not a HEAD.
        let is_read = |image: &SourceImage| !request.repository.registry.is_docker_hub() || image.subject.is_some();
        if !images.iter().any(is_read) {
            return Ok((images, Vec::new()));
        }
        let session = &self.open(request).await?;
        let finish =
            async |image: SourceImage| if is_read(&image) { with_size(session, image).await } else { Ok(image) };
        let finished: Vec<_> = stream::iter(images).map(finish).buffered(CONCURRENCY).collect().await;
        let mut listing = Listing::default();
        listing.add(finished);
        Ok((listing.images, listing.failures))
    }

    async fn open(&self, request: &RepositoryRequest) -> Result<Session<'_>> {
        let login = self.login(&request.repository.registry).await?;
        self.client.open(&request.repository, login).await
    }

    async fn login(&self, host: &RegistryHost) -> Result<Option<Login>> {
        let mut known = self.known.lock().await;
        if let Some(login) = known.get(host) {
            return Ok(login.clone());
        }
        let login = self.logins.to(host).await?;
        known.insert(host.clone(), login.clone());
        Ok(login)
    }
}

const NO_TAGS: &str = "the registry returned no tags. The repository does not exist, is empty, or requires a login.";

/// Requests the digests of images, and adds them to the listing. An image whose request fails is a failure. If the registry is
/// unavailable for all of them, the repository cannot be listed, and this is an error.
async fn add_digests(session: &Session<'_>, images: Vec<NamedImage>, listing: &mut Listing) -> Result<()> {
    let mut heads = stream::iter(images)
        .map(async |named| {
            let tag = || named.tag.as_ref().map_or_else(|| "latest".to_owned(), ToString::to_string);
            let reference = named.digest.map_or_else(tag, |digest| digest.to_string());
            let head = session.head(&reference).await;
            (named, head)
        })
        .buffered(CONCURRENCY);
    let (mut is_available, mut first_error) = (false, None);
    while let Some((NamedImage { tag, digest }, head)) = heads.next().await {
        match head {
            Ok(Head { digest: found, is_index }) => {
                is_available = true;
                listing.images.push(SourceImage { is_index, ..SourceImage::new(tag, digest.unwrap_or(found)) });
            }
            Err(error) => {
                is_available |= !error.kind().is_transient();
                listing.fail(ListingFailure::of(tag.as_ref(), digest, &error.to_string()));
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.filter(|_| !is_available).map_or(Ok(()), Err)
}

/// Replaces each index by its image for the platform.
async fn resolve(session: &Session<'_>, platform: &Platform, listing: &mut Listing) {
    let resolve = async |image: SourceImage| {
        if !image.is_index {
            return Ok(image);
        }
        let index = session.manifest(image.digest).await.map_err(|error| error.to_string());
        match index.and_then(|index| on_platform(&index, platform)) {
            Ok(child) => Ok(SourceImage { digest: child.digest, is_index: false, ..image }),
            Err(error) => Err(image.failed(&error)),
        }
    };
    let images = std::mem::take(&mut listing.images);
    let resolved: Vec<_> = stream::iter(images).map(resolve).buffered(CONCURRENCY).collect().await;
    listing.add(resolved);
}

/// Adds referrers of the listed images, such as signatures, SBOMs and attestations, and referrers of these. After an error,
/// those that were found remain in the listing.
async fn add_referrers(session: &Session<'_>, tags: &[Tag], options: &Options, listing: &mut Listing) -> Result<()> {
    let named: BTreeSet<Option<Tag>> = listing.images.iter().map(|image| image.tag.clone()).collect();
    let is_new = |tag: &&Tag| !named.contains(&Some((*tag).clone())) && options.rules.excluding_tag(tag).is_none();
    let mut tags: Vec<&Tag> = tags.iter().filter(|tag| subject(tag).is_some()).filter(is_new).collect();
    let mut known: BTreeSet<Digest> = BTreeSet::new();
    let mut fresh: BTreeSet<Digest> = listing.images.iter().map(|image| image.digest).collect();
    let selected = listing.images.len();
    let mut first_error = None;
    while !fresh.is_empty() {
        let (of_fresh, rest) =
            tags.into_iter().partition(|tag| subject(tag).is_some_and(|digest| fresh.contains(&digest)));
        tags = rest;
        let named = Vec::<&Tag>::into_iter(of_fresh).map(|tag| NamedImage { tag: Some(tag.clone()), digest: None });
        let mut found = Listing::default();
        add_digests(session, named.collect(), &mut found).await?;
        found.failures.drain(..).for_each(|failed| listing.fail(failed));

        let mut referrers = stream::iter(fresh.iter().copied())
            .map(async |digest| (digest, session.referrers(digest).await))
            .buffered(CONCURRENCY);
        let mut new = BTreeSet::new();
        while let Some((digest, referrers)) = referrers.next().await {
            let referrers = match referrers {
                // ECR rejects some of these requests, but not all.
                Err(error) if !error.kind().is_transient() => {
                    first_error.get_or_insert(error);
                    continue;
                }
                referrers => referrers?,
            };
            for referrer in referrers {
                if !fresh.contains(&referrer) && !known.contains(&referrer) && new.insert(referrer) {
                    found.images.push(SourceImage { subject: Some(digest), ..SourceImage::new(None, referrer) });
                }
            }
            if listing.images.len() - selected + found.images.len() > REFERRERS {
                return Err(session.unusable(&format!("the repository exceeds the limit of {REFERRERS} referrers.")));
            }
        }
        drop(referrers);

        known.append(&mut fresh);
        for image in found.images {
            let is_new = !known.contains(&image.digest) && fresh.insert(image.digest);
            if is_new || image.tag.is_some() {
                listing.images.push(image);
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Adds the bytes of an image, or the bytes and number of all images of an index, and checks the subject of a referrer. An
/// image of an index that cannot be read has 0 bytes.
async fn with_size(session: &Session<'_>, image: SourceImage) -> Result<SourceImage, ListingFailure> {
    let manifest = match (session.manifest(image.digest).await, image.subject) {
        (Ok(manifest), Some(subject)) if manifest.subject.as_ref().map(|it| it.digest) != Some(subject) => {
            let error = format!(
                "The registry lists it as a referrer of {subject}, but its manifest does not refer to this image."
            );
            return Err(image.failed(&error));
        }
        (Ok(manifest), _) => manifest,
        (Err(error), _) => return Err(image.failed(&error.to_string())),
    };
    let children: BTreeSet<Digest> = manifest.manifests.iter().map(|child| child.digest).collect();
    let mut blobs = Blobs::default();
    blobs.add(&manifest);
    let mut manifests = stream::iter(children.iter().copied())
        .map(async |child| session.manifest(child).await.unwrap_or_default())
        .buffer_unordered(CHILDREN_AT_ONCE);
    while let Some(child) = manifests.next().await {
        blobs.add(&child);
        if blobs.count() > BLOBS {
            return Err(image.failed(&format!("The image exceeds the limit of {BLOBS} layers.")));
        }
    }
    Ok(SourceImage { bytes: blobs.bytes(), images: children.len().try_into().unwrap_or(u32::MAX), ..image })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_config::SdkConfig;
    use aws_smithy_mocks::{RuleMode, mock_client};
    use axum::body::Body;
    use axum::http::{Method, Request, Response};
    use serde_json::{Value, json};
    use shared::config::{PublicConfig, SourceConfig};
    use shared::credentials::Stores;
    use shared::naming::Naming;
    use shared::reference::RepositoryName;
    use shared::selection;

    use super::*;
    use crate::distribution::tests::{client, json, serve, status};
    use crate::rules::Rules;

    /// An index of two platforms.
    fn index() -> Value {
        let image = |architecture: &str| {
            let platform = json!({ "os": "linux", "architecture": architecture });
            json!({ "digest": Digest::of(architecture.as_bytes()), "platform": platform })
        };
        json!({ "manifests": [image("arm64"), image("amd64")] })
    }

    /// An SBOM that refers to the signed image.
    fn sbom() -> Value {
        json!({ "subject": { "digest": of("signed") } })
    }

    fn of(content: &str) -> Digest {
        Digest::of(content.as_bytes())
    }

    fn of_json(content: &Value) -> Digest {
        of(&content.to_string())
    }

    fn signature() -> String {
        format!("sha256-{}.sig", of("signed").hex())
    }

    /// A registry with an index (1.0 and latest), a signed image (1.1), and an SBOM of the signed image.
    fn answer(request: &Request<Body>) -> Response<Body> {
        let manifest = |content: String, kind: &str| {
            let digest = of(&content);
            let mut answer =
                Response::new(Body::from(if request.method() == Method::GET { content } else { String::new() }));
            let media_type = format!("application/vnd.oci.image.{kind}.v1+json");
            answer.headers_mut().insert("content-type", media_type.parse().expect("it is a header"));
            answer.headers_mut().insert("docker-content-digest", digest.to_string().parse().expect("it is a header"));
            answer
        };
        let referrers = |digests: &[Digest]| {
            let referrers: Vec<_> = digests.iter().map(|digest| json!({ "digest": digest })).collect();
            json(&json!({ "manifests": referrers }))
        };
        let Some(rest) = request.uri().path().strip_prefix("/v2/team/app/") else { return status(200) };
        match rest.split_once('/').unwrap_or_default() {
            ("tags", _) => json(&json!({ "tags": ["1.0", "1.1", "latest", "2.0-beta", signature(), "not a tag\n"] })),
            ("manifests", "1.0" | "latest") => manifest(index().to_string(), "index"),
            ("manifests", it) if it == of_json(&index()).to_string() => manifest(index().to_string(), "index"),
            ("manifests", "1.1") => manifest("signed".into(), "manifest"),
            ("manifests", it) if it == signature() => manifest("signature".into(), "manifest"),
            ("manifests", it) if it == of_json(&sbom()).to_string() => manifest(sbom().to_string(), "manifest"),
            ("manifests", it) if it == of("{}").to_string() => manifest("{}".into(), "manifest"),
            ("referrers", it) if it == of("signed").to_string() => referrers(&[of_json(&sbom())]),
            ("referrers", it) if it == of_json(&index()).to_string() => referrers(&[of("{}"), of_json(&sbom())]),
            ("referrers", _) => referrers(&[]),
            _ => status(404),
        }
    }

    async fn list(host: &str, entry: &str, options: &Options) -> Result<Listing> {
        with_registries(async |registries| registries.list(&request(host, entry), options).await).await
    }

    async fn with_registries<T>(work: impl AsyncFnOnce(Registries<'_>) -> T) -> T {
        let base = SdkConfig::builder().build();
        let stores = Stores {
            secrets: mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, []),
            ssm: mock_client!(aws_sdk_ssm, RuleMode::MatchAny, []),
            sts: mock_client!(aws_sdk_sts, RuleMode::MatchAny, []),
        };
        let source = SourceConfig::Public(PublicConfig::default());
        let logins = SourceLogins::connect(&base, &stores, &source).await.expect("it is anonymous");
        work(Registries::new(client(), logins)).await
    }

    fn request(host: &str, entry: &str) -> RepositoryRequest {
        let list = entry.split(',').map(|tag| format!("{host}/team/app:{tag}")).collect::<Vec<_>>().join(",");
        let selection = selection::parse([("the list", list.as_str())], None).expect("it is a list");
        let (repository, wanted) = selection.into_iter().next().expect("it names one repository");
        let name: RepositoryName = Naming::Plain.name(&repository).parse().expect("it is a name");
        RepositoryRequest { destination: name.clone(), name, repository, wanted }
    }

    fn options(platform: Option<&str>, exclude: &str) -> Options {
        Options {
            include_untagged: true,
            platform: platform.map(|platform| platform.parse().expect("it is valid")),
            rules: Rules::read(&[("EXCLUDE_TAGS", exclude)].into_iter().collect()).expect("they are globs"),
        }
    }

    /// The tags, or `-`, and digests of the listed images.
    fn pairs(listing: &Listing) -> Vec<(String, Digest)> {
        let tag = |tag: &Option<Tag>| tag.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let mut pairs: Vec<_> = listing.images.iter().map(|image| (tag(&image.tag), image.digest)).collect();
        pairs.sort();
        pairs
    }

    fn expected(pairs: &[(&str, Digest)]) -> Vec<(String, Digest)> {
        let mut pairs: Vec<_> = pairs.iter().map(|&(tag, digest)| (tag.to_owned(), digest)).collect();
        pairs.sort();
        pairs
    }

    fn failures(listing: &Listing) -> Vec<(&str, &str)> {
        listing.failures.iter().map(|it| (it.name.as_str(), it.error.as_str())).collect()
    }

    #[tokio::test]
    async fn all_tags_are_listed_with_referrers_and_without_excluded_tags() {
        let host = serve(answer).await;
        let listing = list(&host, "ALL_TAGS", &options(None, "*beta*")).await.expect("it can be listed");
        assert_eq!(listing.excluded.len(), 1);
        let index = of_json(&index());
        assert_eq!(
            pairs(&listing),
            expected(&[
                ("-", of_json(&sbom())),
                ("-", of("{}")),
                ("1.0", index),
                ("1.1", of("signed")),
                ("latest", index),
                (&signature(), of("signature")),
            ])
        );
        let message = r#"Skipped invalid tags: 1. The first one is "not a tag\n"."#;
        assert_eq!(failures(&listing), [("invalid tags", message)]);
    }

    #[tokio::test]
    async fn a_named_image_is_listed_with_its_signature_and_a_missing_one_does_not_affect_others() {
        let host = serve(answer).await;
        let listing = list(&host, "1.1,9.9", &options(None, "")).await.expect("it can be listed");
        assert_eq!(
            pairs(&listing),
            expected(&[("-", of_json(&sbom())), ("1.1", of("signed")), (&signature(), of("signature"))])
        );
        let [("9.9", error)] = failures(&listing)[..] else { panic!("one is missing: {listing:?}") };
        assert!(error.contains("/v2/team/app/manifests/9.9 returned 404 Not Found"), "{error}");
        let without = Options { include_untagged: false, ..options(None, "") };
        let listing = list(&host, "1.1", &without).await.expect("it can be listed");
        assert_eq!(pairs(&listing), expected(&[("1.1", of("signed"))]));
    }

    #[tokio::test]
    async fn referrers_that_cannot_be_listed_are_a_separate_failure_and_do_not_affect_images() {
        let host = serve(|request| {
            let refused = format!("/v2/team/app/referrers/{}", of_json(&index()));
            if request.uri().path() == refused { status(405) } else { answer(request) }
        })
        .await;
        let listing = list(&host, "1.0,1.1", &options(None, "")).await.expect("it can be listed");
        assert_eq!(
            pairs(&listing),
            expected(&[
                ("-", of_json(&sbom())),
                ("1.0", of_json(&index())),
                ("1.1", of("signed")),
                (&signature(), of("signature"))
            ])
        );
        let [("all referrers", error)] = failures(&listing)[..] else { panic!("one is refused: {listing:?}") };
        assert!(error.contains("returned 405 Method Not Allowed"), "{error}");
    }

    #[tokio::test]
    async fn a_referrer_whose_manifest_has_another_subject_is_not_copied() {
        let host = serve(answer).await;
        let request = request(&host, "1.0");
        let (images, failures) = with_registries(async |registries| {
            let listing = registries.list(&request, &options(None, "")).await.expect("it can be listed");
            registries.with_sizes(&request, listing.images).await.expect("it can be asked")
        })
        .await;
        assert_eq!(images.iter().map(|image| image.digest).collect::<Vec<_>>(), [of_json(&index())]);
        let names: BTreeSet<_> = failures.iter().map(|failed| failed.name.to_string()).collect();
        assert_eq!(names, BTreeSet::from([of("{}").to_string(), of_json(&sbom()).to_string()]));
        let error = "but its manifest does not refer to this image.";
        assert!(failures.iter().all(|failed| failed.error.as_str().ends_with(error)), "{failures:?}");
    }

    #[tokio::test]
    async fn too_many_referrers_are_a_failure_and_do_not_affect_images() {
        let tags: Vec<String> = (0..12).map(|number| number.to_string()).collect();
        let host = serve(move |request| {
            let Some(rest) = request.uri().path().strip_prefix("/v2/team/app/") else { return status(200) };
            match rest.split_once('/').unwrap_or_default() {
                ("tags", _) => json(&json!({ "tags": tags })),
                ("manifests", tag) => {
                    let mut answer = status(200);
                    let digest = of(tag).to_string();
                    answer.headers_mut().insert("docker-content-digest", digest.parse().expect("it is a header"));
                    answer
                }
                (_, digest) => {
                    let referrer = |number: usize| json!({ "digest": of(&format!("{digest}{number}")) });
                    json(&json!({ "manifests": (0..1_000).map(referrer).collect::<Vec<_>>() }))
                }
            }
        })
        .await;
        let listing = list(&host, "ALL_TAGS", &options(None, "")).await.expect("it can be listed");
        assert_eq!(listing.images.len(), 12);
        let [("all referrers", error)] = failures(&listing)[..] else { panic!("there are too many: {listing:?}") };
        assert!(error.contains("the repository exceeds the limit of 10000 referrers"), "{error}");
    }

    #[tokio::test]
    async fn an_image_that_an_index_names_many_times_is_read_and_counted_once() {
        let child = json!({ "config": { "digest": of("config"), "size": 1 }, "layers": [{ "digest": of("layer"), "size": 10 }] });
        let index = json!({ "manifests": vec![json!({ "digest": of_json(&child) }); 500] });
        let (child, index) = (child.to_string(), index.to_string());
        let asked = Arc::<AtomicUsize>::default();
        let (count, of_index) = (Arc::clone(&asked), of(&index));
        let host = serve(move |request| {
            let path = request.uri().path();
            if path.ends_with(&of_index.to_string()) {
                return Response::new(Body::from(index.clone()));
            }
            count.fetch_add(usize::from(path.ends_with(&of(&child).to_string())), Ordering::Relaxed);
            Response::new(Body::from(child.clone()))
        })
        .await;
        let image = SourceImage { is_index: true, ..SourceImage::new(None, of_index) };
        let (images, failures) = with_registries(async |registries| {
            registries.with_sizes(&request(&host, "1"), vec![image]).await.expect("it can be asked")
        })
        .await;
        assert_eq!((images[0].bytes, images[0].images, failures.len()), (11, 1, 0));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn for_one_platform_an_index_is_replaced_by_its_image() {
        let host = serve(answer).await;
        let listing = list(&host, "1.0,1.1", &options(Some("linux/arm64"), "")).await.expect("it can be listed");
        assert_eq!(
            pairs(&listing),
            expected(&[
                ("-", of_json(&sbom())),
                ("1.0", of("arm64")),
                ("1.1", of("signed")),
                (&signature(), of("signature"))
            ])
        );
        let listing = list(&host, "1.0", &options(Some("linux/s390x"), "")).await.expect("it can be listed");
        let error = "The index has no image for linux/s390x. Its platforms: linux/arm64, linux/amd64.";
        assert_eq!((pairs(&listing), failures(&listing)), (vec![], vec![("1.0", error)]));
    }

    #[tokio::test]
    async fn a_repository_without_tags_is_a_failure() {
        let host = serve(|request| status(if request.uri().path() == "/v2/" { 200 } else { 404 })).await;
        let listing = list(&host, "ALL_TAGS", &options(None, "")).await.expect("it has answered");
        let error = format!("The repository cannot be listed: {NO_TAGS}");
        assert_eq!(failures(&listing), [("ALL_TAGS", error.as_str())]);
    }

    #[tokio::test]
    async fn an_image_that_cannot_be_read_does_not_affect_others_and_if_none_can_be_read_the_repository_fails() {
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
        let [("1.0", error)] = failures(&listing)[..] else { panic!("one has failed: {listing:?}") };
        assert!(error.contains("503 Service Unavailable"), "{error}");
        assert_eq!(asked.load(Ordering::Relaxed), 4, "a failed request is retried");

        let error = list(&host, "1.0", &options(None, "")).await.expect_err("none is listed");
        assert_eq!(error.name(), "ServiceUnavailable");
    }
}
