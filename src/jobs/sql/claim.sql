-- Claim: gives the next job to the worker $1 for $2 seconds.
with changed as (
    select * from claim_job($1, make_interval(secs => $2))
), said as (
    insert into job_events (job, attempt, level, change, detail)
    select key, attempt, 'info', coalesce(stop_request || '_requested', status::text), null from changed
)
select key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
       trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from changed
