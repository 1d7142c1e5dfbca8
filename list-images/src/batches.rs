//! Packs images into batches, one for each task.
//!
//! A task takes most of a minute to start, and images of a repository share layers. So the images of a repository stay
//! together, small repositories share a task, and the work is distributed evenly to all tasks that can run at once, unless
//! there is too little of it. docs/scale.md has the arithmetic.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use shared::plan::{Batch, Failure, RepositoryCopy, Row};
use shared::reference::RegistryHost;
use shared::task::{self, BARRIER_LENGTH, COPIES_LIMIT};

use crate::difference::planned;
use crate::source::SourceImage;

/// The requests of a copy take as long as this number of bytes.
const COPY_OVERHEAD: u64 = 16 << 20;

/// The most failures of a batch. Step Functions passes on
/// [at most 256 KiB](https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html).
const FAILURES: usize = 50;

/// The most corrected or deleted rows of a batch, for the same reason.
const ROWS: usize = 100;

/// The content of a plan.
#[derive(Default)]
pub struct Work {
    /// Repositories with the images to copy. The `images` of each [`RepositoryCopy`] are empty.
    pub copies: Vec<(RepositoryCopy, Vec<SourceImage>)>,
    /// What cannot be copied.
    pub failures: Vec<Failure>,
    /// Images whose rows say `Error`, although the destination has them. Each is a repository of its own.
    pub present: Vec<RepositoryCopy>,
    /// Rows that say `Error` for images that are no longer selected.
    pub obsolete: Vec<Row>,
}

/// How images are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Tasks that run at once.
    pub tasks: usize,
    /// The most images of a task.
    pub images: usize,
    /// The fewest bytes that another task is started for. A task is billed for at least one minute.
    pub bytes: u64,
    /// The destination's quota, for all tasks together.
    pub manifests_per_second: u64,
}

impl Packing {
    /// The number of tasks for this number of bytes.
    fn tasks_for(&self, bytes: u64) -> u64 {
        (bytes / self.bytes).clamp(1, self.tasks as u64)
    }

    /// Whether this fits into a task.
    fn allows(&self, images: usize, characters: usize) -> bool {
        images <= self.images && characters + BARRIER_LENGTH <= COPIES_LIMIT
    }

    /// The minimum of milliseconds per manifest, if this number of batches shares the destination's quota.
    fn pace(&self, batches: usize) -> u64 {
        (self.tasks.min(batches) as u64 * 1_000).div_ceil(self.manifests_per_second)
    }
}

/// Images of one repository that fit into one task.
struct Chunk {
    /// The index of the repository.
    repository: usize,
    images: Vec<SourceImage>,
    weight: u64,
    characters: usize,
}

#[derive(Default)]
struct Bin {
    chunks: Vec<Chunk>,
    images: usize,
    weight: u64,
    characters: usize,
    failures: Vec<Failure>,
    present: Vec<RepositoryCopy>,
    obsolete: Vec<Row>,
}

impl Bin {
    fn add(&mut self, chunk: Chunk) {
        self.images += chunk.images.len();
        self.weight = self.weight.saturating_add(chunk.weight);
        self.characters += chunk.characters;
        self.chunks.push(chunk);
    }
}

/// Packs the work into batches, the heaviest first. Batches without images are last. The iterator makes each batch when it is
/// needed, because all batches at once need too much memory.
pub fn pack(work: Work, packing: &Packing) -> impl ExactSizeIterator<Item = Batch> {
    let Work { copies: repositories, failures, present, obsolete } = work;
    let total = repositories.iter().flat_map(|(_, images)| images).map(weight).fold(0, u64::saturating_add);
    let share = total.div_ceil(packing.tasks_for(total));

    let (copies, images): (Vec<_>, Vec<_>) = repositories.into_iter().unzip();
    let mut chunks = split(&copies, images, share, packing);
    chunks.sort_by_key(|chunk| Reverse(chunk.weight));
    // A batch has images of one registry only, so that a slow or failing registry does not delay others.
    let mut registries: BTreeMap<&RegistryHost, Vec<Chunk>> = BTreeMap::new();
    for chunk in chunks {
        registries.entry(&copies[chunk.repository].source.registry).or_default().push(chunk);
    }
    let mut bins: Vec<Bin> = registries.into_values().flat_map(|chunks| fill(chunks, packing)).collect();
    bins.sort_by_key(|bin| Reverse(bin.weight));
    let pace = packing.pace(bins.len());
    bins.extend(failures.chunks(FAILURES).map(|failures| Bin { failures: failures.to_vec(), ..Bin::default() }));
    bins.extend(present.chunks(ROWS).map(|present| Bin { present: present.to_vec(), ..Bin::default() }));
    bins.extend(obsolete.chunks(ROWS).map(|rows| Bin { obsolete: rows.to_vec(), ..Bin::default() }));
    bins.into_iter().enumerate().map(move |(index, bin)| batch(index, bin, pace, &copies))
}

/// Fills bins with the chunks of one registry, the heaviest first.
fn fill(chunks: Vec<Chunk>, packing: &Packing) -> Vec<Bin> {
    let total = chunks.iter().map(|chunk| chunk.weight).fold(0, u64::saturating_add);
    let tasks = packing.tasks_for(total);
    let mut bins: Vec<Bin> = Vec::new();
    for chunk in chunks {
        let has_all_bins = bins.len() as u64 >= tasks;
        let lightest = bins
            .iter_mut()
            .filter(|bin| packing.allows(bin.images + chunk.images.len(), bin.characters + chunk.characters))
            .min_by_key(|bin| bin.weight);
        match lightest {
            Some(bin) if has_all_bins => bin.add(chunk),
            _ => {
                bins.push(Bin::default());
                bins.last_mut().expect("it was just added").add(chunk);
            }
        }
    }
    bins
}

fn batch(index: usize, mut bin: Bin, pace: u64, copies: &[RepositoryCopy]) -> Batch {
    // Two chunks of one repository can be in the same bin.
    bin.chunks.sort_by_key(|chunk| chunk.repository);
    let mut repositories: Vec<RepositoryCopy> = Vec::new();
    let mut last = None;
    for chunk in bin.chunks {
        if last != Some(chunk.repository) {
            repositories.push(copies[chunk.repository].clone());
            last = Some(chunk.repository);
        }
        let images = &mut repositories.last_mut().expect("it has the chunk's repository").images;
        images.extend(chunk.images.iter().map(planned));
    }
    let bytes = repositories.iter().flat_map(|copy| &copy.images).map(|image| image.bytes).fold(0, u64::saturating_add);
    let id = (index + 1).to_string().parse().expect("a number is an id");
    Batch { id, bytes, pace, repositories, failures: bin.failures, present: bin.present, obsolete: bin.obsolete }
}

fn weight(image: &SourceImage) -> u64 {
    image.bytes + COPY_OVERHEAD
}

/// Makes one chunk of each repository, or several if it exceeds the share of a task, or the limits of a task.
fn split(copies: &[RepositoryCopy], images: Vec<Vec<SourceImage>>, share: u64, packing: &Packing) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for (repository, (copy, images)) in copies.iter().zip(images).enumerate() {
        for image in images {
            let characters = task::line_length(&planned(&image));
            let weight = weight(&image);
            let fits = |chunk: &&mut Chunk| {
                chunk.repository == repository
                    && chunk.weight + weight <= share
                    && packing.allows(chunk.images.len() + 1, chunk.characters + characters)
            };
            match chunks.last_mut().filter(fits) {
                Some(chunk) => {
                    chunk.images.push(image);
                    chunk.weight += weight;
                    chunk.characters += characters;
                }
                None => {
                    let characters = characters + task::header_length(copy);
                    chunks.push(Chunk { repository, images: vec![image], weight, characters });
                }
            }
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use shared::reference::{Digest, Repository};

    use super::*;
    use crate::source::ListingFailure;

    const GIB: u64 = 1 << 30;

    type Copies = Vec<(RepositoryCopy, Vec<SourceImage>)>;

    fn repository(name: &str, count: usize, bytes: u64) -> (RepositoryCopy, Vec<SourceImage>) {
        let source: Repository = format!("222222222222.dkr.ecr.us-west-2.amazonaws.com/{name}").parse().expect(name);
        let destination = format!("111111111111.dkr.ecr.us-east-1.amazonaws.com/{name}").parse().expect(name);
        let copy = RepositoryCopy { image: source.name.clone(), source, destination, images: Vec::new() };
        let image = |number: usize| {
            let tag = number.to_string();
            SourceImage {
                bytes,
                ..SourceImage::new(Some(tag.parse().expect("it is a tag")), Digest::of(tag.as_bytes()))
            }
        };
        (copy, (0..count).map(image).collect())
    }

    fn failure(number: usize) -> Failure {
        let source: Repository = "quay.io/team/app".parse().expect("it is a repository");
        let image = source.name.clone();
        Failure { image, tag: number.to_string().into(), source, error: "manifest unknown".into() }
    }

    const PACKING: Packing = Packing { tasks: 10, images: usize::MAX, bytes: GIB / 2, manifests_per_second: 10 };

    fn packed(copies: Copies, tasks: usize) -> Vec<Batch> {
        pack(Work { copies, ..Work::default() }, &Packing { tasks, ..PACKING }).collect()
    }

    fn destinations(copies: impl IntoIterator<Item = RepositoryCopy>) -> Vec<String> {
        let images = copies.into_iter().flat_map(|copy| {
            let destination = copy.destination;
            copy.images.into_iter().map(move |image| image.at(&destination).to_string()).collect::<Vec<_>>()
        });
        let mut all: Vec<_> = images.collect();
        all.sort_unstable();
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn every_image_is_in_one_batch_and_no_batch_exceeds_a_limit(
            repositories in proptest::collection::vec((0_usize..120, 0_u64..2_000, 1_usize..200), 0..20),
            tasks in 1_usize..30,
            images in 1_usize..100,
            failures in 0_usize..250,
            rows in 0_usize..250,
        ) {
            let copies: Copies = repositories
                .iter()
                .enumerate()
                .map(|(number, &(count, mebibytes, length))| {
                    repository(&format!("{}-{number}", "r".repeat(length)), count, mebibytes << 20)
                })
                .collect();
            let wanted = copies.iter().map(|(copy, images)| RepositoryCopy {
                images: images.iter().map(planned).collect(),
                ..copy.clone()
            });
            let wanted = destinations(wanted);
            let failures: Vec<_> = (0..failures).map(failure).collect();
            let present: Vec<_> = (0..rows).map(|row| repository(&format!("r-{row}"), 0, 0).0).collect();
            let row = |number: usize| Row { image: failure(0).image, tag: number.to_string().into() };
            let obsolete: Vec<_> = (0..rows).map(row).collect();
            let work =
                Work { copies, failures: failures.clone(), present: present.clone(), obsolete: obsolete.clone() };
            let batches: Vec<_> = pack(work, &Packing { tasks, images, ..PACKING }).collect();

            prop_assert_eq!(destinations(batches.iter().flat_map(|batch| batch.repositories.clone())), wanted);
            prop_assert_eq!(batches.iter().flat_map(|batch| batch.failures.clone()).collect::<Vec<_>>(), failures);
            prop_assert_eq!(batches.iter().flat_map(|batch| batch.present.clone()).collect::<Vec<_>>(), present);
            prop_assert_eq!(batches.iter().flat_map(|batch| batch.obsolete.clone()).collect::<Vec<_>>(), obsolete);
            let ids: HashSet<_> = batches.iter().map(|batch| &batch.id).collect();
            prop_assert_eq!(ids.len(), batches.len());
            for batch in &batches {
                let count: usize = batch.repositories.iter().map(|copy| copy.images.len()).sum();
                let rows = batch.present.len() + batch.obsolete.len();
                prop_assert!(count <= images && batch.failures.len() <= FAILURES && rows <= ROWS);
                prop_assert!(count + batch.failures.len() + rows > 0, "no batch is empty");
                let destinations: HashSet<_> = batch.repositories.iter().map(|copy| &copy.destination).collect();
                prop_assert_eq!(destinations.len(), batch.repositories.len(), "each repository once");
                let json = serde_json::to_string(&task::encode(&batch.repositories)).expect("a string is JSON");
                prop_assert!(json.len() - 2 <= COPIES_LIMIT, "{} characters", json.len());
                let bytes: u64 = batch.repositories.iter().flat_map(|copy| &copy.images).map(|image| image.bytes).sum();
                prop_assert_eq!(batch.bytes, bytes);
            }
        }
    }

    #[test]
    fn a_batch_of_long_failures_is_within_the_limit_of_step_functions() {
        for text in ["\u{1b}", "😀", "\"", "ü"] {
            let long = ListingFailure::new(&text.repeat(1_000), &text.repeat(1_000));
            let long = Failure { tag: long.name, error: long.error, ..failure(1) };
            let batches: Vec<_> = pack(Work { failures: vec![long; FAILURES], ..Work::default() }, &PACKING).collect();
            assert!(serde_json::to_string(&batches[0]).expect("a batch is JSON").len() < 200 << 10, "{text}");
        }
    }

    #[test]
    fn a_batch_has_images_of_one_registry() {
        let of = |registry: &str, name: &str| {
            let (copy, images) = repository(name, 2, 1 << 20);
            let source = format!("{registry}/{name}").parse().expect(name);
            (RepositoryCopy { source, ..copy }, images)
        };
        let batches = packed(vec![of("slow.example", "a"), of("quay.io", "b"), of("slow.example", "c")], 10);
        let registries: Vec<HashSet<_>> = batches
            .iter()
            .map(|batch| batch.repositories.iter().map(|copy| copy.source.registry.as_str()).collect())
            .collect();
        assert!(batches.len() == 2 && registries.iter().all(|registries| registries.len() == 1), "{registries:?}");
    }

    #[test]
    fn little_work_is_packed_into_one_batch() {
        assert_eq!(packed(vec![repository("a", 3, 1 << 20), repository("b", 2, 1 << 20)], 10).len(), 1);
    }

    #[test]
    fn much_work_is_distributed_evenly_to_all_tasks() {
        let batches = packed((0..40).map(|n| repository(&format!("app-{n}"), 2, GIB / 2)).collect(), 10);
        assert_eq!(batches.len(), 10);
        assert!(batches.iter().all(|batch| batch.bytes == 4 * GIB));
    }

    #[test]
    fn a_repository_is_split_only_if_it_is_too_large_for_one_task() {
        let batches = packed(vec![repository("large", 10, GIB), repository("small", 2, GIB / 4)], 4);
        let is_small = |copy: &RepositoryCopy| copy.image.as_str() == "small";
        assert_eq!(batches.iter().filter(|batch| batch.repositories.iter().any(is_small)).count(), 1);
        assert!(batches.len() >= 4);
    }

    #[test]
    fn tasks_that_run_at_once_share_the_destinations_quota_of_manifests() {
        let pace = |repositories, tasks| {
            let copies = (0..repositories).map(|n| repository(&format!("app-{n}"), 1, GIB)).collect();
            let packing = Packing { tasks, manifests_per_second: 4, ..PACKING };
            pack(Work { copies, ..Work::default() }, &packing).next().expect("there is work").pace
        };
        assert_eq!(pace(1, 10), 250, "a single task");
        assert_eq!(pace(30, 10), 2_500, "ten tasks at once");
    }

    #[test]
    fn no_work_is_no_batch() {
        assert_eq!(packed(Vec::new(), 10), []);
    }

    #[test]
    fn a_task_is_told_as_much_as_run_task_takes_and_no_more() {
        assert!(PACKING.allows(1, COPIES_LIMIT - BARRIER_LENGTH));
        assert!(!PACKING.allows(1, COPIES_LIMIT - BARRIER_LENGTH + 1));
        let (copy, images) = repository("app", 500, 0);
        let chunks = split(&[copy], vec![images], u64::MAX, &PACKING);
        assert!(chunks.iter().all(|chunk| PACKING.allows(chunk.images.len(), chunk.characters)));
        assert_eq!(chunks.iter().map(|chunk| chunk.images.len()).sum::<usize>(), 500);
    }

    #[test]
    fn a_repository_is_split_where_it_is_more_than_a_share() {
        let (copy, images) = repository("app", 5, 100);
        let share = 2 * weight(&images[0]);
        let chunks = split(&[copy], vec![images], share, &PACKING);
        assert_eq!(chunks.iter().map(|chunk| chunk.images.len()).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn batches_are_numbered_from_one() {
        let batches = packed(vec![repository("a", 2, GIB), repository("b", 2, GIB)], 2);
        let ids: Vec<_> = batches.iter().map(|batch| batch.id.to_string()).collect();
        assert_eq!(ids, ["1", "2"]);
    }
}
