//! `attune grader-sandbox`: the program that a server starts, which takes everything away from itself and then becomes the
//! interpreter. It runs nobody's code before that, and ends instead if anything cannot be taken away.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, chdir, execve, getppid};

use super::{Plan, calls, paths};

/// What the interpreter runs.
const HARNESS: &str = include_str!("harness.py");
/// Descriptors that it may have.
const DESCRIPTORS: u64 = 64;
/// Bytes of the stack.
const STACK: u64 = 8 << 20;
/// Processes of the server go before it, and the kernel ends it first when memory runs out.
const NICE: libc::c_int = 10;
const FIRST_TO_GO: &str = "1000";
/// More than the capabilities of any kernel.
const CAPABILITIES: libc::c_ulong = 64;
/// The version of the structures of `capset` with 64 bits.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Becomes the interpreter in the sandbox that `plan`, JSON, describes. Returns only what stood in the way.
pub(crate) fn enter(plan: &str) -> Result<Infallible, String> {
    let plan: Plan = serde_json::from_str(plan).map_err(|error| format!("the plan cannot be read: {error}"))?;
    die_with(plan.server)?;
    close_descriptors()?;
    // Some systems do not let a process do this; then it is as likely to go as others.
    drop(std::fs::write("/proc/self/oom_score_adj", FIRST_TO_GO));
    // SAFETY: a call of the system without pointers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    drop_capabilities()?;
    bound(&plan)?;
    chdir(&plan.folder).map_err(|error| fault("enter its folder", error))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    nix::sys::prctl::set_no_new_privs().map_err(|error| fault("give up new rights", error))?;
    let (program, arguments, environment) = command(&plan)?;
    let filters =
        calls::filters(std::process::id()).map_err(|error| format!("the filter of calls is wrong: {error}"))?;
    paths::restrict(&plan)?;
    for filter in &filters {
        let refused = |error| format!("system calls cannot be filtered: {error}; this needs seccomp");
        seccompiler::apply_filter(filter).map_err(refused)?;
    }
    // Last, since this process is larger than the interpreter may be.
    limit(Resource::RLIMIT_AS, plan.memory, "memory")?;
    execve(&program, &arguments, &environment).map_err(|error| fault(&plan.interpreter.display().to_string(), error))
}

fn fault(what: &str, error: nix::errno::Errno) -> String {
    format!("{what}: {}", error.desc())
}

/// Has the system end this process with the server.
fn die_with(server: i32) -> Result<(), String> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| fault("end with the server", error))?;
    // It may have ended before.
    if getppid() == Pid::from_raw(server) { Ok(()) } else { Err("the server has ended".into()) }
}

/// Closes all descriptors but the three that it talks by.
fn close_descriptors() -> Result<(), String> {
    // SAFETY: nothing in this process uses a descriptor that it has not opened since.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == 0 {
        return Ok(());
    }
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|error| format!("close its descriptors: {error}"))?;
    let open: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: as above; the one that lists them is closed already.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}

/// Gives up the rights of root, if it has any.
fn drop_capabilities() -> Result<(), String> {
    let gone = |what: &str| fault(what, nix::errno::Errno::last());
    // SAFETY: calls of the system without pointers.
    unsafe {
        if libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 {
            return Err(gone("give up ambient capabilities"));
        }
        for capability in 0..CAPABILITIES {
            // Only root may, and the numbers end before that.
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
    }
    let (header, none) = ([CAPABILITY_VERSION, 0], [0_u32; 6]);
    // SAFETY: the structures are two and six numbers of 32 bits.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } != 0 {
        return Err(gone("give up capabilities"));
    }
    Ok(())
}

fn bound(plan: &Plan) -> Result<(), String> {
    for (resource, most, name) in [
        // Less than any file has, and the one number for which no program of the system gets the memory either.
        (Resource::RLIMIT_CORE, 1, "core files"),
        (Resource::RLIMIT_CPU, plan.seconds, "processor time"),
        (Resource::RLIMIT_FSIZE, plan.file, "files"),
        (Resource::RLIMIT_MEMLOCK, 0, "locked memory"),
        (Resource::RLIMIT_MSGQUEUE, 0, "message queues"),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS, "descriptors"),
        (Resource::RLIMIT_NPROC, 0, "processes"),
        (Resource::RLIMIT_STACK, STACK, "the stack"),
    ] {
        limit(resource, most, name)?;
    }
    Ok(())
}

/// Sets a limit, unless there is a lower one already.
fn limit(resource: Resource, most: u64, name: &str) -> Result<(), String> {
    let set = getrlimit(resource).and_then(|(_, hard)| setrlimit(resource, most.min(hard), most.min(hard)));
    set.map_err(|error| fault(&format!("bound {name}"), error))
}

type Words = Vec<CString>;

/// Returns the interpreter's program, arguments and environment.
fn command(plan: &Plan) -> Result<(CString, Words, Words), String> {
    let word = |bytes: &[u8]| CString::new(bytes).map_err(|_| "a path has a zero byte".to_owned());
    let program = word(plan.interpreter.as_os_str().as_bytes())?;
    // Isolated: without the user's folder, the working folder and variables. Nothing is written beside sources.
    let arguments = ["-I", "-B", "-X", "utf8", "-c", HARNESS].iter().map(|argument| word(argument.as_bytes()));
    let arguments = std::iter::once(Ok(program.clone())).chain(arguments).collect::<Result<_, _>>()?;
    Ok((program, arguments, environment(&plan.folder)?))
}

/// Returns the whole environment. Libraries that compute with many threads are told to use one, since they get no more.
fn environment(folder: &Path) -> Result<Words, String> {
    let variable = |(name, value): (&str, &[u8])| {
        let word = [name.as_bytes(), b"=", value].concat();
        CString::new(word).map_err(|_| "a path has a zero byte".to_owned())
    };
    let folder = folder.as_os_str().as_bytes();
    let own = [("HOME", folder), ("TMPDIR", folder), ("LANG", b"C.UTF-8")];
    let threads = THREADS.iter().map(|name| (*name, &b"1"[..]));
    own.into_iter().chain(threads).map(variable).collect()
}

/// Variables that say how many threads a library uses.
const THREADS: [&str; 6] = [
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "BLIS_NUM_THREADS",
];

/// Returns the names of all variables of the environment.
pub(super) fn variables() -> impl Iterator<Item = &'static str> {
    ["HOME", "TMPDIR", "LANG", "LC_CTYPE"].into_iter().chain(THREADS)
}
