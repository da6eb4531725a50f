//! The process of an engine: starts the program, waits until it has loaded its model, reads what it says, and starts it
//! again with growing pauses when it ends. It ends with Attune, however that ends: its end of the socket is closed then.

use std::io::{BufReader, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ChildSettings;
use super::answers::{Answers, Link};
use super::protocol::{self, FromChild, Load, ToChild, VERSION};
use super::standing::{Record, Standing};
use crate::{Error, Result};

/// Name of the program.
pub const PROGRAM: &str = "attune-mistralrs";
/// Pause before the first new start; it doubles with each process that ends before its model is loaded.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Most doublings of the pause.
const MOST_DOUBLINGS: u32 = 7;
/// Time that the process may take to accept a frame: it reads all the time, so longer means that it hangs.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Variable of the GPUs that a process may use.
const VISIBLE_GPUS: &str = "CUDA_VISIBLE_DEVICES";
/// Time between two looks at what takes too long.
const SWEEP: Duration = Duration::from_millis(200);

/// Finds the program: where `named` says, beside Attune's own program, or in one of the folders of `PATH`.
pub fn find_program(named: Option<&Path>) -> Option<PathBuf> {
    if let Some(named) = named {
        return named.is_file().then(|| named.to_path_buf());
    }
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    beside.into_iter().chain(folders).find(|candidate| candidate.is_file())
}

/// Returns the GPU with this index among those that this process sees, as [`VISIBLE_GPUS`] names it.
fn only(visible: Option<&str>, index: usize) -> String {
    let named = visible.filter(|visible| !visible.is_empty()).and_then(|visible| visible.split(',').nth(index));
    named.map_or_else(|| index.to_string(), |name| name.trim().to_owned())
}

/// Keeps a process running. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Supervisor {
    answers: Arc<Answers>,
    process: Arc<Mutex<Option<Child>>>,
    record: Arc<Record>,
    thread: Option<JoinHandle<()>>,
    /// Tokens that a sequence may have, by what the first process said.
    pub(super) context: usize,
}

impl Supervisor {
    /// Starts the program and waits until it has loaded what `load` says.
    pub(super) fn start(settings: ChildSettings, load: Load, answers: Arc<Answers>) -> Result<Self> {
        let process = Arc::<Mutex<Option<Child>>>::default();
        let record = Arc::new(Record::new(settings.weights_bytes));
        let (first, loaded) = channel();
        let watched = Watched {
            program: settings.program,
            gpu: settings.gpu,
            load,
            answers: answers.clone(),
            process: process.clone(),
            record: record.clone(),
        };
        let io = |source| Error::Io { context: "start a thread for the second engine", source: Arc::new(source) };
        let name = format!("second-{}", answers.model());
        let thread = std::thread::Builder::new().name(name).spawn(move || watched.run(first)).map_err(io)?;
        let swept = Arc::downgrade(&answers);
        std::thread::Builder::new().name("second-sweep".into()).spawn(move || sweep(&swept)).map_err(io)?;
        let mut supervisor = Self { answers, process, record, thread: Some(thread), context: 0 };
        match loaded.recv() {
            Ok(Ok(context)) => {
                supervisor.context = context;
                Ok(supervisor)
            }
            Ok(Err(message)) => Err(Error::Setup(message)),
            Err(_) => Err(Error::Internal("the thread of the second engine ended".into())),
        }
    }

    /// Returns how the process stands.
    pub(super) fn standing(&self) -> Standing {
        self.record.standing()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.answers.stop();
        if let Some(process) = self.process.lock().as_mut() {
            // It may have ended by itself.
            let _ = process.kill();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the second engine had panicked");
        }
    }
}

fn sweep(answers: &Weak<Answers>) {
    while let Some(answers) = answers.upgrade().filter(|answers| !answers.is_stopped()) {
        answers.sweep(Instant::now());
        drop(answers);
        std::thread::sleep(SWEEP);
    }
}

/// What the thread of a supervisor has.
struct Watched {
    program: PathBuf,
    gpu: Option<usize>,
    load: Load,
    answers: Arc<Answers>,
    process: Arc<Mutex<Option<Child>>>,
    record: Arc<Record>,
}

impl Watched {
    /// Runs one process after the other; tells `first` how the first one came up, and ends if it did not.
    fn run(self, first: Sender<std::result::Result<usize, String>>) {
        let mut first = Some(first);
        let mut failures = 0;
        while !self.answers.is_stopped() {
            let mut was_ready = false;
            let ended = self.run_one(|context| {
                was_ready = true;
                // Whoever started the engine may have gone.
                first.take().map(|first| first.send(Ok(context)));
            });
            self.record.ended();
            self.answers.disconnect();
            let reason = self.reap(ended.err());
            if self.answers.is_stopped() {
                break;
            }
            if let Some(first) = first.take() {
                let _ = first.send(Err(format!("{}: {reason}", self.answers.model())));
                return;
            }
            self.answers.count_restart();
            failures = if was_ready { 0 } else { failures + 1 };
            let pause = FIRST_PAUSE * 2_u32.pow(failures.min(MOST_DOUBLINGS));
            let (model, milliseconds) = (self.answers.model(), pause.as_millis());
            tracing::error!(
                model,
                reason,
                milliseconds,
                "the second engine has ended; it is started again after a pause"
            );
            self.pause(pause);
        }
    }

    /// Starts a process and reads what it says until it ends; an error says why it must not go on.
    fn run_one(&self, ready: impl FnOnce(usize)) -> std::result::Result<(), String> {
        let io = |error: std::io::Error| error.to_string();
        let (own, other) = UnixStream::pair().map_err(io)?;
        own.set_write_timeout(Some(WRITE_TIMEOUT)).map_err(io)?;
        let process = self.command(other).spawn();
        let process = process.map_err(|error| format!("{} cannot be started: {error}", self.program.display()))?;
        self.record.started(process.id());
        *self.process.lock() = Some(process);
        // Stopped between the loop's look and the start: nobody else ends this process.
        if self.answers.is_stopped() {
            return Ok(());
        }
        let mut link = Socket(own.try_clone().map_err(io)?);
        link.send(&ToChild::Load(self.load.clone())).map_err(io)?;
        let mut said = BufReader::new(own);
        let began = Instant::now();
        let context = loop {
            match protocol::read(&mut said).map_err(io)? {
                None => return Ok(()),
                Some(FromChild::Loading { resident_bytes }) => {
                    let (model, mib, seconds) = (self.answers.model(), resident_bytes >> 20, began.elapsed().as_secs());
                    tracing::info!(model, mib, seconds, "the second engine loads");
                }
                Some(FromChild::Unfit { message }) => return Err(message),
                Some(FromChild::Ready { version, context, resident_bytes }) => {
                    if version != VERSION {
                        return Err(format!(
                            "{} speaks version {version} of the protocol, and this server {VERSION}: build both from the same \
                             sources",
                            self.program.display()
                        ));
                    }
                    let (model, mib) = (self.answers.model(), resident_bytes >> 20);
                    tracing::info!(
                        model,
                        mib,
                        context,
                        seconds = began.elapsed().as_secs_f64(),
                        "the second engine is ready"
                    );
                    break context;
                }
                Some(other) => return Err(format!("it says {other:?} before it is ready")),
            }
        };
        if !self.answers.connect(Box::new(link)) {
            return Ok(());
        }
        self.record.ready();
        ready(context);
        while let Some(message) = protocol::read(&mut said).map_err(io)? {
            self.answers.hear(message);
        }
        Ok(())
    }

    /// Makes the command that starts the program with `other` as its end of the socket. It must not outlive the start: this
    /// process would hold that end, too, and never see it closed.
    fn command(&self, other: UnixStream) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(gpu) = self.gpu {
            // Else mistralrs spreads a model over all GPUs that it sees.
            command.env(VISIBLE_GPUS, only(std::env::var(VISIBLE_GPUS).ok().as_deref(), gpu));
        }
        command
            // For people who look at the list of processes.
            .arg(self.answers.model())
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            // A signal of the terminal is for Attune, which ends the process in order.
            .process_group(0);
        command
    }

    /// Ends the process if it still runs, and says how it ended.
    fn reap(&self, fault: Option<String>) -> String {
        let Some(mut process) = self.process.lock().take() else {
            return fault.unwrap_or_else(|| "it was not started".into());
        };
        let _ = process.kill();
        let status = process.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        fault.unwrap_or_else(|| format!("{} ended: {status}", self.program.display()))
    }

    /// Waits, and looks now and then whether the engine has been stopped meanwhile.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.answers.is_stopped() {
            std::thread::sleep(FIRST_PAUSE.min(until.saturating_duration_since(Instant::now())));
        }
    }
}

/// Attune's end of the socket.
#[derive(Debug)]
struct Socket(UnixStream);

impl Link for Socket {
    fn send(&mut self, message: &ToChild) -> std::io::Result<()> {
        let sent = protocol::write(&mut self.0, message);
        if sent.as_ref().is_err_and(|error| error.kind() != ErrorKind::InvalidData) {
            // Half a frame may be out: nothing more can be said, and the thread that reads notices.
            let _ = self.0.shutdown(std::net::Shutdown::Both);
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::only;

    #[test]
    fn a_process_sees_the_gpu_that_this_one_computes_on() {
        assert_eq!(only(None, 1), "1");
        assert_eq!(only(Some(""), 0), "0");
        assert_eq!(only(Some("2,3"), 1), "3");
        assert_eq!(only(Some("GPU-8932f937, MIG-1"), 1), "MIG-1");
    }
}
