//! Draws tokens.
