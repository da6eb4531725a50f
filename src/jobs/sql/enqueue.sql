-- Enqueue: adds a job with its first events, if the organisation $3 has fewer than $8 unfinished ones, its files $6
-- are there and so is the fine-tuned model $7 (null: a base model). The row of answer says what was found; its job is
-- null if none was added. `turn` locks the organisation's row and reads its newest version, so that enqueues of one
-- organisation count one after the other; the locks on files and model let a deletion of them see the job, or the job
-- see that they are gone. Clients of the older resource show people where they stand in the queue.
with turn as materialized (
    insert into job_turns as turn (organization) values ($3)
    on conflict (organization) do update set organization = excluded.organization
    returning waiting + running + paused as unfinished
), files_held as materialized (
    select id from files where organization = $3 and id = any($6) order by id for key share
), model_held as materialized (
    select name from fine_tuned_models where organization = $3 and name = $7 for key share
), created as (
    insert into jobs (id, api, organization, spec, api_key, collecting)
    select $1, $2, $3, $4, $5, $4::jsonb->'distillation' is not null from turn
     where unfinished < $8 and (select count(*) from files_held) = cardinality($6)
       and ($7::text is null or exists (select from model_held))
    returning *
), said as (
    insert into job_events (job, attempt, change, detail)
    select key, attempt, change, detail from created, lateral (
        select 1 as position, 'created' as change, null as detail
        union all
        select 2, 'enqueued', (select coalesce(sum(waiting), 0) from job_turns where waiting > 0)::text
         where api = 'fine_tunes'
    ) told order by position
)
select unfinished, (select coalesce(array_agg(held.id), '{}') from files_held held) as files_held,
       exists (select from model_held) as model_held,
       key, created.id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error,
       fine_tuned_model, trained_tokens, result_files, estimated_finish,
       extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from turn left join created on true
