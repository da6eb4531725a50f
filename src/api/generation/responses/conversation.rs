//! Everything that a request for a response says to the model: the instructions, the responses or the conversation that
//! it goes on from, and its own items, with those that it only refers to. Used by `responses`, `compaction`, and
//! `conversations` for items that are added to one; evals read back what a kept one answered.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::items::{self, Item, pruned};
use super::request::{CreateResponse, Input};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::chat::ChatMessage;
use crate::api::http::error::{Problem, Result};
use crate::api::http::parsed_size::parsed_size;
use crate::api::http::share::Share;
use crate::store::conversations::{ConversationPlace, History, NewItems};
use crate::store::responses::{Chain, StoredResponse, Turn};

/// The field that names the response to go on from.
const PREVIOUS: &str = "previous_response_id";
/// The field that names the conversation to go on from.
const CONVERSATION: &str = "conversation";
/// Items of a conversation.
pub(crate) const MAX_ITEMS: i64 = 10_000;
/// Bytes of JSON that are read on an async thread.
const INLINE_BYTES: usize = 64 << 10;
/// Statuses of responses that can be gone on from.
pub(super) const ANSWERED: [&str; 2] = ["completed", "incomplete"];

/// What a request says.
pub(super) struct Conversation {
    /// The items of what it goes on from, but for those that a compaction stands for.
    pub before: Vec<Value>,
    /// The items of the request itself, as they are kept.
    pub own: Vec<Value>,
    /// All of it, for the model.
    pub messages: Vec<ChatMessage>,
    /// The conversation that it goes on from, as it is now.
    pub place: Option<ConversationPlace>,
}

/// Gathers what `request` says.
pub(super) async fn gather(
    state: &ApiState,
    caller: &Caller,
    share: &Share,
    request: &CreateResponse,
) -> Result<Conversation> {
    let own = match &request.input {
        // What is to be answered may stand in the conversation already.
        None if request.conversation().is_some() => Vec::new(),
        None => return Err(Problem::missing("input")),
        Some(Input::Text(text)) => vec![json!({"role": "user", "content": text})],
        Some(Input::Items(items)) => items.clone(),
    };
    let instructions = instructions(request.instructions.as_ref())?;
    let previous = request.previous_response_id.as_deref().filter(|previous| !previous.is_empty());
    let (turns, place) = match (previous, request.conversation()) {
        (None, None) => (Vec::new(), None),
        (Some(previous), None) => (earlier(state, caller, previous).await?, None),
        (None, Some(conversation)) => {
            let (turn, place) = so_far(state, caller, conversation).await?;
            (vec![turn], Some(place))
        }
        (Some(_), Some(_)) => {
            let message = "'previous_response_id' and 'conversation' both say what to go on from: send one of them.";
            return Err(Problem::invalid_code(PREVIOUS, "mutually_exclusive_parameters", message));
        }
    };
    let before = parse(share, turns).await?;
    let own = resolve(state, caller, share, own, &before, "input").await?;
    check_twice(&own)?;
    if place.is_some() {
        check_new(&own, &before, "input")?;
    }
    let before = pruned(before);
    let mut all = instructions;
    all.extend(read_all(&before, "input")?);
    all.extend(read_all(&own, "input")?);
    let messages = items::messages(all)?;
    if messages.is_empty() {
        return Err(Problem::invalid_code("input", "invalid_value", "'input' says nothing: send some content."));
    }
    let own = own.into_iter().map(items::kept).collect();
    Ok(Conversation { before, own, messages, place })
}

/// Returns items of the field `param`, each reference replaced by its item; those that cannot be read are refused.
pub(crate) async fn resolve(
    state: &ApiState,
    caller: &Caller,
    share: &Share,
    own: Vec<Value>,
    before: &[Value],
    param: &str,
) -> Result<Vec<Value>> {
    let references = references(&own, param)?;
    let found = find(state, caller, share, &references, before).await?;
    Ok(own.into_iter().map(|item| referred(item, &found)).collect())
}

/// Refuses items of the field `param` with an id that another one, or one `before`, has in the same conversation.
pub(crate) fn check_new(own: &[Value], before: &[Value], param: &str) -> Result<()> {
    let mut ids: HashSet<&str> = before.iter().filter_map(|item| item["id"].as_str()).collect();
    for (index, id) in own.iter().enumerate().filter_map(|(index, item)| Some((index, item["id"].as_str()?))) {
        if !id.is_empty() && !ids.insert(id) {
            let message = format!("The conversation has an item with the id '{id}' already: leave this one out.");
            return Err(Problem::invalid_code(format!("{param}[{index}].id"), "invalid_value", message));
        }
    }
    Ok(())
}

/// Refuses two items of the request with the same id: a list of them could not be read page by page.
fn check_twice(own: &[Value]) -> Result<()> {
    let mut ids = HashSet::new();
    for (index, id) in own.iter().enumerate().filter_map(|(index, item)| Some((index, item["id"].as_str()?))) {
        if !id.is_empty() && !ids.insert(id) {
            let message = format!("Duplicate item found with id {id}: send it once.");
            return Err(Problem::invalid_code(format!("input[{index}].id"), "invalid_value", message));
        }
    }
    Ok(())
}

/// Returns items as a conversation gets them.
pub(crate) fn new_items<'a>(items: impl IntoIterator<Item = &'a Value>) -> NewItems {
    let id = |item: &Value| item["id"].as_str().unwrap_or_default().to_owned();
    let (ids, items) = items.into_iter().map(|item| (id(item), item.to_string())).unzip();
    NewItems { ids, items }
}

/// Reads the items of a conversation, and where they end.
async fn so_far(state: &ApiState, caller: &Caller, id: &str) -> Result<(Turn, ConversationPlace)> {
    let limit = state.config.limits.max_body_bytes;
    match state.store.conversation_history(&caller.organization, id, None, limit).await? {
        History::Whole { items, count, place } if count < MAX_ITEMS => {
            Ok((Turn { status: "completed".into(), input: items, output: "[]".into() }, place))
        }
        History::Gone => Err(Problem::no_conversation(id)),
        History::TooLong | History::Whole { .. } => {
            let message = format!("The conversation '{id}' has more than {limit} bytes or {MAX_ITEMS} items.");
            Err(Problem::invalid_code(CONVERSATION, "context_length_exceeded", message))
        }
    }
}

/// Reads the instructions of a request.
pub(super) fn instructions(given: Option<&Input>) -> Result<Vec<Item>> {
    match given {
        None => Ok(Vec::new()),
        Some(Input::Text(text)) => Ok(vec![Item::Message { role: "system".into(), text: text.clone() }]),
        Some(Input::Items(items)) => read_all(items, "instructions"),
    }
}

/// Returns the messages of a chat that a kept response answers: its instructions, the responses or the conversation that it
/// goes on from, and its own items. `object` is the response as clients read it.
pub(crate) async fn messages_of(
    state: &ApiState,
    organization: &str,
    kept: &StoredResponse,
    object: &Value,
) -> Result<Vec<ChatMessage>> {
    let given = serde_json::from_value::<Option<Input>>(object["instructions"].clone())
        .map_err(|error| Problem::defect(format_args!("instructions of a response: {error}")))?;
    let mut all = instructions(given.as_ref())?;
    let limit = state.config.limits.max_body_bytes;
    let Chain::Whole(mut turns) = state.store.response_chain(organization, &kept.id, limit).await? else {
        let message = format!("What the response '{}' goes on from is not kept any more, or too long.", kept.id);
        return Err(Problem::invalid_code(PREVIOUS, "previous_response_not_found", message));
    };
    // The last one is the response itself, whose output is the answer.
    let own = turns.pop();
    let mut before = Vec::new();
    for turn in turns {
        before.extend(items_of(&turn.input)?);
        before.extend(items_of(&turn.output)?);
    }
    all.extend(read_all(&pruned(before), "input")?);
    if let Some(own) = own {
        all.extend(read_all(&items_of(&own.input)?, "input")?);
    }
    items::messages(all)
}

pub(super) fn read_all(items: &[Value], place: &str) -> Result<Vec<Item>> {
    items.iter().enumerate().map(|(index, item)| items::read(item, &format!("{place}[{index}]"))).collect()
}

/// Returns the responses that the one named `previous` ends, the first one first.
async fn earlier(state: &ApiState, caller: &Caller, previous: &str) -> Result<Vec<Turn>> {
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
    Ok(turns)
}

/// Returns the items of responses, which take of the request's share.
async fn parse(share: &Share, turns: Vec<Turn>) -> Result<Vec<Value>> {
    for turn in &turns {
        share.keep(parsed_size(turn.input.as_bytes(), &[]) + parsed_size(turn.output.as_bytes(), &[])).await?;
    }
    let bytes: usize = turns.iter().map(|turn| turn.input.len() + turn.output.len()).sum();
    share.set_body_bytes(share.body_bytes() + bytes);
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

fn references(own: &[Value], param: &str) -> Result<Vec<String>> {
    let reference = |item| match item {
        Item::Reference(id) => Some(id),
        _ => None,
    };
    for (index, item) in own.iter().enumerate() {
        items::check_labels(item, &format!("{param}[{index}]"))?;
    }
    Ok(read_all(own, param)?.into_iter().filter_map(reference).collect())
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
    let wanted: HashSet<&str> = ids.iter().map(String::as_str).collect();
    let mut add = |items: &[Value]| {
        for item in items {
            if let Some(id) = item["id"].as_str().filter(|id| wanted.contains(id)) {
                found.entry(id.to_owned()).or_insert_with(|| item.clone());
            }
        }
        found.len() == wanted.len()
    };
    if !add(before) {
        let wanted: Vec<&str> = wanted.iter().copied().collect();
        for turn in state.store.responses_with_items(&caller.organization, &wanted).await? {
            share.keep(parsed_size(turn.input.as_bytes(), &[]) + parsed_size(turn.output.as_bytes(), &[])).await?;
            // What the model wrote goes before what a client says that it wrote.
            if add(&items_of(&turn.output)?) || add(&items_of(&turn.input)?) {
                break;
            }
        }
        if !add(&[]) {
            let items = state.store.items_of_conversations(&caller.organization, &wanted).await?.join(",");
            share.keep(parsed_size(items.as_bytes(), &[])).await?;
            add(&items_of(&format!("[{items}]"))?);
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
