-- Eval, waiting: jobs that have succeeded and whose eval has no run yet, the oldest first, $1 at the most.
select j.organization, j.api, j.id
  from job_evals e join jobs j on j.key = e.job
 where e.told_at is null and e.run is null order by e.created_at limit $1
