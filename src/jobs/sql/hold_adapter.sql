-- Hold adapter: an attempt is about to store the files of the adapter $3 and to name them; nobody removes them until it
-- has ended. Waits for a removal that is under way. Returns nothing if the lease is lost.
with turn as materialized (
    select pg_advisory_xact_lock(hashtext('adapters'))
), held as materialized (
    select key, attempt from jobs, turn where key = $1 and attempt = $2 and status = 'running' for no key update of jobs
)
insert into adapter_holds (job, attempt, adapter) select key, attempt, $3 from held
on conflict (job, adapter) do update set attempt = excluded.attempt
returning job
