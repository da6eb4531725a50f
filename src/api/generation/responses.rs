//! `/responses`: answers to conversations that the server can keep and go on from, also while nobody waits.
//!
//! This file creates them. [`conversation`] gathers what a [`request`] says, from its [`items`] and from responses that
//! are kept; [`asked`] makes a request for a chat of it, so that templates, tools, grammars and usage are those of
//! `chat`. [`writer`] turns the answer, in which [`thinking`] is told apart, into [`events`] and the whole [`object`].
//! [`compaction`] makes a conversation short, by a [`summary`], and [`context`] does so where a request has become too
//! long.
//! [`stored`] has the routes of kept responses, [`background`] writes those that nobody waits for, and [`watching`]
//! streams their events.

mod asked;
pub(crate) mod background;
pub(crate) mod compaction;
mod context;
pub(crate) mod conversation;
mod events;
pub(crate) mod items;
mod object;
mod request;
pub(crate) mod stored;
mod summary;
mod thinking;
mod watching;
mod writer;

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{self, Stream};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

pub(crate) use self::conversation::messages_of;

use self::asked::{Asked, Names, complete};
use self::conversation::{ANSWERED, Conversation, gather, new_items};
use self::events::ResponseStreamEvent;
use self::object::{OutputItem, ResponseObject};
use self::request::{ConversationReference, CreateResponse};
use self::thinking::Thinks;
use self::writer::{Reading, Writer};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::chat::{CallFormat, ChatMessage, ChatRequest};
use crate::api::generation::foreign_fields::KnownBody;
use crate::api::generation::generate::body::{now_micros, seconds_of};
use crate::api::generation::generate::logprobs::TokenTexts;
use crate::api::generation::generate::{GenerationPlan, Piece, Running};
use crate::api::generation::target::Target;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::share::Share;
use crate::api::http::{headers, sse};
use crate::model::BaseModel;
use crate::store::conversations::{ConversationPlace, NewItems};
use crate::store::responses::{Answer, NewResponse};
use crate::store::{Store, new_id};

/// Tokens at the end of a prompt that may hold the mark behind which the model thinks.
const TAIL: usize = 8;
/// Largest length of the header that names tools which were left out, in bytes.
const SKIPPED_BYTES: usize = 1000;

/// Answer a conversation
///
/// With `stream` the answer is `text/event-stream`: each event holds one `ResponseStreamEvent` and has its type as
/// name, the last one is `[DONE]`.
#[utoipa::path(
    post, path = "/responses", operation_id = "createResponse", tag = "Responses", request_body = CreateResponse,
    responses(
        (status = 200, content((ResponseObject = "application/json"), (ResponseStreamEvent = "text/event-stream"))),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    body: Result<KnownBody<CreateResponse>, Problem>,
) -> Result<Response, Problem> {
    let KnownBody(request) = body.map_err(complete)?;
    // Its state is large, and would lie in every layer around the route.
    Box::pin(answer(&state, &caller, share, request)).await.map_err(complete)
}

/// The size of a prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InputTokens {
    /// Always `response.input_tokens`.
    pub object: &'static str,
    /// Tokens of the prompt that a response to the same request would have.
    pub input_tokens: usize,
}

/// Count the tokens of a request for a response
#[utoipa::path(
    post, path = "/responses/input_tokens", operation_id = "countInputTokens", tag = "Responses",
    request_body = CreateResponse,
    responses((status = 200, body = InputTokens), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn count_tokens(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    body: Result<KnownBody<CreateResponse>, Problem>,
) -> Result<Json<InputTokens>, Problem> {
    let KnownBody(request) = body.map_err(complete)?;
    let conversation = gather(&state, &caller, &share, &request).await.map_err(complete)?;
    context::threshold(&request).map_err(complete)?;
    let asked = Asked::of(&request, conversation.messages).map_err(complete)?;
    let target = Target::resolve(&state, &caller, share, &request.model).await.map_err(complete)?;
    let counted = Arc::new(asked.chat).count_prompt(&target).await;
    let input_tokens = counted.map_err(|problem| asked.names.tell(problem))?;
    Ok(Json(InputTokens { object: "response.input_tokens", input_tokens }))
}

async fn answer(state: &ApiState, caller: &Caller, share: Share, request: CreateResponse) -> Result<Response> {
    let in_background = request.background == Some(true);
    if in_background && !request.is_kept() {
        let message = "'background' needs 'store': what is written for nobody in particular must be kept.";
        return Err(Problem::invalid_code("background", "invalid_value", message));
    }
    let Conversation { before, own, messages, place } = gather(state, caller, &share, &request).await?;
    let mut asked = Asked::of(&request, messages)?;
    context::threshold(&request)?;
    let target = Target::resolve(state, caller, share, &request.model).await?;
    let items = (before.as_slice(), own.as_slice());
    let mut compacted = None;
    if !in_background {
        compacted = Box::pin(context::compact(state, &target, &request, &asked, items)).await?;
        if let Some(compacted) = &mut compacted {
            asked.chat.messages = std::mem::take(&mut compacted.messages);
        }
    } else if let Some(messages) = context::at_least(&request, items)? {
        // It is made short when it is written.
        asked.chat.messages = messages;
    }
    let names = asked.names.clone();
    let prepared = Prepared::of(state, target, &request, asked).await.map_err(|problem| names.tell(problem))?;
    let headers = prepared.headers(&names);
    if in_background {
        let said = background::Said { before, own, place };
        return Ok((headers, background::queue(state, caller, request, said, prepared).await?).into_response());
    }
    drop(before);
    let Prepared { plan, mut response, reading, began, .. } = prepared;
    response.id = new_id("resp_");
    let running = plan.start().map_err(|problem| names.tell(problem))?;
    let is_kept = request.is_kept();
    let keeping = (is_kept || place.is_some()).then(|| Keeping {
        store: state.store.clone(),
        organization: caller.organization.to_string(),
        key: caller.key.to_string(),
        own,
        is_kept,
        place,
        began,
    });
    let is_streamed = request.stream == Some(true);
    let mut writing = Writing { running, writer: Writer::new(response, reading), keeping, names, is_streamed };
    if is_streamed {
        writing.writer.begin();
    }
    if let Some(compacted) = compacted {
        writing.writer.compacted(compacted);
    }
    if is_streamed {
        return Ok((headers, sse::respond_named(writing.stream())).into_response());
    }
    while writing.go_on().await? {
        writing.writer.events();
    }
    writing.keep().await?;
    Ok((headers, Json(writing.writer.response.clone())).into_response())
}

/// A request that can be run.
struct Prepared {
    plan: GenerationPlan,
    /// The response before it has begun, without an id.
    response: ResponseObject,
    reading: Reading,
    loosened: Option<HeaderValue>,
    /// When it was asked for, in Unix microseconds.
    began: i64,
}

impl Prepared {
    /// Makes the prompt and the grammar, and what the response repeats.
    async fn of(state: &ApiState, target: Target, request: &CreateResponse, asked: Asked) -> Result<Self> {
        let began = now_micros();
        let model = Arc::clone(target.model());
        let shows_tokens = request.logprobs().is_some();
        let Asked { chat, is_structured, truncates, tools, text, reasoning, tool_choice, .. } = asked;
        let (plan, calls, loosened) = plan(state, target, chat, truncates).await?;
        let prompt = plan.prompts.first().map(AsRef::as_ref).unwrap_or_default();
        let thinks = thinks(&model, prompt, is_structured, calls.as_ref());
        let reading = Reading { thinks, calls, tokens: shows_tokens.then(|| TokenTexts::new(model)) };
        let sampling = &plan.request.sampling;
        let response = ResponseObject {
            id: String::new(),
            object: "response",
            created_at: seconds_of(began),
            completed_at: None,
            status: "in_progress",
            background: false,
            error: None,
            incomplete_details: None,
            instructions: request.instructions.clone(),
            max_output_tokens: request.max_output_tokens,
            max_tool_calls: request.max_tool_calls,
            model: request.model.clone(),
            output: Vec::new(),
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            previous_response_id: request.previous_response_id.clone().filter(|id| !id.is_empty()),
            conversation: request.conversation().map(|id| ConversationReference { id: id.to_owned() }),
            prompt_cache_key: request.prompt_cache_key.clone(),
            reasoning,
            safety_identifier: request.safety_identifier.clone(),
            service_tier: "default",
            store: request.is_kept(),
            temperature: sampling.temperature,
            text,
            tool_choice,
            tools,
            top_logprobs: request.top_logprobs.unwrap_or(0),
            top_p: sampling.top_p,
            truncation: if truncates { "auto" } else { "disabled" },
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            usage: None,
            user: request.user.clone(),
            metadata: request.metadata.clone().unwrap_or_default(),
        };
        Ok(Self { plan, response, reading, loosened, began })
    }

    /// Returns the headers that name what is not as the request has it: keywords of schemas, and tools.
    fn headers(&self, names: &Names) -> HeaderMap {
        let loosened = self.loosened.as_ref().and_then(|header| header.to_str().ok());
        let loosened = loosened.and_then(|header| HeaderValue::from_str(&names.rename(header)).ok());
        let mut skipped = names.skipped.join("; ");
        skipped.retain(|character| character.is_ascii_graphic() || character == ' ');
        skipped.truncate(SKIPPED_BYTES);
        let skipped = HeaderValue::from_str(&skipped).ok().filter(|header| !header.is_empty());
        let loosened = loosened.map(|header| (headers::LOOSENED, header));
        let skipped = skipped.map(|header| (headers::SKIPPED, header));
        loosened.into_iter().chain(skipped).collect()
    }
}

/// Plans the chat. If it `truncates` and does not fit the context, the messages before one of the user's are left out,
/// as few of them as can be; those of the system before all others stay.
async fn plan(
    state: &ApiState,
    target: Target,
    chat: ChatRequest,
    truncates: bool,
) -> Result<(GenerationPlan, Option<CallFormat>, Option<HeaderValue>)> {
    let chat = Arc::new(chat);
    let whole = chat.plan(state, target.clone()).await;
    let too_long = match whole {
        Err(problem) if truncates && problem.is_context_length() => problem,
        whole => return whole,
    };
    let cuts = cuts(&chat.messages);
    let (mut shortest, mut fitting) = (0, None);
    let mut end = cuts.len();
    // The first cut that fits: every later one does, too.
    while shortest < end {
        let middle = shortest + (end - shortest) / 2;
        let messages = cut(&chat.messages, cuts[middle]);
        let shorter = Arc::new(ChatRequest { messages, ..ChatRequest::clone(&chat) });
        match shorter.plan(state, target.clone()).await {
            Ok(planned) => (end, fitting) = (middle, Some(planned)),
            Err(problem) if problem.is_context_length() => shortest = middle + 1,
            Err(problem) => return Err(problem),
        }
    }
    fitting.ok_or(too_long)
}

fn is_system(message: &ChatMessage) -> bool {
    ["system", "developer"].contains(&message.role.as_str())
}

/// Returns the numbers of the messages that a shortened conversation may begin with: those of the user but for the
/// first.
fn cuts(messages: &[ChatMessage]) -> Vec<usize> {
    let first = messages.iter().position(|message| !is_system(message)).unwrap_or(messages.len());
    (first + 1..messages.len()).filter(|index| messages[*index].role == "user").collect()
}

/// Returns the messages from number `start` on, behind those of the system before all others.
fn cut(messages: &[ChatMessage], start: usize) -> Vec<ChatMessage> {
    messages.iter().take_while(|message| is_system(message)).chain(&messages[start..]).cloned().collect()
}

/// Tells where the model thinks. A form of the text leaves no room for it, nor do calls that must come.
fn thinks(model: &BaseModel, prompt: &[u32], is_structured: bool, calls: Option<&CallFormat>) -> Thinks {
    if is_structured || calls.is_some_and(|calls| calls.required) {
        return Thinks::Never;
    }
    let tail = model.tokenizer.decode(&prompt[prompt.len().saturating_sub(TAIL)..], false);
    if tail.is_ok_and(|tail| tail.trim_end().ends_with("<think>")) {
        Thinks::FromTheStart
    } else if model.tokenizer.token("<think>").is_some() {
        Thinks::IfItBegins
    } else {
        Thinks::Never
    }
}

/// Where a response is kept once it has ended.
struct Keeping {
    store: Store,
    organization: String,
    key: String,
    own: Vec<Value>,
    /// False if only its conversation gets something.
    is_kept: bool,
    place: Option<ConversationPlace>,
    began: i64,
}

impl Keeping {
    async fn keep(self, response: &ResponseObject) -> Result<()> {
        let answer = kept_answer(&self.own, response)?;
        if !self.is_kept {
            if let Some(place) = self.place.filter(|_| !answer.added.ids.is_empty()) {
                // A conversation that was deleted meanwhile gets nothing.
                self.store.add_to_conversation(&self.organization, &place.id, &answer.added).await?;
            }
            return Ok(());
        }
        let new = NewResponse {
            id: response.id.clone(),
            organization: self.organization,
            key: self.key,
            created_micros: self.began,
            previous: response.previous_response_id.clone(),
            conversation: self.place,
            input: sse::json(&self.own)?,
            answer,
        };
        Ok(self.store.keep_response(&new).await?)
    }
}

/// Returns a response as it is kept, with the items of its request.
fn kept_answer(own: &[Value], response: &ResponseObject) -> Result<Answer> {
    let ids = own.iter().filter_map(|item| item["id"].as_str());
    let output = sse::json(&response.output)?;
    // One that has no answer leaves its conversation as it was.
    let added = if response.conversation.is_some() && ANSWERED.contains(&response.status) {
        let output: Vec<Value> = conversation::items_of(&output)?;
        new_items(own.iter().chain(&output))
    } else {
        NewItems::default()
    };
    Ok(Answer {
        status: response.status,
        output,
        item_ids: ids.chain(response.output.iter().map(OutputItem::id)).map(str::to_owned).collect(),
        response: sse::json(response)?,
        added,
    })
}

/// A response that is being written. Dropped before its end, it is kept as a cancelled one if a client can know of it.
struct Writing {
    running: Running,
    writer: Writer,
    /// `None` if it is not to be kept, or has been.
    keeping: Option<Keeping>,
    names: Names,
    is_streamed: bool,
}

impl Writing {
    /// Waits for more of the answer; false if it has ended.
    async fn go_on(&mut self) -> Result<bool> {
        match self.running.next().await {
            Some(Ok((_, Piece::Text { text, token }))) => {
                let drawn = self.running.usage().completion_tokens;
                self.writer.text(&text, token, drawn);
                Ok(true)
            }
            Some(Ok((_, Piece::End(reason)))) => {
                self.writer.end(reason, self.running.usage());
                Ok(false)
            }
            Some(Ok((_, Piece::Prompt(_)))) => Ok(true),
            Some(Err(problem)) => Err(self.names.tell(problem)),
            None => Ok(false),
        }
    }

    /// Keeps the response as it is now.
    async fn keep(&mut self) -> Result<()> {
        match self.keeping.take() {
            Some(keeping) => keeping.keep(&self.writer.response).await,
            None => Ok(()),
        }
    }

    /// Goes on to the next events; false behind the last one.
    async fn next_events(&mut self) -> bool {
        match self.go_on().await {
            Ok(true) => return true,
            // A client that has seen the end may ask for what is kept at once.
            Ok(false) => match self.keep().await {
                Ok(()) => self.writer.tell_end(),
                Err(problem) => self.writer.fail(problem, self.running.usage()),
            },
            Err(problem) => {
                self.writer.fail(problem, self.running.usage());
                if let Err(problem) = self.keep().await {
                    tracing::warn!("cannot keep a response that failed: {problem}");
                }
            }
        }
        false
    }

    /// Streams the events.
    fn stream(mut self) -> impl Stream<Item = Result<sse::Named, Problem>> + Send + 'static {
        let begun: VecDeque<ResponseStreamEvent> = self.writer.events().into();
        stream::unfold((self, begun, true), |(mut writing, mut ready, mut goes_on)| async move {
            loop {
                if let Some(event) = ready.pop_front() {
                    return Some((event.frame(), (writing, ready, goes_on)));
                }
                if !goes_on {
                    return None;
                }
                goes_on = writing.next_events().await;
                ready = writing.writer.events().into();
            }
        })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Only who reads a stream has seen the id.
        let is_seen = |keeping: &Keeping| self.is_streamed && keeping.is_kept;
        let Some(keeping) = self.keeping.take().filter(is_seen) else { return };
        self.writer.cancel(self.running.usage());
        let response = self.writer.response.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = keeping.keep(&response).await {
                    tracing::warn!("cannot keep a response whose client left: {error}");
                }
            });
        }
    }
}
