-- Messages: a job's events other than figures of steps, newest first.
select seq, attempt, extract(epoch from at)::bigint as created_at, level, kind, message, change, detail, data
  from job_events where job = $1 and kind <> 'metrics' order by seq desc limit $2
