//! A codec that can be read: one token per character. Use as `#[path = "common/characters.rs"] mod characters;`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::fmt::Write as _;

use attune::datasets::{TextCodec, TokenizedExample};
use attune::{Error, Result};
use serde_json::Value;

pub const END: u32 = 1000;

/// One token per character, `<end>` being one token, and a template of the common form.
pub struct Characters {
    pub template: Template,
}

pub enum Template {
    None,
    /// `[role]content<end>\n` for each message.
    Plain,
    /// The same, but answers before the last one lose what stands before `|`, as reasoning does in some templates.
    Forgetful,
    /// The generation prompt opens a tag that the history leaves out.
    OpensTag,
}

impl TextCodec for Characters {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let mut tokens = if special { vec![999] } else { Vec::new() };
        for (index, part) in text.split("<end>").enumerate() {
            if index > 0 {
                tokens.push(END);
            }
            tokens.extend(part.chars().map(u32::from));
        }
        Ok(tokens)
    }

    fn render_chat(&self, messages: &[Value], _: Option<&[Value]>, generate: bool) -> Result<Option<String>> {
        if matches!(self.template, Template::None) {
            return Ok(None);
        }
        let mut text = String::new();
        for (index, message) in messages.iter().enumerate() {
            let (role, mut content) =
                (message["role"].as_str().unwrap(), message["content"].as_str().unwrap_or("call"));
            if role == "tool" {
                return Err(Error::invalid("messages", "this template has no tools"));
            }
            if matches!(self.template, Template::Forgetful) && index + 1 < messages.len() {
                content = content.split('|').next_back().unwrap();
            }
            writeln!(text, "[{role}]{content}<end>").unwrap();
        }
        if generate {
            text.push_str(if matches!(self.template, Template::OpensTag) {
                "[assistant]<think>"
            } else {
                "[assistant]"
            });
        }
        Ok(Some(text))
    }

    fn end_tokens(&self) -> &[u32] {
        &[END]
    }
}

/// The targets of an example as text, `$` for the end token.
pub fn targets(example: &TokenizedExample) -> String {
    let weighted = example.tokens.iter().zip(&example.weights).filter(|(_, weight)| **weight > 0.0);
    weighted.map(|(token, _)| if *token == END { '$' } else { char::from_u32(*token).unwrap() }).collect()
}
