//! Lists the selected repositories and images at the source.

mod ecr;
mod public;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, future, stream};
use shared::allowed::Allowed;
use shared::ecr::Registry;
use shared::manifest::{Descriptor, Manifest, Platform};
use shared::naming::{Naming, destination_name};
use shared::reference::{Digest, RegistryHost, Repository, RepositoryName, Tag};
use shared::selection::{NamedImage, Selection, Wanted};
use shared::tags::{ALL_TAGS, Available};
use shared::text::Excerpt;
use shared::{Error, Result};

pub use self::public::Registries;
use crate::rules::Rules;

/// How many repositories are listed at once. More repositories need more memory, and ECR throttles them.
const CONCURRENCY: usize = 16;

/// The most registries of an image list. All registries are queried at the same time.
const REGISTRIES: usize = 100;

/// A repository that the run copies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryRequest {
    pub repository: Repository,
    /// Its name in the table.
    pub name: RepositoryName,
    /// Its name at the destination: the prefix and `name`.
    pub destination: RepositoryName,
    pub wanted: Wanted,
}

#[derive(Debug)]
pub struct Options {
    /// Whether untagged images are copied: those of an ECR repository that is copied as a whole, and referrers of selected
    /// images, such as signatures.
    pub include_untagged: bool,
    /// `None` for all platforms.
    pub platform: Option<Platform>,
    pub rules: Rules,
}

/// An image at the source that the run selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceImage {
    /// `None` for an untagged image.
    pub tag: Option<Tag>,
    /// The digest.
    pub digest: Digest,
    /// The compressed size; 0 if it is unknown.
    pub bytes: u64,
    /// Whether it is an index.
    pub is_index: bool,
    /// The number of images in an index; 0 if it is unknown.
    pub images: u32,
    /// The image that this one refers to, according to the registry.
    pub subject: Option<Digest>,
    /// The digest that the destination's tag points to, if it is another one.
    pub replaces: Option<Digest>,
    /// Whether it is archived at the source, and cannot be pulled.
    pub is_archived: bool,
}

impl SourceImage {
    /// An image with a tag and a digest only.
    pub fn new(tag: Option<Tag>, digest: Digest) -> Self {
        Self { tag, digest, bytes: 0, is_index: false, images: 0, subject: None, replaces: None, is_archived: false }
    }

    pub(crate) fn failed(&self, error: &str) -> ListingFailure {
        ListingFailure::of(self.tag.as_ref(), Some(self.digest), error)
    }
}

/// A selected image or pattern that cannot be copied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListingFailure {
    /// The tag, the digest, or the pattern.
    pub name: Excerpt,
    pub error: Excerpt,
}

/// The most characters of a failure's name. Tags have up to 128.
const NAME: usize = 200;

/// The name of the failure to list referrers. Tags cannot have a space.
const REFERRERS: &str = "all referrers";

/// The name of all failures above [`FAILURES`].
const MORE: &str = "more failures";

impl ListingFailure {
    pub fn new(name: &str, error: &str) -> Self {
        Self { name: Excerpt::within(name, NAME), error: error.into() }
    }

    /// The failure of an image. Its name is the tag, or the digest of an untagged image.
    pub fn of(tag: Option<&Tag>, digest: Option<Digest>, error: &str) -> Self {
        let digest = || digest.map_or_else(String::new, |digest| digest.to_string());
        Self::new(&tag.map_or_else(digest, ToString::to_string), error)
    }

    /// The failure of a whole repository.
    pub fn unlistable(error: &str) -> Self {
        Self::new(ALL_TAGS, &format!("The repository cannot be listed: {error}"))
    }

    /// The failure to list the referrers of images.
    pub fn referrers(error: &Error) -> Self {
        Self::new(REFERRERS, &format!("Signatures and other referrers cannot be listed: {error}"))
    }

    /// Whether the repository can have more images, which are not listed.
    pub fn hides_others(&self) -> bool {
        [ALL_TAGS, REFERRERS, MORE].contains(&self.name.as_str())
    }
}

/// A tag that a rule excludes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    pub tag: Tag,
    pub rule: String,
}

/// The listing of a repository.
#[derive(Debug, Default)]
pub struct Listing {
    /// The selected images.
    pub images: Vec<SourceImage>,
    /// What is selected and cannot be copied.
    pub failures: Vec<ListingFailure>,
    pub excluded: Vec<Excluded>,
    /// Why the repository cannot be listed.
    pub error: Option<Error>,
}

/// The most failures of a repository that are recorded separately.
const FAILURES: usize = 1_000;

impl Listing {
    /// A repository that cannot be listed.
    pub fn failed(error: Error) -> Self {
        Self { failures: vec![ListingFailure::unlistable(&error.to_string())], error: Some(error), ..Self::default() }
    }

    pub fn add(&mut self, images: impl IntoIterator<Item = Result<SourceImage, ListingFailure>>) {
        for image in images {
            match image {
                Ok(image) => self.images.push(image),
                Err(failed) => self.fail(failed),
            }
        }
    }

    /// Adds a failure. Above [`FAILURES`], one failure stands for all others.
    pub fn fail(&mut self, failed: ListingFailure) {
        match self.failures.len() {
            0..FAILURES => self.failures.push(failed),
            FAILURES => {
                let error = format!("The repository has more than {FAILURES} failures. The others are not recorded.");
                self.failures.push(ListingFailure::new(MORE, &error));
            }
            _ => {}
        }
    }
}

/// The registries that images come from.
pub enum Source<'a> {
    Ecr(Registry, RegistryHost),
    Public(Box<Registries<'a>>),
}

impl Source<'_> {
    /// The host of an ECR source.
    pub fn host(&self) -> Option<&RegistryHost> {
        match self {
            Self::Ecr(_, host) => Some(host),
            Self::Public(_) => None,
        }
    }

    /// The selected repositories, or all of them, and those that a rule excludes, with the rule. It is an error if a selected
    /// repository is not allowed, or if ECR does not allow its name at the destination.
    pub async fn requests(
        &self,
        selection: Option<Selection>,
        allowed: &Allowed,
        rules: &Rules,
        naming: Naming,
        prefix: Option<&RepositoryName>,
    ) -> Result<(Vec<RepositoryRequest>, Vec<(Repository, String)>)> {
        let mut excluded = Vec::new();
        let selection = match (self, selection) {
            (_, Some(selection)) => {
                let registries: BTreeSet<_> = selection.keys().map(|repository| &repository.registry).collect();
                if let Some(registry) = registries.into_iter().nth(REGISTRIES) {
                    let problem = format!("the image list exceeds the limit of {REGISTRIES} registries.");
                    return Err(Error::Selection { entry: registry.as_str().into(), place: None, problem });
                }
                for repository in selection.keys() {
                    allowed.check(repository).map_err(|problem| Error::Selection {
                        entry: Excerpt::new(&repository.to_string()),
                        place: None,
                        problem,
                    })?;
                }
                selection
            }
            (Self::Public(_), None) => Selection::new(),
            (Self::Ecr(registry, host), None) => {
                let mut all = Selection::new();
                for name in registry.repositories().await? {
                    let repository = Repository { registry: host.clone(), name };
                    let rule = rules.excluding_repository(repository.name.as_str());
                    match rule.or_else(|| allowed.check(&repository).err()) {
                        None => drop(all.insert(repository, Wanted::everything())),
                        Some(rule) => excluded.push((repository, rule)),
                    }
                }
                all
            }
        };
        let request = |(repository, wanted)| {
            let name =
                if self.host().is_some() { naming.name_in_source(&repository) } else { naming.name(&repository) };
            let destination = destination_name(prefix, &name)?;
            let name = RepositoryName::try_from(name).expect("it is the end of a name");
            Ok(RepositoryRequest { destination, name, repository, wanted })
        };
        Ok((selection.into_iter().map(request).collect::<Result<_>>()?, excluded))
    }

    /// Lists the selected images of a repository. Errors become failures in the listing, so that they do not affect others.
    pub async fn list(&self, request: &RepositoryRequest, options: &Options) -> Listing {
        let listing = match self {
            Self::Ecr(registry, _) => ecr::list(registry, request, options).await,
            Self::Public(registries) => registries.list(request, options).await,
        };
        listing.unwrap_or_else(Listing::failed)
    }

    /// Completes the images that the destination does not have: it removes untagged images that belong to an index, adds sizes
    /// and numbers of images that the listing did not have, and checks the subjects of referrers.
    pub async fn finish(
        &self,
        request: &RepositoryRequest,
        missing: Vec<SourceImage>,
        options: &Options,
    ) -> Result<Finished> {
        match self {
            Self::Ecr(registry, _) => {
                let (archived, missing): (Vec<_>, Vec<_>) = missing.into_iter().partition(|image| image.is_archived);
                let failures = archived.iter().map(|image| image.failed(ecr::CANNOT_PULL)).collect();
                // For a single platform, indexes are already replaced.
                let is_done = options.platform.is_some();
                let images = if is_done { missing } else { ecr::with_indexes(registry, request, missing).await? };
                Ok((images, failures))
            }
            Self::Public(registries) => registries.with_sizes(request, missing).await,
        }
    }
}

/// What can be copied, and what cannot.
pub type Finished = (Vec<SourceImage>, Vec<ListingFailure>);

/// The assumed number of images in an index, if it is unknown.
const IMAGES_OF_INDEX: u32 = 4;

impl SourceImage {
    /// The number of manifests: its own, and those of an index's images.
    pub(crate) fn manifests(&self) -> u32 {
        match (self.is_index, self.images) {
            (false, _) => 1,
            (true, 0) => 1 + IMAGES_OF_INDEX,
            (true, images) => 1 + images,
        }
    }
}

/// The failure of an image that exceeds Docker Hub's pull limit: `allowed` pulls, of which the run has not used `left` yet.
pub fn refuse_above_pull_limit(
    request: &RepositoryRequest,
    image: &SourceImage,
    allowed: u64,
    left: &mut u64,
) -> Option<ListingFailure> {
    if !request.repository.registry.is_docker_hub() {
        return None;
    }
    // Each manifest is a pull.
    if let Some(rest) = left.checked_sub(image.manifests().into()) {
        *left = rest;
        return None;
    }
    *left = 0;
    Some(image.failed(&format!(
        "Deferred to a later run: Docker Hub allows the user in srcCredential {allowed} more pulls now, and this run needs more. \
         A user with a subscription has no limit."
    )))
}

/// Runs `work` for all repositories, [`CONCURRENCY`] of a registry at once. A slow registry does not delay others.
pub async fn for_each<T, W>(
    repositories: Vec<RepositoryRequest>,
    work: impl Fn(RepositoryRequest) -> W,
) -> Result<Vec<T>>
where
    W: Future<Output = Result<T, Error>>,
{
    let mut registries: BTreeMap<RegistryHost, Vec<RepositoryRequest>> = BTreeMap::new();
    for request in repositories {
        registries.entry(request.repository.registry.clone()).or_default().push(request);
    }
    let for_registry =
        |requests| stream::iter(requests).map(&work).buffer_unordered(CONCURRENCY).try_collect::<Vec<T>>();
    let done = future::try_join_all(registries.into_values().map(for_registry)).await?;
    Ok(done.into_iter().flatten().collect())
}

/// Checks that no two repositories have the same name at the destination.
pub fn check_collisions(requests: &[RepositoryRequest]) -> Result<()> {
    let mut sources: HashMap<&RepositoryName, &Repository> = HashMap::new();
    for request in requests {
        if let Some(other) = sources.insert(&request.destination, &request.repository) {
            return Err(Error::Selection {
                entry: Excerpt::new(&request.repository.to_string()),
                place: None,
                problem: format!(
                    "its name at the destination, {}, is also that of {other}. Remove one of them, or change naming.",
                    request.destination
                ),
            });
        }
    }
    Ok(())
}

/// The rule for archived images that a pattern matches.
const ARCHIVED: &str = "archived at the source";

/// The selected images of a repository with the tags `available`. The listing has the tags that a rule excludes, and a failure
/// for each pattern that matches nothing. Patterns do not select `archived` tags.
fn choose(
    wanted: &Wanted,
    available: &[Available<'_>],
    archived: &BTreeSet<&Tag>,
    rules: &Rules,
) -> (Vec<NamedImage>, Listing) {
    let mut listing = Listing::default();
    let mut chosen: BTreeSet<NamedImage> = BTreeSet::new();
    // Rules apply before `newest`. Only excluded tags that a pattern matches are reported.
    let rule = |tag: &Tag| rules.excluding_tag(tag).or_else(|| archived.contains(tag).then(|| ARCHIVED.to_owned()));
    let (not_allowed, allowed): (Vec<_>, Vec<_>) = available.iter().copied().partition(|it| rule(it.tag).is_some());
    let mut excluded: BTreeSet<&Tag> = BTreeSet::new();
    for pattern in &wanted.patterns {
        let tags = pattern.select(&allowed);
        let excluded_tags = pattern.without_limit().select(&not_allowed);
        if tags.is_empty() && excluded_tags.is_empty() && !pattern.is_everything() {
            let error = format!("No tag matches this pattern. Number of tags in the repository: {}.", available.len());
            listing.failures.push(ListingFailure::new(pattern.as_str(), &error));
        }
        excluded.extend(excluded_tags);
        chosen.extend(tags.into_iter().map(|tag| NamedImage { tag: Some(tag.clone()), digest: None }));
    }
    for image in &wanted.images {
        if let Some(tag) = image.tag.as_ref().filter(|tag| rules.excluding_tag(tag).is_some()) {
            excluded.insert(tag);
            continue;
        }
        // An entry with a tag and a digest takes precedence over the tag.
        chosen.remove(&NamedImage { tag: image.tag.clone(), digest: None });
        if let Some(tag) = &image.tag {
            excluded.remove(tag);
        }
        chosen.insert(image.clone());
    }
    let with_rule = |tag: &Tag| Some(Excluded { tag: tag.clone(), rule: rule(tag)? });
    listing.excluded.extend(excluded.into_iter().filter_map(with_rule));
    (chosen.into_iter().collect(), listing)
}

/// The image of an index for `platform`.
fn on_platform(index: &Manifest, platform: &Platform) -> Result<Descriptor, String> {
    let is_accepted = |image: &&Descriptor| image.platform.as_ref().is_some_and(|it| platform.accepts(it));
    index.manifests.iter().find(is_accepted).cloned().ok_or_else(|| {
        let platforms = index.manifests.iter().filter_map(|image| image.platform.as_ref());
        let platforms: Vec<_> = platforms.map(ToString::to_string).collect();
        format!("The index has no image for {platform}. Its platforms: {}.", platforms.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::selection;

    fn requests(list: &str, naming: Naming) -> Vec<RepositoryRequest> {
        let selection = selection::parse([("the list", list)], None).expect("it is a list");
        let request = |(repository, wanted)| {
            let name: RepositoryName = naming.name(&repository).parse().expect("it is a name");
            RepositoryRequest { destination: name.clone(), name, repository, wanted }
        };
        selection.into_iter().map(request).collect()
    }

    #[test]
    fn two_sources_with_the_same_destination_are_an_error_with_both() {
        for (list, first, second) in [
            ("gcr.io/p/app:1,us.gcr.io/p/app:1", "gcr.io/p/app", "us.gcr.io/p/app"),
            ("gcr.io/p/app:1,us.gcr.io/p/app:2", "gcr.io/p/app", "us.gcr.io/p/app"),
            ("gcr.io/p/app:1.*,us.gcr.io/p/app:2", "gcr.io/p/app", "us.gcr.io/p/app"),
        ] {
            let error = check_collisions(&requests(list, Naming::Registry)).expect_err(list);
            assert!(error.to_string().contains(first) && error.to_string().contains(second), "{error}");
            assert_eq!(error.name(), "InvalidImageList");
        }
        check_collisions(&requests("gcr.io/p/app:1,quay.io/p/app:1", Naming::Registry)).expect("they have two names");
    }

    #[test]
    fn images_above_docker_hubs_pull_limit_are_deferred() {
        let requests = requests("nginx,redis,quay.io/coreos/etcd", Naming::Plain);
        let image = |is_index| SourceImage { is_index, ..SourceImage::new(None, Digest::of(b"")) };
        let images = [image(true), image(false), image(false)];
        let mut left = 5;
        let mut failure = |(request, image)| refuse_above_pull_limit(request, image, 5, &mut left);
        let deferred: Vec<_> = requests.iter().zip(&images).map(&mut failure).collect();
        let is_deferred: Vec<_> = deferred.iter().map(Option::is_some).collect();
        assert_eq!(is_deferred, [false, true, false], "the index needs all pulls, and the third is not on Docker Hub");
        assert!(
            deferred[1]
                .as_ref()
                .is_some_and(|it| it.error.as_str().contains("allows the user in srcCredential 5 more pulls"))
        );
    }

    #[tokio::test]
    async fn an_image_that_is_archived_at_the_source_and_missing_at_the_destination_fails() {
        let ecr = aws_smithy_mocks::mock_client!(aws_sdk_ecr, aws_smithy_mocks::RuleMode::MatchAny, []);
        let requests = requests("ecr.example/app:1,ecr.example/app:2", Naming::Plain);
        let source = Source::Ecr(Registry::new(ecr, None), requests[0].repository.registry.clone());
        let image = |tag: &str, is_archived| {
            let tag: Tag = tag.parse().expect(tag);
            SourceImage { is_archived, ..SourceImage::new(Some(tag.clone()), Digest::of(tag.as_str().as_bytes())) }
        };
        for platform in [None, Some("linux/arm64".parse().expect("it is valid"))] {
            let options = Options { include_untagged: true, platform, rules: Rules::default() };
            let missing = vec![image("1", false), image("2", true)];
            let (images, failures) = source.finish(&requests[0], missing, &options).await.expect("there is no index");
            assert_eq!(images, [image("1", false)]);
            assert_eq!(failures, [ListingFailure::new("2", ecr::CANNOT_PULL)]);
        }
    }

    fn chosen(list: &str, exclude: &str, tags: &[&str]) -> (Vec<String>, Listing) {
        let wanted = &requests(list, Naming::Plain)[0].wanted;
        let tags: Vec<Tag> = tags.iter().map(|tag| tag.parse().expect(tag)).collect();
        let available: Vec<_> = tags.iter().map(|tag| Available { tag, pushed_at: 0 }).collect();
        let rules = Rules::read(&[("EXCLUDE_TAGS", exclude)].into_iter().collect()).expect("they are globs");
        let (named, listing) = choose(wanted, &available, &BTreeSet::new(), &rules);
        let print = |named: NamedImage| {
            named.tag.map_or(String::new(), String::from) + &named.digest.map_or(String::new(), |d| format!("@{d}"))
        };
        (named.into_iter().map(print).collect(), listing)
    }

    #[test]
    fn excluded_tags_are_reported_with_their_rule() {
        let tags = ["1.0", "1.1", "1.2-beta", "2.0-beta"];
        let (named, listing) = chosen("app:1.* newest 2,app:3-beta,app:3", "*beta*", &tags);
        assert_eq!(named, ["1.0", "1.1", "3"]);
        let excluded: Vec<_> = listing.excluded.iter().map(|it| (it.tag.as_str(), it.rule.as_str())).collect();
        assert_eq!(excluded, [("1.2-beta", "excludeTags *beta*"), ("3-beta", "excludeTags *beta*")]);
        assert_eq!(listing.failures, []);
    }

    #[test]
    fn a_pattern_that_matches_no_tag_is_a_failure() {
        let (named, listing) = chosen("app:9.*,app:1.*", "", &["1.0"]);
        assert_eq!(named, ["1.0"]);
        let error = "No tag matches this pattern. Number of tags in the repository: 1.";
        assert_eq!(listing.failures, [ListingFailure::new("9.*", error)]);
    }

    #[test]
    fn a_tag_is_selected_once_and_with_the_digest_in_the_list() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let (named, _) = chosen(&format!("app:ALL_TAGS,app:1.0,app:1.*,app:1.1@{digest}"), "", &["1.0", "1.1"]);
        assert_eq!(named, ["1.0".to_owned(), format!("1.1@{digest}")]);
    }

    #[test]
    fn the_image_of_a_platform_is_found_or_the_error_has_the_other_platforms() {
        let (amd, arm) = (Digest::of(b"amd"), Digest::of(b"arm"));
        let index = Manifest::parse(
            serde_json::json!({ "manifests": [
                { "digest": amd, "size": 1, "platform": { "os": "linux", "architecture": "amd64" } },
                { "digest": arm, "size": 1, "platform": { "os": "linux", "architecture": "arm64", "variant": "v8" } },
            ] })
            .to_string()
            .as_bytes(),
        )
        .expect("it is an index");
        let find = |platform: &str| on_platform(&index, &platform.parse().expect("it is valid"));
        assert_eq!(find("linux/arm64").expect("it has one").digest, arm);
        let error = find("linux/s390x").expect_err("it has no image for it");
        assert_eq!(error, "The index has no image for linux/s390x. Its platforms: linux/amd64, linux/arm64/v8.");
    }

    #[tokio::test]
    async fn a_registry_that_does_not_answer_does_not_delay_others() {
        let silent: Vec<_> = (0..CONCURRENCY + 1).map(|number| format!("silent.example/a{number}")).collect();
        let requests = requests(&format!("{},honest.example/b", silent.join(",")), Naming::Plain);
        let work = async |request: RepositoryRequest| {
            if request.repository.registry.as_str() == "honest.example" {
                return Err(Error::NotAllowed { subject: "the end".into(), problem: "of the test".into() });
            }
            future::pending::<()>().await;
            Ok(())
        };
        let ended = for_each(requests, work).await;
        assert_eq!(ended.expect_err("it ends").to_string(), "the end: of the test");
    }

    #[test]
    fn of_very_many_failures_only_the_first_are_listed_and_that_there_are_more() {
        let mut listing = Listing::default();
        for number in 0..FAILURES + 5 {
            listing.fail(ListingFailure::new(&number.to_string(), "it is not there"));
        }
        let names: Vec<_> = listing.failures.iter().map(|failed| failed.name.as_str()).collect();
        assert_eq!(names.len(), FAILURES + 1);
        assert_eq!(names[FAILURES - 1..], [&*(FAILURES - 1).to_string(), MORE]);
    }
}
