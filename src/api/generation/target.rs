//! Resolves the model name of a request to the base model and, for a fine-tuned name, the adapter generation that the
//! request keeps to its end; turns texts into token ids. Used by completions, chat, embeddings and tokenize.

use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::access::meter::Account;
use crate::api::http::error::{Problem, Result};
use crate::api::http::values;
use crate::engine::catalog::CatalogEntry;
use crate::engine::stops::StopTexts;
use crate::engine::{GenerateRequest, Sampling};
use crate::model::BaseModel;
use crate::model::lora::AdapterLease;
use crate::off_thread::off_thread;

/// Largest size in bytes of texts that are tokenized on an async thread.
const INLINE_BYTES: usize = 8 << 10;

/// The model that a request runs on, and the account that pays for it.
#[derive(Clone)]
pub(crate) struct Target {
    /// The base model and its engine.
    pub base: CatalogEntry,
    /// The generation of the adapter, held until the request ends; `None` for a base model.
    pub adapter: Option<AdapterLease>,
    /// The account that pays.
    pub account: Account,
}

impl Target {
    /// Finds the base model or the caller's fine-tuned model of this name, or the model that it is an alias of.
    pub(crate) async fn resolve(state: &ApiState, caller: &Caller, name: &str) -> Result<Self> {
        let real = state.catalog.real_name(name);
        if let Ok(base) = state.catalog.get(real) {
            let account = Account::new(state, caller, name, &base.model.id);
            return Ok(Self { base: base.clone(), adapter: None, account });
        }
        let leased = state.registry.lease(&caller.organization, real).await;
        let not_found = |error| Problem::from(error).about_model(name).offering(&state.catalog.served());
        let (base, adapter) = leased.map_err(not_found)?;
        let account = Account::new(state, caller, name, &base);
        Ok(Self { base: state.catalog.get(&base)?.clone(), adapter: Some(adapter), account })
    }

    /// Returns the base model: weights, tokenizer and template.
    pub(crate) fn model(&self) -> &Arc<BaseModel> {
        &self.base.model
    }

    /// Returns a request to the engine for this target, with no prompt and no token asked for yet.
    pub(crate) fn request(&self) -> GenerateRequest {
        GenerateRequest {
            organization: self.account.organization().clone(),
            prompt: Arc::default(),
            adapter: self.adapter.clone(),
            sampling: Sampling::default(),
            max_tokens: 0,
            stop: StopTexts::default(),
            stop_tokens: self.base.model.end_tokens.clone(),
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
        }
    }

    /// Returns the number of tokens that the model can attend to.
    pub(crate) fn context(&self) -> usize {
        self.base.model.config.max_position_embeddings
    }

    /// Returns the token ids of each text; `special` adds the tokens that the tokenizer puts around a text.
    pub(crate) async fn encode(&self, texts: Vec<String>, special: bool) -> Result<Vec<Vec<u32>>> {
        let model = self.base.model.clone();
        let bytes = texts.iter().map(String::len).sum();
        let encode = move || texts.iter().map(|text| Ok(model.tokenizer.encode(text, special)?)).collect();
        tokenize(bytes, encode).await
    }

    /// Returns the number of characters of `text` before each of its tokens, which are those of [`Self::encode`] with
    /// `special`.
    pub(crate) async fn character_offsets(&self, text: String) -> Result<Vec<usize>> {
        let model = self.base.model.clone();
        tokenize(text.len(), move || Ok(model.tokenizer.character_offsets(&text)?)).await
    }
}

/// Runs `work` over `bytes` bytes of text, on a blocking thread if they are more than [`INLINE_BYTES`].
async fn tokenize<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if bytes <= INLINE_BYTES {
        return work();
    }
    off_thread("tokenize", work).await
}

/// Counts tokens for `/metrics`, labelled by base model, since the number of fine-tuned models has no bound.
pub(crate) fn count_tokens(model: &str, kind: &'static str, tokens: usize) {
    metrics::counter!("attune_tokens_total", "model" => model.to_owned(), "kind" => kind).increment(tokens as u64);
}

/// One or many texts, as text or as token ids.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids"
)]
pub(crate) enum Input {
    /// One text.
    Text(String),
    /// Many texts.
    Texts(Vec<String>),
    /// One text as token ids.
    Tokens(#[serde(deserialize_with = "values::list")] Vec<u32>),
    /// Many texts as token ids.
    TokenLists(#[serde(deserialize_with = "values::lists")] Vec<Vec<u32>>),
}

/// One text of an [`Input`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    /// As text.
    Text(String),
    /// As token ids.
    Tokens(Vec<u32>),
}

impl Input {
    /// Returns the single texts, in order. If there are none or more than `limit`, the error names the field `param`.
    pub(crate) fn into_items(self, param: &str, limit: usize) -> Result<Vec<Item>> {
        let items: Vec<Item> = match self {
            Self::Text(text) => vec![Item::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Item::Text).collect(),
            Self::Tokens(tokens) => vec![Item::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(Item::Tokens).collect(),
        };
        if items.is_empty() {
            return Err(Problem::invalid(param, format!("'{param}' must not be an empty array.")));
        }
        if items.len() > limit {
            let message = format!("'{param}' has {} items; at most {limit} fit into one request.", items.len());
            return Err(Problem::invalid_code(param, "array_above_max_length", message));
        }
        Ok(items)
    }
}

impl Target {
    /// Returns the token ids of each item, in order. Refuses ids that the model does not have and empty lists of ids.
    pub(crate) async fn encode_items(&self, param: &str, items: Vec<Item>) -> Result<Vec<Vec<u32>>> {
        let vocabulary = self.base.model.config.vocab_size;
        let mut ids = Vec::with_capacity(items.len());
        let (mut places, mut texts) = (Vec::new(), Vec::new());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Item::Text(text) => {
                    places.push(index);
                    texts.push(text);
                    ids.push(Vec::new());
                }
                Item::Tokens(tokens) => {
                    check_ids(param, &tokens, vocabulary)?;
                    ids.push(tokens);
                }
            }
        }
        for (place, tokens) in places.into_iter().zip(self.encode(texts, true).await?) {
            ids[place] = tokens;
        }
        Ok(ids)
    }
}

/// Refuses ids outside the vocabulary by the field's name and before anything is charged; the engine refuses them again,
/// for its own sake.
fn check_ids(param: &str, tokens: &[u32], vocabulary: usize) -> Result<()> {
    if tokens.is_empty() {
        return Err(Problem::invalid(param, format!("'{param}' must not hold an empty array of token ids.")));
    }
    match tokens.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => {
            let message = format!(
                "'{param}' holds the token id {id}; this model has the ids 0 to {}.",
                vocabulary.saturating_sub(1)
            );
            Err(Problem::invalid(param, message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(json: &str) -> Result<Vec<Item>> {
        let input: Input = serde_json::from_str(json).map_err(|error| Problem::invalid("input", error.to_string()))?;
        input.into_items("input", 3)
    }

    #[test]
    fn all_four_forms_are_read() {
        assert_eq!(items(r#""a""#).expect("a text"), [Item::Text("a".into())]);
        assert_eq!(items(r#"["a","b"]"#).expect("texts"), [Item::Text("a".into()), Item::Text("b".into())]);
        assert_eq!(items("[1,2.0]").expect("one text as ids"), [Item::Tokens(vec![1, 2])]);
        assert_eq!(items("[[1],[2]]").expect("texts as ids"), [Item::Tokens(vec![1]), Item::Tokens(vec![2])]);
    }

    #[test]
    fn anything_else_is_refused_with_what_to_send() {
        for json in [r#"["a",1]"#, "[-1]", "[1.5]", "3", "{}", "[[1],\"a\"]"] {
            let message = items(json).expect_err("not an input").to_string();
            assert!(message.contains("array of token ids"), "{json}: {message}");
        }
        assert!(items("[]").is_err(), "an empty array");
        assert!(items(r#"["a","b","c","d"]"#).is_err(), "too many");
    }

    #[test]
    fn token_ids_beyond_the_vocabulary_are_refused() {
        assert!(check_ids("prompt", &[0, 9], 10).is_ok());
        assert!(check_ids("prompt", &[10], 10).is_err());
        assert!(check_ids("prompt", &[], 10).is_err());
    }
}
