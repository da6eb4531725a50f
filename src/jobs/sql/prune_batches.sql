-- Prune batches: removes up to $2 that have ended and were created more than $1 days ago. Their files stay. Does nothing while
-- another process prunes.
with turn as materialized (
    select pg_try_advisory_xact_lock(hashtext('jobs.retention')) as mine
), old as materialized (
    select key from batches, turn
     where mine and created_at < now() - make_interval(days => $1::int)
       and status in ('completed', 'failed', 'expired', 'cancelled')
     order by created_at limit $2 for update of batches skip locked
)
delete from batches using old where batches.key = old.key
