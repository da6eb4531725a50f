-- Heartbeat: renews the lease of an attempt and stores its checkpoint, if there is a new one. An attempt that got
-- further is no sign of a job that kills its workers.
update jobs set
    lease_expires_at = now() + make_interval(secs => $3), checkpoint = coalesce($4, checkpoint),
    failures = case when $4 is null then failures else 0 end
 where key = $1 and attempt = $2 and status = 'running'
returning stop_request
