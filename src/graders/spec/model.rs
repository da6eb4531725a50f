//! Graders that ask a model: the messages, and how the model answers. The messages of data sources of evals are read here
//! as well.

use serde_json::{Map, Value, json};

use super::Fault;
use super::fields::{Fields, read_template};
use crate::graders::template::{Sample, Template, Unfilled};

/// Most messages of a conversation, and parts of one.
const MAX_MESSAGES: usize = 64;

/// Words of `reasoning_effort`; a chat says what they do.
pub const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// What a model is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelGrader {
    /// A model of this server, or `teacher:NAME`.
    pub model: String,
    /// The conversation.
    pub messages: Vec<Message>,
    /// How the model answers.
    pub sampling: Sampling,
}

/// A message with places for values.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    role: String,
    parts: Vec<Template>,
}

/// How a model answers: fields of a request for chat.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling(pub Map<String, Value>);

impl ModelGrader {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        let messages = Message::read_all(fields.required("input")?)
            .map_err(|fault| Fault { param: fields.path(&format!("input{}", fault.param)), ..fault })?;
        let sampling = match fields.get("sampling_params") {
            None => Sampling::default(),
            Some(value) => Sampling::read(value, &[])
                .map_err(|fault| Fault { param: fields.path(&format!("sampling_params{}", fault.param)), ..fault })?,
        };
        Ok(Self { model: fields.text("model")?.to_owned(), messages, sampling })
    }
}

impl Message {
    /// Reads a conversation. A fault's field begins behind the name of the list: `[0].content`.
    pub fn read_all(value: &Value) -> Result<Vec<Self>, Fault> {
        let fault = |param: &str, message: String| Fault { param: param.to_owned(), message };
        let messages = value.as_array().filter(|messages| (1..=MAX_MESSAGES).contains(&messages.len()));
        let messages = messages
            .ok_or_else(|| fault("", format!("A conversation is an array of 1 to {MAX_MESSAGES} messages.")))?;
        let read = |(index, message): (usize, &Value)| {
            let at = |field: &str| format!("[{index}].{field}");
            let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
            if !matches!(role, "system" | "developer" | "user" | "assistant") {
                return Err(fault(&at("role"), "A message has the role system, developer, user or assistant.".into()));
            }
            if message.get("type").is_some_and(|kind| !kind.is_null() && kind != "message") {
                return Err(fault(&at("type"), "Only messages of type 'message' are supported.".into()));
            }
            let parts = match message.get("content") {
                Some(Value::Array(parts)) => parts.iter().map(text_of).collect(),
                Some(part) => text_of(part).map(|text| vec![text]),
                None => Err("A message needs a 'content'.".into()),
            };
            let templates = parts.and_then(|parts| parts.into_iter().map(read_template).collect::<Result<Vec<_>, _>>());
            let parts = templates.map_err(|message| fault(&at("content"), message))?;
            Ok(Self { role: role.to_owned(), parts })
        };
        messages.iter().enumerate().map(read).collect()
    }

    /// Returns the message as a request for chat has it.
    pub fn fill(&self, item: &Value, sample: &Sample) -> Result<Value, Unfilled> {
        let parts: Result<Vec<String>, Unfilled> = self.parts.iter().map(|part| part.fill(item, sample)).collect();
        Ok(json!({"role": self.role, "content": parts?.join("\n")}))
    }

    /// True if it has a place for a value of the sample.
    pub fn uses_sample(&self) -> bool {
        self.parts.iter().any(Template::uses_sample)
    }
}

/// Returns the text of a part of a message.
fn text_of(part: &Value) -> Result<&str, String> {
    if let Some(text) = part.as_str() {
        return Ok(text);
    }
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    match (kind, part.get("text").and_then(Value::as_str)) {
        ("input_text" | "output_text" | "text", Some(text)) => Ok(text),
        ("input_image" | "input_audio", _) => {
            Err(format!("Parts of type '{kind}' are not supported: models here read text."))
        }
        _ => Err("A part of a message is a text, or an object of type 'input_text' with a 'text'.".into()),
    }
}

impl Sampling {
    /// Reads how a model answers; `further` are fields that pass as they are. A fault's field begins behind the name of
    /// the object: `.temperature`.
    pub fn read(value: &Value, further: &[&str]) -> Result<Self, Fault> {
        let fault = |name: &str, message: String| {
            let param = if name.is_empty() { String::new() } else { format!(".{name}") };
            Fault { param, message }
        };
        let object = value.as_object().ok_or_else(|| fault("", "'sampling_params' must be an object.".into()))?;
        let mut sampling = Map::new();
        for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
            let number = |low: f64, high: f64| {
                let within = value.as_f64().is_some_and(|number| (low..=high).contains(&number));
                within
                    .then(|| value.clone())
                    .ok_or_else(|| fault(name, format!("'{name}' must be a number from {low} to {high}.")))
            };
            match name.as_str() {
                "temperature" => drop(sampling.insert(name.clone(), number(0.0, 2.0)?)),
                "top_p" => drop(sampling.insert(name.clone(), number(0.0, 1.0)?)),
                "seed" if value.is_i64() => drop(sampling.insert(name.clone(), value.clone())),
                "seed" => return Err(fault(name, "'seed' must be a whole number.".into())),
                "max_completions_tokens" | "max_completion_tokens" | "max_tokens" => {
                    if value.as_u64().is_none_or(|tokens| tokens == 0) {
                        return Err(fault(name, format!("'{name}' must be a whole number of at least 1.")));
                    }
                    sampling.insert("max_completion_tokens".into(), value.clone());
                }
                "reasoning_effort" => {
                    if !value.as_str().is_some_and(|effort| EFFORTS.contains(&effort)) {
                        return Err(fault(name, format!("'{name}' must be one of {}.", EFFORTS.join(", "))));
                    }
                    sampling.insert(name.clone(), value.clone());
                }
                other if further.contains(&other) => drop(sampling.insert(name.clone(), value.clone())),
                other => return Err(fault(name, format!("'{other}' is not one of the sampling parameters."))),
            }
        }
        Ok(Self(sampling))
    }
}
