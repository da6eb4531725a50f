//! `POST /completions`: text after each prompt, as one body or as events.
//!
//! This file holds the handler and the body that it reads, [`response`] the bodies of answers.

mod response;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use utoipa::ToSchema;

use self::response::{Completion, Prompts, ShownPrompt, Writer};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::foreign_fields::{KnownBody, Route, RouteBody};
use crate::api::generation::generate::bias::LogitBias;
use crate::api::generation::generate::body::stream_chunks;
use crate::api::generation::generate::fields::{SamplingFields, StreamOptions, check_max_tokens, check_n};
use crate::api::generation::generate::logprobs::TokenTexts;
use crate::api::generation::generate::stops::{StopFields, StopTexts};
use crate::api::generation::generate::{GenerationPlan, best};
use crate::api::generation::input::{Input, Item};
use crate::api::generation::target::{TOKENIZING, Target};
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::share::Share;
use crate::api::http::sse;
use crate::api::http::values;
use crate::api::operations::checks::within;
use crate::engine::GenerateRequest;
use crate::model::BaseModel;

/// Default of `max_tokens`.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request for completions. The model's `defaults` say what holds for sampling fields that are left out or null.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    /// A base model or a fine-tuned one.
    pub model: String,
    /// One or many prompts, as text or as token ids.
    #[serde(default)]
    pub prompt: Option<Input>,
    /// New tokens for each choice at the most; 0 draws none. By default 16, or the model's `max_tokens` if that is
    /// less.
    #[schema(minimum = 0)]
    #[serde(default, deserialize_with = "values::optional")]
    pub max_tokens: Option<usize>,
    /// 0 takes the most probable token each time. 1 unless the model has another default.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Draw among the most probable tokens whose probabilities sum to this. 1 unless the model has another default.
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Extension: draw among this many of the most probable tokens; 0 and -1 mean all.
    #[schema(minimum = -1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub top_k: Option<i64>,
    /// Extension: draw among tokens that are at least this probable, relative to the most probable one.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Choices for each prompt.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    #[serde(default, deserialize_with = "values::optional")]
    pub n: Option<usize>,
    /// Send events as tokens are drawn.
    pub stream: Option<bool>,
    /// Options of the events.
    #[serde(default, deserialize_with = "values::object")]
    pub stream_options: Option<StreamOptions>,
    /// Texts that end a choice; they are not part of it.
    pub stop: Option<StopTexts>,
    /// Extension: token ids that end a choice.
    #[serde(default, deserialize_with = "values::optional_list")]
    #[schema(max_items = 128)]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Extension: go on where the model would end its text.
    #[schema(default = false)]
    pub ignore_eos: Option<bool>,
    /// The same seed gives the same text.
    #[serde(default, deserialize_with = "values::optional")]
    pub seed: Option<i64>,
    /// Lowers tokens that have occurred.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Lowers tokens by how often they have occurred.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Extension: lowers tokens of the prompt and the answer where it is above 1, and raises them below 1.
    #[schema(exclusive_minimum = 0)]
    pub repetition_penalty: Option<f32>,
    /// Added to logits, by token id: -100 bans, 100 forces.
    #[schema(value_type = Option<HashMap<String, f32>>)]
    pub logit_bias: Option<LogitBias>,
    /// Put the prompt before the text.
    pub echo: Option<bool>,
    /// Not supported: the models have no fill-in-the-middle.
    pub suffix: Option<String>,
    /// Draw this many choices for each prompt and answer with the `n` whose tokens are the most probable on average; 0
    /// draws `n`. Not with `stream`.
    #[schema(minimum = 0, maximum = 20, default = 0)]
    #[serde(default, deserialize_with = "values::optional")]
    pub best_of: Option<usize>,
    /// Answer with each token's log probability and those of this many most probable ones at its place. With `echo` the
    /// prompt's tokens have theirs, too.
    #[schema(minimum = 0, maximum = 5)]
    #[serde(default, deserialize_with = "values::optional")]
    pub logprobs: Option<usize>,
}

/// Continue prompts
///
/// With `stream` the answer is `text/event-stream`: each event holds one `Completion`, the last one is `[DONE]`.
#[utoipa::path(
    post, path = "/completions", operation_id = "createCompletion", tag = "Completions",
    request_body = CompletionRequest,
    responses(
        (status = 200, content((Completion = "application/json"), (Completion = "text/event-stream"))),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    KnownBody(mut request): KnownBody<CompletionRequest>,
) -> Result<Response, Problem> {
    request.refuse_unsupported()?;
    let target = Target::resolve(&state, &caller, share, &request.model).await?;
    let tokens = request.logprobs.map(|_| TokenTexts::new(target.model().clone()));
    let (plan, prompts) = request.plan(&state, target).await?;
    let (candidates, n) = (plan.n, prompts.n);
    let running = plan.start()?;
    let stream_usage = StreamOptions::wants_usage(request.stream_options.as_ref());
    let writer = Writer::new(request.model, prompts, tokens, stream_usage);
    if request.stream == Some(true) {
        return Ok(sse::respond(stream_chunks(running, writer)));
    }
    let (answers, usage) = running.collect().await?;
    Ok(Json(writer.whole(best(answers, candidates, n), usage)).into_response())
}

impl RouteBody for CompletionRequest {
    const ROUTE: Route = Route::Completions;
}

impl CompletionRequest {
    fn refuse_unsupported(&self) -> Result<()> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            let message = "'suffix' is not supported: this model has no fill-in-the-middle. Leave it out.";
            return Err(Problem::invalid_code("suffix", "unsupported_parameter", message));
        }
        Ok(())
    }

    /// Returns the sequences to run, and the prompts as the choices show them.
    async fn plan(&mut self, state: &ApiState, target: Target) -> Result<(GenerationPlan, Prompts)> {
        target.check_generates()?;
        let limits = &state.config.limits;
        let model = target.model();
        let vocabulary = model.config.vocab_size;
        let stops = self.stop_fields().check(&model.tokenizer, &model.end_tokens, vocabulary)?;
        let sampling = self.sampling_fields().check(vocabulary, &model.generation)?;
        let max_tokens = check_max_tokens("max_tokens", self.max_tokens, DEFAULT_MAX_TOKENS, &model.generation)?;
        let logprobs = within("logprobs", self.logprobs, 0, 5)?;
        let prompt = self.prompt.take().unwrap_or_else(|| Input::Text(String::new()));
        let items = prompt.into_items("prompt", limits.max_inputs)?;
        let n = check_n(self.n, items.len(), limits.max_waiting)?;
        let candidates = self.candidates(n, items.len(), limits.max_waiting)?;
        let echo = self.echo == Some(true);
        let prompt_logprobs = logprobs.filter(|_| echo);
        let shown_items = if echo || logprobs.is_some() { items.clone() } else { Vec::new() };
        let mut prompts = target.encode_items("prompt", items, target.room()).await?;
        for prompt in &mut prompts {
            if prompt.is_empty() {
                prompt.push(start_token(&target)?);
            }
        }
        target.check_context(prompts.iter().map(Vec::len), max_tokens)?;
        let mut shown = show_prompts(&target, shown_items, prompt_logprobs.is_some()).await?;
        for (shown, prompt) in shown.iter_mut().zip(&prompts) {
            shown.first_token = prompt[0];
        }
        // The best are chosen by their log probabilities, also where the client does not ask for them.
        let logprobs = logprobs.or((candidates > n).then_some(0));
        let request = GenerateRequest {
            max_tokens,
            sampling,
            stop: stops.tables(),
            stop_tokens: stops.tokens,
            logprobs,
            prompt_logprobs,
            ..target.request()
        };
        let prompts = prompts.into_iter().map(Arc::from).collect();
        let plan = GenerationPlan { target, prompts, n: candidates, request };
        Ok((plan, Prompts { shown, n, echo }))
    }

    /// Returns how many choices to draw for each of `prompts`; the best `n` of them are answered. A request has at most
    /// `waiting` sequences.
    fn candidates(&self, n: usize, prompts: usize, waiting: usize) -> Result<usize> {
        let candidates = match within("best_of", self.best_of, 0, 20)? {
            None | Some(0) => n,
            Some(best_of) => best_of,
        };
        if candidates < n {
            let message = format!("'best_of' is {candidates}, but must be at least 'n', which is {n}.");
            return Err(Problem::invalid("best_of", message));
        }
        if candidates > n && self.stream == Some(true) {
            let message = "'best_of' above 'n' cannot be streamed, since the best are known at the end only: \
                           leave out 'stream' or 'best_of'.";
            return Err(Problem::invalid("best_of", message));
        }
        if candidates * prompts > waiting {
            let message = format!(
                "{prompts} prompts with 'best_of' {candidates} are more than the {waiting} sequences of one request."
            );
            return Err(Problem::invalid("best_of", message));
        }
        Ok(candidates)
    }

    fn stop_fields(&self) -> StopFields {
        let (stop, stop_token_ids) = (self.stop.clone(), self.stop_token_ids.clone());
        StopFields { stop, stop_token_ids, ignore_eos: self.ignore_eos == Some(true) }
    }

    fn sampling_fields(&self) -> SamplingFields<'_> {
        SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.as_ref(),
        }
    }
}

/// Returns the token that stands for an empty prompt: the model's first end token, since a new document begins where
/// another one ends.
fn start_token(target: &Target) -> Result<u32> {
    let ends = &target.model().end_tokens;
    ends.first().copied().ok_or_else(|| {
        Problem::invalid(
            "prompt",
            "'prompt' has no tokens, and this model has no end token to begin with: send a text.",
        )
    })
}

/// Returns the texts of the prompts, with the offsets of their tokens if `places` is true.
async fn show_prompts(target: &Target, items: Vec<Item>, places: bool) -> Result<Vec<ShownPrompt>> {
    let longest = items.iter().map(Item::text_bytes).max().unwrap_or(0);
    let held = target.share.hold(if places { TOKENIZING * longest } else { 0 }).await?;
    let model = Arc::clone(target.model());
    let show = move |_: &BaseModel| {
        let _held = held;
        items.into_iter().map(|item| show_prompt(&model, item, places)).collect()
    };
    target.read_text(target.share.body_bytes(), show).await
}

fn show_prompt(model: &Arc<BaseModel>, item: Item, places: bool) -> Result<ShownPrompt> {
    match item {
        Item::Text(text) => {
            let offsets = if places { model.tokenizer.character_offsets(&text)? } else { Vec::new() };
            Ok(ShownPrompt { text, offsets, first_token: 0 })
        }
        Item::Tokens(tokens) => show_tokens(model, &tokens, places),
    }
}

fn show_tokens(model: &Arc<BaseModel>, tokens: &[u32], places: bool) -> Result<ShownPrompt> {
    // An id past the tokenizer has no text.
    let vocabulary = model.tokenizer.vocabulary_size();
    let known = |id: &u32| (*id as usize) < vocabulary;
    let ids: Vec<u32> = tokens.iter().copied().filter(known).collect();
    let text = model.tokenizer.decode(&ids, false)?;
    let mut offsets = Vec::new();
    if places {
        // A decoder may leave out a blank at the beginning; offsets must not pass the end of the text.
        let length = text.chars().count();
        let texts = TokenTexts::new(Arc::clone(model));
        let mut characters = 0;
        for id in tokens {
            let (offset, after) = if known(id) { texts.place(*id, characters, true) } else { (characters, characters) };
            offsets.push(offset.min(length));
            characters = after;
        }
    }
    Ok(ShownPrompt { text, offsets, first_token: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::extract::parse;

    fn refused(json: &str) -> Option<String> {
        let request: CompletionRequest = parse(json.as_bytes()).expect("a request");
        request.refuse_unsupported().err().map(|error| error.to_string())
    }

    #[test]
    fn a_suffix_is_refused_by_name_and_harmless_values_pass() {
        assert!(refused(r#"{"model":"m","suffix":"x"}"#).is_some_and(|message| message.contains("suffix")));
        assert_eq!(refused(r#"{"model":"m","suffix":null,"best_of":1,"n":1,"logprobs":null}"#), None);
        assert_eq!(refused(r#"{"model":"m","suffix":"","best_of":null,"n":3,"user":"u","made_up":{}}"#), None);
    }

    #[test]
    fn best_of_is_at_least_n_and_not_streamed_and_bounded() {
        for (json, expected) in [
            (r#"{"model":"m"}"#, Some(3)),
            (r#"{"model":"m","best_of":0,"stream":true}"#, Some(3)),
            (r#"{"model":"m","best_of":3,"stream":true}"#, Some(3)),
            (r#"{"model":"m","best_of":20}"#, Some(20)),
            (r#"{"model":"m","best_of":21}"#, None),
            (r#"{"model":"m","best_of":2}"#, None),
            (r#"{"model":"m","best_of":4,"stream":true}"#, None),
        ] {
            let request: CompletionRequest = parse(json.as_bytes()).expect("a request");
            assert_eq!(request.candidates(3, 1, 100).ok(), expected, "{json}");
        }
        let request: CompletionRequest = parse(br#"{"model":"m","best_of":20}"#).expect("a request");
        assert!(request.candidates(1, 6, 100).is_err(), "120 sequences of 100");
    }
}
