-- Prune responses: removes up to $2 that have ended and were asked for more than $1 days ago, with their events. Does
-- nothing while another process prunes.
with turn as materialized (
    select pg_try_advisory_xact_lock(hashtext('jobs.retention')) as mine
), old as materialized (
    select id from responses, turn
     where mine and created_at < now() - make_interval(days => $1::int) and status not in ('queued', 'in_progress')
     order by created_at limit $2 for update of responses skip locked
)
delete from responses using old where responses.id = old.id
