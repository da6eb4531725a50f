//! Who calls, what the caller may use, and what is used.

pub(super) mod auth;
pub(super) mod limits;
pub(super) mod meter;
