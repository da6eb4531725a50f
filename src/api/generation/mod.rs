//! Text, vectors and scores from models. The handlers are in [`completions`], [`chat`], [`responses`], [`embeddings`],
//! [`ranking`], [`tokenize`], and [`engines`], which passes requests in an old form on to the others. All of them
//! resolve the name of the model with [`target`], which also turns the texts of an [`input`] into tokens if there is
//! [`room`] for them. Completions and chat queue their sequences and gather the answers with [`generate`], chat
//! compiles grammars with [`grammars`], and [`responses`] asks as chat does; embeddings and ranking cut or refuse long
//! texts by their [`length`] and have [`rows`] of numbers computed, and embeddings read the token ids of other models
//! with [`foreign_tokens`]. [`foreign_fields`] refuses fields of other APIs that would change an answer.
//! [`stored_completions`] has the answers that chats asked to store, [`conversations`] what responses go on from.
//!
//! [`routes`](fn@super::routes) lists the handlers; they call `engine` and `adapters`.

pub(super) mod chat;
pub(super) mod completions;
pub(super) mod conversations;
pub(super) mod embeddings;
pub(super) mod engines;
pub(super) mod foreign_fields;
pub(super) mod foreign_tokens;
pub(super) mod generate;
pub(super) mod grammars;
pub(super) mod input;
pub(super) mod length;
pub(super) mod ranking;
pub(super) mod responses;
pub(super) mod room;
pub(super) mod rows;
pub(super) mod stored_completions;
pub(super) mod target;
pub(super) mod tokenize;
