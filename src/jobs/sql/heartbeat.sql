-- Heartbeat: renews the lease of an attempt and stores its checkpoint, if there is a new one; returns the key of the
-- state that the new one replaces. An attempt that got further is no sign of a job that kills its workers, nor of a
-- storage that takes nothing.
with held as materialized (
    select key as held_key, checkpoint as former from jobs
     where key = $1 and attempt = $2 and status = 'running' for no key update
)
update jobs set
    lease_expires_at = now() + make_interval(secs => $3), checkpoint = coalesce($4, checkpoint),
    failures = case when $4 is null then failures else 0 end,
    waits = case when $4 is null then waits else 0 end,
    waiting_since = case when $4 is null then waiting_since end
  from held where key = held_key
returning stop_request, nullif(former->>'key', checkpoint->>'key') as replaced
