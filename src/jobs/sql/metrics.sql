-- Metrics: the figures of a job's steps that follow the event numbered $2, oldest first.
select seq, attempt, data from job_events
 where job = $1 and kind = 'metrics' and seq > $2 and data is not null order by seq limit $3
