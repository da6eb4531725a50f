//! Webhooks: tells the endpoints of the configuration of what happened, until they have taken it. `background` runs
//! [`run`]; `store::webhooks` keeps the events, and [`signature`] signs them.
//!
//! Each endpoint has a loop of its own, so that one that does not answer holds up nobody else. An event is sent at least
//! once: under the same `webhook-id` again if the endpoint does not answer with a status of success, or if nobody could
//! note that it did.

mod signature;

use std::time::Duration;

use futures::future::join_all;
use rand::Rng as _;
use reqwest::{Client, Url, redirect};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use self::signature::sign;
use crate::api::ApiState;
use crate::config::{self, Webhook};
use crate::store::webhooks::{Delivery, Wish};
use crate::store::{self, Store};

/// Time between looks for what is due.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time that an endpoint has to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a delivery that was claimed is due again; longer than sending takes.
const LEASE: Duration = Duration::from_secs(30);
/// Deliveries to one endpoint that are under way at a time.
const BATCH: i64 = 8;
/// How long delivery is tried, from the event on.
const PATIENCE: Duration = Duration::from_hours(72);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
const USER_AGENT: &str = concat!("Attune/", env!("CARGO_PKG_VERSION"), " (webhooks)");

/// An address to send to.
struct Endpoint {
    store: Store,
    http: Client,
    address: Url,
    key: Vec<u8>,
    /// Names it in the database.
    name: String,
    wishes: Vec<Wish>,
}

/// Delivers events until the server stops. What is under way then is sent again once its lease has run out.
pub(super) async fn run(state: ApiState) {
    let shutdown = state.shutdown.clone();
    match endpoints(&state.config.webhooks, &state.store) {
        Ok(endpoints) if endpoints.is_empty() => {}
        Ok(endpoints) => {
            let wishes: Vec<Wish> = endpoints.iter().flat_map(|endpoint| endpoint.wishes.clone()).collect();
            let all = join_all(endpoints.iter().map(|endpoint| endpoint.keep_delivering(&wishes)));
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = all => {}
            }
        }
        Err(error) => tracing::error!("webhooks are not delivered: {error}"),
    }
    shutdown.cancelled().await;
}

fn endpoints(webhooks: &[Webhook], store: &Store) -> Result<Vec<Endpoint>, config::Error> {
    let fault = |error: reqwest::Error| config::Error(format!("the HTTP client cannot be built: {error}"));
    let http = Client::builder().redirect(redirect::Policy::none()).timeout(TIMEOUT).user_agent(USER_AGENT);
    let http = http.build().map_err(fault)?;
    let endpoint = |webhook: &Webhook| -> Result<Endpoint, config::Error> {
        let (address, key) = (webhook.address()?, webhook.key()?);
        let name = format!("{:x}", Sha256::digest(address.as_str()));
        let wish = |kind| Wish { endpoint: name.clone(), kind, organization: webhook.organization.clone() };
        let wishes = match webhook.events.as_slice() {
            [] => vec![wish(None)],
            events => events.iter().map(|event| wish(Some(event.clone()))).collect(),
        };
        Ok(Endpoint { store: store.clone(), http: http.clone(), address, key, name, wishes })
    };
    webhooks.iter().map(endpoint).collect()
}

impl Endpoint {
    /// Delivers for ever. `wishes` are those of all endpoints: whoever shares an event out does so for all.
    async fn keep_delivering(&self, wishes: &[Wish]) {
        let mut reported = false;
        loop {
            match self.deliver_due(wishes).await {
                // There may be more.
                Ok(sent) if sent == BATCH as usize => continue,
                Ok(_) => reported = false,
                // Said once: the database is reported missing elsewhere too.
                Err(error) if !reported => {
                    tracing::warn!("webhooks wait for the database: {error}");
                    reported = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Sends what is due now, and returns how much it was.
    async fn deliver_due(&self, wishes: &[Wish]) -> store::Result<usize> {
        self.store.share_out_webhook_events(wishes).await?;
        let due = self.store.claim_webhook_deliveries(&self.name, BATCH, LEASE).await?;
        for noted in join_all(due.iter().map(|delivery| self.deliver(delivery))).await {
            noted?;
        }
        Ok(due.len())
    }

    /// Sends one event, and notes what came of it.
    async fn deliver(&self, delivery: &Delivery) -> store::Result<()> {
        let Delivery { id, kind, attempt, .. } = delivery;
        let host = self.address.host_str().unwrap_or_default();
        let Err(why) = self.send(delivery).await else {
            count("delivered");
            return self.store.end_webhook_delivery(&self.name, delivery).await;
        };
        let now = jiff::Timestamp::now().as_second();
        if let Some(pause) = next_pause(*attempt, now - delivery.created_at) {
            count("failed");
            tracing::warn!(webhook = id, kind, host, attempt, "a webhook is tried again: {why}");
            return self.store.put_off_webhook_delivery(&self.name, delivery, pause).await;
        }
        count("given_up");
        tracing::error!(webhook = id, kind, host, attempt, "a webhook is given up: {why}");
        self.store.end_webhook_delivery(&self.name, delivery).await
    }

    /// Sends one event; an error says why the endpoint has not taken it, and nothing of the address.
    async fn send(&self, delivery: &Delivery) -> Result<(), String> {
        let body = json!({
            "id": delivery.event,
            "object": "event",
            "created_at": delivery.created_at,
            "type": delivery.kind,
            "data": {"id": delivery.subject},
        });
        let (body, timestamp) = (body.to_string(), jiff::Timestamp::now().as_second());
        let request = self
            .http
            .post(self.address.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &delivery.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", sign(&self.key, &delivery.id, timestamp, &body));
        let answer = request.body(body).send().await.map_err(|error| reasons(&error.without_url()))?;
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err(format!("the endpoint answered {status}")) }
    }
}

/// Returns the pause before the next attempt, after attempt number `attempt` at an event that is `age` seconds old; `None`
/// if there is none. It doubles from 2 seconds on, and is drawn from its second half, lest many are due at once.
fn next_pause(attempt: i32, age: i64) -> Option<Duration> {
    let doublings = u32::try_from(attempt).unwrap_or(1).min(20);
    let longest = Duration::from_secs(1 << doublings).min(LONGEST_PAUSE);
    let pause = longest.mul_f64(rand::rng().random_range(0.5..=1.0));
    let age = Duration::from_secs(u64::try_from(age).unwrap_or(0));
    (age + pause <= PATIENCE).then_some(pause)
}

/// Returns what an error and its causes say.
fn reasons(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn count(outcome: &'static str) {
    metrics::counter!("attune_webhooks_total", "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour_and_end_after_three_days() {
        for (attempt, longest) in [(1, 2), (2, 4), (5, 32), (11, 2048), (12, 3600), (1000, 3600)] {
            let pause = next_pause(attempt, 0).expect("a pause").as_secs_f64();
            assert!((longest as f64 / 2.0..=longest as f64).contains(&pause), "{attempt}: {pause}");
        }
        assert!(next_pause(80, 71 * 3600 - 1).is_some());
        assert_eq!(next_pause(80, 72 * 3600), None);
        // A clock that was set back.
        assert!(next_pause(1, -10).is_some());
    }
}
