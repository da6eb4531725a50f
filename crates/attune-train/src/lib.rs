//! Training files and training: [`datasets`] reads and checks files and renders them to tokens, each with a weight;
//! [`train`] fits a LoRA adapter to them over the same base weights that are serving. Driven by the worker of `jobs`.

pub mod datasets;
pub mod error;
mod purpose;
pub mod train;

pub use error::{ClassFault, Error, FileFault, Result};
