-- What has ended and is old, found without looking at the rest; see jobs/retention.rs.

alter table jobs add column events_kept boolean not null default true;     -- false: they were too old
create index jobs_ended on jobs (finished_at) where finished_at is not null;
create index jobs_ended_with_events on jobs (finished_at) where finished_at is not null and events_kept;
create index fine_tuned_models_of_job on fine_tuned_models (organization, job) where job is not null;
