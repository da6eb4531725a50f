-- Enqueue: adds a job with its first events. Clients of the older resource show people where they stand in the queue.
with created as (
    insert into jobs (id, api, organization, spec, api_key) values ($1, $2, $3, $4, $5) returning *
), said as (
    insert into job_events (job, attempt, change, detail)
    select key, attempt, change, detail from created, lateral (
        select 1 as position, 'created' as change, null as detail
        union all
        select 2, 'enqueued', (select count(*) from jobs where status = 'queued')::text where api = 'fine_tunes'
    ) told order by position
)
select key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error, fine_tuned_model,
       trained_tokens, result_files, estimated_finish, extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from created
