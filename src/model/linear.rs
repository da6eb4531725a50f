//! Frozen linear layers.
