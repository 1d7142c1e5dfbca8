//! A run, worked out: batches of equal images, in tasks that first have to start.
//!
//! Nothing runs here. What a copy takes is put together from what was measured with a real skopeo and from assumptions
//! about the registries, the network and Fargate; `docs/batches.md` says which is which.

use crate::packing::Images;

/// The stack's parameters that matter.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many tasks copy at once: `maxConcurrency`.
    pub tasks: usize,
    /// How many images a task copies at once: `copiesPerTask`.
    pub copies: usize,
    /// A task's vCPUs: `taskCpu`.
    pub vcpus: f64,
    /// A task's GiB of memory: `taskMemory`.
    pub memory: f64,
    /// How many manifests all tasks together bring to the destination in a second: `putImageRate`.
    pub put_image_rate: f64,
}

/// The template's.
pub const DEFAULTS: Settings = Settings { tasks: 10, copies: 4, vcpus: 0.5, memory: 1.0, put_image_rate: 10.0 };

/// Measured: how many round trips a copy waits for, one after the other, those of TCP and TLS included.
pub const ROUND_TRIPS: f64 = 47.0;

/// Assumed: the round trips in which ECR leads the layers and the configuration on to S3, with a connection for each.
pub const REDIRECTS: f64 = 8.0;

/// Measured: how many requests of a copy wait for one another.
pub const REQUESTS: f64 = 15.0;

/// Assumed: how long a registry thinks about each of them, in seconds.
pub const ANSWER: f64 = 0.05;

/// Measured: the seconds of a whole core that a copy takes besides its bytes.
pub const IMAGE_CPU: f64 = 0.03;

/// Measured: the seconds of a whole core that a byte takes, TLS at both ends included.
pub const BYTE_CPU: f64 = 3.5e-9;

/// The least that is billed of a task, in seconds.
pub const LEAST_BILLED: f64 = 60.0;

/// What Fargate costs.
pub struct Price {
    /// A vCPU for an hour, in dollars.
    pub vcpu: f64,
    /// A GB of memory for an hour, in dollars.
    pub memory: f64,
}

/// Linux on ARM in us-east-1.
pub const ARM: Price = Price { vcpu: 0.03238, memory: 0.00356 };

/// Linux on x86 in us-east-1.
pub const X86: Price = Price { vcpu: 0.04048, memory: 0.004_445 };

impl Price {
    /// What a task costs, in dollars a second.
    #[must_use]
    pub fn second(&self, settings: &Settings) -> f64 {
        (settings.vcpus * self.vcpu + settings.memory * self.memory) / 3_600.0
    }
}

/// The stack, and what is assumed of a task and its network.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// The stack.
    pub settings: Settings,
    /// The seconds from the request for a task to its first copy.
    pub start: f64,
    /// The seconds of a round trip, on average over both registries.
    pub round_trip: f64,
    /// The bytes a second that a task receives, and sends on meanwhile.
    pub bandwidth: f64,
}

/// Those that the tables are made with.
pub const USUAL: Model = Model { settings: DEFAULTS, start: 40.0, round_trip: 0.03, bandwidth: 50e6 };

/// What a run comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// The seconds from its first task's start to its last task's end.
    pub time: f64,
    /// How many tasks it started.
    pub tasks: usize,
    /// The share of all tasks' time in which they started.
    pub starting: f64,
    /// The seconds of all tasks that are billed.
    pub billed: f64,
}

impl Run {
    /// What its tasks cost, in dollars, if they have the default size.
    #[must_use]
    pub fn cost(&self, price: &Price) -> f64 {
        self.billed * price.second(&DEFAULTS)
    }
}

impl Model {
    /// The seconds in which the copy of an image of one manifest only waits; other copies go on meanwhile.
    #[must_use]
    pub fn waiting(&self) -> f64 {
        (ROUND_TRIPS + REDIRECTS) * self.round_trip + REQUESTS * ANSWER
    }

    /// The bytes a second that a task moves: as many as the network takes, or the processor.
    #[must_use]
    pub fn speed(&self) -> f64 {
        self.bandwidth.min(self.settings.vcpus / BYTE_CPU)
    }

    /// The seconds in which the copy of an image of one manifest has the task's processor and network for itself.
    #[must_use]
    pub fn working(&self, bytes: u64) -> f64 {
        IMAGE_CPU / self.settings.vcpus + bytes as f64 / self.speed()
    }

    /// The seconds that a task takes for so many of the images. Copies that begin together share the task evenly, so
    /// they also end together, and then the next ones begin. The manifests of an index are copied one after the other.
    #[must_use]
    pub fn copying(&self, number: usize, images: &Images) -> f64 {
        let Images { bytes, manifests, .. } = *images;
        let working = manifests as f64 * self.working(bytes / manifests as u64);
        let together = |copies: usize| match copies {
            0 => 0.0,
            _ => manifests as f64 * self.waiting() + copies as f64 * working,
        };
        let copies = self.settings.copies;
        (number / copies) as f64 * together(copies) + together(number % copies)
    }

    /// What a copy takes besides its bytes, in the bytes that could be moved meanwhile; those at once share the wait.
    #[must_use]
    pub fn overhead(&self) -> f64 {
        (self.waiting() / self.settings.copies as f64 + self.working(0)) * self.speed()
    }

    /// Runs the batches, of which each is a number of the images: in their order, each as soon as a task may start, and
    /// with as many manifests a second as all tasks at once may bring.
    #[must_use]
    pub fn run(&self, batches: &[usize], images: &Images) -> Run {
        let mut free = vec![0.0_f64; self.settings.tasks];
        let pace = batches.len().min(self.settings.tasks) as f64 / self.settings.put_image_rate;
        let (mut running, mut billed) = (0.0, 0.0);
        for &number in batches {
            let paced = (number * images.manifests) as f64 * pace;
            let seconds = self.start + self.copying(number, images).max(paced);
            running += seconds;
            billed += seconds.ceil().max(LEAST_BILLED);
            if let Some(first) = free.iter_mut().min_by(|a, b| a.total_cmp(b)) {
                *first += seconds;
            }
        }
        let starting = if batches.is_empty() { 0.0 } else { self.start * batches.len() as f64 / running };
        Run { time: free.into_iter().fold(0.0, f64::max), tasks: batches.len(), starting, billed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy waits 2 s, and moves 100 MB in another second.
    const SIMPLE: Model = Model {
        settings: Settings { put_image_rate: 1e6, ..DEFAULTS },
        start: 40.0,
        round_trip: (2.0 - REQUESTS * ANSWER) / (ROUND_TRIPS + REDIRECTS),
        bandwidth: 100e6,
    };
    /// With which that second is a whole one.
    const IMAGES: Images = Images { repositories: 1, each: 1, bytes: 94_000_000, manifests: 1 };
    const TASKS: usize = DEFAULTS.tasks;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn copies_at_once_share_the_work_and_not_the_wait() {
        assert!(close(SIMPLE.copying(0, &IMAGES), 0.0));
        assert!(close(SIMPLE.copying(1, &IMAGES), 3.0));
        assert!(close(SIMPLE.copying(4, &IMAGES), 6.0));
        assert!(close(SIMPLE.copying(5, &IMAGES), 9.0));
    }

    #[test]
    fn a_fast_network_waits_for_the_processor() {
        let fast = Model { bandwidth: 1e12, ..SIMPLE };
        assert!(close(fast.speed() * BYTE_CPU, DEFAULTS.vcpus));
        assert!(close(SIMPLE.speed(), 100e6));
    }

    #[test]
    fn the_overhead_is_what_four_copies_wait_for_together() {
        assert!(close(SIMPLE.overhead(), (0.5 + 0.06) * 100e6));
    }

    #[test]
    fn tasks_start_as_others_end() {
        let run = SIMPLE.run(&[1; TASKS], &IMAGES);
        assert!(close(run.time, 43.0));
        assert!(close(run.starting, 40.0 / 43.0));
        let run = SIMPLE.run(&[1; TASKS + 1], &IMAGES);
        assert!(close(run.time, 86.0));
        assert_eq!(run.tasks, TASKS + 1);
        // The long one takes as long as two of the others.
        let run = SIMPLE.run(&[[33].as_slice(), &[1; 2 * (TASKS - 1)]].concat(), &IMAGES);
        assert!(close(run.time, 40.0 + 8.0 * 6.0 + 3.0));
    }

    #[test]
    fn manifests_wait_for_one_another_and_for_the_rate() {
        let index = Images { manifests: 3, ..IMAGES };
        // Three waits of 2 s; three times what an image takes of the processor, and its bytes once.
        assert!(close(SIMPLE.copying(1, &index), 6.0 + 0.18 + 0.94));
        let slow = Model { settings: Settings { put_image_rate: 1.0, ..DEFAULTS }, ..SIMPLE };
        assert!(close(slow.run(&[10], &index).time, 40.0 + 30.0), "a task that is alone");
        assert!(close(slow.run(&[10, 10], &index).time, 40.0 + 60.0), "two share the rate");
    }

    #[test]
    fn at_least_a_minute_is_billed_and_no_part_of_a_second() {
        assert!(close(SIMPLE.run(&[1], &IMAGES).billed, 60.0));
        assert!(close(SIMPLE.run(&[16], &Images { bytes: IMAGES.bytes + 1, ..IMAGES }).billed, 65.0));
        assert!(close(SIMPLE.run(&[1, 1], &IMAGES).billed, 120.0));
    }

    #[test]
    fn nothing_to_copy_takes_and_costs_nothing() {
        let run = USUAL.run(&[], &IMAGES);
        assert_eq!(run, Run { time: 0.0, tasks: 0, starting: 0.0, billed: 0.0 });
        assert!(close(run.cost(&ARM), 0.0));
    }

    #[test]
    fn an_hour_costs_half_a_vcpu_and_a_gigabyte() {
        let hour = Run { time: 3_600.0, tasks: 1, starting: 0.0, billed: 3_600.0 };
        assert!(close(hour.cost(&ARM), 0.01619 + 0.00356));
    }
}
