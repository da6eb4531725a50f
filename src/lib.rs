//! Attune serves language models and embeddings behind OpenAI's API, fine-tunes LoRA adapters on request, and puts each
//! finished adapter into the running engine: no restart, no second copy of the base model.
//!
//! The layers, from the top down. Each imports only from those below it; `tests/layers.rs` reads this list and fails
//! where an import goes upwards, and from the engine down each layer is a crate, so that the compiler refuses it:
//!
//! 1. [`cli`]: the command line.
//! 2. [`app`]: builds everything once and runs it.
//! 3. [`api`]: HTTP and nothing else: routes, bodies, errors, server-sent events, the OpenAPI document.
//! 4. [`error`]: what ends the program or a command; it wraps the errors of the layers below.
//! 5. [`jobs`]: the queue of fine-tunes in Postgres, its events, and the worker that runs a job.
//! 6. [`adapters`]: PEFT files in and out, and the registry from names to immutable generations.
//! 7. [`teachers`]: models of other servers, asked over HTTP; money in whole millionths.
//! 8. [`sandbox`]: the code of graders, run by an interpreter that can do next to nothing.
//! 9. [`costs`]: a machine of one's own beside prices per token.
//! 10. [`config`]: the one typed configuration, checked once.
//! 11. [`store`]: all other SQL, the private Postgres, and the blobs on disk.
//! 12. [`graders`]: scores of answers: comparisons of texts, templates, formulas; no models and no HTTP.
//! 13. `off_thread`, `descriptors`: work that takes its time, away from the threads that serve requests; how many files
//!     and connections the process may have.
//! 14. [`engine`]: token ids to tokens and vectors; rows of many requests and adapters in one step.
//! 15. [`train`], [`datasets`]: fits an adapter to a dataset; reads training files and renders them to tokens.
//! 16. [`model`]: weights, tokenizer, chat template, LoRA, and the decoder over the kernels for CPU and GPU.
//! 17. [`hub`]: models by name, in the cache or downloaded.
//! 18. [`system`], [`format`]: the machine and the process's memory; figures for people.
//!
//! Nothing but `api` knows the HTTP that is served, and SQL stands in `store` and `jobs` alone. One request and one job
//! are followed from end to end in `docs/architecture.md`.

#![allow(missing_docs, reason = "the program exports nothing: its items are public for its own tests")]

pub mod adapters;
pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod costs;
mod descriptors;
pub mod error;
pub mod graders;
pub mod jobs;
mod off_thread;
pub mod sandbox;
pub mod store;
pub mod teachers;

pub use attune_engine as engine;
pub use attune_hub as hub;
pub use attune_model as model;
pub use attune_support::{format, system};
pub use attune_train::{datasets, train};
pub use error::{Error, Result};
