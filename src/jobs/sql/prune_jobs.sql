-- Prune jobs: removes up to $2 jobs that ended more than $1 days ago and of which no model is left, with their events
-- and the rows of their result files, whose ids it returns. Does nothing while another process prunes.
with turn as materialized (
    select pg_try_advisory_xact_lock(hashtext('jobs.retention')) as mine
), old as materialized (
    select key, organization, result_files from jobs, turn
     where mine and finished_at < now() - make_interval(days => $1)
       and (resumable_until is null or resumable_until < now()) and not exists (
         select from fine_tuned_models made where made.organization = jobs.organization and made.job = jobs.id)
     order by finished_at limit $2 for update of jobs skip locked
), gone as (
    delete from jobs using old where jobs.key = old.key returning jobs.key
), gone_files as (
    delete from files using old
     where files.organization = old.organization and files.id = any(old.result_files)
       and files.purpose = 'fine-tune-results'
    returning files.id
)
select (select count(*) from gone) as removed, (select coalesce(array_agg(id), '{}') from gone_files) as files
