//! Checks one line of a file of preferences: a prompt and two answers, one of which is preferred. Called by
//! [`super::read_preferences`].
//!
//! `OpenAI`'s form is `{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}`, with one
//! assistant message in each output; TRL's is `{"prompt": …, "chosen": …, "rejected": …}`, all three texts, or all
//! three lists of messages.

use serde_json::{Map, Value};

use super::foreign_keys::{prompt_key, unknown_key};
use super::json;
use super::parse::{self, Example, Format, is_preference};
use super::words::{kind, shorten};
use attune_model::chat::{Role, ToolDefinition};

/// Two answers to one prompt, each as a complete example.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// Example with the preferred answer.
    pub chosen: Example,
    /// Example with the other answer.
    pub rejected: Example,
}

/// Keys of the preferred and the other answer in one format.
#[derive(Debug, Clone, Copy)]
struct Keys {
    chosen: &'static str,
    rejected: &'static str,
}

const OPENAI: Keys = Keys { chosen: "preferred_output", rejected: "non_preferred_output" };
const TRL: Keys = Keys { chosen: "chosen", rejected: "rejected" };

impl Preference {
    /// Returns the format of the prompt, which must be the same on all lines of a file.
    pub const fn format(&self) -> Format {
        self.chosen.format()
    }
}

/// Checks one line.
pub fn preference(line: &str) -> Result<Preference, String> {
    let mut object = json::object(line)?;
    if !is_preference(&object) {
        return Err(
            "is no preference pair: give `input`, `preferred_output` and `non_preferred_output`, or train it with \
                    the method `supervised`"
                .into(),
        );
    }
    let pair = if object.contains_key("input") || object.contains_key(OPENAI.chosen) {
        openai(&mut object)?
    } else {
        trl(&mut object)?
    };
    if let Some(key) = object.keys().next() {
        return Err(unknown_key(key, false));
    }
    if pair.chosen == pair.rejected {
        return Err("has the same answer twice: there is nothing to prefer".into());
    }
    Ok(pair)
}

fn openai(object: &mut Map<String, Value>) -> Result<Preference, String> {
    let mut input = match object.remove("input") {
        Some(Value::Object(input)) => input,
        Some(other) => return Err(format!("has {} as `input`: give an object with `messages`", kind(&other))),
        None => return Err("has no `input`".into()),
    };
    let tools = parse::take_tools(&mut input)?;
    input.remove("parallel_tool_calls");
    let Some(Value::Array(messages)) = input.remove("messages") else {
        return Err("has an `input` without `messages`, an array".into());
    };
    if let Some(key) = input.keys().next() {
        return Err(format!("has the unknown key `{}` in `input`: remove it", shorten(key)));
    }
    chat(messages, &tools, object, OPENAI)
}

fn trl(object: &mut Map<String, Value>) -> Result<Preference, String> {
    let tools = parse::take_tools(object)?;
    match object.remove("prompt") {
        Some(Value::String(prompt)) => {
            let mut answer = |key: &str| match object.remove(key) {
                Some(Value::String(text)) if text.is_empty() => Err(format!("has an empty `{key}`")),
                Some(Value::String(text)) => Ok(Example::Completion { prompt: prompt.clone(), completion: text }),
                Some(other) => Err(format!("has {} as `{key}`, but a string as `prompt`: give a string", kind(&other))),
                None => Err(format!("has no `{key}`")),
            };
            Ok(Preference { chosen: answer(TRL.chosen)?, rejected: answer(TRL.rejected)? })
        }
        Some(Value::Array(messages)) => chat(messages, &tools, object, TRL),
        Some(other) => Err(format!("has {} as `prompt`: give a string or an array of messages", kind(&other))),
        None => Err(match prompt_key(object) {
            Some(key) => format!("has no `prompt`: rename `{}` to `prompt`", shorten(key)),
            None => "has no `prompt`: give what `chosen` and `rejected` answer".into(),
        }),
    }
}

/// Builds a conversation that ends with one of the two messages.
fn chat(
    messages: Vec<Value>,
    tools: &[ToolDefinition],
    object: &mut Map<String, Value>,
    keys: Keys,
) -> Result<Preference, String> {
    if messages.is_empty() {
        return Err("has no messages".into());
    }
    let (messages, _) = parse::read_messages(messages)?;
    let mut answer = |key: &str| {
        let fault = || format!("has a `{key}` that is not an array of one assistant message");
        let Some(Value::Array(output)) = object.remove(key) else { return Err(fault()) };
        if output.len() != 1 || output[0]["role"] != Role::Assistant.name() {
            return Err(fault());
        }
        let (output, trained) = parse::read_messages(output).map_err(|fault| format!("`{key}`, {fault}"))?;
        if trained != [true] {
            return Err(format!("has a `{key}` of weight 0: there is nothing to learn"));
        }
        let mut trained = vec![false; messages.len()];
        trained.push(true);
        Ok(Example::Chat { messages: [messages.as_slice(), &output].concat(), trained, tools: tools.to_vec() })
    };
    Ok(Preference { chosen: answer(keys.chosen)?, rejected: answer(keys.rejected)? })
}
