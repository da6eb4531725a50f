//! Attune serves language models and embeddings behind OpenAI's API, fine-tunes LoRA adapters on request, and puts each
//! finished adapter into the running engine: no restart, no second copy of the base model.
//!
//! The map, from the outside in:
//! - [`config`] is the one typed configuration; [`app`] builds everything once and runs it.
//! - [`api`] speaks HTTP and nothing else: routes, bodies, errors, server-sent events, the OpenAPI document.
//! - [`engine`] turns token ids into tokens and vectors: it batches rows of many requests and adapters into one step.
//! - [`model`] is what a model is: configuration, weights, tokenizer, chat template, and the decoder's forward pass over
//!   the kernels for CPU and GPU.
//! - [`adapters`] are LoRA weights: PEFT files in and out, and the registry from names to immutable generations.
//! - [`datasets`] reads and checks training files and renders them to tokens with a loss mask.
//! - [`train`] fits an adapter to a dataset: explicit backward pass, loss, optimizer, checkpoints.
//! - [`jobs`] is the queue in Postgres, its events, and the worker that runs a job.
//! - [`machine`] tells of the machine and of the process's memory, [`words`] writes figures for people.
//! - [`store`] is all other SQL, the private Postgres and the blobs on disk.
//!
//! Calls go downwards only: nothing but `api` knows HTTP, and SQL stands in `store` and `jobs` alone. One request and one
//! job are followed from end to end in `docs/architecture.md`.

pub mod adapters;
pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod error;
pub mod jobs;
mod off_thread;
pub mod store;

pub use attune_engine as engine;
pub use attune_model as model;
pub use attune_support::{format, system};
pub use attune_train::{datasets, train};
pub use error::{Error, Result};
