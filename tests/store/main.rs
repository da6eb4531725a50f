//! The store: files, models, keys, usage and responses, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/postgres.rs"]
mod postgres;

mod aliases;
mod blobs;
mod conversations;
mod evals;
mod files;
mod keys_and_usage;
mod lists;
mod models;
mod page_sessions;
mod pool;
mod responses;
mod support;
mod sweeps;
mod webhooks;
