//! What operators and every client need besides. [`health`] tells whether the server is alive and ready, and its
//! metrics, which [`figures`] reads for the page; [`usage`] sums up what an organisation used; [`files`] holds uploads
//! and results, [`uploads`] takes files in parts; [`lifetimes`] says how long they stay. [`checks`] are rules that fields of
//! several resources have in common, and [`stored_answers`] the fields by which several choose stored answers.
//!
//! [`routes`](fn@super::routes) lists the handlers; they call `store`. `app` starts the metrics, and later rooms use
//! [`checks`], [`lifetimes`] and [`stored_answers`].

pub(super) mod checks;
pub(super) mod figures;
pub(super) mod files;
pub(super) mod health;
pub(super) mod lifetimes;
pub(super) mod stored_answers;
pub(super) mod uploads;
pub(super) mod usage;
