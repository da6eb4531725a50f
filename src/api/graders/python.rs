//! The code of graders of the type `python`: who has a turn, and which interpreters stay for the next item. An interpreter
//! has one source and serves the items of one [`Session`], such as a run; between them it rests, stopped, and it ends
//! with the session, after a fault that ends it, or where another one needs its place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;

use crate::api::graders::outcome::Failure;
use crate::api::http::turns::{Crowded, Turns};
use crate::graders::template::Sample;
use crate::sandbox::{Fault, Given, LIFE, Process, Sandbox};

/// Items of one organisation that may wait for a turn.
const MAX_WAITING: usize = 1024;
/// Time that an interpreter rests before it ends, and between two looks.
const REST: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(5);

/// Runs code. Cheap to clone; clones share turns and interpreters.
#[derive(Debug, Clone)]
pub struct PythonGraders {
    /// `None`: the operator does not allow it.
    sandbox: Option<Sandbox>,
    turns: Turns,
    rooms: Arc<Mutex<Rooms>>,
}

/// The places for interpreters.
#[derive(Debug)]
struct Rooms {
    /// All places.
    most: usize,
    /// Those taken by items that are graded.
    running: usize,
    resting: Vec<Resting>,
    /// Counts the sessions, to tell them apart.
    sessions: u64,
    /// Something looks after those that rest.
    is_swept: bool,
}

/// An interpreter that waits for the next item.
#[derive(Debug)]
struct Resting {
    session: u64,
    source: Arc<str>,
    process: Process,
    since: Instant,
}

/// Items that are graded together, of one organisation.
#[derive(Debug)]
pub(crate) struct Session {
    graders: PythonGraders,
    organization: Arc<str>,
    id: u64,
}

/// A place for an interpreter at work, given back when dropped.
struct Place<'a>(&'a Mutex<Rooms>);

impl PythonGraders {
    /// Makes places for `at_once` interpreters in the sandbox.
    pub fn new(sandbox: Option<Sandbox>, at_once: usize) -> Self {
        let rooms = Rooms { most: at_once, running: 0, resting: Vec::new(), sessions: 0, is_swept: false };
        Self { sandbox, turns: Turns::new(at_once, MAX_WAITING), rooms: Arc::new(Mutex::new(rooms)) }
    }

    /// True if the operator allows graders of this type.
    pub(crate) fn are_allowed(&self) -> bool {
        self.sandbox.is_some()
    }

    /// Begins a session.
    pub(crate) fn session(&self, organization: &Arc<str>) -> Session {
        let mut rooms = self.rooms.lock();
        rooms.sessions += 1;
        Session { graders: self.clone(), organization: Arc::clone(organization), id: rooms.sessions }
    }
}

impl Session {
    /// Loads the source once, to see whether it can be.
    pub(crate) async fn check(&self, source: &str) -> Result<(), Failure> {
        let sandbox = self.sandbox()?;
        let _turn = self.turn().await?;
        let (_place, _) = self.place(source);
        sandbox.load(source).await?;
        Ok(())
    }

    /// Returns the score that the source gives to `sample`, an answer to `item`.
    pub(crate) async fn grade(&self, source: &str, item: &Value, sample: &Sample) -> Result<f64, Failure> {
        let sandbox = self.sandbox()?;
        let _turn = self.turn().await?;
        let (place, rested) = self.place(source);
        let mut process = match rested {
            Some(process) => process,
            None => sandbox.load(source).await?,
        };
        let Sample { text, tools, choices } = sample;
        let given = Given { text: text.as_deref(), tools: tools.as_ref(), choices: choices.as_ref(), item };
        let scored = process.grade(given).await;
        if !scored.as_ref().is_err_and(Fault::ends) && process.age() < LIFE {
            self.keep(place, source, process);
        }
        Ok(scored?)
    }

    fn sandbox(&self) -> Result<&Sandbox, Failure> {
        let message = "The operator of this server does not allow graders of the type python.";
        self.graders.sandbox.as_ref().ok_or_else(|| Failure::CodeUnavailable("not_allowed", message.into()))
    }

    async fn turn(&self) -> Result<impl Sized + use<>, Failure> {
        self.graders.turns.wait(&self.organization).await.map_err(|Crowded| {
            let message = "Too many items of the organisation wait for graders of the type python.";
            Failure::CodeUnavailable("busy", message.into())
        })
    }

    /// Takes a place, with the interpreter that has the source already, if one rests.
    fn place(&self, source: &str) -> (Place<'_>, Option<Process>) {
        let mut rooms = self.graders.rooms.lock();
        let found = rooms.resting.iter().position(|one| one.session == self.id && *one.source == *source);
        let found = found.map(|index| rooms.resting.remove(index).process);
        rooms.running += 1;
        // The one that has rested longest gives way.
        while rooms.running + rooms.resting.len() > rooms.most && !rooms.resting.is_empty() {
            rooms.resting.remove(0);
        }
        drop(rooms);
        if let Some(process) = &found {
            process.wake();
        }
        (Place(&self.graders.rooms), found)
    }

    /// Lets an interpreter rest in its place.
    fn keep(&self, place: Place<'_>, source: &str, process: Process) {
        process.rest();
        let resting = Resting { session: self.id, source: source.into(), process, since: Instant::now() };
        drop(place);
        let mut rooms = self.graders.rooms.lock();
        if rooms.running + rooms.resting.len() >= rooms.most {
            return;
        }
        rooms.resting.push(resting);
        if !std::mem::replace(&mut rooms.is_swept, true) {
            drop(tokio::spawn(sweep(Arc::clone(&self.graders.rooms))));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.graders.rooms.lock().resting.retain(|one| one.session != self.id);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

/// Ends interpreters that have rested for too long, until none rests.
async fn sweep(rooms: Arc<Mutex<Rooms>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let mut rooms = rooms.lock();
        rooms.resting.retain(|one| one.since.elapsed() < REST);
        if rooms.resting.is_empty() {
            rooms.is_swept = false;
            return;
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        // Code may write what no database takes.
        let message = fault.to_string().replace('\0', "\u{fffd}");
        match fault {
            Fault::Unavailable(_) => {
                tracing::error!("{message}");
                Self::CodeUnavailable("sandbox_error", message)
            }
            Fault::Source(_) | Fault::Raised(_) | Fault::Ended(_) => Self::Code(message),
        }
    }
}
