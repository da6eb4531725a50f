//! Functions of a model that turn text into tokens. Used by all of [`super`].

use attune_model::BaseModel;
use attune_model::chat::{self, Message, ToolDefinition};
use attune_model::chat_template::TemplateOptions;

use crate::Result;

/// Functions of a model that rendering needs; outside tests, [`BaseModel`] implements them.
pub trait TextCodec {
    /// Tokenizes `text`; `special` adds the special tokens that the tokenizer puts around a text.
    fn encode(&self, text: &str, special: bool) -> attune_model::Result<Vec<u32>>;

    /// Returns the text of tokens, special ones by their names.
    fn decode(&self, tokens: &[u32]) -> attune_model::Result<String>;

    /// Renders a chat to text as for a request; `None` if the model has no chat template.
    fn render_chat(
        &self,
        messages: &[Message],
        tools: &[ToolDefinition],
        options: &TemplateOptions,
    ) -> attune_model::Result<Option<String>>;

    /// Returns the tokens that end an answer, the usual one first.
    fn end_tokens(&self) -> &[u32];
}

impl TextCodec for BaseModel {
    fn encode(&self, text: &str, special: bool) -> attune_model::Result<Vec<u32>> {
        self.tokenizer.encode(text, special)
    }

    fn decode(&self, tokens: &[u32]) -> attune_model::Result<String> {
        self.tokenizer.decode(tokens, false)
    }

    fn render_chat(
        &self,
        messages: &[Message],
        tools: &[ToolDefinition],
        options: &TemplateOptions,
    ) -> attune_model::Result<Option<String>> {
        self.chat_template.as_ref().map(|template| chat::render(template, messages, tools, options)).transpose()
    }

    fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }
}

/// Tokenizes `text` as it goes on from `before`, whose tokens are `tokens`: together with it, if the tokens of both
/// begin with those. Otherwise the vocabulary joins letters over the border, where a model cannot follow; `text` is
/// then tokenized as on a new line, without the blank that some vocabularies put before a text.
pub(super) fn continuation(
    codec: &impl TextCodec,
    before: &str,
    tokens: &[u32],
    text: &str,
    special: bool,
) -> Result<Vec<u32>> {
    let both = codec.encode(&format!("{before}{text}"), special)?;
    if let Some(rest) = both.strip_prefix(tokens) {
        return Ok(rest.to_vec());
    }
    let line_feed = codec.encode("\n", false)?;
    let on_a_line = codec.encode(&format!("\n{text}"), false)?;
    match on_a_line.strip_prefix(line_feed.as_slice()) {
        Some(rest) if !line_feed.is_empty() => Ok(rest.to_vec()),
        _ => Ok(codec.encode(text, false)?),
    }
}
