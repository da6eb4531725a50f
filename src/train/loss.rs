//! Chunked cross entropy.
