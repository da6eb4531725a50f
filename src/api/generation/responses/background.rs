//! Writes responses that nobody waits for. They wait in the database, where any server of the organisation's data takes
//! them up, with a lease that it renews while it writes. Each is asked of the API's own route on behalf of the holder
//! of the key that asked for it, as a streamed response that is not kept, so that limits, usage and answers are those
//! of any other request.
//!
//! A response whose server was killed is taken up again when its lease has run out, or, if readers of its stream have
//! seen a part of an answer that will not come again, ends with an error. So does one whose server stops in good order.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, to_bytes};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, http};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::conversation::{ANSWERED, new_items};
use super::object::ResponseObject;
use super::request::{CreateResponse, Input};
use super::watching::watch;
use super::{Prepared, kept_answer};
use crate::api::ApiState;
use crate::api::access::auth::{Caller, Gate};
use crate::api::access::inside::Inside;
use crate::api::http::error::{Problem, RateLimit, Result};
use crate::api::http::sse;
use crate::store::background_responses::{ClaimedResponse, ResponseEvent};
use crate::store::conversations::{ConversationPlace, NewItems};
use crate::store::new_id;
use crate::store::responses::{Answer, NewResponse};

/// Unfinished responses of an organisation.
const MOST: i64 = 1_000;
/// Responses that one server writes at a time. The engine runs their rows beside those of requests.
const AT_A_TIME: usize = 8;
/// Time after which another server may take a response up; it is renewed far more often.
const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(3);
/// Time between looks for a response that waits, if the database tells of none: some wait for a time or for a lease to end.
const POLL: Duration = Duration::from_secs(1);
/// Time before a response that was refused because the server is busy is tried again, unless it says another.
const BUSY: Duration = Duration::from_secs(2);
/// Seconds after which a response that was always refused so ends.
const PATIENCE: i64 = 24 * 60 * 60;
/// Attempts whose server was killed, after which a response ends.
const LOSSES: i32 = 3;
/// Longest body of a refusal that is read.
const REFUSAL_BYTES: usize = 1 << 20;

/// What a request for a response says.
pub(super) struct Said {
    /// Items of what it goes on from.
    pub before: Vec<Value>,
    /// Its own.
    pub own: Vec<Value>,
    /// The conversation that it goes on from.
    pub place: Option<ConversationPlace>,
}

/// Queues a response and answers with it, or with its events.
pub(super) async fn queue(
    state: &ApiState,
    caller: &Caller,
    request: CreateResponse,
    Said { mut before, own, place }: Said,
    prepared: Prepared,
) -> Result<Response> {
    let mut response = prepared.response;
    (response.id, response.background, response.status) = (new_id("resp_"), true, "queued");
    let is_streamed = request.stream == Some(true);
    let events = is_streamed.then(|| ["response.created", "response.queued"].into_iter().zip(0..));
    let events: Option<Vec<ResponseEvent>> = match events {
        None => None,
        Some(events) => Some(events.map(|(kind, sequence)| event(kind, sequence, &response)).collect::<Result<_>>()?),
    };
    let new = NewResponse {
        id: response.id.clone(),
        organization: caller.organization.to_string(),
        key: caller.key.to_string(),
        created_micros: prepared.began,
        previous: response.previous_response_id.clone(),
        conversation: place,
        input: sse::json(&own)?,
        answer: kept_answer(&own, &response)?,
    };
    // It answers the conversation as it is now, and adds to it in the end.
    let input = if new.conversation.is_some() {
        before.extend(own);
        before
    } else {
        own
    };
    let (store, stream, background, conversation) = (Some(false), Some(true), None, None);
    let input = Some(Input::Items(input));
    let body = sse::json(&CreateResponse { input, conversation, store, stream, background, ..request })?;
    let limit = state.config.limits.max_body_bytes;
    if body.len() > limit {
        let message = format!("The request with its conversation has more than {limit} bytes.");
        return Err(Problem::invalid_code("input", "context_length_exceeded", message));
    }
    if !state.store.queue_response(&new, &body, events.as_deref(), MOST).await? {
        let message = format!("This organization has {MOST} unfinished responses: wait until some have ended.");
        return Err(Problem::rate_limited(RateLimit::Requests, message, Some(BUSY)));
    }
    if is_streamed {
        let events = watch(state.clone(), Arc::clone(&caller.organization), response.id, -1);
        return Ok(sse::respond_named(events));
    }
    Ok(Json(response).into_response())
}

fn event(kind: &str, sequence: i32, response: &ResponseObject) -> Result<ResponseEvent> {
    let text = sse::json(response)?;
    let event = format!("{{\"type\":\"{kind}\",\"sequence_number\":{sequence},\"response\":{text}}}");
    Ok(ResponseEvent { sequence, kind: kind.to_owned(), event })
}

/// Takes up responses that wait, until the server stops.
pub(crate) async fn run(state: ApiState, inside: Inside) {
    let gate = Gate::new(&state.config, state.keys.clone(), state.usage.clone());
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let mut running = JoinSet::new();
    while let Some(Ok(place)) = state.shutdown.run_until_cancelled(Arc::clone(&places).acquire_owned()).await {
        while running.try_join_next().is_some() {}
        match state.store.claim_response(LEASE).await {
            Ok(Some(claimed)) => {
                let attempt = Attempt { state: state.clone(), inside: inside.clone(), gate: gate.clone(), claimed };
                running.spawn(async move {
                    let _place = place;
                    attempt.run().await;
                });
            }
            Ok(None) => {
                let told = tokio::time::timeout(POLL, state.response_changes.any());
                let _ = state.shutdown.run_until_cancelled(told).await;
            }
            Err(error) => {
                tracing::warn!("cannot look for responses that wait: {error}");
                pause(&state, BUSY).await;
            }
        }
    }
    running.join_all().await;
}

async fn pause(state: &ApiState, time: Duration) {
    let _ = state.shutdown.run_until_cancelled(tokio::time::sleep(time)).await;
}

/// An attempt to write a response.
struct Attempt {
    state: ApiState,
    inside: Inside,
    gate: Gate,
    claimed: ClaimedResponse,
}

/// How an attempt ended.
enum End {
    /// With an answer, and the events that were not told yet.
    Answered(Box<Told>),
    /// It must fail.
    Failed(Problem),
    /// It can be tried again after a while.
    Later(Duration, Problem),
    /// The server stops.
    Stopped,
    /// The response was cancelled or deleted, or is another attempt's.
    Lost,
}

/// The last response of an answer, with the events that were not told yet.
struct Told {
    response: Value,
    events: Vec<ResponseEvent>,
}

impl Attempt {
    async fn run(mut self) {
        let end = match self.write().await {
            Ok(end) => end,
            // The lease runs out, and another attempt may find the database again.
            Err(problem) => {
                tracing::warn!(response = self.claimed.id, "cannot write on a response: {problem}");
                return;
            }
        };
        if let Err(problem) = self.settle(end).await {
            tracing::warn!(response = self.claimed.id, "cannot end a response: {problem}");
        }
    }

    /// True if readers of the stream have seen a part of the answer.
    fn was_seen(&self) -> bool {
        // What a new attempt would tell again: that it was created, waits and is being written.
        self.claimed.streamed && self.claimed.told > 3
    }

    async fn write(&mut self) -> Result<End> {
        if self.claimed.losses > 0 && (self.was_seen() || self.claimed.losses >= LOSSES) {
            return Ok(End::Failed(lost(self.claimed.losses)));
        }
        let Some(caller) = self.gate.holder_of_id(&self.state.store, &self.claimed.key).await? else {
            let message = "The key that asked for this response was revoked or has expired.";
            return Ok(End::Failed(Problem::forbidden(message)));
        };
        let body = Body::from(self.claimed.request.clone());
        let kind = HeaderValue::from_static("application/json");
        let asked = self.inside.call(&caller, Method::POST, "/v1/responses", Some(&kind), body);
        let Some(answer) = self.while_leased(asked).await? else { return Ok(End::Lost) };
        let Some(answer) = answer else { return Ok(End::Stopped) };
        let (parts, body) = answer?.into_parts();
        if parts.status != StatusCode::OK {
            return Ok(refusal(parts.status, &parts.headers, body).await);
        }
        self.read(body.into_data_stream()).await
    }

    /// Waits for `work` and renews the lease meanwhile; `None` if it is lost, `Some(None)` if the server stops.
    async fn while_leased<T>(&self, work: impl Future<Output = T>) -> Result<Option<Option<T>>> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                () = self.state.shutdown.cancelled() => return Ok(Some(None)),
                done = &mut work => return Ok(Some(Some(done))),
                () = tokio::time::sleep(RENEW) => {
                    if !self.state.store.go_on_with_response(&self.claimed, LEASE, None, &[]).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Reads the events of the answer, and tells them on.
    async fn read(&mut self, mut body: BodyDataStream) -> Result<End> {
        let mut text = Vec::new();
        let mut untold = Vec::new();
        loop {
            let chunk = match self.while_leased(next_chunks(&mut body)).await? {
                None => return Ok(End::Lost),
                Some(None) => return Ok(End::Stopped),
                Some(Some(chunk)) => chunk,
            };
            let Some(chunk) = chunk else {
                return Ok(End::Later(BUSY, Problem::unavailable("The answer broke off.")));
            };
            text.extend_from_slice(&chunk);
            let mut progress = None;
            while let Some(mut event) = next_event(&mut text) {
                if event["type"].is_null() && event["error"].is_object() {
                    return Ok(End::Later(BUSY, problem_of(StatusCode::SERVICE_UNAVAILABLE, &event["error"])));
                }
                let kind = event["type"].as_str().unwrap_or_default().to_owned();
                if event["response"].is_object() {
                    self.adopt(&mut event["response"]);
                }
                match kind.as_str() {
                    // It was created when it was queued.
                    "response.created" => continue,
                    "response.in_progress" => progress = Some(sse::json(&event["response"])?),
                    _ => {}
                }
                // It waited in vain, and nobody has seen anything of it.
                let is_early = untold.is_empty() && !self.was_seen();
                if kind == "error" && is_early && event["error"]["code"] == "rate_limit_exceeded" {
                    return Ok(End::Later(BUSY, problem_of(StatusCode::TOO_MANY_REQUESTS, &event["error"])));
                }
                let is_last = super::events::LAST.contains(&kind.as_str());
                let response = is_last.then(|| event["response"].clone());
                // A later attempt has told so already.
                let is_repeated = kind == "response.in_progress" && self.claimed.told > 2;
                if self.claimed.streamed && !is_repeated {
                    let sequence = self.claimed.told + i32::try_from(untold.len()).unwrap_or(i32::MAX);
                    event["sequence_number"] = sequence.into();
                    untold.push(ResponseEvent { sequence, kind, event: sse::json(&event)? });
                }
                if let Some(response) = response {
                    return Ok(End::Answered(Box::new(Told { response, events: untold })));
                }
            }
            if progress.is_some() || !untold.is_empty() {
                let store = &self.state.store;
                if !store.go_on_with_response(&self.claimed, LEASE, progress.as_deref(), &untold).await? {
                    return Ok(End::Lost);
                }
                self.claimed.told += i32::try_from(untold.len()).unwrap_or(i32::MAX);
                untold.clear();
            }
        }
    }

    /// Gives a response of the route the id and the settings of the one that waits.
    fn adopt(&self, response: &mut Value) {
        let own: Value = serde_json::from_str(&self.claimed.response).unwrap_or_default();
        for key in ["id", "created_at", "background", "store", "conversation"] {
            if let Some(value) = own.get(key) {
                response[key] = value.clone();
            }
        }
    }

    /// Writes down how it ended.
    async fn settle(&mut self, end: End) -> Result<()> {
        let store = &self.state.store;
        match end {
            End::Lost => {}
            End::Answered(told) => {
                let answer = self.answer(&told.response)?;
                store.end_response(&self.claimed, &answer, &told.events).await?;
            }
            End::Stopped if self.was_seen() => self.fail(&lost(1)).await?,
            End::Stopped => store.release_response(&self.claimed, Duration::ZERO).await?,
            End::Later(pause, problem) if self.claimed.age > PATIENCE || self.was_seen() => {
                tracing::debug!(?pause, "a response is not tried again");
                self.fail(&problem).await?;
            }
            End::Later(pause, _) => store.release_response(&self.claimed, pause).await?,
            End::Failed(problem) => self.fail(&problem).await?,
        }
        Ok(())
    }

    async fn fail(&self, problem: &Problem) -> Result<()> {
        let mut response: Value = serde_json::from_str(&self.claimed.response).unwrap_or_default();
        self.adopt(&mut response);
        response["status"] = "failed".into();
        let error = super::object::ResponseError::of(problem);
        response["error"] = json!({"code": error.code, "message": error.message});
        let mut events = Vec::new();
        if self.claimed.streamed {
            let error = json!({"type": "error", "sequence_number": self.claimed.told, "error": problem.error});
            let sequence = self.claimed.told + 1;
            let last = json!({"type": "response.failed", "sequence_number": sequence, "response": response});
            events.push(ResponseEvent { sequence: self.claimed.told, kind: "error".into(), event: sse::json(&error)? });
            events.push(ResponseEvent { sequence, kind: "response.failed".into(), event: sse::json(&last)? });
        }
        self.state.store.end_response(&self.claimed, &self.answer(&response)?, &events).await?;
        Ok(())
    }

    /// Returns a response as it is kept.
    fn answer(&self, response: &Value) -> Result<Answer> {
        let status = match response["status"].as_str() {
            Some("completed") => "completed",
            Some("incomplete") => "incomplete",
            _ => "failed",
        };
        let own: Vec<Value> = serde_json::from_str(&self.claimed.input).unwrap_or_default();
        let output = response["output"].as_array().cloned().unwrap_or_default();
        let ids = own.iter().chain(&output).filter_map(|item| item["id"].as_str()).map(str::to_owned);
        let belongs = response["conversation"].is_object() && ANSWERED.contains(&status);
        let added = if belongs { new_items(own.iter().chain(&output)) } else { NewItems::default() };
        Ok(Answer {
            status,
            output: sse::json(&output)?,
            item_ids: ids.collect(),
            response: sse::json(response)?,
            added,
        })
    }
}

fn lost(times: i32) -> Problem {
    let message = if times >= LOSSES {
        format!("{times} servers in a row stopped while they wrote this response. Please ask for it again.")
    } else {
        "The server stopped while it wrote this response, of which a part was sent already. Please ask for it again."
            .into()
    };
    Problem::unavailable(message)
}

/// Waits for bytes, and returns all that are there; `None` behind the last.
async fn next_chunks(body: &mut BodyDataStream) -> Option<Vec<u8>> {
    let mut bytes = body.next().await?.ok()?.to_vec();
    while let Some(Some(Ok(more))) = futures::FutureExt::now_or_never(body.next()) {
        bytes.extend_from_slice(&more);
    }
    Some(bytes)
}

/// Takes the next event with data from the beginning of `text`; `None` if there is no whole one.
fn next_event(text: &mut Vec<u8>) -> Option<Value> {
    loop {
        let end = text.windows(2).position(|pair| pair == b"\n\n")?;
        let frame: Vec<u8> = text.drain(..end + 2).collect();
        let data = frame.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data: "));
        if let Some(event) = data.and_then(|data| serde_json::from_slice(data).ok()) {
            return Some(event);
        }
    }
}

/// Tells from a refusal whether another try could help.
async fn refusal(status: StatusCode, headers: &HeaderMap, body: Body) -> End {
    let bytes = to_bytes(body, REFUSAL_BYTES).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let problem = problem_of(status, &body["error"]);
    let is_final = headers.get("x-should-retry").is_some_and(|value| value == "false");
    let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if !is_busy || is_final {
        return End::Failed(problem);
    }
    let seconds = headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    End::Later(seconds.map_or(BUSY, Duration::from_secs), problem)
}

/// Makes the failure of a refusal that the route has told.
fn problem_of(status: StatusCode, error: &Value) -> Problem {
    let message = error["message"].as_str().unwrap_or("The server gave no reason.").to_owned();
    match status {
        StatusCode::TOO_MANY_REQUESTS => Problem::rate_limited(RateLimit::Requests, message, None),
        status if status.is_client_error() => Problem::bad_request(message).code("invalid_value"),
        _ => Problem::unavailable(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_one_by_one_and_only_whole() {
        let mut text = b"event: a\ndata: {\"n\":1}\n\n: keepalive\n\ndata: {\"n\":2}\n\ndata: [DO".to_vec();
        assert_eq!(next_event(&mut text), Some(json!({"n": 1})));
        assert_eq!(next_event(&mut text), Some(json!({"n": 2})));
        assert_eq!(next_event(&mut text), None);
        text.extend_from_slice(b"NE]\n\n");
        // No event of the response.
        assert_eq!(next_event(&mut text), None);
        assert!(text.is_empty());
    }
}
