-- Eval, tell: what came of the eval of the job $1, once: an event of the level $2 with the text $3 and the data $4. If $5
-- names an alias, it moves to the model $6, and the event says $7 if it could not: where the model is gone, or where $8
-- and the alias does not stand for $9 any more (null: there was none).
with told as (
    update job_evals set told_at = now() where job = $1 and told_at is null returning job, organization
), held as materialized (
    select m.organization, m.name from told join fine_tuned_models m on m.organization = told.organization and m.name = $6
       for key share of m
), moved as (
    insert into model_aliases as alias (organization, name, model)
    select organization, $5, name from held
     where $5::text is not null
       and (not $8 or $9::text is null or exists (
           select from model_aliases now where now.organization = held.organization and now.name = $5))
    on conflict (organization, name) do update set model = excluded.model, previous = alias.model, updated_at = now()
     where not $8 or alias.model = $9
    returning name
), job as materialized (
    select key, attempt from jobs join told on key = told.job for no key update of jobs
), said as (
    insert into job_events (job, attempt, level, kind, message, data)
    select key, attempt, $2, 'message',
           case when $5::text is null or exists (select from moved) then $3 else $7 end,
           $4::jsonb || jsonb_build_object('promoted', exists (select from moved))
      from job
)
select exists (select from moved) from told
