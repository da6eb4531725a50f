//! The process's file descriptors: how many it may have, and how many it has. Each connection, file and pipe takes one.
//! `app` raises the limit before it listens, `api` shows both numbers.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that no server of this kind needs more of. Some systems name a hard limit of a thousand million, with
/// which programs that walk through all possible descriptors would take minutes.
const ENOUGH: u64 = 1 << 20;
/// Fewer, and a busy server would have to turn clients away.
const FEW: u64 = 1024;

/// Raises the soft limit to the hard one, and warns if it is low nevertheless. Programs that this one starts inherit
/// it.
pub(crate) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(ENOUGH);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit of file descriptors: {}", error.desc());
    }
    if let Some(limit) = limit().filter(|limit| *limit < FEW) {
        tracing::warn!(
            limit,
            "this process may have few file descriptors, so it takes few connections; raise the hard limit (ulimit -Hn, \
             LimitNOFILE, --ulimit nofile)"
        );
    }
}

/// Returns the number of descriptors that the process may have; `None` if the system does not tell.
pub(crate) fn limit() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

/// Returns the number of descriptors that are open; `None` if the system does not tell.
pub(crate) fn open() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One is the folder that is read here.
    Some(entries.saturating_sub(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_and_what_is_open_is_counted() {
        raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        assert_eq!(soft, hard.min(ENOUGH).max(soft));
        assert_eq!(limit(), Some(soft));
        let files: Vec<_> = (0..100).map(|_| tempfile::tempfile().expect("a file")).collect();
        assert!(open().expect("a system that tells") >= files.len() as u64);
    }
}
