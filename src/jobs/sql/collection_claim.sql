-- Collection, claim: gives the next job whose answers are to be collected to the collector $1 for $2 seconds. The
-- organisation with the fewest of them running goes first, then the oldest job.
with next as (
    select key from jobs j
     where status = 'queued' and collecting and run_after <= now()
     order by (select count(*) from jobs other
                where other.organization = j.organization and other.status = 'running' and other.collecting),
              created_at, key
     limit 1 for update skip locked
), changed as (
    update jobs set status = 'running', attempt = attempt + 1, lease_owner = $1,
                    lease_expires_at = now() + make_interval(secs => $2), updated_at = now()
      from next where jobs.key = next.key
    returning jobs.*
), said as (
    insert into job_events (job, attempt, level, change, detail)
    select key, attempt, 'info', status::text, null from changed
)
select api_key, key, id, api, organization, status, spec, resolved, stop_request, checkpoint, attempt, error,
       fine_tuned_model, trained_tokens, result_files, estimated_finish,
       extract(epoch from created_at)::bigint as created_at,
       extract(epoch from updated_at)::bigint as updated_at, extract(epoch from finished_at)::bigint as finished_at
  from changed
