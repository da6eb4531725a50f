//! The system calls that the code in the sandbox may make, as filters of seccomp: what an interpreter needs to compute,
//! to read the files that it may read, and to write into its own folder. No processes and no threads, no sockets to
//! anywhere, nothing that acts on other processes or names a file to change what Landlock does not guard: modes,
//! owners and times.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{self, Eq, MaskedEq};
use seccompiler::{BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

/// Calls that are allowed whatever their arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fadvise64,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_sendfile,
    libc::SYS_write,
    libc::SYS_writev,
    // Files by their names; Landlock says which may be read, and where one may be made or removed.
    libc::SYS_chdir,
    libc::SYS_execve,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchdir,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    // Time and signals of its own.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getitimer,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_setitimer,
    libc::SYS_sigaltstack,
    libc::SYS_times,
    // Itself.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Pairs of sockets, which lead nowhere else.
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
];

/// The older forms of some of them.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Calls that libraries do without where the system does not know them. As filters cannot see into their arguments,
/// they are answered so.
const UNKNOWN: &[libc::c_long] = &[
    libc::SYS_clone3,
    libc::SYS_copy_file_range,
    libc::SYS_epoll_pwait2,
    libc::SYS_io_uring_setup,
    libc::SYS_memfd_create,
    libc::SYS_openat2,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
];

/// Commands of `fcntl`: nothing that sends signals, watches folders or holds leases.
const FCNTL: &[libc::c_int] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
];

/// Commands of `ioctl`: whether it is a terminal, what is there to read, and flags of the descriptor.
const IOCTL: &[u64] = &[libc::TCGETS, libc::TIOCGWINSZ, libc::FIONREAD, libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO];

/// Commands of `prctl`: names, for people.
const PRCTL: &[libc::c_int] = &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_GET_DUMPABLE, libc::PR_SET_VMA];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Makes the filters for the process `own`, in the order in which they are to be put in force.
pub(super) fn filters(own: u32) -> Result<[BpfProgram; 2], seccompiler::Error> {
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    let missing = compile(UNKNOWN.iter().map(|call| (*call, Vec::new())).collect(), SeccompAction::Allow, unknown)?;
    // The last one: it refuses that there be further ones.
    let allowed = compile(allowed(own)?, refused, SeccompAction::Allow)?;
    Ok([missing, allowed])
}

fn compile(rules: Rules, other: SeccompAction, named: SeccompAction) -> Result<BpfProgram, seccompiler::Error> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, other, named, machine)?.try_into()?)
}

fn allowed(own: u32) -> Result<Rules, seccompiler::Error> {
    // Those that are to seem unknown are refused by the other filter, in its own way.
    let mut rules: Rules = ALLOWED.iter().chain(OLDER).chain(UNKNOWN).map(|call| (*call, Vec::new())).collect();
    let is = |argument, value: i64| condition(argument, Eq, value as u64);
    let any = |argument, values: Vec<i64>| -> Result<Vec<SeccompRule>, seccompiler::Error> {
        values.into_iter().map(|value| one(vec![is(argument, value)?])).collect()
    };
    // A file is not cut when it is opened for reading, which old versions of Landlock do not see.
    let opened = |argument| -> Result<Vec<SeccompRule>, seccompiler::Error> {
        let (way, cut) = (libc::O_ACCMODE as u64, libc::O_TRUNC as u64);
        let ways = [(way | cut, libc::O_RDONLY), (way, libc::O_WRONLY), (way, libc::O_RDWR)];
        ways.into_iter().map(|(mask, wanted)| one(vec![condition(argument, MaskedEq(mask), wanted as u64)?])).collect()
    };
    rules.insert(libc::SYS_openat, opened(2)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, opened(1)?);
    rules.insert(libc::SYS_fcntl, any(1, FCNTL.iter().map(|command| i64::from(*command)).collect())?);
    rules.insert(libc::SYS_ioctl, any(1, IOCTL.iter().map(|command| *command as i64).collect())?);
    rules.insert(libc::SYS_prctl, any(0, PRCTL.iter().map(|command| i64::from(*command)).collect())?);
    // Signals and limits of its own alone: other processes of the same user include the server.
    rules.insert(libc::SYS_kill, any(0, vec![own.into()])?);
    rules.insert(libc::SYS_tgkill, any(0, vec![own.into()])?);
    rules.insert(libc::SYS_prlimit64, any(0, vec![0, own.into()])?);
    let stream = condition(1, MaskedEq(0xf), libc::SOCK_STREAM as u64)?;
    rules.insert(libc::SYS_socketpair, vec![one(vec![is(0, libc::AF_UNIX.into())?, stream])?]);
    let no_address = SeccompCondition::new(4, Qword, Eq, 0)?;
    rules.insert(libc::SYS_sendto, vec![one(vec![no_address])?]);
    Ok(rules)
}

fn condition(argument: u8, comparison: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::Error> {
    // The kernel reads these arguments as 32 bits.
    Ok(SeccompCondition::new(argument, Dword, comparison, value & 0xffff_ffff)?)
}

fn one(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, seccompiler::Error> {
    Ok(SeccompRule::new(conditions)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_filters_can_be_made_and_none_allows_what_the_other_is_to_refuse() {
        let [missing, allowed] = filters(1).expect("filters");
        assert!(missing.len() < allowed.len());
        let rules = super::allowed(1).expect("rules");
        let unconditional = |call: &libc::c_long| rules.get(call).is_some_and(Vec::is_empty);
        assert!(UNKNOWN.iter().all(unconditional) && ALLOWED.iter().all(unconditional));
        for call in [libc::SYS_clone, libc::SYS_socket, libc::SYS_ptrace, libc::SYS_execveat, libc::SYS_seccomp] {
            assert!(!rules.contains_key(&call), "{call}");
        }
    }
}
