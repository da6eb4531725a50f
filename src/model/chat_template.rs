//! Renders chats with the model's own Jinja template, as Hugging Face's tokenizers do.

use std::path::Path;

use serde_json::Value;

use crate::Result;

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`; `None` where there is neither.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let _ = folder;
        todo!()
    }

    /// The prompt text of `messages` (objects with `role` and `content`), ending where the assistant's answer begins when
    /// `add_generation_prompt`. A template's own complaint (`raise_exception`) is an [`crate::Error::Invalid`].
    pub fn render(&self, messages: &[Value], tools: Option<&[Value]>, add_generation_prompt: bool) -> Result<String> {
        let _ = (messages, tools, add_generation_prompt);
        todo!()
    }
}
