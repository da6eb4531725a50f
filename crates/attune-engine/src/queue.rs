//! Keeps the waiting sequences in order: turns are shared fairly between organisations, then between the adapters of
//! each. The scheduler has one queue for answers and one for embeddings, and shares the running places out
//! (`scheduler/places.rs`); this order decides among those who run equally many.
//!
//! The rule is the virtual token counter of S-LoRA's authors ("Fairness in Serving Large Language Models"): each
//! organisation has a counter of the tokens that it was served, and the lowest counter is next; the same among the
//! adapters of an organisation; then first in, first out. An organisation that comes back after a pause is lifted to
//! the lowest counter of the active ones, so nobody saves up credit while away. Nobody is passed over for ever: a
//! counter stands still while its owner waits, and the others rise.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Weight of a drawn token in the counters; a token of a prompt counts 1. A drawn token takes a step of its own.
pub(crate) const DRAWN_TOKEN: u64 = 2;

/// Line that a sequence waits in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// Organisation of the client.
    pub(crate) organization: Arc<str>,
    /// Adapter generation; empty for the base.
    pub(crate) adapter: Arc<str>,
}

/// Order among names: the lowest counter of served tokens first, of equal ones the fewest sequences, then the arrival
/// of the first sequence.
pub(crate) type Order = (u64, usize, u64);

/// Waiting sequences of one lane.
#[derive(Debug)]
pub(crate) struct FairQueue<S> {
    organizations: Shares<Shares<Line<S>>>,
    waiting: usize,
}

/// Sequences of one line with the numbers of their arrival.
type Line<S> = VecDeque<(u64, S)>;

/// Counters of served tokens by name, with the queues below each name.
#[derive(Debug)]
struct Shares<V> {
    entries: HashMap<Arc<str>, Share<V>>,
    /// Number of sequences under all names.
    active: usize,
}

#[derive(Debug)]
struct Share<V> {
    served: u64,
    /// Number of sequences that wait or run.
    active: usize,
    under: V,
}

impl<S> Default for FairQueue<S> {
    /// Creates an empty queue, with no counters.
    fn default() -> Self {
        Self { organizations: Shares::default(), waiting: 0 }
    }
}

impl<S> FairQueue<S> {
    /// Puts a sequence at the end of its line; arrivals are numbered upwards. It is active until [`Self::leave`].
    pub(crate) fn push(&mut self, place: &Position, arrival: u64, sequence: S) {
        let adapters = self.organizations.enter(&place.organization);
        adapters.enter(&place.adapter).push_back((arrival, sequence));
        self.waiting += 1;
    }

    /// Returns the organisations with sequences that wait, each with its order.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (&Arc<str>, Order)> {
        self.organizations.heads(|adapters| Some(adapters.lowest(first)?.1))
    }

    /// Returns `true` if no sequence of another organisation waits or runs.
    pub(crate) fn has_only(&self, organization: &str) -> bool {
        self.organizations.entries.iter().all(|(name, share)| share.active == 0 || **name == *organization)
    }

    /// Returns the order of an organisation whose first sequence has run before and comes before all that wait.
    pub(crate) fn order(&self, organization: &str) -> Order {
        let share = self.organizations.entries.get(organization);
        share.map_or((0, 0, 0), |share| (share.served, share.active, 0))
    }

    /// Returns the next line of `organization`; `None` if nothing of it waits.
    pub(crate) fn next_of(&self, organization: &Arc<str>) -> Option<Position> {
        let (adapter, _) = self.organizations.entries.get(organization)?.under.lowest(first)?;
        Some(Position { organization: organization.clone(), adapter: adapter.clone() })
    }

    /// Returns the first sequence in the line of `place`; `None` if the line is empty.
    pub(crate) fn front(&mut self, place: &Position) -> Option<&mut S> {
        self.line(place)?.front_mut().map(|(_, sequence)| sequence)
    }

    /// Takes the first sequence in the line of `place`; it stays active.
    pub(crate) fn pop(&mut self, place: &Position) -> Option<S> {
        let (_, sequence) = self.line(place)?.pop_front()?;
        self.waiting -= 1;
        Some(sequence)
    }

    /// Counts `tokens` as served to `place`.
    pub(crate) fn charge(&mut self, place: &Position, tokens: u64) {
        if let Some(organization) = self.organizations.entries.get_mut(&place.organization) {
            organization.served += tokens;
            if let Some(adapter) = organization.under.entries.get_mut(&place.adapter) {
                adapter.served += tokens;
            }
        }
    }

    /// Notes that a sequence of `place` has ended.
    pub(crate) fn leave(&mut self, place: &Position) {
        if let Some(adapters) = self.organizations.get_mut(&place.organization) {
            adapters.leave(&place.adapter);
        }
        self.organizations.leave(&place.organization);
    }

    /// Removes every waiting sequence for which `is_wanted` is `false`, as if each had called [`Self::leave`].
    pub(crate) fn extract(&mut self, mut is_wanted: impl FnMut(&S) -> bool) -> Vec<S> {
        let mut taken = Vec::new();
        let mut places = Vec::new();
        for (organization, adapters) in &mut self.organizations.entries {
            for (adapter, line) in &mut adapters.under.entries {
                if line.under.iter().all(|(_, sequence)| is_wanted(sequence)) {
                    continue;
                }
                for (arrival, sequence) in std::mem::take(&mut line.under) {
                    if is_wanted(&sequence) {
                        line.under.push_back((arrival, sequence));
                    } else {
                        taken.push(sequence);
                        places.push(Position { organization: organization.clone(), adapter: adapter.clone() });
                    }
                }
            }
        }
        self.waiting -= taken.len();
        for place in &places {
            self.leave(place);
        }
        taken
    }

    /// Returns how many sequences wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    fn line(&mut self, place: &Position) -> Option<&mut Line<S>> {
        self.organizations.get_mut(&place.organization)?.get_mut(&place.adapter)
    }
}

impl<V> Default for Shares<V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), active: 0 }
    }
}

impl<V: Default> Shares<V> {
    /// Adds a sequence under `name`.
    fn enter(&mut self, name: &Arc<str>) -> &mut V {
        if self.entries.get(name).is_none_or(|share| share.active == 0) {
            let active = self.entries.values().filter(|share| share.active > 0);
            let lowest = active.map(|share| share.served).min().unwrap_or(0);
            // A name without sequences keeps its counter if it is above the lowest one; a lower counter is lifted
            // anyway.
            self.entries.retain(|_, share| share.active > 0 || share.served > lowest);
            let lifted = Share { served: lowest, active: 0, under: V::default() };
            self.entries.entry(name.clone()).or_insert(lifted);
        }
        self.active += 1;
        let share = self.entries.entry(name.clone());
        let share = share.or_insert_with(|| Share { served: 0, active: 0, under: V::default() });
        share.active += 1;
        &mut share.under
    }

    fn leave(&mut self, name: &Arc<str>) {
        if let Some(share) = self.entries.get_mut(name) {
            share.active -= 1;
            self.active -= 1;
        }
        if self.active == 0 {
            // Nobody competes: counters start again from zero.
            self.entries.clear();
        }
    }

    fn get_mut(&mut self, name: &Arc<str>) -> Option<&mut V> {
        self.entries.get_mut(name).map(|share| &mut share.under)
    }

    /// Returns the names that have a `head` (the arrival of their first sequence), each with its order.
    fn heads(&self, head: impl Fn(&V) -> Option<u64>) -> impl Iterator<Item = (&Arc<str>, Order)> {
        self.entries
            .iter()
            .filter_map(move |(name, share)| Some((name, (share.served, share.active, head(&share.under)?))))
    }

    /// Returns the first of the names that have a `head`, and that arrival.
    fn lowest(&self, head: impl Fn(&V) -> Option<u64>) -> Option<(&Arc<str>, u64)> {
        self.heads(head).min_by_key(|(_, order)| *order).map(|(name, (.., arrival))| (name, arrival))
    }
}

/// Returns the arrival of the first sequence of a line.
fn first<S>(line: &Line<S>) -> Option<u64> {
    line.front().map(|(arrival, _)| *arrival)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(organization: &str, adapter: &str) -> Position {
        Position { organization: organization.into(), adapter: adapter.into() }
    }

    fn next(queue: &FairQueue<u64>) -> Option<Position> {
        queue.next_of(queue.heads().min_by_key(|(_, order)| *order)?.0)
    }

    /// Pops the next sequence and charges it `tokens`.
    fn serve(queue: &mut FairQueue<u64>, tokens: u64) -> u64 {
        let place = next(queue).expect("somebody waits");
        let number = queue.pop(&place).expect("the line of who is next has a first");
        queue.charge(&place, tokens);
        number
    }

    fn queue(places: &[(&str, &str)]) -> FairQueue<u64> {
        let mut queue = FairQueue::default();
        for (number, (organization, adapter)) in places.iter().enumerate() {
            queue.push(&place(organization, adapter), number as u64, number as u64);
        }
        queue
    }

    #[test]
    fn one_line_is_first_in_first_out() {
        let mut queue = queue(&[("a", ""); 5]);
        let order: Vec<_> = (0..5).map(|_| serve(&mut queue, 10)).collect();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert!(queue.len() == 0 && next(&queue).is_none());
    }

    #[test]
    fn a_flood_of_one_organization_does_not_keep_another_waiting() {
        let mut places = vec![("flood", ""); 1000];
        places.push(("single", ""));
        let mut queue = queue(&places);
        assert_eq!((serve(&mut queue, 10), serve(&mut queue, 10)), (1000, 0));
    }

    #[test]
    fn organizations_share_by_tokens_and_not_by_requests() {
        let mut queue = queue(&[[("long", ""); 50], [("short", ""); 50]].concat());
        let mut served = [0, 0];
        for _ in 0..55 {
            let long = next(&queue).expect("somebody waits").organization.as_ref() == "long";
            let tokens = if long { 100 } else { 10 };
            served[usize::from(!long)] += tokens;
            serve(&mut queue, tokens);
        }
        assert_eq!(served, [500, 500]);
    }

    #[test]
    fn adapters_of_an_organization_share_what_it_gets() {
        let places = [[("a", "hot"); 20], [("b", ""); 20]].concat();
        let mut queue = queue(&places);
        queue.push(&place("a", "cold"), 40, 40);
        let order: Vec<_> = (0..4).map(|_| serve(&mut queue, 10)).collect();
        assert_eq!(order, [20, 40, 21, 0], "b, cold, b, hot: a second adapter brings no second share");
    }

    #[test]
    fn who_was_away_has_saved_up_nothing_and_owes_what_it_owed() {
        let mut queue = queue(&[("busy", ""), ("busy", ""), ("other", "")]);
        assert_eq!((serve(&mut queue, 3000), serve(&mut queue, 1000)), (2, 0));
        // `other` was served 3000 and `busy` 1000: a newcomer starts at 1000.
        queue.push(&place("new", ""), 3, 3);
        assert_eq!((serve(&mut queue, 100), serve(&mut queue, 100)), (3, 1));
        queue.leave(&place("other", ""));
        queue.push(&place("other", ""), 4, 4);
        queue.push(&place("new", ""), 5, 5);
        assert_eq!(serve(&mut queue, 100), 5, "a pause does not clear the account");
    }

    #[test]
    fn the_account_of_an_idle_queue_is_empty() {
        let mut queue = queue(&[("a", "x"), ("b", "y")]);
        for name in [("a", "x"), ("b", "y")] {
            serve(&mut queue, 500);
            queue.leave(&place(name.0, name.1));
        }
        assert!(queue.organizations.entries.is_empty());
        // Names without sequences leave nothing behind even if the queue is never idle.
        queue.push(&place("stays", ""), 0, 0);
        for number in 1..2000 {
            let visitor = place(&number.to_string(), &number.to_string());
            queue.push(&visitor, number, number);
            queue.charge(&place("stays", ""), 20);
            queue.charge(&visitor, 10);
            assert_eq!(queue.extract(|one| *one == 0), [number]);
        }
        assert!(queue.organizations.entries.len() < 10, "{}", queue.organizations.entries.len());
    }
}
