-- What people read of a job is a few messages among the figures of thousands of steps.

create index job_events_told on job_events (job, seq) where kind <> 'metrics';
