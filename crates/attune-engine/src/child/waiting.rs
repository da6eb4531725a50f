//! Requests that wait for a place in the engine of another process: organisations take turns, and requests that nobody
//! waits for come last.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What waits, in turns of organisations.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    /// Of clients, and of the background.
    lanes: [Lane<T>; 2],
}

#[derive(Debug)]
struct Lane<T> {
    /// Organisations with something waiting, the next one first.
    turns: VecDeque<Arc<str>>,
    waiting: HashMap<Arc<str>, VecDeque<T>>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        let lane = || Lane { turns: VecDeque::new(), waiting: HashMap::new() };
        Self { lanes: [lane(), lane()] }
    }
}

impl<T> Waiting<T> {
    /// Adds `item` behind all that its organisation has waiting.
    pub(super) fn push(&mut self, organization: &Arc<str>, background: bool, item: T) {
        let lane = &mut self.lanes[usize::from(background)];
        let own = lane.waiting.entry(organization.clone()).or_default();
        if own.is_empty() {
            lane.turns.push_back(organization.clone());
        }
        own.push_back(item);
    }

    /// Takes the next item.
    pub(super) fn pop(&mut self) -> Option<T> {
        self.lanes.iter_mut().find_map(Lane::pop)
    }

    /// Takes all items for which `is_over` is true.
    pub(super) fn take(&mut self, mut is_over: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for lane in &mut self.lanes {
            for own in lane.waiting.values_mut() {
                let (over, kept) = std::mem::take(own).into_iter().partition(|item| is_over(item));
                *own = kept;
                let over: VecDeque<T> = over;
                taken.extend(over);
            }
            lane.waiting.retain(|_, own| !own.is_empty());
            lane.turns.retain(|organization| lane.waiting.contains_key(organization));
        }
        taken
    }

    /// Returns how many wait.
    pub(super) fn len(&self) -> usize {
        self.lanes.iter().flat_map(|lane| lane.waiting.values()).map(VecDeque::len).sum()
    }
}

impl<T> Lane<T> {
    fn pop(&mut self) -> Option<T> {
        let organization = self.turns.pop_front()?;
        let own = self.waiting.get_mut(&organization)?;
        let item = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&organization);
        } else {
            self.turns.push_back(organization);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn organisations_take_turns_and_the_background_comes_last() {
        let mut waiting = Waiting::default();
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        waiting.push(&one, true, 9);
        for item in 0..3 {
            waiting.push(&one, false, item);
        }
        waiting.push(&two, false, 5);
        assert_eq!(waiting.len(), 5);
        let order: Vec<i32> = std::iter::from_fn(|| waiting.pop()).collect();
        assert_eq!(order, [0, 5, 1, 2, 9]);
    }

    #[test]
    fn what_is_over_leaves_and_the_rest_keeps_its_order() {
        let mut waiting = Waiting::default();
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        for item in 0..4 {
            waiting.push(&one, false, item);
        }
        waiting.push(&two, false, 7);
        let mut taken = waiting.take(|item| item % 2 == 1);
        taken.sort_unstable();
        assert_eq!(taken, [1, 3, 7]);
        assert_eq!(std::iter::from_fn(|| waiting.pop()).collect::<Vec<_>>(), [0, 2]);
    }
}
