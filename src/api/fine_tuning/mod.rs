//! Fine-tunes: both resources of OpenAI over one queue, their rules and their events.

pub(super) mod event_stream;
pub(super) mod event_text;
pub(super) mod fine_tunes;
pub(super) mod fine_tuning_jobs;
pub(super) mod job_rules;
