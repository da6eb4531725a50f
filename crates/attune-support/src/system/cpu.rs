//! Tells how much of the processors the computing threads get: the time that they compute and the time that they wait
//! for a processor, as Linux counts both (`/proc/…/schedstat`). Used to estimate training on a busy machine.

use std::fs::{read_link, read_to_string};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time for which [`slowdown`] computes: some turns of a scheduler, and of a container's limit.
const LOOK_FOR: Duration = Duration::from_millis(250);

/// Seconds that threads computed and seconds that they waited for a processor, since they began.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuTime {
    /// Seconds on a processor.
    pub used: f64,
    /// Seconds ready to compute, without a processor.
    pub waited: f64,
}

/// Threads that compute: those of the pool, and the thread that found them.
#[derive(Debug, Clone)]
pub struct ComputingThreads {
    /// Files of the threads' times; empty if the system does not report them.
    files: Vec<PathBuf>,
    count: usize,
}

impl ComputingThreads {
    /// Finds the threads of the pool and adds the calling thread, which gives work to the pool and waits meanwhile.
    pub fn of_this_one() -> Self {
        let mut files: Option<Vec<PathBuf>> = rayon::broadcast(|_| own_file()).into_iter().collect();
        if let (Some(files), Some(own)) = (&mut files, own_file())
            && !files.contains(&own)
        {
            files.push(own);
        }
        Self { files: files.unwrap_or_default(), count: rayon::current_num_threads() }
    }

    /// Returns the number of threads that can compute at one time.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the times of all threads together; `None` if the system does not report them.
    pub fn times(&self) -> Option<CpuTime> {
        let mut sum = CpuTime::default();
        for file in &self.files {
            let CpuTime { used, waited } = read(file)?;
            sum.used += used;
            sum.waited += waited;
        }
        (!self.files.is_empty()).then_some(sum)
    }
}

/// Returns how many times as long computing on all threads takes now as with nothing else to do, at least 1; `None` if
/// the system does not report it. Computes on as many threads as the pool has for a quarter of a second.
pub fn slowdown() -> Option<f64> {
    let (threads, begin) = (rayon::current_num_threads(), Instant::now());
    let used: Option<Vec<f64>> = std::thread::scope(|scope| {
        let look = |_| std::thread::Builder::new().spawn_scoped(scope, spin).ok();
        let spinning: Option<Vec<_>> = (0..threads).map(look).collect();
        spinning?.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    });
    let seconds = begin.elapsed().as_secs_f64();
    let used: f64 = used?.iter().sum();
    (used > 0.0).then(|| (threads as f64 * seconds / used).max(1.0))
}

/// Computes for a while; returns the seconds on a processor.
fn spin() -> Option<f64> {
    let (file, begin) = (own_file()?, Instant::now());
    while begin.elapsed() < LOOK_FOR {
        std::hint::spin_loop();
    }
    Some(read(&file)?.used)
}

/// Returns the file of the calling thread's times; `None` if the system has none.
fn own_file() -> Option<PathBuf> {
    let thread = read_link("/proc/thread-self").ok()?;
    Some(Path::new("/proc").join(thread).join("schedstat"))
}

/// Reads a file of nanoseconds computed, nanoseconds waited and turns.
fn read(file: &Path) -> Option<CpuTime> {
    let text = read_to_string(file).ok()?;
    let mut seconds = text.split_whitespace().map_while(|number| number.parse::<u64>().ok()).map(|ns| ns as f64 / 1e9);
    Some(CpuTime { used: seconds.next()?, waited: seconds.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_threads_are_read_in_seconds_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let first = file("1", "1500000000 500000000 7\n");
        let second = file("2", "2500000000 0 1\n");
        let threads = |files| ComputingThreads { files, count: 2 };
        assert_eq!(threads(vec![first.clone(), second]).times(), Some(CpuTime { used: 4.0, waited: 0.5 }));
        assert_eq!(threads(vec![first, file("3", "12\n")]).times(), None);
        assert_eq!(threads(Vec::new()).times(), None);
    }

    #[test]
    fn this_machine_tells_what_the_pool_computes() {
        let threads = ComputingThreads::of_this_one();
        let before = threads.times().expect("a system that tells");
        let computed = rayon::broadcast(|_| spin().expect("a system that tells") > 0.0);
        let after = threads.times().expect("a system that tells");
        assert_eq!(computed, vec![true; threads.count()]);
        assert!(after.used > before.used && after.waited >= before.waited, "{before:?} {after:?}");
        assert!(slowdown().expect("a system that tells") >= 1.0);
    }
}
