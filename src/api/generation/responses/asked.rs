//! Makes a request for a chat of a request for a response, and says what the response repeats of it. Errors of the chat
//! are told in the names that the fields have here. Used by `responses`.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::object::{ReasoningEcho, TextEcho, ToolEcho};
use super::request::{CreateResponse, ResponseTool, TextFormat};
use crate::api::generation::chat::{
    ChatMessage, ChatRequest, CustomDefinition, FunctionDefinition, FunctionName, JsonSchemaFormat, NamedTool,
    ResponseFormat, Tool, ToolChoice, check_name,
};
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::parse_at;
use crate::api::operations::checks::{check_metadata, within};
use crate::datasets::parse::shorten;
use crate::graders::spec::EFFORTS;

/// Efforts that clients know in answers.
const SHOWN_EFFORTS: [&str; 5] = ["none", "low", "medium", "high", "xhigh"];

/// A request, checked.
pub(super) struct Asked {
    /// The chat that answers it.
    pub chat: ChatRequest,
    /// True if the text has a form that leaves no room for thinking.
    pub is_structured: bool,
    /// True if the oldest messages may be left out.
    pub truncates: bool,
    /// What the response repeats.
    pub tools: Vec<ToolEcho>,
    pub text: TextEcho,
    pub reasoning: ReasoningEcho,
    pub tool_choice: Value,
    pub names: Names,
}

/// How errors of the chat are told.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// The place in the request of each tool of the chat.
    places: Vec<usize>,
    /// Tools that a server would have to call, by their place and type.
    pub skipped: Vec<String>,
}

impl Asked {
    /// Checks `request`, which says `messages`.
    pub(super) fn of(request: &CreateResponse, messages: Vec<ChatMessage>) -> Result<Self> {
        check_metadata(request.metadata.as_ref())?;
        within("top_logprobs", request.top_logprobs, 0, 20)?;
        if request.max_output_tokens == Some(0) {
            let message = "Invalid 'max_output_tokens': expected a whole number of at least 1, got 0.";
            return Err(Problem::invalid_code("max_output_tokens", "invalid_value", message));
        }
        let truncates = one_of("truncation", request.truncation.as_deref(), &["auto", "disabled"])? == Some("auto");
        let format = request.text.as_ref().and_then(|text| text.format.as_ref());
        let response_format = format.map(response_format).transpose()?.flatten();
        let verbosity = request.text.as_ref().and_then(|text| text.verbosity.as_deref());
        one_of("text.verbosity", verbosity, &["low", "medium", "high"])?;
        let text = TextEcho::of(format, response_format.is_some(), verbosity);
        let given = request.reasoning.as_ref();
        let effort = one_of("reasoning.effort", given.and_then(|given| given.effort.as_deref()), &EFFORTS)?;
        let summary = given.and_then(|given| given.summary.as_deref());
        one_of("reasoning.summary", summary, &["auto", "concise", "detailed"])?;
        let shown = effort.filter(|effort| SHOWN_EFFORTS.contains(effort));
        let reasoning = ReasoningEcho { effort: shown.map(str::to_owned), summary: summary.map(str::to_owned) };
        let (tools, names) = tools(request.tools.as_deref().unwrap_or_default())?;
        let choice = Choice::of(request.tool_choice.as_ref(), &tools)?;
        let logprobs = request.logprobs();
        let chat = ChatRequest {
            model: request.model.clone(),
            messages,
            max_completion_tokens: request.max_output_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            min_p: request.min_p,
            stop: request.stop.clone(),
            seed: request.seed,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            repetition_penalty: request.repetition_penalty,
            logit_bias: request.logit_bias.clone(),
            tools: (!tools.is_empty()).then(|| tools.iter().map(chat_tool).collect()),
            tool_choice: choice.chat,
            callable: choice.callable,
            parallel_tool_calls: request.parallel_tool_calls,
            chat_template_kwargs: variables(request.chat_template_kwargs.clone(), effort),
            logprobs: Some(logprobs.is_some()),
            top_logprobs: logprobs,
            response_format,
            ..ChatRequest::default()
        };
        let is_structured = chat.response_format.is_some();
        let tool_choice = request.tool_choice.clone().unwrap_or_else(|| "auto".into());
        Ok(Self { chat, is_structured, truncates, tools, text, reasoning, tool_choice, names })
    }
}

/// Returns `value` if it is among the `words`.
fn one_of<'a>(param: &'static str, value: Option<&'a str>, words: &[&str]) -> Result<Option<&'a str>> {
    match value {
        Some(value) if !words.contains(&value) => {
            let message = format!("Invalid '{param}': expected {}, got '{}'.", words.join(", "), shorten(value));
            Err(Problem::invalid_code(param, "invalid_value", message))
        }
        value => Ok(value),
    }
}

/// Returns the form of the text as a chat has it; `None` if any text will do.
fn response_format(format: &TextFormat) -> Result<Option<ResponseFormat>> {
    let plain = |kind: &str, schema| ResponseFormat { kind: kind.into(), json_schema: None, schema, value: None };
    if let Some(name) = &format.name {
        check_name("text.format.name", name)?;
    }
    if format.json_schema.is_some() {
        let message = "'text.format.json_schema' is the form of a chat: write its fields, such as 'name' and 'schema', \
                       beside 'type' here.";
        return Err(Problem::invalid_code("text.format.json_schema", "unsupported_parameter", message));
    }
    match (format.kind.as_str(), &format.schema) {
        ("text", None) => Ok(None),
        ("text", Some(_)) => {
            let message = "'text.format.schema' needs the type 'json_schema'.";
            Err(Problem::invalid_code("text.format.schema", "unsupported_parameter", message))
        }
        ("json_object", schema) => Ok(Some(plain("json_object", schema.clone()))),
        // Clients ask for any JSON in this way.
        ("json_schema", None) => Ok(Some(plain("json_object", None))),
        ("json_schema", Some(schema)) => {
            let name = format.name.clone().unwrap_or_else(|| "response".into());
            let (description, strict) = (format.description.clone(), format.strict);
            let json_schema = JsonSchemaFormat { name, description, schema: Some(schema.clone()), strict };
            Ok(Some(ResponseFormat { json_schema: Some(json_schema), ..plain("json_schema", None) }))
        }
        (other, _) => {
            let message =
                format!("'{}' is not a form of answers: use text, json_object or json_schema.", shorten(other));
            Err(Problem::invalid_code("text.format.type", "invalid_value", message))
        }
    }
}

/// Returns the tools that the model is shown. Those of types that a server would have to call are left out: the model
/// cannot call them, and the answer says so.
fn tools(given: &[ResponseTool]) -> Result<(Vec<ToolEcho>, Names)> {
    let (mut tools, mut names) = (Vec::new(), Names::default());
    for (index, tool) in given.iter().enumerate() {
        match tool.kind.as_str() {
            "function" => tools.push(function(tool, index)?),
            "custom" => tools.push(custom(tool, index)?),
            other => {
                names.skipped.push(format!("tools[{index}]: {}", shorten(other)));
                continue;
            }
        }
        names.places.push(index);
    }
    Ok((tools, names))
}

fn function(tool: &ResponseTool, index: usize) -> Result<ToolEcho> {
    // In the form that a chat has, the function stands one level below.
    let inner: Option<FunctionDefinition> = match &tool.function {
        None => None,
        Some(function) => Some(parse_at(function.clone(), &format!("tools[{index}].function"))?),
    };
    let (name, description, parameters, strict) = match (inner, &tool.name) {
        (Some(inner), None) => (inner.name, inner.description, inner.parameters, inner.strict),
        (None, Some(name)) => (name.clone(), tool.description.clone(), tool.parameters.clone(), tool.strict),
        (None, None) => return Err(Problem::missing(format!("tools[{index}].name"))),
        (Some(_), Some(_)) => {
            let message = format!("tools[{index}] has both 'name' and 'function': send one of them.");
            return Err(Problem::invalid_code(format!("tools[{index}].function"), "invalid_value", message));
        }
    };
    Ok(ToolEcho { kind: "function", name, description, parameters, strict, format: None })
}

fn custom(tool: &ResponseTool, index: usize) -> Result<ToolEcho> {
    let name = tool.name.clone().ok_or_else(|| Problem::missing(format!("tools[{index}].name")))?;
    let format = Some(tool.format.clone().unwrap_or_else(|| json!({"type": "text"})));
    Ok(ToolEcho { kind: "custom", name, description: tool.description.clone(), parameters: None, strict: None, format })
}

/// Returns the tool as a chat has it.
fn chat_tool(tool: &ToolEcho) -> Tool {
    let (name, description, kind) = (tool.name.clone(), tool.description.clone(), tool.kind.to_owned());
    if tool.kind == "custom" {
        let custom = Some(CustomDefinition { name, description, format: tool.format.clone() });
        return Tool { kind, function: None, custom };
    }
    let (parameters, strict) = (tool.parameters.clone(), tool.strict);
    Tool { kind, function: Some(FunctionDefinition { name, description, parameters, strict }), custom: None }
}

/// What the model may do with the tools, as a chat has it.
struct Choice {
    chat: Option<ToolChoice>,
    callable: Option<Vec<String>>,
}

impl Choice {
    fn of(choice: Option<&Value>, tools: &[ToolEcho]) -> Result<Self> {
        const PARAM: &str = "tool_choice";
        let mode = |mode: &str| Some(ToolChoice::Mode(mode.to_owned()));
        let fault = |message: String| Problem::invalid_code(PARAM, "invalid_value", message);
        match choice {
            None | Some(Value::Null) => Ok(Self { chat: None, callable: None }),
            Some(Value::String(word)) => Ok(Self { chat: mode(word), callable: None }),
            Some(Value::Object(fields)) => match fields.get("type").and_then(Value::as_str).unwrap_or_default() {
                kind @ ("function" | "custom") => {
                    let name = Some(FunctionName { name: named(kind, fields, tools)? });
                    let (function, custom) = if kind == "custom" { (None, name) } else { (name, None) };
                    let chat = Some(ToolChoice::Named(NamedTool { kind: kind.to_owned(), function, custom }));
                    Ok(Self { chat, callable: None })
                }
                "allowed_tools" => {
                    // In a chat, both stand one level below.
                    let fields = fields.get("allowed_tools").and_then(Value::as_object).unwrap_or(fields);
                    let word = match fields.get("mode") {
                        None | Some(Value::Null) => "auto",
                        Some(mode) => mode.as_str().unwrap_or_default(),
                    };
                    if !["auto", "required"].contains(&word) {
                        return Err(
                            fault("'tool_choice.mode' must be auto or required.".into()).param("tool_choice.mode")
                        );
                    }
                    let allowed = fields.get("tools").and_then(Value::as_array).filter(|allowed| !allowed.is_empty());
                    let allowed = allowed.ok_or_else(|| fault("'tool_choice.tools' names no tool.".into()))?;
                    let names = allowed.iter().map(|tool| {
                        let kind = tool["type"].as_str().unwrap_or_default();
                        let fields = tool.as_object().filter(|_| ["function", "custom"].contains(&kind));
                        let other = || fault(format!("'{}' is not a type of tools that can be called.", shorten(kind)));
                        named(kind, fields.ok_or_else(other)?, tools)
                    });
                    Ok(Self { chat: mode(word), callable: Some(names.collect::<Result<_>>()?) })
                }
                other => Err(fault(format!("'{}' is not a tool that this server calls.", shorten(other)))),
            },
            Some(_) => Err(Problem::wrong_type(PARAM, "expected none, auto, required or an object")),
        }
    }
}

/// Returns the name of the tool of this kind that `fields` name.
fn named(kind: &str, fields: &Map<String, Value>, tools: &[ToolEcho]) -> Result<String> {
    let name = fields.get("name").or_else(|| fields.get(kind).and_then(|inner| inner.get("name")));
    let name = name.and_then(Value::as_str).ok_or_else(|| Problem::missing("tool_choice.name"))?;
    if !tools.iter().any(|tool| tool.kind == kind && tool.name == name) {
        let message =
            format!("'tool_choice' names '{}', which is not among the tools of the type {kind}.", shorten(name));
        return Err(Problem::invalid_code("tool_choice", "invalid_value", message));
    }
    Ok(name.to_owned())
}

/// Returns the variables of the template; the effort `none` sets those by which templates switch thinking off.
fn variables(given: Option<Map<String, Value>>, effort: Option<&str>) -> Option<Map<String, Value>> {
    if effort == Some("none") { Some(without_thinking(given)) } else { given }
}

/// Returns variables that switch thinking off, unless they are `given` otherwise.
pub(super) fn without_thinking(given: Option<Map<String, Value>>) -> Map<String, Value> {
    let mut variables = given.unwrap_or_default();
    for name in ["enable_thinking", "thinking"] {
        variables.entry(name).or_insert(Value::Bool(false));
    }
    variables
}

impl Names {
    /// Returns an error of a chat in the names that the fields have here. Its param and its code are never null, as
    /// some clients demand on this route.
    pub(super) fn tell(&self, mut problem: Problem) -> Problem {
        problem.error.message = self.rename(&problem.error.message);
        problem.error.param = problem.error.param.map(|param| match &*param {
            messages if messages.starts_with("messages") => Cow::Borrowed("input"),
            other => Cow::Owned(self.rename(other)),
        });
        complete(problem)
    }

    /// Names fields of a chat as they are called here.
    pub(super) fn rename(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (chat, here) in [
            ("response_format.json_schema", "text.format"),
            ("response_format", "text.format"),
            ("max_completion_tokens", "max_output_tokens"),
            ("'messages'", "'input'"),
            (".function.parameters", ".parameters"),
            (".function.name", ".name"),
            (".custom.format", ".format"),
            (".custom.name", ".name"),
        ] {
            text = text.replace(chat, here);
        }
        // From the last one on: each stands at its own number or at a higher one.
        for (number, place) in self.places.iter().enumerate().rev().filter(|(number, place)| number != *place) {
            text = text.replace(&format!("tools[{number}]"), &format!("tools[{place}]"));
        }
        text
    }
}

/// Gives an error of the request a param and a code.
pub(super) fn complete(mut problem: Problem) -> Problem {
    if problem.is_model_not_found() {
        return problem.param("model");
    }
    if problem.is_bad_request() {
        problem.error.code.get_or_insert("invalid_value");
        problem.error.param.get_or_insert(Cow::Borrowed("input"));
    }
    problem
}

#[cfg(test)]
#[path = "asked_tests.rs"]
mod tests;
