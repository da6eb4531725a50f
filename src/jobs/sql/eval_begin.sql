-- Eval, begin: the run $2 of the eval $3 for the job $1, of the models $6 over the items of $7 ($8: ids of stored answers).
-- $9 is the model that the alias stands for. Once for each job, whatever happens: the run and the note of it are one
-- statement.
with begun as (
    update job_evals set run = $2, expected = $9 where job = $1 and run is null and told_at is null
    returning organization, coalesce(api_key, '') as api_key
)
insert into eval_runs (id, eval, organization, key, name, models, data_source, inputs, metadata)
select $2, e.id, e.organization, begun.api_key, $4, $6, $7, $8, $5
  from begun join evals e on e.organization = begun.organization and e.id = $3
   for key share of e
