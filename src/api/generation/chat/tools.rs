//! The tools of a chat request, checked: those that the model is shown, those that it may call, and the grammar that
//! makes its answer a text or calls that follow the schemas. Used by `chat::create`.

use axum::http::HeaderValue;
use serde_json::{Value, json};

use super::format::check_name;
use super::request::{
    AllowedChoice, AllowedTools, ChatRequest, FunctionChoice, FunctionDefinition, NamedTool, Tool, ToolChoice,
};
use super::schema::{SCHEMA_BYTES, checked};
use crate::api::http::error::{Problem, Result};
use crate::engine::grammar::{DocumentSchema, Grammar, GrammarSource, TextGrammar, Texts};
use crate::model::chat::ToolDefinition;
use crate::model::tokenizer::Tokenizer;
use crate::model::tool_syntax::ToolSyntax;

/// Largest number of tools of one request.
const MAX_TOOLS: usize = 128;
/// Largest number of calls in one answer.
const MAX_CALLS: usize = 32;
/// Largest length of the header that names dropped keywords, in bytes.
const LOOSENED_BYTES: usize = 1000;

/// The tools of a request, checked; there is at least one.
#[derive(Debug)]
pub(super) struct Tools {
    /// Functions that the model is shown.
    offered: Vec<FunctionDefinition>,
    /// Those of them that are custom tools.
    custom: Vec<usize>,
    /// The grammars of their texts in Lark syntax, by their index.
    larks: Vec<(usize, String)>,
    /// Functions that it may call: their index in `offered`, and the schema of their arguments.
    callable: Vec<(usize, Value)>,
    /// Those whose arguments are any object because their schema cannot be followed.
    opened: Vec<usize>,
    /// True if the model must call a function.
    pub required: bool,
    /// True if the model may call more than once.
    parallel: bool,
    /// True if the tools came as `functions`; the answer then has the older form too.
    pub legacy: bool,
}

impl Tools {
    /// Checks the tools of `request`; `None` if it has none or wants none to be called.
    pub(super) fn of(request: &ChatRequest) -> Result<Option<Self>> {
        let tools = request.tools.as_deref().unwrap_or_default();
        let functions = request.functions.as_deref().unwrap_or_default();
        let legacy = tools.is_empty() && (!functions.is_empty() || request.function_call.is_some());
        let offered = offered(tools, functions, legacy)?;
        let kind = |index: usize| if is_custom(tools, index) { "custom" } else { "function" };
        let choice = Choice::of(request, legacy)?;
        if offered.is_empty() {
            if matches!(choice, Choice::Required | Choice::Named { .. } | Choice::Allowed { .. }) {
                let param = if legacy { "function_call" } else { "tool_choice" };
                return Err(Problem::invalid(
                    param,
                    format!("'{param}' asks for a call, but there is nothing to call."),
                ));
            }
            return Ok(None);
        }
        let field = if legacy { "functions" } else { "tools" };
        let custom = (0..offered.len()).filter(|index| is_custom(tools, *index)).collect();
        let lark = |(index, tool): (usize, &Tool)| Some((index, tool.custom.as_ref()?.lark()?.to_owned()));
        let larks: Vec<(usize, String)> = tools.iter().enumerate().filter_map(lark).collect();
        let mut callable = Vec::with_capacity(offered.len());
        let mut bytes = 0;
        for (index, function) in offered.iter().enumerate() {
            let param = parameters_param(legacy, is_custom(tools, index), index);
            let schema = arguments_schema(function.parameters.clone(), &param)?;
            bytes += schema.to_string().len();
            callable.push((index, schema));
        }
        if bytes > SCHEMA_BYTES {
            let message = format!("'{field}' have {bytes} bytes of JSON schemas; at most {SCHEMA_BYTES} are allowed.");
            return Err(Problem::invalid_code(field, "string_above_max_length", message));
        }
        match &choice {
            Choice::None => return Ok(None),
            Choice::Auto | Choice::Required => {}
            Choice::Named { tool, param } => {
                callable.retain(|(index, _)| tool.is(kind(*index), &offered[*index].name));
                if callable.is_empty() {
                    return Err(not_among(param, &tool.name, field));
                }
            }
            Choice::Allowed { tools: allowed, .. } => {
                let is = |tool: &Chosen, index: usize| tool.is(kind(index), &offered[index].name);
                if let Some(tool) = allowed.iter().find(|tool| (0..offered.len()).all(|index| !is(tool, index))) {
                    return Err(not_among("tool_choice", &tool.name, field));
                }
                callable.retain(|(index, _)| allowed.iter().any(|tool| is(tool, *index)));
            }
        }
        if let Some(names) = &request.callable {
            callable.retain(|(index, _)| names.contains(&offered[*index].name));
        }
        // A named function is called once.
        let named = matches!(choice, Choice::Named { .. });
        let parallel = !legacy && !named && request.parallel_tool_calls.unwrap_or(true);
        let required = !matches!(choice, Choice::Auto | Choice::Allowed { required: false, .. });
        Ok(Some(Self { offered, custom, larks, callable, opened: Vec::new(), required, parallel, legacy }))
    }

    /// Returns the names of the functions that may be called.
    pub(super) fn names(&self) -> Vec<String> {
        self.callable.iter().map(|(index, _)| self.offered[*index].name.clone()).collect()
    }

    /// Returns the names of the custom tools.
    pub(super) fn custom(&self) -> Vec<String> {
        self.custom.iter().map(|index| self.offered[*index].name.clone()).collect()
    }

    /// Returns the tools that the model is shown.
    pub(super) fn shown(&self) -> Vec<ToolDefinition> {
        shown(&self.offered)
    }

    /// Writes the grammar of an answer: calls or, if none is required, a text; `response` is the schema of that text,
    /// `None` if any will do.
    pub(super) fn grammar(&self, syntax: ToolSyntax, tokenizer: &Tokenizer, response: Option<Value>) -> GrammarSource {
        let mut schemas: Vec<DocumentSchema> = self.callable.iter().map(|callable| self.arguments(callable)).collect();
        let call = |(index, _): &(usize, Value)| {
            let (name, key) = (&self.offered[*index].name, syntax.arguments_key);
            // The lexer takes the longest piece that it can and never turns back. Where a call looks like another JSON
            // answer until its name is known, its pieces must be no longer than those of JSON.
            let head = if syntax.trigger.is_empty() {
                let pieces = ["{", "\"name\"", ": ", &format!("\"{name}\""), ", ", &format!("\"{key}\""), ": "];
                pieces.map(quoted).join(" ")
            } else {
                quoted(&format!("{{\"name\": \"{name}\", \"{key}\": "))
            };
            format!("{head} @arguments_{index} \"}}\"")
        };
        let calls: Vec<String> = self.callable.iter().map(call).collect();
        // Marks that are special tokens are drawn as such and shown in the text.
        let specials: Vec<(&str, u32)> =
            ToolSyntax::MARKS.iter().filter_map(|mark| Some((*mark, tokenizer.special_token(mark)?))).collect();
        let literal = |text: &str| marked(text, &specials);
        let more = if self.parallel {
            format!("({} call){{0,{}}}", literal(syntax.separator), MAX_CALLS - 1)
        } else {
            String::new()
        };
        let list = format!("{} call {more} {}", literal(syntax.open), literal(syntax.close));
        let trigger = literal(syntax.trigger);
        let token = tokenizer.special_token(syntax.trigger);
        let anchored = self.required || response.is_some();
        let start = match (self.required, response) {
            (true, _) => format!("start: {trigger} calls\n"),
            (false, Some(schema)) => {
                schemas.push(DocumentSchema { name: "response".into(), schema, loosen: false });
                format!("start: @response | {trigger} calls\n")
            }
            // Only the first character tells a call from a text.
            (false, None) if syntax.trigger.is_empty() => "start: TEXT | calls\nTEXT: /([^{](.|\\n)*)?/\n".into(),
            (false, None) => {
                let spelled = regex(syntax.trigger);
                // A trigger that is a special token means the same if it is written out in letters.
                let single = token.map(|id| format!(" | TEXT <[{id}]> calls")).unwrap_or_default();
                format!("start: TEXT | spelled calls{single}\nspelled[lazy]: /(.|\\n)*{spelled}/\nTEXT: /(.|\\n)*/\n")
            }
        };
        let rules = format!("{start}calls: {list}\ncall: {}\n", calls.join(" | "));
        let shown_tokens = specials.into_iter().map(|(_, id)| id).collect();
        let callable = |index: usize| self.callable.iter().any(|(callable, _)| *callable == index);
        let larks = self.larks.iter().filter(|(index, _)| callable(*index));
        let grammars = larks.map(|(index, lark)| self.text(*index, lark, syntax)).collect();
        let texts = Texts { trigger: syntax.trigger.into(), anchored, grammars };
        GrammarSource { rules, schemas, shown_tokens, texts }
    }

    /// Returns the grammar of the text of a custom tool, whose call begins as the rules above write it.
    fn text(&self, index: usize, lark: &str, syntax: ToolSyntax) -> TextGrammar {
        let head = format!("{{\"name\": \"{}\", \"{}\": {{\"input\":", self.offered[index].name, syntax.arguments_key);
        let openings = vec![format!("{head} \""), format!("{head}\"")];
        TextGrammar { openings, lark: lark.to_owned() }
    }

    fn arguments(&self, (index, schema): &(usize, Value)) -> DocumentSchema {
        let loosen = self.offered[*index].strict != Some(true);
        DocumentSchema { name: format!("arguments_{index}"), schema: schema.clone(), loosen }
    }

    /// Returns the grammar of each tool's arguments alone with the tool's index, to find out which ones cannot be
    /// compiled.
    pub(super) fn single_grammars(&self) -> impl Iterator<Item = (usize, GrammarSource)> + '_ {
        let single = |callable: &(usize, Value)| {
            let rules = format!("start: @arguments_{}", callable.0);
            let larks = self.larks.iter().filter(|(index, _)| *index == callable.0);
            let grammars = larks.map(|(_, lark)| TextGrammar { openings: Vec::new(), lark: lark.clone() }).collect();
            let texts = Texts { grammars, ..Texts::default() };
            let schemas = vec![self.arguments(callable)];
            (callable.0, GrammarSource { rules, schemas, shown_tokens: Vec::new(), texts })
        };
        self.callable.iter().map(single)
    }

    /// Takes any object as the arguments of a tool; false if the tool is strict or does so already.
    pub(super) fn open(&mut self, index: usize) -> bool {
        let may = self.offered[index].strict != Some(true) && !self.opened.contains(&index);
        let callable = self.callable.iter_mut().find(|(callable, _)| *callable == index);
        let Some((_, schema)) = callable.filter(|_| may) else { return false };
        *schema = json!({"type": "object"});
        self.opened.push(index);
        true
    }

    /// Returns which keywords of the tools' schemas `grammar` does not follow, as a header; `None` if it follows all.
    pub(super) fn loosened(&self, grammar: &Grammar) -> Option<HeaderValue> {
        let dropped = grammar.dropped().iter().filter_map(|(name, keywords)| {
            let index: usize = name.strip_prefix("arguments_")?.parse().ok()?;
            Some(format!("{}: {}", self.parameters_param(index), keywords.join(", ")))
        });
        let opened = self.opened.iter().map(|index| format!("{}: all", self.parameters_param(*index)));
        let mut text = dropped.chain(opened).collect::<Vec<_>>().join("; ");
        text.retain(|character| character.is_ascii_graphic() || character == ' ');
        text.truncate(LOOSENED_BYTES);
        HeaderValue::from_str(&text).ok().filter(|header| !header.is_empty())
    }

    /// Returns the name of the field that holds the schema of the function at `index`, or the format of the custom tool.
    pub(super) fn parameters_param(&self, index: usize) -> String {
        parameters_param(self.legacy, self.custom.contains(&index), index)
    }

    /// Returns the name of the field that holds the tools.
    pub(super) fn param(&self) -> &'static str {
        if self.legacy { "functions" } else { "tools" }
    }
}

fn is_custom(tools: &[Tool], index: usize) -> bool {
    tools.get(index).is_some_and(|tool| tool.kind == "custom")
}

fn parameters_param(legacy: bool, custom: bool, index: usize) -> String {
    match (legacy, custom) {
        (true, _) => format!("functions[{index}].parameters"),
        (false, true) => format!("tools[{index}].custom.format"),
        (false, false) => format!("tools[{index}].function.parameters"),
    }
}

/// Checks tools that the model is shown and does not answer, those of `tokenize`.
pub(crate) fn shown_tools(tools: &[Tool]) -> Result<Vec<ToolDefinition>> {
    Ok(shown(&offered(tools, &[], false)?))
}

fn shown(functions: &[FunctionDefinition]) -> Vec<ToolDefinition> {
    let definition = |function: &FunctionDefinition| ToolDefinition {
        name: function.name.clone(),
        description: function.description.clone(),
        parameters: function.parameters.clone(),
    };
    functions.iter().map(definition).collect()
}

/// Returns the tool as a function; a custom one is a function of one text.
fn as_function(index: usize, tool: &Tool) -> Result<FunctionDefinition> {
    let missing = || Problem::missing(format!("tools[{index}].{}", tool.kind));
    match tool.kind.as_str() {
        "function" => tool.function.clone().ok_or_else(missing),
        "custom" => {
            let custom = tool.custom.as_ref().ok_or_else(missing)?;
            custom.function(&parameters_param(false, true, index))
        }
        other => {
            let message = format!("'{other}' is not a supported type of tools: use 'function' or 'custom'.");
            Err(Problem::invalid_code(format!("tools[{index}].type"), "invalid_value", message))
        }
    }
}

/// Returns the functions of a request, checked; `legacy` if they came in the older form.
fn offered(tools: &[Tool], functions: &[FunctionDefinition], legacy: bool) -> Result<Vec<FunctionDefinition>> {
    if !tools.is_empty() && !functions.is_empty() {
        return Err(Problem::invalid("functions", "'functions' is the older form of 'tools': send one of them."));
    }
    let (kind, count) = if legacy { ("functions", functions.len()) } else { ("tools", tools.len()) };
    if count > MAX_TOOLS {
        let message = format!("'{kind}' has {count} entries; at most {MAX_TOOLS} are allowed.");
        return Err(Problem::invalid_code(kind, "array_above_max_length", message));
    }
    let of_tools = tools.iter().enumerate().map(|(index, tool)| as_function(index, tool));
    let offered: Vec<FunctionDefinition> = if legacy { functions.to_vec() } else { of_tools.collect::<Result<_>>()? };
    for (index, function) in offered.iter().enumerate() {
        let param = match (legacy, is_custom(tools, index)) {
            (true, _) => format!("functions[{index}].name"),
            (false, true) => format!("tools[{index}].custom.name"),
            (false, false) => format!("tools[{index}].function.name"),
        };
        check_name(&param, &function.name)?;
        if offered[..index].iter().any(|other| other.name == function.name) {
            let message = format!("The name '{}' is given twice.", function.name);
            return Err(Problem::invalid_code(param, "invalid_value", message));
        }
    }
    Ok(offered)
}

/// Returns the schema of a function's arguments, which must be an object.
fn arguments_schema(parameters: Option<Value>, param: &str) -> Result<Value> {
    let mut schema = checked(parameters.unwrap_or_else(|| json!({"type": "object"})), param)?;
    match &schema["type"] {
        Value::Null => schema["type"] = "object".into(),
        Value::String(kind) if kind == "object" => {}
        Value::Array(kinds) if kinds.iter().any(|kind| kind == "object") => schema["type"] = "object".into(),
        _ => {
            let message = format!("'{param}' must be a schema of the type 'object'.");
            return Err(Problem::invalid_code(param, "invalid_value", message));
        }
    }
    Ok(schema)
}

enum Choice {
    None,
    Auto,
    Required,
    Named { tool: Chosen, param: &'static str },
    Allowed { tools: Vec<Chosen>, required: bool },
}

/// A tool that is to be called.
struct Chosen {
    kind: String,
    name: String,
}

impl Chosen {
    fn of(named: &NamedTool, param: &str) -> Result<Self> {
        Ok(Self { name: named.name(param)?.to_owned(), kind: named.kind.clone() })
    }

    fn is(&self, kind: &str, name: &str) -> bool {
        self.kind == kind && self.name == name
    }
}

/// Makes the error for a choice of a function that is not there.
fn not_among(param: &str, name: &str, kind: &str) -> Problem {
    let message = format!("'{param}' names '{name}', which is not among the {kind}.");
    Problem::invalid_code(param, "invalid_value", message)
}

impl Choice {
    fn of(request: &ChatRequest, legacy: bool) -> Result<Self> {
        let mode = |mode: &str, param: &str| match mode {
            "none" => Ok(Self::None),
            "auto" => Ok(Self::Auto),
            "required" if !legacy => Ok(Self::Required),
            other => {
                let message =
                    format!("'{other}' is not a choice: use none, auto, required or one function by its name.");
                Err(Problem::invalid_code(param, "invalid_value", message))
            }
        };
        if legacy {
            return match &request.function_call {
                None => Ok(Self::Auto),
                Some(FunctionChoice::Mode(choice)) => mode(choice, "function_call"),
                Some(FunctionChoice::Named(named)) => {
                    let tool = Chosen { kind: "function".into(), name: named.name.clone() };
                    Ok(Self::Named { tool, param: "function_call" })
                }
            };
        }
        match &request.tool_choice {
            None => Ok(Self::Auto),
            Some(ToolChoice::Mode(choice)) => mode(choice, "tool_choice"),
            Some(ToolChoice::Named(named)) if named.kind == "allowed_tools" => {
                Err(Problem::missing("tool_choice.allowed_tools"))
            }
            Some(ToolChoice::Named(named)) => {
                Ok(Self::Named { tool: Chosen::of(named, "tool_choice")?, param: "tool_choice" })
            }
            Some(ToolChoice::Allowed(allowed)) => Self::allowed(allowed),
        }
    }

    /// Reads the choice of some tools.
    fn allowed(choice: &AllowedChoice) -> Result<Self> {
        let fault = |field: &str, message: String| Err(Problem::invalid_code(field, "invalid_value", message));
        if choice.kind != "allowed_tools" {
            let message = format!("'{}' is not a supported type of choice: use 'allowed_tools'.", choice.kind);
            return fault("tool_choice.type", message);
        }
        let AllowedTools { mode, tools } = &choice.allowed_tools;
        let required = match mode.as_str() {
            "auto" => false,
            "required" => true,
            other => {
                let message = format!("'{other}' is not a mode of 'allowed_tools': use auto or required.");
                return fault("tool_choice.allowed_tools.mode", message);
            }
        };
        if tools.is_empty() {
            let message = "'allowed_tools' names no tool: name at least one, or set 'tool_choice' to none.";
            return fault("tool_choice.allowed_tools.tools", message.into());
        }
        let chosen = tools.iter().enumerate();
        let chosen = chosen.map(|(index, tool)| Chosen::of(tool, &format!("tool_choice.allowed_tools.tools[{index}]")));
        Ok(Self::Allowed { tools: chosen.collect::<Result<_>>()?, required })
    }
}

/// Writes `text` as literals of the grammar, with special tokens in their places; nothing if it is empty.
fn marked(text: &str, specials: &[(&str, u32)]) -> String {
    let first = specials.iter().filter_map(|(mark, id)| Some((text.find(mark)?, mark, id))).min();
    match first {
        Some((at, mark, id)) => {
            let (before, after) = (marked(&text[..at], &[]), marked(&text[at + mark.len()..], specials));
            format!("{before} <[{id}]> {after}")
        }
        None if text.is_empty() => String::new(),
        None => quoted(text),
    }
}

/// Writes `text` as a literal of the grammar, whose strings have JSON's syntax.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Writes `text` as a regular expression of the grammar's syntax.
fn regex(text: &str) -> String {
    let escaped = |character: char| {
        if character.is_ascii_alphanumeric() || matches!(character, '<' | '>' | '_') {
            character.to_string()
        } else {
            format!("\\{character}")
        }
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tests;
