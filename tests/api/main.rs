//! The API as a document and as a process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod layers;
mod lost_device;
mod openapi;
