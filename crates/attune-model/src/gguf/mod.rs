//! GGUF files: one file, or several shards, with a model's configuration, tokenizer, chat template and weights, as
//! llama.cpp reads them. The weights stay in the file's own blocks.
//!
//! `file.rs` reads the header and maps the tensors, `metadata.rs` holds the keys; `tokenizer.rs`, `template.rs` and
//! `sampling.rs` translate those about text. Called by
//! [`Checkpoint`](crate::checkpoint::Checkpoint).

mod cursor;
pub mod file;
mod header;
pub mod metadata;
pub mod sampling;
mod shards;
pub mod template;
pub mod tokenizer;
mod types;

pub use file::{Gguf, GgufTensor};
pub use metadata::{Metadata, Number, Numbers, Value};
