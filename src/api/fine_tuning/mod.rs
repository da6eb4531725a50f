//! Fine-tune jobs: the two resources of OpenAI over one queue. [`fine_tuning_jobs`] is the current one, with the
//! estimate of a job; [`fine_tunes`] is the older one, whose events `fine_tunes/event_stream.rs` follows live.
//! [`fields`] reads their bodies, [`job_rules`] holds the checks that both make before a job is queued, [`job_faults`]
//! the words for a failed one.
//!
//! [`routes`](fn@super::routes) lists the handlers; they call `jobs`. The command line estimates a job with the
//! functions of [`fine_tuning_jobs`] that `api` exports.

pub(super) mod event_text;
pub(super) mod fields;
pub(super) mod fine_tunes;
pub(super) mod fine_tuning_jobs;
pub(super) mod job_faults;
pub(super) mod job_rules;
