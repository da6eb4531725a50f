//! What operators and every client need besides: health, usage, files.

pub(super) mod checks;
pub(super) mod files;
pub(super) mod health;
pub(super) mod usage;
