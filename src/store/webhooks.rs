//! Events for webhooks and their deliveries. Whoever changes a state that webhooks tell of adds an event, in the
//! statement of the change if it can ([`Store::add_webhook_event`] otherwise); `api::webhooks` shares the events out to
//! the endpoints of the configuration, claims what is due, and sends it.
//!
//! A claim moves the delivery's time into the future, which is its lease: if the process that sends is killed, another
//! one claims it after that. So a delivery may be sent twice, always under the same id.

use std::time::Duration;

use crate::store::{Result, Store};

/// Events that one statement shares out.
const SHARED_OUT: i64 = 500;
/// Rows that one statement removes.
const PRUNED: i64 = 1_000;
/// How long an event is kept: longer than it is tried to deliver it.
const KEPT: Duration = Duration::from_hours(96);

/// Events that an endpoint wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The endpoint.
    pub endpoint: String,
    /// Type of the events; `None`: all.
    pub kind: Option<String>,
    /// Organisation whose events it wants; `None`: all.
    pub organization: Option<String>,
}

/// A delivery that the caller has claimed.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Delivery {
    /// `wh_…`, the same in every attempt.
    pub id: String,
    /// `evt_…`
    pub event: String,
    /// `fine_tuning.job.succeeded`, …
    #[sqlx(rename = "type")]
    pub kind: String,
    /// Id of what changed.
    pub subject: String,
    /// Unix seconds of the change.
    pub created_at: i64,
    /// Number of this attempt, counted from 1.
    pub attempt: i32,
}

impl Store {
    /// Adds an event of the type `kind` about the organisation's object `subject`. A statement that changes a state does
    /// better to insert the row itself, so that both happen or neither does:
    /// `insert into webhook_events (organization, type, subject) select …`.
    pub async fn add_webhook_event(&self, organization: &str, kind: &str, subject: &str) -> Result<()> {
        sqlx::query("insert into webhook_events (organization, type, subject) values ($1, $2, $3)")
            .bind(organization)
            .bind(kind)
            .bind(subject)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Makes a delivery of each new event for each endpoint that wants it. Each event is shared out once, by one of the
    /// processes.
    pub async fn share_out_webhook_events(&self, wishes: &[Wish]) -> Result<()> {
        let column = |value: fn(&Wish) -> Option<&str>| -> Vec<Option<String>> {
            wishes.iter().map(|wish| value(wish).map(str::to_owned)).collect()
        };
        sqlx::query(
            "with fresh as materialized (
                 select id, type, organization from webhook_events where not shared_out
                  order by created_at limit $4 for update skip locked
             ), marked as (
                 update webhook_events set shared_out = true from fresh where webhook_events.id = fresh.id
             )
             insert into webhook_deliveries (event, endpoint)
             select distinct fresh.id, wish.endpoint
               from fresh join unnest($1::text[], $2::text[], $3::text[]) as wish (endpoint, type, organization)
                 on coalesce(wish.type, fresh.type) = fresh.type
                and coalesce(wish.organization, fresh.organization) = fresh.organization
             on conflict do nothing",
        )
        .bind(column(|wish| Some(&wish.endpoint)))
        .bind(column(|wish| wish.kind.as_deref()))
        .bind(column(|wish| wish.organization.as_deref()))
        .bind(SHARED_OUT)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Claims up to `limit` deliveries to the endpoint that are due, for the time of `lease`, the longest due first.
    pub async fn claim_webhook_deliveries(&self, endpoint: &str, limit: i64, lease: Duration) -> Result<Vec<Delivery>> {
        Ok(sqlx::query_as(
            "with due as materialized (
                 select event from webhook_deliveries where endpoint = $1 and due_at <= now()
                  order by due_at limit $2 for update skip locked
             ), claimed as (
                 update webhook_deliveries d
                    set attempt = attempt + 1, due_at = now() + make_interval(secs => $3)
                   from due where d.event = due.event and d.endpoint = $1
                 returning d.id, d.event, d.attempt
             )
             select claimed.id, claimed.event, claimed.attempt, e.type, e.subject,
                    extract(epoch from e.created_at)::bigint as created_at
               from claimed join webhook_events e on e.id = claimed.event",
        )
        .bind(endpoint)
        .bind(limit)
        .bind(lease.as_secs_f64())
        .fetch_all(&self.pool)
        .await?)
    }

    /// Ends a delivery: the endpoint has taken it, or it is given up. Does nothing once another attempt has begun.
    pub async fn end_webhook_delivery(&self, endpoint: &str, delivery: &Delivery) -> Result<()> {
        sqlx::query("delete from webhook_deliveries where event = $1 and endpoint = $2 and attempt = $3")
            .bind(&delivery.event)
            .bind(endpoint)
            .bind(delivery.attempt)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Puts a delivery off that the endpoint has not taken. Does nothing once another attempt has begun.
    pub async fn put_off_webhook_delivery(&self, endpoint: &str, delivery: &Delivery, pause: Duration) -> Result<()> {
        sqlx::query(
            "update webhook_deliveries set due_at = now() + make_interval(secs => $4)
              where event = $1 and endpoint = $2 and attempt = $3",
        )
        .bind(&delivery.event)
        .bind(endpoint)
        .bind(delivery.attempt)
        .bind(pause.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Removes some of the events that nobody delivers any more; returns how many.
    pub(crate) async fn prune_webhook_events(&self) -> Result<u64> {
        let removed = sqlx::query(
            "with old as materialized (
                 select id from webhook_events where created_at < now() - make_interval(secs => $1)
                  order by created_at limit $2 for update skip locked
             )
             delete from webhook_events using old where webhook_events.id = old.id",
        )
        .bind(KEPT.as_secs_f64())
        .bind(PRUNED)
        .execute(&self.pool)
        .await?;
        Ok(removed.rows_affected())
    }
}
