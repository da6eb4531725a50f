//! Shares the rows of a step out: a row for each answer, the rest for prompts. Called by the scheduler for each step.
//!
//! Rows of the background make a step longer for everybody in it, and for whoever arrives while it is computed. So they
//! are few beside others, and in some steps only; they are few as long as others come; and with nobody there they fill
//! half a step.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{Owner, Scheduler};
use crate::prefix_cache::PrefixKey;

/// Divisor of an organisation's rows for the part of its oldest prompt.
const OLDEST_PROMPT: usize = 4;

/// Adapters that prompts of an organisation may bring into a step beside the answers' own: one for so many answers, and
/// these at least. Each is read from memory once more, whatever few rows it has.
const ANSWERS_PER_NEW_ADAPTER: usize = 8;
const NEW_ADAPTERS: usize = 2;

/// Of so many steps with others in it, one has rows of the background.
const BESIDE_OTHERS: u64 = 8;
/// Divisors of a step's rows for those of the background: beside others, after others were there, and else.
const PART_BESIDE: usize = 64;
const PART_AFTER: usize = 32;
const PART_ALONE: usize = 2;
/// Time for which others that were there may be expected to come again.
const EXPECTED: Duration = Duration::from_secs(5);

impl<T: Owner> Scheduler<T> {
    /// Returns the indices of running sequences with their number of rows in the next step, in the order of admission.
    pub(super) fn shares(&mut self, now: Instant) -> Vec<(usize, usize)> {
        let of_background = self.background_rows(now);
        let mut budget = self.limits.step_tokens();
        if let Some(index) = self.running.iter().position(|sequence| sequence.suspect_until.is_some()) {
            return vec![(index, self.running[index].pending().min(budget))];
        }
        let mut shares = vec![0; self.running.len()];
        let (mut prompts, mut background) = (Vec::new(), Vec::new());
        // Blocks that a prompt is about to compute.
        let mut begun = HashSet::new();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if sequence.background {
                background.push(index);
                continue;
            }
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
        let mut organizations: Vec<(usize, Vec<usize>)> = (self.by_organization(prompts).into_iter())
            .map(|mut prompts| {
                self.defer_new_adapters(&mut prompts);
                (prompts.iter().map(|index| self.running[*index].pending()).sum(), prompts)
            })
            .collect();
        // Who wants less than an equal part leaves the rest to the others.
        organizations.sort_by_key(|(wanted, _)| *wanted);
        let count = organizations.len();
        for (position, (wanted, prompts)) in organizations.into_iter().enumerate() {
            let rows = wanted.min(budget.div_ceil(count - position));
            budget -= rows;
            self.share_among(prompts, rows, &mut shares);
        }
        self.share_in_background(&background, of_background.min(budget), &mut begun, &mut shares);
        shares.into_iter().enumerate().filter(|(_, rows)| *rows > 0).collect()
    }

    /// Returns how many rows of the next step sequences of the background may have.
    fn background_rows(&mut self, now: Instant) -> usize {
        let rows = self.limits.step_tokens();
        if self.running.iter().any(|sequence| !sequence.background) {
            self.last_awaited = Some(now);
            self.awaited_steps += 1;
            let has_turn = self.awaited_steps.is_multiple_of(BESIDE_OTHERS);
            return if has_turn { rows.div_ceil(PART_BESIDE) } else { 0 };
        }
        let expected = self.last_awaited.is_some_and(|last| now.saturating_duration_since(last) < EXPECTED);
        rows.div_ceil(if expected { PART_AFTER } else { PART_ALONE })
    }

    /// Gives `rows` to the sequences `background`, the oldest first: one to each that is answering, then the remainder
    /// to prompts.
    fn share_in_background(
        &mut self,
        background: &[usize],
        mut rows: usize,
        begun: &mut HashSet<PrefixKey>,
        shares: &mut [usize],
    ) {
        for answering in [true, false] {
            for &index in background {
                let sequence = &mut self.running[index];
                if rows == 0 || sequence.is_answering() != answering {
                    continue;
                }
                if !answering {
                    self.happenings.reused_tokens += sequence.catch_up();
                    if sequence.next_block().is_some_and(|key| !begun.insert(key)) {
                        continue;
                    }
                }
                shares[index] = sequence.pending().min(rows);
                rows -= shares[index];
            }
        }
    }

    /// Returns the prompts of each organisation.
    fn by_organization(&self, prompts: Vec<usize>) -> Vec<Vec<usize>> {
        let organization = |index: usize| &self.running[index].place.organization;
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for index in prompts {
            match groups.iter_mut().find(|group| organization(group[0]) == organization(index)) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        groups
    }

    /// Leaves prompts of an organisation for a later step, so that requests that waited for their adapters together do
    /// not delay every answer at once: keeps the oldest prompt and those that need least rows, until they bring as many
    /// new adapters as answers may stand.
    fn defer_new_adapters(&self, prompts: &mut Vec<usize>) {
        let adapter = |index: usize| self.running[index].adapter.as_ref().map(|adapter| adapter.id.as_str());
        let answering = (0..self.running.len()).filter(|index| self.running[*index].is_answering());
        let (answers, mut adapters) = answering.fold((0, HashSet::from([None])), |(count, mut adapters), index| {
            adapters.insert(adapter(index));
            (count + 1, adapters)
        });
        if answers == 0 {
            return;
        }
        let most = adapters.len() + NEW_ADAPTERS.max(answers / ANSWERS_PER_NEW_ADAPTER);
        let mut order = prompts.clone();
        order.get_mut(1..).unwrap_or_default().sort_by_key(|index| self.running[*index].pending());
        for index in order {
            if adapters.len() < most {
                adapters.insert(adapter(index));
            }
        }
        prompts.retain(|index| adapters.contains(&adapter(*index)));
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
