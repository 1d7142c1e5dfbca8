//! Which images share a task: so many at a time, or as list-images packs them.
//!
//! list-images is a program, and no library to ask; so this repeats what its `batches.rs` does, for images of equal
//! size. That both pack alike shows in the numbers of batches that `bench planning` reports.

use std::cmp::Reverse;

use crate::{
    registry::{repository_name, tag},
    scenario::{DESTINATION, SOURCE},
};

/// The characters that RunTask's overrides may have.
pub const OVERRIDES: usize = 8_192;

/// What of them is left for the images: `COPIES_LIMIT` of `shared::task`, without its `BARRIER_LENGTH`.
pub const COPIES_LIMIT: usize = 5_800 - "=\\n".len();

/// What a copy costs besides its bytes, in bytes: `COPY_OVERHEAD` of list-images' `batches.rs`.
pub const COPY_OVERHEAD: u64 = 16 << 20;

/// The bytes that are worth another task, unless the parameter `minMiBPerTask` says otherwise.
pub const WORTH_A_TASK: u64 = 512 << 20;

/// Images of equal size, the same number in each repository.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    /// How many repositories.
    pub repositories: usize,
    /// How many images in each of them.
    pub each: usize,
    /// An image's compressed size.
    pub bytes: u64,
    /// Its manifests: one, and one for each of its platforms if it is an index.
    pub manifests: usize,
}

/// How they are packed.
#[derive(Clone, Copy, Debug)]
pub enum Packing {
    /// So many in each task, whatever they are.
    Equal(usize),
    /// As list-images does, if another task is worth so many bytes.
    ListImages(u64),
}

/// Images that go into a task together.
#[derive(Clone, Copy, Default)]
struct Chunk {
    images: usize,
    characters: usize,
}

impl Images {
    /// All of them.
    #[must_use]
    pub fn count(&self) -> usize {
        self.repositories * self.each
    }

    /// How many images each task gets, in the order in which tasks start; `tasks` may run at once.
    #[must_use]
    pub fn pack(&self, packing: Packing, tasks: usize) -> Vec<usize> {
        match packing {
            Packing::Equal(size) => equal(self.count(), size),
            Packing::ListImages(worth) => self.pack_as_list_images(worth, tasks),
        }
    }

    /// How many images of one of the repositories a task can be told of.
    #[must_use]
    pub fn most(&self) -> usize {
        let used = (0..).scan(header(repository_name(0).len()), |used, image| {
            *used += line(tag(image).len());
            Some(*used)
        });
        used.take_while(|&used| used <= COPIES_LIMIT).count()
    }

    fn weight(&self, images: usize) -> u64 {
        (self.bytes + COPY_OVERHEAD) * images as u64
    }

    fn pack_as_list_images(&self, worth: u64, tasks: usize) -> Vec<usize> {
        let total = self.weight(self.count());
        let wanted = (total / worth).clamp(1, tasks.max(1) as u64);
        let mut chunks = self.split(total.div_ceil(wanted));
        chunks.sort_by_key(|chunk| Reverse(chunk.images));
        let mut bins: Vec<Chunk> = Vec::new();
        for chunk in chunks {
            let enough = bins.len() as u64 >= wanted;
            let fits = |bin: &&mut Chunk| bin.characters + chunk.characters <= COPIES_LIMIT;
            match bins.iter_mut().filter(fits).min_by_key(|bin| bin.images) {
                Some(bin) if enough => {
                    bin.images += chunk.images;
                    bin.characters += chunk.characters;
                }
                _ => bins.push(chunk),
            }
        }
        bins.sort_by_key(|bin| Reverse(bin.images));
        bins.into_iter().map(|bin| bin.images).collect()
    }

    /// Each repository, in pieces that are within a task's share and limit.
    fn split(&self, share: u64) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for repository in 0..self.repositories {
            let mut current = Chunk::default();
            for image in 0..self.each {
                let characters = line(tag(image).len());
                let fits = self.weight(current.images + 1) <= share && current.characters + characters <= COPIES_LIMIT;
                if current.images == 0 || !fits {
                    chunks.extend((current.images > 0).then_some(current));
                    current = Chunk { images: 0, characters: header(repository_name(repository).len()) };
                }
                current.images += 1;
                current.characters += characters;
            }
            chunks.extend((current.images > 0).then_some(current));
        }
        chunks
    }
}

/// How many images a task can be told of, all of one repository, whose name and tags have so many characters.
#[must_use]
pub fn most(name: usize, tag: usize) -> usize {
    (COPIES_LIMIT - header(name)) / line(tag)
}

/// How many images a task can be told of, each of another repository with the benchmarks' names.
#[must_use]
pub fn alone() -> usize {
    COPIES_LIMIT / (header(repository_name(0).len()) + line(tag(0).len()))
}

/// As many images as there are, so many at a time.
fn equal(images: usize, size: usize) -> Vec<usize> {
    let rest = images % size;
    let mut batches = vec![size; images / size];
    batches.extend((rest > 0).then_some(rest));
    batches
}

/// The characters that a pair of repositories takes, whose names have so many: `> source destination`, and the line's
/// end, which JSON writes as two.
#[must_use]
pub fn header(name: usize) -> usize {
    let host = |(account, region): (&str, &str)| format!("{account}.dkr.ecr.{region}.amazonaws.com/").len();
    "> ".len() + host(SOURCE) + name + " ".len() + host(DESTINATION) + name + "\\n".len()
}

/// The most characters that an image takes, whose tag has so many: `repository hex tag manifests`, and the line's end.
#[must_use]
pub fn line(tag: usize) -> usize {
    "100 ".len() + 64 + " ".len() + tag + " 1".len() + "\\n".len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: u64 = 20_000_000;
    const GIB: u64 = 1 << 30;

    #[test]
    fn equal_batches_leave_a_smaller_one_for_the_rest() {
        assert_eq!(equal(7, 3), [3, 3, 1]);
        assert_eq!(equal(6, 3), [3, 3]);
        assert_eq!(equal(2, 3), [2]);
        assert_eq!(equal(0, 3), [0; 0]);
    }

    #[test]
    fn longer_names_leave_room_for_fewer_images() {
        assert_eq!(most(30, 10), 67);
        assert_eq!(most(255, 128), 25);
        assert_eq!(alone(), 28);
        assert_eq!(Images { repositories: 1, each: 1, bytes: 1, manifests: 1 }.most(), 74);
    }

    #[test]
    fn there_are_as_many_batches_as_list_images_reports() {
        for (repositories, batches) in [(10, 15), (100, 150), (1_000, 1_500)] {
            let images = Images { repositories, each: 100, bytes: 120_000_000, manifests: 1 };
            let packed = images.pack(Packing::ListImages(WORTH_A_TASK), 10);
            assert_eq!(packed.len(), batches);
            assert_eq!(packed.iter().sum::<usize>(), images.count());
        }
    }

    #[test]
    fn a_little_work_is_one_task_and_much_is_shared_evenly() {
        let pack = |repositories, each, bytes, worth| {
            Images { repositories, each, bytes, manifests: 1 }.pack(Packing::ListImages(worth), 10)
        };
        assert_eq!(pack(5, 2, SMALL, WORTH_A_TASK), [10]);
        assert_eq!(pack(10, 10, 2 * GIB, WORTH_A_TASK), [10; 10]);
        assert_eq!(pack(40, 2, GIB, WORTH_A_TASK), [8; 10]);
        assert_eq!(pack(10, 5, SMALL, 2 * GIB), [50]);
        assert_eq!(pack(0, 1, SMALL, WORTH_A_TASK), [0; 0]);
        // One task cannot be told of so many repositories.
        assert_eq!(pack(50, 1, SMALL, 2 * GIB), [28, 22]);
    }
}
