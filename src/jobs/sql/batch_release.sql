-- Batch, release: lets go of the batch $1, which the attempt $2 held; others may claim it in $3 seconds.
update batches
   set lease_owner = null,
       lease_expires_at = case when $3::float8 > 0 then now() + make_interval(secs => $3::float8) end
 where key = $1 and attempt = $2 and status in ('validating', 'in_progress', 'finalizing', 'cancelling')
