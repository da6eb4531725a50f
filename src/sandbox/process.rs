//! One interpreter in the sandbox, with one source: it grades one item after the other, until it is dropped, which ends
//! it.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::keeper::Keeper;
use super::scratch::{MAX_DEPTH, MAX_ENTRIES, Scratch};
use super::{Fault, Inner, Plan};
use crate::off_thread::{Lost, off_thread};

/// Longest answer: a score, or what went wrong.
const MAX_ANSWER: u64 = 64 << 10;
/// Most that is kept of what an interpreter says which cannot start.
const MAX_COMPLAINT: u64 = 4 << 10;
/// Time between two looks at the folder.
const WATCH: Duration = Duration::from_millis(50);
/// Time that an interpreter which has ended has to say why.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A grader's code, running. Whatever it left in its variables stays until the end.
#[derive(Debug)]
pub(crate) struct Process {
    /// `None` once it has been handed over.
    child: Option<(Child, Scratch)>,
    id: u32,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    complaints: ChildStderr,
    keeper: Keeper,
    time: Duration,
    disk: u64,
    begun: Instant,
}

/// An answer to be graded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    /// Its text; `None` if there is none.
    pub text: Option<&'a str>,
    /// Calls of tools, if there are any.
    pub tools: Option<&'a Value>,
    /// The choices as the API gives them.
    pub choices: Option<&'a Value>,
    /// What it belongs to.
    pub item: &'a Value,
}

impl Process {
    /// Starts an interpreter; nothing is asked of it yet.
    pub(super) async fn start(sandbox: &Inner) -> Result<Self, Fault> {
        let unavailable = |error: io::Error| Fault::Unavailable(format!("the interpreter cannot be started: {error}"));
        let folder = sandbox.home.scratch().map_err(unavailable)?;
        let plan = sandbox.plan(folder.path());
        let child = sandbox.keeper.start_child(command(&plan).map_err(unavailable)?).await;
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                drop(folder.remove());
                return Err(unavailable(error));
            }
        };
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(complaints)) = pipes else {
            sandbox.keeper.see_off(child, folder);
            return Err(Fault::Unavailable("the interpreter has no pipes".into()));
        };
        Ok(Self {
            id: child.id(),
            child: Some((child, folder)),
            input: ChildStdin::from_std(input).map_err(unavailable)?,
            output: BufReader::new(ChildStdout::from_std(output).map_err(unavailable)?),
            complaints: ChildStderr::from_std(complaints).map_err(unavailable)?,
            keeper: sandbox.keeper.clone(),
            time: sandbox.limits.time,
            disk: sandbox.limits.disk,
            begun: Instant::now(),
        })
    }

    /// Loads the source: it runs, and must define `grade`.
    pub(super) async fn load(&mut self, source: &str) -> Result<(), Fault> {
        let turn = Uuid::new_v4().to_string();
        let answer = self.ask(&turn, &json!({"turn": turn, "source": source})).await?;
        match answer.get("fault").and_then(Value::as_str) {
            Some(fault) => Err(Fault::Source(fault.to_owned())),
            None => Ok(()),
        }
    }

    /// Returns the score of an answer. After a fault that [ends](Fault::ends) it the interpreter is of no use any more.
    pub(crate) async fn grade(&mut self, given: Given<'_>) -> Result<f64, Fault> {
        let turn = Uuid::new_v4().to_string();
        let sample = json!({
            "output_text": given.text,
            "output_tools": given.tools.unwrap_or(&json!([])),
            "choices": given.choices.unwrap_or(&json!([])),
        });
        let answer = self.ask(&turn, &json!({"turn": turn, "sample": sample, "item": given.item})).await?;
        match (answer.get("score").and_then(Value::as_f64), answer.get("fault").and_then(Value::as_str)) {
            (Some(score), None) => Ok(score),
            (None, Some(fault)) => Err(Fault::Raised(fault.to_owned())),
            _ => Err(Fault::Ended("The grader's code wrote into what the server reads.".into())),
        }
    }

    /// Returns the time since it was started.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Stops it until it is woken: nothing that it has begun goes on while nobody asks.
    pub(crate) fn rest(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub(crate) fn wake(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        // It has not been waited for, so that the number is still its own.
        let sent = kill(Pid::from_raw(self.id as i32), signal);
        debug_assert!(sent.is_ok(), "it is there until it is waited for");
    }

    async fn ask(&mut self, turn: &str, request: &Value) -> Result<Value, Fault> {
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');
        let (time, disk, id) = (self.time, self.disk, self.id);
        let folder = self.child.as_ref().map(|(_, folder)| folder);
        let talk = async {
            self.input.write_all(&line).await?;
            let mut answer = Vec::new();
            (&mut self.output).take(MAX_ANSWER).read_until(b'\n', &mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        let full = async {
            loop {
                sleep(WATCH).await;
                let Some(folder) = folder.cloned() else { continue };
                let look = move || Ok::<_, Lost>(folder.used(id));
                if off_thread("look at the folder of a grader", look).await.is_ok_and(|used| used > disk) {
                    return;
                }
            }
        };
        let answer = tokio::select! {
            answer = talk => answer,
            () = full => {
                let most = disk >> 20;
                return Err(Fault::Ended(format!(
                    "The grader's code filled its folder, which takes {most} MiB, {MAX_ENTRIES} files, and {MAX_DEPTH} \
                     folders within each other."
                )));
            }
            () = sleep(time) => {
                return Err(Fault::Ended(format!("The grader's code took more than {} seconds.", time.as_secs())));
            }
        };
        let answer = match answer {
            Ok(answer) if answer.ends_with(b"\n") => answer,
            Ok(answer) if answer.len() as u64 >= MAX_ANSWER => return Err(garbled()),
            Ok(_) | Err(_) => return Err(self.last_words().await),
        };
        let answer: Value = serde_json::from_slice(&answer).map_err(|_| garbled())?;
        if answer["turn"] == turn { Ok(answer) } else { Err(garbled()) }
    }

    /// Says why the interpreter has ended.
    async fn last_words(&mut self) -> Fault {
        let mut told = Vec::new();
        let mut complaints = (&mut self.complaints).take(MAX_COMPLAINT);
        // Code that ran may keep the pipe open.
        drop(timeout(LAST_WORDS, complaints.read_to_end(&mut told)).await);
        let told = String::from_utf8_lossy(&told).trim().to_owned();
        if !told.is_empty() {
            return Fault::Unavailable(told);
        }
        let mut status = None;
        for _ in 0..10 {
            status = self.child.as_mut().and_then(|(child, _)| child.try_wait().ok().flatten());
            if status.is_some() {
                break;
            }
            sleep(LAST_WORDS / 10).await;
        }
        let told = status.map_or_else(|| "it does not answer any more".to_owned(), |status| status.to_string());
        let hint = match status.and_then(|status| status.signal()) {
            Some(_) => " It may need more memory than it can have.",
            None => "",
        };
        Fault::Ended(format!("The grader's code ended its interpreter ({told}).{hint}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some((mut child, folder)) = self.child.take() {
            // It may have ended by itself.
            drop(child.kill());
            self.keeper.see_off(child, folder);
        }
    }
}

fn garbled() -> Fault {
    Fault::Ended("The grader's code wrote into what the server reads.".into())
}

/// Makes the command that starts an interpreter: this program, which becomes it.
fn command(plan: &Plan) -> io::Result<Command> {
    // The file of this process, also once another one has taken its place.
    let mut command = Command::new("/proc/self/exe");
    command.arg(super::COMMAND).arg(serde_json::to_string(plan)?).env_clear().process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}
