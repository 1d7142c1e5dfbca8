//! What the processes that copy take of the machine: the registries and the rest of AWS are not among them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// The names of those who copy, or have it done: tools, and the Lambdas' binaries.
const NAMES: [&str; 5] = ["skopeo", "bootstrap", "crane", "regsync", "ocync"];
/// How often they are looked at. What a process does after the last look is not seen.
const INTERVAL: Duration = Duration::from_millis(20);
/// What the kernel counts time in, and memory: on every Linux that Rust's standard library supports.
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE: u64 = 4_096;

/// What they took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of a processor core.
    pub cpu: f64,
    /// The most bytes of memory that all of them together had at one time.
    pub memory: u64,
}

/// Looks at them until it is stopped.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Usage>,
}

impl Sampler {
    /// Starts looking.
    #[must_use]
    pub fn start() -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let before = processes();
            let mut ticks: BTreeMap<(u32, u64), u64> = BTreeMap::new();
            let mut memory = 0;
            while !stopped.load(Ordering::Relaxed) {
                let now = processes();
                memory = memory.max(now.values().map(|process| process.pages * PAGE).sum());
                ticks.extend(now.iter().map(|(id, process)| (*id, process.ticks)));
                std::thread::sleep(INTERVAL);
            }
            ticks.extend(processes().iter().map(|(id, process)| (*id, process.ticks)));
            let earlier = |id| before.get(id).map_or(0, |process| process.ticks);
            let all: u64 = ticks.iter().map(|(id, ticks)| ticks.saturating_sub(earlier(id))).sum();
            Usage { cpu: all as f64 / TICKS_PER_SECOND, memory }
        });
        Self { stop, thread }
    }

    /// Stops looking.
    #[must_use]
    pub fn stop(self) -> Usage {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

struct Process {
    ticks: u64,
    pages: u64,
}

/// Those that run now, by number and start.
fn processes() -> BTreeMap<(u32, u64), Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|id| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (started, process) = parse(&stat)?;
        Some(((id, started), process))
    })
    .collect()
}

/// What [`proc_pid_stat(5)`](https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html) has of one of them.
fn parse(stat: &str) -> Option<(u64, Process)> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    if !NAMES.contains(&name) {
        return None;
    }
    // The first field behind the name is the third.
    let fields: Vec<_> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(22)?, Process { ticks: field(14)? + field(15)?, pages: field(24)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_from_its_line() {
        let line =
            "7 (skopeo) S 1 7 7 0 -1 4194560 900 0 3 0 120 30 0 0 20 0 9 0 5000 1300000000 4000 18446744073709551615";
        let (started, process) = parse(line).expect("it is one of them");
        assert_eq!((started, process.ticks, process.pages), (5_000, 150, 4_000));
        assert!(parse(&line.replace("skopeo", "python3")).is_none());
    }
}
