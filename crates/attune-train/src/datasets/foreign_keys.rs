//! Recognises keys, roles and layouts of other programs' training files, and says how they are called here. Called by
//! the checks of a line.

use serde_json::{Map, Value};

use super::spelling::{nearest, plain};
use super::words::shorten;

/// Names for the prompt and for the answer in other files, in the order in which they are taken. Compared without case
/// and separators.
const PROMPTS: [&str; 17] = [
    "prompt",
    "instruction",
    "question",
    "input",
    "text",
    "query",
    "request",
    "source",
    "sentence",
    "article",
    "document",
    "user",
    "human",
    "problem",
    "context",
    "premise",
    "src",
];
const ANSWERS: [&str; 26] = [
    "completion",
    "response",
    "answer",
    "output",
    "target",
    "reply",
    "label",
    "answers",
    "outputs",
    "responses",
    "labels",
    "category",
    "class",
    "intent",
    "sentiment",
    "summary",
    "translation",
    "solution",
    "assistant",
    "bot",
    "result",
    "expected",
    "generation",
    "tgt",
    "gpt",
    "ideal",
];
const CONVERSATIONS: [&str; 9] =
    ["conversations", "conversation", "dialog", "dialogue", "dialogs", "chat", "turns", "message", "history"];

/// Most keys that a message names.
const MAX_NAMED: usize = 8;

/// Words the fault of an object that lacks the keys of an example.
pub(super) fn unknown_layout(object: &Map<String, Value>) -> String {
    const KNOWN: &str = "neither `messages` nor `prompt` and `completion`, nor `anchor` and `positive`";
    if object.is_empty() {
        return format!("has {KNOWN}");
    }
    if let Some(fault) = conversation(object) {
        return fault;
    }
    if let (1, Some((key, Value::Array(values)))) = (object.len(), object.iter().next())
        && values.iter().all(Value::is_object)
    {
        let key = shorten(key);
        return format!("has all examples in an array, `{key}`: write each of its elements on a line of its own");
    }
    let keys = listed(object.keys().map(String::as_str));
    let what = if object.len() == 1 { "key" } else { "keys" };
    let (prompt, answer) = (find(object, &PROMPTS), find(object, &ANSWERS));
    match (prompt, answer) {
        (Some(prompt), Some(answer)) => {
            let input = object.keys().map(String::as_str).find(|key| plain(key) == "input" && *key != prompt);
            let renamed = match input {
                // Alpaca's files have an optional text for the instruction to work on.
                Some(input) => vec![
                    format!("put `{prompt}` and `{input}` into one text as `prompt`"),
                    rename(answer, "completion", &object[answer]),
                ],
                None => [(prompt, "prompt"), (answer, "completion")]
                    .into_iter()
                    .filter(|(key, name)| key != name)
                    .map(|(key, name)| rename(key, name, &object[key]))
                    .collect(),
            };
            let others = object.len() - 2 - usize::from(input.is_some());
            let removed = if others > 0 { ", and remove the other keys" } else { "" };
            format!("has the {what} {keys}: {}{removed}", renamed.join(" and "))
        }
        (Some(text), None) if object.len() == 1 && plain(text) != "prompt" => format!(
            "has only `{text}`, but an answer is what is learned: write what the model is given as `prompt` (\"\" if \
             nothing) and what it shall write as `completion`"
        ),
        (Some("prompt"), None) if object.len() == 1 => "has no `completion`".into(),
        (None, Some("completion")) if object.len() == 1 => "has no `prompt`".into(),
        _ => format!("has the {what} {keys}, but {KNOWN}"),
    }
}

/// Returns the key of an object that is a prompt under one of the names of other programs.
pub(super) fn prompt_key(object: &Map<String, Value>) -> Option<&str> {
    find(object, &PROMPTS)
}

/// Returns true if an object has an answer under one of the names of other programs.
pub(super) fn has_answer(object: &Map<String, Value>) -> bool {
    find(object, &ANSWERS).is_some()
}

/// Words what to do about a key that an example of `prompt` and `completion`, or a chat if `chat`, does not have.
pub(super) fn unknown_key(key: &str, chat: bool) -> String {
    let (name, plain) = (shorten(key), plain(key));
    if let Some(meant) = nearest(key, ["tools", "functions"]).filter(|_| chat) {
        return format!("has the unknown key `{name}`: rename it to `{meant}`");
    }
    let remedy = if chat && ["system", "systemprompt", "instruction", "instructions"].contains(&plain.as_str()) {
        "make it the first of the `messages`, with the role `system`"
    } else if !chat && (PROMPTS.contains(&plain.as_str()) || ["system", "systemprompt"].contains(&plain.as_str())) {
        "put it into `prompt`, or remove it if the model shall not see it"
    } else {
        "remove it"
    };
    format!("has the unknown key `{name}`: {remedy}")
}

/// Words the fault of a key that messages do not have; `known` are those that they have.
pub(super) fn unknown_message_key(key: &str, known: &[&'static str]) -> String {
    let name = shorten(key);
    let meant = match plain(key).as_str() {
        "from" | "speaker" | "author" | "sender" => Some("role"),
        "value" | "text" | "message" | "body" | "parts" => Some("content"),
        _ => nearest(key, known.iter().copied()),
    };
    match meant {
        Some(meant) => format!("has the unknown key `{name}`: rename it to `{meant}`"),
        None => format!("has the unknown key `{name}`: remove it"),
    }
}

/// Words the fault of an unknown role.
pub(super) fn unknown_role(role: &str) -> String {
    const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
    let meant = match plain(role).as_str() {
        "bot" | "chatbot" | "gpt" | "chatgpt" | "model" | "ai" | "agent" | "answer" | "claude" | "llm" => {
            Some("assistant")
        }
        "human" | "customer" | "client" | "prompter" | "person" | "question" | "input" => Some("user"),
        "instruction" | "instructions" => Some("system"),
        _ => nearest(role, ROLES),
    };
    let role = shorten(role);
    match meant {
        Some(meant) => format!(
            "has the role `{role}`: use `{meant}` (there are system, developer, user, assistant, tool and function)"
        ),
        None => format!("has the role `{role}`: use system, developer, user, assistant, tool or function"),
    }
}

/// Words the fault of a chat under another name, or in another form; `None` if the object has none.
fn conversation(object: &Map<String, Value>) -> Option<String> {
    let (key, first) = object.iter().find_map(|(key, value)| {
        let first = value.as_array()?.first()?.as_object()?;
        let by_name = CONVERSATIONS.contains(&plain(key).as_str()) || nearest(key, ["messages"]).is_some();
        (by_name || first.contains_key("role") || first.contains_key("from")).then_some((key, first))
    })?;
    let key = shorten(key);
    if first.contains_key("from") || first.contains_key("value") {
        return Some(format!(
            "has the key `{key}`, a chat in the form of ShareGPT: rename `{key}` to `messages`, `from` to `role` (with \
             `user` for `human` and `assistant` for `gpt`) and `value` to `content`"
        ));
    }
    let form = if first.contains_key("role") { "" } else { ", and give each of them a `role` and a `content`" };
    Some(format!("has the key `{key}` in place of `messages`: rename it to `messages`{form}"))
}

/// Returns the object's key that has one of `names`, or is a misspelling of the first of them.
fn find<'a>(object: &'a Map<String, Value>, names: &[&str]) -> Option<&'a str> {
    let named = |name: &&str| object.keys().find(|key| plain(key) == **name);
    let misspelt = || object.keys().find(|key| nearest(key, names.first().copied()).is_some());
    named(&names[0]).or_else(misspelt).or_else(|| names.iter().find_map(named)).map(String::as_str)
}

fn rename(key: &str, name: &str, value: &Value) -> String {
    let form = if value.is_string() { "" } else { " and make it a text" };
    format!("rename `{}` to `{name}`{form}", shorten(key))
}

/// Lists keys for a message.
fn listed<'a>(keys: impl ExactSizeIterator<Item = &'a str>) -> String {
    let all = keys.len();
    let mut named: Vec<String> = keys.take(MAX_NAMED).map(|key| format!("`{}`", shorten(key))).collect();
    if all > MAX_NAMED {
        named.push(format!("{} more", all - MAX_NAMED));
    }
    match named.as_slice() {
        [others @ .., last] if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        named => named.concat(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn layouts_of_other_programs_get_the_names_that_they_have_here() {
        for (line, expected) in [
            (json!({}), "has neither `messages` nor"),
            (
                json!({"instruction": "a", "input": "b", "output": "c"}),
                "has the keys `instruction`, `input` and `output`: put `instruction` and `input` into one text as `prompt` \
                 and rename `output` to `completion`",
            ),
            (json!({"instruction": "a", "output": "c"}), "rename `instruction` to `prompt` and rename `output` to"),
            (
                json!({"conversations": [{"from": "human", "value": "a"}]}),
                "rename `conversations` to `messages`, `from` to `role`",
            ),
            (json!({"Messages": [{"role": "user"}]}), "has the key `Messages` in place of `messages`: rename it"),
            (json!({"mesages": [{"role": "user"}], "id": 1}), "rename it to `messages`"),
            (
                json!({"question": "a", "answer": "b"}),
                "rename `question` to `prompt` and rename `answer` to `completion`",
            ),
            (
                json!({"id": 7, "text": "a", "label": 1}),
                "rename `text` to `prompt` and rename `label` to `completion` and make it a text, and remove the other keys",
            ),
            (
                json!({"prompt": "a", "response": "b"}),
                "has the keys `prompt` and `response`: rename `response` to `completion`",
            ),
            (json!({"prompt": "a", "completions": "b"}), "rename `completions` to `completion`"),
            (json!({"Prompt": "a", "Completion": "b"}), "rename `Prompt` to `prompt` and rename `Completion` to"),
            (json!({"query": "a", "response": "b"}), "rename `query` to `prompt`"),
            (json!({"text": "a"}), "has only `text`, but an answer is what is learned"),
            (json!({"data": [{"prompt": "a"}]}), "has all examples in an array, `data`: write each of its elements"),
            (json!({"prompt": "a"}), "has no `completion`"),
            (json!({"a": 1, "b": 2}), "has the keys `a` and `b`, but neither `messages` nor"),
        ] {
            let fault = unknown_layout(line.as_object().expect("an object"));
            assert!(fault.contains(expected), "{line}: {fault}");
            assert!(!fault.contains("remove it"), "{fault}");
        }
    }

    #[test]
    fn roles_and_keys_of_messages_are_translated() {
        assert!(unknown_role("bot").starts_with("has the role `bot`: use `assistant`"));
        assert!(unknown_role("Human").contains("use `user`") && unknown_role("Assistant").contains("use `assistant`"));
        assert!(unknown_role("wizard").contains("use system, developer"));
        assert_eq!(unknown_message_key("from", &["role"]), "has the unknown key `from`: rename it to `role`");
        assert_eq!(unknown_message_key("x", &["role"]), "has the unknown key `x`: remove it");
        assert!(unknown_key("system", true).contains("the first of the `messages`"));
        assert!(unknown_key("context", false).contains("put it into `prompt`"));
        assert_eq!(unknown_key("Tools", true), "has the unknown key `Tools`: rename it to `tools`");
        assert_eq!(unknown_key("id", false), "has the unknown key `id`: remove it");
    }
}
