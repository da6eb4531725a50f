-- Wait for storage: an attempt cannot write for now. Returns the seconds since it, or one before it, began to wait.
update jobs set waiting_since = coalesce(waiting_since, now())
 where key = $1 and attempt = $2 and status = 'running'
returning extract(epoch from now() - waiting_since)::float8
