//! Fine-tune jobs: the queue and the worker, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/faults.rs"]
mod faults;
#[path = "../common/fixtures.rs"]
mod fixtures;
#[path = "../common/postgres.rs"]
mod postgres;
#[path = "../common/training.rs"]
mod training;

mod adapter_tiers;
mod checkpoints;
mod classification;
mod estimates;
mod evaluation;
mod fences;
mod pairs;
mod preferences;
mod queue;
mod recomputation;
mod retention;
mod right_answers;
mod runs;
mod settings;
mod statements;
mod storage;
mod sweeps;
