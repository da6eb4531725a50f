//! Shares the running places and the cache's blocks out among organisations: decides which sequence is admitted next,
//! and which gives its place up. Called by the scheduler before each step.
//!
//! A free place goes to the organisation that runs the fewest sequences of those that wait. If there is no place or
//! there are too few blocks for its next sequence, an organisation that runs at least two more gives up its youngest.
//! So the places of organisations that wait differ by one at the most, whoever came first; nothing goes back and forth,
//! since whoever gives one up has still as many as who gets it; and the oldest sequence of each always goes on.
//!
//! Background sequences come last: they are admitted when nothing else waits, take nothing from anybody, and are the
//! first to give up their places and blocks.
//!
//! If others run one sequence each and no more can run, one that has drawn its slice of tokens gives its place to an
//! organisation that runs nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::{BACKGROUND, Owner, Scheduler, Sequence};

/// Numbers of running sequences.
struct Running {
    by_organization: HashMap<Arc<str>, usize>,
    /// The same of background sequences, which the others do not count.
    background: HashMap<Arc<str>, usize>,
    /// Number of those that may grow: each of them keeps a block to spare. Otherwise a new sequence would have to give
    /// up its blocks at the next step.
    growing: usize,
}

/// The organisation whose turn it is, and the lane that it has the turn for.
struct Turn {
    organization: Arc<str>,
    lane: usize,
}

impl Running {
    fn count<T: Owner>(running: &[Sequence<T>]) -> Self {
        let mut counts = Self { by_organization: HashMap::new(), background: HashMap::new(), growing: 0 };
        for sequence in running {
            counts.add(sequence);
        }
        counts
    }

    fn add<T: Owner>(&mut self, sequence: &Sequence<T>) {
        self.growing += usize::from(sequence.may_grow());
        let counts = if sequence.background { &mut self.background } else { &mut self.by_organization };
        match counts.get_mut(&sequence.place.organization) {
            Some(count) => *count += 1,
            None => drop(counts.insert(sequence.place.organization.clone(), 1)),
        }
    }

    /// Returns how many sequences `organization` runs that somebody waits for.
    fn of(&self, organization: &str) -> usize {
        self.by_organization.get(organization).copied().unwrap_or(0)
    }

    /// Returns how many sequences `organization` runs of those that wait in the queue `lane`.
    fn of_lane(&self, organization: &str, lane: usize) -> usize {
        if lane == BACKGROUND { self.background.get(organization).copied().unwrap_or(0) } else { self.of(organization) }
    }
}

impl<T: Owner> Scheduler<T> {
    /// Admits sequences in turn until no place is left, or too few blocks for the next one: the others do not overtake
    /// it.
    pub(super) fn admit(&mut self, now: Instant) {
        if self.waiting_count() == 0 || self.is_full_of_one_organization() {
            return;
        }
        let mut running = Running::count(&self.running);
        while let Some(turn) = self.turn(&running) {
            let Some(sequence) = self.take(&turn, &mut running, now) else { return };
            running.add(&sequence);
            self.insert(sequence);
        }
    }

    /// Returns `true` if all places are taken and nobody else wants one, so that there is nothing to look at.
    fn is_full_of_one_organization(&self) -> bool {
        let Some(first) = self.running.first() else { return false };
        let organization = &first.place.organization;
        self.running.len() >= self.places()
            && self.waiting.iter().all(|lane| lane.has_only(organization))
            && !self.running.iter().any(|sequence| sequence.background)
    }

    /// Returns whose turn it is; `None` if nobody waits.
    fn turn(&self, running: &Running) -> Option<Turn> {
        let waiting = self.waiting.iter().enumerate();
        let waiting = waiting.flat_map(|(lane, queue)| queue.heads().map(move |(name, order)| (name, lane, order)));
        let given_up = self.preempted.iter().map(|sequence| {
            let (name, lane) = (&sequence.place.organization, sequence.queue());
            (name, lane, self.waiting[lane].order(name))
        });
        let next = waiting.chain(given_up).min_by_key(|(name, lane, order)| {
            (*lane == BACKGROUND, running.of_lane(name, *lane), *lane != self.turn, *order)
        });
        next.map(|(name, lane, _)| Turn { organization: name.clone(), lane })
    }

    /// Takes the next sequence of `turn` with its blocks, after others have given theirs up if need be; `None` if it
    /// has to wait.
    fn take(&mut self, turn: &Turn, running: &mut Running, now: Instant) -> Option<Sequence<T>> {
        let mut others_looked_at = false;
        loop {
            if self.running.len() < self.places()
                && let Some(sequence) = self.take_if_there_are_blocks(turn, running.growing, now)
            {
                return Some(sequence);
            }
            if turn.lane == BACKGROUND {
                return None;
            }
            if let Some(index) = self.running.iter().rposition(|sequence| sequence.background) {
                self.preempt(index);
                self.happenings.yields += 1;
                *running = Running::count(&self.running);
                continue;
            }
            // Nobody gives anything up in vain.
            if !others_looked_at && !self.others_have_enough(turn, running) {
                return None;
            }
            others_looked_at = true;
            let index = self.who_gives_up(&turn.organization, running)?;
            self.preempt(index);
            self.happenings.yields += 1;
            *running = Running::count(&self.running);
        }
    }

    /// Returns how many sequences may run: each can have a row in every step.
    fn places(&self) -> usize {
        self.limits.sequences().min(self.limits.step_tokens())
    }

    fn take_if_there_are_blocks(&mut self, turn: &Turn, spare: usize, now: Instant) -> Option<Sequence<T>> {
        if let Some(index) = self.first_preempted(turn) {
            self.preempted[index].reserve(&self.allocator, spare)?;
            return Some(self.preempted.remove(index));
        }
        let lane = &mut self.waiting[turn.lane];
        let place = lane.next_of(&turn.organization)?;
        self.happenings.reused_tokens += lane.front(&place)?.reserve(&self.allocator, spare)?;
        let mut sequence = lane.pop(&place)?;
        lane.charge(&place, (sequence.prompt_tokens - sequence.cached) as u64);
        if turn.lane != BACKGROUND {
            self.turn = 1 - turn.lane;
        }
        self.admissions += 1;
        sequence.admission = self.admissions;
        if let Some(ticket) = sequence.ticket.take() {
            ticket.begin();
        }
        self.happenings.waits.push(now.saturating_duration_since(sequence.submitted));
        Some(sequence)
    }

    /// Returns the index of the oldest sequence of the organisation that gave up its place; it comes before all that
    /// have not run.
    fn first_preempted(&self, turn: &Turn) -> Option<usize> {
        self.preempted.iter().position(|sequence| {
            *sequence.place.organization == *turn.organization && sequence.background == (turn.lane == BACKGROUND)
        })
    }

    /// Returns `true` if the next sequence of `turn` could run once all that [`Self::who_gives_up`] would name one
    /// after another have done so.
    fn others_have_enough(&mut self, turn: &Turn, running: &Running) -> bool {
        let own = running.of(&turn.organization);
        let mut left = running.by_organization.clone();
        let mut leaving = Vec::new();
        // The youngest of each organisation stand last.
        for sequence in self.running.iter().rev() {
            let organization = &sequence.place.organization;
            let Some(left) = left.get_mut(organization).filter(|_| *organization != turn.organization) else {
                continue;
            };
            if *left >= own + 2 || (own == 0 && sequence.has_used_slice()) {
                *left -= 1;
                leaving.push(sequence);
            }
        }
        if leaving.is_empty() {
            return false;
        }
        let spare = running.growing - leaving.iter().filter(|sequence| sequence.may_grow()).count();
        let available = self.allocator.available_without(leaving.iter().map(|sequence| &sequence.table));
        let allocator = self.allocator.clone();
        self.next_sequence(turn).is_some_and(|next| next.wanted_blocks(&allocator) + spare <= available)
    }

    fn next_sequence(&mut self, turn: &Turn) -> Option<&mut Sequence<T>> {
        if let Some(index) = self.first_preempted(turn) {
            return Some(&mut self.preempted[index]);
        }
        let lane = &mut self.waiting[turn.lane];
        let place = lane.next_of(&turn.organization)?;
        lane.front(&place)
    }

    /// Returns the index of the sequence that gives its place to `organization`: the youngest of the organisation that
    /// runs most, if these are at least two more; else, for one that runs nothing, whoever has drawn its slice.
    fn who_gives_up(&self, organization: &str, running: &Running) -> Option<usize> {
        let own = running.of(organization);
        let others = self.running.iter().enumerate().filter(|(_, other)| *other.place.organization != *organization);
        let (count, youngest) =
            others.clone().map(|(index, other)| (running.of(&other.place.organization), index)).max()?;
        if count >= own + 2 {
            return Some(youngest);
        }
        others.filter(|(_, other)| own == 0 && other.has_used_slice()).map(|(index, _)| index).next_back()
    }

    /// Returns the index of the sequence that gives up its blocks if none is left for those that run: the youngest in
    /// the background, or else of the organisation that runs most. It is never the oldest of several, so the oldest of all always goes on.
    pub(super) fn who_gives_up_blocks(&self) -> Option<usize> {
        let running = Running::count(&self.running);
        let counts = self.running.iter().enumerate().map(|(index, sequence)| {
            let count = if sequence.background { 0 } else { running.of(&sequence.place.organization) };
            (sequence.background, count, index)
        });
        counts.max().map(|(.., index)| index)
    }

    /// Stops the running sequence at `index`: it gives its blocks back, and is computed again when it is admitted.
    pub(super) fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        sequence.give_up_blocks(&self.allocator);
        let at = self.preempted.partition_point(|other| other.admission < sequence.admission);
        self.preempted.insert(at, sequence);
    }

    /// Puts an admitted sequence among the running ones, which are kept in the order of their first admission.
    fn insert(&mut self, sequence: Sequence<T>) {
        let at = self.running.partition_point(|other| other.admission < sequence.admission);
        self.running.insert(at, sequence);
    }
}
