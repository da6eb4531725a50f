//! Shares the rows of a step out: a row for each answer, the rest for prompts. Called by the scheduler for each step.

use std::collections::HashSet;

use super::{Owner, Scheduler};

/// Divisor of an organisation's rows for the part of its oldest prompt.
const OLDEST_PROMPT: usize = 4;

impl<T: Owner> Scheduler<T> {
    /// Returns the indices of running sequences with their number of rows in the next step, in the order of admission.
    pub(super) fn shares(&mut self) -> Vec<(usize, usize)> {
        let mut budget = self.limits.step_tokens();
        if let Some(index) = self.running.iter().position(|sequence| sequence.suspect_until.is_some()) {
            return vec![(index, self.running[index].pending().min(budget))];
        }
        let mut shares = vec![0; self.running.len()];
        let mut prompts = Vec::new();
        // Blocks that a prompt is about to compute.
        let mut begun = HashSet::new();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if sequence.is_answering() {
                shares[index] = budget.min(1);
                budget -= shares[index];
                continue;
            }
            self.happenings.reused_tokens += sequence.catch_up();
            if sequence.next_block().is_none_or(|key| begun.insert(key)) {
                prompts.push(index);
            }
        }
        let mut organizations = self.by_organization(prompts);
        // Who wants less than an equal part leaves the rest to the others.
        organizations.sort_by_key(|(wanted, _)| *wanted);
        let count = organizations.len();
        for (position, (wanted, prompts)) in organizations.into_iter().enumerate() {
            let rows = wanted.min(budget.div_ceil(count - position));
            budget -= rows;
            self.share_among(prompts, rows, &mut shares);
        }
        shares.into_iter().enumerate().filter(|(_, rows)| *rows > 0).collect()
    }

    /// Returns the prompts of each organisation with the number of rows that they need.
    fn by_organization(&self, prompts: Vec<usize>) -> Vec<(usize, Vec<usize>)> {
        let organization = |index: usize| &self.running[index].place.organization;
        let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
        for index in prompts {
            let pending = self.running[index].pending();
            match groups.iter_mut().find(|(_, group)| organization(group[0]) == organization(index)) {
                Some((wanted, group)) => {
                    *wanted += pending;
                    group.push(index);
                }
                None => groups.push((pending, vec![index])),
            }
        }
        groups
    }

    /// Gives a quarter of `rows` to the first of `prompts`, the oldest, and the remainder to those that need least.
    fn share_among(&self, mut prompts: Vec<usize>, mut rows: usize, shares: &mut [usize]) {
        if let Some(oldest) = prompts.first() {
            shares[*oldest] = self.running[*oldest].pending().min(rows.div_ceil(OLDEST_PROMPT));
            rows -= shares[*oldest];
        }
        prompts.sort_by_key(|index| self.running[*index].pending() - shares[*index]);
        for index in prompts {
            let more = (self.running[index].pending() - shares[index]).min(rows);
            shares[index] += more;
            rows -= more;
        }
    }
}
