//! A readable codec: one token per character. Use as `#[path = "common/characters.rs"] mod characters;`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::fmt::Write as _;

use attune::datasets::{Dataset, DatasetReport, TextCodec, TokenizedExample};
use attune::model::chat::{Message, ToolDefinition};
use attune::model::chat_template::TemplateOptions;
use attune::model::{Error, Result};

pub(crate) const END: u32 = 1000;

/// Codec with one token per character and one for `<end>`, and a template of the common form.
pub(crate) struct Characters {
    pub template: Template,
}

pub(crate) enum Template {
    None,
    /// `[role]content<end>\n` for each message.
    Plain,
    /// The same, but answers before the last one lose the text before `|`, as reasoning does in some templates.
    Forgetful,
    /// The generation prompt opens a tag that the history omits.
    OpensTag,
    /// Tools before the chat, calls in place of texts, results as messages.
    Tools,
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

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = |token: &u32| match *token {
            END => "<end>".into(),
            token => char::from_u32(token).unwrap().to_string(),
        };
        Ok(tokens.iter().map(text).collect())
    }

    fn render_chat(
        &self,
        messages: &[Message],
        tools: &[ToolDefinition],
        options: &TemplateOptions,
    ) -> Result<Option<String>> {
        if matches!(self.template, Template::None) {
            return Ok(None);
        }
        let mut text = String::new();
        let with_tools = matches!(self.template, Template::Tools);
        if with_tools && !tools.is_empty() {
            let names = tools.iter().map(|tool| tool.name.as_str());
            writeln!(text, "[tools]{}<end>", names.collect::<Vec<_>>().join(",")).unwrap();
        }
        for (index, message) in messages.iter().enumerate() {
            let (role, mut content) = (message.role.name(), message.content.as_str());
            let call = message.calls.first().map(|call| format!("{}()", call.name));
            if let Some(call) = call.as_deref().filter(|_| with_tools) {
                content = call;
            }
            if role == "tool" && !with_tools {
                return Err(Error::Template("this template has no tools".into()));
            }
            if matches!(self.template, Template::Forgetful) && index + 1 < messages.len() {
                content = content.split('|').next_back().unwrap();
            }
            writeln!(text, "[{role}]{content}<end>").unwrap();
        }
        if options.begin_answer {
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

/// Returns the targets of an example as text, with `$` for the end token.
pub(crate) fn targets(example: &TokenizedExample) -> String {
    let weighted = example.tokens.iter().zip(&example.weights).filter(|(_, weight)| **weight > 0.0);
    weighted.map(|(token, _)| if *token == END { '$' } else { char::from_u32(*token).unwrap() }).collect()
}

/// A file's examples in memory.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// Sequences; empty for a file of pairs of texts.
    pub examples: Vec<TokenizedExample>,
    /// Texts of each pair; empty for any other file.
    pub texts: Vec<Vec<Vec<u32>>>,
    /// Score or label of each pair; empty for any other file.
    pub numbers: Vec<f32>,
    pub report: DatasetReport,
}

impl Rendered {
    pub(crate) fn of(data: Dataset) -> attune_train::Result<Self> {
        let Dataset { examples: store, report, .. } = data;
        let all = 0..store.len();
        let (examples, texts) = if report.is_of_texts() {
            (Vec::new(), all.clone().map(|index| store.texts(index)).collect::<attune_train::Result<_>>()?)
        } else {
            (store.range(all.clone())?, Vec::new())
        };
        let numbers = all.filter(|_| report.is_of_texts()).filter_map(|index| Some(store.scored(index).ok()?.1));
        Ok(Self { examples, texts, numbers: numbers.collect(), report })
    }
}
