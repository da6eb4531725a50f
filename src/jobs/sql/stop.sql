-- Stop: cancels or pauses a job that waits ($3 is 'cancel' or 'pause'); a running job is marked, so that its worker
-- stops it. Asking for what is already asked for, or for a pause of what is being cancelled, changes nothing.
with changed as (
    update jobs set
        status = case when status = 'running' then status
                      when $3 = 'cancel' then 'cancelled'::job_status
                      else 'paused'::job_status end,
        stop_request = case when status = 'running' then $3 end,
        finished_at = case when status <> 'running' and $3 = 'cancel' then now() end,
        updated_at = case when status = 'running' then updated_at else now() end
     where key = $1 and organization = $2
       and (status in ('queued', 'running') or (status = 'paused' and $3 = 'cancel'))
       and stop_request is distinct from $3 and stop_request is distinct from 'cancel'
    returning *
), said as (
    insert into job_events (job, attempt, level, change, detail)
    select key, attempt, 'info', coalesce(stop_request || '_requested', status::text), null from changed
)
select key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
       trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from changed
