-- Batch, claim: gives the next batch to the process $1 for $2 seconds. The organisation with the fewest batches that are
-- worked on goes first, then the oldest batch.
with next as (
    select key from batches b
     where status in ('validating', 'in_progress', 'finalizing', 'cancelling')
       and (lease_expires_at is null or lease_expires_at <= now())
     order by (select count(*) from batches other
                where other.organization = b.organization and other.lease_expires_at > now()
                  and other.status in ('validating', 'in_progress', 'finalizing', 'cancelling')), key
     limit 1 for update skip locked
), changed as (
    update batches set attempt = attempt + 1, lease_owner = $1, lease_expires_at = now() + make_interval(secs => $2)
      from next where batches.key = next.key
    returning batches.*
)
select key, id, organization, api_key, requests_per_minute, tokens_per_minute, endpoint, input_file, metadata, status, model,
       errors, total, completed, failed, input_tokens, cached_tokens, output_tokens, output_file, error_file, attempt,
       extract(epoch from created_at)::bigint as created_at, extract(epoch from expires_at)::bigint as expires_at,
       extract(epoch from in_progress_at)::bigint as in_progress_at,
       extract(epoch from finalizing_at)::bigint as finalizing_at,
       extract(epoch from completed_at)::bigint as completed_at, extract(epoch from failed_at)::bigint as failed_at,
       extract(epoch from expired_at)::bigint as expired_at,
       extract(epoch from cancelling_at)::bigint as cancelling_at,
       extract(epoch from cancelled_at)::bigint as cancelled_at
  from changed
