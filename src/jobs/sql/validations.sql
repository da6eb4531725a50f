-- Validations: those of a job's steps that have a validation loss, oldest first, $2 at the most.
select seq, attempt, data from job_events
 where job = $1 and kind = 'metrics' and coalesce(data->>'full_valid_loss', data->>'valid_loss') is not null
 order by seq limit $2
