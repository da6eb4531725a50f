//! `POST /tokenize` and `POST /detokenize`: texts and conversations to token ids, and ids to text. Extensions in vLLM's
//! form.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::chat::{ChatMessage, TemplateFields, Tool, shown_tools};
use crate::api::generation::foreign_fields::{KnownBody, Route, RouteBody};
use crate::api::generation::input::Item;
use crate::api::generation::room::Room;
use crate::api::generation::target::Target;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Body;
use crate::api::http::share::Share;
use crate::api::http::values;
use crate::model::BaseModel;

/// Largest text in bytes that is tokenized, since the context does not bound it here.
const MAX_TEXT_BYTES: usize = 512 << 10;
/// Memory for a token in the answer.
const ANSWERED_BYTES: usize = 24;
/// The same with its spelling.
const SPELLED_BYTES: usize = 96;

/// A text or a conversation to turn into tokens; exactly one of `prompt` and `messages`.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// The model whose tokenizer is asked; may be left out where only one base model is served.
    pub model: Option<String>,
    /// A text.
    pub prompt: Option<String>,
    /// A conversation, rendered with the model's chat template.
    pub messages: Option<Vec<ChatMessage>>,
    /// Put around the text what the tokenizer puts there. True by default for a prompt, false for messages: a chat
    /// template writes these tokens itself.
    pub add_special_tokens: Option<bool>,
    /// Send the tokens' spellings as well.
    #[schema(default = false)]
    pub return_token_strs: Option<bool>,
    /// End the conversation where the assistant's answer begins.
    #[schema(default = true)]
    pub add_generation_prompt: Option<bool>,
    /// Tools that the model is told of.
    pub tools: Option<Vec<Tool>>,
    /// End the conversation where the text of its last message does, which is the assistant's.
    #[schema(default = false)]
    pub continue_final_message: Option<bool>,
    /// Not supported: the model's own template is used.
    pub chat_template: Option<String>,
    /// Variables of the chat template, such as `{"enable_thinking": false}`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Not supported: a variable of the template, for `chat_template_kwargs`.
    pub enable_thinking: Option<bool>,
}

/// Tokens.
#[expect(clippy::struct_field_names, reason = "vLLM's names")]
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tokens {
    /// How many.
    pub count: usize,
    /// Tokens that the model can attend to.
    pub max_model_len: usize,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their spellings in the vocabulary, where asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Tokens to turn into text.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    /// The model whose tokenizer is asked; may be left out where only one base model is served.
    pub model: Option<String>,
    /// Token ids.
    #[serde(deserialize_with = "values::list")]
    pub tokens: Vec<u32>,
}

/// The text of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Detokenized {
    /// The text, special tokens by their names.
    pub prompt: String,
}

/// Turn a text or a conversation into tokens
///
/// An extension of this server.
#[utoipa::path(
    post, path = "/tokenize", operation_id = "tokenize", tag = "Tokens", request_body = TokenizeRequest,
    responses((status = 200, body = Tokens), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn tokenize(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    KnownBody(request): KnownBody<TokenizeRequest>,
) -> Result<Json<Tokens>, Problem> {
    let target = resolve(&state, &caller, share, request.model.as_deref()).await?;
    if request.messages.is_some() {
        target.check_generates()?;
    }
    let request = Arc::new(request);
    let reading = Arc::clone(&request);
    let (text, special) = target.read_text(target.share.body_bytes(), move |model| reading.text(model)).await?;
    check_length(text.len())?;
    // Texts beyond the context may be counted as well.
    let tokens = target.encode_all("prompt", vec![Item::Text(text)], special, Room::ANY).await?.concat();
    let spelled = request.return_token_strs == Some(true);
    target.share.keep(tokens.len() * if spelled { SPELLED_BYTES } else { ANSWERED_BYTES }).await?;
    let token_strs = spelled.then(|| {
        let tokenizer = &target.model().tokenizer;
        tokens.iter().map(|id| tokenizer.spelling(*id).unwrap_or_default()).collect()
    });
    Ok(Json(Tokens { count: tokens.len(), max_model_len: target.context(), tokens, token_strs }))
}

/// Turn tokens into text
///
/// An extension of this server.
#[utoipa::path(
    post, path = "/detokenize", operation_id = "detokenize", tag = "Tokens", request_body = DetokenizeRequest,
    responses((status = 200, body = Detokenized), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn detokenize(
    State(state): State<ApiState>,
    caller: Caller,
    share: Share,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<Detokenized>, Problem> {
    let target = resolve(&state, &caller, share, request.model.as_deref()).await?;
    let model = target.model().clone();
    let ids = model.tokenizer.vocabulary_size();
    if let Some(id) = request.tokens.iter().find(|id| **id as usize >= ids) {
        let message =
            format!("'tokens' holds the id {id}; this model's tokenizer has the ids 0 to {}.", ids.saturating_sub(1));
        return Err(Problem::invalid_code("tokens", "invalid_value", message));
    }
    let _held = target.share.hold(request.tokens.len() * SPELLED_BYTES).await?;
    let decode = move || Ok(model.tokenizer.decode(&request.tokens, false)?);
    let prompt = target.share.run("detokenize", decode).await?;
    Ok(Json(Detokenized { prompt }))
}

/// Returns the model that was named, or the only one if `name` is `None`.
async fn resolve(state: &ApiState, caller: &Caller, share: Share, name: Option<&str>) -> Result<Target, Problem> {
    let name = match (name, state.catalog.entries()) {
        (Some(name), _) => name,
        (None, [only]) => &only.model.id,
        (None, _) => return Err(Problem::missing("model")),
    };
    Target::resolve(state, caller, share, name).await
}

fn check_length(bytes: usize) -> Result<()> {
    if bytes <= MAX_TEXT_BYTES {
        return Ok(());
    }
    let message = format!("The text has {bytes} bytes; at most {MAX_TEXT_BYTES} are tokenized in one request.");
    Err(Problem::invalid_code("prompt", "string_above_max_length", message))
}

impl RouteBody for TokenizeRequest {
    const ROUTE: Route = Route::Tokenize;
}

impl TokenizeRequest {
    /// Returns the text to tokenize, and whether the tokenizer adds its special tokens to it.
    fn text(&self, model: &BaseModel) -> Result<(String, bool)> {
        match (&self.prompt, &self.messages) {
            (Some(prompt), None) => Ok((prompt.clone(), self.add_special_tokens.unwrap_or(true))),
            (None, Some(messages)) => {
                let template = model.chat_template.as_ref().ok_or_else(|| {
                    let message = format!("The model `{}` has no chat template: send a 'prompt'.", model.id);
                    Problem::invalid("model", message)
                })?;
                let fields = TemplateFields {
                    add_generation_prompt: self.add_generation_prompt,
                    continue_final_message: self.continue_final_message,
                    chat_template: self.chat_template.as_deref(),
                    chat_template_kwargs: self.chat_template_kwargs.as_ref(),
                    enable_thinking: self.enable_thinking,
                    thinking: None,
                    now: None,
                };
                let tools = shown_tools(self.tools.as_deref().unwrap_or_default())?;
                let text = fields.render(template, messages, &tools)?;
                Ok((text, self.add_special_tokens.unwrap_or(false)))
            }
            (None, None) => {
                let message = "Missing required parameter: 'prompt' or 'messages'.";
                Err(Problem::invalid_code("prompt", "missing_required_parameter", message))
            }
            (Some(_), Some(_)) => Err(Problem::invalid("messages", "Send either 'prompt' or 'messages', not both.")),
        }
    }
}
