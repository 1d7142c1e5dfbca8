//! Compares the source with the destination: what a run copies, and what fails.

use std::cell::RefCell;
use std::collections::HashMap;

use futures_util::future;
use shared::ecr::{Image, Registry, is_same_registry};
use shared::inventory::{self, MirroredImage, MirroredRepository};
use shared::naming;
use shared::plan::{self, RepositoryCopy, Row, Summary};
use shared::reference::{RegistryHost, Repository};
use shared::selection::Selection;
use shared::{Error, Kind, Result};
use tokio::sync::Semaphore;

use crate::batches::Work;
use crate::config::Config;
use crate::difference::{self, Difference};
use crate::dry_run::Decision;
use crate::failing::FailingRows;
use crate::source::{
    Listing, ListingFailure, RepositoryRequest, Source, SourceImage, check_collisions, for_each,
    refuse_above_pull_limit,
};

/// How many repositories of the destination are listed at once.
const CONCURRENCY: usize = 16;

pub struct Comparison<'a> {
    pub config: &'a Config,
    pub source: &'a Source<'a>,
    pub destination: &'a Registry,
    /// The destination's host.
    pub host: &'a RegistryHost,
    pub failing_rows: &'a FailingRows,
    /// Whether to report the decision about each image, for a dry run.
    pub explain: bool,
    /// What the destination has is added here.
    pub inventory: Option<RefCell<inventory::Writer>>,
}

/// The difference between source and destination.
#[derive(Default)]
pub struct RunDiff {
    repositories: Vec<RepositoryDiff>,
    /// Failing rows of images that are no longer selected.
    obsolete: Vec<Row>,
    pub summary: Summary,
    pub decisions: Vec<Decision>,
}

struct RepositoryDiff {
    request: RepositoryRequest,
    unchanged: usize,
    missing: Vec<SourceImage>,
    failures: Vec<ListingFailure>,
    /// Images that the destination has, and whose rows say `Error`.
    present: Vec<SourceImage>,
    obsolete: Vec<Row>,
    excluded: usize,
    decisions: Vec<Decision>,
    /// Why the repository cannot be listed.
    error: Option<Error>,
}

impl Comparison<'_> {
    /// Lists the selected repositories, or all of them, and compares each with the destination. A repository that cannot be
    /// listed is a failure. If none can be listed, this is an error.
    pub async fn run(&self, selection: Option<Selection>) -> Result<RunDiff> {
        let (requests, excluded) = self.requests(selection).await?;
        let slots = Semaphore::new(CONCURRENCY);
        let mut repositories = for_each(requests, async |request| self.compare(request, &slots).await).await?;
        // They are in the order in which their listings ended. The plan does not depend on this order.
        repositories.sort_by(|a, b| a.request.destination.cmp(&b.request.destination));
        if !repositories.is_empty()
            && repositories.iter().all(|it| it.error.is_some())
            && let Some(error) = repositories.iter_mut().find_map(|it| it.error.take())
        {
            return Err(error);
        }
        self.refuse_immutable(&mut repositories).await?;
        if let Source::Public(registries) = self.source
            && let Some(allowed) = registries.pulls_left()
        {
            let mut left = allowed;
            for repository in &mut repositories {
                repository.refuse(|request, image| refuse_above_pull_limit(request, image, allowed, &mut left));
            }
        }

        let images = repositories.iter().map(|repository| &repository.request.name).collect();
        let mut diff = RunDiff { obsolete: self.failing_rows.of_others(&images), ..RunDiff::default() };
        if self.explain {
            let excluded =
                excluded.into_iter().map(|(repository, rule)| Decision::excluded_repository(&repository, rule));
            diff.decisions.extend(excluded);
        }
        let summary = &mut diff.summary;
        for RepositoryDiff { request, unchanged, missing, failures, obsolete, excluded, decisions, .. } in
            &mut repositories
        {
            summary.unchanged += *unchanged;
            summary.excluded += *excluded;
            summary.to_copy += missing.len() + failures.len();
            summary.bytes = missing.iter().map(|image| image.bytes).fold(summary.bytes, u64::saturating_add);
            diff.obsolete.append(obsolete);
            diff.decisions.append(decisions);
            if self.explain {
                diff.decisions.extend(missing.iter().map(|image| Decision::copy(request, self.host, image)));
                diff.decisions.extend(failures.iter().map(|failed| Decision::failed(request, failed)));
            }
        }
        summary.listed = summary.unchanged + summary.excluded + summary.to_copy;
        diff.repositories = repositories;
        Ok(diff)
    }

    /// Lists the destination for the inventory, and nothing at the source.
    pub async fn list_destination(&self, selection: Option<Selection>) -> Result<()> {
        let (requests, _) = self.requests(selection).await?;
        let slots = Semaphore::new(CONCURRENCY);
        let list = async |request: RepositoryRequest| {
            if let Err(error) = self.existing(&request, &slots).await {
                // The inventory will not have this repository.
                tracing::warn!(repository = %request.destination, %error, "cannot list a repository");
            }
            Ok(())
        };
        for_each(requests, list).await.map(drop)
    }

    /// The selected repositories, and those that a rule excludes.
    async fn requests(
        &self,
        selection: Option<Selection>,
    ) -> Result<(Vec<RepositoryRequest>, Vec<(Repository, String)>)> {
        let Config { options, naming, allowed, .. } = self.config;
        let prefix = self.config.prefix.as_ref();
        let (mut requests, excluded) =
            self.source.requests(selection, allowed, &options.rules, *naming, prefix).await?;
        if prefix.is_some() {
            // If a registry is copied into itself, its copies are not sources. Otherwise, each run would copy them again below
            // the prefix.
            requests.retain(|request| {
                !is_same_registry(&request.repository.registry, self.host)
                    || !naming::has_prefix(prefix, &request.repository.name)
            });
        }
        check_collisions(&requests)?;
        Ok((requests, excluded))
    }

    /// The images that the destination has. They are added to the inventory.
    async fn existing(&self, request: &RepositoryRequest, slots: &Semaphore) -> Result<Vec<Image>> {
        let _slot = slots.acquire().await;
        let existing = self.destination.images(&request.destination).await?.unwrap_or_default();
        if let Some(inventory) = &self.inventory {
            inventory.borrow_mut().add(&mirrored(request, self.host, &existing));
        }
        Ok(existing)
    }

    async fn compare(&self, request: RepositoryRequest, slots: &Semaphore) -> Result<RepositoryDiff> {
        let options = &self.config.options;
        let (listing, existing) =
            future::join(self.source.list(&request, options), self.existing(&request, slots)).await;
        let (mut listing, existing) = match existing {
            Ok(existing) => (listing, existing),
            Err(error) => (Listing::failed(error), Vec::new()),
        };
        let Difference { unchanged, missing } = difference::compare(std::mem::take(&mut listing.images), &existing);
        let (mut missing, mut failures) = match self.source.finish(&request, missing, options).await {
            Ok(finished) => finished,
            Err(error) => (Vec::new(), vec![ListingFailure::unlistable(&error.to_string())]),
        };
        missing.sort_by(|a, b| (a.tag.is_none(), &a.tag, &a.digest).cmp(&(b.tag.is_none(), &b.tag, &b.digest)));
        failures.append(&mut listing.failures);
        // Each name has one row.
        failures.sort();
        failures.dedup_by(|a, b| a.name == b.name);
        let is_archived = |image: &SourceImage| existing.iter().any(|it| it.is_archived && it.digest == image.digest);
        let (present, obsolete) =
            self.failing_rows.outdated(&request.name, &unchanged, is_archived, &missing, &failures);
        let mut decisions = Vec::new();
        if self.explain {
            decisions.extend(unchanged.iter().map(|image| Decision::unchanged(&request, self.host, image)));
            decisions.extend(listing.excluded.iter().map(|excluded| Decision::excluded(&request, excluded)));
        }
        Ok(RepositoryDiff {
            unchanged: unchanged.len(),
            missing,
            failures,
            present,
            obsolete,
            excluded: listing.excluded.len(),
            decisions,
            error: listing.error,
            request,
        })
    }

    /// Makes failures of images whose tags cannot be moved.
    async fn refuse_immutable(&self, repositories: &mut [RepositoryDiff]) -> Result<()> {
        let has_moved_tags = |it: &&RepositoryDiff| it.missing.iter().any(|image| image.replaces.is_some());
        let moved = repositories.iter().filter(has_moved_tags);
        let names: Vec<_> = moved.map(|it| it.request.destination.clone()).collect();
        let immutable: HashMap<_, _> = match self.destination.immutable(&names).await {
            Ok(immutable) => immutable,
            // The credential can have only the permissions to copy. Then the copies of these tags fail in the task.
            Err(error) if error.kind() == Kind::Denied => {
                tracing::warn!(%error, "cannot read which tags are immutable");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for repository in repositories {
            let Some(immutable) = immutable.get(&repository.request.destination) else { continue };
            repository.refuse(|_, image| difference::refuse_immutable(image, immutable));
        }
        Ok(())
    }
}

/// A repository in the inventory. Archived images cannot be pulled, and nobody runs signatures and other referrers.
fn mirrored(request: &RepositoryRequest, host: &RegistryHost, existing: &[Image]) -> MirroredRepository {
    let runnable = existing.iter().filter(|image| !image.is_archived && image.subject.is_none());
    let names = runnable.flat_map(|image| {
        let untagged = image.tags.is_empty().then_some(None);
        let names = image.tags.iter().cloned().map(Some).chain(untagged);
        names.map(|tag| MirroredImage { tag, digest: image.digest })
    });
    MirroredRepository {
        source: request.repository.clone(),
        destination: Repository { registry: host.clone(), name: request.destination.clone() },
        images: names.collect(),
    }
}

impl RunDiff {
    /// The work of the run. `host` is the destination's.
    pub fn into_work(self, host: &RegistryHost) -> Work {
        let mut work = Work { obsolete: self.obsolete, ..Work::default() };
        for RepositoryDiff { request, missing, failures, present, .. } in self.repositories {
            work.failures.extend(failures.into_iter().map(|ListingFailure { name, error }| plan::Failure {
                image: request.name.clone(),
                tag: name,
                source: request.repository.clone(),
                error,
            }));
            let destination = Repository { registry: host.clone(), name: request.destination };
            let copy =
                RepositoryCopy { source: request.repository, destination, image: request.name, images: Vec::new() };
            let present =
                present.iter().map(|image| RepositoryCopy { images: vec![difference::planned(image)], ..copy.clone() });
            work.present.extend(present);
            work.copies.push((copy, missing));
        }
        work
    }
}

impl RepositoryDiff {
    /// Makes failures of the missing images for which `failure` returns one.
    fn refuse(&mut self, mut failure: impl FnMut(&RepositoryRequest, &SourceImage) -> Option<ListingFailure>) {
        let Self { request, missing, failures, .. } = self;
        missing.retain(|image| {
            let failure = failure(request, image);
            let can_be_copied = failure.is_none();
            failures.extend(failure);
            can_be_copied
        });
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::operation::scan::ScanOutput;
    use aws_sdk_dynamodb::types::AttributeValue;
    use aws_sdk_ecr::operation::batch_get_image::BatchGetImageOutput;
    use aws_sdk_ecr::operation::describe_images::{DescribeImagesError, DescribeImagesOutput};
    use aws_sdk_ecr::operation::describe_repositories::{DescribeRepositoriesError, DescribeRepositoriesOutput};
    use aws_sdk_ecr::types::error::RepositoryNotFoundException;
    use aws_sdk_ecr::types::{self, Image, ImageDetail, ImageIdentifier, ImageTagMutability};
    use aws_smithy_mocks::{Rule, RuleMode, mock, mock_client};

    use serde_json::Value;
    use shared::reference::{Digest, Tag};
    use shared::selection;

    use super::*;
    use crate::dry_run;

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

    fn of(content: &str) -> Digest {
        Digest::of(content.as_bytes())
    }

    const HERE: &str = "222222222222.dkr.ecr.us-west-2.amazonaws.com";
    const THERE: &str = "111111111111.dkr.ecr.us-east-1.amazonaws.com";

    /// The images of a repository, in ECR's pages.
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

    fn manifest(content: &'static str, manifest: &Value) -> Rule {
        let manifest = manifest.to_string();
        mock!(aws_sdk_ecr::Client::batch_get_image).then_output(move || {
            let id = ImageIdentifier::builder().image_digest(of(content).to_string()).build();
            let image = Image::builder().image_id(id).image_manifest(&manifest).build();
            BatchGetImageOutput::builder().images(image).build()
        })
    }

    fn image(content: &str, tag: Option<&str>) -> ImageDetail {
        ImageDetail::builder()
            .image_digest(of(content).to_string())
            .set_image_tags(tag.map(|tag| vec![tag.to_owned()]))
            .image_size_in_bytes(5)
            .build()
    }

    fn index(content: &str, tag: Option<&str>) -> ImageDetail {
        let mut index = image(content, tag);
        index.image_manifest_media_type = Some(INDEX.into());
        index
    }

    fn registry<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Registry {
        let rules: Vec<_> = rules.into_iter().collect();
        Registry::new(mock_client!(aws_sdk_ecr, RuleMode::MatchAny, rules), None)
    }

    fn source<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Source<'static> {
        Source::Ecr(registry(rules), HERE.parse().expect("it is a host"))
    }

    async fn run(config: &Config, list: Option<&str>, source: &Source<'_>, there: &Registry) -> Result<RunDiff> {
        let selection = list.map(|list| selection::parse([("the list", list)], source.host()).expect("it is a list"));
        let host = THERE.parse().expect("it is a host");
        let failing_rows = FailingRows::default();
        Comparison {
            config,
            source,
            destination: there,
            host: &host,
            failing_rows: &failing_rows,
            explain: true,
            inventory: None,
        }
        .run(selection)
        .await
    }

    async fn compared(source: &Source<'_>, there: &[&Rule]) -> RunDiff {
        run(&config(&[]), None, source, &registry(there.iter().copied())).await.expect("both can be listed")
    }

    /// The copies as `source → destination`, without hosts.
    fn copies(diff: &RunDiff) -> Vec<String> {
        let of_repository = |one: &RepositoryDiff| {
            let destination =
                Repository { registry: THERE.parse().expect("it is a host"), name: one.request.destination.clone() };
            let copy = |image: &SourceImage| {
                let image = difference::planned(image);
                format!("{} → {}", image.by_digest(&one.request.repository), image.at(&destination))
            };
            one.missing.iter().map(copy).collect::<Vec<_>>()
        };
        let copies = diff.repositories.iter().flat_map(of_repository);
        copies.map(|copy| copy.replace(&format!("{HERE}/"), "").replace(&format!("{THERE}/"), "")).collect()
    }

    fn copy(content: &str, source: &str, destination: &str) -> String {
        format!("{source}@{} → {destination}", of(content))
    }

    /// The failures as `(repository, name, error)`.
    fn failures(diff: &RunDiff) -> Vec<(&str, &str, &str)> {
        diff.repositories
            .iter()
            .flat_map(|one| {
                one.failures.iter().map(|it| (one.request.name.as_str(), it.name.as_str(), it.error.as_str()))
            })
            .collect()
    }

    fn reasons(diff: RunDiff) -> Vec<(String, String)> {
        let decisions = serde_json::to_value(dry_run::report(diff.decisions)).expect("it is JSON");
        let text = |decision: &Value, name: &str| decision[name].as_str().unwrap_or_default().to_owned();
        let decisions = decisions.as_array().into_iter().flatten();
        let source = |decision| text(decision, "source").replace(&format!("{HERE}/"), "");
        decisions.map(|decision| (source(decision), text(decision, "reason"))).collect()
    }

    #[tokio::test]
    async fn a_missing_image_is_copied_by_digest_to_its_name_with_the_prefix() {
        let (repositories, images) = (repositories(&["app"]), images("app", &[image("1", Some("1"))]));
        let there = no_repository();
        let diff = compared(&source(images.iter().chain([&repositories])), &[&there]).await;
        assert_eq!(copies(&diff), [copy("1", "app", "to/app:1")]);
        assert_eq!((diff.summary.listed, diff.summary.unchanged), (1, 0));
        let work = diff.into_work(&THERE.parse().expect("it is a host"));
        let [(copy, images)] = &work.copies[..] else { panic!("there is one repository") };
        assert_eq!(copy.source.to_string(), format!("{HERE}/app"));
        assert_eq!(copy.destination.to_string(), format!("{THERE}/to/app"));
        assert_eq!((copy.image.as_str(), images[0].bytes, work.failures.len()), ("app", 5, 0));
    }

    #[tokio::test]
    async fn the_inventory_has_what_can_be_pulled_from_the_destination() {
        let mut archived = image("archived", Some("old"));
        archived.image_status = Some(types::ImageStatus::Archived);
        let mut signature = image("signature", None);
        signature.subject_manifest_digest = Some(of("1").to_string());
        let mut both = image("1", Some("1"));
        both.image_tags = Some(vec!["1".into(), "latest".into()]);
        let there = images("to/app", &[both, image("child", None), archived, signature]);
        let (repositories, here) = (repositories(&["app"]), images("app", &[image("1", Some("1"))]));
        let (config, source, host) =
            (config(&[]), source(here.iter().chain([&repositories])), THERE.parse().expect("it is a host"));
        let comparison = Comparison {
            config: &config,
            source: &source,
            destination: &registry(&there),
            host: &host,
            failing_rows: &FailingRows::default(),
            explain: false,
            inventory: Some(RefCell::new(inventory::Writer::new(&host))),
        };
        comparison.run(None).await.expect("both can be listed");
        let json = comparison.inventory.expect("it was given").into_inner().finish();
        let all: Vec<_> = inventory::Inventory::parse(&json).expect("it was written").repositories().collect();
        let [MirroredRepository { source, destination, images }] = &all[..] else { panic!("there is one") };
        assert_eq!((source.to_string(), destination.to_string()), (format!("{HERE}/app"), format!("{THERE}/to/app")));
        let images: Vec<_> = images.iter().map(|it| (it.tag.as_ref().map_or("", Tag::as_str), it.digest)).collect();
        assert_eq!(images, [("1", of("1")), ("latest", of("1")), ("", of("child"))]);
    }

    #[tokio::test]
    async fn every_page_of_images_is_read_at_source_and_destination() {
        for count in [0, 1, 100, 101, 999, 1_000, 1_001, 2_000, 2_001] {
            let all: Vec<_> = (0..count).map(|number| image(&number.to_string(), Some(&number.to_string()))).collect();
            let repositories = repositories(&["app"]);
            let (here, there) = (images("app", &all), images("to/app", &all));
            let diff = compared(&source(here.iter().chain([&repositories])), &there.iter().collect::<Vec<_>>()).await;
            assert_eq!((diff.summary.listed, diff.summary.unchanged), (count, count));
            assert_eq!(copies(&diff), [""; 0]);
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
                .then_output(|| DescribeImagesOutput::builder().image_details(image("1", Some("1"))).build());
            let diff = compared(&source(pages.iter().chain([&none, &images])), &[&images]).await;
            assert_eq!(diff.summary.unchanged, count);
        }
    }

    #[tokio::test]
    async fn a_registry_that_is_copied_into_itself_does_not_copy_its_copies() {
        let repositories = repositories(&["app", "to/app", "tools"]);
        let images = mock!(aws_sdk_ecr::Client::describe_images)
            .then_output(|| DescribeImagesOutput::builder().image_details(image("1", Some("1"))).build());
        let source = Source::Ecr(registry([&repositories, &images]), THERE.parse().expect("it is a host"));
        let there = no_repository();
        let diff = compared(&source, &[&there]).await;
        let names: Vec<_> = diff.repositories.iter().map(|one| one.request.name.as_str()).collect();
        assert_eq!(names, ["app", "tools"]);
    }

    #[tokio::test]
    async fn a_repository_that_cannot_be_listed_does_not_affect_others() {
        let (repositories, closed) = (repositories(&["closed", "open"]), denied("closed"));
        let open = images("open", &[image("1", Some("1"))]);
        let there = no_repository();
        let diff = compared(&source(open.iter().chain([&repositories, &closed])), &[&there]).await;
        assert_eq!(copies(&diff), [copy("1", "open", "to/open:1")]);
        let [("closed", "ALL_TAGS", error)] = failures(&diff)[..] else { panic!("one is closed") };
        assert!(error.contains("ecr:DescribeImages on closed failed: AccessDenied"), "{error}");
        assert_eq!((diff.summary.listed, diff.summary.to_copy), (2, 2), "a failure counts");
    }

    #[tokio::test]
    async fn a_run_fails_if_no_repository_can_be_listed() {
        let (repositories, a, b) = (repositories(&["a", "b"]), denied("a"), denied("b"));
        let there = registry([&no_repository()]);
        let error = run(&config(&[]), None, &source([&repositories, &a, &b]), &there).await.err().expect("both failed");
        assert_eq!(error.name(), "AccessDenied");
    }

    #[tokio::test]
    async fn a_repository_that_cannot_be_listed_at_the_destination_does_not_affect_others() {
        let repositories = repositories(&["app", "open"]);
        let all = vec![image("1", Some("1"))];
        let (app, open) = (images("app", &all), images("open", &all));
        let (closed, none) = (denied("to/app"), images("to/open", &[]));
        let source = source(app.iter().chain(&open).chain([&repositories]));
        let diff = compared(&source, &none.iter().chain([&closed]).collect::<Vec<_>>()).await;
        assert_eq!(copies(&diff), [copy("1", "open", "to/open:1")]);
        let [("app", "ALL_TAGS", error)] = failures(&diff)[..] else { panic!("one is closed") };
        assert!(error.contains("ecr:DescribeImages on to/app failed"), "{error}");
    }

    #[tokio::test]
    async fn a_destination_that_cannot_be_listed_fails_the_run() {
        let (repositories, images) = (repositories(&["app"]), images("app", &[image("1", Some("1"))]));
        let there = registry([&denied("to/app")]);
        let source = source(images.iter().chain([&repositories]));
        let error = run(&config(&[]), None, &source, &there).await.err().expect("it cannot be listed");
        assert!(error.to_string().starts_with("ecr:DescribeImages on to/app failed"), "{error}");
    }

    #[tokio::test]
    async fn an_untagged_image_is_copied_unless_it_belongs_to_an_index() {
        let repositories = repositories(&["app"]);
        let all = vec![index("index", Some("1")), image("child", None), image("alone", None)];
        let images = images("app", &all);
        let manifest = manifest("index", &serde_json::json!({ "manifests": [{ "digest": of("child") }] }));
        let there = no_repository();
        let diff = compared(&source(images.iter().chain([&repositories, &manifest])), &[&there]).await;
        let untagged = copy("alone", "app", &format!("to/app@{}", of("alone")));
        assert_eq!(copies(&diff), [copy("index", "app", "to/app:1"), untagged]);
    }

    #[tokio::test]
    async fn for_one_platform_only_that_image_of_an_index_is_copied() {
        let manifest = manifest(
            "index",
            &serde_json::json!({ "manifests": [
                { "digest": of("arm"), "platform": { "os": "linux", "architecture": "arm64" } },
                { "digest": of("amd"), "platform": { "os": "linux", "architecture": "amd64" } },
            ] }),
        );
        let repositories = repositories(&["app"]);
        let all = vec![
            index("index", Some("1")),
            index("index", Some("2")),
            image("arm", None),
            image("amd", None),
            image("single", Some("3")),
        ];
        let images_here = images("app", &all);
        let there = images("to/app", &[image("arm", Some("1")), image("index", Some("2"))]);
        let source = source(images_here.iter().chain([&repositories, &manifest]));
        let none_immutable = self::repositories(&[]);
        let destination = registry(there.iter().chain([&none_immutable]));
        for (platform, expected) in [
            ("linux/arm64", &[("1", "unchanged"), ("2", "changed"), ("3", "new")]),
            ("linux/s390x", &[("1", "failed"), ("2", "failed"), ("3", "new")]),
        ] {
            let config = config(&[("PLATFORMS", platform)]);
            let diff = run(&config, None, &source, &destination).await.expect("both can be listed");
            let mut found: Vec<_> = diff
                .decisions
                .iter()
                .map(|decision| serde_json::to_value(decision).expect("it is JSON"))
                .map(|decision| {
                    let name = decision["destination"].as_str().or(decision["source"].as_str()).unwrap_or_default();
                    let tag = name.rsplit(':').next().unwrap_or_default().to_owned();
                    (tag, decision["reason"].clone())
                })
                .collect();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            let found: Vec<_> =
                found.iter().map(|(tag, reason)| (tag.as_str(), reason.as_str().unwrap_or_default())).collect();
            assert_eq!(found, expected, "{platform}");
        }
    }

    #[tokio::test]
    async fn a_tag_with_another_digest_is_changed_unless_it_is_immutable() {
        let repositories = repositories(&["app"]);
        let here = images("app", &[image("new", Some("1")), image("same", Some("2"))]);
        let there = images("to/app", &[image("old", Some("1")), image("same", Some("2"))]);
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
            let diff = compared(&source, &there.iter().chain([&asked]).collect::<Vec<_>>()).await;
            let expected = format!("immutable at the destination, and points to {}.", of("old"));
            assert_eq!(failures(&diff).iter().any(|(_, _, error)| error.contains(&expected)), reason == "failed");
            let name = if reason == "failed" { "app:1".to_owned() } else { format!("app@{}", of("new")) };
            let mut expected = vec![(name, reason.to_owned()), (format!("app@{}", of("same")), "unchanged".to_owned())];
            expected.sort();
            assert_eq!(reasons(diff), expected);
        }
    }

    #[tokio::test]
    async fn an_unchanged_repository_takes_one_call_at_source_and_destination_and_no_copy() {
        let repositories = repositories(&["app"]);
        let all = || vec![image("1", Some("1")), index("2", Some("2")), image("3", None)];
        let (here, there) = (images("app", &all()), images("to/app", &all()));
        let diff = compared(&source(here.iter().chain([&repositories])), &there.iter().collect::<Vec<_>>()).await;
        assert_eq!(copies(&diff), [""; 0]);
        assert_eq!((diff.summary.listed, diff.summary.unchanged), (3, 3));
        assert_eq!((repositories.num_calls(), here[0].num_calls(), there[0].num_calls()), (1, 1, 1));
    }

    #[tokio::test]
    async fn excluded_images_are_counted_and_reported_with_the_rule() {
        let repositories = repositories(&["app", "test"]);
        let images = images("app", &[image("1", Some("1")), image("2", Some("2-beta"))]);
        let config = config(&[("EXCLUDE_TAGS", "*beta*"), ("EXCLUDE_REPOSITORIES", "test")]);
        let there = registry([&no_repository()]);
        let diff = run(&config, None, &source(images.iter().chain([&repositories])), &there)
            .await
            .expect("both can be listed");
        let summary = &diff.summary;
        assert_eq!((summary.listed, summary.excluded, copies(&diff).len()), (2, 1, 1));
        assert_eq!(
            serde_json::to_value(dry_run::report(diff.decisions)).expect("it is JSON"),
            serde_json::json!([
                {"reason": "excluded", "source": format!("{HERE}/app:2-beta"), "rule": "excludeTags *beta*"},
                {"reason": "new", "source": format!("{HERE}/app@{}", of("1")), "destination": format!("{THERE}/to/app:1")},
                {"reason": "excluded", "source": format!("{HERE}/test"), "rule": "excludeRepositories test"}
            ])
        );
    }

    #[tokio::test]
    async fn a_selection_lists_only_the_repositories_that_it_names() {
        let images = images("app", &[image("1", Some("1.0")), image("2", Some("2.0"))]);
        let there = registry([&no_repository()]);
        let list = format!("app:1.*,{HERE}/app:3.0");
        let diff = run(&config(&[]), Some(&list), &source(&images), &there).await.expect("both can be listed");
        assert_eq!(copies(&diff), [copy("1", "app", "to/app:1.0")]);
        let error = "The image does not exist at the source (manifest unknown).";
        assert_eq!(failures(&diff), [("app", "3.0", error)]);
    }

    #[tokio::test]
    async fn a_source_that_is_not_allowed_is_an_error_in_a_list_and_excluded_from_all() {
        let (repositories, images) = (repositories(&["app", "secret"]), images("app", &[image("1", Some("1"))]));
        let config = config(&[("ALLOWED_SOURCES", "*/app")]);
        let (source, there) = (source(images.iter().chain([&repositories])), registry([&no_repository()]));
        let error = run(&config, Some("app:1,secret:1"), &source, &there).await.err().expect("one is not allowed");
        assert_eq!(error.name(), "InvalidImageList");
        assert!(error.to_string().contains("allowedSources does not allow"), "{error}");
        let diff = run(&config, None, &source, &there).await.expect("both can be listed");
        assert_eq!(copies(&diff), [copy("1", "app", "to/app:1")]);
        assert!(reasons(diff).contains(&("secret".to_owned(), "excluded".to_owned())));
    }

    #[tokio::test]
    async fn rows_that_say_error_are_settled_by_images_that_are_there_and_deleted_where_nobody_wants_them() {
        let row = |(image, tag): (&str, &str)| {
            let text = |value: &str| AttributeValue::S(value.to_owned());
            HashMap::from([("Image".to_owned(), text(image)), ("Tag".to_owned(), text(tag))])
        };
        let rows: Vec<_> = [("app", "there"), ("app", "archived"), ("gone", "1")].map(row).into();
        let scanned = mock!(aws_sdk_dynamodb::Client::scan)
            .then_output(move || ScanOutput::builder().set_items(Some(rows.clone())).build());
        let dynamodb = mock_client!(aws_sdk_dynamodb, RuleMode::MatchAny, [&scanned]);
        let failing = FailingRows::read(&dynamodb, "images").await.expect("they are read");

        let mut all = [image("1", Some("there")), image("2", Some("archived"))];
        let (repositories, here) = (repositories(&["app"]), images("app", &all));
        all[1].image_status = Some(types::ImageStatus::Archived);
        let there = images("to/app", &all);
        let (config, source) = (config(&[]), source(here.iter().chain([&repositories])));
        let (destination, host) = (registry(&there), THERE.parse().expect("it is a host"));
        let comparison = Comparison {
            config: &config,
            source: &source,
            destination: &destination,
            host: &host,
            failing_rows: &failing,
            explain: false,
            inventory: None,
        };
        let work = comparison.run(None).await.expect("both can be listed").into_work(&host);
        let present: Vec<_> = work
            .present
            .iter()
            .flat_map(|copy| copy.images.iter().map(|image| image.at(&copy.destination).to_string()))
            .collect();
        assert_eq!(present, [format!("{THERE}/to/app:there")]);
        let mut obsolete: Vec<_> = work.obsolete.iter().map(|row| (row.image.as_str(), row.tag.as_str())).collect();
        obsolete.sort_unstable();
        assert_eq!(obsolete, [("app", "archived"), ("gone", "1")]);
    }

    #[tokio::test]
    async fn a_credential_that_must_not_ask_which_tags_are_immutable_may_copy_all_the_same() {
        let repositories = repositories(&["app"]);
        let (here, there) = (images("app", &[image("new", Some("1"))]), images("to/app", &[image("old", Some("1"))]));
        let source = source(here.iter().chain([&repositories]));
        let run = async |code: &'static str| {
            let asked = mock!(aws_sdk_ecr::Client::describe_repositories).then_error(move || {
                let error = aws_sdk_ecr::error::ErrorMetadata::builder().code(code).build();
                DescribeRepositoriesError::generic(error)
            });
            run(&config(&[]), None, &source, &registry(there.iter().chain([&asked]))).await
        };
        let diff = run("AccessDeniedException").await.expect("the task finds out");
        assert_eq!(copies(&diff), [copy("new", "app", "to/app:1")]);
        let error = run("InvalidParameterException").await.err().expect("it is not about us");
        assert_eq!(error.name(), "RequestRefused");
    }

    #[tokio::test]
    async fn a_dry_run_says_why_something_cannot_be_copied() {
        let (repositories, closed) = (repositories(&["closed", "open"]), denied("closed"));
        let (open, there) = (images("open", &[image("1", Some("1"))]), no_repository());
        let diff = compared(&source(open.iter().chain([&repositories, &closed])), &[&there]).await;
        let decisions = serde_json::to_value(dry_run::report(diff.decisions)).expect("it is JSON");
        assert!(decisions[0]["error"].as_str().is_some_and(|error| error.contains("AccessDenied")), "{decisions}");
    }
}
