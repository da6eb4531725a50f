-- Batch, finish: the batch $1 has ended as $3, with the files $4 and $5 (null: none; $6 and $7 their bytes), or nothing. $8 is
-- why it failed.
-- Only while the lease lasts: a process that stood still may have lost the contents of the files to a sweep.
with changed as (
    update batches
       set status = $3, output_file = $4, error_file = $5, failed = total - completed, errors = $8,
           lease_owner = null, lease_expires_at = null,
           completed_at = case when $3 = 'completed' then now() end,
           expired_at = case when $3 = 'expired' then now() end,
           failed_at = case when $3 = 'failed' then now() end,
           cancelled_at = case when $3 = 'cancelled' then now() end
     where key = $1 and attempt = $2 and lease_expires_at > now()
       and status = case $3 when 'completed' then 'finalizing' when 'cancelled' then 'cancelling' else 'in_progress' end
    returning *
), filed as (
    insert into files (id, organization, filename, purpose, bytes, expires_at)
    select file, organization, changed.id || '_' || kind || '.jsonl', 'batch_output', bytes,
           now() + make_interval(secs => output_lifetime)
      from changed, unnest(array[$4, $5]::text[], array['output', 'error'], array[$6, $7]::bigint[])
                 as made (file, kind, bytes)
     where file is not null
), cleared as (
    delete from batch_results using changed where batch = changed.key
)
select id from changed
