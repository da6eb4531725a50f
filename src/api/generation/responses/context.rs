//! `context_management`: a conversation that has become longer than a request wants is made short before it is answered,
//! as `compaction` does it on its own route. What the model said and called becomes a summary, of which the response's
//! output has the item; what it is to answer stays as it is. Used by `responses`.

use std::sync::Arc;

use serde_json::Value;

use super::asked::Asked;
use super::compaction::Summarizer;
use super::conversation::{instructions, read_all};
use super::items::{self, Item, is_said_to_the_model};
use super::object::OutputItem;
use super::request::CreateResponse;
use super::summary;
use crate::api::ApiState;
use crate::api::generation::chat::ChatMessage;
use crate::api::generation::generate::body::Usage;
use crate::api::generation::target::Target;
use crate::api::http::error::{Problem, Result};
use crate::datasets::parse::shorten;
use crate::store::new_id;

const PARAM: &str = "context_management";
/// Types of items that the model makes, beside its messages.
const OF_MODEL: [&str; 4] = ["reasoning", "function_call", "custom_tool_call", "compaction"];
/// Types of calls.
const CALLS: [&str; 2] = ["function_call", "custom_tool_call"];
/// Types of results of calls.
const RESULTS: [&str; 2] = ["function_call_output", "custom_tool_call_output"];

/// A conversation that was made short.
pub(super) struct Compacted {
    /// What stands for it.
    pub item: OutputItem,
    /// Tokens of the summary and of what the model read for it.
    pub used: Usage,
    pub reasoning_tokens: usize,
    /// What the model is told instead.
    pub messages: Vec<ChatMessage>,
}

/// Returns how many tokens a prompt may have before the conversation is made short; `None` if any number.
pub(super) fn threshold(request: &CreateResponse) -> Result<Option<usize>> {
    let fault = |param: String, message: String| Err(Problem::invalid_code(param, "invalid_value", message));
    let entries = match &request.context_management {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err(Problem::wrong_type(PARAM, "expected an array of objects")),
    };
    let entry = match entries.as_slice() {
        [] => return Ok(None),
        [Value::Object(entry)] => entry,
        [_] => return Err(Problem::wrong_type(format!("{PARAM}[0]"), "expected an object")),
        _ => {
            let message = format!("'{PARAM}' has {} entries: send one, of the type 'compaction'.", entries.len());
            return fault(PARAM.into(), message);
        }
    };
    let param = |field: &str| format!("{PARAM}[0].{field}");
    match entry.get("type") {
        None | Some(Value::Null) => return Err(Problem::missing(param("type"))),
        Some(Value::String(kind)) if kind == "compaction" => {}
        Some(Value::String(kind)) => {
            let message = format!("'{}' is not a way to manage the context here: use 'compaction'.", shorten(kind));
            return fault(param("type"), message);
        }
        Some(_) => return Err(Problem::wrong_type(param("type"), "expected a string")),
    }
    if let Some(other) = entry.keys().find(|key| !["type", "compact_threshold"].contains(&key.as_str())) {
        let message = format!("'{}' is not known in an entry of '{PARAM}': leave it out.", shorten(other));
        return Err(Problem::invalid_code(param(&shorten(other)), "unknown_parameter", message));
    }
    match entry.get("compact_threshold") {
        None | Some(Value::Null) => Err(Problem::missing(param("compact_threshold"))),
        Some(Value::Number(number)) => match number.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) if number > 0 => Ok(Some(number)),
            _ => {
                let message = format!(
                    "Invalid '{}': expected a whole number of at least 1, got {number}.",
                    param("compact_threshold")
                );
                fault(param("compact_threshold"), message)
            }
        },
        Some(_) => Err(Problem::wrong_type(param("compact_threshold"), "expected a whole number")),
    }
}

/// Makes the conversation of `request` short, if its prompt has more tokens than it wants or than there is room for, and
/// there is something to make short: the items `before` and its `own`, which `asked` says with the instructions.
pub(super) async fn compact(
    state: &ApiState,
    target: &Target,
    request: &CreateResponse,
    asked: &Asked,
    items: (&[Value], &[Value]),
) -> Result<Option<Compacted>> {
    let Some(threshold) = threshold(request)? else { return Ok(None) };
    let Some(Parts { all, said, turn }) = Parts::of(items) else { return Ok(None) };
    let fits = match Arc::new(asked.chat.clone()).count_prompt(target).await {
        Ok(tokens) => {
            let answer = request.max_output_tokens.unwrap_or(1);
            tokens <= threshold && tokens.saturating_add(answer) <= target.context()
        }
        Err(problem) if problem.is_context_length() => false,
        Err(problem) => return Err(asked.names.tell(problem)),
    };
    if fits {
        return Ok(None);
    }
    let advice = "ask for it later by a higher 'compact_threshold'";
    let mut summarizer = Summarizer::new(state, target.clone(), request.model.clone(), advice);
    let summary = summarizer.summarize(&items::messages(read_all(&all, "input")?)?).await?;
    let item = OutputItem::Compaction { id: new_id("cmp_"), encrypted_content: summary::write(&summary) };
    let messages = shortened(request, &said, summary, &turn)?;
    let (used, reasoning_tokens) = summarizer.used();
    Ok(Some(Compacted { item, used, reasoning_tokens, messages }))
}

/// Returns what the model is told at least once the conversation of `request` is made short, which is to be done later;
/// `None` if it is not.
pub(super) fn at_least(request: &CreateResponse, items: (&[Value], &[Value])) -> Result<Option<Vec<ChatMessage>>> {
    match (threshold(request)?, Parts::of(items)) {
        (Some(_), Some(Parts { said, turn, .. })) => shortened(request, &said, String::new(), &turn).map(Some),
        _ => Ok(None),
    }
}

/// The parts of a conversation that can be made short.
struct Parts {
    /// All of it.
    all: Vec<Value>,
    /// What the user, the system and the developer said before the turn.
    said: Vec<Value>,
    /// The turn that is to be answered.
    turn: Vec<Value>,
}

impl Parts {
    fn of((before, own): (&[Value], &[Value])) -> Option<Self> {
        let all: Vec<Value> = before.iter().chain(own).cloned().collect();
        let start = turn_of(&all)?;
        let said = all[..start].iter().filter(|item| is_said_to_the_model(item)).cloned().collect();
        let turn = all[start..].to_vec();
        Some(Self { all, said, turn })
    }
}

fn shortened(request: &CreateResponse, said: &[Value], summary: String, turn: &[Value]) -> Result<Vec<ChatMessage>> {
    let mut all = instructions(request.instructions.as_ref())?;
    all.extend(read_all(said, "input")?);
    all.push(Item::Summary(summary));
    all.extend(read_all(turn, "input")?);
    items::messages(all)
}

/// Returns where the turn begins that is to be answered: behind what the model said last or, if the answer goes on from
/// results, with the calls that these are of. `None` if nothing before it can be made shorter.
fn turn_of(items: &[Value]) -> Option<usize> {
    let kind = |item: &Value| item["type"].as_str().unwrap_or("message").to_owned();
    let is_of_model = |item: &Value| {
        let kind = kind(item);
        OF_MODEL.contains(&kind.as_str()) || (kind == "message" && item["role"] == "assistant")
    };
    let mut start = items.iter().rposition(is_of_model)? + 1;
    loop {
        let results = items[start..].iter().filter(|item| RESULTS.contains(&kind(item).as_str()));
        let call = |result: &Value| {
            let is_call = |item: &Value| CALLS.contains(&kind(item).as_str()) && item["call_id"] == result["call_id"];
            items[..start].iter().rposition(is_call)
        };
        match results.filter_map(call).min() {
            Some(earlier) => start = earlier,
            None => break,
        }
    }
    // What was thought before a call belongs to it.
    while start > 0 && kind(&items[start - 1]) == "reasoning" && start < items.len() {
        start -= 1;
    }
    let is_long =
        |item: &Value| (is_of_model(item) && kind(item) != "compaction") || RESULTS.contains(&kind(item).as_str());
    items[..start].iter().any(is_long).then_some(start)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(role: &str) -> Value {
        json!({"type": "message", "role": role, "content": "x"})
    }

    fn call(id: &str) -> Value {
        json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"})
    }

    fn result(id: &str) -> Value {
        json!({"type": "function_call_output", "call_id": id, "output": "x"})
    }

    fn compaction() -> Value {
        json!({"type": "compaction", "encrypted_content": summary::write("x")})
    }

    #[test]
    fn the_turn_that_is_answered_begins_behind_the_models_last_or_with_its_open_calls() {
        let (user, model, thought) = (message("user"), message("assistant"), json!({"type": "reasoning"}));
        for (items, turn) in [
            (vec![user.clone()], None),
            (vec![message("system"), user.clone(), user.clone()], None),
            (vec![user.clone(), model.clone(), user.clone()], Some(2)),
            (vec![user.clone(), model.clone()], Some(2)),
            (vec![user.clone(), call("a"), result("a")], None),
            (vec![user.clone(), call("a"), result("a"), call("b"), result("b")], Some(3)),
            (
                vec![user.clone(), model.clone(), thought.clone(), call("a"), call("b"), result("a"), result("b")],
                Some(2),
            ),
            (
                vec![
                    user.clone(),
                    model.clone(),
                    call("a"),
                    call("b"),
                    result("a"),
                    call("c"),
                    result("b"),
                    result("c"),
                ],
                Some(2),
            ),
            (vec![user.clone(), compaction(), user.clone()], None),
            (vec![user.clone(), compaction(), model.clone(), user.clone()], Some(3)),
            (vec![json!({"role": "assistant", "content": "x"}), json!({"role": "user", "content": "x"})], Some(1)),
        ] {
            assert_eq!(turn_of(&items), turn, "{items:?}");
        }
    }

    #[test]
    fn what_is_not_applied_is_refused_by_its_name() {
        let of = |value: Value| {
            let request = CreateResponse { context_management: Some(value), ..CreateResponse::default() };
            threshold(&request).map_err(|problem| problem.error.param.map(std::borrow::Cow::into_owned))
        };
        assert_eq!(of(json!(null)), Ok(None));
        assert_eq!(of(json!([])), Ok(None));
        assert_eq!(of(json!([{"type": "compaction", "compact_threshold": 1000}])), Ok(Some(1000)));
        for (value, param) in [
            (json!("auto"), "context_management"),
            (json!({"type": "compaction", "compact_threshold": 1000}), "context_management"),
            (json!(["compaction"]), "context_management[0]"),
            (json!([{"compact_threshold": 1000}]), "context_management[0].type"),
            (json!([{"type": "clear_tool_uses", "compact_threshold": 1000}]), "context_management[0].type"),
            (json!([{"type": 1, "compact_threshold": 1000}]), "context_management[0].type"),
            (json!([{"type": "compaction"}]), "context_management[0].compact_threshold"),
            (json!([{"type": "compaction", "compact_threshold": 0}]), "context_management[0].compact_threshold"),
            (json!([{"type": "compaction", "compact_threshold": -1}]), "context_management[0].compact_threshold"),
            (json!([{"type": "compaction", "compact_threshold": 1.5}]), "context_management[0].compact_threshold"),
            (json!([{"type": "compaction", "compact_threshold": "1000"}]), "context_management[0].compact_threshold"),
            (json!([{"type": "compaction", "compact_threshold": 1000, "keep": 3}]), "context_management[0].keep"),
            (
                json!([{"type": "compaction", "compact_threshold": 1}, {"type": "compaction", "compact_threshold": 2}]),
                "context_management",
            ),
        ] {
            assert_eq!(of(value.clone()), Err(Some(param.to_owned())), "{value}");
        }
    }
}
