//! Everything that a request for a response says to the model: the instructions, the responses that it goes on from,
//! and its own items, with those that it only refers to. Used by `responses`.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::items::{self, Item};
use super::request::{CreateResponse, Input};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::chat::ChatMessage;
use crate::api::http::error::{Problem, Result};
use crate::api::http::parsed_size::parsed_size;
use crate::api::http::share::Share;
use crate::store::responses::{Chain, Turn};

/// The field that names the response to go on from.
const PREVIOUS: &str = "previous_response_id";
/// Bytes of JSON that are read on an async thread.
const INLINE_BYTES: usize = 64 << 10;
/// Statuses of responses that can be gone on from.
const ANSWERED: [&str; 2] = ["completed", "incomplete"];

/// What a request says.
pub(super) struct Conversation {
    /// The items of the request itself, as they are kept.
    pub own: Vec<Value>,
    /// All of it, for the model.
    pub messages: Vec<ChatMessage>,
}

/// Gathers what `request` says.
pub(super) async fn gather(
    state: &ApiState,
    caller: &Caller,
    share: &Share,
    request: &CreateResponse,
) -> Result<Conversation> {
    let own = match &request.input {
        None => return Err(Problem::missing("input")),
        Some(Input::Text(text)) => vec![json!({"role": "user", "content": text})],
        Some(Input::Items(items)) => items.clone(),
    };
    let instructions = match &request.instructions {
        None => Vec::new(),
        Some(Input::Text(text)) => vec![Item::Message { role: "system".into(), text: text.clone() }],
        Some(Input::Items(items)) => read_all(items, "instructions")?,
    };
    let turns = earlier(state, caller, share, request.previous_response_id.as_deref()).await?;
    let before = parse(share, turns).await?;
    let references = references(&own)?;
    let found = find(state, caller, share, &references, &before).await?;
    let own: Vec<Value> = own.into_iter().map(|item| referred(item, &found)).collect();
    let mut all = instructions;
    all.extend(read_all(&before, "input")?);
    all.extend(read_all(&own, "input")?);
    let messages = items::messages(all)?;
    if messages.is_empty() {
        return Err(Problem::invalid_code("input", "invalid_value", "'input' says nothing: send some content."));
    }
    let own = own.into_iter().map(items::kept).collect();
    Ok(Conversation { own, messages })
}

fn read_all(items: &[Value], place: &str) -> Result<Vec<Item>> {
    items.iter().enumerate().map(|(index, item)| items::read(item, &format!("{place}[{index}]"))).collect()
}

/// Returns the responses that the one named `previous` ends, the first one first.
async fn earlier(state: &ApiState, caller: &Caller, share: &Share, previous: Option<&str>) -> Result<Vec<Turn>> {
    let Some(previous) = previous.filter(|previous| !previous.is_empty()) else { return Ok(Vec::new()) };
    let limit = state.config.limits.max_body_bytes;
    let turns = match state.store.response_chain(&caller.organization, previous, limit).await? {
        Chain::Whole(turns) => turns,
        Chain::Broken => {
            let message = format!("Previous response with id '{previous}' not found.");
            return Err(Problem::invalid_code(PREVIOUS, "previous_response_not_found", message));
        }
        Chain::TooLong => {
            let message = format!("The conversation that '{previous}' ends has more than {limit} bytes.");
            return Err(Problem::invalid_code(PREVIOUS, "context_length_exceeded", message));
        }
    };
    if let Some(turn) = turns.iter().find(|turn| !ANSWERED.contains(&turn.status.as_str())) {
        let message = format!("The response '{previous}' has no answer to go on from: its status is {}.", turn.status);
        return Err(Problem::invalid_code(PREVIOUS, "invalid_value", message));
    }
    for turn in &turns {
        share.keep(parsed_size(turn.input.as_bytes(), &[]) + parsed_size(turn.output.as_bytes(), &[])).await?;
    }
    let bytes: usize = turns.iter().map(|turn| turn.input.len() + turn.output.len()).sum();
    share.set_body_bytes(share.body_bytes() + bytes);
    Ok(turns)
}

/// Returns the items of responses.
async fn parse(share: &Share, turns: Vec<Turn>) -> Result<Vec<Value>> {
    let bytes: usize = turns.iter().map(|turn| turn.input.len() + turn.output.len()).sum();
    let read = move || {
        let texts = turns.iter().flat_map(|turn| [&turn.input, &turn.output]);
        let lists: Result<Vec<Vec<Value>>> = texts.map(|text| items_of(text)).collect();
        Ok(lists?.into_iter().flatten().collect())
    };
    if bytes <= INLINE_BYTES { read() } else { share.run("read a conversation", read).await }
}

/// Reads items as the database has them.
pub(super) fn items_of(text: &str) -> Result<Vec<Value>> {
    serde_json::from_str(text).map_err(|error| Problem::defect(format_args!("items of a response: {error}")))
}

fn references(own: &[Value]) -> Result<Vec<String>> {
    let reference = |item| match item {
        Item::Reference(id) => Some(id),
        _ => None,
    };
    Ok(read_all(own, "input")?.into_iter().filter_map(reference).collect())
}

/// Finds the items with these ids among those `before`, or else among all that are kept for the organisation.
async fn find(
    state: &ApiState,
    caller: &Caller,
    share: &Share,
    ids: &[String],
    before: &[Value],
) -> Result<HashMap<String, Value>> {
    let mut found = HashMap::new();
    let mut add = |items: &[Value]| {
        for item in items {
            if let Some(id) = item["id"].as_str().filter(|id| ids.iter().any(|other| other == id)) {
                found.entry(id.to_owned()).or_insert_with(|| item.clone());
            }
        }
        ids.iter().all(|id| found.contains_key(id))
    };
    if !add(before) && !ids.is_empty() {
        let wanted: Vec<&str> = ids.iter().map(String::as_str).collect();
        for turn in state.store.responses_with_items(&caller.organization, &wanted).await? {
            share.keep(parsed_size(turn.input.as_bytes(), &[]) + parsed_size(turn.output.as_bytes(), &[])).await?;
            // What the model wrote goes before what a client says that it wrote.
            if add(&items_of(&turn.output)?) || add(&items_of(&turn.input)?) {
                break;
            }
        }
    }
    match ids.iter().find(|id| !found.contains_key(*id)) {
        None => Ok(found),
        Some(id) => Err(Problem::no_item(id)),
    }
}

/// Returns the item that `item` refers to, or else itself.
fn referred(item: Value, found: &HashMap<String, Value>) -> Value {
    let is_reference = item["type"] == "item_reference" || (item["type"].is_null() && item["role"].is_null());
    let kept = item["id"].as_str().filter(|_| is_reference).and_then(|id| found.get(id));
    kept.cloned().unwrap_or(item)
}
