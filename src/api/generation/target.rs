//! Resolves the model name of a request to the base model and, for a fine-tuned name, the adapter generation that the
//! request keeps to its end; turns texts into token ids. Used by completions, chat, embeddings, ranking and tokenize.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::access::meter::Account;
use crate::api::generation::input::{Item, check_ids};
use crate::api::generation::room::Room;
use crate::api::http::error::{Problem, Result};
use crate::api::http::share::Share;
use crate::api::models::names::real_name;
use crate::engine;
use crate::engine::catalog::CatalogEntry;
use crate::engine::stops::StopTexts;
use crate::engine::{GenerateRequest, Sampling};
use crate::model::BaseModel;
use crate::model::classifier::Classifier;
use crate::model::lora::AdapterLease;

/// Largest size in bytes of texts that are tokenized on an async thread.
const INLINE_BYTES: usize = 8 << 10;
/// Memory that tokenizing takes for each byte of a text: what each piece of it was and became, with all places.
pub(crate) const TOKENIZING: usize = 208;
/// Memory of a token in all lists of a request.
const TOKEN_BYTES: usize = 8;

/// Returns true if the model writes texts.
pub(crate) fn writes_texts(model: &BaseModel) -> bool {
    !model.config.is_encoder && !model.is_static()
}

/// Returns true if the model makes vectors that can be compared.
pub(crate) fn makes_vectors(model: &BaseModel) -> bool {
    model.classifier.is_none() && !model.runs_elsewhere
}

/// The model that a request runs on, and the account that pays for it.
#[derive(Clone)]
pub(crate) struct Target {
    /// The base model and its engine.
    pub base: CatalogEntry,
    /// The generation of the adapter, held until the request ends; `None` for a base model.
    pub adapter: Option<AdapterLease>,
    /// The account that pays.
    pub account: Account,
    /// What the request may use of memory and threads.
    pub share: Share,
    /// True if the request named the model by an alias.
    pub is_alias: bool,
}

impl Target {
    /// Finds the base model or the caller's fine-tuned model of this name, or the model that it is an alias of.
    pub(crate) async fn resolve(state: &ApiState, caller: &Caller, share: Share, name: &str) -> Result<Self> {
        let real = real_name(state, &caller.organization, name).await?;
        let is_alias = real != name;
        if let Ok(base) = state.catalog.get(&real) {
            let account = Account::new(state, caller, name, &base.model.id);
            return Ok(Self { base: base.clone(), adapter: None, account, share, is_alias });
        }
        let leased = state.registry.lease(&caller.organization, &real).await;
        let not_found = |error| Problem::from(error).about_model(name).offering(&state.catalog.served());
        let (base, adapter) = leased.map_err(not_found)?;
        let account = Account::new(state, caller, name, &base);
        Ok(Self { base: state.catalog.get(&base)?.clone(), adapter: Some(adapter), account, share, is_alias })
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
            background: self.account.is_background(),
        }
    }

    /// Returns the number of tokens that the model can attend to.
    pub(crate) fn context(&self) -> usize {
        self.base.model.config.max_position_embeddings
    }

    /// Returns the number of tokens of a text that the model makes a vector or a score of.
    pub(crate) fn text_limit(&self) -> usize {
        self.base.model.vectors.max_tokens.min(self.context())
    }

    /// Refuses a model that reads texts and writes none.
    pub(crate) fn check_generates(&self) -> Result<()> {
        if self.writes() { Ok(()) } else { Err(self.cannot("writes no text")) }
    }

    fn writes(&self) -> bool {
        writes_texts(self.model())
    }

    /// Refuses a model whose hidden states were trained for its labels alone: vectors made of them mean nothing.
    pub(crate) fn check_makes_vectors(&self) -> Result<()> {
        if makes_vectors(self.model()) {
            return Ok(());
        }
        let lacks = if self.model().runs_elsewhere { "on the second engine" } else { "of them" };
        Err(self.cannot(&format!("makes no vectors {lacks}")))
    }

    /// Refuses a model without a classification head.
    pub(crate) fn check_classifies(&self) -> Result<&Classifier> {
        self.model().classifier.as_ref().ok_or_else(|| self.cannot("has no classification head"))
    }

    /// Makes the refusal of something that the model `lacks`; names what it does instead, and where.
    pub(crate) fn cannot(&self, lacks: &str) -> Problem {
        let model = self.model();
        let (does, routes) = match &model.classifier {
            Some(head) if head.labels.len() == 1 => ("scores texts", "/v1/rerank, /v1/score or /v1/classify"),
            Some(_) => ("classifies texts", "/v1/classify"),
            None if model.runs_elsewhere => ("writes texts", "/v1/chat/completions or /v1/completions"),
            None if self.writes() => ("writes texts", "/v1/chat/completions, /v1/completions or /v1/embeddings"),
            None => ("makes vectors of texts", "/v1/embeddings, /v1/rerank or /v1/score"),
        };
        let message = format!("The model `{}` {does} and {lacks}: use it in {routes}.", model.id);
        Problem::invalid_code("model", "unsupported_value", message)
    }

    /// Refuses prompts of these `lengths` that do not fit the context with `completion` new tokens.
    pub(crate) fn check_context(&self, mut lengths: impl Iterator<Item = usize>, completion: usize) -> Result<()> {
        let limit = self.context();
        match lengths.find(|prompt| prompt.saturating_add(completion) > limit) {
            Some(prompt) => Err(engine::Error::ContextLength { limit, prompt, completion }.into()),
            None => Ok(()),
        }
    }

    /// Returns the room for prompts: each must fit the context.
    pub(crate) fn room(&self) -> Room {
        Room::of(self.context())
    }

    /// Returns the token ids of `text`; `special` adds the tokens that the tokenizer puts around a text. A text that
    /// cannot fit the context is refused before it is tokenized.
    pub(crate) async fn encode(&self, text: String, special: bool) -> Result<Vec<u32>> {
        let ids = self.encode_all("", vec![Item::Text(text)], special, self.room()).await?;
        Ok(ids.into_iter().flatten().collect())
    }

    /// Returns the token ids of each item, in order, with the tokens that the tokenizer puts around a text. Refuses ids
    /// that the model does not have, empty lists of ids, and what cannot fit into the `room`.
    pub(crate) async fn encode_items(
        &self,
        param: &'static str,
        items: Vec<Item>,
        room: Room,
    ) -> Result<Vec<Vec<u32>>> {
        self.encode_all(param, items, true, room).await
    }

    /// Returns the token ids of each item, as [`Self::encode_items`] does; `special` adds the tokens around texts.
    pub(crate) async fn encode_all(
        &self,
        param: &'static str,
        items: Vec<Item>,
        special: bool,
        room: Room,
    ) -> Result<Vec<Vec<u32>>> {
        let bytes = items.iter().map(Item::text_bytes).sum::<usize>();
        let most = bytes.min(room.each.saturating_mul(items.len())).min(room.all);
        let items = self.measure(param, items, room).await?;
        let encode = move |model: &BaseModel, _, item| encode(model, param, item, special);
        self.tokenize(items, Item::text_bytes, most, encode).await
    }

    /// Refuses items that cannot fit into the `room`, but for short ones: they are sooner tokenized than measured, and
    /// the error that they get then has the exact number.
    pub(crate) async fn measure(&self, param: &'static str, items: Vec<Item>, room: Room) -> Result<Vec<Item>> {
        if items.iter().map(Item::text_bytes).sum::<usize>() <= INLINE_BYTES {
            return Ok(items);
        }
        let model = Arc::clone(self.model());
        let check = move || {
            room.check(&model, param, &items)?;
            Ok(items)
        };
        self.share.run("measure texts", check).await
    }

    /// Lets `read` make tokens of each of `texts`, of which it is told the number; all together have at most `tokens`.
    /// `bytes` tells the size of a text: long ones are read away from the async threads, until the client leaves.
    pub(crate) async fn tokenize<I: Send + 'static, T: Send + 'static>(
        &self,
        texts: Vec<I>,
        bytes: fn(&I) -> usize,
        tokens: usize,
        mut read: impl FnMut(&BaseModel, usize, I) -> Result<T> + Send + 'static,
    ) -> Result<Vec<T>> {
        let model = Arc::clone(self.model());
        if texts.iter().map(bytes).sum::<usize>() <= INLINE_BYTES {
            return texts.into_iter().enumerate().map(|(index, text)| read(&model, index, text)).collect();
        }
        // One after the other, so only the longest counts.
        let longest = texts.iter().map(bytes).max().unwrap_or(0);
        let held = self.share.hold(TOKENIZING * longest).await?;
        self.share.keep(TOKEN_BYTES * tokens).await?;
        let gone = CancellationToken::new();
        let _leaving = gone.clone().drop_guard();
        let encode = move || {
            let _held = held;
            let one = |(index, text)| {
                if gone.is_cancelled() { Err(Problem::stopping()) } else { read(&model, index, text) }
            };
            texts.into_iter().enumerate().map(one).collect()
        };
        self.share.run("tokenize", encode).await
    }

    /// Runs `work` over texts of `bytes` bytes, away from the async threads if they are long.
    pub(crate) async fn read_text<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&BaseModel) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if bytes <= INLINE_BYTES {
            return work(self.model());
        }
        let model = Arc::clone(self.model());
        self.share.run("read texts", move || work(&model)).await
    }
}

fn encode(model: &BaseModel, param: &str, item: Item, special: bool) -> Result<Vec<u32>> {
    match item {
        Item::Text(text) => Ok(model.tokenizer.encode(&text, special)?),
        Item::Tokens(tokens) => check_ids(param, &tokens, model.config.vocab_size).map(|()| tokens),
    }
}

/// Counts tokens for `/metrics`, labelled by base model, since the number of fine-tuned models has no bound.
pub(crate) fn count_tokens(model: &str, kind: &'static str, tokens: usize) {
    metrics::counter!("attune_tokens_total", "model" => model.to_owned(), "kind" => kind).increment(tokens as u64);
}
