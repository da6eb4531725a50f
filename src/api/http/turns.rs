//! Turns at a scarce good, shared out by organisation: whoever has the fewest goes first, and none takes all. Used by
//! `share` and by `grammars`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A number of turns that organisations share. Cheap to clone; clones share the turns.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug)]
struct Lines {
    /// Turns that are free.
    free: usize,
    /// Turns that one organisation may have.
    share: usize,
    /// Requests of one organisation that may wait.
    places: usize,
    /// Counts the turns so far, to tell who was served last.
    served: u64,
    organizations: HashMap<Arc<str>, Line>,
}

/// The requests of one organisation.
#[derive(Debug, Default)]
struct Line {
    running: usize,
    last_served: u64,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// A turn, given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` if it was never handed out.
    home: Option<(Turns, Arc<str>)>,
}

/// Too many requests of the organisation wait already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Crowded;

impl Turns {
    /// Creates `count` turns, at least 2, of which an organisation may have half, and wait for them with `places`
    /// requests.
    pub(crate) fn new(count: usize, places: usize) -> Self {
        let free = count.max(2);
        let lines = Lines { free, share: free / 2, places, served: 0, organizations: HashMap::new() };
        Self { lines: Arc::new(Mutex::new(lines)) }
    }

    /// Waits for a turn; dropping the future leaves the line.
    pub(crate) async fn wait(&self, organization: &Arc<str>) -> Result<Turn, Crowded> {
        let turn = self.enter(organization)?;
        // The sender is kept until it has sent.
        turn.await.map_err(|_| Crowded)
    }

    fn enter(&self, organization: &Arc<str>) -> Result<oneshot::Receiver<Turn>, Crowded> {
        let (sender, receiver) = oneshot::channel();
        let mut lines = self.lines.lock();
        let places = lines.places;
        let line = lines.organizations.entry(Arc::clone(organization)).or_default();
        line.waiting.retain(|sender| !sender.is_closed());
        if line.waiting.len() >= places {
            return Err(Crowded);
        }
        line.waiting.push_back(sender);
        self.hand_out(&mut lines);
        Ok(receiver)
    }

    /// Gives free turns to those who wait.
    fn hand_out(&self, lines: &mut Lines) {
        while lines.free > 0 {
            let share = lines.share;
            let may = lines.organizations.iter().filter(|(_, line)| line.running < share && !line.waiting.is_empty());
            let next = may.min_by_key(|(_, line)| (line.running, line.last_served));
            let Some(name) = next.map(|(name, _)| Arc::clone(name)) else { break };
            lines.served += 1;
            let served = lines.served;
            let Some(line) = lines.organizations.get_mut(&name) else { break };
            let Some(sender) = line.waiting.pop_front() else { break };
            match sender.send(Turn { home: Some((self.clone(), Arc::clone(&name))) }) {
                Ok(()) => {
                    line.running += 1;
                    line.last_served = served;
                    lines.free -= 1;
                }
                // Its client has gone.
                Err(mut turn) => turn.home = None,
            }
        }
        lines.organizations.retain(|_, line| line.running > 0 || !line.waiting.is_empty());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((turns, organization)) = self.home.take() else { return };
        let mut lines = turns.lines.lock();
        lines.free += 1;
        if let Some(line) = lines.organizations.get_mut(&organization) {
            line.running -= 1;
        }
        turns.hand_out(&mut lines);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const PLACES: usize = 64;

    fn ready(receiver: &mut oneshot::Receiver<Turn>) -> Option<Turn> {
        receiver.try_recv().ok()
    }

    #[test]
    fn one_organization_takes_half_of_the_turns_and_the_others_go_first() {
        let turns = Turns::new(2, PLACES);
        let (flood, other): (Arc<str>, Arc<str>) = ("flood".into(), "other".into());
        let mut waiting: Vec<_> = (0..3).map(|_| turns.enter(&flood).expect("a place")).collect();
        let first = ready(&mut waiting[0]).expect("a turn");
        assert!(ready(&mut waiting[1]).is_none(), "the second turn is for others");
        let mine = turns.wait(&other).now_or_never().expect("at once").expect("a turn");
        let mut later = turns.enter(&other).expect("a place");
        drop(first);
        let second = ready(&mut waiting[1]).expect("its own turn");
        drop(mine);
        assert!(ready(&mut later).is_some() && ready(&mut waiting[2]).is_none());
        drop(second);
        assert!(ready(&mut waiting[2]).is_some());
        drop(waiting);
        assert!(turns.lines.lock().organizations.is_empty());
    }

    #[test]
    fn who_has_gone_leaves_no_turn_behind_and_too_many_are_refused() {
        let turns = Turns::new(2, PLACES);
        let organization: Arc<str> = "a".into();
        let running = turns.enter(&organization).expect("a place");
        let mut waiting: Vec<_> = (0..PLACES).map(|_| turns.enter(&organization).expect("a place")).collect();
        assert_eq!(turns.enter(&organization).err(), Some(Crowded));
        let mut last = waiting.pop().expect("the last");
        drop(waiting);
        assert!(turns.enter(&organization).is_ok(), "those who have gone take no place");
        // A turn that was sent and never received is given back too.
        drop(running);
        assert!(ready(&mut last).is_some());
        let lines = turns.lines.lock();
        assert_eq!((lines.free, lines.organizations.len()), (2, 0));
    }
}
