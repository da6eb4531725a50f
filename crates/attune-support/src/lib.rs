//! Small helpers for every layer: [`system`] describes the machine and this process's memory, [`format`] writes figures
//! for people.

pub mod format;
pub mod system;
