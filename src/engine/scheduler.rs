//! Composes steps.
