-- Checkpoints: a page of a job's checkpoints, newest first, that begins after the one named $3.
select checkpoint as id, name as model, step, metrics, extract(epoch from created_at)::bigint as created_at
  from fine_tuned_models
 where organization = $1 and job = $2 and step is not null and ($3::text is null or step < (
     select step from fine_tuned_models where organization = $1 and job = $2 and checkpoint = $3))
 order by step desc limit $4
