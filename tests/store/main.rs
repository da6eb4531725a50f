//! What is stored: files, models, keys and usage, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/postgres.rs"]
mod postgres;

mod keys_and_usage;
mod store;
