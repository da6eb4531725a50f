-- Add checkpoint: makes a stored adapter a model of the job's organisation and drops all but the newest $9 of the
-- job, the one with the lowest full validation loss, the one with the most right answers (of equals the lower loss),
-- those that another unfinished job continues and those that an alias stands for. A job that is still this attempt's has one row at least, without a
-- name if nothing was dropped.
with held as materialized (
    select id, organization from jobs where key = $1 and attempt = $2 and status = 'running' for no key update
), added as (
    insert into fine_tuned_models (organization, name, base, adapter, job, checkpoint, step, metrics)
    select organization, $3, $4, $5, id, $6, $7, $8 from held
    on conflict (organization, name) do nothing
), let_go as (
    delete from adapter_holds using held where job = $1 and adapter = $5
), made as (
    -- Every part of the statement sees the table as it was before, so the new step is added by hand.
    select kept.step, kept.metrics from fine_tuned_models kept, held
     where kept.organization = held.organization and kept.job = held.id and kept.step is not null
    union all select $7::bigint, $8::jsonb
), measured as (
    select step, (metrics ->> 'full_valid_loss')::float8 as loss,
           (metrics ->> 'valid_right_answers')::bigint as right_answers
      from made
), stay as (
    (select distinct step from made order by step desc limit $9)
    union (select step from measured where loss is not null order by loss, step limit 1)
    union (select step from measured where right_answers > 0 order by right_answers desc, loss, step limit 1)
), surplus as materialized (
    -- One that a job is just being added for stays until the next checkpoint.
    select old.organization, old.name from fine_tuned_models old, held
     where old.organization = held.organization and old.job = held.id and old.step is not null
       and old.step not in (select step from stay)
       for update of old skip locked
), dropped as (
    delete from fine_tuned_models old using surplus
     where old.organization = surplus.organization and old.name = surplus.name
       and job_from_model(surplus.organization, surplus.name) is null
       and alias_of_model(surplus.organization, surplus.name) is null
    returning old.name, old.adapter
)
select name, adapter from held left join dropped on true
