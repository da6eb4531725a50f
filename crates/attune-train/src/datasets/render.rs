//! Turns a checked example into tokens: a prompt has exactly the token ids that the server would send to the model at
//! inference, and the targets are exactly the tokens that the model must then produce. Called by [`super::read`].
//!
//! - **Prompt and completion**: the two are tokenized apart, since at inference the prompt arrives alone. The
//!   completion ends with the model's end token, which is added if the text does not end with one: without it the model
//!   never learns to stop (`OpenAI`'s legacy files relied on a stop text instead; a stop text inside the completion
//!   still works). An empty prompt becomes the end token, which separated the texts that the model was pretrained on.
//! - **Chat**: an answer's prompt is the template's text of the messages before it, including the generation prompt.
//!   Its target is the text that the template adds for the answer, up to and including the first end token (not the
//!   line feed that templates put behind it, which the model never produces). Answers of one chat share a sequence as
//!   long as each prompt begins with exactly the tokens so far. If it does not (the template drops earlier reasoning,
//!   or text tokenizes differently in context), a new sequence begins. So history in training is always as it will be
//!   at inference.

use std::path::PathBuf;

use serde_json::Value;

use super::Fault;
use super::TokenizedExample;
use super::parse::Example;
use crate::Result;
use attune_model::BaseModel;

/// Functions of a model that rendering needs; outside tests, [`BaseModel`] implements them.
pub trait TextCodec {
    /// Tokenizes `text`; `special` adds the special tokens that the tokenizer puts around a text.
    fn encode(&self, text: &str, special: bool) -> attune_model::Result<Vec<u32>>;

    /// Renders a chat to text; `None` if the model has no chat template.
    fn render_chat(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        generate: bool,
    ) -> attune_model::Result<Option<String>>;

    /// Returns the tokens that end an answer, the usual one first.
    fn end_tokens(&self) -> &[u32];
}

impl TextCodec for BaseModel {
    fn encode(&self, text: &str, special: bool) -> attune_model::Result<Vec<u32>> {
        self.tokenizer.encode(text, special)
    }

    fn render_chat(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        generate: bool,
    ) -> attune_model::Result<Option<String>> {
        self.chat_template.as_ref().map(|template| template.render(messages, tools, generate)).transpose()
    }

    fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }
}

/// Settings for turning examples into tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderSettings {
    /// Weight of a prompt's tokens as targets; prompts of chats always have weight 0.
    pub prompt_loss_weight: f32,
    /// Most tokens in a sequence; longer ones are cut at the end.
    pub max_tokens: usize,
    /// The folder of the temporary file that holds the examples.
    pub scratch: PathBuf,
}

/// Renders one example to sequences; several only for chats whose history renders differently from turn to turn.
pub(super) fn render(
    example: &Example,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<Vec<TokenizedExample>, Fault> {
    match example {
        Example::Completion { prompt, completion } => {
            Ok(vec![render_completion(prompt, completion, codec, settings.prompt_loss_weight)?])
        }
        Example::Chat { messages, trained, tools } => {
            render_chat(messages, trained, tools.as_deref(), codec, settings.max_tokens)
        }
    }
}

fn render_completion(
    prompt: &str,
    completion: &str,
    codec: &impl TextCodec,
    prompt_loss_weight: f32,
) -> Result<TokenizedExample> {
    let mut tokens = prompt_tokens(prompt, codec)?;
    let mut weights = vec![prompt_loss_weight; tokens.len()];
    let target = completion_tokens(completion, codec)?;
    weights.resize(tokens.len() + target.len(), 1.0);
    tokens.extend(target);
    if let Some(first) = weights.first_mut() {
        *first = 0.0;
    }
    Ok(TokenizedExample { tokens, weights })
}

/// Tokenizes a prompt; empty only if the model has no end token either.
pub(super) fn prompt_tokens(prompt: &str, codec: &impl TextCodec) -> Result<Vec<u32>> {
    let mut tokens = codec.encode(prompt, true)?;
    if tokens.is_empty() {
        tokens.extend(codec.end_tokens().first());
    }
    Ok(tokens)
}

/// Tokenizes a completion, with the end token behind it.
pub(super) fn completion_tokens(completion: &str, codec: &impl TextCodec) -> Result<Vec<u32>> {
    let mut tokens = codec.encode(completion, false)?;
    if !tokens.last().is_some_and(|last| codec.end_tokens().contains(last)) {
        tokens.extend(codec.end_tokens().first());
    }
    Ok(tokens)
}

fn render_chat(
    messages: &[Value],
    trained: &[bool],
    tools: Option<&[Value]>,
    codec: &impl TextCodec,
    max_tokens: usize,
) -> Result<Vec<TokenizedExample>, Fault> {
    let mut sequences: Vec<TokenizedExample> = Vec::new();
    for turn in (0..messages.len()).filter(|turn| trained[*turn]) {
        let (prompt, target) = render_turn(messages, turn, tools, codec)?;
        let overlong = prompt.len() >= max_tokens;
        match sequences.last_mut() {
            Some(sequence) if prompt.starts_with(&sequence.tokens) => extend(sequence, prompt, &target),
            _ => {
                let mut sequence = TokenizedExample { tokens: Vec::new(), weights: Vec::new() };
                extend(&mut sequence, prompt, &target);
                sequences.push(sequence);
            }
        }
        // No later turn can fit; stopping here also bounds the work for a chat of very many turns.
        if overlong {
            break;
        }
    }
    Ok(sequences)
}

/// Extends `sequence`, whose tokens `prompt` begins with, to the end of `target`.
fn extend(sequence: &mut TokenizedExample, prompt: Vec<u32>, target: &[u32]) {
    sequence.tokens = prompt;
    sequence.weights.resize(sequence.tokens.len(), 0.0);
    sequence.tokens.extend(target);
    sequence.weights.resize(sequence.tokens.len(), 1.0);
}

/// Tokenizes the prompt and the target of the assistant message at `turn`.
fn render_turn(
    messages: &[Value],
    turn: usize,
    tools: Option<&[Value]>,
    codec: &impl TextCodec,
) -> Result<(Vec<u32>, Vec<u32>), Fault> {
    let no_template =
        || Fault::Line("is a chat, but the model has no chat template: give `prompt` and `completion`".into());
    let prompt = codec.render_chat(&messages[..turn], tools, true)?.ok_or_else(no_template)?;
    let whole = codec.render_chat(&messages[..=turn], tools, false)?.ok_or_else(no_template)?;
    let answer = match (whole.strip_prefix(prompt.as_str()), messages[turn]["content"].as_str()) {
        (Some(answer), _) => answer,
        // Some templates open the answer with text that they leave out of the history (a reasoning tag). Then the
        // answer's own text has to follow the prompt.
        (None, Some(content)) if !has_calls(&messages[turn]) => content,
        (None, _) => {
            let turn = turn + 1;
            return Err(Fault::Line(format!(
                "message {turn}: the model's chat template cannot render this answer after its prompt"
            )));
        }
    };
    let mut target = codec.encode(answer, false)?;
    match target.iter().position(|token| codec.end_tokens().contains(token)) {
        Some(end) => target.truncate(end + 1),
        None => target.extend(codec.end_tokens().first()),
    }
    Ok((codec.encode(&prompt, false)?, target))
}

fn has_calls(message: &Value) -> bool {
    ["tool_calls", "function_call"].iter().any(|key| message.get(*key).is_some_and(|calls| !calls.is_null()))
}
