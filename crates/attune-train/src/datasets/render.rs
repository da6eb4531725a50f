//! Turns a checked example into tokens: a prompt has exactly the token ids that the server would send to the model at
//! inference, and the targets are exactly the tokens that the model must then produce. Called by [`super::read`].
//!
//! - **Prompt and completion**: the prompt is tokenized as at inference, where it arrives alone, and the completion as it
//!   goes on from there ([`continuation`]). The completion ends with the model's end token, which is added if the text
//!   does not end with one: without it the model never learns to stop (`OpenAI`'s legacy files relied on a stop text
//!   instead; a stop text inside the completion still works). An empty prompt becomes the end token, which separated the
//!   texts that the model was pretrained on.
//! - **Chat**: an answer's prompt is the template's text of the messages before it, including the generation prompt.
//!   Its target is the text that the template writes for the answer ([`super::turn`]). Answers of one chat share a
//!   sequence as long as each prompt begins with exactly the tokens so far. If it does not (the template drops earlier
//!   reasoning), a new sequence begins. So history in training is always as it will be at inference.

use std::path::PathBuf;

use super::Fault;
use super::TokenizedExample;
use super::codec::{TextCodec, TextPrompts, continuation};
use super::parse::Example;
use super::turn::{Conversation, Turn};
use crate::Result;

/// Settings for turning examples into tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderSettings {
    /// Weight of a prompt's tokens as targets; prompts of chats always have weight 0.
    pub prompt_loss_weight: f32,
    /// Most tokens in a sequence; longer ones are cut at the end.
    pub max_tokens: usize,
    /// The folder of the temporary file that holds the examples.
    pub scratch: PathBuf,
    /// Unix second that chat templates take for the present: that of the job's creation, so that a job reads the same
    /// examples whenever it goes on.
    pub now: i64,
    /// Texts that stand before those of pairs.
    pub prompts: TextPrompts,
}

/// Sequences of one example, with what its owner should know about its answers.
#[derive(Debug, Default)]
pub(super) struct RenderedExample {
    /// Sequences; several only for chats whose history renders differently from turn to turn.
    pub sequences: Vec<TokenizedExample>,
    /// True if the text of an answer does not stand in its target.
    pub altered: bool,
    /// True if an answer names an end token, where a served answer ends.
    pub names_end: bool,
}

/// Renders one example to sequences.
pub(super) fn render(
    example: &Example,
    codec: &impl TextCodec,
    settings: &RenderSettings,
) -> Result<RenderedExample, Fault> {
    match example {
        Example::Completion { prompt, completion } => {
            let sequence = render_completion(prompt, completion, codec, settings.prompt_loss_weight)?;
            Ok(RenderedExample { sequences: vec![sequence], ..RenderedExample::default() })
        }
        Example::Chat { messages, trained, tools } => {
            let conversation = Conversation { messages, tools, codec, now: settings.now };
            render_chat(&conversation, trained, settings.max_tokens)
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
    let target = completion_tokens(prompt, &tokens, completion, codec)?;
    let mut weights = vec![prompt_loss_weight; tokens.len()];
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

/// Tokenizes the completion that follows a prompt with these `tokens`, with the end token behind it.
pub(super) fn completion_tokens(
    prompt: &str,
    tokens: &[u32],
    completion: &str,
    codec: &impl TextCodec,
) -> Result<Vec<u32>> {
    // An end token stands for an empty prompt.
    let tokens = if prompt.is_empty() { codec.encode("", true)? } else { tokens.to_vec() };
    Ok(ended(continuation(codec, prompt, &tokens, completion, true)?, codec))
}

/// Adds the end token that the tokens of a completion do not end with.
pub(super) fn ended(mut tokens: Vec<u32>, codec: &impl TextCodec) -> Vec<u32> {
    if !tokens.last().is_some_and(|last| codec.end_tokens().contains(last)) {
        tokens.extend(codec.end_tokens().first());
    }
    tokens
}

fn render_chat(
    conversation: &Conversation<'_, impl TextCodec>,
    trained: &[bool],
    max_tokens: usize,
) -> Result<RenderedExample, Fault> {
    let mut rendered = RenderedExample::default();
    for turn in (0..trained.len()).filter(|turn| trained[*turn]) {
        let Turn { prompt, target, altered, names_end } = conversation.turn(turn)?;
        rendered.altered |= altered;
        rendered.names_end |= names_end;
        let overlong = prompt.len() >= max_tokens;
        match rendered.sequences.last_mut() {
            Some(sequence) if prompt.starts_with(&sequence.tokens) => extend(sequence, prompt, &target),
            _ => {
                let mut sequence = TokenizedExample { tokens: Vec::new(), weights: Vec::new() };
                extend(&mut sequence, prompt, &target);
                rendered.sequences.push(sequence);
            }
        }
        // No later turn can fit; stopping here also bounds the work for a chat of very many turns.
        if overlong {
            break;
        }
    }
    Ok(rendered)
}

/// Extends `sequence`, whose tokens `prompt` begins with, to the end of `target`.
fn extend(sequence: &mut TokenizedExample, prompt: Vec<u32>, target: &[u32]) {
    sequence.tokens = prompt;
    sequence.weights.resize(sequence.tokens.len(), 0.0);
    sequence.tokens.extend(target);
    sequence.weights.resize(sequence.tokens.len(), 1.0);
}
