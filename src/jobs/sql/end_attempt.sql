-- End attempt: an attempt ends without a model; $3 is its outcome and $4 its fault. The row is locked first: the
-- decision must rest on its newest version, where a request to stop may just have been written.
with held as materialized (
    select key as held_key, stop_request as stop, failures + ($3 in ('failed', 'retry'))::int as failed_attempts
      from jobs where key = $1 and attempt = $2 and status = 'running' for update
), decided as (
    select held.*, next_status(stop, $3, failed_attempts, $5) as next from held
), changed as (
    update jobs set
        status = next, lease_owner = null, lease_expires_at = null, stop_request = null,
        failures = failed_attempts, error = case when next = 'failed' then $4::jsonb end,
        run_after = now() + case when $3 = 'retry' then retry_delay(failed_attempts) else interval '0' end,
        finished_at = case when next in ('failed', 'cancelled') then now() end, updated_at = now()
      from decided where key = held_key
    returning jobs.*
), said as (
    insert into job_events (job, attempt, level, change, detail)
    select key, attempt, case when status = 'failed' then 'error' when $4 is null then 'info' else 'warn' end,
           status::text, $4->>'message'
      from changed
)
select key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
       trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from changed
