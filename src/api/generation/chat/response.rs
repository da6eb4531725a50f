//! The bodies of answers of `chat::create`: one for all choices, or chunks of them.

use serde::Serialize;
use utoipa::ToSchema;

use super::custom_input::InputReader;
use super::tool_calls::{CallFormat, CallParser, FunctionCall, Part, ToolCall, new_call_id};
use crate::api::generation::generate::Answer;
use crate::api::generation::generate::body::{Chunks, SERVICE_TIER, SYSTEM_FINGERPRINT, Usage, UsageKey, reason_name};
use crate::api::generation::generate::logprobs::{ChatLogprobs, TokenTexts};
use crate::engine::FinishReason;
use crate::engine::logprobs::TokenLogprobs;

/// The answers to a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    /// `chatcmpl-…`
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// The model as asked for.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens used.
    pub usage: Usage,
    /// Always `default`.
    pub service_tier: &'static str,
    /// Changes when the same seed may give another text.
    pub system_fingerprint: &'static str,
}

impl ChatCompletion {
    /// Makes the body of the answers that `writer` wrote.
    pub(super) fn new(writer: &Writer, choices: Vec<ChatChoice>, usage: Usage) -> Self {
        Self {
            id: writer.id.clone(),
            object: "chat.completion",
            created: writer.created,
            model: writer.model.clone(),
            choices,
            usage,
            service_tier: SERVICE_TIER,
            system_fingerprint: SYSTEM_FINGERPRINT,
        }
    }
}

/// One answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    /// Its number.
    pub index: usize,
    /// The assistant's message.
    pub message: AssistantMessage,
    /// Of its tokens, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, `tool_calls` or `function_call`.
    pub finish_reason: &'static str,
}

/// The assistant's message.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct AssistantMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text; null where there is none beside calls.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<()>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub annotations: [(); 0],
    /// The tools that the model calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Deprecated: the function that the model calls, where the request had `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall>,
}

impl AssistantMessage {
    /// A message that says and calls nothing yet.
    pub(super) const EMPTY: Self = Self {
        role: "assistant",
        content: None,
        refusal: None,
        annotations: [],
        tool_calls: Vec::new(),
        function_call: None,
    };
}

impl ChatChoice {
    /// Makes the choice with this answer; `format` is the form of the calls in it, `None` if it may have none.
    pub(super) fn new(
        index: usize,
        answer: Answer,
        logprobs: Option<ChatLogprobs>,
        format: Option<&CallFormat>,
    ) -> Self {
        let mut message = AssistantMessage::EMPTY;
        let Some(format) = format else {
            message.content = Some(answer.text);
            return Self { index, message, logprobs, finish_reason: reason_name(answer.reason) };
        };
        let mut parser = CallParser::new(format);
        let mut parts = parser.push(format, &answer.text);
        parts.extend(parser.finish(format));
        let mut input: Option<InputReader> = None;
        for part in parts {
            match part {
                Part::Content(text) => message.content.get_or_insert_default().push_str(&text),
                Part::Call { name, .. } => {
                    let is_custom = format.custom.contains(&name);
                    input = is_custom.then(InputReader::default);
                    message.tool_calls.push(ToolCall::new(new_call_id(), name, is_custom));
                }
                Part::Arguments { index, text } => {
                    let text = match &mut input {
                        Some(reader) => reader.push(&text),
                        None => text,
                    };
                    message.tool_calls[index].push(&text);
                }
            }
        }
        if message.tool_calls.is_empty() {
            message.content.get_or_insert_default();
        }
        if format.legacy {
            message.function_call = message.tool_calls.pop().and_then(|call| call.function);
        }
        Self { index, message, logprobs, finish_reason: finish_reason(answer.reason, &parser, format) }
    }
}

/// Returns the reason as clients read it: `tool_calls` or `function_call` if the answer ended with whole calls.
fn finish_reason(reason: FinishReason, parser: &CallParser, format: &CallFormat) -> &'static str {
    match (reason, parser.has_whole_calls()) {
        (FinishReason::Stop, true) if format.legacy => "function_call",
        (FinishReason::Stop, true) => "tool_calls",
        _ => reason_name(reason),
    }
}

/// One event of a streamed answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatCompletionChunk {
    /// The same in all events of an answer.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// The model as asked for.
    pub model: String,
    /// Always `default`.
    pub service_tier: &'static str,
    /// Changes when the same seed may give another text.
    pub system_fingerprint: &'static str,
    /// What is new.
    pub choices: Vec<ChatChunkChoice>,
    /// Tokens used, in the last event, where asked for.
    #[serde(skip_serializing_if = "UsageKey::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: UsageKey,
}

/// What is new in one answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatChunkChoice {
    /// The number of the answer.
    pub index: usize,
    /// What is new in its message.
    pub delta: Delta,
    /// Of the tokens that are new, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, `tool_calls` or `function_call`; null while the answer goes on.
    pub finish_reason: Option<&'static str>,
}

/// What is new in a message.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Delta {
    /// `assistant`, in the first event of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Calls that begin, and more of their arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    /// Deprecated: the call where the request had `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionDelta>,
}

/// What is new in a call.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ToolCallDelta {
    /// The number of the call.
    pub index: usize,
    /// Where the call begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function` or `custom`; where the call begins.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// The function that is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionDelta>,
    /// The custom tool that is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomDelta>,
}

/// What is new in a custom tool with its input.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CustomDelta {
    /// The tool, where the call begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of its input.
    pub input: String,
}

/// What is new in a function with its arguments.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FunctionDelta {
    /// The function, where the call begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the text of its arguments.
    pub arguments: String,
}

/// Writes the answers of one request.
pub(super) struct Writer {
    pub id: String,
    pub created: i64,
    pub model: String,
    pub stream_usage: bool,
    /// Shows tokens; `None` if no log probabilities are wanted.
    pub tokens: Option<TokenTexts>,
    /// The format of calls; `None` if answers may have none.
    pub calls: Option<CallFormat>,
    /// Parsers of the choices up to the last one whose text has begun.
    pub parsers: Vec<ChoiceParser>,
}

/// Parses one streamed answer that may have calls.
pub(super) struct ChoiceParser {
    parser: CallParser,
    /// Reads the input of the custom tool that is being called.
    input: Option<InputReader>,
    /// True until something other than the role was sent.
    silent: bool,
}

impl Writer {
    /// Returns the log probabilities of these tokens; `None` if they are not wanted.
    pub(super) fn logprobs(&self, tokens: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        self.tokens.as_ref().map(|texts| texts.chat(tokens))
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: UsageKey) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            service_tier: SERVICE_TIER,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        }
    }

    fn delta(&self, index: usize, delta: Delta, finish_reason: Option<&'static str>) -> ChatCompletionChunk {
        let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason };
        self.chunk(vec![choice], UsageKey::before_the_last(self.stream_usage))
    }
}

impl ChoiceParser {
    /// Returns the change of a message that a part of an answer makes; `None` if it shows nothing yet.
    fn delta(&mut self, part: Part, format: &CallFormat) -> Option<Delta> {
        let (index, id, name, text) = match part {
            Part::Content(text) => return Some(Delta { content: Some(text), ..Delta::default() }),
            Part::Call { index, name } => {
                self.input = format.custom.contains(&name).then(InputReader::default);
                (index, Some(new_call_id()), Some(name), String::new())
            }
            Part::Arguments { index, text } => (index, None, None, text),
        };
        let call = if let Some(reader) = &mut self.input {
            let input = reader.push(&text);
            if id.is_none() && input.is_empty() {
                return None;
            }
            let (kind, custom) = (id.is_some().then_some("custom"), Some(CustomDelta { name, input }));
            ToolCallDelta { index, id, kind, function: None, custom }
        } else {
            let function = FunctionDelta { name, arguments: text };
            if format.legacy {
                return Some(Delta { function_call: Some(function), ..Delta::default() });
            }
            let kind = id.is_some().then_some("function");
            ToolCallDelta { index, id, kind, function: Some(function), custom: None }
        };
        Some(Delta { tool_calls: vec![call], ..Delta::default() })
    }
}

impl Chunks for Writer {
    type Chunk = ChatCompletionChunk;

    fn begin(&self, index: usize) -> Option<ChatCompletionChunk> {
        // An answer of calls has null as content, not an empty text; which of the two it is shows later.
        let content = self.calls.is_none().then(String::new);
        Some(self.delta(index, Delta { role: Some("assistant"), content, ..Delta::default() }, None))
    }

    fn text(&mut self, index: usize, text: String, token: Option<&TokenLogprobs>) -> Vec<ChatCompletionChunk> {
        let deltas = match &self.calls {
            None => vec![Delta { content: Some(text), ..Delta::default() }],
            Some(format) => {
                let choice = choice_parser(&mut self.parsers, format, index);
                let parts = choice.parser.push(format, &text);
                choice.silent &= parts.is_empty();
                parts.into_iter().filter_map(|part| choice.delta(part, format)).collect()
            }
        };
        let mut chunks: Vec<_> = deltas.into_iter().map(|delta| self.delta(index, delta, None)).collect();
        if let Some(token) = token {
            // A token of a call's markup adds no text; its log probability is sent all the same.
            if chunks.is_empty() {
                chunks.push(self.delta(index, Delta::default(), None));
            }
            chunks[0].choices[0].logprobs = self.logprobs(std::slice::from_ref(token));
        }
        chunks
    }

    fn end(&mut self, index: usize, reason: FinishReason) -> Vec<ChatCompletionChunk> {
        let Some(format) = &self.calls else {
            return vec![self.delta(index, Delta::default(), Some(reason_name(reason)))];
        };
        let choice = choice_parser(&mut self.parsers, format, index);
        let mut parts = choice.parser.finish(format);
        if choice.silent && parts.is_empty() {
            parts.push(Part::Content(String::new()));
        }
        let reason = finish_reason(reason, &choice.parser, format);
        let rest: Vec<Delta> = parts.into_iter().filter_map(|part| choice.delta(part, format)).collect();
        let rest = rest.into_iter().map(|delta| self.delta(index, delta, None));
        rest.chain([self.delta(index, Delta::default(), Some(reason))]).collect()
    }

    fn usage(&self, usage: Usage) -> Option<ChatCompletionChunk> {
        self.stream_usage.then(|| self.chunk(Vec::new(), UsageKey::Now(usage)))
    }
}

fn choice_parser<'a>(parsers: &'a mut Vec<ChoiceParser>, format: &CallFormat, index: usize) -> &'a mut ChoiceParser {
    while parsers.len() <= index {
        parsers.push(ChoiceParser { parser: CallParser::new(format), input: None, silent: true });
    }
    &mut parsers[index]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::tool_syntax::ToolSyntax;

    fn writer(calls: Option<CallFormat>) -> Writer {
        let (id, model) = ("chatcmpl-1".into(), "m".into());
        Writer { id, created: 1, model, stream_usage: false, tokens: None, calls, parsers: Vec::new() }
    }

    fn answer(text: &str, reason: FinishReason) -> Answer {
        Answer { text: text.into(), reason, tokens: Vec::new(), prompt: Vec::new() }
    }

    fn calls(legacy: bool) -> CallFormat {
        let (syntax, names) = (ToolSyntax::HERMES, vec!["f".into()]);
        CallFormat { syntax, names, custom: Vec::new(), required: false, json_answers: false, legacy }
    }

    fn choices(chunks: &[ChatCompletionChunk]) -> Vec<Value> {
        let choices = |chunk| serde_json::to_value(chunk).expect("JSON")["choices"][0].take();
        chunks.iter().map(choices).collect()
    }

    const CALL: &str = "Wait.<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

    #[test]
    fn a_stream_begins_with_the_role_and_ends_with_an_empty_delta() {
        let mut writer = writer(None);
        let first = serde_json::to_value(writer.begin(0)).expect("JSON");
        assert_eq!(first["choices"][0]["delta"], json!({"role":"assistant","content":""}));
        let last = choices(&writer.end(0, FinishReason::Stop));
        assert_eq!(last, [json!({"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"})]);
    }

    #[test]
    fn a_call_streams_its_name_first_and_then_its_arguments_alone() {
        let mut writer = writer(Some(calls(false)));
        let begin = serde_json::to_value(writer.begin(1)).expect("JSON");
        assert_eq!(begin["choices"][0]["delta"], json!({"role":"assistant"}));
        let mut chunks = writer.text(1, CALL.into(), None);
        chunks.extend(writer.end(1, FinishReason::Stop));
        let mut sent = choices(&chunks);
        let id = sent[1]["delta"]["tool_calls"][0]["id"].take();
        assert!(id.as_str().is_some_and(|id| id.starts_with("call_")), "{id}");
        let deltas: Vec<_> = sent.iter().map(|choice| choice["delta"].clone()).collect();
        let head = json!({"index":0,"id":null,"type":"function","function":{"name":"f","arguments":""}});
        let rest = json!({"index":0,"function":{"arguments":"{\"a\": 1}"}});
        assert_eq!(
            deltas,
            [json!({"content":"Wait."}), json!({"tool_calls":[head]}), json!({"tool_calls":[rest]}), json!({})]
        );
        assert_eq!(sent[3]["finish_reason"], "tool_calls");
    }

    #[test]
    fn a_custom_tool_streams_its_input_as_a_text() {
        const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"input\": \"a\\n\\\"b\"}}\n</tool_call>";
        let format = CallFormat { custom: vec!["f".into()], ..calls(false) };
        let mut writer = writer(Some(format.clone()));
        let mut chunks: Vec<_> = CALL.chars().flat_map(|character| writer.text(0, character.into(), None)).collect();
        chunks.extend(writer.end(0, FinishReason::Stop));
        let sent = choices(&chunks);
        let first = &sent[0]["delta"]["tool_calls"][0];
        assert_eq!((&first["type"], &first["custom"]), (&json!("custom"), &json!({"name": "f", "input": ""})));
        let inputs = sent.iter().filter_map(|choice| choice["delta"]["tool_calls"][0]["custom"]["input"].as_str());
        assert_eq!(inputs.collect::<Vec<_>>(), ["", "a", "\n", "\"", "b"]);
        assert_eq!(sent.last().expect("one")["finish_reason"], "tool_calls");
        let whole = ChatChoice::new(0, answer(CALL, FinishReason::Stop), None, Some(&format));
        let mut whole = serde_json::to_value(whole).expect("JSON");
        whole["message"]["tool_calls"][0]["id"].take();
        let call = json!({"id": null, "type": "custom", "custom": {"name": "f", "input": "a\n\"b"}});
        assert_eq!(whole["message"]["tool_calls"], json!([call]));
    }

    #[test]
    fn the_older_form_has_one_call_without_number_and_id() {
        let mut writer = writer(Some(calls(true)));
        let mut chunks = writer.text(0, CALL.into(), None);
        chunks.extend(writer.end(0, FinishReason::Stop));
        let sent = choices(&chunks);
        assert_eq!(sent[1]["delta"], json!({"function_call":{"name":"f","arguments":""}}));
        assert_eq!(sent[3]["finish_reason"], "function_call");
        let answer = answer(CALL, FinishReason::Stop);
        let whole = serde_json::to_value(ChatChoice::new(0, answer, None, Some(&calls(true)))).expect("JSON");
        let call = json!({"name":"f","arguments":"{\"a\": 1}"});
        assert_eq!(
            whole["message"],
            json!({"role":"assistant","content":"Wait.","refusal":null,"annotations":[],"function_call":call})
        );
        assert_eq!(whole["finish_reason"], "function_call");
    }

    #[test]
    fn a_call_that_was_cut_keeps_what_arrived_and_its_reason() {
        let answer = answer(&CALL[..CALL.len() - 15], FinishReason::Length);
        let choice = ChatChoice::new(0, answer, None, Some(&calls(false)));
        let function = choice.message.tool_calls[0].function.as_ref().expect("a function");
        assert_eq!(function.arguments, "{\"a\": 1");
        assert_eq!(choice.finish_reason, "length");
    }
}
