//! Graders: what gives an answer of a model a score. Pure functions over texts and JSON; nothing here knows HTTP, models
//! or the database.
//!
//! [`spec`] reads a grader from JSON and checks it; [`template`] fills `{{item.…}}` and `{{sample.…}}` into texts;
//! [`metrics`] compares two texts; [`item_schema`] says which items an eval takes; [`expression`] combines the scores of several graders; [`statistics`] says how far
//! the share of passed items can be trusted. `api` runs graders and asks models on their behalf.

pub mod expression;
pub mod item_schema;
pub mod metrics;
pub mod spec;
pub mod statistics;
pub mod template;
