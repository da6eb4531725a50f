-- Collection, told: what the last event of the job $1 said about how far its collection is.
select data from job_events where job = $1 and kind <> 'metrics' and data ? 'collected' order by seq desc limit 1
