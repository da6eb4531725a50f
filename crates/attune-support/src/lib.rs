//! Small helpers for every layer: [`system`] tells of the machine and of this process's memory, [`format`] writes
//! figures for people.

pub mod format;
pub mod system;
