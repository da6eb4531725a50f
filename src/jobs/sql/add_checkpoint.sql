-- Add checkpoint: makes a stored adapter a model of the job's organisation and drops all but the newest $9 of the job.
-- A job that is still this attempt's has one row at least, without a name if nothing was dropped.
with held as materialized (
    select id, organization from jobs where key = $1 and attempt = $2 and status = 'running' for no key update
), added as (
    insert into fine_tuned_models (organization, name, base, adapter, job, checkpoint, step, metrics)
    select organization, $3, $4, $5, id, $6, $7, $8 from held
    on conflict (organization, name) do nothing
), dropped as (
    -- Every part of the statement sees the table as it was before, so the new step is added by hand.
    delete from fine_tuned_models old using held
     where old.organization = held.organization and old.job = held.id and old.step is not null
       and old.step not in (
           select step from (
               select step from fine_tuned_models kept
                where kept.organization = held.organization and kept.job = held.id and kept.step is not null
               union select $7
           ) steps order by step desc limit $9)
    returning old.name, old.adapter
)
select name, adapter from held left join dropped on true
