//! Names to immutable generations.
