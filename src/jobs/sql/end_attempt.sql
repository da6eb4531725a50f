-- End attempt: an attempt ends without a model; $3 is its outcome and $4 its fault. The row is locked first: the
-- decision must rest on its newest version, where a request to stop may just have been written. A job that has waited
-- for storage for $6 seconds waits no more.
with held as materialized (
    select key as held_key, stop_request as stop,
           case when $3 = 'storage' and waiting_since < now() - make_interval(secs => $6) then 'broken' else $3 end
               as outcome,
           failures, waits
      from jobs where key = $1 and attempt = $2 and status = 'running' for update
), counted as (
    select held_key, stop, outcome, failures + (outcome in ('failed', 'broken', 'retry'))::int as failed_attempts,
           case when outcome = 'storage' then waits + 1 else 0 end as storage_waits
      from held
), decided as (
    select counted.*, next_status(stop, outcome, failed_attempts, $5) as next from counted
), changed as (
    update jobs set
        status = next, lease_owner = null, lease_expires_at = null, stop_request = null,
        failures = failed_attempts, error = case when next = 'failed' then $4::jsonb end,
        waits = storage_waits, waiting_since = case when outcome = 'storage' then coalesce(waiting_since, now()) end,
        resumable_until = case when next = 'failed' and outcome <> 'failed' then now() + kept_after_failure() end,
        run_after = now() + case outcome when 'retry' then retry_delay(failed_attempts)
                                         when 'storage' then storage_delay(storage_waits)
                                         else interval '0' end,
        finished_at = case when next in ('failed', 'cancelled') then now() end, updated_at = now()
      from decided where key = held_key
    returning jobs.*
), let_go as (
    delete from adapter_holds using changed where job = changed.key
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
