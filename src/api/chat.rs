//! `POST /chat/completions`: the assistant's answer to a conversation, rendered with the model's own template.
//!
//! This file holds the handler; [`request`] is the body that it reads, [`response`] what is answered.

mod request;
mod response;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};

use self::request::ChatRequest;
pub use self::request::{ChatMessage, template_messages};
use self::response::{AssistantMessage, ChatChoice, ChatCompletion, ChatCompletionChunk, Writer};
use crate::api::auth::Caller;
use crate::api::error::{ErrorBody, Problem};
use crate::api::extract::Body;
use crate::api::generate::Plan;
use crate::api::generate::body::{SYSTEM_FINGERPRINT, new_id, now, reason_name, stream_chunks};
use crate::api::generate::fields::{StopTexts, StreamOptions, check_n};
use crate::api::generate::logprobs::TokenTexts;
use crate::api::target::Target;
use crate::api::{ApiState, sse};
use crate::{Error, Result};

/// Answer a conversation
///
/// With `stream` the answer is `text/event-stream`: each event holds one `ChatCompletionChunk`, the last one is `[DONE]`.
#[utoipa::path(
    post, path = "/chat/completions", operation_id = "createChatCompletion", tag = "Chat",
    request_body = ChatRequest,
    responses(
        (status = 200, content((ChatCompletion = "application/json"), (ChatCompletionChunk = "text/event-stream"))),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody),
    ),
)]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(request): Body<ChatRequest>,
) -> Result<Response, Problem> {
    request.refuse_unsupported()?;
    let target = Target::resolve(&state, &caller, &request.model).await?;
    let tokens = request.logprobs()?.map(|_| TokenTexts::new(target.model().clone()));
    let running = request.plan(&state, target).await.and_then(Plan::start).map_err(blame_messages)?;
    let stream_usage = StreamOptions::wants_usage(request.stream_options.as_ref());
    let writer = Writer { id: new_id("chatcmpl"), created: now(), model: request.model, stream_usage, tokens };
    if request.stream == Some(true) {
        return Ok(sse::respond(stream_chunks(running, writer)));
    }
    let (answers, usage) = running.collect().await?;
    let choices = answers.into_iter().enumerate().map(|(index, answer)| ChatChoice {
        index,
        message: AssistantMessage { role: "assistant", content: answer.text, refusal: None },
        logprobs: writer.logprobs(&answer.tokens),
        finish_reason: reason_name(answer.reason),
    });
    let choices = choices.collect();
    let completion = ChatCompletion {
        id: writer.id,
        object: "chat.completion",
        created: writer.created,
        model: writer.model,
        choices,
        usage,
        system_fingerprint: SYSTEM_FINGERPRINT,
    };
    Ok(Json(completion).into_response())
}

/// In a chat the messages are what is too long.
fn blame_messages(error: Error) -> Problem {
    let too_long = matches!(error, Error::ContextLength { .. });
    let problem = Problem::from(error);
    if too_long { problem.param("messages") } else { problem }
}

impl ChatRequest {
    /// What to run.
    async fn plan(&self, state: &ApiState, target: Target) -> Result<Plan> {
        let stop = StopTexts::check(self.stop.clone())?;
        let sampling = self.sampling_fields().check(target.model().config.vocab_size)?;
        let n = check_n(self.n, 1, state.config.limits.max_waiting)?;
        let messages = template_messages(&self.messages)?;
        let template = target.model().chat_template.as_ref().ok_or_else(|| {
            let message = format!("The model `{}` has no chat template: use /v1/completions with it.", self.model);
            Error::invalid("model", message)
        })?;
        let text = template.render(&messages, None, true)?;
        // The template has written the special tokens itself.
        let prompts = target.encode(vec![text], false).await?;
        let used = prompts.iter().map(Vec::len).max().unwrap_or_default();
        if used == 0 {
            return Err(Error::invalid("messages", "'messages' render to an empty prompt: send some content."));
        }
        let rest = target.context().saturating_sub(used).max(1);
        let max_tokens = self.max_completion_tokens.or(self.max_tokens).unwrap_or(rest);
        let logprobs = self.logprobs()?;
        Ok(Plan { target, prompts, n, max_tokens, sampling, stop, logprobs, prompt_logprobs: None })
    }
}
