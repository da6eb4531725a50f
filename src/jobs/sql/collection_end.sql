-- Collection, end: the answers of the job $1 are in files, which become the organisation's ($3 their ids, $4 names, $5
-- purposes, $6 bytes). If $7 is true the job goes to the workers with them, or obeys the stop that was asked for; else
-- it still runs, and only has the files, as it has after an attempt that was lost right then. Only while the lease
-- lasts: a process that stood still may have lost the files' contents to a sweep.
with held as materialized (
    select key as held_key, case stop_request when 'cancel' then 'cancelled'::job_status when 'pause' then 'paused'
                            else 'queued' end as next
      from jobs where key = $1 and attempt = $2 and status = 'running' and lease_expires_at > now() for update
), changed as (
    update jobs set
        status = case when $7 then next else status end, collecting = collecting and not $7,
        lease_owner = case when not $7 then lease_owner end,
        lease_expires_at = case when not $7 then lease_expires_at end,
        stop_request = case when not $7 then stop_request end,
        finished_at = case when $7 and next = 'cancelled' then now() end,
        result_files = result_files || (select coalesce(array_agg(made.id), '{}')
                                          from unnest($3::text[], $5::text[]) as made (id, purpose)
                                         where made.purpose = 'fine-tune-results' and made.id <> all(result_files)),
        failures = 0, run_after = now(), updated_at = case when $7 then now() else updated_at end
      from held where key = held_key
    returning jobs.*
), filed as (
    insert into files (id, organization, filename, purpose, bytes)
    select made.id, organization, made.name, made.purpose, made.bytes
      from changed, unnest($3::text[], $4::text[], $5::text[], $6::bigint[]) as made (id, name, purpose, bytes)
    on conflict (id) do nothing
), cleared as (
    delete from teacher_answers using changed where job = changed.key and $7
), said as (
    insert into job_events (job, attempt, level, change, detail)
    select key, attempt, 'info', status::text, null from changed where $7
)
select key from changed
