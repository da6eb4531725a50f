//! LoRA adapters outside the decoder: their PEFT files, and the registry from names to immutable generations.
//!
//! The trainer makes adapters, the engine applies them, the API resolves names to them. [`registry`] hands leases out;
//! [`tiers`] says what is in memory; [`peft`] reads and writes the files.

mod error;
pub mod import;
mod limits;
pub mod peft;
pub mod pieces;
pub mod registry;
pub mod status;
pub mod tiers;
mod verified;

pub use error::{Error, Result};
