//! Pairs of texts to scores: a classifier with one label reads both texts as one input. Called by `rerank` and `score`.

use std::sync::Arc;

use crate::api::generation::input::{Item, Place};
use crate::api::generation::length::Length;
use crate::api::generation::room::{Room, too_many_tokens};
use crate::api::generation::rows::{self, EmbeddingUsage};
use crate::api::generation::target::Target;
use crate::api::http::error::{Problem, Result};
use crate::engine::{EmbedInput, EmbedOutput};
use crate::model::BaseModel;
use crate::model::classifier::ScoreForm;

/// Largest number of tokens of all pairs of one request together.
const MAX_TOKENS: usize = 1 << 20;

/// Two texts that are scored together.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// The question, which many pairs may share.
    pub first: Arc<str>,
    /// The document.
    pub second: String,
}

/// The scorer of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scorer {
    /// The field of the first texts.
    pub first: &'static str,
    /// The field of the second texts.
    pub second: &'static str,
    /// Tokens that a pair may have.
    pub length: Length,
    /// Tokens of the second text that are read.
    pub second_limit: usize,
}

impl Pair {
    fn bytes(&self) -> usize {
        self.first.len() + self.second.len()
    }
}

/// Returns what turns the number of the model's only label into a score; `None` if the model makes vectors, whose
/// likeness is the score ([`super::likeness`]). An error if it tells labels apart.
pub(super) fn score_form(target: &Target) -> Result<Option<ScoreForm>> {
    match &target.model().classifier {
        None => target.check_makes_vectors().map(|()| None),
        Some(head) if head.labels.len() == 1 => Ok(Some(head.score)),
        Some(head) => Err(target.cannot(&format!("has {} labels, none of which is a score", head.labels.len()))),
    }
}

impl Scorer {
    /// Returns the score of each pair, in order, and the tokens used.
    pub(super) async fn scores(
        self,
        target: &Target,
        form: ScoreForm,
        pairs: Vec<Pair>,
    ) -> Result<(Vec<f32>, EmbeddingUsage)> {
        self.check_shared(target, &pairs).await?;
        let inputs = self.read(target, pairs).await?;
        let (rows, usage) = rows::compute(target, self.second, inputs, EmbedOutput::Labels).await?;
        let score = |row: Vec<f32>| row.first().map(|logit| form.of(*logit)).ok_or_else(|| no_numbers(target.model()));
        Ok((rows.into_iter().map(score).collect::<Result<_>>()?, usage))
    }

    /// Refuses a first text that many pairs share and that alone is longer than a pair: it would be tokenized with each
    /// of them only to be cut.
    async fn check_shared(self, target: &Target, pairs: &[Pair]) -> Result<()> {
        let [one, other, ..] = pairs else { return Ok(()) };
        if !Arc::ptr_eq(&one.first, &other.first) {
            return Ok(());
        }
        let items = vec![Item::Text(one.first.to_string())];
        let tokens = target.encode_all(self.first, items, false, Room::of(self.length.limit)).await;
        let tokens = tokens.map_err(|problem| problem.blamed_on(self.first))?.concat().len();
        if tokens <= self.length.limit {
            return Ok(());
        }
        let message = format!(
            "'{}' has {tokens} tokens, but the model reads {} of both texts together. Please shorten it.",
            self.first, self.length.limit
        );
        Err(Problem::invalid_code(self.first, "context_length_exceeded", message))
    }

    /// Makes tokens of pairs. Those that are too long lose tokens at the end of their longer text, or are refused.
    async fn read(self, target: &Target, pairs: Vec<Pair>) -> Result<Vec<EmbedInput>> {
        let Self { length, second, second_limit, .. } = self;
        let (count, bytes) = (pairs.len(), pairs.iter().map(Pair::bytes).sum::<usize>());
        let most = bytes.min(length.limit.saturating_mul(count)).min(MAX_TOKENS);
        let mut total = 0;
        let read = move |model: &BaseModel, index, pair: Pair| {
            let place = Place::of(second, index, count);
            let tokens = model.tokenizer.encode_pair_within(&pair.first, &pair.second, length.limit, second_limit);
            let tokens = tokens.map_err(|error| place.blame(error.into()))?;
            if tokens.length > length.limit && !length.is_cut {
                return Err(length.too_long(tokens.length, place));
            }
            total += tokens.ids.len();
            if total > MAX_TOKENS {
                return Err(too_many_tokens(second, format_args!("at least {total}"), MAX_TOKENS));
            }
            Ok(EmbedInput { tokens: tokens.ids, second: tokens.second, unpooled: 0 })
        };
        target.tokenize(pairs, Pair::bytes, most, read).await
    }
}

/// The failure of an engine that computes no numbers.
pub(super) fn no_numbers(model: &BaseModel) -> Problem {
    Problem::defect(format_args!("the engine of `{}` made a row without numbers", model.id))
}
