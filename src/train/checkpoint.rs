//! Resumable state.
