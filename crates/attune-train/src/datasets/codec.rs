//! Functions of a model that turn text into tokens. Used by all of [`super`].

use attune_model::BaseModel;
use attune_model::chat::{self, Message, ToolDefinition};
use attune_model::chat_template::TemplateOptions;
use attune_model::tokenizer::PairTokens;

use super::parse::Format;
use crate::Result;

/// Texts that stand before those of a pair; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextPrompts {
    /// Before each anchor.
    pub anchor: String,
    /// Before each other text.
    pub others: String,
}

/// Tokens of a text whose vector is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextTokens {
    /// Token ids, those around the text included.
    pub ids: Vec<u32>,
    /// Tokens before any were cut off.
    pub length: usize,
}

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

    /// Tokenizes a text with `prompt` before it as `/embeddings` does. A longer one is cut at its end, inside the tokens
    /// around it, to `limit` tokens or to what the model takes, if that is less.
    fn encode_text(&self, prompt: &str, text: &str, limit: usize) -> attune_model::Result<TextTokens> {
        let mut ids = self.encode(&format!("{prompt}{text}"), true)?;
        let length = ids.len();
        ids.truncate(limit);
        Ok(TextTokens { ids, length })
    }

    /// Returns the number of tokens at the begin of a text with `prompt` before it that its vector leaves out.
    fn unpooled(&self, _prompt: &str) -> attune_model::Result<usize> {
        Ok(0)
    }

    /// Tokenizes a pair of texts as one input of at most `limit` tokens, or of what the model takes, if that is less.
    fn encode_pair(&self, first: &str, second: &str, limit: usize) -> attune_model::Result<PairTokens> {
        let mut ids = self.encode(first, true)?;
        let second_begin = ids.len();
        ids.extend(self.encode(second, false)?);
        let length = ids.len();
        ids.truncate(limit);
        Ok(PairTokens { second: (second_begin < ids.len()).then_some(second_begin), ids, length })
    }

    /// Fails if the model cannot learn from lines of `format`, with words that go on after "each of its lines".
    fn check_learnable(&self, _format: Format) -> Result<(), String> {
        Ok(())
    }
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

    fn encode_text(&self, prompt: &str, text: &str, limit: usize) -> attune_model::Result<TextTokens> {
        let read = self.tokenizer.encode_within(&format!("{prompt}{text}"), limit.min(self.vectors.max_tokens))?;
        Ok(TextTokens { ids: read.ids, length: read.length })
    }

    fn unpooled(&self, prompt: &str) -> attune_model::Result<usize> {
        self.unpooled_tokens(prompt)
    }

    fn encode_pair(&self, first: &str, second: &str, limit: usize) -> attune_model::Result<PairTokens> {
        self.tokenizer.encode_pair(first, second, limit.min(self.vectors.max_tokens))
    }

    fn check_learnable(&self, format: Format) -> Result<(), String> {
        let Self { id, config, classifier, .. } = self;
        match (format, classifier) {
            (Format::Completion | Format::Chat, _) if config.is_encoder => Err(format!(
                "is {format}, but `{id}` is an encoder, which reads texts and writes none: give pairs of texts, such as \
                 {{\"anchor\": \"…\", \"positive\": \"…\"}}, or train a model that writes"
            )),
            (Format::Completion | Format::Chat, Some(_)) => Err(format!(
                "is {format}, but `{id}` has a classification head in place of words: give lines {{\"query\": \"…\", \
                 \"document\": \"…\", \"label\": 1}}, or train a model that writes"
            )),
            (Format::Pair | Format::ScoredPair, Some(_)) => Err(format!(
                "is {format}, but `{id}` has a classification head and reads both texts of a pair at once: give lines \
                 {{\"query\": \"…\", \"document\": \"…\", \"label\": 1}}, or train a model of embeddings"
            )),
            (Format::LabelledPair, None) => Err(format!(
                "is {format}, but `{id}` has no classification head that could score pairs of texts: write the label as \
                 `score` to train vectors, or train a cross-encoder"
            )),
            (Format::LabelledPair, Some(head)) if head.labels.len() != 1 => Err(format!(
                "is {format}, but the classification head of `{id}` has {} labels, and only heads of one label are \
                 trained: take a cross-encoder with one",
                head.labels.len()
            )),
            _ => Ok(()),
        }
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
