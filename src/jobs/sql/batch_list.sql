-- Batch, list: up to $3 batches of the organisation $1, newest first, that follow the batch $2 (null: from the newest).
select key, id, organization, api_key, requests_per_minute, tokens_per_minute, endpoint, input_file, metadata, status, model,
       errors, total, completed, failed, input_tokens, cached_tokens, output_tokens, output_file, error_file, attempt,
       extract(epoch from created_at)::bigint as created_at, extract(epoch from expires_at)::bigint as expires_at,
       extract(epoch from in_progress_at)::bigint as in_progress_at,
       extract(epoch from finalizing_at)::bigint as finalizing_at,
       extract(epoch from completed_at)::bigint as completed_at, extract(epoch from failed_at)::bigint as failed_at,
       extract(epoch from expired_at)::bigint as expired_at,
       extract(epoch from cancelling_at)::bigint as cancelling_at,
       extract(epoch from cancelled_at)::bigint as cancelled_at
  from batches
 where organization = $1 and key < (select key from batches where organization = $1 and id = $2
                                    union all select 9223372036854775807 where $2::text is null)
 order by key desc limit $3
