//! `POST /completions`: text after each prompt, as one body or as events.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::auth::Caller;
use crate::api::checks::not_supported;
use crate::api::error::{ErrorBody, Problem};
use crate::api::extract::Body;
use crate::api::generate::Plan;
use crate::api::generate::body::{
    Chunks, SYSTEM_FINGERPRINT, Usage, UsageKey, new_id, now, reason_name, stream_chunks,
};
use crate::api::generate::fields::{SamplingFields, StopTexts, StreamOptions, check_n};
use crate::api::target::{Input, Item, Target};
use crate::api::{ApiState, sse};
use crate::engine::FinishReason;
use crate::{Error, Result};

/// What `max_tokens` is when it is not given.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request for completions.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// A base model or a fine-tuned one.
    pub model: String,
    /// One or many prompts, as text or as token ids.
    #[serde(default)]
    pub prompt: Option<Input>,
    /// New tokens for each choice at the most; 0 draws none.
    #[schema(default = 16)]
    pub max_tokens: Option<usize>,
    /// 0 takes the most probable token each time.
    #[schema(minimum = 0, maximum = 2, default = 1)]
    pub temperature: Option<f32>,
    /// Draw among the most probable tokens whose probabilities sum to this.
    #[schema(minimum = 0, maximum = 1, default = 1)]
    pub top_p: Option<f32>,
    /// Choices for each prompt.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    pub n: Option<usize>,
    /// Send events as tokens are drawn.
    pub stream: Option<bool>,
    /// Options of the events.
    pub stream_options: Option<StreamOptions>,
    /// Texts that end a choice; they are not part of it.
    pub stop: Option<StopTexts>,
    /// The same seed gives the same text.
    pub seed: Option<i64>,
    /// Lowers tokens that have occurred.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub presence_penalty: Option<f32>,
    /// Lowers tokens by how often they have occurred.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub frequency_penalty: Option<f32>,
    /// Added to logits, by token id: -100 bans, 100 forces.
    pub logit_bias: Option<HashMap<String, f32>>,
    /// Put the prompt before the text.
    pub echo: Option<bool>,
    /// Not supported: the models have no fill-in-the-middle.
    pub suffix: Option<String>,
    /// Not supported above 1.
    pub best_of: Option<usize>,
    /// Not supported yet.
    pub logprobs: Option<usize>,
}

/// Completions, or one event of a stream of them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Completion {
    /// `cmpl-…`
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// The model as asked for.
    pub model: String,
    /// Changes when the same seed may give another text.
    pub system_fingerprint: &'static str,
    /// One entry for each prompt and each of its choices.
    pub choices: Vec<CompletionChoice>,
    /// Tokens used; in a stream only where asked for.
    #[serde(skip_serializing_if = "UsageKey::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: UsageKey,
}

/// One choice, or the next piece of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// The text.
    pub text: String,
    /// Prompt number times `n`, plus the number of the choice.
    pub index: usize,
    /// Always null.
    pub logprobs: Option<()>,
    /// `stop` or `length`; null while the choice goes on.
    pub finish_reason: Option<&'static str>,
}

/// Continue prompts
///
/// With `stream` the answer is `text/event-stream`: each event holds one `Completion`, the last one is `[DONE]`.
#[utoipa::path(
    post, path = "/completions", operation_id = "createCompletion", tag = "Completions",
    request_body = CompletionRequest,
    responses((status = 200, body = Completion), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)),
)]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, Problem> {
    request.refuse_unsupported()?;
    let target = Target::resolve(&state, &caller, &request.model).await?;
    let (plan, echo) = request.plan(&state, target).await?;
    let running = plan.start()?;
    let stream_usage = StreamOptions::wants_usage(request.stream_options.as_ref());
    let writer = Writer { id: new_id("cmpl"), created: now(), model: request.model, echo, stream_usage };
    if request.stream == Some(true) {
        return Ok(sse::respond(stream_chunks(running, writer)));
    }
    let (answers, usage) = running.collect().await?;
    let choices = answers.into_iter().enumerate().map(|(index, answer)| {
        let text = writer.echo_of(index).unwrap_or_default().to_owned() + &answer.text;
        CompletionChoice { text, index, logprobs: None, finish_reason: Some(reason_name(answer.reason)) }
    });
    Ok(Json(writer.completion(choices.collect(), UsageKey::Now(usage))).into_response())
}

impl CompletionRequest {
    fn refuse_unsupported(&self) -> Result<()> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            let message = "'suffix' is not supported: this model has no fill-in-the-middle. Leave it out.";
            return Err(Error::invalid_code("suffix", "unsupported_parameter", message));
        }
        if self.logprobs.is_some() {
            return Err(not_supported("logprobs"));
        }
        match self.best_of {
            Some(2..) => Err(not_supported("best_of")),
            Some(1) if self.n.is_some_and(|n| n > 1) => {
                Err(Error::invalid("best_of", "'best_of' must be at least 'n'."))
            }
            _ => Ok(()),
        }
    }

    /// What to run, and the text that each choice begins with.
    async fn plan(&self, state: &ApiState, target: Target) -> Result<(Plan, Echo)> {
        let limits = &state.config.limits;
        let stop = StopTexts::check(self.stop.clone())?;
        let sampling = self.sampling_fields().check(target.model().config.vocab_size)?;
        let prompt = self.prompt.clone().unwrap_or_else(|| Input::Text(String::new()));
        let items = prompt.into_items("prompt", limits.max_inputs)?;
        let n = check_n(self.n, items.len(), limits.max_waiting)?;
        let texts = if self.echo == Some(true) { echo_texts(&target, &items)? } else { Vec::new() };
        let mut prompts = target.encode_items("prompt", items).await?;
        for prompt in &mut prompts {
            if prompt.is_empty() {
                prompt.push(start_token(&target)?);
            }
        }
        let max_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        Ok((Plan { target, prompts, n, max_tokens, sampling, stop, grammar: None }, Echo { texts, n }))
    }

    fn sampling_fields(&self) -> SamplingFields<'_> {
        SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.as_ref(),
        }
    }
}

/// What an empty prompt becomes: a model cannot continue nothing, and the end of a document is where a new one begins.
fn start_token(target: &Target) -> Result<u32> {
    let ends = &target.model().end_tokens;
    ends.first().copied().ok_or_else(|| {
        Error::invalid("prompt", "'prompt' has no tokens, and this model has no end token to begin with: send a text.")
    })
}

fn echo_texts(target: &Target, items: &[Item]) -> Result<Vec<String>> {
    let text = |item: &Item| match item {
        Item::Text(text) => Ok(text.clone()),
        Item::Tokens(tokens) => {
            // An id past the tokenizer would fail as a fault of the server; `encode_items` refuses it as the client's.
            let vocabulary = target.model().tokenizer.vocabulary_size();
            let known: Vec<u32> = tokens.iter().copied().filter(|id| (*id as usize) < vocabulary).collect();
            target.model().tokenizer.decode(&known, false)
        }
    };
    items.iter().map(text).collect()
}

/// The prompts as text, where the client wants them back.
struct Echo {
    texts: Vec<String>,
    n: usize,
}

/// Writes completions of one request.
struct Writer {
    id: String,
    created: i64,
    model: String,
    echo: Echo,
    stream_usage: bool,
}

impl Writer {
    fn echo_of(&self, index: usize) -> Option<&str> {
        self.echo.texts.get(index / self.echo.n).map(String::as_str)
    }

    fn completion(&self, choices: Vec<CompletionChoice>, usage: UsageKey) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        }
    }

    fn chunk(&self, index: usize, text: String, finish_reason: Option<&'static str>) -> Completion {
        let choice = CompletionChoice { text, index, logprobs: None, finish_reason };
        self.completion(vec![choice], UsageKey::before_the_last(self.stream_usage))
    }
}

impl Chunks for Writer {
    type Chunk = Completion;

    fn begin(&self, index: usize) -> Option<Completion> {
        let echo = self.echo_of(index).filter(|text| !text.is_empty())?;
        Some(self.chunk(index, echo.to_owned(), None))
    }

    fn text(&mut self, index: usize, text: String) -> Vec<Completion> {
        vec![self.chunk(index, text, None)]
    }

    fn end(&mut self, index: usize, reason: FinishReason) -> Vec<Completion> {
        vec![self.chunk(index, String::new(), Some(reason_name(reason)))]
    }

    fn usage(&self, usage: Usage) -> Option<Completion> {
        self.stream_usage.then(|| self.completion(Vec::new(), UsageKey::Now(usage)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::parse;

    fn refused(json: &str) -> Option<String> {
        let request: CompletionRequest = parse(json.as_bytes()).expect("a request");
        request.refuse_unsupported().err().map(|error| error.to_string())
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (field, json) in [
            ("suffix", r#"{"model":"m","suffix":"x"}"#),
            ("logprobs", r#"{"model":"m","logprobs":0,"echo":true}"#),
            ("best_of", r#"{"model":"m","best_of":2,"n":2}"#),
            ("best_of", r#"{"model":"m","best_of":1,"n":2}"#),
        ] {
            assert!(refused(json).is_some_and(|message| message.contains(field)), "{json}");
        }
    }

    #[test]
    fn harmless_values_of_unsupported_fields_pass() {
        assert_eq!(refused(r#"{"model":"m","suffix":null,"best_of":1,"n":1,"logprobs":null}"#), None);
        assert_eq!(refused(r#"{"model":"m","suffix":"","best_of":null,"n":3,"user":"u","made_up":{}}"#), None);
    }

    fn writer(stream_usage: bool, echo: Vec<String>) -> Writer {
        let echo = Echo { texts: echo, n: 2 };
        Writer { id: "cmpl-1".into(), created: 1, model: "m".into(), echo, stream_usage }
    }

    #[test]
    fn chunks_carry_a_usage_key_only_where_asked_for() {
        let usage = Usage { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 };
        let mut plain = writer(false, Vec::new());
        let chunk = serde_json::to_value(&plain.end(0, FinishReason::Stop)[0]).expect("JSON");
        assert!(chunk.get("usage").is_none() && chunk["choices"][0]["logprobs"].is_null(), "{chunk}");
        assert!(plain.usage(usage).is_none(), "never an event without choices");

        let mut asked = writer(true, Vec::new());
        let chunk = serde_json::to_value(&asked.text(1, "a".into())[0]).expect("JSON");
        assert!(chunk["usage"].is_null() && chunk.get("usage").is_some() && chunk.get("error").is_none(), "{chunk}");
        let last = serde_json::to_value(asked.usage(usage)).expect("JSON");
        assert_eq!((last["choices"].as_array().map(Vec::len), &last["usage"]["total_tokens"]), (Some(0), &3.into()));
    }

    #[test]
    fn an_echo_comes_first_and_belongs_to_its_prompt() {
        let writer = writer(false, vec!["one".into(), "two".into()]);
        let first: Vec<_> = (0..4).filter_map(|index| writer.begin(index)).map(|c| c.choices[0].text.clone()).collect();
        assert_eq!(first, ["one", "one", "two", "two"]);
    }
}
