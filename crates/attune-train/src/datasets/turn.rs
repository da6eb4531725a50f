//! One answer of a chat as tokens: its prompt as a request sends it, and the target that the model must then produce.
//! Called by [`super::render`].
//!
//! The target is the part of the template's text that belongs to the answer, up to the end token behind it (not the
//! line feed that templates put there, which the model never produces). Mostly the text with the answer begins with the
//! prompt, and the rest is the target. Otherwise [`Conversation::part`] finds it: some templates open an answer with a
//! reasoning tag that their history omits, some write the system message into the last turn of the user. Where the
//! answer stands in the text is seen by rendering another one in its place.

use super::Fault;
use super::codec::{TextCodec, continuation};
use super::turn_text::{
    back_to_tag, common_prefix, common_suffix, forward_to_tag, longest_common_end, squeezed, without_opened,
};
use crate::Result;
use attune_model::chat::{Message, ToolDefinition};
use attune_model::chat_template::TemplateOptions;

/// A chat with everything that renders it.
pub(super) struct Conversation<'a, C> {
    pub messages: &'a [Message],
    pub tools: &'a [ToolDefinition],
    pub codec: &'a C,
    pub now: i64,
}

/// Tokens of one answer.
pub(super) struct Turn {
    pub prompt: Vec<u32>,
    pub target: Vec<u32>,
    /// True if the text of the answer does not stand in the target.
    pub altered: bool,
    /// True if the answer names an end token.
    pub names_end: bool,
}

/// Text of an answer in the template's form.
struct AnswerText {
    /// Text that follows the prompt.
    text: String,
    /// Number of bytes at the end of `text` that the template writes behind any answer.
    behind: usize,
}

impl<C: TextCodec> Conversation<'_, C> {
    /// Tokenizes the prompt and the target of the assistant message at `turn`.
    pub(super) fn turn(&self, turn: usize) -> Result<Turn, Fault> {
        let prompt = self.text(&self.messages[..turn], true)?;
        let whole = self.text(&self.messages[..=turn], false)?;
        let answer = self.part(turn, &prompt, &whole)?;
        let altered = !self.stands_in(turn, &prompt, &answer.text)?;
        let tokens = self.codec.encode(&prompt, false)?;
        let (target, names_end) = self.target(&prompt, &tokens, &answer)?;
        Ok(Turn { prompt: tokens, target, altered, names_end })
    }

    fn text(&self, messages: &[Message], begin_answer: bool) -> Result<String, Fault> {
        let options = TemplateOptions { begin_answer, now: Some(self.now), ..TemplateOptions::default() };
        self.codec.render_chat(messages, self.tools, &options)?.ok_or_else(|| {
            Fault::Line("is a chat, but the model has no chat template: give `prompt` and `completion`".into())
        })
    }

    /// Renders the chat up to `turn` with another answer there, which begins and ends with another letter; `None` if
    /// the template refuses that.
    fn with_another_answer(&self, turn: usize) -> Result<Option<String>, Fault> {
        let said = self.messages[turn].content.trim();
        let differs = |letter: &&str| !said.starts_with(*letter) && !said.ends_with(*letter);
        let mut messages = self.messages[..=turn].to_vec();
        let letter = ["X", "Y", "Z"].into_iter().find(differs).unwrap_or("X");
        messages[turn] = Message { content: letter.into(), ..Message::new(messages[turn].role) };
        match self.text(&messages, false) {
            Ok(text) => Ok(Some(text)),
            Err(Fault::Line(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Finds the part of `whole` that the model has to produce after `prompt`.
    fn part(&self, turn: usize, prompt: &str, whole: &str) -> Result<AnswerText, Fault> {
        let other = self.with_another_answer(turn)?;
        let start = other.as_deref().map(|other| back_to_tag(whole, common_prefix(whole, other)));
        let behind = match &other {
            Some(other) => forward_to_tag(whole, common_suffix(whole, other)),
            None => whole.len() - whole.trim_end().len(),
        };
        let text = match whole.strip_prefix(prompt) {
            Some(text) if text.trim_start().starts_with(['<', '[']) => {
                let history = self.text(&self.messages[..turn], false)?;
                without_opened(prompt.strip_prefix(history.as_str()).unwrap_or_default(), text).to_owned()
            }
            Some(text) => text.to_owned(),
            None => self.aligned(turn, prompt, whole, start, behind)?,
        };
        let behind = behind.min(text.len());
        Ok(AnswerText { text, behind })
    }

    /// Finds the part of `whole` that the model has to produce after `prompt`, which `whole` does not begin with; the
    /// answer's own text stands at `start` of `whole`, `None` if that is not known, and `behind` bytes behind it.
    fn aligned(
        &self,
        turn: usize,
        prompt: &str,
        whole: &str,
        start: Option<usize>,
        behind: usize,
    ) -> Result<String, Fault> {
        let history = self.text(&self.messages[..turn], false)?;
        // Beginnings of the answer: that of the prompt, and that of the history.
        let (history, opened) = match prompt.strip_prefix(history.as_str()) {
            Some(opened) => (history.as_str(), opened),
            None => (prompt, ""),
        };
        let answer = &self.messages[turn];
        let said = without_opened(opened, &answer.content);
        let found = start.and_then(|start| {
            let head = &whole[..start];
            let own = match head.strip_prefix(history) {
                Some(own) => own,
                None => &head[longest_common_end(history, head)?..],
            };
            let shared = back_to_tag(opened, common_prefix(opened, own));
            // Blanks stand in the place of what the prompt opens.
            let (own, opens) = (&own[shared..], !opened[shared..].is_empty());
            let lead = if opens && own.trim().is_empty() { "" } else { own };
            let text = without_opened(opened, &format!("{lead}{}", &whole[start..])).to_owned();
            // The history leaves reasoning out, which the prompt asks for.
            let forgets = opens && answer.calls.is_empty() && !squeezed(&text).contains(&squeezed(said));
            (!forgets).then_some(text)
        });
        match found {
            Some(text) => Ok(text),
            None if answer.calls.is_empty() => Ok(format!("{said}{}", &whole[whole.len() - behind..])),
            None => {
                let turn = turn + 1;
                Err(Fault::Line(format!(
                    "message {turn}: the model's chat template cannot render this answer after its prompt"
                )))
            }
        }
    }

    /// Returns true if what the message says and calls stands in `text`, or was opened by the prompt already.
    fn stands_in(&self, turn: usize, prompt: &str, text: &str) -> Result<bool, Fault> {
        let answer = &self.messages[turn];
        let parts = [answer.content.as_str(), answer.reasoning.as_deref().unwrap_or_default()];
        let parts: Vec<String> =
            parts.into_iter().chain(answer.calls.iter().map(|call| call.name.as_str())).map(squeezed).collect();
        let stand_in = |text: &str| parts.iter().all(|part| squeezed(text).contains(part.as_str()));
        if stand_in(text) {
            return Ok(true);
        }
        let history = self.text(&self.messages[..turn], false)?;
        let opened = prompt.strip_prefix(history.as_str()).unwrap_or_default();
        Ok(stand_in(&format!("{opened}{text}")))
    }

    /// Tokenizes the answer up to the end token behind it; an answer without one gets it in place of what the template
    /// writes there. Returns the tokens, and true if an end token stands within the answer.
    fn target(&self, prompt: &str, tokens: &[u32], answer: &AnswerText) -> Result<(Vec<u32>, bool), Fault> {
        let AnswerText { text, behind } = answer;
        let is_end = |token: &u32| self.codec.end_tokens().contains(token);
        let (said, behind) = text.split_at(text.len() - behind);
        let mut target = continuation(self.codec, prompt, tokens, text, false)?;
        let ends: Vec<usize> = (0..target.len()).filter(|index| is_end(&target[*index])).collect();
        let behind = self.codec.encode(behind, false)?.iter().filter(|token| is_end(token)).count();
        let end = match ends.len().checked_sub(behind) {
            Some(within) if behind > 0 => Some(ends[within]),
            // The mark behind this answer is another one than behind most.
            _ => match ends.last() {
                Some(last) if self.codec.decode(&target[last + 1..])?.trim().is_empty() => Some(*last),
                _ => None,
            },
        };
        let Some(mut end) = end else {
            target = continuation(self.codec, prompt, tokens, said, false)?;
            let names_end = target.iter().any(is_end);
            target.extend(self.codec.end_tokens().first());
            return Ok((target, names_end));
        };
        // Of several in a row the first one ends the answer.
        while end > 0 && is_end(&target[end - 1]) {
            end -= 1;
        }
        target.truncate(end + 1);
        let names_end = target[..end].iter().any(is_end);
        Ok((target, names_end))
    }
}
