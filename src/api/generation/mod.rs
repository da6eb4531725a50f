//! Text and vectors from models: chat, completions, embeddings, tokens, and the model that a name stands for.

pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;
pub(super) mod engines;
pub(super) mod foreign_tokens;
pub(super) mod generate;
pub(super) mod target;
pub(super) mod tokenize;
