//! What the form of the playground holds, and the request to the API that it stands for. Fields stay the texts that
//! were typed, so that a page with a fault shows them again.

use serde_json::{Map, Number, Value, json};

use super::request::{ApiRequest, CHAT, COMPLETIONS};

/// Models at a time: more do not stand side by side.
pub(super) const MOST_MODELS: usize = 4;
/// Probable tokens that are shown with each token: the most that both routes take.
const TOP_TOKENS: usize = 5;

/// A field with a number, which the request has under the same name.
pub(super) struct NumberField {
    pub name: &'static str,
    pub label: &'static str,
    pub least: &'static str,
    pub most: &'static str,
    pub step: &'static str,
}

/// The numbers, in the order of the form. Empty ones are left to the model's defaults.
pub(super) const NUMBERS: [NumberField; 9] = [
    NumberField { name: "max_tokens", label: "Most tokens", least: "1", most: "", step: "1" },
    NumberField { name: "temperature", label: "Temperature", least: "0", most: "2", step: "any" },
    NumberField { name: "top_p", label: "Top p", least: "0", most: "1", step: "any" },
    NumberField { name: "top_k", label: "Top k", least: "-1", most: "", step: "1" },
    NumberField { name: "min_p", label: "Min p", least: "0", most: "1", step: "any" },
    NumberField { name: "seed", label: "Seed", least: "", most: "", step: "1" },
    NumberField { name: "presence_penalty", label: "Presence penalty", least: "-2", most: "2", step: "any" },
    NumberField { name: "frequency_penalty", label: "Frequency penalty", least: "-2", most: "2", step: "any" },
    NumberField { name: "repetition_penalty", label: "Repetition penalty", least: "0", most: "", step: "any" },
];

/// A field that cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldFault {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A message of the conversation before the prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// True if a model wrote it, or is made to believe so.
    pub is_answer: bool,
    pub content: String,
}

/// What the form holds.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub models: Vec<String>,
    /// True for a text that the models go on with, rather than a chat.
    pub is_text: bool,
    pub system: String,
    pub turns: Vec<Turn>,
    pub prompt: String,
    /// The values of [`NUMBERS`].
    pub numbers: [String; NUMBERS.len()],
    /// One stop text in each line.
    pub stop: String,
    pub schema: String,
    pub wants_probabilities: bool,
}

impl Default for Ask {
    fn default() -> Self {
        let numbers = NUMBERS.map(|field| if field.name == "max_tokens" { "256".into() } else { String::new() });
        Self {
            models: Vec::new(),
            is_text: false,
            system: String::new(),
            turns: Vec::new(),
            prompt: String::new(),
            numbers,
            stop: String::new(),
            schema: String::new(),
            wants_probabilities: false,
        }
    }
}

impl Ask {
    /// Reads the names and values of a form that was sent, in their order.
    pub(super) fn read(pairs: &[(String, String)]) -> Self {
        let mut ask = Self { numbers: Default::default(), ..Self::default() };
        for (name, value) in pairs {
            // Browsers send a line's end as two characters; programs that ask the API have one.
            let value = value.replace("\r\n", "\n");
            match name.as_str() {
                "model" if value.trim().is_empty() => {}
                "model" => ask.models.push(value.trim().to_owned()),
                "form" => ask.is_text = value == "text",
                "system" => ask.system = value,
                "role" => ask.turns.push(Turn { is_answer: value == "assistant", content: String::new() }),
                "content" => {
                    if let Some(turn) = ask.turns.last_mut() {
                        turn.content = value;
                    }
                }
                "prompt" => ask.prompt = value,
                "stop" => ask.stop = value,
                "schema" => ask.schema = value,
                "probabilities" => ask.wants_probabilities = true,
                name => {
                    if let Some(index) = NUMBERS.iter().position(|field| field.name == name) {
                        value.trim().clone_into(&mut ask.numbers[index]);
                    }
                }
            }
        }
        // An emptied message is one that was taken out.
        ask.turns.retain(|turn| !turn.content.is_empty());
        ask
    }

    /// Returns the requests to the API, one for each model.
    pub(super) fn requests(&self) -> Result<Vec<ApiRequest>, FieldFault> {
        let wrong = |field, message: String| Err(FieldFault { field, message });
        match self.models.len() {
            0 => return wrong("model", "Name a model at least.".into()),
            1..=MOST_MODELS => {}
            many => return wrong("model", format!("{MOST_MODELS} models can be asked at a time, not {many}.")),
        }
        let mut fields = if self.is_text { self.text()? } else { self.chat()? };
        for (field, typed) in NUMBERS.iter().zip(&self.numbers).filter(|(_, typed)| !typed.is_empty()) {
            let Ok(number) = typed.parse::<Number>() else {
                return wrong(field.name, format!("{} must be a number; '{typed}' is none.", field.label));
            };
            fields.insert(field.name.into(), number.into());
        }
        let stops: Vec<String> = self.stop.lines().filter(|line| !line.is_empty()).map(unescaped).collect();
        if !stops.is_empty() {
            fields.insert("stop".into(), stops.into());
        }
        let path = if self.is_text { COMPLETIONS } else { CHAT };
        Ok(self.models.iter().map(|model| ApiRequest::new(path, model, &fields)).collect())
    }

    /// Returns the fields of a chat.
    fn chat(&self) -> Result<Map<String, Value>, FieldFault> {
        let mut messages = Vec::new();
        if !self.system.is_empty() {
            messages.push(json!({"role": "system", "content": self.system}));
        }
        for turn in &self.turns {
            let role = if turn.is_answer { "assistant" } else { "user" };
            messages.push(json!({"role": role, "content": turn.content}));
        }
        if !self.prompt.is_empty() {
            messages.push(json!({"role": "user", "content": self.prompt}));
        } else if self.turns.last().is_none_or(|turn| turn.is_answer) {
            return Err(FieldFault { field: "prompt", message: "Write what the models shall answer.".into() });
        }
        let mut fields = Map::from_iter([("messages".to_owned(), messages.into())]);
        if !self.schema.trim().is_empty() {
            let schema: Value = serde_json::from_str(&self.schema).map_err(|error| FieldFault {
                field: "schema",
                message: format!("The JSON schema is not JSON: {error}."),
            })?;
            let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
            fields.insert("response_format".into(), format);
        }
        if self.wants_probabilities {
            fields.insert("logprobs".into(), true.into());
            fields.insert("top_logprobs".into(), TOP_TOKENS.into());
        }
        Ok(fields)
    }

    /// Returns the fields of a text to go on with.
    fn text(&self) -> Result<Map<String, Value>, FieldFault> {
        let of_chats = [
            ("system", "A system message", !self.system.is_empty()),
            ("content", "A conversation", !self.turns.is_empty()),
            ("schema", "A JSON schema", !self.schema.trim().is_empty()),
        ];
        if let Some((field, what, _)) = of_chats.into_iter().find(|(_, _, given)| *given) {
            let message = format!("{what} belongs to a chat: empty it, or choose “Chat”.");
            return Err(FieldFault { field, message });
        }
        let mut fields = Map::from_iter([("prompt".to_owned(), self.prompt.as_str().into())]);
        if self.wants_probabilities {
            fields.insert("logprobs".into(), TOP_TOKENS.into());
        }
        Ok(fields)
    }

    /// Goes on with an answer: it becomes part of what the next prompt stands in.
    pub(super) fn keep(&mut self, answer: &str) {
        let prompt = std::mem::take(&mut self.prompt);
        if self.is_text {
            self.prompt = prompt + answer;
            return;
        }
        let turn = |is_answer, content: String| Turn { is_answer, content };
        self.turns.extend((!prompt.is_empty()).then(|| turn(false, prompt)));
        self.turns.extend((!answer.is_empty()).then(|| turn(true, answer.to_owned())));
    }
}

/// Reads `\n`, `\t` and `\\`, which a line cannot hold otherwise.
fn unescaped(line: &str) -> String {
    let mut text = String::new();
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let meant = match (character, characters.peek()) {
            ('\\', Some('n')) => '\n',
            ('\\', Some('t')) => '\t',
            ('\\', Some('\\')) => '\\',
            (character, _) => {
                text.push(character);
                continue;
            }
        };
        characters.next();
        text.push(meant);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Ask {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Ask::read(&pairs)
    }

    #[test]
    fn a_chat_has_its_messages_in_order_and_its_numbers_as_numbers() {
        let ask = read(&[
            ("model", " one "),
            ("model", ""),
            ("model", "two"),
            ("system", "Be\r\nbrief."),
            ("role", "user"),
            ("content", "Hi"),
            ("role", "assistant"),
            ("content", ""),
            ("prompt", "<script>"),
            ("temperature", "0.5"),
            ("top_k", " 4 "),
            ("stop", "\\n\r\nEND"),
            ("schema", "{\"type\": \"object\"}"),
            ("probabilities", "on"),
        ]);
        let requests = ask.requests().expect("requests");
        assert_eq!(requests.iter().map(ApiRequest::model).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(requests[0].path, "/v1/chat/completions");
        let expected = json!({
            "model": "one",
            "messages": [
                {"role": "system", "content": "Be\nbrief."},
                {"role": "user", "content": "Hi"},
                {"role": "user", "content": "<script>"},
            ],
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
            "logprobs": true, "top_logprobs": 5, "temperature": 0.5, "top_k": 4, "stop": ["\n", "END"],
        });
        assert_eq!(Value::Object(requests[0].body.clone()), expected);
    }

    #[test]
    fn a_text_is_asked_for_without_messages() {
        let ask = read(&[("model", "m"), ("form", "text"), ("prompt", "Once "), ("probabilities", "on")]);
        let requests = ask.requests().expect("requests");
        assert_eq!(requests[0].path, "/v1/completions");
        assert_eq!(Value::Object(requests[0].body.clone()), json!({"model": "m", "prompt": "Once ", "logprobs": 5}));
    }

    #[test]
    fn what_cannot_be_applied_is_refused_by_its_field() {
        let cases: [(&[(&str, &str)], &str); 8] = [
            (&[("prompt", "a")], "model"),
            (
                &[("model", "a"), ("model", "a"), ("model", "a"), ("model", "a"), ("model", "a"), ("prompt", "a")],
                "model",
            ),
            (&[("model", "m")], "prompt"),
            (&[("model", "m"), ("prompt", "a"), ("temperature", "warm")], "temperature"),
            (&[("model", "m"), ("prompt", "a"), ("schema", "{")], "schema"),
            (&[("model", "m"), ("prompt", "a"), ("form", "text"), ("schema", "{}")], "schema"),
            (&[("model", "m"), ("prompt", "a"), ("form", "text"), ("system", "s")], "system"),
            (&[("model", "m"), ("form", "text"), ("role", "user"), ("content", "s")], "content"),
        ];
        for (pairs, field) in cases {
            assert_eq!(read(pairs).requests().expect_err(field).field, field);
        }
    }

    #[test]
    fn an_answer_becomes_a_part_of_what_comes_before_the_next_prompt() {
        let mut chat = read(&[("prompt", "Hi")]);
        chat.keep("Hello");
        let turn = |is_answer, content: &str| Turn { is_answer, content: content.into() };
        assert_eq!((chat.turns, chat.prompt.as_str()), (vec![turn(false, "Hi"), turn(true, "Hello")], ""));
        let mut text = read(&[("form", "text"), ("prompt", "Once ")]);
        text.keep("upon");
        assert_eq!(text.prompt, "Once upon");
    }

    #[test]
    fn a_line_can_hold_a_line_break_and_a_backslash() {
        assert_eq!(unescaped(r"a\n\t\\n\x\"), "a\n\t\\n\\x\\");
    }
}
