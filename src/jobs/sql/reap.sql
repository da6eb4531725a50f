-- Reap: takes back up to $1 jobs whose lease has run out, or of all that run if $4 is true; $2 is the fault. Rows that
-- another process is taking back, or that a worker is just writing, are left to it.
with held as materialized (
    select key as held_key, stop_request as stop, failures + 1 as failed_attempts
      from jobs where status = 'running' and (lease_expires_at < now() or $4)
     order by lease_expires_at limit $1 for update skip locked
), decided as (
    select held.*, next_status(stop, 'retry', failed_attempts, $3) as next from held
), changed as (
    update jobs set
        status = next, lease_owner = null, lease_expires_at = null, stop_request = null,
        failures = failed_attempts, error = case when next = 'failed' then $2::jsonb end,
        resumable_until = case when next = 'failed' then now() + kept_after_failure() end,
        run_after = now() + case when $4 then interval '0' else retry_delay(failed_attempts) end,
        finished_at = case when next in ('failed', 'cancelled') then now() end, updated_at = now()
      from decided where key = held_key
    returning jobs.*
), said as (
    insert into job_events (job, attempt, level, change, detail)
    select key, attempt, case when status = 'failed' then 'error' else 'warn' end, status::text, $2->>'message'
      from changed
)
select key from changed
