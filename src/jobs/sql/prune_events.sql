-- Prune events: removes up to $3 events of up to $2 jobs that ended more than $1 days ago, and marks the jobs once
-- all are removed. Does nothing while another process prunes.
with turn as materialized (
    select pg_try_advisory_xact_lock(hashtext('jobs.retention')) as mine
), old as materialized (
    select key from jobs, turn
     where mine and finished_at < now() - make_interval(days => $1) and events_kept
     order by finished_at limit $2 for no key update of jobs skip locked
), doomed as materialized (
    select seq from job_events join old on job = key limit $3
), gone as (
    delete from job_events using doomed where job_events.seq = doomed.seq
), marked as (
    update jobs set events_kept = false from old where jobs.key = old.key and (select count(*) from doomed) < $3
    returning 1
)
select (select count(*) from doomed) as removed, (select count(*) from marked) as jobs
