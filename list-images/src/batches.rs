//! Packs copies into batches, one for each task.
//!
//! A task takes most of a minute to start, and its copies share a cache of the layers that are already there. So a
//! repository's images stay together, small repositories share a task, and there are as many tasks as may run at once,
//! evenly loaded, unless there is too little work for them (docs/batches.md has the arithmetic).

use std::cmp::Reverse;

use shared::plan::{Batch, Copy};
use shared::task::{self, COPIES_LIMIT};

/// What a copy costs besides its bytes, in the bytes that could be moved meanwhile: its requests.
const COPY_OVERHEAD: u64 = 16 << 20;

/// How images are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// How many tasks run at once.
    pub tasks: usize,
    /// The most images of a task. RunTask sets a limit, too, so that there is no need for one.
    pub images: usize,
    /// Less than this is not worth another task: with its start it would not fill the minute that is billed at least.
    pub bytes: u64,
    /// How many manifests the destination takes a second, from all tasks together.
    pub manifests_per_second: u64,
}

impl Packing {
    /// Whether a task can take so much.
    fn allows(&self, images: usize, characters: usize) -> bool {
        images <= self.images && characters <= COPIES_LIMIT
    }

    /// How many milliseconds each manifest takes where `batches` share what the destination takes.
    fn pace(&self, batches: usize) -> u64 {
        (self.tasks.min(batches) as u64 * 1_000).div_ceil(self.manifests_per_second)
    }
}

/// Images that stay together: of one repository, and within the limits of one task.
struct Chunk<T> {
    images: Vec<T>,
    weight: u64,
    characters: usize,
}

/// Packs `images`, in which a repository's stand next to each other, into batches; the heaviest comes first. `copy` makes the copy that brings an image over. It is asked whenever one is needed: all copies
/// of a large registry at once would be most of the memory of a run.
#[must_use]
pub fn pack<T>(images: Vec<T>, copy: impl Fn(&T) -> Copy, packing: &Packing) -> impl ExactSizeIterator<Item = Batch> {
    let total: u64 = images.iter().map(|image| weight(&copy(image))).sum();
    let tasks = (total / packing.bytes).clamp(1, packing.tasks as u64);
    let share = total.div_ceil(tasks);

    let mut chunks = split(images, &copy, share, packing);
    chunks.sort_by_key(|chunk| Reverse(chunk.weight));
    let mut bins: Vec<Chunk<T>> = Vec::new();
    for chunk in chunks {
        let enough = bins.len() as u64 >= tasks;
        let lightest = bins
            .iter_mut()
            .filter(|bin| packing.allows(bin.images.len() + chunk.images.len(), bin.characters + chunk.characters))
            .min_by_key(|bin| bin.weight);
        match lightest {
            Some(bin) if enough => {
                bin.images.extend(chunk.images);
                bin.weight += chunk.weight;
                bin.characters += chunk.characters;
            }
            _ => bins.push(chunk),
        }
    }
    bins.sort_by_key(|bin| Reverse(bin.weight));
    let pace = packing.pace(bins.len());
    bins.into_iter().enumerate().map(move |(index, bin)| {
        let copies: Vec<_> = bin.images.iter().map(&copy).collect();
        Batch { id: (index + 1).to_string(), bytes: copies.iter().map(|copy| copy.bytes).sum(), pace, copies }
    })
}

fn weight(copy: &Copy) -> u64 {
    copy.bytes + COPY_OVERHEAD
}

/// Splits what belongs to one repository only where it is more than a task's share, or more than a task can be told.
fn split<T>(images: Vec<T>, copy: impl Fn(&T) -> Copy, share: u64, packing: &Packing) -> Vec<Chunk<T>> {
    let mut chunks: Vec<Chunk<T>> = Vec::new();
    let mut current = String::new();
    for image in images {
        let copy = copy(&image);
        let header = task::header(&copy);
        let characters = task::json_length(&task::line(&copy));
        let weight = weight(&copy);
        let fits = |chunk: &&mut Chunk<T>| {
            header == current
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
                chunks.push(Chunk { images: vec![image], weight, characters: characters + task::json_length(&header) });
                current = header;
            }
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn copies(repository: &str, count: usize, bytes: u64) -> Vec<Copy> {
        (0..count)
            .map(|number| Copy {
                source: format!("222222222222.dkr.ecr.us-west-2.amazonaws.com/{repository}@sha256:{number:064}"),
                destination: format!("111111111111.dkr.ecr.us-east-1.amazonaws.com/{repository}:{number}"),
                digest: format!("sha256:{number:064}"),
                image: repository.into(),
                tag: number.to_string(),
                bytes,
                ..Copy::default()
            })
            .collect()
    }

    const PACKING: Packing = Packing { tasks: 10, images: usize::MAX, bytes: GIB / 2, manifests_per_second: 10 };

    fn pack(copies: Vec<Copy>, tasks: usize) -> Vec<Batch> {
        pack_as(copies, &Packing { tasks, ..PACKING })
    }

    fn pack_as(copies: Vec<Copy>, packing: &Packing) -> Vec<Batch> {
        super::pack(copies, Copy::clone, packing).collect()
    }

    fn destinations(batches: &[Batch]) -> Vec<&str> {
        let mut all: Vec<_> =
            batches.iter().flat_map(|batch| &batch.copies).map(|copy| copy.destination.as_str()).collect();
        all.sort_unstable();
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn every_copy_is_in_exactly_one_batch_and_every_limit_is_kept(
            repositories in proptest::collection::vec((0_usize..120, 0_u64..2_000, 1_usize..200), 0..20),
            tasks in 1_usize..30,
            images in 1_usize..100,
        ) {
            let all: Vec<_> = repositories
                .iter()
                .enumerate()
                .flat_map(|(number, &(count, mebibytes, length))| {
                    copies(&format!("{}-{number}", "r".repeat(length)), count, mebibytes << 20)
                })
                .collect();
            let batches = pack_as(all.clone(), &Packing { tasks, images, ..PACKING });

            let mut expected: Vec<_> = all.iter().map(|copy| copy.destination.as_str()).collect();
            expected.sort_unstable();
            prop_assert_eq!(destinations(&batches), expected);
            let ids: HashSet<_> = batches.iter().map(|batch| &batch.id).collect();
            prop_assert_eq!(ids.len(), batches.len());
            for batch in &batches {
                prop_assert!(!batch.copies.is_empty() && batch.copies.len() <= images);
                let json = serde_json::to_string(&task::encode(&batch.copies)).expect("a string is JSON");
                prop_assert!(json.len() - 2 <= COPIES_LIMIT, "{} characters", json.len());
                prop_assert_eq!(batch.bytes, batch.copies.iter().map(|copy| copy.bytes).sum::<u64>());
            }
        }
    }

    #[test]
    fn a_little_work_is_one_task() {
        let all = [copies("a", 3, 1 << 20), copies("b", 2, 1 << 20)].concat();
        assert_eq!(pack(all, 10).len(), 1);
    }

    #[test]
    fn much_work_keeps_every_task_busy_and_evenly_loaded() {
        let all: Vec<_> = (0..40).flat_map(|n| copies(&format!("app-{n}"), 2, GIB / 2)).collect();
        let batches = pack(all, 10);
        assert_eq!(batches.len(), 10);
        assert!(batches.iter().all(|batch| batch.bytes == 4 * GIB));
    }

    #[test]
    fn a_repository_is_split_only_where_it_is_too_much_for_one_task() {
        let all = [copies("large", 10, GIB), copies("small", 2, GIB / 4)].concat();
        let batches = pack(all, 4);
        let with_small = batches.iter().filter(|batch| batch.copies.iter().any(|copy| copy.image == "small")).count();
        assert_eq!(with_small, 1);
        assert!(batches.len() >= 4);
    }

    #[test]
    fn tasks_that_run_at_once_share_the_manifests_that_the_destination_takes() {
        let pace = |repositories, tasks| {
            let all: Vec<_> = (0..repositories).flat_map(|n| copies(&format!("app-{n}"), 1, GIB)).collect();
            pack_as(all, &Packing { tasks, manifests_per_second: 4, ..PACKING })[0].pace
        };
        assert_eq!(pace(1, 10), 250, "a task that is alone");
        assert_eq!(pace(30, 10), 2_500, "ten of thirty");
    }

    #[test]
    fn nothing_to_copy_is_no_batch() {
        assert_eq!(pack(Vec::new(), 10), []);
    }
}
