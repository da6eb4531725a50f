//! Describes the machine and this process's memory. The worker uses it to estimate what training takes.

mod allocator;
pub mod background;
pub mod cpu;
mod free;
mod huge_pages;
mod long_lived;

use std::fs::read_to_string;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub use allocator::{
    FreeAtOnce, give_back_freed_memory, give_back_freed_memory_of_pool, give_back_numbers, keep_freed_memory,
    untouched_zeros,
};
pub use free::{FreeMemory, free_memory};
pub use huge_pages::{HugePages, only_asked_for_huge_pages};
pub use long_lived::LongLived;

/// Time between measurements of the memory: less than a training batch takes on a model of useful size.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Returns the processor's name and the number of threads that compute, such as `AMD EPYC 7B13, 2 threads`: machines
/// with the same name are equally fast.
pub fn name() -> String {
    let processors = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| Some(line.split_once(':')?.1.trim().to_owned());
    let model = processors.lines().find(|line| line.starts_with("model name")).and_then(value);
    let threads = rayon::current_num_threads();
    format!("{}, {threads} threads", model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()))
}

/// Returns the bytes of this process that are in main memory now; `None` if the system does not report it.
pub fn resident_bytes() -> Option<u64> {
    resident_bytes_of(std::process::id())
}

/// Returns the bytes of a process that are in main memory now; `None` if there is none, or the system does not report it.
pub fn resident_bytes_of(process: u32) -> Option<u64> {
    let status = read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Function that returns the bytes of memory in use; `None` if the system does not report it.
type Used = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// Measures peak memory in use while it lives, on a thread of its own.
pub struct MemoryWatch {
    used: Used,
    state: Arc<(AtomicBool, AtomicU64)>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    /// Starts measuring with `used`.
    pub fn start(used: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Self {
        let used: Used = Arc::new(used);
        let state = Arc::new((AtomicBool::new(false), AtomicU64::new(used().unwrap_or(0))));
        let (shared, looked_at) = (Arc::clone(&state), Arc::clone(&used));
        let look = move || {
            let (stop, peak) = &*shared;
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(looked_at().unwrap_or(0), Ordering::Relaxed);
                std::thread::park_timeout(LOOK_EVERY);
            }
        };
        // If the thread cannot start, the result is the larger of the first and the last measurement.
        let thread = std::thread::Builder::new().name("memory-watch".into()).spawn(look).ok();
        Self { used, state, thread }
    }

    /// Returns the largest measurement so far, in bytes; `None` if the system does not report it.
    pub fn peak_bytes(&self) -> Option<u64> {
        let now = (self.used)()?;
        Some(self.state.1.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.state.0.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread ends at once; a panic in it does not matter.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_name_and_a_process_memory() {
        assert!(name().ends_with("threads"), "{}", name());
        assert!(resident_bytes().expect("a system that tells") > 1 << 20);
        assert_eq!(resident_bytes_of(u32::MAX), None, "there is no such process");
    }

    // With numbers of its own: other tests of this process take memory and give it back.
    #[test]
    fn a_peak_is_seen_and_stays() {
        let used = Arc::new(AtomicU64::new(100));
        let shared = Arc::clone(&used);
        let watch = MemoryWatch::start(move || Some(shared.load(Ordering::Relaxed)));
        assert_eq!(watch.peak_bytes(), Some(100));
        used.store(700, Ordering::Relaxed);
        assert_eq!(watch.peak_bytes(), Some(700));
        used.store(300, Ordering::Relaxed);
        assert_eq!(watch.peak_bytes(), Some(700), "a peak stays");
    }
}
