-- Prune usage: removes up to $2 sums of days that are more than $1 days ago. Does nothing while another process
-- prunes.
with turn as materialized (
    select pg_try_advisory_xact_lock(hashtext('jobs.retention')) as mine
), old as materialized (
    select organization, day, key, model, base from usage_daily, turn
     where mine and day < (now() at time zone 'utc')::date - $1::int
     order by day limit $2 for update of usage_daily skip locked
)
delete from usage_daily using old
 where (usage_daily.organization, usage_daily.day, usage_daily.key, usage_daily.model, usage_daily.base)
     = (old.organization, old.day, old.key, old.model, old.base)
