//! Incremental text.
