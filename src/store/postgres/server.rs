//! The server process: made, started, watched, stopped.
//!
//! One thread starts it, waits for it and stops it. It must be a thread that lives as long as the server: the system
//! ties "tell me when my parent dies" to the thread that started the child.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::ConnectOptions as _;
use tokio::sync::watch;

use super::install::Installation;
use super::layout::DataLayout;
use super::{NAME, beside, connect_options, setup_error};
use crate::store::{Error, Result};

/// Names the socket; no TCP port is opened.
pub(super) const PORT: u16 = 5432;
/// A start after a crash first replays changes that were not yet in the tables' files.
const READY_TIMEOUT: Duration = Duration::from_mins(5);
/// A fast stop writes a checkpoint; then the harder ways.
const STOP_STEPS: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_secs(30)),
    (Signal::SIGQUIT, Duration::from_secs(10)),
    (Signal::SIGKILL, Duration::from_secs(10)),
];
const POLL: Duration = Duration::from_millis(20);
/// How soon the end of the process is noticed; an order to stop is heard at once.
const WATCH: Duration = Duration::from_millis(200);
/// Pause before a server that ended by itself is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// The log starts afresh above this size.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// Makes the cluster unless it is there. A kill in the middle leaves a draft that the next start throws away.
pub(super) fn initialise(place: &DataLayout, installation: &Installation) -> Result<()> {
    if place.cluster.exists() {
        return Ok(());
    }
    let draft = beside(&place.cluster, ".new");
    match std::fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(setup_error("remove", &draft, &error));
        }
        _ => {}
    }
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&draft)
        .and_then(|()| installation.user.give(&draft))
        .map_err(|error| setup_error("create", &draft, &error))?;
    let output = installation
        .user
        .command(&installation.initdb)
        // The locale `C` exists on every system; the socket's folder decides who may connect.
        .args(["--encoding=UTF8", "--locale=C", "--auth=trust", "--username", NAME, "--pgdata"])
        .arg(&draft)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| setup_error("run", &installation.initdb, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Setup(format!(
            "private PostgreSQL: initdb failed as user `{}`: {}",
            installation.user.name,
            said.trim()
        )));
    }
    std::fs::rename(&draft, &place.cluster).map_err(|error| setup_error("rename", &draft, &error))
}

/// Stops the server that an earlier attune left in the cluster. The caller holds the lock, so nobody else wants it.
pub(super) fn stop_leftover(cluster: &Path) -> Result<()> {
    let pid_file = cluster.join("postmaster.pid");
    let Ok(content) = std::fs::read_to_string(&pid_file) else { return Ok(()) };
    let Some(pid) = content.lines().next().and_then(|line| line.trim().parse().ok()).filter(|pid| *pid > 1) else {
        return Ok(());
    };
    if !Path::new("/proc/self").exists() {
        // Without /proc nobody can tell whose process it is; Postgres refuses to start beside a living one.
        return Ok(());
    }
    // The number may have gone to another process since; a Postgres server works inside its cluster's folder.
    let is_ours = || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder == cluster);
    if !is_ours() {
        // Postgres itself would refuse to start where an unrelated process of its user has the number. It still finds a
        // server that is really there by its shared memory.
        return std::fs::remove_file(&pid_file).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(setup_error("remove", &pid_file, &error)),
        });
    }
    tracing::info!(
        "stopping the private PostgreSQL (process {pid}) that an earlier attune left in {}",
        cluster.display()
    );
    for (signal, patience) in STOP_STEPS {
        let _ = kill(Pid::from_raw(pid), signal);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !is_ours() {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }
    Err(Error::Setup(format!(
        "private PostgreSQL: process {pid} still runs in {} and does not stop",
        cluster.display()
    )))
}

/// The process, held by its thread. Dropping it stops both.
#[derive(Debug)]
pub(super) struct Server {
    major: String,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Server {
    /// Starts the process; [`Server::wait_until_ready`] tells when it answers.
    pub(super) fn spawn(place: &DataLayout, installation: Installation) -> Result<Self> {
        let (stop, stopped) = channel();
        let (end, ended) = watch::channel(None);
        let (started, start) = channel();
        let (cluster, socket_dir, log) = (place.cluster.clone(), place.socket_dir.clone(), place.log.clone());
        let major = installation.major.clone();
        let thread = std::thread::Builder::new()
            .name("postgres".into())
            .spawn(move || {
                let spawn = || spawn_process(&installation, &cluster, &socket_dir, &log);
                match spawn() {
                    Ok(child) => {
                        let _ = started.send(Ok(()));
                        watch_process(child, spawn, &stopped, &end);
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            })
            .map_err(|error| Error::Setup(format!("private PostgreSQL: cannot start a thread: {error}")))?;
        start.recv().map_err(|_| Error::Internal("the thread of the private PostgreSQL ended".into()))??;
        Ok(Self { major, stop: Some(stop), thread: Some(thread), ended })
    }

    /// Version of the binaries.
    pub(super) fn major(&self) -> &str {
        &self.major
    }

    /// Waits until the server answers queries; fails as soon as its process ends.
    pub(super) async fn wait_until_ready(&self, place: &DataLayout) -> Result<()> {
        let options = connect_options(&place.socket_dir, "postgres");
        let mut ended = self.ended.clone();
        let answers = async {
            // A failure to connect says nothing before the socket is there and recovery is over.
            while options.connect().await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        let why = tokio::select! {
            () = answers => return Ok(()),
            status = ended.wait_for(Option::is_some) => match status.ok().and_then(|status| *status) {
                Some(status) => format!("it ended with {status}"),
                None => "it ended".into(),
            },
            () = tokio::time::sleep(READY_TIMEOUT) => format!("it did not answer within {} s", READY_TIMEOUT.as_secs()),
        };
        Err(Error::Setup(format!(
            "private PostgreSQL did not start: {why}; the end of {}:\n{}",
            place.log.display(),
            tail(&place.log)
        )))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs the thread: waits for the order to stop, and starts the process again if it ends without one.
fn watch_process(
    mut child: Child,
    spawn: impl Fn() -> Result<Child>,
    stopped: &Receiver<()>,
    end: &watch::Sender<Option<ExitStatus>>,
) {
    let should_stop = |pause| !matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout));
    loop {
        if should_stop(WATCH) {
            return stop_process(&mut child);
        }
        let Ok(Some(status)) = child.try_wait() else { continue };
        // Before the server is ready, the one who waits for it gives up; later, the pool connects again by itself.
        end.send_replace(Some(status));
        tracing::error!("the private PostgreSQL ended with {status}; starting it again");
        loop {
            if should_stop(RESTART_PAUSE) {
                return;
            }
            match spawn() {
                Ok(next) => break child = next,
                Err(error) => tracing::error!("{error}"),
            }
        }
    }
}

fn stop_process(child: &mut Child) {
    for (signal, patience) in STOP_STEPS {
        // The child has not been waited for, so the number is still its own.
        let _ = kill(Pid::from_raw(child.id() as i32), signal);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        tracing::warn!("the private PostgreSQL did not stop on {signal} within {} s", patience.as_secs());
    }
}

fn spawn_process(installation: &Installation, cluster: &Path, socket_dir: &Path, log: &Path) -> Result<Child> {
    let open = || {
        let file = File::options().create(true).append(true).open(log)?;
        if file.metadata()?.len() > MAX_LOG_BYTES {
            file.set_len(0)?;
        }
        Ok(file)
    };
    let log_file = open().map_err(|error| setup_error("open", log, &error))?;
    let mut command = installation.user.command(&installation.postgres);
    command.arg("-D").arg(cluster).arg("-k").arg(socket_dir);
    let port = format!("port={PORT}");
    for setting in [
        "listen_addresses=",
        &port,
        "unix_socket_permissions=0700",
        "max_connections=50",
        "shared_buffers=64MB",
        // A job or file that a client was told of must survive a crash.
        "fsync=on",
        "synchronous_commit=on",
        // Rows are few: neither pays off, and parallel workers need more of /dev/shm than a container has.
        "jit=off",
        "max_parallel_workers_per_gather=0",
        "logging_collector=off",
        "log_destination=stderr",
        "log_checkpoints=off",
        "cluster_name=attune",
    ] {
        command.arg("-c").arg(setting);
    }
    // A process group of its own: Ctrl-C in a terminal is for us, who stop it last.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file);
    #[cfg(target_os = "linux")]
    die_with_us(&mut command);
    command.spawn().map_err(|error| setup_error("run", &installation.postgres, &error))
}

/// Lets the system stop the server when we are killed.
#[cfg(target_os = "linux")]
fn die_with_us(command: &mut std::process::Command) {
    let parent = nix::unistd::getpid();
    let ask = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGINT)?;
        // We may have been killed before the request was made.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only system calls are made and nothing is allocated. The standard library changes
    // the user before it runs this, which matters because that change would undo the request.
    unsafe { command.pre_exec(ask) };
}

/// The last lines of the log, for an error message.
fn tail(log: &Path) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2_000)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| error.to_string())
}
