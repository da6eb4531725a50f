//! `POST /chat/completions`: the assistant's answer to a conversation, rendered with the model's own template.
//!
//! This file holds the handler. [`request`] is the body that it reads, with the fields of [`messages`],
//! [`template_fields`] and [`format`]; [`tools`] checks the tools, with [`custom_tools`], and writes their grammar.
//! [`response`] holds the bodies of answers, with the calls that [`tool_calls`] finds and the texts that [`custom_input`]
//! reads, and [`recording`] keeps those that are to be stored.
//! `responses` asks for its answers by the same body.

mod custom_input;
mod custom_tools;
mod format;
mod messages;
mod recording;
mod request;
mod response;
mod schema;
mod template_fields;
mod tool_calls;
mod tools;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde_json::Value;

pub(crate) use self::custom_input::{InputReader, arguments_of};
pub(crate) use self::format::ResponseFormat;
pub(crate) use self::format::{JsonSchemaFormat, check_name};
pub(crate) use self::messages::{ChatContent, ChatMessage, MessageFunction, MessageToolCall};
use self::recording::{Recorded, Recording};
pub(crate) use self::request::{
    ChatRequest, CustomDefinition, FunctionDefinition, FunctionName, NamedTool, Tool, ToolChoice,
};
pub(crate) use self::response::ChatCompletion;
use self::response::{ChatChoice, ChatCompletionChunk, Writer};
pub(crate) use self::template_fields::TemplateFields;
pub(crate) use self::tool_calls::{CallFormat, CallParser, Part, new_call_id};
use self::tools::Tools;
pub(crate) use self::tools::shown_tools;
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::foreign_fields::KnownBody;
use crate::api::generation::generate::body::{new_id, now_micros, seconds_of, stream_chunks};
use crate::api::generation::generate::fields::{StreamOptions, check_max_tokens, check_n};
use crate::api::generation::generate::logprobs::TokenTexts;
use crate::api::generation::generate::{Answer, GenerationPlan};
use crate::api::generation::grammars::{self, Grammars};
use crate::api::generation::target::Target;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::headers::LOOSENED;
use crate::api::http::share::Share;
use crate::api::http::sse;
use crate::api::http::transport::RequestId;
use crate::engine::GenerateRequest;
use crate::engine::grammar::{CompileBudget, Grammar, GrammarSource};
use crate::model::BaseModel;
use crate::model::chat_template::ChatTemplate;
use crate::model::tool_syntax::ToolSyntax;
use crate::model::vocabulary::Vocabulary;

/// Answer a conversation
///
/// With `stream` the answer is `text/event-stream`: each event holds one `ChatCompletionChunk`, the last one is
/// `[DONE]`.
#[utoipa::path(
    post, path = "/chat/completions", operation_id = "createChatCompletion", tag = "Chat",
    request_body = ChatRequest,
    responses(
        (status = 200, content((ChatCompletion = "application/json"), (ChatCompletionChunk = "text/event-stream"))),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    id: Option<Extension<RequestId>>,
    KnownBody(request): KnownBody<ChatRequest>,
) -> Result<Response, Problem> {
    let request = Arc::new(request);
    let began = now_micros();
    let recording = Recording::wanted(&state, &caller, &request, id.map(|Extension(id)| id), began)?;
    let target = Target::resolve(&state, &caller, share, &request.model).await?;
    let tokens = request.logprobs()?.map(|_| TokenTexts::new(target.model().clone()));
    let (plan, calls, loosened) = request.plan(&state, target).await.map_err(blame_messages)?;
    let running = plan.start().map_err(blame_messages)?;
    let loosened = loosened.map(|schemas| [(LOOSENED, schemas)]);
    let stream_usage = StreamOptions::wants_usage(request.stream_options.as_ref());
    let (id, created, parsers) = (new_id("chatcmpl"), seconds_of(began), Vec::new());
    let writer = Writer { id, created, model: request.model.clone(), stream_usage, tokens, calls, parsers };
    if request.stream == Some(true) {
        let response = match recording {
            Some(recording) => sse::respond(stream_chunks(running, Recorded::new(writer, recording))),
            None => sse::respond(stream_chunks(running, writer)),
        };
        return Ok((loosened, response).into_response());
    }
    let (answers, usage) = running.collect().await?;
    let choice = |(index, answer): (usize, Answer)| {
        let logprobs = writer.logprobs(&answer.tokens);
        ChatChoice::new(index, answer, logprobs, writer.calls.as_ref())
    };
    let choices = answers.into_iter().enumerate().map(choice).collect();
    let completion = ChatCompletion::new(&writer, choices, usage);
    if let Some(recording) = recording {
        recording.keep(&completion);
    }
    Ok((loosened, Json(completion)).into_response())
}

/// Names the field `messages` in an error about a prompt that is too long.
fn blame_messages(problem: Problem) -> Problem {
    if problem.is_context_length() { problem.param("messages") } else { problem }
}

impl ChatRequest {
    /// Returns the sequences to run, the format of the calls that answers may have, `None` if they may have none, and
    /// the keywords of schemas that they do not follow.
    pub(crate) async fn plan(
        self: &Arc<Self>,
        state: &ApiState,
        target: Target,
    ) -> Result<(GenerationPlan, Option<CallFormat>, Option<HeaderValue>)> {
        target.check_generates()?;
        self.check_effort()?;
        let model = target.model();
        let vocabulary = model.config.vocab_size;
        let stops = self.stop_fields().check(&model.tokenizer, &model.end_tokens, vocabulary)?;
        let sampling = self.sampling_fields().check(vocabulary, &model.generation)?;
        let (param, asked) = self.max_tokens()?;
        let longest = check_max_tokens(param, asked, usize::MAX, &model.generation)?;
        let n = check_n(self.n, 1, state.config.limits.max_waiting)?;
        let syntax = self.template(model)?.tool_syntax();
        let tools = Tools::of(self)?;
        let prompt = self.prompt(&target, tools.as_ref()).await?;
        let used = prompt.len();
        if used == 0 {
            return Err(Problem::invalid("messages", "'messages' render to an empty prompt: send some content."));
        }
        // Only a number that was asked for may be more than there is room for, and is then refused.
        let rest = target.context().saturating_sub(used).max(1);
        let max_tokens = asked.unwrap_or_else(|| longest.min(rest));
        // Before the work of compiling a grammar.
        target.check_context(std::iter::once(used), max_tokens)?;
        let (grammar, calls, loosened) = self.constraint(&state.grammars, &target, n, (syntax, tools)).await?;
        if grammar.is_some() && self.ignore_eos == Some(true) {
            let message = "'ignore_eos' cannot be used with 'response_format' or tools, whose answers end where they \
                           are complete: leave it out.";
            return Err(Problem::invalid_code("ignore_eos", "invalid_value", message));
        }
        let request = GenerateRequest {
            max_tokens,
            sampling,
            stop: stops.tables(),
            stop_tokens: stops.tokens,
            logprobs: self.logprobs()?,
            grammar,
            ..target.request()
        };
        let plan = GenerationPlan { target, prompts: vec![prompt.into()], n, request };
        Ok((plan, calls, loosened))
    }

    /// Counts the tokens of the prompt: the messages as the template writes them, with the tools that the model is
    /// shown.
    pub(crate) async fn count_prompt(self: &Arc<Self>, target: &Target) -> Result<usize> {
        target.check_generates()?;
        Ok(self.prompt(target, Tools::of(self)?.as_ref()).await?.len())
    }

    /// Returns the token ids of the prompt.
    async fn prompt(self: &Arc<Self>, target: &Target, tools: Option<&Tools>) -> Result<Vec<u32>> {
        let shown = tools.map(Tools::shown).unwrap_or_default();
        let request = Arc::clone(self);
        let render = move |model: &BaseModel| {
            request.template_fields().render(request.template(model)?, &request.messages, &shown)
        };
        let text = target.read_text(target.share.body_bytes(), render).await?;
        // The template has written the special tokens itself.
        target.encode(text, false).await
    }

    fn template<'a>(&self, model: &'a BaseModel) -> Result<&'a ChatTemplate> {
        model.chat_template.as_ref().ok_or_else(|| {
            let message = format!("The model `{}` has no chat template: use /v1/completions with it.", self.model);
            Problem::invalid("model", message)
        })
    }

    /// Gets the grammar that the `n` answers must follow, and returns it with the format of the calls that they may
    /// have and the keywords of schemas that it does not follow; `None` for what the request does not ask for.
    async fn constraint(
        &self,
        grammars: &Grammars,
        target: &Target,
        n: usize,
        (syntax, tools): (ToolSyntax, Option<Tools>),
    ) -> Result<(Option<Grammar>, Option<CallFormat>, Option<HeaderValue>)> {
        let response = self.response_format.as_ref().map(ResponseFormat::schema).transpose()?.flatten();
        let (organization, model) = (target.account.organization(), Arc::clone(target.model()));
        let Some(tools) = tools else {
            let Some(schema) = response else { return Ok((None, None, None)) };
            let (param, source) = ("response_format", GrammarSource::json(schema));
            let key = grammars::key(organization, &model.id, param, &source);
            let work = move |budget: &CompileBudget| {
                let grammar = Grammar::compile(vocabulary(&model, param)?, param, source, budget);
                Ok((grammar.map_err(|reason| refused(param, &reason))?, None))
            };
            let (grammar, _) = grammars.get(key, organization, n, work).await?;
            return Ok((Some(grammar), None, None));
        };
        let calls = CallFormat {
            syntax,
            names: tools.names(),
            custom: tools.custom(),
            required: tools.required,
            json_answers: response.is_some() && !tools.required,
            legacy: tools.legacy,
        };
        let source = tools.grammar(syntax, &model.tokenizer, response.clone());
        let key = grammars::key(organization, &model.id, tools.param(), &source);
        let work = move |budget: &CompileBudget| compile_calls(&model, tools, syntax, response.as_ref(), budget);
        let (grammar, loosened) = grammars.get(key, organization, n, work).await?;
        Ok((Some(grammar), Some(calls), loosened))
    }
}

fn vocabulary<'a>(model: &'a BaseModel, param: &str) -> Result<&'a Vocabulary> {
    model.vocabulary.as_ref().ok_or_else(|| {
        let message = format!("'{param}' needs a tokenizer with the bytes of its tokens, which this model has not.");
        Problem::invalid_code(param, "unsupported_parameter", message)
    })
}

/// Compiles the grammar of calls and texts, and returns it with the keywords of schemas that it does not follow. A
/// failure is blamed on the first tool that cannot be compiled alone.
fn compile_calls(
    model: &BaseModel,
    mut tools: Tools,
    syntax: ToolSyntax,
    response: Option<&Value>,
    budget: &CompileBudget,
) -> Result<(Grammar, Option<HeaderValue>)> {
    let param = tools.param();
    let vocabulary = vocabulary(model, param)?;
    let compile = |source| Grammar::compile(vocabulary, param, source, budget);
    loop {
        let reason = match compile(tools.grammar(syntax, &model.tokenizer, response.cloned())) {
            Ok(grammar) => {
                let loosened = tools.loosened(&grammar);
                return Ok((grammar, loosened));
            }
            // Out of time: no tool is to blame.
            Err(reason) if budget.early_end().is_some() => return Err(refused(param, &reason)),
            Err(reason) => reason,
        };
        let failed = tools.single_grammars().filter_map(|(index, source)| Some((index, compile(source).err()?)));
        let failed: Vec<(usize, String)> = failed.collect();
        if failed.is_empty() || budget.early_end().is_some() {
            return Err(refused(param, &reason));
        }
        // One tool that cannot be followed does not take the others down.
        for (index, reason) in failed {
            if !tools.open(index) {
                return Err(refused(&tools.parameters_param(index), &reason));
            }
        }
    }
}

fn refused(param: &str, reason: &str) -> Problem {
    let what = if param.ends_with(".format") { "grammar" } else { "JSON schema" };
    let message = format!("'{param}' has a {what} that is not supported: {reason}.");
    Problem::invalid_code(param, "invalid_schema", message)
}

#[cfg(test)]
mod rendering_tests;
