-- What a comparison of jobs reads of each: the few steps at which its validation file was measured, among thousands.

create index job_events_validated on job_events (job, seq)
 where kind = 'metrics' and coalesce(data->>'full_valid_loss', data->>'valid_loss') is not null;
