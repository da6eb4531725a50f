-- Batch, find: the batch $2 of the organisation $1.
select key, id, organization, api_key, requests_per_minute, tokens_per_minute, endpoint, input_file, metadata, status, model,
       errors, total, completed, failed, input_tokens, cached_tokens, output_tokens, output_file, error_file, attempt,
       extract(epoch from created_at)::bigint as created_at, extract(epoch from expires_at)::bigint as expires_at,
       extract(epoch from in_progress_at)::bigint as in_progress_at,
       extract(epoch from finalizing_at)::bigint as finalizing_at,
       extract(epoch from completed_at)::bigint as completed_at, extract(epoch from failed_at)::bigint as failed_at,
       extract(epoch from expired_at)::bigint as expired_at,
       extract(epoch from cancelling_at)::bigint as cancelling_at,
       extract(epoch from cancelled_at)::bigint as cancelled_at
  from batches where organization = $1 and id = $2
