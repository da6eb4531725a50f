-- Eval, ended: jobs whose eval's run has ended, or was deleted, and is not told yet, the oldest first, $1 at the most.
select j.organization, j.api, j.id, e.run, e.expected
  from job_evals e join jobs j on j.key = e.job left join eval_runs r on r.id = e.run
 where e.told_at is null and e.run is not null and (r.id is null or r.status in ('completed', 'failed', 'canceled'))
 order by e.created_at limit $1
