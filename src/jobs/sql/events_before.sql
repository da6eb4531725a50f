-- Events before: a job's events older than the one numbered $2, newest first.
select seq, attempt, extract(epoch from at)::bigint as created_at, level, kind, message, change, detail, data
  from job_events where job = $1 and seq < $2 order by seq desc limit $3
