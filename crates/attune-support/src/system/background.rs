//! Threads whose work can wait, which the system's scheduler puts behind those that requests wait for. Used to load
//! adapters beside the steps of engines.

use std::sync::LazyLock;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Nice value of these threads (0 is usual, 19 the last): one gets a quarter of a core that another thread wants as
/// well, so that it neither takes a core from a step nor stands still beside training.
const NICE: libc::c_int = 5;
/// Number of these threads: they wait for disks, too, and a slow one is to hold up nobody. They live on, because the
/// memory that a thread gives back is cheap to take again.
const THREADS: usize = 16;

static POOL: LazyLock<Result<ThreadPool, ThreadPoolBuildError>> = LazyLock::new(|| {
    let name = |number| format!("background-{number}");
    ThreadPoolBuilder::new().num_threads(THREADS).thread_name(name).start_handler(|_| go_behind_others()).build()
});

/// Runs `work` on a thread that others go before.
///
/// # Errors
/// Fails if the system could start no such threads.
pub fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), &'static ThreadPoolBuildError> {
    POOL.as_ref().map(|pool| pool.spawn(work))
}

fn go_behind_others() {
    let this_thread = 0;
    // SAFETY: takes three numbers and touches no memory. On Linux the nice value is that of one thread. A system that
    // forbids it leaves the thread as it is.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, this_thread, NICE) };
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Returns the nice value of the calling thread.
    fn nice() -> i64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        after_name.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn only_the_threads_that_do_the_work_go_behind_others() {
        let before = nice();
        let (sender, receiver) = mpsc::channel();
        spawn(move || sender.send(nice()).unwrap()).unwrap();
        assert_eq!(receiver.recv().unwrap(), before.max(i64::from(NICE)));
        assert_eq!(nice(), before);
    }
}
