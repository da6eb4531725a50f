//! GGUF files: one file, or several shards, with a model's configuration, tokenizer, chat template and weights, as
//! llama.cpp reads them. The weights stay in the file's own blocks.
//!
//! `file.rs` reads the header and maps the tensors, `metadata.rs` holds the keys. `config.rs` translates keys to what
//! `config.json` says, `tensors.rs` the tensors' names, `vectors.rs` to how vectors are made; `source.rs` hands out the tensors. Called by
//! [`Checkpoint`](crate::checkpoint::Checkpoint).

pub mod architecture;
pub mod config;
mod cursor;
pub mod file;
mod header;
pub mod lora;
pub mod metadata;
pub mod sampling;
mod shards;
pub(crate) mod source;
pub mod template;
pub mod tensors;
pub mod tokenizer;
mod types;
pub(crate) mod vectors;
pub mod writer;

pub use architecture::Architecture;
pub use file::{Gguf, GgufTensor};
pub use metadata::{Metadata, Number, Numbers, Value};
pub(crate) use shards::later_shard;
