//! Which cache block belongs to whom.
