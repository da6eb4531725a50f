-- Add event: a text of the worker's, unless another attempt than $2 has begun, or the worker takes the job for running
-- ($3) and it is not any more. The row is locked before the event takes its number; see `jobs/sql.rs`.
with held as materialized (
    select key from jobs
     where key = $1 and attempt = $2 and ($3::job_status <> 'running' or status = 'running')
       for no key update
)
insert into job_events (job, attempt, level, kind, message, data)
select key, $2, $4, $5, $6, $7 from held
