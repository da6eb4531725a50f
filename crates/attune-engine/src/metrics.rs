//! Counts and measures an engine's work, for `/metrics`. One [`EngineMetrics`] per engine, labelled with the base
//! model's id: the handles are made once, since some are used for every token.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

use super::kv::BlockAllocator;
use super::request::TokenTime;
use super::scheduler::{Happenings, Scheduler};
use super::sequence::Owner;

/// Metrics of one engine.
#[derive(Clone)]
pub(super) struct EngineMetrics {
    steps: Counter,
    failed_steps: Counter,
    restarts: Counter,
    step_rows: Histogram,
    preemptions: Counter,
    yields: Counter,
    prefix_hits: Counter,
    queue_time: Histogram,
    time_to_first_token: Histogram,
    time_between_tokens: Histogram,
    waiting: Gauge,
    running: Gauge,
    blocks_used: Gauge,
    blocks_cached: Gauge,
    blocks_free: Gauge,
}

impl EngineMetrics {
    /// Creates the metrics of the engine of `model`.
    pub(super) fn new(model: &str) -> Self {
        describe();
        let model = || model.to_owned();
        Self {
            steps: counter!("attune_engine_steps_total", "model" => model()),
            failed_steps: counter!("attune_engine_failed_steps_total", "model" => model()),
            restarts: counter!("attune_engine_restarts_total", "model" => model()),
            step_rows: histogram!("attune_step_rows", "model" => model()),
            preemptions: counter!("attune_preemptions_total", "model" => model()),
            yields: counter!("attune_yields_total", "model" => model()),
            prefix_hits: counter!("attune_prefix_hit_tokens_total", "model" => model()),
            queue_time: histogram!("attune_queue_seconds", "model" => model()),
            time_to_first_token: histogram!("attune_time_to_first_token_seconds", "model" => model()),
            time_between_tokens: histogram!("attune_time_between_tokens_seconds", "model" => model()),
            waiting: gauge!("attune_queue_waiting", "model" => model()),
            running: gauge!("attune_running_sequences", "model" => model()),
            blocks_used: gauge!("attune_kv_blocks_used", "model" => model()),
            blocks_cached: gauge!("attune_kv_blocks_cached", "model" => model()),
            blocks_free: gauge!("attune_kv_blocks_free", "model" => model()),
        }
    }

    /// Counts a step of `rows` rows that begins.
    pub(super) fn step(&self, rows: usize) {
        self.steps.increment(1);
        self.step_rows.record(rows as f64);
    }

    /// Counts a step that could not be computed.
    pub(super) fn step_failed(&self) {
        self.failed_steps.increment(1);
    }

    /// Counts a restart of the engine's loop.
    pub(super) fn restarted(&self) {
        self.restarts.increment(1);
    }

    /// Counts the scheduler's happenings.
    pub(super) fn happened(&self, happenings: &Happenings) {
        self.preemptions.increment(happenings.preemptions);
        self.yields.increment(happenings.yields);
        self.prefix_hits.increment(happenings.reused_tokens as u64);
        happenings.waits.iter().for_each(|wait| self.queue_time.record(wait.as_secs_f64()));
    }

    /// Records how long a sequence of an engine without a scheduler waited.
    pub(super) fn waited(&self, wait: Duration) {
        self.queue_time.record(wait.as_secs_f64());
    }

    /// Counts a drawn token and records its time.
    pub(super) fn token(&self, time: TokenTime) {
        let record = |histogram: &Histogram, time: Duration| histogram.record(time.as_secs_f64());
        match time {
            TokenTime::First(time) => record(&self.time_to_first_token, time),
            TokenTime::Next(time) => record(&self.time_between_tokens, time),
        }
    }

    /// Sets the gauges of work that another process does.
    pub(super) fn elsewhere(&self, waiting: usize, running: usize) {
        self.waiting.set(waiting as f64);
        self.running.set(running as f64);
    }

    /// Sets the gauges of waiting and running work.
    pub(super) fn load<T: Owner>(&self, scheduler: &Scheduler<T>) {
        self.waiting.set(scheduler.waiting_count() as f64);
        self.running.set(scheduler.running_count() as f64);
        let blocks: &BlockAllocator = scheduler.allocator();
        self.blocks_used.set(blocks.used() as f64);
        self.blocks_cached.set(blocks.kept() as f64);
        self.blocks_free.set(blocks.free() as f64);
    }
}

fn describe() {
    describe_counter!("attune_engine_steps_total", "Steps computed.");
    describe_counter!("attune_engine_failed_steps_total", "Steps that failed, and their repeated parts that did.");
    describe_counter!("attune_engine_restarts_total", "Times that an engine's loop had to be started again.");
    describe_histogram!("attune_step_rows", "Token rows in a step.");
    describe_counter!("attune_preemptions_total", "Sequences that gave up their cache blocks because none was left.");
    describe_counter!("attune_yields_total", "Sequences that gave their place up to another organisation.");
    describe_counter!("attune_prefix_hit_tokens_total", "Prompt tokens found in the cache.");
    describe_histogram!("attune_queue_seconds", Unit::Seconds, "Time from a sequence's arrival to its admission.");
    describe_histogram!(
        "attune_time_to_first_token_seconds",
        Unit::Seconds,
        "Time from a request's arrival to its first token."
    );
    describe_histogram!(
        "attune_time_between_tokens_seconds",
        Unit::Seconds,
        "Time from one token of an answer to the next."
    );
    describe_gauge!("attune_queue_waiting", "Sequences waiting for admission.");
    describe_gauge!("attune_running_sequences", "Sequences running.");
    describe_gauge!("attune_kv_blocks_used", "Cache blocks in use.");
    describe_gauge!("attune_kv_blocks_cached", "Cache blocks that nobody uses, kept for requests that begin alike.");
    describe_gauge!("attune_kv_blocks_free", "Cache blocks without content.");
}
