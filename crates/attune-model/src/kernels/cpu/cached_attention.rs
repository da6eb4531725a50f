//! Attention of a serving step over the paged cache: every row looks back over its own sequence's blocks.
//!
//! The keys are taken in spans of [`SPAN`] positions, counted from the sequence's beginning. A span gives its largest
//! score, the sum of its exponentials and its share of the output; spans are merged in their order (Dao et al.,
//! "FlashAttention", 2022, section 3.1). So a row's result has the same bits however its prompt was cut into steps,
//! whatever else is in the step, and however the spans were shared out among threads.

use std::cell::Cell;
use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::dots::{dot_8, weighted_sum};
use super::lanes::{Kernel, LANES, Lanes, dispatch};
use super::{SharedSlice, Values, activations, tensor, vector, with_values_mut};
use crate::Result;
use crate::kernels::{AttentionForm, SequenceRows};
use crate::kv_cache::BLOCK_TOKENS;

/// Positions in a span; a whole number of blocks.
const SPAN: usize = 256;
/// Rows of one sequence that read a span together.
const TILE: usize = 8;
/// Multiplications below which another thread is not worth its call.
const SERIAL_WORK: usize = 1 << 16;
/// Multiplications of one task, about; long contexts are shared out among threads by spans.
const TASK_WORK: usize = 1 << 19;

thread_local! {
    /// Scratch memory. Taken out while in use, so that it is never used twice at a time.
    static BUFFERS: Cell<Buffers> = const { Cell::new(Buffers { scores: Vec::new(), sum: Vec::new(), part: Vec::new() }) };
}

#[derive(Default)]
struct Buffers {
    /// Scores of one span, then their exponentials, `[queries, SPAN]`.
    scores: Vec<f32>,
    /// Merged results of the spans so far, `[queries, head_dim + 2]`.
    sum: Vec<f32>,
    /// Result of one span, laid out like `sum`.
    part: Vec<f32>,
}

/// Inputs and sizes that all tasks of a call share.
struct Attention<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    form: AttentionForm,
    /// `[heads]`
    sinks: Option<&'a [f32]>,
}

/// Some rows of a sequence with all query heads of one key-value head, over some of their spans.
#[derive(Clone)]
struct HeadTask<'a> {
    sequence: &'a SequenceRows<'a>,
    rows: Range<usize>,
    kv_head: usize,
    spans: Range<usize>,
    /// Index of the task's first part, of parts `[spans, queries]` with `head_dim + 2` values each; `None` if the task
    /// has all spans.
    parts: Option<usize>,
}

/// See [`crate::kernels::Kernels::cached_attention`].
pub fn forward(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    sequences: &[SequenceRows<'_>],
    form: AttentionForm,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    let (rows, heads, head_dim) = q.dims3()?;
    let (_, kv_heads, _) = keys.dims3()?;
    let (queries, keys, values) = (Values::of(q)?, Values::of(keys)?, Values::of(values)?);
    let sinks = sinks.map(Values::of).transpose()?;
    let attention = Attention {
        queries: &queries,
        keys: &keys,
        values: &values,
        heads,
        kv_heads,
        head_dim,
        form,
        sinks: sinks.as_deref(),
    };
    let (tasks, parts) = attention.tasks(sequences);
    let mut out = vec![0.0; rows * heads * head_dim];
    let mut split = vec![0.0; parts * (head_dim + 2)];
    let (shared_out, shared_split) = (SharedSlice::new(&mut out), SharedSlice::new(&mut split));
    let work: usize = tasks.iter().map(|task| attention.work(task)).sum();
    if work < SERIAL_WORK {
        for task in &tasks {
            attention.run(task, shared_out, shared_split);
        }
    } else {
        tasks.par_iter().for_each(|task| attention.run(task, shared_out, shared_split));
    }
    attention.merge_split(&tasks, &split, shared_out);
    tensor(out, (rows, heads, head_dim))
}

/// Writes both tensors of the `cache` in one pass, see [`crate::kernels::Kernels::write_cache`].
pub fn write(cache: &[Tensor; 2], k: &Tensor, v: &Tensor, sequences: &[SequenceRows<'_>]) -> Result<()> {
    let (_, kv_heads, head_dim) = k.dims3()?;
    let width = kv_heads * head_dim;
    let sources = [Values::of(k)?, Values::of(v)?];
    with_values_mut(cache, &|cache| {
        for (source, cache) in sources.iter().zip(cache) {
            for sequence in sequences {
                for (row, position) in sequence.rows.clone().zip(sequence.start..) {
                    let slot = sequence.slot(position) * width;
                    // SAFETY: no other slice of the cache is in use.
                    unsafe { cache.slice(slot..slot + width) }.copy_from_slice(&source[row * width..(row + 1) * width]);
                }
            }
        }
        Ok(())
    })
}

impl SequenceRows<'_> {
    /// Returns the cache's slot of `position`.
    fn slot(&self, position: usize) -> usize {
        self.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
    }

    /// Returns the positions that `row` sees.
    fn seen(&self, row: usize, window: Option<usize>) -> Range<usize> {
        let end = self.start + (row - self.rows.start) + 1;
        window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

impl Attention<'_> {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn part_len(&self) -> usize {
        self.head_dim + 2
    }

    /// Splits the rows into tiles, and few rows with many spans by spans too. Also returns the number of parts that the
    /// latter tasks write.
    fn tasks<'a>(&self, sequences: &'a [SequenceRows<'a>]) -> (Vec<HeadTask<'a>>, usize) {
        let mut tasks = Vec::new();
        let mut parts = 0;
        for sequence in sequences {
            for first in sequence.rows.clone().step_by(TILE) {
                let rows = first..(first + TILE).min(sequence.rows.end);
                let spans = sequence.seen(first, self.form.window).start / SPAN
                    ..sequence.seen(rows.end - 1, self.form.window).end.div_ceil(SPAN);
                let work = rows.len() * self.group() * SPAN * self.head_dim * 2;
                let spans_each = (TASK_WORK / work).max(1);
                // A tile of many rows is enough work for one task, which then writes no parts.
                let whole = rows.len() > 1 || spans.len() < 2 * spans_each;
                for kv_head in 0..self.kv_heads {
                    if whole {
                        tasks.push(HeadTask {
                            sequence,
                            rows: rows.clone(),
                            kv_head,
                            spans: spans.clone(),
                            parts: None,
                        });
                        continue;
                    }
                    for first in spans.clone().step_by(spans_each) {
                        let spans = first..(first + spans_each).min(spans.end);
                        let count = spans.len() * rows.len() * self.group();
                        tasks.push(HeadTask { sequence, rows: rows.clone(), kv_head, spans, parts: Some(parts) });
                        parts += count;
                    }
                }
            }
        }
        (tasks, parts)
    }

    fn work(&self, task: &HeadTask<'_>) -> usize {
        let positions = task.spans.len() * SPAN;
        let positions = positions.min(task.sequence.seen(task.rows.end - 1, None).end);
        task.rows.len() * self.group() * positions * self.head_dim * 2
    }

    fn run(&self, task: &HeadTask<'_>, out: SharedSlice<'_>, split: SharedSlice<'_>) {
        let Buffers { mut scores, mut sum, mut part } = BUFFERS.take();
        let queries = task.rows.len() * self.group();
        scores.resize(queries * SPAN, 0.0);
        part.resize(queries * self.part_len(), 0.0);
        sum.clear();
        sum.resize(queries * self.part_len(), 0.0);
        let places = |query: usize| query * self.part_len()..(query + 1) * self.part_len();
        for (index, span) in task.spans.clone().enumerate() {
            let positions = span * SPAN..(span + 1) * SPAN;
            dispatch(Scores { attention: self, task, positions: &positions, to: &mut scores });
            for query in 0..queries {
                let seen = overlap(&task.seen_by(query / self.group(), self.form.window), &positions);
                let part = &mut part[places(query)];
                part.fill(0.0);
                if seen.is_empty() {
                    continue;
                }
                let scores = &mut scores[query * SPAN..][seen.start - positions.start..seen.end - positions.start];
                if let Some(cap) = self.form.cap {
                    activations::soft_cap(scores, 1.0, cap);
                }
                part[0] = vector::max(scores);
                part[1] = vector::exp_and_sum(scores, part[0]);
            }
            dispatch(Outputs { attention: self, task, positions: &positions, weights: &scores, parts: &mut part });
            if let Some(first) = task.parts {
                let start = (first + index * queries) * self.part_len();
                // SAFETY: each task has parts of its own.
                unsafe { split.slice(start..start + part.len()) }.copy_from_slice(&part);
            } else {
                for query in 0..queries {
                    merge(&mut sum[places(query)], &part[places(query)], index == 0);
                }
            }
        }
        if task.parts.is_none() {
            for query in 0..queries {
                self.finish(task, query, &sum[places(query)], out);
            }
        }
        BUFFERS.set(Buffers { scores, sum, part });
    }

    /// Merges the parts of tasks over some of a row's spans; such tasks follow each other.
    fn merge_split(&self, tasks: &[HeadTask<'_>], split: &[f32], out: SharedSlice<'_>) {
        let mut sums = Vec::new();
        for same in tasks.chunk_by(|a, b| a.rows == b.rows && a.kv_head == b.kv_head) {
            let Some(first) = same[0].parts else { continue };
            let queries = same[0].rows.len() * self.group();
            let spans: usize = same.iter().map(|task| task.spans.len()).sum();
            for query in 0..queries {
                sums.resize(self.part_len(), 0.0);
                for span in 0..spans {
                    let start = (first + span * queries + query) * self.part_len();
                    merge(&mut sums, &split[start..start + self.part_len()], span == 0);
                }
                self.finish(&same[0], query, &sums, out);
            }
        }
    }

    fn finish(&self, task: &HeadTask<'_>, query: usize, sum: &[f32], out: SharedSlice<'_>) {
        let start = self.place(task, query);
        // SAFETY: each row and head is finished once.
        let out = unsafe { out.slice(start..start + self.head_dim) };
        out.copy_from_slice(&sum[2..]);
        // The sink's part of the sum, relative to the largest score as the others are.
        let head = start / self.head_dim % self.heads;
        let sink = self.sinks.map_or(0.0, |sinks| vector::exp(sinks[head] - sum[0]));
        vector::scale(out, 1.0 / (sum[1] + sink));
    }

    /// Returns the offset of the `query`, counted within the task, in queries and output.
    fn place(&self, task: &HeadTask<'_>, query: usize) -> usize {
        let row = task.rows.start + query / self.group();
        let head = task.kv_head * self.group() + query % self.group();
        (row * self.heads + head) * self.head_dim
    }
}

impl HeadTask<'_> {
    /// Returns the positions that the task's row `index` sees.
    fn seen_by(&self, index: usize, window: Option<usize>) -> Range<usize> {
        self.sequence.seen(self.rows.start + index, window)
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Merges a span's result into that of the spans before it. Both consist of the largest score, the sum of the
/// exponentials relative to it (0 if no position is seen) and the sum of the values weighted by them.
fn merge(sum: &mut [f32], part: &[f32], first: bool) {
    if first || sum[1] == 0.0 {
        sum.copy_from_slice(part);
    } else if part[1] != 0.0 {
        let max = sum[0].max(part[0]);
        let (before, now) = (vector::exp(sum[0] - max), vector::exp(part[0] - max));
        sum[0] = max;
        for (sum, part) in sum[1..].iter_mut().zip(&part[1..]) {
            *sum = *sum * before + *part * now;
        }
    }
}

/// Scaled products of a task's queries with the keys at `positions`, undefined for keys that a query does not see.
struct Scores<'a> {
    attention: &'a Attention<'a>,
    task: &'a HeadTask<'a>,
    positions: &'a Range<usize>,
    to: &'a mut [f32],
}

#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
#[allow(clippy::needless_range_loop, reason = "unrolled by lane")]
impl Kernel for Scores<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { attention, task, positions, to } = self;
        let Attention { queries, keys, kv_heads, head_dim, form, .. } = *attention;
        let AttentionForm { window, scale, .. } = form;
        let group = attention.group();
        assert!(to.len() >= task.rows.len() * group * SPAN, "every query has its scores");
        let all = task.seen_by(0, window).start..task.seen_by(task.rows.len() - 1, window).end;
        let all = overlap(&all, positions);
        // Eight keys at a time, all in one block, are read once for all queries.
        for first in (all.start - all.start % LANES..all.end).step_by(LANES) {
            let slot = task.sequence.slot(first);
            assert!((slot + LANES) * kv_heads * head_dim <= keys.len(), "blocks lie inside the cache");
            let mut lines = [keys.as_ptr(); LANES];
            for lane in 0..LANES {
                // SAFETY: as asserted.
                lines[lane] = unsafe { lines[lane].add(((slot + lane) * kv_heads + task.kv_head) * head_dim) };
            }
            for row in 0..task.rows.len() {
                let seen = task.seen_by(row, window);
                if first + LANES <= seen.start || first >= seen.end {
                    continue;
                }
                for query in row * group..(row + 1) * group {
                    let start = attention.place(task, query);
                    let query_values = &queries[start..start + head_dim];
                    // SAFETY: all lines hold `head_dim` values; the scores have places for the whole span.
                    unsafe {
                        let products: L = dot_8(query_values.as_ptr(), lines, head_dim);
                        let place = to.as_mut_ptr().add(query * SPAN + first - positions.start);
                        products.times(L::splat(scale)).store(place);
                    }
                }
            }
        }
    }
}

/// Sums of the values at `positions` by their weights, added to each part after its first two values.
struct Outputs<'a> {
    attention: &'a Attention<'a>,
    task: &'a HeadTask<'a>,
    positions: &'a Range<usize>,
    weights: &'a [f32],
    parts: &'a mut [f32],
}

#[allow(clippy::inline_always, reason = "must be compiled with the instructions of the caller")]
impl Kernel for Outputs<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { attention, task, positions, weights, parts } = self;
        let Attention { values, kv_heads, head_dim, form: AttentionForm { window, .. }, .. } = *attention;
        let (group, part_len) = (attention.group(), attention.part_len());
        let all = task.seen_by(0, window).start..task.seen_by(task.rows.len() - 1, window).end;
        let all = overlap(&all, positions);
        // The values of a block are read once for all queries.
        for first in (all.start - all.start % BLOCK_TOKENS..all.end).step_by(BLOCK_TOKENS) {
            let slot = task.sequence.slot(first);
            for row in 0..task.rows.len() {
                let seen = overlap(&task.seen_by(row, window), &(first..first + BLOCK_TOKENS));
                let seen = overlap(&seen, positions);
                if seen.is_empty() {
                    continue;
                }
                let start = ((slot + seen.start - first) * kv_heads + task.kv_head) * head_dim;
                let lines = &values[start..][..(seen.len() - 1) * kv_heads * head_dim + head_dim];
                for query in row * group..(row + 1) * group {
                    let weights = &weights[query * SPAN + seen.start - positions.start..][..seen.len()];
                    let part = &mut parts[query * part_len + 2..(query + 1) * part_len];
                    // SAFETY: the caller promises the instructions.
                    unsafe { weighted_sum::<L>(part, weights, lines, kv_heads * head_dim) };
                }
            }
        }
    }
}
