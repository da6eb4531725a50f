//! Responses that wait, or are being written, for nobody in particular, and their events. A process **claims** one with
//! a lease and an attempt number, the fence: every later write names it and changes nothing once the response was
//! cancelled or deleted, or another attempt has begun. Called by `api::generation::responses::background`.

use std::time::Duration;

use crate::store::responses::{Answer, NewResponse};
use crate::store::{Result, Store};

/// An event, with its place in the stream.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ResponseEvent {
    /// Counted from 0.
    pub sequence: i32,
    /// Its type.
    pub kind: String,
    /// JSON.
    pub event: String,
}

/// A response that this process is to write.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ClaimedResponse {
    /// `resp_…`
    pub id: String,
    /// The owner.
    pub organization: String,
    /// Id of the key that asked for it.
    pub key: String,
    /// True if its events are kept.
    pub streamed: bool,
    /// Items of the request, a JSON array.
    pub input: String,
    /// The object as clients read it.
    pub response: String,
    /// The body to run.
    pub request: String,
    /// The fence.
    pub attempt: i32,
    /// Attempts whose process stopped.
    pub losses: i32,
    /// Events that are kept: the number of the next one.
    pub told: i32,
    /// Seconds since it was asked for.
    pub age: i64,
}

impl Store {
    /// Queues a response with its first events; false if `organization` has `most` unfinished ones already.
    pub async fn queue_response(
        &self,
        new: &NewResponse,
        request: &str,
        events: Option<&[ResponseEvent]>,
        most: i64,
    ) -> Result<bool> {
        let (sequences, kinds, texts) = columns(events.unwrap_or_default());
        let done = sqlx::query(
            "with queued as (
                 insert into responses (id, organization, key, created_at, status, background, streamed, previous,
                                        input, output, item_ids, response, request, told, conversation,
                                        conversation_end)
                 select $1, $2, $3, to_timestamp(0) + $4 * interval '1 microsecond', 'queued', true, $5, $6, $7, $8, $9, $10, $11,
                        cardinality($13::int[]), $16, $17
                  where (select count(*) from responses
                          where organization = $2 and status in ('queued', 'in_progress')) < $12
                 returning id
             ), told as (
                 insert into response_events (response, sequence, kind, event)
                 select queued.id, new.* from queued, unnest($13::int[], $14::text[], $15::text[]) new
             )
             select id from queued",
        )
        .bind(&new.id)
        .bind(&new.organization)
        .bind(&new.key)
        .bind(new.created_micros)
        .bind(events.is_some())
        .bind(&new.previous)
        .bind(&new.input)
        .bind(&new.answer.output)
        .bind(&new.answer.item_ids)
        .bind(&new.answer.response)
        .bind(request)
        .bind(most)
        .bind(sequences)
        .bind(kinds)
        .bind(texts)
        .bind(new.conversation.as_ref().map(|place| &place.id))
        .bind(new.conversation.as_ref().map(|place| place.end))
        .fetch_optional(&self.pool)
        .await?;
        Ok(done.is_some())
    }

    /// Claims the response that has waited longest, of the organisations with the fewest that are being written; one
    /// whose lease ran out counts as waiting.
    pub async fn claim_response(&self, lease: Duration) -> Result<Option<ClaimedResponse>> {
        let claim = "with busy as (
                 select organization, count(*) as written from responses
                  where status = 'in_progress' and lease_until > now() group by organization
             ), next as (
                 select r.id, r.status from responses r left join busy using (organization)
                  where r.status = 'queued' and r.due_at <= now() or r.status = 'in_progress' and r.lease_until <= now()
                  order by coalesce(busy.written, 0), r.due_at, r.created_at, r.seq
                  limit 1 for update of r skip locked
             )
             update responses set status = 'in_progress', attempt = attempt + 1,
                    losses = losses + (next.status = 'in_progress')::int,
                    lease_until = now() + make_interval(secs => $1)
               from next where responses.id = next.id
             returning responses.id, organization, key, streamed, input, response, coalesce(request, '') as request,
                       attempt, losses, told,
                       extract(epoch from now() - created_at)::bigint as age";
        Ok(sqlx::query_as(claim).bind(lease.as_secs_f64()).fetch_optional(&self.pool).await?)
    }

    /// Renews the lease of an attempt, which now shows clients `response`, if it is new, and adds events; false if it
    /// is no longer this attempt's.
    pub async fn go_on_with_response(
        &self,
        claimed: &ClaimedResponse,
        lease: Duration,
        response: Option<&str>,
        events: &[ResponseEvent],
    ) -> Result<bool> {
        let (sequences, kinds, texts) = columns(events);
        let done = sqlx::query(
            "with mine as (
                 update responses set lease_until = now() + make_interval(secs => $3),
                        response = coalesce($4, response), told = told + cardinality($5::int[])
                  where id = $1 and attempt = $2 and status = 'in_progress' returning id
             ), told as (
                 insert into response_events (response, sequence, kind, event)
                 select mine.id, new.* from mine, unnest($5::int[], $6::text[], $7::text[]) new
             )
             select id from mine",
        )
        .bind(&claimed.id)
        .bind(claimed.attempt)
        .bind(lease.as_secs_f64())
        .bind(response)
        .bind(sequences)
        .bind(kinds)
        .bind(texts)
        .fetch_optional(&self.pool)
        .await?;
        Ok(done.is_some())
    }

    /// Ends an attempt with its answer and the last events, and adds to the conversation; false if it is no longer this attempt's.
    pub async fn end_response(
        &self,
        claimed: &ClaimedResponse,
        answer: &Answer,
        events: &[ResponseEvent],
    ) -> Result<bool> {
        let (sequences, kinds, texts) = columns(events);
        let done = sqlx::query(
            "with mine as (
                 update responses set status = $3, output = $4, item_ids = $5, response = $6, request = null,
                        lease_until = null, told = told + cardinality($7::int[])
                  where id = $1 and attempt = $2 and status = 'in_progress' returning id, organization, conversation
             ), told as (
                 insert into response_events (response, sequence, kind, event)
                 select mine.id, new.* from mine, unnest($7::int[], $8::text[], $9::text[]) new
             )
             select id, add_to_conversation(organization, conversation, $10, $11) from mine",
        )
        .bind(&claimed.id)
        .bind(claimed.attempt)
        .bind(answer.status)
        .bind(&answer.output)
        .bind(&answer.item_ids)
        .bind(&answer.response)
        .bind(sequences)
        .bind(kinds)
        .bind(texts)
        .bind(&answer.added.ids)
        .bind(&answer.added.items)
        .fetch_optional(&self.pool)
        .await?;
        Ok(done.is_some())
    }

    /// Gives a response back to the queue, to be taken up again after `pause`.
    pub async fn release_response(&self, claimed: &ClaimedResponse, pause: Duration) -> Result<()> {
        sqlx::query(
            "update responses set status = 'queued', lease_until = null, due_at = now() + make_interval(secs => $3)
              where id = $1 and attempt = $2 and status = 'in_progress'",
        )
        .bind(&claimed.id)
        .bind(claimed.attempt)
        .bind(pause.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Cancels a response that has not ended: `response` is the object of a cancelled one, which is also told in an
    /// event of the type `kind`. False if it had ended.
    pub async fn cancel_response(&self, organization: &str, id: &str, response: &str, kind: &str) -> Result<bool> {
        let done = sqlx::query(
            "with mine as (
                 update responses set status = 'cancelled', response = $3, request = null, lease_until = null,
                        told = told + streamed::int
                  where id = $1 and organization = $2 and background and status in ('queued', 'in_progress')
                 returning id, streamed, told - 1 as sequence
             ), told as (
                 insert into response_events (response, sequence, kind, event)
                 select id, sequence, $4, json_build_object('type', $4::text, 'sequence_number', sequence,
                                                            'response', $3::json)::text
                   from mine where streamed
             )
             select id from mine",
        )
        .bind(id)
        .bind(organization)
        .bind(response)
        .bind(kind)
        .fetch_optional(&self.pool)
        .await?;
        Ok(done.is_some())
    }

    /// Returns up to `limit` events of a response that come after number `after`.
    pub async fn response_events(&self, id: &str, after: i32, limit: i64) -> Result<Vec<ResponseEvent>> {
        let query = "select sequence, kind, event from response_events where response = $1 and sequence > $2
                      order by sequence limit $3";
        Ok(sqlx::query_as(query).bind(id).bind(after).bind(limit).fetch_all(&self.pool).await?)
    }
}

/// Returns the columns of events.
fn columns(events: &[ResponseEvent]) -> (Vec<i32>, Vec<&str>, Vec<&str>) {
    let sequences = events.iter().map(|event| event.sequence).collect();
    let kinds = events.iter().map(|event| event.kind.as_str()).collect();
    (sequences, kinds, events.iter().map(|event| event.event.as_str()).collect())
}
