-- Events before: a job's events older than the one numbered $2, newest first; all of them if $2 is null.
select seq, attempt, extract(epoch from at)::bigint as created_at, level, kind, message, change, detail, data
  from job_events where job = $1 and ($2::bigint is null or seq < $2) order by seq desc limit $3
