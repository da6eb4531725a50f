-- Resume: puts a paused job back into the queue, or one that failed through no fault of its request and still has its
-- state, and withdraws a pause that a worker has not carried out yet.
with changed as (
    update jobs set
        status = case when status = 'running' then status else 'queued'::job_status end,
        failures = case when status = 'failed' then 0 else failures end,
        error = null, finished_at = null, resumable_until = null,
        waits = case when status = 'running' then waits else 0 end,
        waiting_since = case when status = 'running' then waiting_since end,
        run_after = now(), stop_request = null, updated_at = now()
     where key = $1 and organization = $2
       and (status = 'paused' or (status = 'running' and stop_request = 'pause')
            or (status = 'failed' and resumable_until > now()))
    returning *
), said as (
    insert into job_events (job, attempt, level, change, detail)
    select key, attempt, 'info', coalesce(stop_request || '_requested', status::text), null from changed
)
select key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
       trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from changed
