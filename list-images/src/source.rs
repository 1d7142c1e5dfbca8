//! What the source holds of what the run wants: repositories, and the images listed in each.

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

/// How many repositories are listed at once. More would only meet ECR's limits sooner, and take more memory.
const CONCURRENCY: usize = 16;

/// The most registries of a list: all of them are asked at the same time.
const REGISTRIES: usize = 100;

/// A repository that the run copies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryRequest {
    /// Where it is.
    pub repository: Repository,
    /// Its name in the table.
    pub name: RepositoryName,
    /// Its name at the destination: the same, behind the prefix.
    pub destination: RepositoryName,
    /// What of it.
    pub wanted: Wanted,
}

/// What is asked of every listing.
#[derive(Debug)]
pub struct Options {
    /// Whether images without a tag come along: those of an ECR repository that is copied as a whole, and what refers to
    /// an image, such as its signature.
    pub include_untagged: bool,
    /// The one platform that is copied; `None` for all.
    pub platform: Option<Platform>,
    /// What is left out.
    pub rules: Rules,
}

/// An image that is to be at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceImage {
    /// The tag; `None` for an untagged image.
    pub tag: Option<Tag>,
    /// The digest.
    pub digest: Digest,
    /// The compressed size; 0 where it is not known.
    pub bytes: u64,
    /// Whether it is an index.
    pub is_index: bool,
    /// How many images it has, if it is one; 0 where that is not known.
    pub images: u32,
    /// What it refers to, as the source says: it comes along with that image.
    pub subject: Option<Digest>,
    /// The digest that the destination's tag leads to instead, once they have been compared.
    pub replaces: Option<Digest>,
    /// Whether the source has archived it: it cannot be copied, and may be at the destination.
    pub is_archived: bool,
}

impl SourceImage {
    /// An image of which no more is known.
    pub fn new(tag: Option<Tag>, digest: Digest) -> Self {
        Self { tag, digest, bytes: 0, is_index: false, images: 0, subject: None, replaces: None, is_archived: false }
    }

    /// Why it cannot be copied.
    pub fn failed(&self, error: &str) -> ListingFailure {
        ListingFailure::of(self.tag.as_ref(), Some(self.digest), error)
    }
}

/// Something that is wanted and cannot be copied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListingFailure {
    /// The tag, the digest, or the pattern.
    pub name: Excerpt,
    /// What is wrong.
    pub error: Excerpt,
}

/// The most characters of the name of what fails; tags have 128.
const NAME: usize = 200;

/// What stands for all that refers to a repository's images. Like the next one it has a space, which no tag has.
const REFERRERS: &str = "all referrers";

/// What stands for the failures of a repository that are too many to be told one by one.
const MORE: &str = "more failures";

impl ListingFailure {
    /// Whatever `name` stands for fails.
    pub fn new(name: &str, error: &str) -> Self {
        Self { name: Excerpt::within(name, NAME), error: error.into() }
    }

    /// An image fails, by its tag, or by its digest where it has none.
    pub fn of(tag: Option<&Tag>, digest: Option<Digest>, error: &str) -> Self {
        let digest = || digest.map_or_else(String::new, |digest| digest.to_string());
        Self::new(&tag.map_or_else(digest, ToString::to_string), error)
    }

    /// All of a repository fails: its images cannot be listed.
    pub fn unlistable(error: &str) -> Self {
        Self::new(ALL_TAGS, &format!("its images cannot be listed: {error}"))
    }

    /// What refers to its images, such as their signatures, cannot be listed.
    pub fn companions(error: &Error) -> Self {
        Self::new(REFERRERS, &format!("what refers to its images cannot be listed: {error}"))
    }

    /// Whether there may be more images, which could not be listed.
    pub fn hides_others(&self) -> bool {
        [ALL_TAGS, REFERRERS, MORE].contains(&self.name.as_str())
    }
}

/// An image that a rule leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// Its tag.
    pub tag: Tag,
    /// The rule.
    pub rule: String,
}

/// The listing of a repository.
#[derive(Debug, Default)]
pub struct Listing {
    /// What is to be at the destination.
    pub images: Vec<SourceImage>,
    /// What cannot be copied.
    pub failures: Vec<ListingFailure>,
    /// What a rule left out.
    pub excluded: Vec<Excluded>,
    /// Why the repository could not be listed. It costs no other one.
    pub failure: Option<Error>,
}

/// The most failures of a repository that are told one by one.
const FAILURES: usize = 1_000;

impl Listing {
    /// Stands for a repository that could not be listed.
    pub fn failed(error: Error) -> Self {
        Self { failures: vec![ListingFailure::unlistable(&error.to_string())], failure: Some(error), ..Self::default() }
    }

    /// Adds images, and those that fail.
    pub fn add(&mut self, images: impl IntoIterator<Item = Result<SourceImage, ListingFailure>>) {
        for image in images {
            match image {
                Ok(image) => self.images.push(image),
                Err(failed) => self.fail(failed),
            }
        }
    }

    /// Adds what fails, unless there is very much of it already: then only that there is more.
    pub fn fail(&mut self, failed: ListingFailure) {
        match self.failures.len() {
            0..FAILURES => self.failures.push(failed),
            FAILURES => {
                self.failures.push(ListingFailure::new(MORE, "more of its images fail than are listed one by one"));
            }
            _ => {}
        }
    }
}

/// The registries that images come from.
pub enum Source<'a> {
    /// One ECR registry, and its host.
    Ecr(Registry, RegistryHost),
    /// Any others.
    Public(Box<Registries<'a>>),
}

impl Source<'_> {
    /// The host of the one registry that everything comes from, if there is one.
    pub fn host(&self) -> Option<&RegistryHost> {
        match self {
            Self::Ecr(_, host) => Some(host),
            Self::Public(_) => None,
        }
    }

    /// The repositories to copy from, those that the selection names or all that there are, and those that a rule leaves
    /// out, with the rule.
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
                    let problem = format!("the list names more than the {REGISTRIES} registries that are allowed");
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

    /// The images of one repository that the run wants. What is wrong with one of them, or with the repository, is told
    /// in its place: it costs no other image.
    pub async fn list(&self, request: &RepositoryRequest, options: &Options) -> Listing {
        let listing = match self {
            Self::Ecr(registry, _) => ecr::list(registry, request, options).await,
            Self::Public(registries) => registries.list(request, options).await,
        };
        listing.unwrap_or_else(Listing::failed)
    }

    /// Finishes a listing of what the destination lacks: takes out untagged images that come along with an index, fills in
    /// sizes and numbers of images that listing did not tell, and looks whether what came along belongs to its image.
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
                // For a single platform, that has been done already.
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

/// How many images an index is reckoned to have where nobody tells.
const IMAGES_OF_INDEX: u32 = 4;

impl SourceImage {
    /// How many manifests it comes with: its own, and those of an index's images.
    pub fn manifests(&self) -> u32 {
        match (self.is_index, self.images) {
            (false, _) => 1,
            (true, 0) => 1 + IMAGES_OF_INDEX,
            (true, images) => 1 + images,
        }
    }
}

/// The image of `request` that Docker Hub would not let us pull any more, of `left` pulls that it allows: it would only fail.
/// Otherwise there are fewer left.
pub fn defer(request: &RepositoryRequest, image: &SourceImage, allowed: u64, left: &mut u64) -> Option<ListingFailure> {
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
        "deferred to a later run: Docker Hub allows {allowed} more pulls to the user in srcCredential for now, and the run needs \
         more; a user with a subscription has no limit"
    )))
}

/// Runs `work` for all of `repositories`, [`CONCURRENCY`] of a registry at a time. Registries do not wait for each other:
/// one that takes all its time costs the others none of theirs.
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
    let of_registry =
        |requests| stream::iter(requests).map(&work).buffer_unordered(CONCURRENCY).try_collect::<Vec<T>>();
    let done = future::try_join_all(registries.into_values().map(of_registry)).await?;
    Ok(done.into_iter().flatten().collect())
}

/// Two repositories whose images would be in one at the destination.
pub fn check_collisions(requests: &[RepositoryRequest]) -> Result<()> {
    let mut sources: HashMap<&RepositoryName, &Repository> = HashMap::new();
    for request in requests {
        if let Some(other) = sources.insert(&request.destination, &request.repository) {
            return Err(Error::Selection {
                entry: Excerpt::new(&request.repository.to_string()),
                place: None,
                problem: format!(
                    "it would have the same name at the destination, {}, as {other}; leave one of them out, or choose another \
                     naming",
                    request.destination
                ),
            });
        }
    }
    Ok(())
}

/// Why patterns leave out what the source has archived.
const ARCHIVED: &str = "archived at the source";

/// What of `available` the request's patterns choose and its names add; images that a rule leaves out, and patterns that
/// choose nothing, are told. Patterns choose nothing that is `archived`.
fn choose(
    wanted: &Wanted,
    available: &[Available<'_>],
    archived: &BTreeSet<&Tag>,
    rules: &Rules,
) -> (Vec<NamedImage>, Listing) {
    let mut listing = Listing::default();
    let mut chosen: BTreeSet<NamedImage> = BTreeSet::new();
    // What is excluded is none of the newest. It is told only of what would have been chosen.
    let rule = |tag: &Tag| rules.excluding_tag(tag).or_else(|| archived.contains(tag).then(|| ARCHIVED.to_owned()));
    let (out, rest): (Vec<_>, Vec<_>) = available.iter().copied().partition(|it| rule(it.tag).is_some());
    let mut excluded: BTreeSet<&Tag> = BTreeSet::new();
    for pattern in &wanted.patterns {
        let tags = pattern.select(&rest);
        let left_out = pattern.without_limit().select(&out);
        if tags.is_empty() && left_out.is_empty() && !pattern.is_everything() {
            let error = format!("no tag of {} matches", available.len());
            listing.failures.push(ListingFailure::new(pattern.as_str(), &error));
        }
        excluded.extend(left_out);
        chosen.extend(tags.into_iter().map(|tag| NamedImage { tag: Some(tag.clone()), digest: None }));
    }
    for image in &wanted.images {
        if let Some(tag) = image.tag.as_ref().filter(|tag| rules.excluding_tag(tag).is_some()) {
            excluded.insert(tag);
            continue;
        }
        // The same tag with a digest is a request for that image.
        if image.digest.is_some() && image.tag.is_some() {
            chosen.remove(&NamedImage { tag: image.tag.clone(), digest: None });
        }
        if let Some(tag) = &image.tag {
            excluded.remove(tag);
        }
        chosen.insert(image.clone());
    }
    let told = |tag: &Tag| Some(Excluded { tag: tag.clone(), rule: rule(tag)? });
    listing.excluded.extend(excluded.into_iter().filter_map(told));
    (chosen.into_iter().collect(), listing)
}

/// The image of an index that runs on `platform`.
fn on_platform(index: &Manifest, platform: &Platform) -> Result<Descriptor, String> {
    let of = |image: &Descriptor| image.platform.clone();
    let image = index.manifests.iter().find(|image| of(image).is_some_and(|it| platform.accepts(&it)));
    image.cloned().ok_or_else(|| {
        let has: Vec<_> = index.manifests.iter().filter_map(of).map(|it| it.to_string()).collect();
        format!("it has no image for {platform}, only for {}", has.join(", "))
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
    fn two_sources_that_would_land_on_one_destination_are_an_error_that_names_both() {
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
    fn what_docker_hub_would_not_let_us_pull_is_deferred() {
        let requests = requests("nginx,redis,quay.io/coreos/etcd", Naming::Plain);
        let image = |is_index| SourceImage { is_index, ..SourceImage::new(None, Digest::of(b"")) };
        let images = [image(true), image(false), image(false)];
        let mut left = 5;
        let deferred: Vec<_> =
            requests.iter().zip(&images).map(|(request, image)| defer(request, image, 5, &mut left)).collect();
        let which: Vec<_> = deferred.iter().map(Option::is_some).collect();
        assert_eq!(which, [false, true, false], "the index takes them all, and the third is not Docker Hub's");
        assert!(deferred[1].as_ref().is_some_and(|it| it.error.as_str().contains("allows 5 more pulls")));
    }

    #[tokio::test]
    async fn what_the_source_has_archived_and_the_destination_lacks_fails_and_is_not_copied() {
        let ecr = aws_smithy_mocks::mock_client!(aws_sdk_ecr, aws_smithy_mocks::RuleMode::MatchAny, []);
        let requests = requests("ecr.example/app:1,ecr.example/app:2", Naming::Plain);
        let source = Source::Ecr(Registry::new(ecr, None), requests[0].repository.registry.clone());
        let image = |tag: &str, is_archived| {
            let tag: Tag = tag.parse().expect(tag);
            SourceImage { is_archived, ..SourceImage::new(Some(tag.clone()), Digest::of(tag.as_str().as_bytes())) }
        };
        for platform in [None, Some("linux/arm64".parse().expect("it is one"))] {
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
    fn what_is_excluded_is_left_out_and_told_whoever_wants_it() {
        let tags = ["1.0", "1.1", "1.2-beta", "2.0-beta"];
        let (named, listing) = chosen("app:1.* newest 2,app:3-beta,app:3", "*beta*", &tags);
        assert_eq!(named, ["1.0", "1.1", "3"]);
        let excluded: Vec<_> = listing.excluded.iter().map(|it| (it.tag.as_str(), it.rule.as_str())).collect();
        assert_eq!(excluded, [("1.2-beta", "excludeTags *beta*"), ("3-beta", "excludeTags *beta*")]);
        assert_eq!(listing.failures, []);
    }

    #[test]
    fn a_pattern_that_chooses_nothing_is_told() {
        let (named, listing) = chosen("app:9.*,app:1.*", "", &["1.0"]);
        assert_eq!(named, ["1.0"]);
        assert_eq!(listing.failures, [ListingFailure::new("9.*", "no tag of 1 matches")]);
    }

    #[test]
    fn a_tag_is_chosen_once_and_with_the_digest_that_was_asked_for() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let (named, _) = chosen(&format!("app:ALL_TAGS,app:1.0,app:1.*,app:1.1@{digest}"), "", &["1.0", "1.1"]);
        assert_eq!(named, ["1.0".to_owned(), format!("1.1@{digest}")]);
    }

    #[test]
    fn the_image_of_a_platform_is_found_or_the_others_are_named() {
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
        let find = |platform: &str| on_platform(&index, &platform.parse().expect("it is one"));
        assert_eq!(find("linux/arm64").expect("it has one").digest, arm);
        let error = find("linux/s390x").expect_err("it has none");
        assert_eq!(error, "it has no image for linux/s390x, only for linux/amd64, linux/arm64/v8");
    }

    #[tokio::test]
    async fn a_registry_that_does_not_answer_keeps_no_other_one_waiting() {
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
}
