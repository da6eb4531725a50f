-- Events after: a job's events that follow the one numbered $2, oldest first.
select seq, attempt, extract(epoch from at)::bigint as created_at, level, kind, message, change, detail, data
  from job_events where job = $1 and seq > $2 order by seq limit $3
