//! Where the items of a run come from, and who answers: the field `data_source` of a run.

mod sampling;
pub(super) mod selection;

use std::io::{BufRead as _, BufReader, Read as _};

use serde_json::{Map, Value, json};

pub(super) use self::sampling::as_chat;
use self::sampling::check_chat;
use self::selection::Selection;
use crate::graders::item_schema::fault;
use crate::graders::spec::{Fault, Message, Sampling};
use crate::graders::template::Place;

/// The field, for errors.
pub(super) const SOURCE: &str = "data_source";
/// Most items of a run, and bytes of a file of items and of a line of it.
pub(super) const MAX_ITEMS: usize = 50_000;
pub(super) const MAX_FILE: u64 = 64 << 20;
const MAX_LINE: u64 = 8 << 20;

/// Where items come from, and who answers them.
pub(super) struct DataSource {
    pub items: Items,
    /// `None` where the items come with their answers.
    pub question: Option<Question>,
    /// The models that are asked; none without a question.
    pub models: Vec<String>,
}

/// Where items come from.
pub(super) enum Items {
    /// The request.
    Given(Vec<Line>),
    /// The file with this id.
    File(String),
    /// Answers that are stored.
    Stored(Box<Selection>),
}

/// An item, with its answer where that is given.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub item: Value,
    pub sample: Option<Value>,
}

/// What a model is asked about an item.
pub(super) struct Question {
    pub input: Input,
    /// Fields of the request for chat.
    pub sampling: Map<String, Value>,
}

/// The conversation.
pub(super) enum Input {
    /// One for all items, with places for values.
    Template(Vec<Message>),
    /// The one that each item has.
    Reference(Place),
}

impl DataSource {
    /// Reads the field, for a run that asks `models` if it names any beside it.
    pub(super) fn parse(value: &Value, models: &[String]) -> Result<Self, Fault> {
        let source = value.as_object().ok_or_else(|| refusal("", "'data_source' must be an object."))?;
        let kind = source.get("type").and_then(Value::as_str).unwrap_or_default();
        let known: &[&str] = match kind {
            "jsonl" => &["type", "source"],
            "completions" | "responses" => &["type", "source", "model", "input_messages", "sampling_params"],
            _ => return Err(refusal("type", "The type of a data source must be jsonl, completions or responses.")),
        };
        if let Some((name, _)) = source.iter().find(|(name, value)| !known.contains(&name.as_str()) && !value.is_null())
        {
            return Err(refusal(name, &format!("'{name}' is not a field of a data source of type '{kind}'.")));
        }
        let items = items(source.get("source").unwrap_or(&Value::Null), kind)?;
        let is_stored = matches!(items, Items::Stored(_));
        let named = |name: &str| source.get(name).is_some_and(|value| !value.is_null());
        if kind == "jsonl" || (is_stored && models.is_empty() && !named("model")) {
            if let Some(name) = ["input_messages", "sampling_params"].into_iter().find(|name| named(name)) {
                return Err(refusal(name, &format!("'{name}' is for a 'model' that is asked, and none is named.")));
            }
            return Ok(Self { items, question: None, models: Vec::new() });
        }
        let models = asked_models(source, models)?;
        Ok(Self { items, question: Some(Question::read(source, kind, is_stored)?), models })
    }
}

impl Question {
    /// True if it asks what was asked before, with the tools and the form that the request had then.
    pub(super) fn repeats_request(&self) -> bool {
        matches!(self.input, Input::Reference(_))
    }

    fn read(source: &Map<String, Value>, kind: &str, is_stored: bool) -> Result<Self, Fault> {
        let further: &[&str] = if kind == "completions" { &["response_format", "tools"] } else { &["text", "tools"] };
        let given = source.get("sampling_params").filter(|given| !given.is_null());
        let mut sampling = match given {
            None => Map::new(),
            Some(given) => {
                let read = Sampling::read(given, further).map_err(|fault| below("sampling_params", fault))?;
                read.0
            }
        };
        if kind == "responses" {
            sampling = as_chat(sampling)?;
        }
        check_chat(&sampling, kind)?;
        for (name, default) in [("temperature", json!(1)), ("top_p", json!(1)), ("seed", json!(42))] {
            sampling.entry(name).or_insert(default);
        }
        Ok(Self { input: Input::read(source.get("input_messages"), is_stored)?, sampling })
    }
}

impl Input {
    /// Reads the field; the default where answers are stored is what was asked then.
    fn read(value: Option<&Value>, is_stored: bool) -> Result<Self, Fault> {
        let stored;
        let value = match value.filter(|value| !value.is_null()) {
            Some(value) => value,
            None if is_stored => {
                stored = json!({"type": "item_reference", "item_reference": "item.input"});
                &stored
            }
            None => return Err(refusal("input_messages", "'input_messages' must say what the model is asked.")),
        };
        match value.get("type").and_then(Value::as_str) {
            Some("template") => {
                let messages = Message::read_all(value.get("template").unwrap_or(&Value::Null));
                let messages = messages.map_err(|fault| below("input_messages.template", fault))?;
                if messages.iter().any(Message::uses_sample) {
                    let message = "What a model is asked cannot hold its answer: use {{item.…}} alone.";
                    return Err(refusal("input_messages.template", message));
                }
                Ok(Self::Template(messages))
            }
            Some("item_reference") => {
                let param = "input_messages.item_reference";
                let written = value.get("item_reference").and_then(Value::as_str).unwrap_or_default();
                let place = Place::parse(written.trim()).map_err(|fault| refusal(param, &fault.to_string()))?;
                if place.uses_sample() {
                    return Err(refusal(
                        param,
                        "The conversation must be a value of the item, such as 'item.messages'.",
                    ));
                }
                Ok(Self::Reference(place))
            }
            _ => Err(refusal("input_messages.type", "The type of the messages must be template or item_reference.")),
        }
    }
}

/// Returns the models that are asked, which stand in one of two places.
fn asked_models(source: &Map<String, Value>, models: &[String]) -> Result<Vec<String>, Fault> {
    let model = source.get("model").filter(|model| !model.is_null());
    match model.map(|model| model.as_str().unwrap_or_default()) {
        None if !models.is_empty() => Ok(models.to_vec()),
        None | Some("") => Err(refusal("model", "'model' must name the model that answers.")),
        Some(model) if models.is_empty() || models == [model] => Ok(vec![model.to_owned()]),
        Some(_) => Err(refusal("model", "The models are named in 'models' already: leave 'model' out.")),
    }
}

/// Reads the source of the items of a data source of the type `kind`.
fn items(source: &Value, kind: &str) -> Result<Items, Fault> {
    match source.get("type").and_then(Value::as_str) {
        Some("file_content") => {
            let lines = source.get("content").and_then(Value::as_array).filter(|lines| !lines.is_empty());
            let lines =
                lines.ok_or_else(|| refusal("source.content", "'content' must be an array of at least one item."))?;
            if lines.len() > MAX_ITEMS {
                return Err(refusal("source.content", &format!("A run has {MAX_ITEMS} items at the most.")));
            }
            let read = |(index, line): (usize, &Value)| {
                Line::read(line.clone()).map_err(|message| refusal(&format!("source.content[{index}]"), &message))
            };
            Ok(Items::Given(lines.iter().enumerate().map(read).collect::<Result<_, _>>()?))
        }
        Some("file_id") => match source.get("id").and_then(Value::as_str) {
            Some(id) => Ok(Items::File(id.to_owned())),
            None => Err(refusal("source.id", "'id' must name a file.")),
        },
        Some(stored @ ("stored_completions" | "responses")) => {
            let home = if stored == "responses" { "responses" } else { "completions" };
            if kind != home {
                let message =
                    format!("A source of the type '{stored}' belongs into a data source of the type '{home}'.");
                return Err(refusal("source.type", &message));
            }
            let selection = Selection::read(source.as_object().unwrap_or(&Map::new()), stored)?;
            Ok(Items::Stored(Box::new(selection)))
        }
        _ => {
            let message = "The type of the source must be file_content, file_id, stored_completions or responses.";
            Err(refusal("source.type", message))
        }
    }
}

impl Line {
    /// Reads an object with `item`, and `sample` if the answer is given.
    pub(super) fn read(line: Value) -> Result<Self, String> {
        let Value::Object(mut line) = line else {
            return Err("An item must be an object with the field 'item'.".into());
        };
        let item = line.shift_remove("item").filter(Value::is_object).ok_or("'item' must be an object.")?;
        let sample = line.shift_remove("sample").filter(|sample| !sample.is_null());
        match line.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(format!("'{name}' is not a field beside 'item' and 'sample'.")),
            None => Ok(Self { item, sample }),
        }
    }

    /// Checks the item by the eval's schema.
    pub(super) fn check(&self, schema: &Value) -> Result<(), String> {
        fault(schema, &self.item, "item")
            .map_or(Ok(()), |fault| Err(format!("The item does not follow the schema: {fault}.")))
    }
}

/// Reads the lines of a file of items; an error names the line.
pub(super) fn read_file(file: std::fs::File, schema: &Value) -> Result<Vec<Line>, String> {
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    for number in 1_usize.. {
        let mut bytes = Vec::new();
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut bytes);
        match read.map_err(|error| format!("The file cannot be read: {error}."))? {
            0 => break,
            length if length as u64 > MAX_LINE => {
                return Err(format!("Line {number} is longer than {MAX_LINE} bytes."));
            }
            _ => {}
        }
        let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes).trim_ascii();
        if text.is_empty() {
            continue;
        }
        let line = serde_json::from_slice(text).map_err(|_| "It is not JSON.".to_owned()).and_then(Line::read);
        let line = line.and_then(|line| line.check(schema).map(|()| line));
        lines.push(line.map_err(|message| format!("Line {number} of the file: {message}"))?);
        if lines.len() > MAX_ITEMS {
            return Err(format!("A run has {MAX_ITEMS} items at the most; the file has more."));
        }
    }
    if lines.is_empty() { Err("The file has no items.".into()) } else { Ok(lines) }
}

/// Makes the fault of a field within the data source.
pub(super) fn refusal(param: &str, message: &str) -> Fault {
    Fault { param: param.to_owned(), message: message.to_owned() }
}

/// The same fault, of a field within `parent`.
fn below(parent: &str, fault: Fault) -> Fault {
    Fault { param: format!("{parent}{}", fault.param), ..fault }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    fn given() -> Value {
        json!({"type": "file_content", "content": [{"item": {"x": 1}}]})
    }

    #[test]
    fn sources_are_read_and_others_refused_by_name() {
        let asked = |field: &str, value: Value| {
            let mut source = json!({"type": "completions", "model": "m", "source": given(),
                "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.x}}"}]}});
            source[field] = value;
            source
        };
        let source = asked("sampling_params", json!({"seed": 3, "max_completion_tokens": 5}));
        let read = DataSource::parse(&source, &[]).expect("a source");
        assert_eq!(read.models, ["m"]);
        let question = read.question.expect("a question");
        assert_eq!(question.sampling["seed"], 3);
        assert_eq!((&question.sampling["temperature"], &question.sampling["top_p"]), (&json!(1), &json!(1)));
        for (source, param) in [
            (json!(1), ""),
            (json!({"type": "other"}), "type"),
            (json!({"type": "jsonl"}), "source.type"),
            (json!({"type": "jsonl", "source": given(), "model": "m"}), "model"),
            (json!({"type": "jsonl", "source": {"type": "file_id"}}), "source.id"),
            (json!({"type": "jsonl", "source": {"type": "file_content", "content": []}}), "source.content"),
            (
                json!({"type": "jsonl", "source": {"type": "file_content", "content": [{"item": 1}]}}),
                "source.content[0]",
            ),
            (asked("source", json!({"type": "responses"})), "source.type"),
            (json!({"type": "jsonl", "source": {"type": "stored_completions"}}), "source.type"),
            (asked("source", json!({"type": "stored_completions", "content": []})), "source.content"),
            (
                json!({"type": "completions", "source": {"type": "stored_completions"}, "sampling_params": {}}),
                "sampling_params",
            ),
            (asked("model", Value::Null), "model"),
            (asked("input_messages", Value::Null), "input_messages"),
            (asked("input_messages", json!({"type": "template", "template": []})), "input_messages.template"),
            (
                asked(
                    "input_messages",
                    json!({"type": "template", "template": [{"role": "user", "content": "{{sample.output_text}}"}]}),
                ),
                "input_messages.template",
            ),
            (
                asked("input_messages", json!({"type": "item_reference", "item_reference": "messages"})),
                "input_messages.item_reference",
            ),
            (asked("sampling_params", json!({"n": 2})), "sampling_params.n"),
            (asked("sampling_params", json!({"text": {}})), "sampling_params.text"),
            (asked("sampling_params", json!({"reasoning_effort": "much"})), "sampling_params.reasoning_effort"),
            (asked("sampling_params", json!({"response_format": 7})), "sampling_params.response_format"),
            (
                asked("sampling_params", json!({"tools": [{"type": "function", "function": {"name": 7}}]})),
                "sampling_params.tools[0].function.name",
            ),
        ] {
            let fault = DataSource::parse(&source, &[]).err().expect("a fault");
            assert_eq!(fault.param, param, "{source}: {fault}");
        }
    }

    #[test]
    fn several_models_are_named_beside_the_source() {
        let models = ["a".to_owned(), "b".to_owned()];
        let mut source = json!({"type": "completions", "source": {"type": "stored_completions"}});
        let read = DataSource::parse(&source, &models).expect("a source");
        assert_eq!(read.models, models);
        assert!(matches!(read.question.expect("what was asked then").input, Input::Reference(_)));
        assert!(DataSource::parse(&source, &[]).expect("what was answered then").question.is_none());
        source["model"] = "a".into();
        assert_eq!(DataSource::parse(&source, &models[..1]).expect("the same one").models, ["a"]);
        assert_eq!(DataSource::parse(&source, &models).err().expect("two places").param, "model");
    }

    #[test]
    fn fields_of_responses_become_those_of_chat() {
        let source = json!({"type": "responses", "model": "m", "source": given(),
            "input_messages": {"type": "item_reference", "item_reference": "item.messages"},
            "sampling_params": {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
                                "tools": [{"type": "function", "name": "f"}]}});
        let question = DataSource::parse(&source, &[]).expect("a source").question.expect("a question");
        assert_eq!(
            question.sampling["response_format"],
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {}}})
        );
        assert_eq!(question.sampling["tools"], json!([{"type": "function", "function": {"name": "f"}}]));
        for (params, param) in [
            (json!({"text": 7}), "sampling_params.text"),
            (json!({"text": {"format": 7}}), "sampling_params.text.format"),
            (json!({"tools": "x"}), "sampling_params.tools"),
            (json!({"tools": [{"type": "function", "name": 7}]}), "sampling_params.tools[0].name"),
        ] {
            let mut source = source.clone();
            source["sampling_params"] = params;
            assert_eq!(DataSource::parse(&source, &[]).err().expect("a fault").param, param, "{source}");
        }
    }

    #[test]
    fn a_file_is_read_line_by_line() {
        let read = |text: &str| {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(text.as_bytes()).expect("written");
            file.rewind().expect("rewound");
            read_file(file, &json!({"required": ["x"]}))
        };
        let lines =
            read("\u{feff}{\"item\": {\"x\": 1}}\n\n{\"item\": {\"x\": 2}, \"sample\": {\"output_text\": \"y\"}}")
                .expect("lines");
        assert_eq!((lines.len(), lines[0].item["x"].clone(), lines[1].sample.is_some()), (2, json!(1), true));
        for (text, part) in [
            ("", "no items"),
            ("{\"item\": {\"x\": 1}}\nnonsense", "Line 2"),
            ("{\"item\": {}}", "'item.x' is missing"),
            ("{\"x\": 1}", "'item' must be an object"),
            ("{\"item\": {\"x\": 1}, \"more\": 1}", "'more'"),
        ] {
            let fault = read(text).expect_err(text);
            assert!(fault.contains(part), "{text}: {fault}");
        }
    }
}
