//! What the processes that copy take of the machine. The registries and the rest of AWS are not among them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use procfs::process::{Stat, all_processes};

/// The names of the tools, and of the Lambda functions' binaries.
const NAMES: [&str; 5] = ["skopeo", "bootstrap", "crane", "regsync", "ocync"];
/// What a process does after the last sample is not seen.
const INTERVAL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Default)]
pub struct Usage {
    /// Seconds of a processor core.
    pub cpu: f64,
    /// The most bytes of memory that all of them had at one time.
    pub memory: u64,
}

pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Usage>,
}

impl Sampler {
    pub fn start() -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let before = ticks(&processes());
        let thread = thread::spawn(move || sample(&before, &stopped));
        Self { stop, thread }
    }

    pub fn stop(self) -> Usage {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn sample(before: &Ticks, stopped: &AtomicBool) -> Usage {
    let (mut after, mut memory) = (Ticks::new(), 0);
    loop {
        let is_last = stopped.load(Ordering::Relaxed);
        let now = processes();
        after.extend(ticks(&now));
        memory = memory.max(now.iter().map(|process| process.rss * procfs::page_size()).sum());
        if is_last {
            break;
        }
        thread::sleep(INTERVAL);
    }
    let ticks: u64 = after.iter().map(|(id, ticks)| ticks - before.get(id).copied().unwrap_or_default()).sum();
    Usage { cpu: ticks as f64 / procfs::ticks_per_second() as f64, memory }
}

fn processes() -> Vec<Stat> {
    let all = all_processes().into_iter().flatten().flatten();
    all.filter_map(|process| process.stat().ok()).filter(|stat| NAMES.contains(&stat.comm.as_str())).collect()
}

/// The processor time of each process, by its number and its start: numbers are used again.
type Ticks = BTreeMap<(i32, u64), u64>;

fn ticks(processes: &[Stat]) -> Ticks {
    processes.iter().map(|stat| ((stat.pid, stat.starttime), stat.utime + stat.stime)).collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, process::Command};

    use super::*;

    #[test]
    fn processor_time_and_memory_of_the_tools_are_seen() {
        let directory = tempfile::tempdir().expect("there is a directory");
        let skopeo = directory.path().join("skopeo");
        symlink("/bin/sh", &skopeo).expect("the directory is empty");
        let sampler = Sampler::start();
        let mut busy = Command::new(&skopeo).args(["-c", "while :; do :; done"]).spawn().expect("there is a shell");
        let is_busy = |stat: &Stat| stat.pid == busy.id().cast_signed() && stat.utime > 0;
        while !processes().iter().any(is_busy) {
            thread::sleep(INTERVAL);
        }
        let usage = sampler.stop();
        busy.kill().expect("it still runs");
        busy.wait().expect("it was killed");
        assert!(usage.cpu > 0.0 && usage.memory > 0, "{} s, {} bytes", usage.cpu, usage.memory);
    }
}
