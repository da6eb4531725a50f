//! Training files.
