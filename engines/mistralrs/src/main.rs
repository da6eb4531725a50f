//! `attune-mistralrs`: runs one model with the crate mistralrs for Attune, which starts this program and talks to it over the
//! socket that is its standard input ([`attune_engine::child::protocol`]). It ends when the other end is closed.
//!
//! [`load`] loads the model, [`rewrite`] writes it anew where the library reads another form, [`trial`] lets it answer once,
//! [`lora`] checks an adapter that is added to it, [`answers`] runs requests, [`draw`] draws each
//! token with Attune's own sampler from the logits that mistralrs hands out, and [`prompt`] computes log probabilities of prompts.

mod answers;
mod draw;
mod load;
mod lora;
mod prompt;
mod rewrite;
mod trial;

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use attune_engine::child::protocol::{self, FromChild, Load, ToChild, VERSION};

use crate::answers::Answers;

/// Time between two reports while the model is being loaded.
const REPORT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attune-mistralrs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let input = std::io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
    let mut socket = UnixStream::from(input);
    socket.peer_addr().context("standard input is no socket: this program is started by attune")?;
    let Some(ToChild::Load(load)) = protocol::read(&mut socket)? else { bail!("the first frame is not `load`") };
    let say = speaker(socket.try_clone()?);
    if load.version != VERSION {
        let message = format!("attune speaks version {} of the protocol, and this program {VERSION}", load.version);
        return refuse(&say, message);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let model = match loaded(&runtime, &load, &say) {
        Ok(model) => model,
        Err(error) => return refuse(&say, format!("{error:#}")),
    };
    let context = model.context;
    let answers = Answers::new(model, runtime.handle().clone(), say.clone())?;
    say.send(FromChild::Ready { version: VERSION, context, resident_bytes: resident_bytes() })?;
    while let Some(message) = protocol::read(&mut socket)? {
        match message {
            ToChild::Generate(generate) => answers.begin(generate),
            ToChild::Allow { request, tokens } => answers.allow(request, tokens),
            ToChild::Cancel { request } => answers.cancel(request),
            ToChild::Load(_) => bail!("a second `load`"),
        }
    }
    // Attune has gone: nobody waits for what still runs.
    std::process::exit(0);
}

/// Loads the model, and tells now and then that it is still being loaded.
fn loaded(runtime: &tokio::runtime::Runtime, load: &Load, say: &Sender<FromChild>) -> Result<load::Loaded> {
    let (done, is_done) = channel::<()>();
    let reports = say.clone();
    let reporter = std::thread::spawn(move || {
        while is_done.recv_timeout(REPORT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = reports.send(FromChild::Loading { resident_bytes: resident_bytes() });
        }
    });
    let model = load::load(runtime, load);
    drop(done);
    let _ = reporter.join();
    model
}

/// Says why the model cannot be loaded, and lets that out before the program ends.
fn refuse(say: &Sender<FromChild>, message: String) -> Result<()> {
    let _ = say.send(FromChild::Unfit { message: message.clone() });
    std::thread::sleep(Duration::from_millis(200));
    bail!(message)
}

/// Starts the thread that writes to the socket. A reader that is slow holds up nothing else.
fn speaker(socket: UnixStream) -> Sender<FromChild> {
    let (say, said): (Sender<FromChild>, Receiver<FromChild>) = channel();
    std::thread::spawn(move || {
        let mut socket = std::io::BufWriter::new(socket);
        while let Ok(message) = said.recv() {
            if protocol::write(&mut socket, &message).and_then(|()| std::io::Write::flush(&mut socket)).is_err() {
                std::process::exit(0);
            }
        }
    });
    say
}

/// Returns the bytes of memory that this process has.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
