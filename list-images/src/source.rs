//! What the source holds of what the run wants: repositories, and the images listed in each.

mod ecr;
mod public;

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use shared::ecr::Registry;
use shared::manifest::{Descriptor, Manifest, Platform};
use shared::{Error, Result};

use self::public::COUNTS_PULLS;
pub use self::public::Registries;
use crate::naming::{Naming, destination_name};
use crate::rules::Rules;
use crate::selection::{Named, Repository, Selection, Wanted};
use crate::tags::{ALL_TAGS, Available};

/// How many repositories are listed at once. More would only meet ECR's limits sooner, and take more memory.
const CONCURRENCY: usize = 16;

/// A repository that the run copies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Where it is.
    pub repository: Repository,
    /// Its name in the table.
    pub name: String,
    /// Its name at the destination: the same, behind the prefix.
    pub destination: String,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The tag; `None` for an untagged image.
    pub tag: Option<String>,
    /// The digest; `None` where the source would not name it.
    pub digest: Option<String>,
    /// The compressed size; 0 where it is not known.
    pub bytes: u64,
    /// Whether it is an index.
    pub is_index: bool,
    /// How many images it has, if it is one; 0 where that is not known.
    pub images: u64,
    /// The digest that the destination's tag leads to instead, once they have been compared.
    pub replaces: Option<String>,
    /// Why it cannot be copied, where that is clear already.
    pub error: Option<String>,
}

/// An image that a rule leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// Its tag.
    pub tag: String,
    /// The rule.
    pub rule: String,
}

/// The listing of a repository.
#[derive(Debug, Default)]
pub struct Listing {
    /// What is to be at the destination.
    pub images: Vec<Listed>,
    /// What a rule left out.
    pub excluded: Vec<Excluded>,
    /// Why the repository could not be listed. It costs no other one.
    pub failure: Option<Error>,
}

impl Listing {
    /// Stands for a repository that could not be listed.
    #[must_use]
    pub fn failed(error: Error) -> Self {
        let images = vec![unlistable(&error)];
        Self { images, excluded: Vec::new(), failure: Some(error) }
    }
}

/// The registries that images come from.
pub enum Source<'a> {
    /// One ECR registry, and its host name.
    Ecr(Registry, String),
    /// Any others.
    Public(Box<Registries<'a>>),
}

impl Source<'_> {
    /// The host of the one registry that everything comes from, if there is one.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Ecr(_, host) => Some(host),
            Self::Public(_) => None,
        }
    }

    /// The repositories to copy from, those that the selection names or all that there are, and those that a rule leaves
    /// out, with the rule.
    ///
    /// # Errors
    /// When they cannot be listed, or one of them would have a name at the destination that ECR does not allow.
    pub async fn wishes(
        &self,
        selection: Option<Selection>,
        rules: &Rules,
        naming: Naming,
        prefix: &str,
    ) -> Result<(Vec<Wish>, Vec<(Repository, String)>)> {
        let mut excluded = Vec::new();
        let selection = match (self, selection) {
            (_, Some(selection)) => selection,
            (Self::Public(_), None) => Selection::new(),
            (Self::Ecr(registry, host), None) => {
                let mut all = Selection::new();
                for name in registry.repositories().await? {
                    let rule = rules.excluding_repository(&name);
                    let repository = Repository { registry: host.clone(), name };
                    match rule {
                        None => drop(all.insert(repository, Wanted::everything())),
                        Some(rule) => excluded.push((repository, rule)),
                    }
                }
                all
            }
        };
        let wish = |(repository, wanted)| {
            let name =
                if self.host().is_some() { naming.name_in_source(&repository) } else { naming.name(&repository) };
            Ok(Wish { destination: destination_name(prefix, &name)?, name, repository, wanted })
        };
        Ok((selection.into_iter().map(wish).collect::<Result<_>>()?, excluded))
    }

    /// The images of one repository that the run wants. What is wrong with one of them, or with the repository, is told
    /// in its place: it costs no other image.
    pub async fn list(&self, wish: &Wish, options: &Options) -> Listing {
        let listing = match self {
            Self::Ecr(registry, _) => ecr::list(registry, wish, options).await,
            Self::Public(registries) => registries.list(wish, options).await,
        };
        listing.unwrap_or_else(Listing::failed)
    }

    /// Finishes a listing of what the destination lacks: takes out untagged images that come along with an index, and
    /// fills in sizes and numbers of images that listing did not tell.
    ///
    /// # Errors
    /// When the source does not show its indexes.
    pub async fn finish(&self, wish: &Wish, missing: Vec<Listed>, options: &Options) -> Result<Vec<Listed>> {
        match self {
            // For a single platform, that has been done already.
            Self::Ecr(registry, _) if options.platform.is_none() => ecr::with_indexes(registry, wish, missing).await,
            Self::Ecr(..) => Ok(missing),
            Self::Public(registries) => registries.with_sizes(wish, missing).await,
        }
    }
}

/// How many images an index is reckoned to have where nobody tells.
const IMAGES_OF_INDEX: u64 = 4;

impl Listed {
    /// How many manifests it comes with: its own, and those of an index's images.
    #[must_use]
    pub fn manifests(&self) -> u64 {
        match (self.is_index, self.images) {
            (false, _) => 1,
            (true, 0) => 1 + IMAGES_OF_INDEX,
            (true, images) => 1 + images,
        }
    }
}

/// Defers images that Docker Hub would not let us pull any more: they would only fail, one by one.
pub fn defer<'a>(missing: impl Iterator<Item = (&'a Wish, &'a mut Listed)>, pulls_left: u64) {
    let mut left = pulls_left;
    for (wish, image) in missing {
        if wish.repository.registry != COUNTS_PULLS || image.error.is_some() {
            continue;
        }
        // Each manifest is a pull.
        match left.checked_sub(image.manifests()) {
            Some(rest) => left = rest,
            None => {
                left = 0;
                image.error = Some(format!(
                    "deferred to a later run: Docker Hub allows {pulls_left} more pulls for now, and the run needs more; it \
                     allows more with srcCredential, the user of an account there"
                ));
            }
        }
    }
}

/// Runs `work` for each of `repositories`, [`CONCURRENCY`] at a time.
///
/// # Errors
/// With the first error of `work`.
pub async fn for_each<T, W>(repositories: Vec<Wish>, work: impl Fn(Wish) -> W) -> Result<Vec<T>>
where
    W: Future<Output = Result<T, Error>>,
{
    stream::iter(repositories).map(work).buffer_unordered(CONCURRENCY).try_collect().await
}

/// Stands for a repository whose images could not be listed.
pub fn unlistable(error: &dyn std::error::Error) -> Listed {
    let error = Some(format!("its images cannot be listed: {error}"));
    Listed { tag: Some(ALL_TAGS.into()), error, ..Listed::default() }
}

/// Two repositories whose images would be one at the destination.
///
/// # Errors
/// When there are such.
pub fn check_collisions(wishes: &[Wish]) -> Result<()> {
    let mut by_name: Vec<&Wish> = wishes.iter().collect();
    by_name.sort_by(|a, b| a.destination.cmp(&b.destination));
    for group in by_name.chunk_by(|a, b| a.destination == b.destination).filter(|group| group.len() > 1) {
        for (index, first) in group.iter().enumerate() {
            for second in &group[index + 1..] {
                if let Some(image) = common(&first.wanted, &second.wanted) {
                    return Err(Error::Selection {
                        entry: format!("{}{image}", second.repository),
                        place: None,
                        problem: format!(
                            "it would have the same name at the destination, {}{image}, as {}{image}; leave one of them out, or \
                             choose another naming",
                            first.destination, first.repository
                        ),
                    });
                }
            }
        }
    }
    Ok(())
}

/// An image that both want, as a tag or a digest behind the repository's name.
fn common(first: &Wanted, second: &Wanted) -> Option<String> {
    if !first.patterns.is_empty() || !second.patterns.is_empty() {
        return Some(String::new());
    }
    // A digest is the same image wherever it comes from.
    let tags = |wanted: &Wanted| wanted.images.iter().filter_map(|image| image.tag.clone()).collect::<Vec<_>>();
    let second = tags(second);
    tags(first).into_iter().find(|tag| second.contains(tag)).map(|tag| format!(":{tag}"))
}

/// What of `available` the wish's patterns choose and its names add; images that a rule leaves out, and patterns that
/// choose nothing, are told.
fn choose(wanted: &Wanted, available: &[Available<'_>], rules: &Rules) -> (Vec<Named>, Listing) {
    let mut listing = Listing::default();
    let mut chosen: BTreeSet<Named> = BTreeSet::new();
    // What is excluded is none of the newest. It is told only of what would have been chosen.
    let (out, rest): (Vec<_>, Vec<_>) = available.iter().copied().partition(|it| rules.excluding_tag(it.tag).is_some());
    let mut excluded: BTreeSet<&str> = BTreeSet::new();
    for pattern in &wanted.patterns {
        let tags = pattern.select(&rest);
        let left_out = pattern.without_limit().select(&out);
        if tags.is_empty() && left_out.is_empty() && !pattern.is_everything() {
            let error = format!("no tag of {} matches", available.len());
            let tag = Some(pattern.as_str().to_owned());
            listing.images.push(Listed { tag, error: Some(error), ..Listed::default() });
        }
        excluded.extend(left_out);
        chosen.extend(tags.into_iter().map(|tag| Named { tag: Some(tag.to_owned()), digest: None }));
    }
    for image in &wanted.images {
        if let Some(tag) = image.tag.as_deref().filter(|tag| rules.excluding_tag(tag).is_some()) {
            excluded.insert(tag);
            continue;
        }
        // The same tag with a digest is a wish for that image.
        if image.digest.is_some() && image.tag.is_some() {
            chosen.remove(&Named { tag: image.tag.clone(), digest: None });
        }
        chosen.insert(image.clone());
    }
    let told = |tag: &str| Some(Excluded { tag: tag.to_owned(), rule: rules.excluding_tag(tag)? });
    listing.excluded.extend(excluded.into_iter().filter_map(told));
    (chosen.into_iter().collect(), listing)
}

/// The image of an index that runs on `platform`.
///
/// # Errors
/// With what the index has instead.
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
    use crate::selection;

    fn wishes(list: &str, naming: Naming) -> Vec<Wish> {
        let selection = selection::parse([("the list", list)], None).expect("it is a list");
        let wish = |(repository, wanted)| {
            let name = naming.name(&repository);
            Wish { destination: name.clone(), name, repository, wanted }
        };
        selection.into_iter().map(wish).collect()
    }

    #[test]
    fn two_sources_that_would_land_on_one_destination_are_an_error_that_names_both() {
        for (list, first, second) in [
            ("gcr.io/p/app:1,us.gcr.io/p/app:1", "gcr.io/p/app:1", "us.gcr.io/p/app:1"),
            ("gcr.io/p/app:1.*,us.gcr.io/p/app:2", "gcr.io/p/app", "us.gcr.io/p/app"),
        ] {
            let error = check_collisions(&wishes(list, Naming::Registry)).expect_err(list);
            assert!(error.to_string().contains(first) && error.to_string().contains(second), "{error}");
            assert_eq!(error.name(), "InvalidImageList");
        }
        for list in ["gcr.io/p/app:1,us.gcr.io/p/app:2", "gcr.io/p/app:1,quay.io/p/app:1"] {
            check_collisions(&wishes(list, Naming::Registry)).expect(list);
        }
    }

    #[test]
    fn what_docker_hub_would_not_let_us_pull_is_deferred() {
        let wishes = wishes("nginx,redis,quay.io/coreos/etcd", Naming::Plain);
        let image = |is_index| Listed { tag: Some("1".into()), is_index, ..Listed::default() };
        let mut images = [image(true), image(false), image(false)];
        defer(wishes.iter().zip(&mut images), 5);
        let deferred: Vec<_> = images.iter().map(|image| image.error.is_some()).collect();
        assert_eq!(deferred, [false, true, false], "the index takes them all, and the third is not Docker Hub's");
        assert!(images[1].error.as_deref().is_some_and(|error| error.contains("allows 5 more pulls")));
    }

    fn chosen(list: &str, exclude: &str, tags: &[&str]) -> (Vec<String>, Listing) {
        let wanted = &wishes(list, Naming::Plain)[0].wanted;
        let available: Vec<_> = tags.iter().map(|&tag| Available { tag, pushed_at: 0 }).collect();
        let rules = Rules::read(&[("EXCLUDE_TAGS", exclude)].into_iter().collect()).expect("they are globs");
        let (named, listing) = choose(wanted, &available, &rules);
        let print =
            |named: Named| named.tag.unwrap_or_default() + &named.digest.map_or(String::new(), |d| format!("@{d}"));
        (named.into_iter().map(print).collect(), listing)
    }

    #[test]
    fn what_is_excluded_is_left_out_and_told_whoever_wants_it() {
        let tags = ["1.0", "1.1", "1.2-beta", "2.0-beta"];
        let (named, listing) = chosen("app:1.* newest 2,app:3-beta,app:3", "*beta*", &tags);
        assert_eq!(named, ["1.0", "1.1", "3"]);
        let excluded: Vec<_> = listing.excluded.iter().map(|it| (it.tag.as_str(), it.rule.as_str())).collect();
        assert_eq!(excluded, [("1.2-beta", "excludeTags *beta*"), ("3-beta", "excludeTags *beta*")]);
        assert_eq!(listing.images, []);
    }

    #[test]
    fn a_pattern_that_chooses_nothing_is_told() {
        let (named, listing) = chosen("app:9.*,app:1.*", "", &["1.0"]);
        assert_eq!(named, ["1.0"]);
        assert_eq!(listing.images.len(), 1);
        assert_eq!(listing.images[0].tag.as_deref(), Some("9.*"));
        assert_eq!(listing.images[0].error.as_deref(), Some("no tag of 1 matches"));
    }

    #[test]
    fn a_tag_is_chosen_once_and_with_the_digest_that_was_asked_for() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let (named, _) = chosen(&format!("app:ALL_TAGS,app:1.0,app:1.*,app:1.1@{digest}"), "", &["1.0", "1.1"]);
        assert_eq!(named, ["1.0".to_owned(), format!("1.1@{digest}")]);
    }

    #[test]
    fn the_image_of_a_platform_is_found_or_the_others_are_named() {
        let index = Manifest::parse(
            r#"{"manifests": [
                {"digest": "sha256:amd", "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
                {"digest": "sha256:arm", "size": 1, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}
            ]}"#,
        );
        let find = |platform: &str| on_platform(&index, &platform.parse().expect("it is one"));
        assert_eq!(find("linux/arm64").expect("it has one").digest, "sha256:arm");
        let error = find("linux/s390x").expect_err("it has none");
        assert_eq!(error, "it has no image for linux/s390x, only for linux/amd64, linux/arm64/v8");
    }
}
