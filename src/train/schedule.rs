//! Learning rates.
