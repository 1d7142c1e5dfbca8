//! One execution's listing: source − destination = plan.

use std::collections::BTreeSet;

use aws_config::SdkConfig;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::future;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::config::{RegistryConfig, SourceConfig};
use shared::credentials::{Stores, Users};
use shared::ecr::Registry;
use shared::logins::SourceLogins;
use shared::plan::{Object, Summary};
use shared::{Error, Result};

use crate::batches;
use crate::config::Config;
use crate::difference::{self, Difference};
use crate::distribution::Client;
use crate::dry_run::{self, Decision};
use crate::input::{self, Input};
use crate::selection::{Repository, Selection};
use crate::source::{Listed, Listing, Registries, Source, Wish, check_collisions, defer, for_each, unlistable};

/// What the state machine sends.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// The execution's name.
    pub execution: String,
    /// The execution's input.
    #[serde(default)]
    pub input: Value,
}

/// The clients of AWS's services, made once.
pub struct Clients {
    /// For the plan.
    pub s3: aws_sdk_s3::Client,
    /// For credentials, and for the list of selected images.
    pub stores: Stores,
}

impl Clients {
    /// Makes them all.
    #[must_use]
    pub fn new(aws: &SdkConfig) -> Self {
        Self { s3: aws_sdk_s3::Client::new(aws), stores: Stores::new(aws) }
    }
}

/// Lists the source, compares it with the destination, and writes the plan.
///
/// # Errors
/// When the source or the destination cannot be listed, a credential or an entry of the list cannot be used, or the plan
/// cannot be written. A single repository that cannot be listed is no error: it becomes a copy that has failed.
pub async fn list(config: &Config, aws: &SdkConfig, clients: &Clients, request: &Request) -> Result<Summary> {
    let input = Input::parse(&request.input)?;
    input.check(config)?;
    let (source, (destination, host)) =
        future::try_join(connect_source(config, aws, clients), connect(&config.destination, aws, clients)).await?;
    let selection = input::select(config, &input, &clients.stores.ssm, source.host()).await?;
    if let (Source::Public(registries), Some(selection)) = (&source, &selection) {
        check_users(registries.logins(), config, selection)?;
    }
    let compared = Run { config, source: &source, destination: &destination, host: &host, explain: input.dry_run };
    let Comparison { wishes, missing, mut summary, decisions } = compared.compare(selection).await?;
    if summary.listed < config.min_images {
        return Err(Error::TooFewImages { listed: summary.listed, minimum: config.min_images });
    }

    let bucket = &config.plan_bucket;
    summary.to_copy = missing.len();
    summary.bytes = missing.iter().map(|(_, image)| image.bytes).sum();
    if input.dry_run {
        let key = format!("dry-runs/{}.json", request.execution);
        summary.dry_run = Some(write(&clients.s3, bucket, &key, dry_run::report(decisions)).await?);
    } else {
        let copy = |(wish, image): &(usize, Listed)| difference::copy(&wishes[*wish], &host, image);
        let batches = batches::pack(missing, copy, &config.packing);
        summary.batches = batches.len();
        if summary.batches > 0 {
            let key = format!("plans/{}.json", request.execution);
            summary.plan = Some(write(&clients.s3, bucket, &key, batches).await?);
        }
    }
    tracing::info!(
        batches = summary.batches,
        listed = summary.listed,
        unchanged = summary.unchanged,
        excluded = summary.excluded,
        to_copy = summary.to_copy,
        bytes = summary.bytes,
        dry_run = input.dry_run,
        "listed"
    );
    Ok(summary)
}

async fn connect_source<'a>(config: &Config, aws: &'a SdkConfig, clients: &Clients) -> Result<Source<'a>> {
    match &config.source {
        SourceConfig::Ecr(registry) => {
            let (registry, host) = connect(registry, aws, clients).await?;
            Ok(Source::Ecr(registry, host))
        }
        SourceConfig::Public(_) => {
            let logins = SourceLogins::connect(aws, &clients.stores, &config.source).await?;
            Ok(Source::Public(Box::new(Registries::new(Client::new()?, logins))))
        }
    }
}

/// An ECR registry, and its host.
async fn connect(registry: &RegistryConfig, aws: &SdkConfig, clients: &Clients) -> Result<(Registry, String)> {
    let registry = Registry::connect(aws, &clients.stores, registry).await?;
    let host = registry.login().await?.host;
    Ok((registry, host))
}

/// A user who does not say which registry it is one of must not be shown to several.
fn check_users(logins: &SourceLogins<'_>, config: &Config, selection: &Selection) -> Result<()> {
    let is_ecr = |repository: &&Repository| shared::ecr::account_and_region(&repository.registry).is_some();
    let hosts: BTreeSet<&str> =
        selection.keys().filter(|it| !is_ecr(it)).map(|repository| repository.registry.as_str()).collect();
    let (Some(Users::Any(_)), SourceConfig::Public(Some(credential)), 2..) =
        (logins.users(), &config.source, hosts.len())
    else {
        return Ok(());
    };
    let hosts = Vec::from_iter(hosts).join(", ");
    Err(Error::Credential {
        name: credential.name(),
        problem: format!(
            r#"it does not say which registry its user is one of, and the list names several: {hosts}; add "registry", or use {{"auths": …}}"#
        ),
        source: None,
    })
}

/// One comparison of source and destination.
struct Run<'a> {
    config: &'a Config,
    source: &'a Source<'a>,
    destination: &'a Registry,
    /// The destination's host.
    host: &'a str,
    /// Whether every decision is to be told.
    explain: bool,
}

/// What it comes to.
#[derive(Default)]
struct Comparison {
    wishes: Vec<Wish>,
    /// What the destination lacks, and whose it is: an index in `wishes`.
    missing: Vec<(usize, Listed)>,
    summary: Summary,
    decisions: Vec<Decision>,
}

/// What it comes to for one repository.
struct Compared {
    wish: Wish,
    unchanged: usize,
    missing: Vec<Listed>,
    excluded: usize,
    decisions: Vec<Decision>,
    failure: Option<Error>,
}

impl Run<'_> {
    async fn compare(&self, selection: Option<Selection>) -> Result<Comparison> {
        let Config { options, naming, prefix, .. } = self.config;
        let (mut wishes, left_out) = self.source.wishes(selection, &options.rules, *naming, prefix).await?;
        if !prefix.is_empty() {
            // Where a registry is copied into itself, its copies are no sources: each run would copy them a level deeper.
            let copies = format!("{prefix}/");
            wishes.retain(|wish| wish.repository.registry != self.host || !wish.repository.name.starts_with(&copies));
        }
        check_collisions(&wishes)?;
        let mut compared = for_each(wishes, async |wish| self.compare_one(wish).await).await?;
        // They come in the order in which their listings ended; a plan should not depend on that.
        compared.sort_by(|a, b| a.wish.destination.cmp(&b.wish.destination));
        if !compared.is_empty()
            && compared.iter().all(|it| it.failure.is_some())
            && let Some(failure) = compared.iter_mut().find_map(|it| it.failure.take())
        {
            return Err(failure);
        }
        self.refuse_immutable(&mut compared).await?;
        if let Source::Public(registries) = self.source
            && let Some(left) = registries.pulls_left()
        {
            let missing = compared.iter_mut().flat_map(|it| it.missing.iter_mut().map(|image| (&it.wish, image)));
            defer(missing, left);
        }

        let mut comparison = Comparison::default();
        if self.explain {
            comparison.decisions.extend(left_out.into_iter().map(|(it, rule)| Decision::left_out(&it, rule)));
        }
        for one in compared {
            comparison.summary.unchanged += one.unchanged;
            comparison.summary.excluded += one.excluded;
            comparison.summary.listed += one.unchanged + one.excluded + one.missing.len();
            comparison.decisions.extend(one.decisions);
            if self.explain {
                let copies = one.missing.iter().map(|image| difference::copy(&one.wish, self.host, image));
                comparison.decisions.extend(copies.map(|copy| Decision::copy(&copy)));
            }
            let wish = comparison.wishes.len();
            comparison.missing.extend(one.missing.into_iter().map(|image| (wish, image)));
            comparison.wishes.push(one.wish);
        }
        Ok(comparison)
    }

    async fn compare_one(&self, wish: Wish) -> Result<Compared> {
        let options = &self.config.options;
        let (listing, there) =
            future::join(self.source.list(&wish, options), self.destination.images(&wish.destination)).await;
        let (listing, there) = match there {
            Ok(there) => (listing, there.unwrap_or_default()),
            Err(error) => (Listing::failed(error), Vec::new()),
        };
        let Difference { unchanged, missing } = difference::compare(listing.images, &there);
        let mut missing = match self.source.finish(&wish, missing, options).await {
            Ok(missing) => missing,
            Err(error) => vec![unlistable(&error)],
        };
        missing.sort_by(|a, b| (a.tag.is_none(), &a.tag, &a.digest).cmp(&(b.tag.is_none(), &b.tag, &b.digest)));
        let mut decisions = Vec::new();
        if self.explain {
            decisions.extend(unchanged.iter().map(|image| Decision::unchanged(&wish, self.host, image)));
            decisions.extend(listing.excluded.iter().map(|excluded| Decision::excluded(&wish, excluded)));
        }
        Ok(Compared {
            unchanged: unchanged.len(),
            missing,
            excluded: listing.excluded.len(),
            decisions,
            failure: listing.failure,
            wish,
        })
    }

    /// Finds tags that would have to be moved, and cannot.
    async fn refuse_immutable(&self, compared: &mut [Compared]) -> Result<()> {
        let moves = |it: &&Compared| it.missing.iter().any(|image| image.replaces.is_some());
        let repositories: Vec<_> = compared.iter().filter(moves).map(|it| it.wish.destination.clone()).collect();
        let immutable = match self.destination.immutable(&repositories).await {
            Ok(immutable) => immutable,
            // A credential that may copy, and not look: then the task finds out.
            Err(error) if error.name() == "AccessDenied" => {
                tracing::warn!(%error, "which tags are immutable is not known");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for one in compared {
            let Some(immutable) = immutable.get(&one.wish.destination) else { continue };
            for image in &mut one.missing {
                difference::refuse_immutable(image, immutable);
            }
        }
        Ok(())
    }
}

async fn write(
    s3: &aws_sdk_s3::Client,
    bucket: &str,
    key: &str,
    items: impl IntoIterator<Item: Serialize>,
) -> Result<Object> {
    s3.put_object()
        .bucket(bucket)
        .key(key)
        .content_type("application/json")
        .body(ByteStream::from(json_array(items)))
        .send()
        .await
        .map_err(Error::aws("s3:PutObject", format!("{bucket}/{key}")))?;
    Ok(Object { bucket: bucket.to_owned(), key: key.to_owned() })
}

/// A JSON array. Each item is dropped as soon as it is written: the two together would be the most memory of a run.
fn json_array(items: impl IntoIterator<Item: Serialize>) -> Vec<u8> {
    let mut json = vec![b'['];
    for item in items {
        if json.len() > 1 {
            json.push(b',');
        }
        serde_json::to_writer(&mut json, &item).expect("it has string keys only, and memory does not fail");
    }
    json.push(b']');
    json
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::operation::batch_get_image::BatchGetImageOutput;
    use aws_sdk_ecr::operation::describe_images::{DescribeImagesError, DescribeImagesOutput};
    use aws_sdk_ecr::operation::describe_repositories::DescribeRepositoriesOutput;
    use aws_sdk_ecr::types::error::RepositoryNotFoundException;
    use aws_sdk_ecr::types::{self, Image, ImageDetail, ImageIdentifier, ImageTagMutability};
    use aws_sdk_s3::operation::put_object::PutObjectOutput;
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use shared::plan::Copy;

    use super::*;
    use crate::selection;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn config(changes: &[(&str, &str)]) -> Config {
        let environment =
            [("SOURCE_TYPE", "Amazon_ECR"), ("SRC_LIST", "ALL"), ("PLAN_BUCKET", "bucket"), ("DEST_PREFIX", "to")];
        Config::read(&environment.iter().chain(changes).copied().collect()).expect("it is complete")
    }

    fn repositories(names: &[&str]) -> Rule {
        let repository = |name: &&str| types::Repository::builder().repository_name(*name).build();
        let all: Vec<_> = names.iter().map(repository).collect();
        mock!(aws_sdk_ecr::Client::describe_repositories)
            .then_output(move || DescribeRepositoriesOutput::builder().set_repositories(Some(all.clone())).build())
    }

    /// A repository's images, in pages as ECR has them.
    fn images(repository: &'static str, images: &[ImageDetail]) -> Vec<Rule> {
        let pages: Vec<Vec<ImageDetail>> = match images.len() {
            0 => vec![Vec::new()],
            _ => images.chunks(1_000).map(<[_]>::to_vec).collect(),
        };
        let count = pages.len();
        let page = |(number, page): (usize, Vec<ImageDetail>)| {
            let token = (number > 0).then(|| number.to_string());
            let next = (number + 1 < count).then(|| (number + 1).to_string());
            mock!(aws_sdk_ecr::Client::describe_images)
                .match_requests(move |request| {
                    request.repository_name() == Some(repository)
                        && request.next_token() == token.as_deref()
                        && request.max_results() == Some(1_000)
                })
                .then_output(move || {
                    DescribeImagesOutput::builder()
                        .set_image_details(Some(page.clone()))
                        .set_next_token(next.clone())
                        .build()
                })
        };
        pages.into_iter().enumerate().map(page).collect()
    }

    fn no_repository() -> Rule {
        mock!(aws_sdk_ecr::Client::describe_images).then_error(|| {
            DescribeImagesError::RepositoryNotFoundException(RepositoryNotFoundException::builder().build())
        })
    }

    fn denied(repository: &'static str) -> Rule {
        mock!(aws_sdk_ecr::Client::describe_images)
            .match_requests(move |request| request.repository_name() == Some(repository))
            .then_error(|| {
                let denied = aws_sdk_ecr::error::ErrorMetadata::builder().code("AccessDeniedException").build();
                DescribeImagesError::generic(denied)
            })
    }

    fn manifests(manifests: &'static [(&str, &str)]) -> Rule {
        mock!(aws_sdk_ecr::Client::batch_get_image).then_output(|| {
            let image = |(digest, manifest): &(&str, &str)| {
                let id = ImageIdentifier::builder().image_digest(*digest).build();
                Image::builder().image_id(id).image_manifest(*manifest).build()
            };
            BatchGetImageOutput::builder().set_images(Some(manifests.iter().map(image).collect())).build()
        })
    }

    fn image(digest: &str, tag: Option<&str>) -> ImageDetail {
        ImageDetail::builder()
            .image_digest(digest)
            .set_image_tags(tag.map(|tag| vec![tag.to_owned()]))
            .image_size_in_bytes(5)
            .build()
    }

    fn index(digest: &str, tag: Option<&str>) -> ImageDetail {
        let mut index = image(digest, tag);
        index.image_manifest_media_type = Some(INDEX.into());
        index
    }

    fn registry<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Registry {
        let rules: Vec<_> = rules.into_iter().collect();
        Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, rules), None)
    }

    fn source<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Source<'static> {
        Source::Ecr(registry(rules), "source.example".into())
    }

    async fn run(config: &Config, list: Option<&str>, source: &Source<'_>, there: &Registry) -> Result<Comparison> {
        let selection = list.map(|list| selection::parse([("the list", list)], source.host()).expect("it is a list"));
        let run = Run { config, source, destination: there, host: "destination.example", explain: true };
        run.compare(selection).await
    }

    async fn compared(source: &Source<'_>, there: &[&Rule]) -> Comparison {
        run(&config(&[]), None, source, &registry(there.iter().copied())).await.expect("both can be listed")
    }

    fn copies(comparison: &Comparison) -> Vec<Copy> {
        let copy =
            |(wish, image): &(usize, Listed)| difference::copy(&comparison.wishes[*wish], "destination.example", image);
        comparison.missing.iter().map(copy).collect()
    }

    fn reasons(comparison: Comparison) -> Vec<(String, String)> {
        let decisions = serde_json::to_value(dry_run::report(comparison.decisions)).expect("it is JSON");
        let text = |decision: &Value, name: &str| decision[name].as_str().unwrap_or_default().to_owned();
        let decisions = decisions.as_array().into_iter().flatten();
        decisions.map(|decision| (text(decision, "source"), text(decision, "reason"))).collect()
    }

    #[tokio::test]
    async fn what_the_destination_lacks_is_planned_by_digest_behind_the_prefix() {
        let (repositories, images) = (repositories(&["app"]), images("app", &[image("sha256:1", Some("1"))]));
        let there = no_repository();
        let comparison = compared(&source(images.iter().chain([&repositories])), &[&there]).await;
        assert_eq!(
            copies(&comparison),
            [Copy {
                source: "source.example/app@sha256:1".into(),
                destination: "destination.example/to/app:1".into(),
                digest: "sha256:1".into(),
                image: "app".into(),
                tag: "1".into(),
                bytes: 5,
                manifests: 1,
                ..Copy::default()
            }]
        );
        assert_eq!((comparison.summary.listed, comparison.summary.unchanged), (1, 0));
    }

    #[tokio::test]
    async fn every_page_on_both_sides_is_read_at_full_size() {
        for count in [0, 1, 100, 101, 999, 1_000, 1_001, 2_000, 2_001] {
            let all: Vec<_> =
                (0..count).map(|number| image(&format!("sha256:{number}"), Some(&number.to_string()))).collect();
            let repositories = repositories(&["app"]);
            let (here, there) = (images("app", &all), images("to/app", &all));
            let comparison =
                compared(&source(here.iter().chain([&repositories])), &there.iter().collect::<Vec<_>>()).await;
            assert_eq!((comparison.summary.listed, comparison.summary.unchanged), (count, count));
            assert_eq!(copies(&comparison), []);
            let calls: usize = here.iter().chain(&there).map(Rule::num_calls).sum();
            assert_eq!(calls, 2 * count.div_ceil(1_000).max(1), "{count} images");
        }
    }

    #[tokio::test]
    async fn every_page_of_repositories_is_read() {
        for count in [0_usize, 1, 100, 101, 1_000, 1_001] {
            let names: Vec<_> = (0..count).map(|number| format!("app-{number:04}")).collect();
            let pages: Vec<Rule> = names
                .chunks(1_000)
                .map(<[_]>::to_vec)
                .enumerate()
                .map(|(number, names)| {
                    let token = (number > 0).then(|| number.to_string());
                    let next = ((number + 1) * 1_000 < count).then(|| (number + 1).to_string());
                    mock!(aws_sdk_ecr::Client::describe_repositories)
                        .match_requests(move |request| request.next_token() == token.as_deref())
                        .then_output(move || {
                            let all =
                                names.iter().map(|name| types::Repository::builder().repository_name(name).build());
                            DescribeRepositoriesOutput::builder()
                                .set_repositories(Some(all.collect()))
                                .set_next_token(next.clone())
                                .build()
                        })
                })
                .collect();
            let none = repositories(&[]);
            let images = mock!(aws_sdk_ecr::Client::describe_images)
                .then_output(|| DescribeImagesOutput::builder().image_details(image("sha256:1", Some("1"))).build());
            let comparison = compared(&source(pages.iter().chain([&none, &images])), &[&images]).await;
            assert_eq!(comparison.summary.unchanged, count);
        }
    }

    #[tokio::test]
    async fn a_registry_that_is_copied_into_itself_does_not_copy_its_copies() {
        let repositories = repositories(&["app", "to/app", "tools"]);
        let images = mock!(aws_sdk_ecr::Client::describe_images)
            .then_output(|| DescribeImagesOutput::builder().image_details(image("sha256:1", Some("1"))).build());
        let source = Source::Ecr(registry([&repositories, &images]), "destination.example".into());
        let there = no_repository();
        let comparison = compared(&source, &[&there]).await;
        let names: Vec<_> = copies(&comparison).into_iter().map(|copy| copy.image).collect();
        assert_eq!(names, ["app", "tools"]);
    }

    #[tokio::test]
    async fn a_repository_that_cannot_be_listed_costs_no_other_one() {
        let (repositories, closed) = (repositories(&["closed", "open"]), denied("closed"));
        let open = images("open", &[image("sha256:1", Some("1"))]);
        let there = no_repository();
        let comparison = compared(&source(open.iter().chain([&repositories, &closed])), &[&there]).await;
        let copies = copies(&comparison);
        assert_eq!(copies.len(), 2);
        let error = copies[0].error.as_deref().unwrap_or_default();
        assert!(error.contains("ecr:DescribeImages on closed failed: AccessDenied"), "{error}");
        assert_eq!((copies[1].image.as_str(), &copies[1].error), ("open", &None));
    }

    #[tokio::test]
    async fn a_source_that_cannot_be_listed_at_all_fails_the_run() {
        let (repositories, a, b) = (repositories(&["a", "b"]), denied("a"), denied("b"));
        let there = registry([&no_repository()]);
        let error = run(&config(&[]), None, &source([&repositories, &a, &b]), &there).await.err().expect("both failed");
        assert_eq!(error.name(), "AccessDenied");
    }

    #[tokio::test]
    async fn a_repository_that_cannot_be_listed_at_the_destination_costs_no_other_one() {
        let repositories = repositories(&["app", "open"]);
        let all = vec![image("sha256:1", Some("1"))];
        let (app, open) = (images("app", &all), images("open", &all));
        let (closed, none) = (denied("to/app"), images("to/open", &[]));
        let source = source(app.iter().chain(&open).chain([&repositories]));
        let copies = copies(&compared(&source, &none.iter().chain([&closed]).collect::<Vec<_>>()).await);
        assert_eq!((copies.len(), copies[1].error.as_deref()), (2, None));
        let error = copies[0].error.as_deref().unwrap_or_default();
        assert!(error.contains("ecr:DescribeImages on to/app failed"), "{error}");
    }

    #[tokio::test]
    async fn a_destination_that_cannot_be_listed_fails_the_run() {
        let (repositories, images) = (repositories(&["app"]), images("app", &[image("sha256:1", Some("1"))]));
        let there = registry([&denied("to/app")]);
        let source = source(images.iter().chain([&repositories]));
        let error = run(&config(&[]), None, &source, &there).await.err().expect("nothing is known");
        assert!(error.to_string().starts_with("ecr:DescribeImages on to/app failed"), "{error}");
    }

    #[tokio::test]
    async fn an_untagged_image_is_copied_by_itself_unless_it_comes_with_an_index() {
        let repositories = repositories(&["app"]);
        let all = vec![index("sha256:index", Some("1")), image("sha256:child", None), image("sha256:alone", None)];
        let images = images("app", &all);
        let manifest = manifests(&[("sha256:index", r#"{"manifests": [{"digest": "sha256:child"}]}"#)]);
        let there = no_repository();
        let comparison = compared(&source(images.iter().chain([&repositories, &manifest])), &[&there]).await;
        let copies = copies(&comparison);
        let destinations: Vec<_> = copies.iter().map(|copy| copy.destination.as_str()).collect();
        assert_eq!(destinations, ["destination.example/to/app:1", "destination.example/to/app@sha256:alone"]);
        assert_eq!(copies[1].tag, "sha256:alone");
    }

    #[tokio::test]
    async fn for_one_platform_each_index_is_its_image_for_it_and_none_of_the_others_comes_along() {
        const MANIFEST: &str = r#"{"manifests": [
            {"digest": "sha256:arm", "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": "sha256:amd", "platform": {"os": "linux", "architecture": "amd64"}}
        ]}"#;
        let repositories = repositories(&["app"]);
        let all = vec![
            index("sha256:index", Some("1")),
            index("sha256:index", Some("2")),
            image("sha256:arm", None),
            image("sha256:amd", None),
            image("sha256:single", Some("3")),
        ];
        let images_here = images("app", &all);
        let there = images("to/app", &[image("sha256:arm", Some("1")), image("sha256:index", Some("2"))]);
        let manifest = manifests(&[("sha256:index", MANIFEST)]);
        let source = source(images_here.iter().chain([&repositories, &manifest]));
        let none_immutable = self::repositories(&[]);
        let destination = registry(there.iter().chain([&none_immutable]));
        for (platform, expected) in [
            ("linux/arm64", &[("1", "unchanged"), ("2", "changed"), ("3", "new")]),
            ("linux/s390x", &[("1", "failed"), ("2", "failed"), ("3", "new")]),
        ] {
            let config = config(&[("PLATFORMS", platform)]);
            let comparison = run(&config, None, &source, &destination).await.expect("both can be listed");
            let mut found: Vec<_> = comparison
                .decisions
                .iter()
                .map(|decision| serde_json::to_value(decision).expect("it is JSON"))
                .map(|decision| {
                    let destination = decision["destination"].as_str().unwrap_or_default().to_owned();
                    (destination.replace("destination.example/to/app:", ""), decision["reason"].clone())
                })
                .collect();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            let found: Vec<_> =
                found.iter().map(|(tag, reason)| (tag.as_str(), reason.as_str().unwrap_or_default())).collect();
            assert_eq!(found, expected, "{platform}");
        }
    }

    #[tokio::test]
    async fn a_tag_that_leads_elsewhere_is_changed_unless_it_is_immutable() {
        let repositories = repositories(&["app"]);
        let here = images("app", &[image("sha256:new", Some("1")), image("sha256:same", Some("2"))]);
        let there = images("to/app", &[image("sha256:old", Some("1")), image("sha256:same", Some("2"))]);
        let source = source(here.iter().chain([&repositories]));
        for (mutability, reason) in
            [(ImageTagMutability::Mutable, "changed"), (ImageTagMutability::Immutable, "failed")]
        {
            let asked = mock!(aws_sdk_ecr::Client::describe_repositories)
                .match_requests(|request| request.repository_names() == ["to/app"])
                .then_output(move || {
                    let repository = types::Repository::builder().repository_name("to/app");
                    let repository = repository.image_tag_mutability(mutability.clone()).build();
                    DescribeRepositoriesOutput::builder().repositories(repository).build()
                });
            let comparison = compared(&source, &there.iter().chain([&asked]).collect::<Vec<_>>()).await;
            let error = copies(&comparison)[0].error.clone().unwrap_or_default();
            assert_eq!(error.contains("immutable at the destination, and leads to sha256:old"), reason == "failed");
            assert_eq!(
                reasons(comparison),
                [
                    ("source.example/app@sha256:new".into(), reason.into()),
                    ("source.example/app@sha256:same".into(), "unchanged".into())
                ]
            );
        }
    }

    #[tokio::test]
    async fn where_nothing_changed_there_is_one_call_for_each_side_and_repository_and_no_copy() {
        let repositories = repositories(&["app"]);
        let all = || vec![image("sha256:1", Some("1")), index("sha256:2", Some("2")), image("sha256:3", None)];
        let (here, there) = (images("app", &all()), images("to/app", &all()));
        let comparison = compared(&source(here.iter().chain([&repositories])), &there.iter().collect::<Vec<_>>()).await;
        assert_eq!(copies(&comparison), []);
        assert_eq!((comparison.summary.listed, comparison.summary.unchanged), (3, 3));
        assert_eq!((repositories.num_calls(), here[0].num_calls(), there[0].num_calls()), (1, 1, 1));
    }

    #[tokio::test]
    async fn what_rules_leave_out_is_counted_and_told_with_the_rule() {
        let repositories = repositories(&["app", "test"]);
        let images = images("app", &[image("sha256:1", Some("1")), image("sha256:2", Some("2-beta"))]);
        let config = config(&[("EXCLUDE_TAGS", "*beta*"), ("EXCLUDE_REPOSITORIES", "test")]);
        let there = registry([&no_repository()]);
        let comparison = run(&config, None, &source(images.iter().chain([&repositories])), &there)
            .await
            .expect("both can be listed");
        let summary = &comparison.summary;
        assert_eq!((summary.listed, summary.excluded, copies(&comparison).len()), (2, 1, 1));
        assert_eq!(
            serde_json::to_value(dry_run::report(comparison.decisions)).expect("it is JSON"),
            serde_json::json!([
                {"reason": "excluded", "source": "source.example/app:2-beta", "rule": "excludeTags *beta*"},
                {"reason": "new", "source": "source.example/app@sha256:1", "destination": "destination.example/to/app:1"},
                {"reason": "excluded", "source": "source.example/test", "rule": "excludeRepositories test"}
            ])
        );
    }

    #[tokio::test]
    async fn a_selection_lists_only_the_repositories_that_it_names() {
        let images = images("app", &[image("sha256:1", Some("1.0")), image("sha256:2", Some("2.0"))]);
        let there = registry([&no_repository()]);
        let comparison = run(&config(&[]), Some("app:1.*,source.example/app:3.0"), &source(&images), &there)
            .await
            .expect("both can be listed");
        let planned: Vec<_> = copies(&comparison).into_iter().map(|copy| copy.source).collect();
        assert_eq!(planned, ["source.example/app@sha256:1", "source.example/app:3.0"]);
    }

    #[tokio::test]
    async fn the_plan_is_a_json_array_under_the_executions_name() {
        let rule = mock!(aws_sdk_s3::Client::put_object)
            .match_requests(|request| request.bucket() == Some("bucket") && request.key() == Some("plans/run.json"))
            .then_output(|| PutObjectOutput::builder().build());
        let s3 = mock_client!(aws_sdk_s3, RuleMode::MatchAny, [&rule]);
        let object = write(&s3, "bucket", "plans/run.json", [1, 2]).await.expect("it is written");
        assert_eq!(object, Object { bucket: "bucket".into(), key: "plans/run.json".into() });
        assert_eq!(rule.num_calls(), 1);
    }

    #[test]
    fn a_json_array_is_written_item_by_item() {
        for items in [vec![], vec![1], vec![1, 2]] {
            assert_eq!(json_array(items.clone()), serde_json::to_vec(&items).expect("it is JSON"));
        }
    }
}
